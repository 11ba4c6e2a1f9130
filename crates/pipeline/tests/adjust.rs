//! More bits for a model that is there already: by a table of sensitivities, and by the weights alone.

use std::collections::HashMap;
use std::path::Path;

use bitmill_checkpoint::{Checkpoint, Overwrite};
use bitmill_pipeline::{
    Budget, Error, Format, Measure, Plan, PlanOptions, Recipe, SearchOptions, Sensitivity, Silent, adjust,
    compress, most_sensitive, search,
};
use bitmill_testkit::{Tiny, Variant};

fn tiny(variant: Variant) -> (tempfile::TempDir, Checkpoint) {
    let folder = Tiny::new(variant).layers(3).write();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

fn compressed(dense: &Checkpoint, recipe: &Recipe, path: &Path) -> Checkpoint {
    let plan = Plan::new(dense, recipe, &PlanOptions::default()).unwrap();
    compress(dense, &plan, path, Overwrite::Refuse, &Silent).unwrap();
    Checkpoint::open(path).unwrap()
}

/// Bytes of the file, or of every file of the folder but record and card.
fn size(path: &Path) -> u64 {
    if path.is_file() {
        return path.metadata().unwrap().len();
    }
    let files = path.read_dir().unwrap().map(|entry| entry.unwrap());
    let is_told = |file: &std::fs::DirEntry| file.file_name().to_string_lossy().starts_with("bitmill.");
    files.filter(|file| !is_told(file)).map(|file| file.metadata().unwrap().len()).sum()
}

fn recipe(text: &str) -> Recipe {
    Recipe::parse(text, "small.toml".as_ref()).unwrap()
}

fn small(format: Format) -> Recipe {
    recipe(match format {
        Format::Gguf => {
            "format = \"gguf\"\n[[step]]\nkind = \"block\"\ntype = \"q4_0\"\nskip = [\"*.o_proj.weight\"]"
        }
        _ => {
            "format = \"compressed-tensors\"\n[[step]]\nkind = \"rtn\"\nbits = 3\ngranularity = { group = { size = 32 } }"
        }
    })
}

fn table(dense: &Checkpoint, format: Format) -> Sensitivity {
    let options = SearchOptions {
        format,
        tokens: Some(128),
        rounds: 1,
        ..SearchOptions::new(Budget::BitsPerWeight(16.5))
    };
    search(dense, &options, &Silent).unwrap().table
}

/// Bytes of each matrix.
fn bytes(checkpoint: &Checkpoint) -> HashMap<String, u64> {
    checkpoint.tensors().iter().map(|info| (info.name.clone(), info.stored_bytes)).collect()
}

#[test]
fn a_table_names_those_first_whose_next_form_gains_most_a_byte() {
    let work = tempfile::tempdir().unwrap();
    let (_folder, dense) = tiny(Variant::Qwen2);
    for (format, name, form) in [(Format::Gguf, "a.gguf", "q4_0"), (Format::CompressedTensors, "a", "w3_g32")]
    {
        let model = compressed(&dense, &small(format), &work.path().join(name));
        let table = table(&dense, format);
        let named = most_sensitive(&model, &table).unwrap();
        assert!(named.is_sorted_by(|a, b| a.gain_per_mb >= b.gain_per_mb));
        assert!(named.iter().all(|named| named.gain_per_mb > 0.0 && named.error > 0.0));
        for named in &named {
            let unit = table.units.iter().find(|unit| unit.tensors[0] == named.tensor).unwrap();
            assert_eq!(named.tied + 1, unit.tensors.len());
            let option = |form: &str| unit.options.iter().find(|option| option.form == form).unwrap();
            let (now, next) = (option(form), option(named.next.as_ref().unwrap()));
            assert_eq!(named.error, now.kl.unwrap());
            let gain = (now.kl.unwrap() - next.kl.unwrap()) / (next.bytes - now.bytes) as f64 * 1e6;
            assert!((named.gain_per_mb / gain - 1.0).abs() < 1e-12);
            let between =
                unit.options.iter().filter(|option| (now.bytes + 1..next.bytes).contains(&option.bytes));
            assert!(between.into_iter().all(|option| option.kl >= now.kl), "{} skips a form", named.tensor);
        }
        // What stayed as floats has nothing to gain.
        let is_output = |tensor: &str| tensor.ends_with("o_proj.weight");
        assert_eq!(named.iter().any(|named| is_output(&named.tensor)), format != Format::Gguf);
    }
}

#[test]
fn an_adjusted_model_is_within_the_budget_and_no_tensor_is_smaller_than_before() {
    let work = tempfile::tempdir().unwrap();
    let (_folder, dense) = tiny(Variant::Qwen2);
    for format in [Format::Gguf, Format::CompressedTensors] {
        let at = |name: String| work.path().join(format!("{name}-{}.gguf", format.name()));
        let model = compressed(&dense, &small(format), &at("small".into()));
        let (before, now) = (bytes(&model), size(&at("small".into())));
        let measured = table(&dense, format);
        for table in [Some(&measured), None] {
            let mut last = 0;
            // Lists of which tensors have which form take some bytes of a folder's config.json.
            for (step, more) in [4000, 9000, 20_000, 40_000].into_iter().enumerate() {
                let budget = now + more;
                let recipe = adjust(&model, &dense, table, "adjusted", budget, &Silent).unwrap();
                let path = at(format!("{}-{step}", table.is_some()));
                let better = compressed(&dense, &recipe, &path);
                let total = size(&path);
                assert!(total <= budget && total >= last, "{total} of {budget}, {last} before");
                last = total;
                for (tensor, bytes) in bytes(&better) {
                    assert!(bytes >= before[&tensor], "{tensor}: {} before, {bytes}", before[&tensor]);
                }
            }
            assert!(last > now + 30_000, "most of the budget is used");
        }
    }
}

#[test]
fn what_cannot_be_adjusted_or_ranked_says_why() {
    let work = tempfile::tempdir().unwrap();
    let (_folder, dense) = tiny(Variant::Qwen2);
    let model = compressed(&dense, &small(Format::Gguf), &work.path().join("small.gguf"));
    let adjusted = |model: &Checkpoint, table: Option<&Sensitivity>, budget| {
        adjust(model, &dense, table, "adjusted", budget, &Silent).unwrap_err().to_string()
    };
    assert!(adjusted(&model, None, 4096).contains("more than the budget of 4096"));
    assert!(adjusted(&dense, None, 1 << 30).contains("none of its matrices is quantized"));
    let groups = compressed(&dense, &small(Format::CompressedTensors), &work.path().join("groups"));
    assert!(adjusted(&groups, None, 1 << 40).contains("fits the budget"));
    let asymmetric = recipe(
        "format = \"compressed-tensors\"\n[[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = { group = { size = 32 } }\nzero_point = \"asymmetric\"",
    );
    let asymmetric = compressed(&dense, &asymmetric, &work.path().join("asymmetric"));
    let said = adjusted(&asymmetric, None, 1 << 30);
    assert!(said.contains("4-bit g32 asymmetric") && said.contains("proj.weight"), "{said}");

    let options =
        SearchOptions { measure: Measure::Weights, ..SearchOptions::new(Budget::BitsPerWeight(16.5)) };
    let table = search(&dense, &options, &Silent).unwrap().table;
    assert!(adjusted(&asymmetric, Some(&table), 1 << 30).contains("it is about gguf"));
    let refused = most_sensitive(&asymmetric, &table).unwrap_err();
    assert!(matches!(&refused, Error::ForeignTable { what, .. } if what.contains("4-bit g32")), "{refused}");
    let (_folder, other) = tiny(Variant::Llama);
    let shallow = Tiny::new(Variant::Llama).layers(1).write();
    let shallow = Checkpoint::open(shallow.path()).unwrap();
    let of_other = search(&other, &options, &Silent).unwrap().table;
    let refused = most_sensitive(&shallow, &of_other).unwrap_err().to_string();
    assert!(refused.contains("model.layers.1."), "{refused}");
}
