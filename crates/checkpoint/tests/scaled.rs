//! Small numbers with scales in folders: what is read, and what each fault is called.

mod common;

use std::num::NonZeroUsize;

use bitmill_checkpoint::{
    Activations, Checkpoint, Error, InputScale, ModuleScheme, modules_config, scaled_specs,
};
use bitmill_tensor::{Dtype, Element, Encoding, Extent, FloatType, ScaleType, Scaled};
use common::{FFN, HIDDEN, Stored, open_stored};
use serde_json::{Value, json};

const NAME: &str = "model.layers.0.mlp.down_proj.weight";

fn size(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

fn layout(element: Element, extent: Extent, scale: ScaleType) -> Scaled {
    Scaled { element, extent, scale }
}

fn nvfp4() -> Scaled {
    layout(Element::Fp4, Extent::Columns(size(16)), ScaleType::Fp8)
}

fn parts(layout: &Scaled) -> Vec<Stored> {
    let stored = scaled_specs(NAME, HIDDEN, FFN, layout).into_iter().map(|spec| {
        let bytes = match spec.name.ends_with("global_scale") {
            true => 2.0f32.to_le_bytes().to_vec(),
            false => (0..spec.bytes()).map(|i| i as u8).collect(),
        };
        (spec.name, spec.dtype.name(), spec.shape, bytes)
    });
    stored.collect()
}

/// The tiny llama with `down_proj` of layer 0 stored so; parts and config changed.
fn open_scaled(
    layout: Scaled,
    change_parts: impl FnOnce(&mut Vec<Stored>),
    change_config: impl FnOnce(&mut Value),
) -> Result<Checkpoint, Error> {
    let scheme = ModuleScheme::Scaled(layout, Activations::Full);
    let config = modules_config(&[(scheme, vec![])], &["lm_head".to_owned()]);
    open_stored(NAME, parts(&layout), config, change_parts, change_config)
}

#[test]
fn reads_every_layout_it_writes() {
    let bf16 = ScaleType::Float(FloatType::BF16);
    for layout in [
        layout(Element::Int8, Extent::Row, bf16),
        layout(Element::Int8, Extent::Matrix, ScaleType::Float(FloatType::F32)),
        layout(Element::Fp8, Extent::Row, ScaleType::Float(FloatType::F16)),
        layout(Element::Fp8, Extent::Block { rows: size(20), cols: size(32) }, bf16),
        layout(Element::Fp8, Extent::Columns(size(8)), bf16),
        nvfp4(),
        layout(Element::Fp4, Extent::Columns(size(24)), ScaleType::PowerOfTwo),
    ] {
        let checkpoint = open_scaled(layout, |_| {}, |_| {}).unwrap();
        let tensor = checkpoint.tensor(NAME).unwrap();
        assert_eq!(
            (tensor.info.encoding, tensor.info.shape.as_slice()),
            (Encoding::Scaled(layout), &[HIDDEN, FFN][..])
        );
        assert_eq!(tensor.info.stored_bytes as usize, tensor.view().stored_bytes(), "{layout}");
    }
}

#[test]
fn reads_scales_that_other_writers_name_or_shape_otherwise() {
    let block = Extent::Block { rows: size(16), cols: size(16) };
    let fp8 = layout(Element::Fp8, block, ScaleType::Float(FloatType::F32));
    // As the method `fp8` has them.
    let renamed = |parts: &mut Vec<Stored>| parts[1].0.push_str("_inv");
    let method = |config: &mut Value| *config = json!({"quant_method": "fp8", "weight_block_size": [16, 16]});
    let opened = open_scaled(fp8, renamed, method).unwrap();
    assert_eq!(opened.tensor(NAME).unwrap().info.encoding, Encoding::Scaled(fp8));
    // One scale a row as a vector, static inputs, and zero points that are zero.
    let int8 = layout(Element::Int8, Extent::Row, ScaleType::Float(FloatType::BF16));
    let module = NAME.trim_end_matches("weight");
    let more = |parts: &mut Vec<Stored>| {
        parts[1].2 = vec![HIDDEN];
        let scale = 0.25f32.to_le_bytes().to_vec();
        parts.push((format!("{module}input_scale"), Dtype::F32.name(), vec![1], scale));
        parts.push((
            format!("{module}weight_zero_point"),
            Dtype::I8.name(),
            vec![HIDDEN, 1],
            vec![0; HIDDEN],
        ));
    };
    let opened = open_scaled(int8, more, |_| {}).unwrap();
    assert_eq!(opened.tensor(NAME).unwrap().info.encoding, Encoding::Scaled(int8));
    assert_eq!(opened.input_scales(), [InputScale { name: NAME.into(), value: 0.25 }]);
}

#[test]
fn parts_that_are_no_matrix_are_refused_by_name() {
    let refused = |layout: Scaled, change: &dyn Fn(&mut Vec<Stored>)| {
        let error = open_scaled(layout, |parts| change(parts), |_| {}).unwrap_err();
        assert!(error.to_string().contains(NAME), "{error}");
        error.to_string()
    };
    let global = |value: f32| refused(nvfp4(), &|parts| parts[2].3 = value.to_le_bytes().to_vec());
    for value in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40] {
        assert!(global(value).contains("nothing can be divided"), "{value}");
    }
    assert!(refused(nvfp4(), &|parts| drop(parts.pop())).contains("without a `weight_global_scale`"));
    assert!(refused(nvfp4(), &|parts| drop(parts.remove(1))).contains("without a `weight_scale`"));
    let shaped = |shape: &[usize]| {
        refused(nvfp4(), &|parts| {
            parts[1].2 = shape.to_vec();
            parts[1].3 = vec![0; shape.iter().product()];
        })
    };
    assert!(shaped(&[HIDDEN, 5]).contains("fit no"));
    assert!(shaped(&[HIDDEN + 1, 3]).contains("fit no"));
    assert!(shaped(&[HIDDEN, 0]).contains("fit no"));
    assert!(shaped(&[1, 1, 1]).contains("fit no"));
    let int8 = layout(Element::Int8, Extent::Row, ScaleType::Float(FloatType::BF16));
    assert!(refused(int8, &|parts| parts[1].1 = Dtype::I16.name()).contains("scales of dtype I16"));
    let fp8 = Scaled { element: Element::Fp8, ..int8 };
    let zeros = refused(fp8, &|parts| {
        let name = NAME.replace("weight", "weight_zero_point");
        parts.push((name, Dtype::I8.name(), vec![HIDDEN, 1], vec![1; HIDDEN]));
    });
    assert!(zeros.contains("zero points"), "{zeros}");
    // Numbers without a declaration are a dtype that nothing is computed from.
    let error = open_scaled(int8, |_| {}, |config| *config = Value::Null).unwrap_err();
    assert!(matches!(error, Error::UnsupportedDtype { .. } | Error::PackedTensor { .. }), "{error}");
}
