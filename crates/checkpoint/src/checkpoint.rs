//! An opened checkpoint, whatever its format.

use std::collections::HashMap;
use std::path::Path;

use bitmill_tensor::{Encoding, Grouped, WeightData, WeightView};

use crate::{Error, GgufTokenizer, GgufValue, ModelConfig, Region, Role};

/// The format of an opened checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// A folder with config.json and safetensors files, or such files in memory.
    HuggingFace,
    /// One GGUF file.
    Gguf,
}

/// Where a checkpoint keeps its tokenizer.
#[derive(Debug, Clone)]
pub enum TokenizerSource {
    /// The bytes of tokenizer.json.
    Json(Region),
    /// Metadata keys.
    Gguf(GgufTokenizer),
    /// Nowhere.
    None,
}

/// An opened checkpoint. Headers and config were read and checked; weights are read when touched.
#[derive(Debug)]
pub struct Checkpoint {
    pub(crate) name: String,
    pub(crate) format: Format,
    pub(crate) config: ModelConfig,
    pub(crate) infos: Vec<TensorInfo>,
    pub(crate) parts: Vec<Parts>,
    pub(crate) by_name: HashMap<String, usize>,
    pub(crate) stored_bytes: u64,
    pub(crate) config_json: Option<serde_json::Value>,
    pub(crate) metadata: Vec<(String, GgufValue)>,
    pub(crate) files: Vec<(String, Region)>,
}

/// A tensor of a checkpoint, before its bytes are asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// The Hugging Face name, whatever the format.
    pub name: String,
    /// `[out_features, in_features]` for matrices.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub encoding: Encoding,
    /// Bytes of all its parts: codes, scales, zero points.
    pub stored_bytes: u64,
    /// What it does.
    pub role: Role,
}

/// A tensor with its bytes.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Name, shape, encoding, role.
    pub info: TensorInfo,
    parts: Parts,
}

/// The bytes of a tensor.
#[derive(Debug, Clone)]
pub(crate) enum Parts {
    Whole(Region),
    Grouped {
        layout: Grouped,
        packed: Region,
        scales: Region,
        zero_points: Option<Region>,
    },
    /// Rows permuted for adjacent-pair RoPE within heads of this width.
    Permuted {
        bytes: Region,
        head_dim: usize,
    },
}

impl Checkpoint {
    /// Opens a Hugging Face folder or a .gguf file.
    ///
    /// # Errors
    /// Any [`Error`] of reading: each names the file and, where there is one, the tensor.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Err(Error::NotACheckpoint {
            path: path.to_owned(),
            problem: "neither a folder nor a .gguf file".to_owned(),
        })
    }

    /// Opens the files of a Hugging Face folder that lie in memory, by name: the embedded model.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_files(name: &str, files: Vec<(String, Region)>) -> Result<Self, Error> {
        let _ = files;
        Err(Error::NotACheckpoint { path: name.into(), problem: "no config.json".to_owned() })
    }

    /// The folder's or file's own name, or the name given.
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every tensor, in file order. A packed matrix with its scales is one tensor.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    /// The tensor with this Hugging Face name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let index = *self
            .by_name
            .get(name)
            .ok_or_else(|| Error::MissingTensor { checkpoint: self.name.clone(), tensor: name.to_owned() })?;
        Ok(Tensor { info: self.infos[index].clone(), parts: self.parts[index].clone() })
    }

    /// The tensor with this role, if there is one.
    pub fn tensor_with_role(&self, role: Role) -> Option<Tensor> {
        self.tensor(&role.canonical_name()?).ok()
    }

    /// Whether any tensor was rounded to codes.
    pub fn is_quantized(&self) -> bool {
        self.infos.iter().any(|info| info.encoding.is_quantized())
    }

    /// Size on disk of all files that hold weights, headers and index included.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Where the tokenizer is.
    pub fn tokenizer_source(&self) -> TokenizerSource {
        TokenizerSource::None
    }

    /// The chat template, in Jinja: chat_template.jinja, else what tokenizer_config.json or GGUF metadata has.
    pub fn chat_template(&self) -> Option<String> {
        None
    }

    /// Every file of a Hugging Face folder that is neither weights, nor their index, nor config.json.
    pub fn other_files(&self) -> Vec<(String, Region)> {
        self.files.clone()
    }

    /// config.json as it is, for a Hugging Face checkpoint.
    pub fn config_json(&self) -> Option<&serde_json::Value> {
        self.config_json.as_ref()
    }

    /// Every metadata key of a GGUF file, in file order; nothing for other formats.
    pub fn metadata(&self) -> &[(String, GgufValue)] {
        &self.metadata
    }
}

