//! Replays the fuzzers' corpus: seeds that reach deep, and what was once found to go wrong (`found-*`).

#[path = "../../../fuzz/targets.rs"]
mod targets;

use std::path::{Path, PathBuf};

use bitmill_checkpoint::{
    Checkpoint, FolderWriter, Imatrix, ImatrixEntry, ImatrixForm, Overwrite, Region, StTensorSpec, Target,
};
use bitmill_pipeline::{Format, Plan, PlanOptions, Silent, compress, conversion, preset};
use bitmill_tensor::Dtype;
use bitmill_testkit::{Split, tokenizer_json};
use serde_json::json;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_reader_survives_its_corpus_whole_and_cut() {
    let mut known: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    assert_eq!(names(&corpus()), known, "a folder for each target");
    for (name, run) in targets::TARGETS {
        let files = names(&corpus().join(name));
        assert!(!files.is_empty(), "{name}");
        for file in files {
            let bytes = std::fs::read(corpus().join(name).join(&file)).unwrap();
            for part in (1..=8).rev() {
                let cut = &bytes[..bytes.len() * part / 8];
                let outcome = std::panic::catch_unwind(|| run(cut));
                assert!(outcome.is_ok(), "{name}/{file}, its first {} bytes", cut.len());
            }
        }
    }
}

/// A text and a chat.
const DOCUMENTS: &str = r#"{"text": "Hello  wörld", "id": 7}

{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}
"#;

/// Each codec, encoding and page version, of texts and of chats.
const PARQUET: [&str; 5] =
    ["text_snappy", "text_delta", "chat_gzip_v2", "chat_small_pages", "chat_delta_length"];

#[test]
fn seeds_are_what_readers_accept() {
    // A seed that is refused at its first byte would leave the reader behind it unfuzzed.
    let seed = |target: &str, name: &str| std::fs::read(corpus().join(target).join(name)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama.gguf", "q4_0.gguf"] {
        std::fs::write(folder.path().join(name), seed("gguf", name)).unwrap();
        assert!(!Checkpoint::open(&folder.path().join(name)).unwrap().tensors().is_empty());
    }
    assert!(bitmill_text::Tokenizer::from_json(&seed("tokenizer_json", "smollm")).is_ok());
    let text = String::from_utf8(seed("task", "items")).unwrap();
    assert!(bitmill_text::Task::from_jsonl("items", &text).is_ok());
    for (target, name, file) in [
        ("qwen_tiktoken", "pairs", "qwen.tiktoken"),
        ("tekken", "pairs", "tekken.json"),
        ("sentencepiece", "spm", "tokenizer.model"),
    ] {
        let read = bitmill_text::Tokenizer::from_file(file, &seed(target, name));
        assert!(read.is_ok(), "{target}: {}", read.unwrap_err());
    }
    let url = "https://example.com";
    assert_eq!(
        bitmill_hub::hugging_face_listing(url, &seed("hugging_face_listing", "two")).unwrap().1.len(),
        2
    );
    assert_eq!(bitmill_hub::model_scope_listing(url, &seed("model_scope_listing", "two")).unwrap().len(), 1);
    assert!(bitmill_eval::Baseline::from_bytes("one", &seed("baseline", "one")).is_ok());
    for name in ["imatrix.gguf", "imatrix.dat"] {
        assert!(
            Imatrix::from_bytes(Path::new(name), &Region::from_vec(seed("imatrix", name))).is_ok(),
            "{name}"
        );
    }
    let documents = bitmill_text::Documents::from_jsonl("both", &seed("documents_jsonl", "both")).unwrap();
    assert_eq!((documents.items.len(), documents.has_chats()), (2, true));
    for name in PARQUET {
        let read = bitmill_text::Documents::from_parquet(name, &seed("documents_parquet", name));
        assert!(read.is_ok(), "{name}: {}", read.unwrap_err());
    }
    let table = String::from_utf8(seed("sensitivity", "one")).unwrap();
    assert!(bitmill_pipeline::Sensitivity::parse(&table, Path::new("one.json")).is_ok());
    assert!(
        !Checkpoint::from_files("sparse", targets::sections(&seed("folder", "sparse")))
            .unwrap()
            .tensors()
            .is_empty()
    );
    for name in ["gptq", "awq", "numbers", "nf4"] {
        let opened = Checkpoint::from_files(name, targets::sections(&seed("folder", name))).unwrap();
        assert!(opened.is_quantized(), "{name}");
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let quartet = |chunk: &[u8]| {
        let bits = chunk.iter().chain(&[0, 0]).take(3).fold(0, |bits, &byte| bits << 8 | usize::from(byte));
        let digit = |place: usize| {
            if place <= chunk.len() { DIGITS[bits >> (18 - 6 * place) & 63] as char } else { '=' }
        };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(quartet).collect()
}

/// A model of a few hundred weights: all sizes are the smallest that are sizes.
fn write_model(folder: &Path) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 288, "hidden_size": 32,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "max_position_embeddings": 64, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": [2, 0]
    });
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let specs: Vec<StTensorSpec> = [
        ("model.embed_tokens.weight".to_owned(), vec![288, 32]),
        (layer("input_layernorm"), vec![32]),
        (layer("self_attn.q_proj"), vec![8, 32]),
        (layer("self_attn.k_proj"), vec![4, 32]),
        (layer("self_attn.v_proj"), vec![4, 32]),
        (layer("self_attn.o_proj"), vec![32, 8]),
        (layer("post_attention_layernorm"), vec![32]),
        (layer("mlp.gate_proj"), vec![32, 32]),
        (layer("mlp.up_proj"), vec![32, 32]),
        (layer("mlp.down_proj"), vec![32, 32]),
        ("model.norm.weight".to_owned(), vec![32]),
    ]
    .into_iter()
    .map(|(name, shape)| StTensorSpec { name, shape, dtype: Dtype::BF16 })
    .collect();
    let target = Target { path: folder.into(), overwrite: Overwrite::Refuse };
    let writer = FolderWriter::create(&target, &specs, 1 << 30).unwrap();
    for (index, spec) in specs.iter().enumerate() {
        let n: usize = spec.shape.iter().product();
        let bytes: Vec<u8> = (0..n).flat_map(|i| [0, 0x3e + (i % 3) as u8]).collect();
        writer.write_at(index, 0, &bytes).unwrap();
    }
    writer.add_file("config.json", config.to_string().as_bytes()).unwrap();
    writer.add_file("tokenizer.json", tokenizer_json(Split::SmolLm).as_bytes()).unwrap();
    writer.finish().unwrap();
}

