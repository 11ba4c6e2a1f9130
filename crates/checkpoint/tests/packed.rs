//! compressed-tensors folders: what is read, what is written, and what each fault is called.

mod common;

use std::num::NonZeroUsize;

use bitmill_checkpoint::{
    Checkpoint, Error, PackedScheme, StTensorSpec, compressed_tensors_config, grouped_specs, packed_config,
};
use bitmill_tensor::{Bits, Dtype, Encoding, FloatType, Granularity, Grouped, WeightData, ZeroPoint};
use common::{FFN, HIDDEN, Stored, config, open_with, tensors};
use serde_json::{Value, json};

const NAME: &str = "model.layers.0.mlp.down_proj.weight";

fn grouped(bits: u8, group_size: usize, zero_point: ZeroPoint) -> Grouped {
    let group_size = NonZeroUsize::new(group_size).unwrap();
    Grouped { bits: Bits::new(bits).unwrap(), group_size, zero_point, scale: FloatType::BF16 }
}

/// `specs` as stored tensors: bytes count up, `weight_shape` holds the shape.
fn stored(specs: &[StTensorSpec], shape: [i64; 2]) -> Vec<Stored> {
    let tensor = |spec: &StTensorSpec| {
        let bytes = match spec.dtype {
            Dtype::I64 => shape.iter().flat_map(|size| size.to_le_bytes()).collect(),
            _ => (0..spec.bytes()).map(|i| i as u8).collect(),
        };
        (spec.name.clone(), spec.dtype.name(), spec.shape.clone(), bytes)
    };
    specs.iter().map(tensor).collect()
}

/// The tiny llama with `down_proj` of layer 0 packed; parts and config changed.
fn open_packed(
    layout: Grouped,
    change_parts: impl FnOnce(&mut Vec<Stored>),
    change_config: impl FnOnce(&mut Value),
) -> Result<Checkpoint, Error> {
    let mut all = tensors("llama");
    all.retain(|(name, ..)| name != NAME);
    let mut parts = stored(&grouped_specs(NAME, HIDDEN, FFN, &layout), [HIDDEN as i64, FFN as i64]);
    change_parts(&mut parts);
    all.extend(parts);
    let mut config = config("llama");
    config["quantization_config"] = compressed_tensors_config(&[(layout, vec![])], &["lm_head".to_owned()]);
    change_config(&mut config["quantization_config"]);
    open_with(&config, &all)
}

#[test]
fn reads_every_layout_it_writes() {
    for bits in 2..=8 {
        for group_size in [8, 16, FFN] {
            for zero_point in [ZeroPoint::Symmetric, ZeroPoint::Asymmetric] {
                let layout = grouped(bits, group_size, zero_point);
                let checkpoint = open_packed(layout, |_| {}, |_| {}).unwrap();
                assert!(checkpoint.is_quantized());
                let tensor = checkpoint.tensor(NAME).unwrap();
                assert_eq!(tensor.info.encoding, Encoding::Grouped(layout));
                assert_eq!(tensor.info.shape, [HIDDEN, FFN]);
                // Codes, scales and zero points as the matrix counts them, and 16 bytes of shape.
                assert_eq!(tensor.info.stored_bytes as usize, tensor.view().stored_bytes() + 16);
                let WeightData::Grouped { packed, scales, zero_points, .. } = tensor.view().data() else {
                    panic!("packed");
                };
                assert_eq!(packed[..4], [0, 1, 2, 3]);
                assert_eq!(scales[..2], [0, 1]);
                assert_eq!(zero_points.is_empty(), zero_point == ZeroPoint::Symmetric);
            }
        }
    }
}

#[test]
fn reads_one_scale_a_row_however_it_is_declared() {
    let layout = grouped(8, FFN, ZeroPoint::Symmetric);
    let weights =
        |config: &mut Value| config["config_groups"]["group_0"]["weights"].as_object_mut().unwrap().clone();
    let declare = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        open_packed(
            layout,
            |_| {},
            |config| {
                let mut map = weights(config);
                change(&mut map);
                config["config_groups"]["group_0"]["weights"] = Value::Object(map);
            },
        )
    };
    let channel = declare(&|weights| {
        weights.insert("strategy".into(), json!("channel"));
        weights.insert("group_size".into(), Value::Null);
    });
    let minus_one = declare(&|weights| {
        weights.insert("strategy".into(), json!("channel"));
        weights.insert("group_size".into(), json!(-1));
    });
    let inferred = declare(&|weights| {
        weights.remove("strategy");
    });
    let inferred_minus_one = declare(&|weights| {
        weights.remove("strategy");
        weights.insert("group_size".into(), json!(-1));
    });
    for checkpoint in [channel, minus_one, inferred, inferred_minus_one] {
        assert_eq!(checkpoint.unwrap().tensor(NAME).unwrap().info.encoding, Encoding::Grouped(layout));
    }
}

