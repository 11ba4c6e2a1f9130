//! compressed-tensors' rarer forms as the library wrote them: what is read is what the library reads, and each fault has a name.

mod common;

use std::collections::BTreeMap;

use bitmill_checkpoint::{Checkpoint, Error};
use bitmill_kernels::{Isa, Path, dequantize_rows, matmul};
use bitmill_quant::{grouped_rows, pack_zero_points};
use bitmill_tensor::{ColumnPacking, Dtype, Encoding, FloatType, Matrix, WeightData, WeightView, ZeroPoint};
use common::{Stored, config, open_with};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const MODULE: &str = "model.layers.0.mlp.down_proj";

/// A matrix in one form.
struct Form {
    shape: [usize; 2],
    crc32: u64,
    config: Value,
    parts: Vec<Stored>,
}

fn forms() -> BTreeMap<String, Form> {
    let mut forms = BTreeMap::new();
    for file in ["forms", "forms_legacy"] {
        let manifest: Value =
            serde_json::from_slice(&std::fs::read(format!("tests/golden/{file}.json")).unwrap()).unwrap();
        let bytes = std::fs::read(format!("tests/golden/{file}.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        for (name, form) in manifest["forms"].as_object().unwrap() {
            let size = |at: usize| form["shape"][at].as_u64().unwrap() as usize;
            let mut parts: Vec<Stored> = Vec::new();
            for (key, tensor) in golden.iter() {
                let Some(part) = key.strip_prefix(&format!("{name}/")) else { continue };
                let known = ["I8", "U8", "I16", "I32", "I64", "F16", "BF16", "F32", "F8_E4M3"];
                let dtype = known.into_iter().find(|known| *known == tensor.dtype().to_string()).unwrap();
                parts.push((
                    format!("{MODULE}.{part}"),
                    dtype,
                    tensor.shape().to_vec(),
                    tensor.data().to_vec(),
                ));
            }
            let form = Form {
                shape: [size(0), size(1)],
                crc32: form["crc32"].as_u64().unwrap(),
                config: form["config"].clone(),
                parts,
            };
            forms.insert(name.clone(), form);
        }
    }
    forms
}

impl Form {
    /// A model of one layer whose `down_proj` is stored so.
    fn open(&self) -> Result<Checkpoint, Error> {
        let [hidden, ffn] = self.shape;
        let mut json = config("llama");
        for (key, value) in [
            ("hidden_size", hidden),
            ("intermediate_size", ffn),
            ("num_hidden_layers", 1),
            ("num_key_value_heads", 4),
        ] {
            json[key] = json!(value);
        }
        json["quantization_config"] = self.config.clone();
        let zeros = |name: &str, shape: &[usize]| {
            let bytes = vec![0; 4 * shape.iter().product::<usize>()];
            (name.to_owned(), "F32", shape.to_vec(), bytes)
        };
        let mut all = self.parts.clone();
        for name in ["model.embed_tokens", "lm_head"] {
            all.push(zeros(&format!("{name}.weight"), &[common::VOCAB, hidden]));
        }
        all.push(zeros("model.norm.weight", &[hidden]));
        for (name, shape) in [
            ("input_layernorm", &[hidden][..]),
            ("post_attention_layernorm", &[hidden]),
            ("self_attn.q_proj", &[hidden, hidden]),
            ("self_attn.k_proj", &[hidden, hidden]),
            ("self_attn.v_proj", &[hidden, hidden]),
            ("self_attn.o_proj", &[hidden, hidden]),
            ("mlp.gate_proj", &[ffn, hidden]),
            ("mlp.up_proj", &[ffn, hidden]),
        ] {
            all.push(zeros(&format!("model.layers.0.{name}.weight"), shape));
        }
        open_with(&json, &all)
    }

    /// Why it is refused once `change` is done to the part that ends so.
    fn refused(mut self, part: &str, change: impl FnOnce(&mut Stored)) -> String {
        let found = self.parts.iter_mut().find(|(name, ..)| name.rsplit_once('.').unwrap().1 == part);
        change(found.unwrap());
        let error = self.open().unwrap_err().to_string();
        assert!(error.contains(MODULE), "{error}");
        error
    }
}

fn form(name: &str) -> Form {
    forms().remove(name).unwrap()
}

#[test]
fn reads_what_the_library_reads() {
    let forms = forms();
    assert_eq!(forms.len(), 16);
    for (name, form) in forms {
        let checkpoint = form.open().unwrap_or_else(|error| panic!("{name}: {error}"));
        let tensor = checkpoint.tensor(&format!("{MODULE}.weight")).unwrap();
        assert_eq!(tensor.info.shape, form.shape, "{name}");
        for isa in Isa::available() {
            let mut values = vec![0f32; form.shape[0] * form.shape[1]];
            dequantize_rows(isa, &tensor.view(), 0, &mut values);
            let bytes: Vec<u8> = values.iter().flat_map(|value| (value + 0.0).to_le_bytes()).collect();
            assert_eq!(u64::from(common::crc32(&bytes)), form.crc32, "{name} by {}", isa.name());
            // Products, which go through panels, are those of the values.
            let floats: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let floats = WeightData::Float { float: FloatType::F32, bytes: &floats };
            let [rows, cols] = form.shape;
            let x = (0..7 * cols).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
            let x = Matrix::from_vec(7, cols, x);
            let [mut found, mut expected] = [(); 2].map(|()| Matrix::default());
            matmul(isa, Path::Exact, &WeightView::new(rows, cols, floats).unwrap(), &x, &mut expected);
            matmul(isa, Path::Exact, &tensor.view(), &x, &mut found);
            assert_eq!(found, expected, "{name} by {}", isa.name());
        }
    }
}

#[test]
fn rows_taken_out_for_another_packing_hold_the_same() {
    for (name, form) in forms() {
        let checkpoint = form.open().unwrap();
        let tensor = checkpoint.tensor(&format!("{MODULE}.weight")).unwrap();
        let (view, [rows, cols]) = (tensor.view(), form.shape);
        let WeightData::Columns { layout, group_of, .. } = view.data() else { continue };
        let taken = grouped_rows(&view, 0..rows).unwrap().unwrap();
        let groups = layout.groups_per_row(cols);
        let zero_points = match layout.zero_point {
            ZeroPoint::Symmetric => Vec::new(),
            ZeroPoint::Asymmetric => pack_zero_points(&taken.zero_codes, rows, groups, layout.bits),
        };
        let (packed, scales) = (&taken.packed, &taken.scales);
        let data = WeightData::Grouped { layout, packed, scales, zero_points: &zero_points };
        let [mut found, mut expected] = [(); 2].map(|()| vec![0f32; rows * cols]);
        dequantize_rows(Isa::best(), &WeightView::new(rows, cols, data).unwrap(), 0, &mut found);
        dequantize_rows(Isa::best(), &view, 0, &mut expected);
        // Which columns are in which group is not told of rows.
        let is_in_place = |column: usize| {
            group_of.is_empty() || group_of[4 * column..][..4] == ((column / 32) as u32).to_le_bytes()
        };
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(found == expected || !is_in_place(at % cols), "{name} at {at}");
        }
    }
}

