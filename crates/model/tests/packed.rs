//! Models with packed weights give the logits of models with the weights that the packed ones stand for.
//!
//! The reference is a plain folder written by the test kit, so names, permuted rows and metadata of the packed one
//! are checked too.

use std::num::NonZeroUsize;
use std::path::Path;

use bitmill_checkpoint::{
    Checkpoint, FolderWriter, GgufTensorSpec, GgufWriter, Overwrite, PackedScheme, Role, RoleKind,
    StTensorSpec, Target, adjacent_pairs_row, gguf_metadata, grouped_specs, packed_config, rope_freqs,
};
use bitmill_kernels::{Compute, Isa, Path as ComputePath, dequantize_rows};
use bitmill_model::{Model, Sequence, Want};
use bitmill_quant::{
    BlockEncoder, Importance, RtnGrid, needs_importance, pack_zero_points, quantize_blocks, quantize_rows,
};
use bitmill_tensor::{
    Bits, BlockType, Dtype, Encoding, FloatType, Granularity, Matrix, WeightData, WeightView, ZeroPoint,
};
use bitmill_testkit::{Tiny, Variant, assert_close, max_abs, max_abs_diff};

/// The weights are the same numbers; only sums over them have another order.
const TOLERANCE: f32 = 1e-5;
const REASON: &str = "the same weights, summed in another order";

/// Logits of two sequences, long enough for products of the many-token kind, then of one more token of the first.
fn logits(path: &Path, compute_path: ComputePath) -> Vec<f32> {
    let model = Model::load(&Checkpoint::open(path).unwrap()).unwrap();
    let compute = Compute::new(Isa::best(), compute_path);
    let tokens: Vec<u32> = (0..90).map(|i| 3 + i * 71 % 280).collect();
    let (mut first, mut second, mut out) = (model.new_cache(), model.new_cache(), Matrix::default());
    let mut batch = [
        Sequence { tokens: &tokens[..70], cache: &mut first, want: Want::All },
        Sequence { tokens: &tokens[70..], cache: &mut second, want: Want::All },
    ];
    model.forward(&compute, &mut batch, &mut out).unwrap();
    let mut found = out.as_slice().to_vec();
    let mut batch = [Sequence { tokens: &[11], cache: &mut first, want: Want::Last }];
    model.forward(&compute, &mut batch, &mut out).unwrap();
    found.extend_from_slice(out.as_slice());
    found
}

fn unpacked(data: WeightData<'_>, shape: &[usize]) -> Vec<f32> {
    let mut out = vec![f32::NAN; shape.iter().product()];
    dequantize_rows(Isa::best(), &WeightView::new(shape[0], shape[1], data).unwrap(), 0, &mut out);
    out
}

/// Writes `source` as GGUF, matrices that divide into blocks of `block` packed so.
fn write_gguf(source: &Tiny, block: BlockType, path: &Path) {
    let folder = source.write();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let config = checkpoint.config();
    let mut specs = Vec::new();
    let mut data = Vec::new();
    for (name, shape, values) in source.tensors() {
        let role = Role::from_canonical_name(&name);
        let (encoding, bytes) = encode(block, &shape, &ordered(source, &name, &shape, &values));
        specs.push(GgufTensorSpec { name: role.gguf_name().unwrap(), shape, encoding });
        data.push(bytes);
    }
    if let Some(factors) = rope_freqs(config) {
        let (shape, encoding) = (vec![factors.len()], Encoding::Float(FloatType::F32));
        specs.push(GgufTensorSpec { name: "rope_freqs.weight".to_owned(), shape, encoding });
        data.push(factors.iter().flat_map(|x| x.to_le_bytes()).collect());
    }
    let target = Target { path: path.to_owned(), overwrite: Overwrite::Refuse };
    let writer = GgufWriter::create(&target, &gguf_metadata(config, "tiny", 0), &specs).unwrap();
    data.iter().enumerate().for_each(|(i, bytes)| writer.write_at(i, 0, bytes).unwrap());
    writer.finish().unwrap();
}

/// The values in the order a GGUF file has them: rows of q and k permuted for the llama family.
fn ordered(source: &Tiny, name: &str, shape: &[usize], values: &[f32]) -> Vec<f32> {
    let kind = Role::from_canonical_name(name).kind;
    let turned = ["llama", "mistral"].iter().any(|family| source.config()["model_type"] == *family);
    if !turned || !matches!(kind, RoleKind::AttnQ | RoleKind::AttnK) {
        return values.to_vec();
    }
    let (cols, head_dim) = (shape[1], source.config()["head_dim"].as_u64().unwrap() as usize);
    let mut out = vec![0.0; values.len()];
    for (row, values) in values.chunks_exact(cols).enumerate() {
        let to = adjacent_pairs_row(row, head_dim) * cols;
        out[to..to + cols].copy_from_slice(values);
    }
    out
}

fn encode(block: BlockType, shape: &[usize], values: &[f32]) -> (Encoding, Vec<u8>) {
    if shape.len() == 1 || !shape[1].is_multiple_of(block.weights()) {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        return (Encoding::Float(FloatType::F32), bytes);
    }
    let encoding = Encoding::Block(block);
    let mut bytes = vec![0; encoding.matrix_bytes(shape[0], shape[1])];
    let columns = vec![1.0; shape[1]];
    let importance = needs_importance(block).then(|| Importance::new(&columns).unwrap());
    let encoder = BlockEncoder { importance, ..BlockEncoder::new(block) };
    quantize_blocks(&encoder, shape[1], values, &mut bytes).unwrap();
    (encoding, bytes)
}

