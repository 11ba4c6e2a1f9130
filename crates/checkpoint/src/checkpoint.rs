//! An opened checkpoint, whatever its format.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bitmill_tensor::{
    ColumnPacking, Encoding, FloatType, Grouped, Nested, Scaled, ViewError, WeightData, WeightView,
};

use crate::folder::{self, Files};
use crate::{
    CacheScale, Error, GgufTokenizer, GgufValue, InputScale, ModelConfig, Region, Role, config_out, foreign,
    gguf_in,
};

/// The format of an opened checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// A folder with config.json and safetensors files, or such files in memory.
    HuggingFace,
    /// One GGUF file, or the parts of one.
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
pub struct Checkpoint {
    name: String,
    format: Format,
    config: ModelConfig,
    infos: Vec<TensorInfo>,
    parts: Vec<Parts>,
    by_name: HashMap<String, usize>,
    stored_bytes: u64,
    config_json: Option<serde_json::Value>,
    metadata: Vec<(String, GgufValue)>,
    files: Vec<(String, Region)>,
    left_behind: Vec<String>,
    path: Option<std::path::PathBuf>,
    cache_scales: Vec<CacheScale>,
    input_scales: Vec<InputScale>,
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
    Scaled {
        layout: Scaled,
        codes: Region,
        scales: Region,
        global: f32,
        nested: Option<NestedParts>,
        kept: Option<Region>,
    },
    Columns {
        layout: Grouped,
        packing: ColumnPacking,
        packed: Region,
        scales: Region,
        zero_points: Region,
        group_of: Option<Region>,
        places: Option<Region>,
    },
    Sparse {
        float: FloatType,
        bitmask: Region,
        values: Region,
        row_offsets: Region,
    },
    /// Rows permuted for adjacent-pair RoPE within heads of this width.
    Permuted {
        bytes: Region,
        head_dim: usize,
    },
}

/// What scales that are codes are read with.
#[derive(Debug, Clone)]
pub(crate) struct NestedParts {
    pub map: Region,
    pub absmax: Region,
    pub offset: f32,
}

impl Checkpoint {
    pub(crate) fn new(
        name: String,
        format: Format,
        config: ModelConfig,
        infos: Vec<TensorInfo>,
        parts: Vec<Parts>,
        stored_bytes: u64,
    ) -> Self {
        let by_name = infos.iter().enumerate().map(|(index, info)| (info.name.clone(), index)).collect();
        Self {
            name,
            format,
            config,
            infos,
            parts,
            by_name,
            stored_bytes,
            config_json: None,
            metadata: Vec::new(),
            files: Vec::new(),
            left_behind: Vec::new(),
            path: None,
            cache_scales: Vec::new(),
            input_scales: Vec::new(),
        }
    }

    pub(crate) fn with_folder(
        self,
        config: serde_json::Value,
        files: Vec<(String, Region)>,
        left_behind: Vec<String>,
    ) -> Self {
        Self { config_json: Some(config), files, left_behind, ..self }
    }

    pub(crate) fn with_metadata(mut self, metadata: Vec<(String, GgufValue)>) -> Self {
        self.metadata = metadata;
        self
    }

    pub(crate) fn with_cache_scales(self, cache_scales: Vec<CacheScale>) -> Self {
        Self { cache_scales, ..self }
    }

    pub(crate) fn with_input_scales(self, input_scales: Vec<InputScale>) -> Self {
        Self { input_scales, ..self }
    }

