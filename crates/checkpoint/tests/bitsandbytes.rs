//! bitsandbytes' 4-bit form in folders: what is read, and what each fault is called.

mod common;

use std::num::NonZeroUsize;

use bitmill_checkpoint::{Checkpoint, Error, bitsandbytes_config, codebook_specs, quant_state};
use bitmill_tensor::{
    Codebook, DYNAMIC_MAP_BYTES, Element, Encoding, Extent, FloatType, ScaleType, Scaled, WeightData,
};
use common::{FFN, HIDDEN, Stored, open_stored};
use serde_json::Value;

const NAME: &str = "model.layers.0.mlp.up_proj.weight";

fn layout(list: Codebook, scale: ScaleType) -> Scaled {
    let extent = Extent::Columns(NonZeroUsize::new(32).unwrap());
    Scaled { element: Element::Listed(list), extent, scale }
}

fn nf4() -> Scaled {
    layout(Codebook::Nf4, ScaleType::Float(FloatType::F32))
}

fn parts(layout: &Scaled) -> Vec<Stored> {
    let Element::Listed(list) = layout.element else { panic!("a list") };
    let stored = codebook_specs(NAME, FFN, HIDDEN, layout, FloatType::F16).into_iter().map(|spec| {
        let bytes = if spec.name.contains("quant_state") {
            quant_state(layout, list, FloatType::F16, FFN, HIDDEN, 0.25)
        } else if spec.name.ends_with(".nested_quant_map") {
            DYNAMIC_MAP_BYTES.to_vec()
        } else if spec.name.ends_with(".quant_map") {
            list.values().iter().flat_map(|value| value.to_le_bytes()).collect()
        } else {
            (0..spec.bytes()).map(|i| i as u8).collect()
        };
        (spec.name, spec.dtype.name(), spec.shape, bytes)
    });
    stored.collect()
}

/// The tiny llama with `up_proj` of layer 0 stored so; parts and config changed.
fn open(
    layout: Scaled,
    change_parts: impl FnOnce(&mut Vec<Stored>),
    change_config: impl FnOnce(&mut Value),
) -> Result<Checkpoint, Error> {
    let config = bitsandbytes_config(&layout, FloatType::F16, &["lm_head".to_owned()]);
    open_stored(NAME, parts(&layout), config, change_parts, change_config)
}

#[test]
fn reads_every_layout_it_writes() {
    for list in [Codebook::Nf4, Codebook::Fp4] {
        for scale in [ScaleType::Float(FloatType::F32), ScaleType::Nested] {
            let layout = layout(list, scale);
            let checkpoint = open(layout, |_| {}, |_| {}).unwrap();
            let tensor = checkpoint.tensor(NAME).unwrap();
            assert_eq!(
                (tensor.info.encoding, tensor.info.shape.as_slice()),
                (Encoding::Scaled(layout), &[FFN, HIDDEN][..])
            );
            let WeightData::Scaled { nested, .. } = tensor.view().data() else { panic!("numbers") };
            assert_eq!(nested.map(|nested| nested.offset), (scale == ScaleType::Nested).then_some(0.25));
        }
    }
}

#[test]
fn reads_codes_that_are_stored_as_another_dtype() {
    let as_bf16 = |parts: &mut Vec<Stored>| {
        let (_, dtype, shape, bytes) = &mut parts[0];
        (*dtype, *shape) = ("BF16", vec![bytes.len() / 2, 1]);
    };
    let checkpoint =
        open(nf4(), as_bf16, |config| config["bnb_4bit_quant_storage"] = "bfloat16".into()).unwrap();
    let plain = open(nf4(), |_| {}, |_| {}).unwrap();
    let codes = |checkpoint: &Checkpoint| match checkpoint.tensor(NAME).unwrap().view().data() {
        WeightData::Scaled { codes, .. } => codes.to_vec(),
        _ => panic!("numbers"),
    };
    assert_eq!(codes(&checkpoint), codes(&plain));
    let error = open(nf4(), as_bf16, |_| {}).err().unwrap().to_string();
    assert!(error.contains("both plain and packed"), "{error}");
}

#[test]
fn names_what_it_does_not_read() {
    let of_config = |change: fn(&mut Value)| open(nf4(), |_| {}, change).err().unwrap().to_string();
    let error = of_config(|config| config["load_in_8bit"] = true.into());
    assert!(error.contains("8-bit weights (`load_in_8bit`)"), "{error}");
    let error = of_config(|config| config["bnb_4bit_quant_storage"] = "int16".into());
    assert!(error.contains("stored as `int16`"), "{error}");
    // The first files name no method.
    let unnamed = open(nf4(), |_| {}, |config| drop(config.as_object_mut().unwrap().remove("quant_method")));
    assert!(unnamed.is_ok());
}

#[test]
fn names_the_part_that_does_not_fit() {
    let nested = layout(Codebook::Nf4, ScaleType::Nested);
    let said = |parts: &mut Vec<Stored>, from: &str, to: &str| {
        let (_, _, shape, bytes) = parts.iter_mut().find(|part| part.0.contains("quant_state")).unwrap();
        *bytes = String::from_utf8(bytes.clone()).unwrap().replace(from, to).into_bytes();
        *shape = vec![bytes.len()];
    };
    type Change<'a> = &'a dyn Fn(&mut Vec<Stored>);
    let cases: [(Scaled, Change<'_>, &str); 10] = [
        (nf4(), &|parts| drop(parts.remove(1)), "must all be there"),
        (nf4(), &|parts| parts[2].3[4] ^= 1, "another list than bitsandbytes' nf4"),
        (nf4(), &|parts| said(parts, "nf4", "fp4"), "says `fp4`"),
        (nf4(), &|parts| said(parts, "}", ""), "quant_state"),
        (nf4(), &|parts| said(parts, "[48, 32]", "[48, 2, 16]"), "is no matrix"),
        (nf4(), &|parts| said(parts, "[48, 32]", "[32, 48]"), "48 input features do not divide"),
        (nf4(), &|parts| said(parts, "[48, 32]", "[24, 32]"), "codes: 768 bytes"),
        (nf4(), &|parts| said(parts, "\"blocksize\": 32", "\"blocksize\": 0"), "quant_state"),
        (nested, &|parts| said(parts, ": 256,", ": 128,"), "blocks of Some(128)"),
        (nested, &|parts| drop(parts.remove(4)), "`absmax` is U8"),
    ];
    for (layout, change, expected) in cases {
        let error = open(layout, change, |_| {}).err().unwrap().to_string();
        assert!(error.contains(NAME) && error.contains(expected), "{error}");
    }
}