impl Tensor {
    /// The bytes as a matrix; a vector is a matrix of one row.
    pub fn view(&self) -> WeightView<'_> {
        let (rows, cols) = matrix_shape(&self.info.shape);
        let data = self.parts.data(self.info.encoding);
        WeightView::new(rows, cols, data).expect("lengths were checked when the checkpoint was opened")
    }

    /// Lets go of its pages of the mapped file.
    pub fn release(&self) {
        self.parts.each(Region::release);
    }

    /// Asks the system to read its pages ahead of use.
    pub fn will_need(&self) {
        self.parts.each(Region::will_need);
    }

    /// Where row `row`, counted in Hugging Face order, lies in the stored bytes: the same row, except for q and k
    /// of a llama GGUF.
    pub fn stored_row(&self, row: usize) -> usize {
        match self.parts {
            Parts::Permuted { head_dim, .. } => adjacent_pairs_row(row, head_dim),
            _ => row,
        }
    }
}

impl Parts {
    fn data(&self, encoding: Encoding) -> WeightData<'_> {
        match self {
            Self::Whole(bytes) | Self::Permuted { bytes, .. } => match encoding {
                Encoding::Float(float) => WeightData::Float { float, bytes },
                Encoding::Block(block) => WeightData::Block { block, bytes },
                Encoding::Grouped(_) => unreachable!("grouped tensors have parts"),
            },
            Self::Grouped { layout, packed, scales, zero_points } => WeightData::Grouped {
                layout: *layout,
                packed,
                scales,
                zero_points: zero_points.as_deref().unwrap_or_default(),
            },
        }
    }

    fn each(&self, act: impl Fn(&Region)) {
        match self {
            Self::Whole(bytes) | Self::Permuted { bytes, .. } => act(bytes),
            Self::Grouped { packed, scales, zero_points, .. } => {
                act(packed);
                act(scales);
                if let Some(zero_points) = zero_points {
                    act(zero_points);
                }
            }
        }
    }
}

/// `[rows, cols]` of a tensor: a vector is one row, further dimensions are rows.
pub(crate) fn matrix_shape(shape: &[usize]) -> (usize, usize) {
    match shape.split_last() {
        None => (1, 1),
        Some((cols, rows)) => (rows.iter().product(), *cols),
    }
}

/// Where row `hf_row` of a q or k matrix goes when heads of `head_dim` are permuted for adjacent-pair RoPE:
/// the first half of a head goes to its even rows, the second half to its odd rows.
///
/// This is `permute` of llama.cpp's converter (`conversion/llama.py`), which llama GGUF files need; biases are
/// permuted alike.
///
/// ```
/// use bitmill_checkpoint::adjacent_pairs_row;
/// let stored: Vec<usize> = (0..8).map(|row| adjacent_pairs_row(row, 4)).collect();
/// assert_eq!(stored, [0, 2, 1, 3, 4, 6, 5, 7]);
/// ```
pub fn adjacent_pairs_row(hf_row: usize, head_dim: usize) -> usize {
    let (head, within) = (hf_row / head_dim, hf_row % head_dim);
    let half = head_dim / 2;
    let stored = if within < half { 2 * within } else { 2 * (within - half) + 1 };
    head * head_dim + stored
}
