//! Tensor patterns of a recipe: `*` stands for any run of characters, dots included; `{0-3,7}` for one of these numbers.

use wildmatch::WildMatch;

/// A pattern over canonical tensor names, such as `*.mlp.*.weight` or `model.layers.{0-3,7}.mlp.*`.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    text: String,
    /// What lies between the braces.
    parts: Vec<Part>,
    matcher: WildMatch,
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Numbers(Ranges),
}

impl Pattern {
    /// Braces that hold no numbers are characters like any other, and so match nothing.
    pub(crate) fn new(text: &str) -> Self {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, inside, after)) = braces(rest) {
            parts.push(Part::Text(before.into()));
            parts.push(Part::Numbers(inside));
            rest = after;
        }
        parts.push(Part::Text(rest.into()));
        Self { text: text.into(), parts, matcher: WildMatch::new(text) }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        match &self.parts[..] {
            [_] => self.matcher.matches(name),
            parts => matches(parts, String::new(), name),
        }
    }
}

/// First and last number of each range.
type Ranges = Vec<(u64, u64)>;

/// The text before the first braces with numbers, those, and the text after them.
fn braces(text: &str) -> Option<(&str, Ranges, &str)> {
    let (before, rest) = text.split_once('{')?;
    let (inside, after) = rest.split_once('}')?;
    let number =
        |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    let ranges = inside.split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((number(first)?, number(last)?))
    });
    Some((before, ranges.collect::<Option<_>>()?, after))
}

/// Whether `name` is `parts` in a row, once each set of numbers is one of the numbers that stand in `name`.
fn matches(parts: &[Part], before: String, name: &str) -> bool {
    let Some((part, rest)) = parts.split_first() else { return WildMatch::new(&before).matches(name) };
    match part {
        Part::Text(text) => matches(rest, before + text, name),
        Part::Numbers(ranges) => numbers(name)
            .filter(|&(value, _)| ranges.iter().any(|&(first, last)| (first..=last).contains(&value)))
            .any(|(_, digits)| matches(rest, format!("{before}{digits}"), name)),
    }
}

/// The numbers in `name`, as values and as they are written.
fn numbers(name: &str) -> impl Iterator<Item = (u64, &str)> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| Some((digits.parse().ok()?, digits)))
}

/// `numbers`, ascending, as braces hold them: `0-3,7`.
pub(crate) fn ranges(numbers: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let texts = ranges.iter().map(|&(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_cross_dots_and_plain_names_match_whole() {
        let name = "model.layers.3.mlp.down_proj.weight";
        for yes in ["*", "*.down_proj.weight", "model.layers.*.mlp.*", name] {
            assert!(Pattern::new(yes).matches(name), "{yes}");
        }
        for no in ["down_proj", "*.up_proj.*", "model.layers.3", ""] {
            assert!(!Pattern::new(no).matches(name), "{no}");
        }
    }

    #[test]
    fn braces_take_numbers_and_ranges_of_them() {
        let name = "model.layers.13.mlp.experts.7.down_proj.weight";
        for yes in [
            "model.layers.{13}.mlp.*",
            "model.layers.{0,2,10-14}.*",
            "*.{13}.*.{0-7}.*",
            "model.layers.1{3}.*",
        ] {
            assert_eq!(Pattern::new(yes).matches(name), yes != "model.layers.1{3}.*", "{yes}");
        }
        for no in [
            "model.layers.{3}.*",
            "model.layers.{14-20,1}.*",
            "*.{13}.*.{8}.*",
            "model.layers.{}.*",
            "model.layers.{13.*",
            "model.layers.{a}.*",
            "model.layers.{-13}.*",
        ] {
            assert!(!Pattern::new(no).matches(name), "{no}");
        }
    }

    #[test]
    fn numbers_are_written_as_braces_read_them() {
        assert_eq!(ranges(&[0, 1, 2, 3, 7, 9, 10]), "0-3,7,9,10");
        let pattern = Pattern::new(&format!("model.layers.{{{}}}.x", ranges(&[0, 1, 2, 3, 7, 9, 10])));
        let matched: Vec<usize> =
            (0..20).filter(|layer| pattern.matches(&format!("model.layers.{layer}.x"))).collect();
        assert_eq!(matched, [0, 1, 2, 3, 7, 9, 10]);
    }
}
