//! Tiny models, the golden loader and tolerances, for tests only.
//!
//! [`Tiny`] writes complete Hugging Face folders of a fraction of a megabyte, from a fixed generator of integers, so
//! that no weights need to be committed and every machine makes the same bytes. It writes with the `safetensors`
//! crate, not with this project's own writers, and depends on no other crate of the project.

mod close;
mod golden;
mod tiny;
mod tokenizer;
mod variant;

pub use close::{assert_close, max_abs, max_abs_diff};
pub use golden::Golden;
pub use tiny::{Float, Tiny, noise};
pub use tokenizer::{Split, tokenizer_json};
pub use variant::Variant;

/// The folder of a tiny f32 model; it goes when the value is dropped.
///
/// ```
/// use bitmill_testkit::{Variant, tiny};
/// let folder = tiny(Variant::Qwen2);
/// assert!(folder.path().join("model.safetensors").is_file());
/// ```
pub fn tiny(variant: Variant) -> tempfile::TempDir {
    Tiny::new(variant).write()
}

/// The folder of the embedded model, as the repository has it.
pub fn millet() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/millet")
}
