//! Golden vectors: safetensors files under a crate's `tests/golden/`.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// The tensors of a golden file.
///
/// Every accessor panics, naming the file and the tensor, if the tensor is missing or of another type.
pub struct Golden {
    path: String,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Golden {
    /// Reads the file at `path`, relative to the crate under test.
    ///
    /// # Panics
    /// If there is no such file, or it is no safetensors file.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().display().to_string();
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{path}: {error}"));
        let owned = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        let tensors = file.tensors().into_iter().map(owned).collect();
        Self { path, tensors }
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    #[track_caller]
    fn get(&self, name: &str, dtype: Option<Dtype>) -> &(Dtype, Vec<usize>, Vec<u8>) {
        let Some(tensor) = self.tensors.get(name) else { panic!("{}: no tensor `{name}`", self.path) };
        if let Some(dtype) = dtype {
            assert_eq!(tensor.0, dtype, "{}: `{name}`", self.path);
        }
        tensor
    }

    /// A tensor's shape.
    #[track_caller]
    pub fn shape(&self, name: &str) -> &[usize] {
        &self.get(name, None).1
    }

    /// A tensor's bytes, of whatever type.
    #[track_caller]
    pub fn bytes(&self, name: &str) -> &[u8] {
        &self.get(name, None).2
    }

    /// The elements of an f32 tensor.
    #[track_caller]
    pub fn f32(&self, name: &str) -> Vec<f32> {
        let bytes = &self.get(name, Some(Dtype::F32)).2;
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// The elements of an i64 tensor.
    #[track_caller]
    pub fn i64(&self, name: &str) -> Vec<i64> {
        let bytes = &self.get(name, Some(Dtype::I64)).2;
        let element = |b: &[u8]| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        bytes.chunks_exact(8).map(element).collect()
    }

    /// The elements of an i64 tensor of token ids.
    #[track_caller]
    pub fn tokens(&self, name: &str) -> Vec<u32> {
        self.i64(name).into_iter().map(|id| u32::try_from(id).expect("a token id")).collect()
    }
}
