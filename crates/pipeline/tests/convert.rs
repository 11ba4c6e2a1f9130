//! From one format to the other and back: the same tensors, the same tokens, the same numbers.

mod common;

use std::path::Path;

use bitmill_checkpoint::{Checkpoint, Format as Stored, Overwrite, RopeScaling};
use bitmill_pipeline::{Error, Format, Plan, PlanOptions, Silent, compress, conversion, preset};
use bitmill_tensor::{Encoding, FloatType};
use bitmill_testkit::{Float, Tiny, Variant, max_abs, max_abs_diff, millet, tiny};
use bitmill_text::Tokenizer;

use common::{logits, names, run, values};

fn convert(source: &Path, format: Format, float: Option<FloatType>, target: &Path) -> Result<(), Error> {
    run(source, &conversion(format, float), target)
}

#[test]
fn there_and_back_gives_every_tensor_again_in_its_own_type() {
    for variant in Variant::ALL.into_iter().filter(|variant| variant.has_gguf_form()) {
        for float in [Float::F32, Float::F16, Float::BF16] {
            let source = Tiny::new(variant).float(float).shards(2).write();
            let out = tempfile::tempdir().unwrap();
            let (gguf, back) = (out.path().join("m.gguf"), out.path().join("back"));
            convert(source.path(), Format::Gguf, None, &gguf).unwrap();
            convert(&gguf, Format::HuggingFace, None, &back).unwrap();
            let (first, last) = (Checkpoint::open(source.path()).unwrap(), Checkpoint::open(&back).unwrap());
            assert_eq!(last.format(), Stored::HuggingFace);
            assert_eq!(first.tensors().len(), last.tensors().len());
            for info in first.tensors() {
                let (a, b) = (first.tensor(&info.name).unwrap(), last.tensor(&info.name).unwrap());
                assert_eq!(
                    (&a.info.shape, a.info.encoding),
                    (&b.info.shape, b.info.encoding),
                    "{}",
                    info.name
                );
                assert!(values(&first, &info.name) == values(&last, &info.name), "{}", info.name);
            }
            // Whatever config.json said of the model, it says again.
            // Growing positions have no form in GGUF, YaRN's factors are f32 there, and Qwen's first generation and
            // windowless Mistral go out as others.
            let (a, b) = (first.config(), last.config());
            let is_yarn = matches!(a.rope.scaling, RopeScaling::Yarn(_));
            if a.family == b.family && a.plain_positions() == a.max_positions && !is_yarn {
                assert_eq!(a, b, "{} {float:?}", variant.name());
            }
        }
    }
}

#[test]
fn the_tokenizer_and_its_template_come_back() {
    let out = tempfile::tempdir().unwrap();
    let (gguf, back) = (out.path().join("m.gguf"), out.path().join("back"));
    convert(&millet().join("model"), Format::Gguf, None, &gguf).unwrap();
    convert(&gguf, Format::HuggingFace, None, &back).unwrap();
    assert_eq!(
        names(&back),
        [
            "bitmill.json",
            "bitmill.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let (first, last) =
        (Checkpoint::open(&millet().join("model")).unwrap(), Checkpoint::open(&back).unwrap());
    assert!(first.chat_template().is_some());
    assert_eq!(first.chat_template(), last.chat_template());
    let (a, b) = (Tokenizer::from_checkpoint(&first).unwrap(), Tokenizer::from_checkpoint(&last).unwrap());
    for text in ["Once upon a time, 123 birds flew.", "  two  spaces\n\n\tand é ü 你好<|im_end|>x", ""] {
        assert_eq!(a.encode_document(text).unwrap(), b.encode_document(text).unwrap(), "{text}");
    }
    assert_eq!((a.bos(), a.eos(), a.add_bos()), (b.bos(), b.eos(), b.add_bos()));
    // A second trip changes nothing more.
    let again = out.path().join("again.gguf");
    convert(&back, Format::Gguf, None, &again).unwrap();
    let (one, two) = (Checkpoint::open(&gguf).unwrap(), Checkpoint::open(&again).unwrap());
    let of_tokenizer = |checkpoint: &Checkpoint| {
        checkpoint
            .metadata()
            .iter()
            .filter(|(key, _)| key.starts_with("tokenizer."))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(of_tokenizer(&one), of_tokenizer(&two));
}

#[test]
fn other_floats_are_for_every_tensor_that_may_have_them() {
    let source = tiny(Variant::Llama);
    let out = tempfile::tempdir().unwrap();
    let gguf = out.path().join("m.gguf");
    convert(source.path(), Format::Gguf, Some(FloatType::BF16), &gguf).unwrap();
    for info in Checkpoint::open(&gguf).unwrap().tensors() {
        let expected = if info.shape.len() < 2 { FloatType::F32 } else { FloatType::BF16 };
        assert_eq!(info.encoding, Encoding::Float(expected), "{}", info.name);
    }
    let folder = out.path().join("f16");
    convert(&gguf, Format::HuggingFace, Some(FloatType::F16), &folder).unwrap();
    let written = Checkpoint::open(&folder).unwrap();
    assert!(written.tensors().iter().all(|info| info.encoding == Encoding::Float(FloatType::F16)));
    assert_eq!(written.config_json().unwrap()["torch_dtype"], "float16");
}

#[test]
fn codes_are_unpacked_where_the_format_has_none_and_every_recipe_starts_from_gguf() {
    let source = tiny(Variant::LlamaWide);
    let out = tempfile::tempdir().unwrap();
    let blocks = out.path().join("q8.gguf");
    run(source.path(), &preset("q8_0").unwrap(), &blocks).unwrap();
    let plain = out.path().join("plain");
    convert(&blocks, Format::HuggingFace, Some(FloatType::F32), &plain).unwrap();
    let moved = max_abs_diff(&logits(&plain), &logits(&blocks)) / max_abs(&logits(&blocks));
    assert!(moved < 1e-5, "unpacking moved logits by {moved}");

    let checkpoint = Checkpoint::open(&blocks).unwrap();
    for name in ["q4_k_m", "w4a16_g128", "w8a16"] {
        let plan = |allow_requantize| {
            let options = PlanOptions { allow_requantize, ..PlanOptions::default() };
            Plan::new(&checkpoint, &preset(name).unwrap(), &options)
        };
        assert!(matches!(plan(false).unwrap_err(), Error::AlreadyQuantized { .. }));
        let target = out.path().join(name);
        compress(&checkpoint, &plan(true).unwrap(), &target, Overwrite::Refuse, &Silent).unwrap();
        assert!(Checkpoint::open(&target).unwrap().is_quantized());
        let moved = max_abs_diff(&logits(&target), &logits(&blocks)) / max_abs(&logits(&blocks));
        assert!(moved < 0.5, "{name} moved logits by {moved}");
    }

    let groups = out.path().join("groups");
    run(source.path(), &preset("w4a16_g128").unwrap(), &groups).unwrap();
    let unpacked = out.path().join("unpacked.gguf");
    convert(&groups, Format::Gguf, None, &unpacked).unwrap();
    assert!(!Checkpoint::open(&unpacked).unwrap().is_quantized());
    let moved = max_abs_diff(&logits(&unpacked), &logits(&groups)) / max_abs(&logits(&groups));
    assert!(moved < 1e-5, "unpacking moved logits by {moved}");
}