#[test]
fn gguf_blocks_run_as_the_weights_they_stand_for() {
    // A llama's rows lie in another order, which is the same matter for every type.
    let few = [BlockType::Q4_0, BlockType::Q6_K, BlockType::IQ2_XS];
    for (variant, blocks) in [(Variant::Qwen2Wide, BlockType::ALL.as_slice()), (Variant::LlamaWide, &few)] {
        for &block in blocks {
            let folder = tempfile::tempdir().unwrap();
            let packed = folder.path().join("packed.gguf");
            let source = Tiny::new(variant);
            write_gguf(&source, block, &packed);
            let dense = source.write();
            // Rows are rounded one by one, so the order of rows does not matter here.
            let plain = source.write_with(|_, shape, values| {
                if let (Encoding::Block(block), bytes) = encode(block, shape, values) {
                    values.copy_from_slice(&unpacked(WeightData::Block { block, bytes: &bytes }, shape));
                }
            });
            let (found, expected) =
                (logits(&packed, ComputePath::Exact), logits(plain.path(), ComputePath::Exact));
            assert_close(&found, &expected, TOLERANCE, &format!("{block}: {REASON}"));

            let moved = max_abs_diff(&found, &logits(dense.path(), ComputePath::Exact));
            assert!(moved > 1e-3, "{block} changes something");
            // int8 activations lose about as much as 8-bit weights.
            let fast = logits(&packed, ComputePath::Fast);
            assert_close(&fast, &expected, 0.05, &format!("{block}: activations of 8 bits"));
        }
    }
}

#[test]
fn plain_gguf_files_give_the_logits_of_their_folder_whatever_the_rope() {
    // No row of these divides into blocks of 256, so everything stays f32.
    for variant in [
        Variant::Qwen2,
        Variant::Qwen2Tied,
        Variant::Llama,
        Variant::LlamaLlama3,
        Variant::LlamaLinear,
        Variant::Mistral,
        Variant::MistralNull,
        Variant::Qwen2Window,
        Variant::Qwen2Yarn,
        Variant::Qwen3,
        Variant::Qwen3Yarn,
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plain.gguf");
        let source = Tiny::new(variant);
        write_gguf(&source, BlockType::Q6_K, &path);
        let dense = source.write();
        let expected = logits(dense.path(), ComputePath::Exact);
        assert_close(&logits(&path, ComputePath::Exact), &expected, TOLERANCE, variant.name());
    }
}

/// Writes `source` as a `pack-quantized` folder, and returns the plain folder with the values decided.
fn write_grouped(source: &Tiny, grid: RtnGrid, path: &Path) -> tempfile::TempDir {
    let mut specs: Vec<StTensorSpec> = Vec::new();
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let plain = source.write_with(|name, shape, values| {
        if shape.len() == 1 || name.contains("embed_tokens") || name.contains("lm_head") {
            specs.push(StTensorSpec { name: name.to_owned(), shape: shape.to_vec(), dtype: Dtype::F32 });
            parts.push(values.iter().flat_map(|x| x.to_le_bytes()).collect());
            return;
        }
        let (rows, cols) = (shape[0], shape[1]);
        let grouped = grid.layout(cols).unwrap();
        let weight = values.to_vec();
        let out = quantize_rows(&grouped, &weight, cols, values).unwrap();
        specs.extend(grouped_specs(name, rows, cols, &grouped));
        parts.extend([out.packed, out.scales]);
        parts.push([rows as i64, cols as i64].iter().flat_map(|x| x.to_le_bytes()).collect());
        if grouped.zero_point == ZeroPoint::Asymmetric {
            parts.push(pack_zero_points(&out.zero_codes, rows, grouped.groups_per_row(cols), grouped.bits));
        }
    });
    let target = Target { path: path.to_owned(), overwrite: Overwrite::Refuse };
    let writer = FolderWriter::create(&target, &specs, u64::MAX).unwrap();
    parts.iter().enumerate().for_each(|(i, bytes)| writer.write_at(i, 0, bytes).unwrap());
    let scheme = PackedScheme { bits: grid.bits, granularity: grid.granularity, zero_point: grid.zero_point };
    let mut config = source.config();
    config["quantization_config"] = packed_config(&[(scheme, Vec::new())], &["lm_head".to_owned()]);
    writer.add_file("config.json", config.to_string().as_bytes()).unwrap();
    writer.finish().unwrap();
    plain
}

#[test]
fn packed_folders_run_as_the_weights_they_stand_for() {
    use ZeroPoint::{Asymmetric, Symmetric};
    for variant in [Variant::Qwen2, Variant::LlamaWide] {
        for (name, bits, size, zero_point) in [
            ("4-bit g32", 4, Some(32), Symmetric),
            ("4-bit g16 asymmetric", 4, Some(16), Asymmetric),
            ("8-bit g32 asymmetric", 8, Some(32), Asymmetric),
            ("8-bit channel", 8, None, Symmetric),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let packed = folder.path().join("packed");
            let granularity = match size.and_then(NonZeroUsize::new) {
                Some(size) => Granularity::Group { size },
                None => Granularity::Channel,
            };
            let (bits, scale) = (Bits::new(bits).unwrap(), FloatType::BF16);
            let grid = RtnGrid { bits, granularity, zero_point, scale };
            let plain = write_grouped(&Tiny::new(variant), grid, &packed);
            let found = logits(&packed, ComputePath::Exact);
            let expected = logits(plain.path(), ComputePath::Exact);
            assert_close(&found, &expected, TOLERANCE, &format!("{name}: {REASON}"));
            let fast = logits(&packed, ComputePath::Fast);
            assert_close(&fast, &expected, 0.05, &format!("{name}: activations of 8 bits"));
            assert!(max_abs(&found) > 1.0);
        }
    }
}
