//! Which columns a file has, and how deep their values lie.

use super::Problem;
use super::thrift::Value;

/// A column of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf<'b> {
    /// Its place among the columns.
    pub index: usize,
    /// Names from the outermost in.
    pub path: Vec<&'b str>,
    /// Whether values are strings of bytes.
    pub is_bytes: bool,
    /// The level of definition of a value that is there.
    pub definition: u32,
    /// How many lists it lies in.
    pub repetition: u32,
    /// The level of definition from which its innermost list has an element.
    pub element_level: u32,
}

impl Leaf<'_> {
    /// `messages.list.element.role`.
    pub(super) fn name(&self) -> String {
        self.path.join(".")
    }
}

/// The columns of a file.
#[derive(Debug)]
pub(super) struct Schema<'b> {
    pub leaves: Vec<Leaf<'b>>,
}

const DEEPEST: usize = 32;

impl<'b> Schema<'b> {
    /// The schema in a footer: its elements stand before their children.
    pub(super) fn parse(footer: &Value<'b>) -> Result<Self, Problem> {
        let elements = footer.field(2).and_then(Value::list).unwrap_or_default();
        let (root, rest) = elements.split_first().ok_or("the footer has no schema")?;
        let mut walk = Walk { rest: rest.iter(), leaves: Vec::new() };
        let top = Leaf {
            index: 0,
            path: Vec::new(),
            is_bytes: false,
            definition: 0,
            repetition: 0,
            element_level: 0,
        };
        for _ in 0..children(root) {
            walk.element(&top).ok_or("the schema is damaged")?;
        }
        Ok(Self { leaves: walk.leaves })
    }

    /// The column `text`.
    pub(super) fn text(&self) -> Option<&Leaf<'b>> {
        self.leaves.iter().find(|leaf| leaf.is_bytes && leaf.repetition == 0 && leaf.path == ["text"])
    }

    /// Role and content of the list `messages`.
    pub(super) fn messages(&self) -> Option<(&Leaf<'b>, &Leaf<'b>)> {
        let member = |name: &str| {
            self.leaves.iter().find(|leaf| {
                let ends = (leaf.path.first().copied(), leaf.path.last().copied());
                leaf.is_bytes && leaf.repetition == 1 && ends == (Some("messages"), Some(name))
            })
        };
        member("role").zip(member("content"))
    }

    /// The columns for an error, a few of them.
    pub(super) fn names(&self) -> String {
        const SHOWN: usize = 12;
        let mut names: Vec<String> =
            self.leaves.iter().take(SHOWN).map(|leaf| format!("`{}`", leaf.name())).collect();
        if self.leaves.len() > SHOWN {
            names.push(format!("{} more", self.leaves.len() - SHOWN));
        }
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

fn children(element: &Value<'_>) -> i64 {
    element.field(5).and_then(Value::int).unwrap_or(0)
}

struct Walk<'v, 'b> {
    rest: std::slice::Iter<'v, Value<'b>>,
    leaves: Vec<Leaf<'b>>,
}

impl<'b> Walk<'_, 'b> {
    /// Takes an element that lies in `parent`, and all that lies in it.
    fn element(&mut self, parent: &Leaf<'b>) -> Option<()> {
        let element = self.rest.next()?;
        let mut leaf = parent.clone();
        leaf.path.push(element.field(4)?.text()?);
        if leaf.path.len() > DEEPEST {
            return None;
        }
        match element.field(3).and_then(Value::int) {
            Some(1) => leaf.definition += 1,
            Some(2) => {
                leaf.definition += 1;
                leaf.repetition += 1;
                leaf.element_level = leaf.definition;
            }
            _ => {}
        }
        const BYTE_ARRAY: i64 = 6;
        match children(element) {
            0 => {
                leaf.is_bytes = element.field(1).and_then(Value::int) == Some(BYTE_ARRAY);
                leaf.index = self.leaves.len();
                self.leaves.push(leaf);
            }
            count => {
                for _ in 0..count {
                    self.element(&leaf)?;
                }
            }
        }
        Some(())
    }
}
