//! Codes taken over from one packing to another as they are.

mod common;

use std::path::Path;

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{
    CompressRecord, Error, Format, Plan, PlanOptions, Silent, Treatment, compress, conversion,
};
use bitmill_quant::{GroupedRows, grouped_rows};
use bitmill_tensor::{ColumnPacking, Encoding, WeightData, ZeroPoint};
use bitmill_testkit::{Float, Tiny, Variant, max_abs, max_abs_diff};
use serde_json::Value;

use common::{calibrated, calibration_text, logits, plan, recipe, run, told, values};

/// Every matrix in groups, with its codes, scales and zero points.
fn codes(path: &Path) -> Vec<(String, Encoding, GroupedRows)> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let mut all = Vec::new();
    for info in checkpoint.tensors() {
        let tensor = checkpoint.tensor(&info.name).unwrap();
        let rows = tensor.view().out_features();
        if let Some(rows) = grouped_rows(&tensor.view(), 0..rows).unwrap() {
            all.push((info.name.clone(), info.encoding, rows));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn convert(source: &Path, format: Format, target: &Path) -> Result<CompressRecord, Error> {
    let checkpoint = Checkpoint::open(source)?;
    let plan = Plan::new(&checkpoint, &conversion(format, None), &PlanOptions::default())?;
    let record = compress(&checkpoint, &plan, target, Overwrite::Refuse, &Silent)?;
    assert_eq!(record.written.bytes, plan.output_bytes + told(target), "the plan is exact");
    Ok(record)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn codes_go_through_every_pair_of_packings_and_come_back() {
    let source = Tiny::new(Variant::Qwen2Wide).float(Float::BF16).write();
    let out = tempfile::tempdir().unwrap();
    let all = [Format::CompressedTensors, Format::Gptq, Format::Awq];
    for (bits, zero_point, size) in
        [(4, "symmetric", 64), (4, "asymmetric", 64), (8, "symmetric", 64), (3, "asymmetric", 32)]
    {
        let formats = if bits == 4 { &all[..] } else { &all[..2] };
        for &first in formats {
            let at = |name: &str| out.path().join(format!("{}-{name}-{bits}-{zero_point}", first.name()));
            let made = format!(
                "format = \"{}\"\n[[step]]\nkind = \"rtn\"\nbits = {bits}\nscale = \"bf16\"\nzero_point = \"{zero_point}\"\n\
                 granularity = {{ group = {{ size = {size} }} }}\nskip = [\"*.down_proj.weight\"]\n",
                first.name()
            );
            run(source.path(), &recipe(&made), &at("made")).unwrap();
            let expected = codes(&at("made"));
            // 288 columns are no groups of 64.
            assert_eq!(expected.len(), 2 * 6);
            for &second in formats {
                let (there, back) = (at(second.name()), at(&format!("{}-back", second.name())));
                let record = convert(&at("made"), second, &there).unwrap();
                for tensor in record.document["tensors"].as_array().unwrap() {
                    assert_eq!(tensor["relative_error"], 0.0, "{tensor}");
                }
                convert(&there, first, &back).unwrap();
                for path in [&there, &back] {
                    let found = codes(path);
                    assert_eq!(found.len(), expected.len());
                    for ((name, encoding, found), (_, made_as, expected)) in found.iter().zip(&expected) {
                        assert_eq!((&found.packed, &found.scales), (&expected.packed, &expected.scales));
                        if encoding == made_as {
                            assert_eq!(found.zero_codes, expected.zero_codes, "{name}");
                            continue;
                        }
                        // AWQ has zero points for all, and what comes from there keeps them.
                        let Encoding::Grouped(grouped) = encoding else { panic!("{encoding}") };
                        assert_eq!(grouped.zero_point, ZeroPoint::Asymmetric, "{name}");
                        assert!(second == Format::Awq && found.zero_codes.iter().all(|zero| *zero == 8));
                    }
                }
            }
        }
    }
}

#[test]
fn what_a_format_does_not_hold_is_unpacked_and_the_plan_says_why() {
    let source = Tiny::new(Variant::Qwen2Wide).float(Float::BF16).write();
    let out = tempfile::tempdir().unwrap();
    let mixed = "format = \"compressed-tensors\"\n[[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = { group = { size = 32 } }\n\
                 [[step]]\nkind = \"rtn\"\nbits = 5\ngranularity = { group = { size = 32 } }\ntargets = [\"*.down_proj.weight\"]\n";
    let (made, plain) = (out.path().join("made"), out.path().join("gptq"));
    run(source.path(), &recipe(mixed), &made).unwrap();
    let checkpoint = Checkpoint::open(&made).unwrap();
    let plan = Plan::new(&checkpoint, &conversion(Format::Gptq, None), &PlanOptions::default()).unwrap();
    let down = plan.tensors.iter().find(|planned| planned.name.ends_with("0.mlp.down_proj.weight")).unwrap();
    assert_eq!(down.to.to_string(), "bf16");
    assert!(down.reason.contains("codes of 5 bits, and it holds 2, 3, 4 and 8"), "{}", down.reason);
    assert!(plan.to_text().contains(&down.reason), "{}", plan.to_text());
    let copied = plan.tensors.iter().filter(|planned| planned.treatment == Treatment::Copied);
    assert_eq!(copied.count(), 2 * 6);
    compress(&checkpoint, &plan, &plain, Overwrite::Refuse, &Silent).unwrap();
    let written = Checkpoint::open(&plain).unwrap();
    for info in checkpoint.tensors() {
        // Codes of 5 bits times a scale of bf16 take more digits than bf16 has.
        if !info.name.ends_with("down_proj.weight") {
            assert_eq!(values(&checkpoint, &info.name), values(&written, &info.name), "{}", info.name);
        }
    }
    // Nothing is left that would be codes.
    let eight = out.path().join("eight");
    let text = mixed.replace("bits = 4", "bits = 8");
    run(source.path(), &recipe(&text), &eight).unwrap();
    let error = convert(&eight, Format::Awq, &out.path().join("none")).unwrap_err();
    assert!(matches!(error, Error::NothingToDo { .. }), "{error}");
}

#[test]
fn columns_in_an_order_of_their_own_stay_so_where_that_has_a_form() {
    let source = Tiny::new(Variant::Qwen2Wide).float(Float::BF16).write();
    let out = tempfile::tempdir().unwrap();
    let text = calibration_text(out.path());
    let step =
        "[[step]]\nkind = \"gptq\"\nbits = 4\ngranularity = { group = { size = 32 } }\norder = \"full\"\n";
    let made = out.path().join("made");
    run(source.path(), &calibrated("format = \"gptq\"", &text, "", step), &made).unwrap();
    let again = out.path().join("again");
    convert(&made, Format::Gptq, &again).unwrap();
    assert_eq!(json(&again.join("quantize_config.json"))["desc_act"], true);
    let (first, last) = (Checkpoint::open(&made).unwrap(), Checkpoint::open(&again).unwrap());
    for info in first.tensors() {
        assert_eq!(values(&first, &info.name), values(&last, &info.name), "{}", info.name);
    }
    for format in [Format::CompressedTensors, Format::Awq] {
        let plan = Plan::new(&first, &conversion(format, None), &PlanOptions::default());
        let error = plan.unwrap_err();
        assert!(matches!(error, Error::NothingToDo { .. }), "{error}");
        assert!(error.to_string().contains("its columns are in an order of their own"), "{error}");
    }
    let floats = "format = \"compressed-tensors\"\n[[step]]\nkind = \"keep\"\n[[step]]\nkind = \"rtn\"\nbits = 8\n\
                  granularity = \"channel\"\ntargets = [\"lm_head.weight\"]\n";
    let plan = Plan::new(&first, &recipe(floats), &PlanOptions::default()).unwrap();
    let reason = &plan.tensors.iter().find(|planned| planned.name.ends_with("q_proj.weight")).unwrap().reason;
    assert!(reason.contains("its columns are in an order of their own"), "{reason}");
}

#[test]
fn words_of_whole_codes_hold_the_same_codes_as_streams() {
    let source = Tiny::new(Variant::Qwen2Wide).float(Float::BF16).write();
    let checkpoint = Checkpoint::open(source.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    for (bits, zero_point) in
        [(3, "asymmetric"), (5, "symmetric"), (6, "asymmetric"), (7, "asymmetric"), (7, "symmetric")]
    {
        let at = |name: &str| out.path().join(format!("{bits}-{zero_point}-{name}"));
        let text = |packing: &str| {
            format!(
                "format = \"compressed-tensors\"\n{packing}[[step]]\nkind = \"rtn\"\nbits = {bits}\nzero_point = \"{zero_point}\"\n\
                 granularity = {{ group = {{ size = 32 }} }}\n"
            )
        };
        run(source.path(), &recipe(&text("")), &at("stream")).unwrap();
        let words = recipe(&text("packing = \"words\"\n"));
        let plan = plan(&checkpoint, &words).unwrap();
        let record = compress(&checkpoint, &plan, &at("words"), Overwrite::Refuse, &Silent).unwrap();
        assert_eq!(record.written.bytes, plan.output_bytes + told(&at("words")), "the plan is exact");
        let (stream, in_words) =
            (Checkpoint::open(&at("stream")).unwrap(), Checkpoint::open(&at("words")).unwrap());
        for planned in &plan.tensors {
            let tensor = in_words.tensor(&planned.name).unwrap();
            // The stored shape of a packed matrix is counted with the output.
            let shape = if matches!(planned.to, Encoding::Grouped(_)) { 16 } else { 0 };
            assert_eq!(planned.bytes_after + shape, tensor.info.stored_bytes, "{}", planned.name);
            assert_eq!(values(&in_words, &planned.name), values(&stream, &planned.name), "{}", planned.name);
            if matches!(planned.to, Encoding::Grouped(_)) {
                let view = tensor.view();
                let is_words =
                    matches!(view.data(), WeightData::Columns { packing: ColumnPacking::Words, .. });
                assert!(is_words, "{}", planned.name);
            }
        }
        let (found, expected) = (logits(&at("words")), logits(&at("stream")));
        // The same products in another order of sums.
        assert!(max_abs_diff(&found, &expected) <= 1e-4 * max_abs(&expected), "{bits} {zero_point}");
        convert(&at("words"), Format::CompressedTensors, &at("again")).unwrap();
        let file = |name: &str| std::fs::read(at(name).join("model.safetensors")).unwrap();
        assert!(file("again") == file("stream"), "{bits} {zero_point}");
        assert!(file("words").len() > file("stream").len());
    }
}

#[test]
fn words_of_whole_codes_are_refused_where_they_would_be_nothing_else() {
    for (format, bits, said) in [
        ("gptq", 3, "`packing = \"words\"` is compressed-tensors'"),
        ("compressed-tensors", 4, "is for codes of 3, 5, 6 and 7 bits"),
    ] {
        let text = format!(
            "format = \"{format}\"\npacking = \"words\"\n[[step]]\nkind = \"rtn\"\nbits = {bits}\ngranularity = \"channel\"\n"
        );
        let error = bitmill_pipeline::Recipe::parse(&text, Path::new("mine.toml")).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
