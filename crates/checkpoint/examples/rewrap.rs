//! Copies the weights of a checkpoint, as they are, into a GGUF file and into a Hugging Face folder.
//!
//! `cargo run -p bitmill-checkpoint --example rewrap -- MODEL OUT_FOLDER` writes `OUT_FOLDER/model.gguf` (if every
//! tensor is one that GGUF can hold) and `OUT_FOLDER/folder`. `tools/checks/checkpoint_files.py` opens both with
//! the formats' own libraries.

use std::error::Error;
use std::path::{Path, PathBuf};

use bitmill_checkpoint::{
    Checkpoint, FolderWriter, Format, GgufTensorSpec, GgufWriter, Overwrite, Pairing, RoleKind, StTensorSpec,
    Target, TensorInfo, adjacent_pairs_row, check_gguf, gguf_metadata, grouped_specs, rope_freqs,
};
use bitmill_tensor::{Encoding, FloatType, WeightData};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, out] = arguments.as_slice() else {
        return Err("usage: rewrap MODEL OUT_FOLDER".into());
    };
    let checkpoint = Checkpoint::open(model)?;
    std::fs::create_dir_all(out)?;
    if checkpoint.format() == Format::HuggingFace {
        write_folder(&checkpoint, &out.join("folder"))?;
        if !checkpoint.is_quantized() {
            write_gguf(&checkpoint, &out.join("model.gguf"))?;
        }
    }
    Ok(())
}

fn write_gguf(checkpoint: &Checkpoint, path: &Path) -> Result<(), Box<dyn Error>> {
    let config = checkpoint.config();
    check_gguf(&checkpoint.name(), config)?;
    let spec = |info: &TensorInfo| {
        // Norms and biases stay f32.
        let encoding = if info.role.is_matrix() { info.encoding } else { Encoding::Float(FloatType::F32) };
        Some(GgufTensorSpec { name: info.role.gguf_name()?, shape: info.shape.clone(), encoding })
    };
    let infos: Vec<&TensorInfo> = checkpoint.tensors().iter().filter(|info| spec(info).is_some()).collect();
    let mut specs: Vec<GgufTensorSpec> = infos.iter().filter_map(|info| spec(info)).collect();
    let freqs = rope_freqs(config);
    if let Some(freqs) = &freqs {
        let encoding = Encoding::Float(FloatType::F32);
        specs.push(GgufTensorSpec {
            name: "rope_freqs.weight".to_owned(),
            shape: vec![freqs.len()],
            encoding,
        });
    }
    let target = Target { path: path.to_owned(), overwrite: Overwrite::Force };
    let writer = GgufWriter::create(&target, &gguf_metadata(config, &checkpoint.name(), 32), &specs)?;
    for (index, info) in infos.iter().enumerate() {
        let tensor = checkpoint.tensor(&info.name)?;
        let WeightData::Float { float, bytes } = tensor.view().data() else {
            continue;
        };
        use RoleKind::{AttnK, AttnKBias, AttnQ, AttnQBias};
        let permuted = config.family.gguf_pairing() == Pairing::Adjacent
            && matches!(info.role.kind, AttnQ | AttnQBias | AttnK | AttnKBias);
        let rows = if info.shape.len() == 1 { info.shape[0] } else { tensor.view().out_features() };
        for (row, bytes) in bytes.chunks(bytes.len() / rows).enumerate() {
            let to = if permuted { adjacent_pairs_row(row, config.head_dim) } else { row };
            let mut wide = Vec::new();
            let bytes = if info.role.is_matrix() {
                bytes
            } else {
                (0..bytes.len() / float.size_bytes())
                    .for_each(|i| FloatType::F32.push(float.read(bytes, i), &mut wide));
                &wide
            };
            writer.write_at(index, (to * bytes.len()) as u64, bytes)?;
        }
        tensor.release();
    }
    if let Some(freqs) = freqs {
        let bytes: Vec<u8> = freqs.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        writer.write_at(specs.len() - 1, 0, &bytes)?;
    }
    writer.finish()?;
    Ok(())
}

fn write_folder(checkpoint: &Checkpoint, path: &Path) -> Result<(), Box<dyn Error>> {
    let mut specs = Vec::new();
    for info in checkpoint.tensors() {
        match info.encoding {
            Encoding::Float(float) => {
                specs.push(StTensorSpec {
                    name: info.name.clone(),
                    shape: info.shape.clone(),
                    dtype: float.into(),
                });
            }
            Encoding::Grouped(grouped) => {
                specs.extend(grouped_specs(&info.name, info.shape[0], info.shape[1], &grouped))
            }
            Encoding::Block(_) | Encoding::Scaled(_) | Encoding::Sparse { .. } => {
                return Err("floats and groups alone".into());
            }
        }
    }
    let target = Target { path: path.to_owned(), overwrite: Overwrite::Force };
    // A quarter of the model a shard, so that there are several.
    let all: u64 = specs.iter().map(StTensorSpec::bytes).sum();
    let writer = FolderWriter::create(&target, &specs, all / 4)?;
    let mut index = 0;
    for info in checkpoint.tensors() {
        let tensor = checkpoint.tensor(&info.name)?;
        match tensor.view().data() {
            WeightData::Float { bytes, .. } | WeightData::Block { bytes, .. } => {
                writer.write_at(index, 0, bytes)?;
                index += 1;
            }
            WeightData::Grouped { packed, scales, zero_points, .. } => {
                let shape: Vec<u8> =
                    info.shape.iter().flat_map(|&size| (size as i64).to_le_bytes()).collect();
                for part in [packed, scales, &shape] {
                    writer.write_at(index, 0, part)?;
                    index += 1;
                }
                if !zero_points.is_empty() {
                    writer.write_at(index, 0, zero_points)?;
                    index += 1;
                }
            }
            WeightData::Columns { .. } => return Err("groups row by row alone".into()),
            WeightData::Scaled { .. } | WeightData::Sparse { .. } => unreachable!("refused above"),
        }
        tensor.release();
    }
    let config = checkpoint.config_json().ok_or("a folder has a config.json")?;
    writer.add_file("config.json", format!("{config:#}\n").as_bytes())?;
    for (name, bytes) in checkpoint.other_files() {
        writer.add_file(&name, &bytes)?;
    }
    writer.finish()?;
    Ok(())
}
