//! GPTQ and AWQ folders: the codes of every other format, column by column, and what they cannot hold.

mod common;

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{Error, Format, Recipe, Silent, compress, conversion, preset};
use bitmill_tensor::{Encoding, WeightData};
use bitmill_testkit::{Variant, max_abs, max_abs_diff, tiny};
use serde_json::{Value, json};

use common::{logits, names, plan, recipe, run, told, values};

/// Round-to-nearest of the layers with f16 scales.
fn rtn(format: &str, bits: u8, group: usize, zero_point: &str) -> Recipe {
    recipe(&format!(
        "format = \"{format}\"\n[[step]]\nkind = \"rtn\"\nbits = {bits}\nscale = \"f16\"\n\
         granularity = {{ group = {{ size = {group} }} }}\nzero_point = \"{zero_point}\"\n"
    ))
}

fn config(folder: &std::path::Path, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(file)).unwrap()).unwrap()
}

#[test]
fn the_same_codes_are_read_from_every_folder() {
    let out = tempfile::tempdir().unwrap();
    for variant in [Variant::Qwen2, Variant::Llama, Variant::Qwen3Moe] {
        let source = tiny(variant);
        for (bits, zero_point, formats) in [
            (4, "symmetric", &["gptq", "awq"][..]),
            (4, "asymmetric", &["gptq", "awq"]),
            (2, "symmetric", &["gptq"]),
            (3, "asymmetric", &["gptq"]),
            (8, "symmetric", &["gptq"]),
        ] {
            let at =
                |format: &str| out.path().join(format!("{}-{format}-{bits}-{zero_point}", variant.name()));
            run(source.path(), &rtn("compressed-tensors", bits, 32, zero_point), &at("ct")).unwrap();
            let by_row = Checkpoint::open(&at("ct")).unwrap();
            for format in formats {
                run(source.path(), &rtn(format, bits, 32, zero_point), &at(format)).unwrap();
                let by_column = Checkpoint::open(&at(format)).unwrap();
                let mut packed = 0;
                for info in by_row.tensors() {
                    assert_eq!(values(&by_column, &info.name), values(&by_row, &info.name), "{}", info.name);
                    let tensor = by_column.tensor(&info.name).unwrap();
                    let is_packed = matches!(info.encoding, Encoding::Grouped(_));
                    assert_eq!(matches!(tensor.view().data(), WeightData::Columns { .. }), is_packed);
                    packed += usize::from(is_packed);
                }
                assert!(packed > 0);
                let (found, expected) = (logits(&at(format)), logits(&at("ct")));
                // The same products in another order of sums.
                assert!(max_abs_diff(&found, &expected) <= 1e-4 * max_abs(&expected), "{format}");
            }
        }
    }
}

#[test]
fn a_gptq_folder_declares_itself_in_two_files() {
    let (source, out) = (tiny(Variant::Qwen2), tempfile::tempdir().unwrap());
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    for (zero_point, format, sym) in [("symmetric", "gptq", true), ("asymmetric", "gptq_v2", false)] {
        let target = out.path().join(zero_point);
        let plan = plan(&checkpoint, &rtn("gptq", 4, 32, zero_point)).unwrap();
        let record = compress(&checkpoint, &plan, &target, Overwrite::Refuse, &Silent).unwrap();
        assert_eq!(record.written.bytes, plan.output_bytes + told(&target), "the plan is exact");
        let declared = config(&target, "quantize_config.json");
        assert_eq!(config(&target, "config.json")["quantization_config"], declared);
        assert_eq!(declared["checkpoint_format"], format);
        assert_eq!(declared["sym"], sym);
        assert_eq!((&declared["bits"], &declared["group_size"]), (&json!(4), &json!(32)));
        assert_eq!(declared["lm_head"], false);
        // Bytes of a tensor are those of all its parts.
        let written = Checkpoint::open(&target).unwrap();
        for tensor in &plan.tensors {
            let info = written.tensor(&tensor.name).unwrap().info;
            assert_eq!(tensor.bytes_after, info.stored_bytes, "{}", tensor.name);
        }
        // Unpacking leaves nothing behind that says otherwise.
        let floats = out.path().join(format!("{zero_point}-floats"));
        run(&target, &conversion(Format::HuggingFace, None), &floats).unwrap();
        assert!(!names(&floats).contains(&"quantize_config.json".to_owned()));
        assert!(!Checkpoint::open(&floats).unwrap().is_quantized());
        // The first versions of AutoGPTQ declared it in the second file alone.
        let mut json = config(&target, "config.json");
        json.as_object_mut().unwrap().remove("quantization_config");
        std::fs::write(target.join("config.json"), json.to_string()).unwrap();
        assert!(Checkpoint::open(&target).unwrap().is_quantized());
    }
}

