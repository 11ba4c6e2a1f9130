//! Folded scales and rotated residual streams: every family gives the logits that it gave.

use std::collections::BTreeMap;

use bitmill_checkpoint::{Checkpoint, FolderWriter, Overwrite, Role, RoleKind, StTensorSpec, Target};
use bitmill_kernels::{Compute, Isa, Path, dequantize_rows};
use bitmill_model::{MadeBy, Model, Residual, Sequence, Want, foldings, residual};
use bitmill_quant::{Rotation, fold};
use bitmill_tensor::{Dtype, Matrix};
use bitmill_testkit::{Variant, assert_close, tiny};

/// The weights of a model in f32, for changing them.
struct Weights {
    checkpoint: Checkpoint,
    of: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    untied: bool,
}

fn name(role: Role) -> String {
    role.canonical_name().unwrap()
}

impl Weights {
    fn read(variant: Variant) -> Self {
        let checkpoint = Checkpoint::open(tiny(variant).path()).unwrap();
        let widened = |info: &bitmill_checkpoint::TensorInfo| {
            let tensor = checkpoint.tensor(&info.name).unwrap();
            let mut values = vec![0.0; info.shape.iter().product()];
            dequantize_rows(Isa::best(), &tensor.view(), 0, &mut values);
            (info.name.clone(), (info.shape.clone(), values))
        };
        let of = checkpoint.tensors().iter().map(widened).collect();
        Self { checkpoint, of, untied: false }
    }

    fn has(&self, role: Role) -> bool {
        self.of.contains_key(&name(role))
    }

    fn get(&mut self, role: Role) -> &mut Vec<f32> {
        let name = name(role);
        &mut self.of.get_mut(&name).unwrap_or_else(|| panic!("no {name}")).1
    }

    /// The logits of the model with these weights.
    fn logits(&self) -> Matrix {
        let folder = tempfile::tempdir().unwrap();
        let target = Target { path: folder.path().join("model"), overwrite: Overwrite::Refuse };
        let spec = |(name, (shape, _)): (&String, &(Vec<usize>, Vec<f32>))| StTensorSpec {
            name: name.clone(),
            shape: shape.clone(),
            dtype: Dtype::F32,
        };
        let specs: Vec<StTensorSpec> = self.of.iter().map(spec).collect();
        let writer = FolderWriter::create(&target, &specs, 1 << 30).unwrap();
        for (index, (_, values)) in self.of.values().enumerate() {
            writer.write_at(index, 0, bytemuck::cast_slice(values)).unwrap();
        }
        let mut config = self.checkpoint.to_config_json().unwrap();
        if self.untied {
            config["tie_word_embeddings"] = false.into();
        }
        writer.add_file("config.json", config.to_string().as_bytes()).unwrap();
        writer.finish().unwrap();
        let model = Model::load(&Checkpoint::open(&target.path).unwrap()).unwrap();
        let tokens: Vec<u32> = (0..14).map(|at| at * 13 % 300 + 1).collect();
        let mut cache = model.new_cache();
        let mut logits = Matrix::default();
        let mut batch = [Sequence { tokens: &tokens, cache: &mut cache, want: Want::All }];
        model.forward(&Compute::new(Isa::best(), Path::Exact), &mut batch, &mut logits).unwrap();
        logits
    }
}

const REASON: &str = "another order of f32 roundings";

/// Scales from 0.4 to 2.3, no two neighbours alike.
fn scales(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|at| 0.4 + ((at * 7 + seed) % 20) as f32 / 10.0).collect()
}

#[test]
fn folded_scales_change_no_logit_in_any_family() {
    for variant in Variant::ALL {
        let mut weights = Weights::read(variant);
        let before = weights.logits();
        let config = weights.checkpoint.config().clone();
        for layer in 0..config.n_layers {
            for (seed, folding) in foldings(&config, layer).into_iter().enumerate() {
                let of_columns = match folding.made_by {
                    MadeBy::Norm(role) => {
                        let norm = weights.get(role);
                        let mut scales = scales(norm.len(), seed);
                        fold::into_norm(norm, &mut scales, bitmill_tensor::FloatType::F32);
                        scales
                    }
                    MadeBy::Matrix { weight, bias, features_for_each_row } => {
                        let rows = weight.expected_shape(&config).unwrap()[0];
                        let of_rows = scales(rows, seed);
                        fold::divide_rows(weights.get(weight), &of_rows);
                        if let Some(bias) = bias.filter(|bias| weights.has(*bias)) {
                            fold::divide_rows(weights.get(bias), &of_rows);
                        }
                        if features_for_each_row == 1 {
                            of_rows
                        } else {
                            let (heads, kv_heads) = (config.n_heads, config.n_kv_heads);
                            fold::Sharing::of_heads(heads, kv_heads, config.head_dim).spread(&of_rows)
                        }
                    }
                };
                for role in folding.read_by {
                    fold::multiply_columns(weights.get(role), &of_columns);
                }
            }
        }
        let after = weights.logits();
        assert_ne!(after.as_slice(), before.as_slice(), "{}: nothing was folded", variant.name());
        assert_close(after.as_slice(), before.as_slice(), 1e-4, &format!("{}: {REASON}", variant.name()));
    }
}

#[test]
fn a_rotated_residual_stream_changes_no_logit_in_any_family() {
    for variant in Variant::ALL {
        let mut weights = Weights::read(variant);
        let before = weights.logits();
        let config = weights.checkpoint.config().clone();
        let output = Role::outside(RoleKind::Output);
        if !weights.has(output) {
            let embedding = weights.of[&name(Role::outside(RoleKind::TokenEmbedding))].clone();
            weights.of.insert(name(output), embedding);
            weights.untied = true;
        }
        // Norms first: their weights go into the columns of what reads them.
        let mut norms = vec![(Role::outside(RoleKind::OutputNorm), vec![output])];
        for layer in 0..config.n_layers {
            for folding in foldings(&config, layer) {
                if let MadeBy::Norm(role) = folding.made_by {
                    norms.push((role, folding.read_by));
                }
            }
        }
        for (norm, read_by) in norms {
            let norm = std::mem::replace(weights.get(norm), vec![1.0; config.hidden_size]);
            for role in read_by {
                fold::multiply_columns(weights.get(role), &norm);
            }
        }
        let rotation = Rotation::new(config.hidden_size, 4);
        assert!(rotation.block() > 1);
        for (name, (_, values)) in &mut weights.of {
            match residual(Role::from_canonical_name(name).kind) {
                Some(Residual::Rows | Residual::Read) => rotation.rotate_rows(values),
                Some(Residual::Written) => rotation.rotate_columns(values),
                None => {}
            }
        }
        let after = weights.logits();
        assert_ne!(after.as_slice(), before.as_slice(), "{}: nothing was rotated", variant.name());
        assert_close(after.as_slice(), before.as_slice(), 2e-4, &format!("{}: {REASON}", variant.name()));
    }
}