    /// Opens a Hugging Face folder or a .gguf file.
    ///
    /// # Errors
    /// Any [`Error`] of reading: each names the file and, where there is one, the tensor.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
        if metadata.is_dir() {
            return Ok(folder::open(&Files::Folder(path))?.at(path));
        }
        let region = Region::map(path)?;
        if is_gguf(path, &region) {
            let folder = Files::Folder(path.parent().unwrap_or(Path::new("")));
            return Ok(gguf_in::open(path, &region, &|name| folder.open(name))?.at(path));
        }
        Err(foreign::file(path, &region))
    }

    /// Opens files that lie in memory, by name: those of a Hugging Face folder, such as the embedded model's, or a GGUF
    /// file, which comes first, with its parts if it is split.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_files(name: &str, files: Vec<(String, Region)>) -> Result<Self, Error> {
        let memory = Files::Memory { name, files: &files };
        match files.first() {
            Some((first, region)) if region.starts_with(b"GGUF") => {
                gguf_in::open(Path::new(first), region, &|name| memory.open(name))
            }
            _ => folder::open(&memory),
        }
    }

    fn at(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Where it was opened; none for a checkpoint in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The files that hold its weights, sorted; none for a checkpoint in memory.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.path.iter().filter(|path| path.is_file()).cloned().collect();
        for parts in &self.parts {
            parts.each(|region| {
                if let Some(path) = region.path()
                    && !files.iter().any(|file| file == path)
                {
                    files.push(path.to_owned());
                }
            });
        }
        files.sort_unstable();
        files
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

    /// Scales for a runtime's cache of keys and values in 8 bits, in file order; nothing here computes with them.
    pub fn cache_scales(&self) -> &[CacheScale] {
        &self.cache_scales
    }

    /// What a runtime divides the inputs of matrices by before it rounds them to 8-bit floats, in file order; nothing here computes
    /// with them.
    pub fn input_scales(&self) -> &[InputScale] {
        &self.input_scales
    }

    /// Whether any tensor was rounded to codes.
    pub fn is_quantized(&self) -> bool {
        self.infos.iter().any(|info| info.encoding.is_quantized())
    }

    /// Size on disk of the weights: a GGUF file, or safetensors files with their index and config.json.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Where the tokenizer is.
    pub fn tokenizer_source(&self) -> TokenizerSource {
        match self.format {
            Format::Gguf => GgufTokenizer::from_metadata(&self.metadata)
                .map_or(TokenizerSource::None, TokenizerSource::Gguf),
            Format::HuggingFace => self
                .file("tokenizer.json")
                .map_or(TokenizerSource::None, |json| TokenizerSource::Json(json.clone())),
        }
    }

    /// The chat template, in Jinja: chat_template.jinja, else what tokenizer_config.json or GGUF metadata has.
    pub fn chat_template(&self) -> Option<String> {
        if self.format == Format::Gguf {
            let (_, value) = self.metadata.iter().find(|(key, _)| key == "tokenizer.chat_template")?;
            return value.as_str().map(str::to_owned);
        }
        if let Some(template) = self.file("chat_template.jinja") {
            return std::str::from_utf8(template).ok().map(str::to_owned);
        }
        folder::chat_template(self.file("tokenizer_config.json")?)
    }

    fn file(&self, name: &str) -> Option<&Region> {
        self.files.iter().find(|(file, _)| file == name).map(|(_, region)| region)
    }

    /// Every file of a Hugging Face folder that is neither weights, nor their index, nor config.json.
    pub fn other_files(&self) -> Vec<(String, Region)> {
        self.files.clone()
    }

    /// What else lies in a Hugging Face folder and is not among its files: folders, with a slash behind, and links to elsewhere.
    pub fn left_behind(&self) -> &[String] {
        &self.left_behind
    }

    /// config.json as it is, for a Hugging Face checkpoint; Qwen's first generation shows that of the same model as a Qwen2,
    /// which is what its tensors are named for.
    pub fn config_json(&self) -> Option<&serde_json::Value> {
        self.config_json.as_ref()
    }

    /// The config.json of this model as a Hugging Face folder: its own, or one written for a GGUF file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming what config.json cannot say.
    pub fn to_config_json(&self) -> Result<serde_json::Value, Error> {
        match &self.config_json {
            Some(json) => Ok(json.clone()),
            None => config_out::write(&self.name, &self.config, &self.infos),
        }
    }

    /// generation_config.json for a model that came without: the tokens that begin and end a text.
    pub fn to_generation_config(&self) -> serde_json::Value {
        config_out::write_generation(&self.config)
    }

    /// Every metadata key of a GGUF file, in file order; nothing for other formats.
    pub fn metadata(&self) -> &[(String, GgufValue)] {
        &self.metadata
    }
}

impl fmt::Debug for Checkpoint {
    /// Without the tensors and the vocabulary, which fill screens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, format, config, infos, .. } = self;
        write!(f, "Checkpoint({name}, {format:?}, {} tensors, {config:?})", infos.len())
    }
}