#[test]
fn modules_of_another_width_or_none_are_named_by_pattern() {
    let (source, out) = (tiny(Variant::Qwen2), tempfile::tempdir().unwrap());
    let recipe = recipe(
        "format = \"gptq\"\n[[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = { group = { size = 32 } }\n\
         skip = [\"*.0.self_attn.*\"]\n[[step]]\nkind = \"rtn\"\nbits = 8\ngranularity = \"channel\"\n\
         targets = [\"*.mlp.down_proj.weight\"]\n",
    );
    let target = out.path().join("m");
    run(source.path(), &recipe, &target).unwrap();
    let declared = config(&target, "quantize_config.json");
    let dynamic = declared["dynamic"].as_object().unwrap();
    assert_eq!(dynamic[r"+:^model\.layers\.1\.mlp\.down_proj$"], json!({"bits": 8, "group_size": -1}));
    assert_eq!(dynamic[r"-:^model\.layers\.0\.self_attn\.(q_proj|qkv_proj)$"], json!({}));
    assert_eq!(dynamic.len(), 2 + 4);
    let written = Checkpoint::open(&target).unwrap();
    let down = written.tensor("model.layers.1.mlp.down_proj.weight").unwrap();
    assert_eq!(down.info.encoding.to_string(), "8-bit g160");
}

#[test]
fn grids_that_have_no_form_are_refused_before_anything_is_read() {
    let source = tiny(Variant::Qwen2);
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let refused = |recipe: &Recipe| {
        let error = plan(&checkpoint, recipe).unwrap_err();
        assert!(matches!(error, Error::NotHeld { .. }), "{error}");
        assert!(error.hint().is_some());
        error.to_string()
    };
    assert!(refused(&rtn("gptq", 5, 32, "symmetric")).contains("2, 3, 4 and 8"));
    assert!(refused(&rtn("awq", 8, 32, "symmetric")).contains("it holds 4"));
    let two = |format: &str, zero_point: &str, size: usize| {
        recipe(&format!(
            "format = \"{format}\"\n[[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = {{ group = {{ size = 32 }} }}\n\
             [[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = {{ group = {{ size = {size} }} }}\nzero_point = \"{zero_point}\"\n\
             targets = [\"*.down_proj.weight\"]\n"
        ))
    };
    assert!(refused(&two("gptq", "asymmetric", 32)).contains("for all tensors or for none"));
    assert!(refused(&two("awq", "asymmetric", 16)).contains("one group size"));
    // Fused matrices keep one scheme, as everywhere.
    let split = recipe(
        "format = \"gptq\"\n[[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = { group = { size = 32 } }\nskip = [\"*.k_proj.weight\"]\n",
    );
    assert!(matches!(plan(&checkpoint, &split).unwrap_err(), Error::SplitFusion { .. }));
    let head = recipe(
        "format = \"awq\"\n[[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = \"channel\"\ntargets = [\"lm_head.weight\"]\n",
    );
    assert!(matches!(plan(&checkpoint, &head).unwrap_err(), Error::PatternMatchesNoMatrix { .. }));
}

#[test]
fn a_preset_is_written_in_another_format_where_that_has_a_form_for_it() {
    let awq = preset("w4a16_g32").unwrap().with_format(Format::Awq).unwrap();
    assert_eq!(awq.format, Format::Awq);
    assert!(matches!(preset("q4_k_m").unwrap().with_format(Format::Gptq), Err(Error::OtherFormat { .. })));
    // Groups in another order than the columns: only gptq has a place to say so.
    let ordered = "format = \"gptq\"\n[[step]]\nkind = \"gptq\"\nbits = 4\ngranularity = { group = { size = 32 } }\norder = \"full\"\n";
    for other in [Format::CompressedTensors, Format::Awq] {
        let refused = recipe(ordered).with_format(other).unwrap_err();
        assert!(matches!(refused, Error::NoPlace { .. }), "{refused}");
    }
}