#[test]
fn forms_have_the_names_of_what_they_are() {
    for (name, encoding) in [
        ("ordered_4", "4-bit g32"),
        ("ordered_int8", "8-bit g32 asymmetric"),
        ("int8_channel", "8-bit g96 asymmetric"),
        ("packed_tensor_asym", "4-bit g96 asymmetric"),
        ("marlin_24", "4-bit g128"),
        ("marlin_24_rows", "8-bit g256"),
        ("sparse_24", "sparse bf16"),
        ("sparse_24_fp8", "fp8"),
        ("mxfp6", "mxfp6"),
        ("mxfp8", "mxfp8"),
    ] {
        let checkpoint = form(name).open().unwrap();
        let tensor = checkpoint.tensor(&format!("{MODULE}.weight")).unwrap();
        assert_eq!(tensor.info.encoding.to_string(), encoding, "{name}");
        // Shapes are 16 bytes more, and row offsets are not stored where two of each four weights are.
        let stored = tensor.info.stored_bytes as usize;
        match tensor.info.encoding {
            Encoding::Grouped(_) if name.starts_with("packed_tensor") => {
                assert!(stored < tensor.view().stored_bytes())
            }
            Encoding::Sparse { .. } => assert_eq!(stored, tensor.view().stored_bytes() + 16 - 8 * 64),
            _ => assert!([0, 16].contains(&(stored - tensor.view().stored_bytes())), "{name}"),
        }
    }
}

