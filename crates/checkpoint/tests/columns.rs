//! GPTQ and AWQ folders: what is read, and what each fault is called.

mod common;

use std::num::NonZeroUsize;

use bitmill_checkpoint::{Checkpoint, Error, PackedScheme, awq_config, column_specs, gptq_config};
use bitmill_tensor::{
    Bits, ColumnPacking, Dtype, Encoding, FloatType, Granularity, Grouped, WeightData, ZeroPoint,
};
use common::{FFN, HIDDEN, Stored, config, open, open_with, safetensors, tensors};
use serde_json::{Value, json};

const NAME: &str = "model.layers.0.mlp.down_proj.weight";

fn grouped(bits: u8, group_size: usize, zero_point: ZeroPoint) -> Grouped {
    let group_size = NonZeroUsize::new(group_size).unwrap();
    Grouped { bits: Bits::new(bits).unwrap(), group_size, zero_point, scale: FloatType::F16 }
}

fn declared(layout: &Grouped, packing: ColumnPacking) -> Value {
    let scheme = PackedScheme::from(*layout);
    match packing {
        ColumnPacking::Awq => awq_config(&scheme, &["lm_head".to_owned()]),
        _ => gptq_config(&scheme, packing, false, &[("lm_head".to_owned(), None)]),
    }
}

/// The parts of `down_proj`: bytes count up, groups are in order.
fn parts(layout: &Grouped, packing: ColumnPacking) -> Vec<Stored> {
    let stored = column_specs(NAME, HIDDEN, FFN, layout, packing).into_iter().map(|spec| {
        let bytes = match spec.name.ends_with("g_idx") {
            true => (0..FFN).flat_map(|i| ((i / layout.group_size) as i32).to_le_bytes()).collect(),
            false => (0..spec.bytes()).map(|i| i as u8).collect(),
        };
        (spec.name, spec.dtype.name(), spec.shape, bytes)
    });
    stored.collect()
}

/// The tiny llama with `down_proj` of layer 0 packed; parts and config changed.
fn open_packed(
    layout: Grouped,
    packing: ColumnPacking,
    change_parts: impl FnOnce(&mut Vec<Stored>),
    change_config: impl FnOnce(&mut Value),
) -> Result<Checkpoint, Error> {
    let mut all = tensors("llama");
    all.retain(|(name, ..)| name != NAME);
    let mut parts = parts(&layout, packing);
    change_parts(&mut parts);
    all.extend(parts);
    let mut config = config("llama");
    config["quantization_config"] = declared(&layout, packing);
    change_config(&mut config["quantization_config"]);
    open_with(&config, &all)
}

fn part<'a>(parts: &'a mut [Stored], name: &str) -> &'a mut Stored {
    parts.iter_mut().find(|(part, ..)| part.ends_with(name)).unwrap()
}

#[test]
fn reads_every_layout_it_writes() {
    use ColumnPacking::{Awq, GptqV1, GptqV2};
    use ZeroPoint::{Asymmetric, Symmetric};
    for (bits, packing, zero_point) in [
        (2, GptqV1, Symmetric),
        (4, GptqV1, Symmetric),
        (4, GptqV2, Asymmetric),
        (8, GptqV2, Asymmetric),
        (4, Awq, Asymmetric),
    ] {
        for group_size in [16, FFN] {
            let layout = grouped(bits, group_size, zero_point);
            let checkpoint = open_packed(layout, packing, |_| {}, |_| {}).unwrap();
            let tensor = checkpoint.tensor(NAME).unwrap();
            assert_eq!(tensor.info.encoding, Encoding::Grouped(layout));
            assert_eq!(tensor.info.shape, [HIDDEN, FFN]);
            let WeightData::Columns { packing: found, packed, group_of, .. } = tensor.view().data() else {
                panic!("{:?}", tensor.info.encoding);
            };
            assert_eq!((found, &packed[..3]), (packing, &[0, 1, 2][..]));
            assert!(group_of.is_empty(), "groups in order are not looked up");
        }
    }
}