impl Tensor {
    /// The bytes as a matrix; a vector is a matrix of one row.
    pub fn view(&self) -> WeightView<'_> {
        let (rows, cols) = matrix_shape(&self.info.shape);
        let data = self.parts.data(self.info.encoding);
        WeightView::new(rows, cols, data).expect("lengths were checked when the checkpoint was opened")
    }

    /// The same tensor with its values stored as `bytes`, row by row where this one stores them: what a rounding of
    /// it would be, without a file.
    ///
    /// # Errors
    /// [`ViewError`] if `bytes` are not the matrix in `encoding`, or that has several parts, as groups have.
    pub fn stored_as(&self, encoding: Encoding, bytes: Vec<u8>) -> Result<Self, ViewError> {
        let (rows, cols) = matrix_shape(&self.info.shape);
        let data = match encoding {
            Encoding::Float(float) => WeightData::Float { float, bytes: &bytes },
            Encoding::Block(block) => WeightData::Block { block, bytes: &bytes },
            Encoding::Grouped(layout) => {
                WeightData::Grouped { layout, packed: &bytes, scales: &[], zero_points: &[] }
            }
            Encoding::Scaled(layout) => WeightData::Scaled {
                layout,
                codes: &bytes,
                scales: &[],
                global: 1.0,
                nested: None,
                kept: &[],
            },
            Encoding::Sparse { float, .. } => {
                WeightData::Sparse { float, bitmask: &[], values: &bytes, row_offsets: &[] }
            }
        };
        WeightView::new(rows, cols, data)?;
        let info = TensorInfo { encoding, stored_bytes: bytes.len() as u64, ..self.info.clone() };
        let bytes = Region::from_vec(bytes);
        let parts = match self.parts {
            Parts::Permuted { head_dim, .. } => Parts::Permuted { bytes, head_dim },
            _ => Parts::Whole(bytes),
        };
        Ok(Self { info, parts })
    }

    /// The same tensor with its values stored as groups of codes, row by row where this one stores them.
    ///
    /// # Errors
    /// [`ViewError`] if the parts are not the matrix in `layout`.
    pub fn stored_in_groups(
        &self,
        layout: Grouped,
        packed: Vec<u8>,
        scales: Vec<u8>,
        zero_points: Vec<u8>,
    ) -> Result<Self, ViewError> {
        let (rows, cols) = matrix_shape(&self.info.shape);
        let stored_bytes = (packed.len() + scales.len() + zero_points.len()) as u64;
        let data =
            WeightData::Grouped { layout, packed: &packed, scales: &scales, zero_points: &zero_points };
        WeightView::new(rows, cols, data)?;
        let info = TensorInfo { encoding: Encoding::Grouped(layout), stored_bytes, ..self.info.clone() };
        let zero_points = (!zero_points.is_empty()).then(|| Region::from_vec(zero_points));
        let (packed, scales) = (Region::from_vec(packed), Region::from_vec(scales));
        Ok(Self { info, parts: Parts::Grouped { layout, packed, scales, zero_points } })
    }

    /// The same tensor with these values, in the order in which this one stores them; nothing is copied.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn with_values(&self, values: Vec<f32>) -> Self {
        let (rows, cols) = matrix_shape(&self.info.shape);
        assert_eq!(values.len(), rows * cols, "a value for each of `{}`", self.info.name);
        let bytes = Region::from_floats(values);
        let encoding = Encoding::Float(FloatType::F32);
        let info = TensorInfo { encoding, stored_bytes: bytes.len() as u64, ..self.info.clone() };
        let parts = match self.parts {
            Parts::Permuted { head_dim, .. } => Parts::Permuted { bytes, head_dim },
            _ => Parts::Whole(bytes),
        };
        Self { info, parts }
    }

    /// Lets go of its pages of the mapped file.
    pub fn release(&self) {
        self.parts.each(Region::release);
    }

    /// Lets go of its pages, and lets the system forget them too: for a model that is read once and is larger than memory.
    pub fn forget(&self) {
        self.parts.each(Region::forget);
    }

    /// Asks the system to read these rows ahead of use; of a tensor in several parts, all of it with the first row.
    pub fn will_need_rows(&self, rows: Range<usize>) {
        let (n_rows, _) = matrix_shape(&self.info.shape);
        match &self.parts {
            // Where rows are permuted, they stay within their head.
            Parts::Whole(bytes) | Parts::Permuted { bytes, .. } => {
                let row_bytes = bytes.len() / n_rows.max(1);
                let end = rows.end.min(n_rows);
                bytes.slice(rows.start.min(end) * row_bytes..end * row_bytes).will_need();
            }
            _ if rows.start == 0 => self.parts.each(Region::will_need),
            _ => {}
        }
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
    /// The bytes as `encoding` reads them.
    pub(crate) fn data(&self, encoding: Encoding) -> WeightData<'_> {
        match self {
            Self::Whole(bytes) | Self::Permuted { bytes, .. } => match encoding {
                Encoding::Float(float) => WeightData::Float { float, bytes },
                Encoding::Block(block) => WeightData::Block { block, bytes },
                Encoding::Grouped(_) | Encoding::Scaled(_) | Encoding::Sparse { .. } => {
                    unreachable!("they have parts")
                }
            },
            Self::Grouped { layout, packed, scales, zero_points } => WeightData::Grouped {
                layout: *layout,
                packed,
                scales,
                zero_points: zero_points.as_deref().unwrap_or_default(),
            },
            Self::Scaled { layout, codes, scales, global, nested, kept } => {
                let nested = nested.as_ref().map(|nested| Nested {
                    map: &nested.map,
                    absmax: &nested.absmax,
                    offset: nested.offset,
                });
                let kept = kept.as_deref().unwrap_or_default();
                WeightData::Scaled { layout: *layout, codes, scales, global: *global, nested, kept }
            }
            Self::Columns { layout, packing, packed, scales, zero_points, group_of, places } => {
                WeightData::Columns {
                    layout: *layout,
                    packing: *packing,
                    packed,
                    scales,
                    zero_points,
                    group_of: group_of.as_deref().unwrap_or_default(),
                    places: places.as_deref().unwrap_or_default(),
                }
            }
            Self::Sparse { float, bitmask, values, row_offsets } => {
                WeightData::Sparse { float: *float, bitmask, values, row_offsets }
            }
        }
    }

    fn each(&self, mut act: impl FnMut(&Region)) {
        match self {
            Self::Whole(bytes) | Self::Permuted { bytes, .. } => act(bytes),
            Self::Grouped { packed, scales, zero_points, .. } => {
                act(packed);
                act(scales);
                if let Some(zero_points) = zero_points {
                    act(zero_points);
                }
            }
            Self::Scaled { codes, scales, nested, kept, .. } => {
                let nested = nested.iter().flat_map(|nested| [&nested.map, &nested.absmax]);
                [codes, scales].into_iter().chain(nested).chain(kept).for_each(act);
            }
            Self::Columns { packed, scales, zero_points, group_of, places, .. } => {
                [packed, scales, zero_points].into_iter().chain(group_of).chain(places).for_each(act);
            }
            Self::Sparse { bitmask, values, row_offsets, .. } => {
                [bitmask, values, row_offsets].into_iter().for_each(act);
            }
        }
    }
}