#[test]
fn columns_in_order_are_plain_groups() {
    let mut form = form("ordered_4");
    let place = form.parts.iter().position(|(name, ..)| name.ends_with("g_idx")).unwrap();
    // In order, not known yet, not stored.
    for bytes in [
        (0..128).flat_map(|column: i32| (column / 32).to_le_bytes()).collect(),
        [-1i32; 128].iter().flat_map(|group| group.to_le_bytes()).collect::<Vec<u8>>(),
    ] {
        form.parts[place].3 = bytes;
        let checkpoint = form.open().unwrap();
        let tensor = checkpoint.tensor(&format!("{MODULE}.weight")).unwrap();
        assert!(matches!(tensor.view().data(), WeightData::Grouped { .. }));
    }
    form.parts.remove(place);
    assert!(form.open().unwrap_err().to_string().contains("without a `weight_g_idx`"));
}

#[test]
fn parts_that_do_not_fit_are_refused_by_name() {
    let first = |value: i32| move |part: &mut Stored| part.3[..4].copy_from_slice(&value.to_le_bytes());
    assert!(form("ordered_4").refused("weight_g_idx", first(4)).contains("names group 4 of 4"));
    assert!(form("ordered_4").refused("weight_g_idx", first(-1)).contains("names group -1"));
    assert!(form("ordered_int8").refused("weight_g_idx", first(9)).contains("names group 9"));
    let short = |part: &mut Stored| {
        part.2[0] -= 1;
        part.3.truncate(part.3.len() / (part.2[0] + 1) * part.2[0]);
    };
    for (name, part, said) in [
        ("ordered_4", "weight_g_idx", "one group for each of 128"),
        ("marlin_24", "meta", "are no matrix"),
        ("marlin_24", "weight_packed", "are no matrix"),
        ("marlin_24", "scale_packed", "are no matrix"),
        ("sparse_24", "compressed", "two of each four"),
        ("sparse_24", "bitmask", "bytes where"),
        ("sparse_24_fp8", "bitmask", "a bit for each weight"),
        ("sparse_24_fp8", "weight_scale", "fit no"),
        ("int8_group", "weight_zero_point", "bytes where"),
        ("mxfp6", "weight_packed", "fit no"),
    ] {
        let error = form(name).refused(part, short);
        assert!(error.contains(said), "{name} {part}: {error}");
    }
    let bits = form("sparse_24_int8").refused("bitmask", |part| part.3[3] ^= 1);
    assert!(bits.contains("row 0 keeps other than two"), "{bits}");
    let dtype = form("marlin_24").refused("meta", |part| part.1 = "F16");
    assert!(dtype.contains("I16 is expected"), "{dtype}");
    let zeros = form("int8_group").refused("weight_zero_point", |part| part.1 = "U8");
    assert!(zeros.contains("I8 is expected"), "{zeros}");
    let mut lacking = form("marlin_24");
    lacking.parts.retain(|(name, ..)| !name.ends_with("meta"));
    assert!(lacking.open().unwrap_err().to_string().contains("must all be there"));
}

