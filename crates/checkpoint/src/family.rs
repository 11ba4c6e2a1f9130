//! The model families that are read, one row each.

use std::fmt;

/// A model family: what its weights are called and how they are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Qwen 1.5, 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Llama 3, SmolLM and whatever else calls itself `llama`.
    Llama,
}

/// How RoPE pairs the dimensions of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Dimension `i` turns with `i + head_dim / 2`: every Hugging Face checkpoint, and Qwen2 in GGUF.
    Halves,
    /// Dimension `2i` turns with `2i + 1`: a llama GGUF, whose q and k rows are permuted for it.
    Adjacent,
}

struct Row {
    family: Family,
    /// `model_type` in config.json and `general.architecture` in GGUF.
    name: &'static str,
    /// `architectures` in config.json.
    class: &'static str,
    /// How the GGUF form of the family pairs dimensions.
    gguf_pairing: Pairing,
}

const FAMILIES: [Row; 2] = [
    Row { family: Family::Qwen2, name: "qwen2", class: "Qwen2ForCausalLM", gguf_pairing: Pairing::Halves },
    Row { family: Family::Llama, name: "llama", class: "LlamaForCausalLM", gguf_pairing: Pairing::Adjacent },
];

impl Family {
    /// Every family.
    pub const ALL: [Self; 2] = [Self::Qwen2, Self::Llama];

    fn row(self) -> &'static Row {
        match self {
            Self::Qwen2 => &FAMILIES[0],
            Self::Llama => &FAMILIES[1],
        }
    }

    /// `model_type` in config.json, and `general.architecture` and the prefix of keys in GGUF: `"qwen2"`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The class in config.json's `architectures`: `"Qwen2ForCausalLM"`.
    pub fn class(self) -> &'static str {
        self.row().class
    }

    /// How this family's GGUF form pairs the dimensions of a head.
    pub fn gguf_pairing(self) -> Pairing {
        self.row().gguf_pairing
    }

    /// The family with this `model_type` or GGUF architecture.
    pub fn from_name(name: &str) -> Option<Self> {
        FAMILIES.iter().find(|row| row.name == name).map(|row| row.family)
    }

    /// The family with this class name.
    pub fn from_class(class: &str) -> Option<Self> {
        FAMILIES.iter().find(|row| row.class == class).map(|row| row.family)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The families by name, for hints.
pub(crate) fn supported() -> String {
    let names: Vec<String> = FAMILIES.iter().map(|row| format!("{} ({})", row.name, row.class)).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_own_names() {
        for row in &FAMILIES {
            assert_eq!(row.family.name(), row.name);
            assert_eq!(Family::from_name(row.name), Some(row.family));
            assert_eq!(Family::from_class(row.class), Some(row.family));
        }
    }
}