#[test]
fn each_matrix_has_the_group_that_fits_it() {
    let layouts = [grouped(4, 16, ZeroPoint::Symmetric), grouped(8, 8, ZeroPoint::Asymmetric)];
    let up = "model.layers.1.mlp.up_proj.weight";
    let mut all = tensors("llama");
    all.retain(|(name, ..)| name != NAME && name != up);
    all.extend(stored(&grouped_specs(NAME, HIDDEN, FFN, &layouts[0]), [HIDDEN as i64, FFN as i64]));
    all.extend(stored(&grouped_specs(up, FFN, HIDDEN, &layouts[1]), [FFN as i64, HIDDEN as i64]));
    let groups =
        [(layouts[0], vec!["re:.*down_proj".to_owned()]), (layouts[1], vec!["re:.*up_proj".to_owned()])];
    let mut config = config("llama");
    config["quantization_config"] = compressed_tensors_config(&groups, &[]);
    assert_eq!(config["quantization_config"]["config_groups"]["group_1"]["targets"], json!(["re:.*up_proj"]));
    let checkpoint = open_with(&config, &all).unwrap();
    assert_eq!(checkpoint.tensor(NAME).unwrap().info.encoding, Encoding::Grouped(layouts[0]));
    assert_eq!(checkpoint.tensor(up).unwrap().info.encoding, Encoding::Grouped(layouts[1]));
}

#[test]
fn a_scheme_by_channel_is_one_group_for_rows_of_every_width() {
    let scheme = PackedScheme {
        bits: Bits::new(8).unwrap(),
        granularity: Granularity::Channel,
        zero_point: ZeroPoint::Symmetric,
    };
    let config = packed_config(&[(scheme, vec![])], &["lm_head".to_owned()]);
    let weights = &config["config_groups"]["group_0"]["weights"];
    assert_eq!((&weights["strategy"], &weights["group_size"]), (&json!("channel"), &Value::Null));
    assert_eq!(config["config_groups"]["group_0"]["targets"], json!(["Linear"]));
    assert_eq!(config["ignore"], json!(["lm_head"]));
}

#[test]
fn names_quantization_it_does_not_read() {
    let layout = grouped(4, 16, ZeroPoint::Symmetric);
    let weights = "/config_groups/group_0/weights";
    for (at, key, value, word) in [
        ("", "quant_method", json!("gptq"), "gptq"),
        ("", "quant_method", json!("quanto"), "quanto"),
        ("", "format", json!("marlin-48"), "marlin-48"),
        ("", "quantization_status", json!("frozen"), "frozen"),
        ("", "sparsity_config", json!({"format": "sparse-48-bitmask"}), "sparsity_config"),
        ("", "transform_config", json!({"config_groups": {}}), "transform_config"),
        ("/config_groups/group_0", "output_activations", json!({"num_bits": 8}), "output_activations"),
        ("/config_groups/group_0", "format", json!("marlin-48"), "marlin-48"),
        (weights, "num_bits", json!(1), "1 bits"),
        (weights, "num_bits", json!(9), "9 bits"),
        (weights, "type", json!("float"), "float"),
        (weights, "strategy", json!("block"), "block"),
        (weights, "strategy", json!("token"), "token"),
        (weights, "actorder", json!("alphabet"), "activation order"),
        (weights, "dynamic", json!(true), "dynamic"),
    ] {
        let change = |config: &mut Value| config.pointer_mut(at).unwrap()[key] = value.clone();
        let error = open_packed(layout, |_| {}, change).unwrap_err();
        assert!(matches!(error, Error::UnsupportedQuantization { .. }), "{key} {value}: {error}");
        assert!(error.to_string().contains(word), "{key} {value}: {error}");
        assert!(error.hint().is_some());
    }
    // Other spellings of what is read.
    for (at, key, value) in [
        ("", "sparsity_config", json!({"format": "dense", "global_sparsity": 0.1})),
        ("", "quantization_status", Value::Null),
        ("", "kv_cache_scheme", json!({"num_bits": 8, "type": "float", "strategy": "tensor"})),
        (weights, "actorder", json!("weight")),
        (weights, "actorder", json!(false)),
    ] {
        let change = |config: &mut Value| config.pointer_mut(at).unwrap()[key] = value.clone();
        assert!(open_packed(layout, |_| {}, change).is_ok(), "{key} {value}");
    }
}

