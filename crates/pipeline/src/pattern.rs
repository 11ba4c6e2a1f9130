//! Tensor patterns of a recipe: `*` stands for any run of characters, dots included.

use wildmatch::WildMatch;

/// A pattern over canonical tensor names, such as `*.mlp.*.weight`.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    text: String,
    matcher: WildMatch,
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        Self { text: text.into(), matcher: WildMatch::new(text) }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        self.matcher.matches(name)
    }
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
}
