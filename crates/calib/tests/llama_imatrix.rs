//! Against llama-imatrix on the same tokens (`tools/golden/imatrix.sh`).

use std::path::Path;

use bitmill_calib::{Error, SumsOfSquares};
use bitmill_checkpoint::{Checkpoint, Imatrix, ImatrixEntry};
use bitmill_kernels::{Compute, Isa, Path as ComputePath};
use bitmill_model::Model;
use bitmill_testkit::{Float, Tiny, Variant, tiny};
use bitmill_text::{Tokenizer, Windows};

fn compute() -> Compute {
    Compute::new(Isa::best(), ComputePath::Exact)
}

/// The sums over so many windows of 64 tokens of the text, some windows at once.
fn summed(variant: Variant, at_once: usize) -> std::collections::BTreeMap<String, ImatrixEntry> {
    let folder = tiny(variant);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("assets/millet/text/calib.txt")).unwrap();
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    let windows = Windows::of_text(&tokenizer, &text, 64, Some(4)).unwrap();
    let windows: Vec<&[u32]> = windows.iter().collect();
    let model = Model::load(&checkpoint).unwrap();
    let mut sums = SumsOfSquares::default();
    for windows in windows.chunks(at_once) {
        sums.add(&model, &compute(), windows).unwrap();
    }
    sums.finish(&model).unwrap()
}

#[test]
fn sums_are_those_of_llama_imatrix() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoint/tests/golden/imatrix.gguf");
    let theirs = Imatrix::open(&golden).unwrap().entries;
    let ours = summed(Variant::Qwen2Moe, 4);
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    let mut errors = Vec::new();
    for (name, theirs) in &theirs {
        let ours = &ours[name];
        assert_eq!(ours.counts, theirs.counts, "{name}");
        errors.extend(
            ours.sums.iter().zip(&theirs.sums).map(|(a, b)| (a - b).abs() / b.max(f32::MIN_POSITIVE)),
        );
    }
    errors.sort_by(f32::total_cmp);
    // They sum in f32 and round products otherwise: a few steps of f32 after two layers.
    let (median, largest) = (errors[errors.len() / 2], errors[errors.len() - 1]);
    assert!(median < 1e-5 && largest < 1e-2, "median {median:e}, largest {largest:e}");
}

#[test]
fn neither_threads_nor_batches_change_a_sum() {
    for variant in [Variant::LlamaWide, Variant::Qwen3Moe] {
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let one = pool(1).install(|| summed(variant, 2));
        assert!(one == pool(3).install(|| summed(variant, 2)), "threads");
        for (name, entry) in summed(variant, 1) {
            assert_eq!(entry.counts, one[&name].counts);
            for (a, b) in entry.sums.iter().zip(&one[&name].sums) {
                assert!((a - b).abs() <= 1e-5 * b.abs(), "{name}: {a} and {b}");
            }
        }
    }
}

#[test]
fn an_activation_that_is_not_finite_is_named() {
    let folder = tempfile::tempdir().unwrap();
    Tiny::new(Variant::Llama).float(Float::F32).write_to(folder.path());
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[start..].chunks_exact_mut(4).for_each(|weight| weight.copy_from_slice(&f32::NAN.to_le_bytes()));
    std::fs::write(&path, bytes).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let model = Model::load(&checkpoint).unwrap();
    let mut sums = SumsOfSquares::default();
    sums.add(&model, &compute(), &[&[0, 1, 2]]).unwrap();
    let error = sums.finish(&model).unwrap_err();
    assert!(
        matches!(&error, Error::NotFinite { tensor } if tensor == "model.layers.0.self_attn.k_proj.weight"),
        "{error}"
    );
}