#[test]
fn reads_what_older_and_other_libraries_declare() {
    let layout = grouped(4, 16, ZeroPoint::Symmetric);
    let packing_of = |change: &dyn Fn(&mut Value)| {
        let opened = open_packed(layout, ColumnPacking::GptqV1, |_| {}, |config| change(config));
        match opened.unwrap().tensor(NAME).unwrap().view().data() {
            WeightData::Columns { packing, .. } => packing,
            _ => panic!("columns"),
        }
    };
    assert_eq!(
        packing_of(&|config| *config = json!({"quant_method": "gptq", "bits": 4})),
        ColumnPacking::GptqV1
    );
    let round = |format: &str| json!({"quant_method": "auto-round", "packing_format": format, "bits": 4, "sym": true});
    assert_eq!(packing_of(&|config| *config = round("auto_round:auto_gptq")), ColumnPacking::GptqV1);
    assert_eq!(packing_of(&|config| *config = round("auto_round:gptq_v2")), ColumnPacking::GptqV2);
    // AutoGPTQ's first files: nothing in config.json, and no `quant_method`.
    let mut all = tensors("llama");
    all.retain(|(name, ..)| name != NAME);
    all.extend(parts(&layout, ColumnPacking::GptqV1));
    let files = vec![
        ("config.json", config("llama").to_string().into_bytes()),
        ("model.safetensors", safetensors(&all)),
        ("quantize_config.json", br#"{"bits": 4, "group_size": 16, "desc_act": false}"#.to_vec()),
    ];
    assert!(open(files).unwrap().is_quantized());
}

#[test]
fn columns_in_an_order_of_their_own_keep_it() {
    let layout = grouped(4, 16, ZeroPoint::Symmetric);
    let reversed = |parts: &mut Vec<Stored>| {
        part(parts, "g_idx").3 = (0..FFN).rev().flat_map(|i| ((i / 16) as i32).to_le_bytes()).collect();
    };
    let checkpoint = open_packed(layout, ColumnPacking::GptqV1, reversed, |_| {}).unwrap();
    let tensor = checkpoint.tensor(NAME).unwrap();
    let WeightData::Columns { group_of, .. } = tensor.view().data() else { panic!("columns") };
    assert_eq!(group_of[..4], [2, 0, 0, 0]);
}

#[test]
fn parts_that_are_no_matrix_are_refused_by_name() {
    let layout = grouped(4, 16, ZeroPoint::Symmetric);
    let refused = |packing, change: &dyn Fn(&mut Vec<Stored>)| {
        let error = open_packed(layout, packing, |parts| change(parts), |_| {}).unwrap_err();
        assert!(matches!(error, Error::PackedTensor { .. } | Error::View { .. }), "{error}");
        assert!(error.to_string().contains(NAME), "{error}");
        error.to_string()
    };
    let gptq = |change: &dyn Fn(&mut Vec<Stored>)| refused(ColumnPacking::GptqV1, change);
    for missing in ["qweight", "qzeros", "scales"] {
        let error = gptq(&|parts| parts.retain(|(name, ..)| !name.ends_with(missing)));
        assert!(error.contains("must all be there"), "{error}");
    }
    let group =
        |value: i32| gptq(&|parts| part(parts, "g_idx").3[8..12].copy_from_slice(&value.to_le_bytes()));
    assert!(group(3).contains("names group 3 of 3"));
    assert!(group(-1).contains("names group -1 of 3"));
    let reshaped = |name: &str, shape: &[usize]| {
        gptq(&|parts| {
            let part = part(parts, name);
            let size = part.3.len() / part.2.iter().product::<usize>();
            part.3 = vec![0; shape.iter().product::<usize>() * size];
            part.2 = shape.to_vec();
        })
    };
    assert!(reshaped("g_idx", &[FFN - 1]).contains("one group for each"));
    assert!(reshaped("qzeros", &[3, 5]).contains("are no matrix"));
    assert!(reshaped("qzeros", &[2, 4]).contains("are no matrix"));
    assert!(reshaped("scales", &[3, HIDDEN, 1]).contains("are no matrix"));
    assert!(reshaped("scales", &[3, 0]).contains("are no matrix"));
    assert!(reshaped("qweight", &[6, HIDDEN - 8]).contains("are no matrix"));
    let typed = gptq(&|parts| part(parts, "qweight").1 = Dtype::U32.name());
    assert!(typed.contains("I32 is expected"), "{typed}");
    // Without an order of columns groups are as large as the config says.
    let uneven = refused(ColumnPacking::Awq, &|parts| {
        for name in ["qzeros", "scales"] {
            let part = part(parts, name);
            part.3.truncate(part.3.len() / 3);
            part.2[0] = 1;
        }
    });
    assert!(uneven.contains("1 groups of 16 are not 48 columns"), "{uneven}");
}

#[test]
fn forms_that_are_not_read_are_named() {
    let layout = grouped(4, 16, ZeroPoint::Symmetric);
    for (packing, key, value) in [
        (ColumnPacking::GptqV1, "checkpoint_format", json!("marlin")),
        (ColumnPacking::GptqV1, "bits", json!(5)),
        (ColumnPacking::GptqV1, "pack_dtype", json!("int16")),
        (ColumnPacking::GptqV1, "quant_method", json!("eetq")),
        (ColumnPacking::GptqV1, "is_marlin_format", json!(true)),
        (ColumnPacking::Awq, "version", json!("gemv")),
        (ColumnPacking::Awq, "bits", json!(8)),
    ] {
        let error = open_packed(layout, packing, |_| {}, |config| config[key] = value.clone()).unwrap_err();
        assert!(matches!(error, Error::UnsupportedQuantization { .. }), "{key} {value}: {error}");
    }
    let granularity = Granularity::Channel;
    let scheme = PackedScheme { granularity, ..layout.into() };
    assert_eq!(awq_config(&scheme, &[])["group_size"], -1);
}
