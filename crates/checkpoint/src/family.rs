//! The model families that are read, one row each.

use std::fmt;

/// A model family: what its weights are called and how they are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Qwen 1.5, 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen 3, dense: norms of each head of q and k, heads as wide as the config says.
    Qwen3,
    /// Qwen 1.5 and 2 with experts and a shared one.
    Qwen2Moe,
    /// Qwen 3 with experts.
    Qwen3Moe,
    /// Llama 2 and 3, SmolLM and whatever else calls itself `llama`.
    Llama,
    /// Mistral: Llama with a sliding window, or without.
    Mistral,
    /// Qwen's first generation: what [`Qwen2`](Self::Qwen2) computes, under other names.
    Qwen,
}

/// How RoPE pairs the dimensions of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Dimension `i` turns with `i + head_dim / 2`: every Hugging Face checkpoint, and Qwen in GGUF.
    Halves,
    /// Dimension `2i` turns with `2i + 1`: a llama GGUF, whose q and k rows are permuted for it.
    Adjacent,
}

struct Row {
    family: Family,
    /// `model_type` in config.json.
    name: &'static str,
    /// `architectures` in config.json.
    class: &'static str,
    /// `general.architecture` of GGUF files that are written.
    gguf: &'static str,
    /// `general.architecture` of GGUF files that are read, where it is this family's own.
    gguf_read: Option<&'static str>,
    /// How the GGUF form of the family pairs dimensions.
    gguf_pairing: Pairing,
}

const FAMILIES: [Row; 7] = [
    Row {
        family: Family::Qwen2,
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        gguf: "qwen2",
        gguf_read: Some("qwen2"),
        gguf_pairing: Pairing::Halves,
    },
    Row {
        family: Family::Qwen3,
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        gguf: "qwen3",
        gguf_read: Some("qwen3"),
        gguf_pairing: Pairing::Halves,
    },
    Row {
        family: Family::Llama,
        name: "llama",
        class: "LlamaForCausalLM",
        gguf: "llama",
        gguf_read: Some("llama"),
        gguf_pairing: Pairing::Adjacent,
    },
    // llama.cpp's converter writes Mistral as llama, too.
    Row {
        family: Family::Mistral,
        name: "mistral",
        class: "MistralForCausalLM",
        gguf: "llama",
        gguf_read: None,
        gguf_pairing: Pairing::Adjacent,
    },
    // llama.cpp's `qwen` wants the fused tensors back and has nothing that its `qwen2` lacks.
    Row {
        family: Family::Qwen,
        name: "qwen",
        class: "QWenLMHeadModel",
        gguf: "qwen2",
        gguf_read: Some("qwen"),
        gguf_pairing: Pairing::Halves,
    },
    Row {
        family: Family::Qwen2Moe,
        name: "qwen2_moe",
        class: "Qwen2MoeForCausalLM",
        gguf: "qwen2moe",
        gguf_read: Some("qwen2moe"),
        gguf_pairing: Pairing::Halves,
    },
    Row {
        family: Family::Qwen3Moe,
        name: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        gguf: "qwen3moe",
        gguf_read: Some("qwen3moe"),
        gguf_pairing: Pairing::Halves,
    },
];

impl Family {
    /// Every family.
    pub const ALL: [Self; 5] = [Self::Qwen2, Self::Qwen3, Self::Llama, Self::Mistral, Self::Qwen];

    fn row(self) -> &'static Row {
        match self {
            Self::Qwen2 => &FAMILIES[0],
            Self::Qwen3 => &FAMILIES[1],
            Self::Llama => &FAMILIES[2],
            Self::Mistral => &FAMILIES[3],
            Self::Qwen => &FAMILIES[4],
            Self::Qwen2Moe => &FAMILIES[5],
            Self::Qwen3Moe => &FAMILIES[6],
        }
    }

    /// `model_type` in config.json: `"qwen2"`.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The class in config.json's `architectures`: `"Qwen2ForCausalLM"`.
    pub fn class(self) -> &'static str {
        self.row().class
    }

    /// `general.architecture`, and the prefix of keys, of GGUF files that are written: Mistral goes out as `"llama"`,
    /// Qwen's first generation as `"qwen2"`.
    pub fn gguf_name(self) -> &'static str {
        self.row().gguf
    }

    /// The family that Hugging Face folders are written for: Qwen's first generation goes out as Qwen2, which computes the same
    /// and which transformers still has.
    pub fn written(self) -> Self {
        if self == Self::Qwen { Self::Qwen2 } else { self }
    }

    /// How this family's GGUF form pairs the dimensions of a head.
    pub fn gguf_pairing(self) -> Pairing {
        self.row().gguf_pairing
    }

    /// The family with this `model_type`.
    pub fn from_name(name: &str) -> Option<Self> {
        FAMILIES.iter().find(|row| row.name == name).map(|row| row.family)
    }

    /// The family of GGUF files of this architecture.
    pub fn from_gguf_name(architecture: &str) -> Option<Self> {
        FAMILIES.iter().find(|row| row.gguf_read == Some(architecture)).map(|row| row.family)
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
            assert_eq!(row.family.gguf_name(), row.gguf);
            if let Some(architecture) = row.gguf_read {
                assert_eq!(Family::from_gguf_name(architecture), Some(row.family));
            }
            // What is written can be read.
            assert!(Family::from_gguf_name(row.gguf).is_some());
        }
    }
}