/// Whether a file is to be read as GGUF: it begins so, or is called so and is nothing else that is known.
fn is_gguf(path: &Path, bytes: &[u8]) -> bool {
    let is_called_so = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    bytes.starts_with(b"GGUF")
        || (is_called_so && !bytes.starts_with(b"PK") && foreign::stand_in(path, bytes).is_none())
}

/// `[rows, cols]` of a tensor: a vector is one row, further dimensions are rows.
pub(crate) fn matrix_shape(shape: &[usize]) -> (usize, usize) {
    match shape.split_last() {
        None => (1, 1),
        Some((cols, rows)) => (rows.iter().product(), *cols),
    }
}

/// Whether sizes may be multiplied without looking, in any number and with up to 16 bytes an element. A zero counts
/// as one: it must not hide sizes whose product does not fit.
pub(crate) fn is_addressable(shape: &[usize]) -> bool {
    let total = shape.iter().try_fold(16usize, |total, &size| total.checked_mul(size.max(1)));
    total.is_some_and(|bytes| isize::try_from(bytes).is_ok())
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

/// Which row of a q or k matrix lies at `stored_row` after that permutation: the inverse of [`adjacent_pairs_row`].
///
/// ```
/// use bitmill_checkpoint::{adjacent_pairs_row, halves_row};
/// assert!((0..16).all(|row| halves_row(adjacent_pairs_row(row, 8), 8) == row));
/// ```
pub fn halves_row(stored_row: usize, head_dim: usize) -> usize {
    let (head, within) = (stored_row / head_dim, stored_row % head_dim);
    head * head_dim + within % 2 * (head_dim / 2) + within / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_and_writers_are_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Checkpoint>();
        shared::<Tensor>();
        shared::<crate::GgufWriter>();
        shared::<crate::FolderWriter>();
    }

    #[test]
    fn a_zero_does_not_hide_sizes_that_overflow() {
        assert!(is_addressable(&[0, 5]) && is_addressable(&[]) && is_addressable(&[1 << 30, 1 << 20]));
        assert!(!is_addressable(&[0, 1 << 40, 1 << 40]) && !is_addressable(&[usize::MAX]));
        assert_eq!(matrix_shape(&[2, 3, 4]), (6, 4));
        assert_eq!(matrix_shape(&[7]), (1, 7));
        assert_eq!(matrix_shape(&[]), (1, 1));
    }
}