#[test]
fn what_is_there_twice_or_half_is_refused() {
    let again = |name: &str, from: &str, to: &str, dtype: &'static str| {
        let mut form = form(name);
        let mut part = form.parts.iter().find(|(name, ..)| name.ends_with(from)).unwrap().clone();
        (part.0, part.1) = (format!("{MODULE}.{to}"), dtype);
        form.parts.push(part);
        let error = form.open().unwrap_err();
        assert!(error.to_string().contains(MODULE) && error.hint().is_some(), "{error}");
        error.to_string()
    };
    assert!(again("sparse_24_int8", ".compressed", "weight", "I8").contains("both whole and sparse"));
    assert!(again("int8_channel", ".weight", "weight_packed", "U8").contains("has both"));
    // A scale for all beside scales that are no FP8.
    let mut global = form("mxfp6");
    global.parts.push((format!("{MODULE}.weight_global_scale"), "F32", vec![1], vec![0; 4]));
    assert!(global.open().unwrap_err().to_string().contains("beside a `weight_global_scale`"));
    let mut unordered = form("ordered_int8");
    unordered.parts.retain(|(name, ..)| !name.ends_with("g_idx"));
    assert!(unordered.open().unwrap_err().to_string().contains("without a `weight_g_idx`"));
    let mut loose = form("sparse_24_fp8");
    let offsets = (0..64u64).flat_map(|row| (64 * row).to_le_bytes()).collect();
    loose.parts.push((format!("{MODULE}.row_offsets"), "I64", vec![64], offsets));
    assert!(loose.open().unwrap_err().to_string().contains("two of each four"));
}

#[test]
fn groups_of_others_and_of_either_order_stand_side_by_side() {
    let mut form = form("ordered_4");
    let groups = form.config["config_groups"].as_object_mut().unwrap();
    let mut unordered = groups["group_0"].clone();
    unordered["weights"]["actorder"] = Value::Null;
    groups.insert("group_1".to_owned(), unordered);
    groups.insert("group_2".to_owned(), json!({"targets": ["LlamaAttention"], "weights": null}));
    // What 8-bit attention leaves beside.
    for (part, dtype, bytes) in [("q_scale", "F32", 4), ("k_scale", "F32", 4), ("k_zero_point", "F8_E4M3", 1)]
    {
        let name = format!("model.layers.0.self_attn.{part}");
        form.parts.push((name, dtype, vec![1], vec![0; bytes]));
    }
    let checkpoint = form.open().unwrap();
    assert_eq!(checkpoint.cache_scales().len(), 1);
    let tensor = checkpoint.tensor(&format!("{MODULE}.weight")).unwrap();
    assert!(matches!(tensor.view().data(), WeightData::Columns { group_of, .. } if !group_of.is_empty()));
    form.parts.retain(|(name, ..)| !name.ends_with("g_idx"));
    let checkpoint = form.open().unwrap();
    let tensor = checkpoint.tensor(&format!("{MODULE}.weight")).unwrap();
    assert!(matches!(tensor.view().data(), WeightData::Grouped { .. }));
    // A mixture whose group names no form: integers in blocks are numbers.
    let mut mixed = forms().remove("int8_channel").unwrap();
    let group = &mut mixed.config["config_groups"]["group_0"];
    (group["weights"]["strategy"], mixed.config["format"]) = (json!("block"), json!("mixed-precision"));
    assert!(mixed.open().is_ok());
}

#[test]
fn an_order_of_codes_in_one_stream_is_refused() {
    let mut form = form("ordered_3");
    // 12 words of 32 codes each where the library then had 13 of 10.
    for (name, _, shape, bytes) in &mut form.parts {
        if name.ends_with("weight_packed") {
            shape[1] = 12;
            bytes.truncate(64 * 12 * 4);
        }
    }
    assert!(form.open().unwrap_err().to_string().contains("as one stream"));
}

#[test]
fn any_places_of_marlins_are_read_without_a_panic() {
    let mut form = form("marlin_24_short");
    for (name, dtype, _, bytes) in &mut form.parts {
        if name.ends_with("meta") || name.ends_with("weight_packed") {
            assert!([Dtype::I16.name(), Dtype::I32.name()].contains(dtype));
            bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 37) as u8);
        }
    }
    let checkpoint = form.open().unwrap();
    let tensor = checkpoint.tensor(&format!("{MODULE}.weight")).unwrap();
    let WeightData::Columns { packing, layout, .. } = tensor.view().data() else { panic!("columns") };
    assert_eq!((packing, layout.zero_point), (ColumnPacking::Marlin24, ZeroPoint::Symmetric));
    let mut values = vec![0f32; 64 * 256];
    dequantize_rows(Isa::best(), &tensor.view(), 0, &mut values);
    assert!(values.iter().all(|value| value.is_finite()));
}