#[test]
#[ignore = "writes fuzz/corpus; run it when a format or a target is new"]
fn write_the_seeds() {
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let folder = corpus().join(target);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    };
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let run = |from: &Path, recipe: &bitmill_pipeline::Recipe, to: &Path| {
        let checkpoint = Checkpoint::open(from).unwrap();
        let plan = Plan::new(&checkpoint, recipe, &PlanOptions::default()).unwrap();
        compress(&checkpoint, &plan, to, Overwrite::Refuse, &Silent).unwrap();
    };
    let files = |folder: &Path| -> Vec<u8> {
        let of = |name: &String| {
            let bytes = std::fs::read(folder.join(name)).unwrap();
            [format!("=== {name}\n").as_bytes(), &bytes, b"\n"].concat()
        };
        names(folder).iter().filter(|name| !name.starts_with("bitmill.")).flat_map(of).collect()
    };
    write_model(&at("llama"));
    run(&at("llama"), &conversion(Format::Gguf, None), &at("llama.gguf"));
    let blocks =
        "format = \"gguf\"\n[[step]]\nkind = \"block\"\ntype = \"q4_0\"\nskip = [\"*.o_proj.weight\"]";
    let blocks = bitmill_pipeline::Recipe::parse(blocks, Path::new("blocks.toml")).unwrap();
    run(&at("llama"), &blocks, &at("q4_0.gguf"));
    for name in ["llama.gguf", "q4_0.gguf"] {
        put("gguf", name, &std::fs::read(at(name)).unwrap());
    }
    run(&at("llama"), &preset("w4a16_asym").unwrap(), &at("packed"));
    put("folder", "llama", &files(&at("llama")));
    put("folder", "packed", &files(&at("packed")));
    put("config_json", "llama", &std::fs::read(at("llama/config.json")).unwrap());
    let llama3 = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 8,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "rope_scaling": {"rope_type": "llama3",
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    });
    put("config_json", "llama3", llama3.to_string().as_bytes());
    let qwen2 = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 8, "hidden_size": 8,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "use_sliding_window": true,
        "sliding_window": 4, "layer_types": ["sliding_attention"], "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}
    });
    put("config_json", "qwen2", qwen2.to_string().as_bytes());
    put("tokenizer_json", "smollm", tokenizer_json(Split::SmolLm).as_bytes());
    put("tokenizer_json", "qwen2", tokenizer_json(Split::Qwen2).as_bytes());
    let bytes: String = ('!'..='~').map(|c| format!("t 1 {c}\n")).collect();
    put(
        "gguf_tokenizer",
        "gpt2",
        format!("gpt2\nqwen2\n{bytes}t 1 he\nt 3 <|end|>\nt 5 [PAD97]\nm h e\nb 95\n").as_bytes(),
    );
    put("gguf_tokenizer", "llama", b"llama\ndefault\nt 2 <unk>\ns 0\nt 3 <s>\ns 0\nt 3 </s>\ns 0\nt 6 <0x41>\ns 0\nt 1 he\ns -1.5\nb 1\n");
    for name in ["q4_k_m", "w4a16_g32_asym"] {
        put("recipe", name, preset(name).unwrap().to_toml().as_bytes());
    }
    put("recipe", "blocks", blocks.to_toml().as_bytes());
    put("recipe", "floats", conversion(Format::HuggingFace, None).to_toml().as_bytes());
    let items = "{\"context\": \"One and one is\", \"choices\": [\" two\", \" three\"], \"answer\": 0}\n\
                 {\"prompt\": \"你好\", \"choices\": [\"a\", \"b\", \"c\"], \"answer\": 2}\n";
    put("task", "items", items.as_bytes());
    // 300 ranks: the bytes, and pairs of letters.
    let pairs = (b'a'..).flat_map(|a| (b'a'..=b'k').map(move |b| vec![a, b]));
    let ranks: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).chain(pairs).take(300).collect();
    let lines = ranks.iter().enumerate().map(|(rank, token)| format!("{} {rank}\n", base64(token)));
    put("qwen_tiktoken", "pairs", lines.collect::<String>().as_bytes());
    let vocab: Vec<_> = ranks
        .iter()
        .enumerate()
        .map(|(rank, token)| json!({"rank": rank, "token_bytes": base64(token)}))
        .collect();
    let tekken = json!({
        "config": {"pattern": "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
            "num_vocab_tokens": 300, "default_vocab_size": 310, "default_num_special_tokens": 10, "version": "v3"},
        "vocab": vocab,
    });
    put("tekken", "pairs", tekken.to_string().as_bytes());
    let pieces = include_bytes!("../../text/tests/golden/spm.model");
    put("sentencepiece", "spm", pieces);
    let chatml = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}\n\
                  {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    put("chat_template", "chatml", chatml.as_bytes());
    let loops = "{%- set ns = namespace(n=0) %}{% macro m(x) %}{{ x | trim | tojson }}{% endmacro %}{% for i in range(99) %}{% set ns.n = ns.n + i %}\
                 {{ m(messages[0].content.split('</think>')[-1]) }}{% endfor %}{{ strftime_now('%d %b %Y') }}{{ raise_exception(ns.n | string) }}";
    put("chat_template", "loops", loops.as_bytes());
    let (commit, hash) = ("0123456789abcdef0123456789abcdef01234567", "0123456789abcdef".repeat(4));
    let listing = json!({"sha": commit, "siblings": [
        {"rfilename": "config.json", "size": 12, "blobId": commit},
        {"rfilename": "a/model.gguf", "size": 12, "lfs": {"sha256": hash, "size": 34}},
    ]});
    put("hugging_face_listing", "two", listing.to_string().as_bytes());
    let listing = json!({"Code": 200, "Success": true, "Data": {"Files": [
        {"Path": "a", "Type": "tree", "Size": 0}, {"Path": "a/model.gguf", "Type": "blob", "Size": 34, "Sha256": hash},
    ]}});
    put("model_scope_listing", "two", listing.to_string().as_bytes());
    let table = json!({"schema": "bitmill.sensitivity/1", "version": "0", "model": "m", "weights": 64, "format": "gguf", "measure": "kl",
        "calibration": "text", "tokens": 128, "units": [{"tensors": ["t"], "weights": 64, "options": [
            {"form": "q8_0", "bytes": 68, "error": 1e-5, "kl": 2.5e-7, "measured": true}, {"form": "bf16", "bytes": 128, "error": 0.0}]}]});
    put("sensitivity", "one", table.to_string().as_bytes());
    // One window of three tokens of sixteen, two sketches of one entry each.
    let header = json!({"version": "0", "created": "", "model": "m", "source": "m", "fingerprint": "", "vocab_size": 16, "text": "t",
        "window": 3, "windows": 1, "entries": 8, "kl_floor": 0.0, "tasks": [{"name": "sums", "file": null, "items": 1, "fingerprint": ""}]});
    let header = header.to_string();
    let mut baseline =
        [&b"bmillbsl"[..], &1u32.to_le_bytes(), &(header.len() as u32).to_le_bytes(), header.as_bytes()]
            .concat();
    let shorts =
        |values: &[u16]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
    baseline.extend(shorts(&[1, 2, 3]));
    baseline.extend([1.5f32, 2.5].iter().flat_map(|nll| nll.to_le_bytes()));
    baseline.extend(shorts(&[1, 9, 1, 5, 7, 1, 9, 1, 6, 7]));
    baseline.extend(shorts(&[0, 0, 1]));
    baseline.extend(xxhash_rust::xxh3::xxh3_64(&baseline).to_le_bytes());
    put("baseline", "one", &baseline);
    let entry = |sums: &[f32], counts: &[u64]| ImatrixEntry { sums: sums.to_vec(), counts: counts.to_vec() };
    let imatrix = Imatrix {
        entries: [
            ("blk.0.attn_q.weight".to_owned(), entry(&[3.0, 0.0], &[6])),
            ("blk.1.ffn_up_exps.weight".to_owned(), entry(&[8.0, 4.0, 2.0, 0.0], &[4, 0])),
        ]
        .into(),
        datasets: vec!["text".to_owned()],
        chunk_count: 3,
        chunk_size: 2,
    };
    for (name, form) in [("imatrix.gguf", ImatrixForm::Gguf), ("imatrix.dat", ImatrixForm::Legacy)] {
        imatrix.write(&Target { path: at(name), overwrite: Overwrite::Refuse }, form).unwrap();
        put("imatrix", name, &std::fs::read(at(name)).unwrap());
    }
    put("documents_jsonl", "both", DOCUMENTS.as_bytes());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../text/tests/golden/parquet");
    for name in PARQUET {
        let bytes = std::fs::read(golden.join(name).with_extension("parquet")).unwrap();
        put("documents_parquet", name, &bytes);
    }
    let journal = [
        json!({"begun": {"version": "1"}}),
        json!({"finished": {"tensor": {"name": "model.norm.weight", "relative_error": 0.0}, "error_bits": 0}}),
        json!({"placing": [{"from": "output", "name": "out", "inode": 7}]}),
    ];
    let lines: Vec<String> = journal.iter().map(ToString::to_string).collect();
    put("journal", "begun", format!("{}\n{}\n", lines[0], lines[1]).as_bytes());
    put("journal", "placing", format!("{}\n", lines.join("\n")).as_bytes());
    run(&at("llama"), &preset("prune_50_sparse").unwrap(), &at("sparse"));
    put("folder", "sparse", &files(&at("sparse")));
    for (name, text) in [
        ("gptq", "format = \"gptq\"\n[[step]]\nkind = \"rtn\"\nbits = 8\ngranularity = \"channel\"\n"),
        (
            "awq",
            "format = \"awq\"\n[[step]]\nkind = \"rtn\"\nbits = 4\ngranularity = { group = { size = 16 } }\n\
             zero_point = \"asymmetric\"\ntargets = [\"*.mlp.*.weight\"]\n",
        ),
        (
            "numbers",
            "format = \"compressed-tensors\"\n[[step]]\nkind = \"scaled\"\ntype = \"fp8_block\"\nactivations = \"dynamic\"\n\
             [[step]]\nkind = \"scaled\"\ntype = \"nvfp4\"\ntargets = [\"*.mlp.*.weight\"]\n",
        ),
        (
            "nf4",
            "format = \"bitsandbytes\"\n[[step]]\nkind = \"pad\"\nffn = 64\n[[step]]\nkind = \"scaled\"\n\
             type = \"nf4_double\"\ntargets = [\"*.down_proj.weight\"]\n",
        ),
    ] {
        let recipe = bitmill_pipeline::Recipe::parse(text, Path::new("seed.toml")).unwrap();
        run(&at("llama"), &recipe, &at(name));
        put("folder", name, &files(&at(name)));
        put("recipe", name, text.as_bytes());
    }
}