#[test]
fn refuses_malformed_quantization_configs() {
    let layout = grouped(4, 16, ZeroPoint::Symmetric);
    for config in [
        json!("int4"),
        json!({"quant_method": 7}),
        json!({"quant_method": "compressed-tensors"}),
        json!({"kv_cache_scheme": "fp8", "config_groups": {}}),
        json!({"config_groups": []}),
        json!({"config_groups": {"a": 1}}),
        json!({"config_groups": {"a": {}}}),
        json!({"config_groups": {"a": {"weights": {"num_bits": "4"}}}}),
        json!({"config_groups": {"a": {"weights": {"num_bits": 4, "strategy": "group"}}}}),
        json!({"config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 0}}}}),
        json!({"config_groups": {"a": {"weights": {"num_bits": 4, "group_size": u64::MAX}}}}),
    ] {
        let result = open_packed(layout, |_| {}, |old| *old = config.clone());
        assert!(matches!(result, Err(Error::ConfigValue { .. })), "{config}: {result:?}");
    }
}

#[test]
fn refuses_parts_that_do_not_make_a_matrix() {
    let layout = grouped(4, 16, ZeroPoint::Asymmetric);
    type Change = fn(&mut Vec<Stored>);
    let cases: [(&str, Change); 9] = [
        ("no codes", |parts| drop(parts.remove(0))),
        ("no scales", |parts| drop(parts.remove(1))),
        ("no shape", |parts| drop(parts.remove(2))),
        ("no zero points", |parts| drop(parts.remove(3))),
        ("codes of another dtype", |parts| parts[0].1 = "U32"),
        ("scales of another dtype", |parts| parts[1].1 = "I16"),
        ("scales of another shape", |parts| parts[1].2.reverse()),
        ("a negative size", |parts| parts[2].3[..8].copy_from_slice(&(-1i64).to_le_bytes())),
        ("a huge size", |parts| parts[2].3[..8].copy_from_slice(&i64::MAX.to_le_bytes())),
    ];
    for (case, change) in cases {
        let result = open_packed(layout, change, |_| {});
        assert!(matches!(result, Err(Error::PackedTensor { tensor, .. }) if tensor == NAME), "{case}");
    }
    // A shape that the config does not ask for.
    let other = |parts: &mut Vec<Stored>| parts[2].3[..8].copy_from_slice(&31i64.to_le_bytes());
    assert!(open_packed(grouped(4, 16, ZeroPoint::Symmetric), other, |_| {}).is_err());
    // Plain and packed at once.
    let both = |parts: &mut Vec<Stored>| parts.push(common::f32s(NAME, &[HIDDEN, FFN], 0));
    assert!(matches!(open_packed(layout, both, |_| {}), Err(Error::PackedTensor { .. })));
}

#[test]
fn refuses_groups_that_do_not_divide_the_row() {
    // 48 is not a multiple of 32: two groups, the second half full.
    let result = open_packed(grouped(4, 32, ZeroPoint::Symmetric), |_| {}, |_| {});
    assert!(matches!(result, Err(Error::View { tensor, .. }) if tensor == NAME));
}

#[test]
fn refuses_packed_weights_without_a_quantization_config() {
    let result = open_packed(grouped(4, 16, ZeroPoint::Symmetric), |_| {}, |config| *config = Value::Null);
    assert!(matches!(result, Err(Error::PackedTensor { .. })), "{result:?}");
}

#[test]
fn a_packed_matrix_must_have_the_configs_shape() {
    let layout = grouped(4, 8, ZeroPoint::Symmetric);
    let mut all = tensors("llama");
    all.retain(|(name, ..)| name != NAME);
    all.extend(stored(&grouped_specs(NAME, HIDDEN, FFN / 2, &layout), [HIDDEN as i64, FFN as i64 / 2]));
    let mut config = config("llama");
    config["quantization_config"] = compressed_tensors_config(&[(layout, vec![])], &[]);
    assert!(matches!(open_with(&config, &all), Err(Error::TensorShape { tensor, .. }) if tensor == NAME));
}
