//! Which layers go, and what the model is called and configured without them.

use std::path::Path;

use bitmill_checkpoint::{Checkpoint, ModelConfig, Role};
use bitmill_kernels::{Compute, Isa, Path as ComputePath};
use bitmill_model::{Cache, Model, Sequence, Want};
use bitmill_prune::{BlockInfluence, least_influential};
use bitmill_text::{Tokenizer, Windows};
use serde::Serialize;
use serde_json::Value;

use crate::pruning::DepthStep;
use crate::{Error, embedded};

/// Tokens of a calibration window at most, and windows: all run together, so that each layer is read once.
const WINDOW: usize = 256;
const WINDOWS: usize = 8;

/// Layers that a plan takes away.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Depth {
    /// Layers of the source.
    pub n_layers: usize,
    /// Those that go, counted from 0 in the source.
    pub removed: Vec<usize>,
    /// What the choice follows from; absent where the recipe names the layers.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub influence: Option<Influence>,
}

/// Block influence of every layer of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Influence {
    /// `1 −` the mean cosine between what enters a layer and what leaves it, for each layer of the source.
    pub influence: Vec<f64>,
    /// The text that it was measured on.
    pub calibration: String,
    /// Tokens of it.
    pub calibration_tokens: usize,
}

impl Depth {
    /// What `step` takes away from `checkpoint`; runs the model where the step asks for layers of least influence.
    pub(crate) fn resolve(checkpoint: &Checkpoint, recipe: &str, step: &DepthStep) -> Result<Self, Error> {
        let n_layers = checkpoint.config().n_layers;
        let within = |removed: usize| match removed {
            0 => Err(Error::DepthRemoves { recipe: recipe.into(), removed, n_layers }),
            _ if removed >= n_layers => Err(Error::DepthRemoves { recipe: recipe.into(), removed, n_layers }),
            _ => Ok(removed),
        };
        match step {
            DepthStep::Layers(layers) => {
                within(layers.len())?;
                match layers.iter().find(|layer| **layer >= n_layers) {
                    Some(&layer) => Err(Error::NoSuchLayer { recipe: recipe.into(), layer, n_layers }),
                    None => Ok(Self { n_layers, removed: layers.clone(), influence: None }),
                }
            }
            DepthStep::Least { remove, calibration } => {
                let removed = within((remove * n_layers as f64).round() as usize)?;
                let measured = Influence::measure(checkpoint, calibration.as_deref())?;
                let removed = least_influential(&measured.influence, removed);
                Ok(Self { n_layers, removed, influence: Some(measured) })
            }
        }
    }

    /// Activations that measuring took, in bytes.
    pub(crate) fn peak_bytes(&self, config: &ModelConfig) -> u64 {
        let tokens = self.influence.as_ref().map_or(0, |influence| influence.calibration_tokens);
        // Hidden states as they enter, are normed, updated and leave; q and what attention gives; k and v, here and in
        // the caches; gate and up.
        let layer_widths = 4 * config.hidden_size + 2 * config.q_width() + 2 * config.kv_width();
        let caches = 2 * config.kv_width() * config.n_layers;
        4 * (tokens * (layer_widths + caches + 2 * config.intermediate_size)) as u64
    }

    /// `1 of 4 layers removed: 1`.
    pub(crate) fn summary(&self) -> String {
        let removed = self.removed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        format!("{} of {} layers removed: {removed}", self.removed.len(), self.n_layers)
    }

    /// The layers for people, and the influence of each where it was measured.
    pub(crate) fn to_text(&self) -> String {
        let removed = self.summary();
        let Some(Influence { influence, calibration, calibration_tokens }) = &self.influence else {
            return format!("{removed}\n");
        };
        let figures: Vec<String> = influence
            .iter()
            .enumerate()
            .map(|(layer, figure)| {
                format!("{figure:.3}{}", if self.removed.contains(&layer) { "*" } else { "" })
            })
            .collect();
        format!(
            "{removed}\nblock influence over {calibration_tokens} tokens of the {calibration}, * removed: {}\n",
            figures.join(" ")
        )
    }
}

impl Influence {
    /// Runs the model of `checkpoint` over calibration tokens.
    fn measure(checkpoint: &Checkpoint, calibration: Option<&Path>) -> Result<Self, Error> {
        let tokenizer = Tokenizer::from_checkpoint(checkpoint)?;
        let (name, text) = embedded::calibration(calibration, &tokenizer)?;
        let model = Model::load(checkpoint)?;
        let window = WINDOW.min(model.config().max_positions);
        let windows = Windows::of_text(&tokenizer, &text, window, Some(WINDOWS))?;
        if windows.is_empty() {
            let tokens = tokenizer.encode_document(&text)?.len();
            return Err(Error::ShortText { text: name, tokens, window });
        }
        let mut influence = BlockInfluence::new(model.config().n_layers);
        let mut caches: Vec<Cache> = windows.iter().map(|_| model.new_cache()).collect();
        let mut batch: Vec<Sequence<'_>> = windows
            .iter()
            .zip(&mut caches)
            .map(|(tokens, cache)| Sequence { tokens, cache, want: Want::All })
            .collect();
        let compute = Compute::new(Isa::best(), ComputePath::Exact);
        model.observe_layers(&compute, &mut batch, |layer, entering, leaving| {
            influence.add(layer, entering, leaving);
        })?;
        model.release();
        Ok(Self {
            influence: influence.finish(),
            calibration: name,
            calibration_tokens: windows.tokens.len(),
        })
    }
}

/// The output's layers by those of the source.
#[derive(Debug)]
pub(crate) struct Cut {
    /// The new number of each layer of the source; `None`: it goes.
    numbers: Vec<Option<usize>>,
    /// The shape of the output.
    pub(crate) config: ModelConfig,
}

impl Cut {
    /// `depth`, or with `None` every layer as it is.
    pub(crate) fn new(config: &ModelConfig, depth: Option<&Depth>) -> Self {
        let mut next = 0;
        let mut number = |layer: usize| {
            if depth.is_some_and(|depth| depth.removed.contains(&layer)) {
                return None;
            }
            next += 1;
            Some(next - 1)
        };
        let numbers: Vec<Option<usize>> = (0..config.n_layers).map(&mut number).collect();
        let mut config = ModelConfig { n_layers: next, ..config.clone() };
        if let Some(window) = &mut config.window {
            let mut kept = numbers.iter().map(Option::is_some);
            window.layers.retain(|_| kept.next().unwrap_or(false));
        }
        if let Some(experts) = &mut config.experts {
            experts.dense_layers = experts.dense_layers.iter().filter_map(|&layer| numbers[layer]).collect();
        }
        Self { numbers, config }
    }

    /// What `role` is in the output; `None` if its layer goes.
    pub(crate) fn role(&self, role: Role) -> Option<Role> {
        match role.layer {
            None => Some(role),
            Some(layer) => Some(Role { layer: Some(self.numbers.get(layer).copied()??), ..role }),
        }
    }

    /// Makes a config.json of the source that of the output.
    pub(crate) fn rewrite(&self, config: &mut Value) {
        let Some(fields) = config.as_object_mut() else { return };
        if self.numbers.iter().all(Option::is_some) {
            return;
        }
        fields.insert("num_hidden_layers".into(), self.config.n_layers.into());
        if let Some(Value::Array(types)) = fields.get_mut("layer_types") {
            let mut layer = 0..;
            types.retain(|_| {
                layer.next().and_then(|layer| self.numbers.get(layer)).is_some_and(Option::is_some)
            });
        }
        // The layers from this one on attend to a window only.
        if let Some(first) = fields.get("max_window_layers").and_then(Value::as_u64) {
            let first = usize::try_from(first).unwrap_or(usize::MAX).min(self.numbers.len());
            let kept = self.numbers[..first].iter().flatten().count();
            fields.insert("max_window_layers".into(), kept.into());
        }
        // Which layers have experts follows from their numbers, so those that have none are named.
        if let Some(experts) = &self.config.experts {
            fields.insert("decoder_sparse_step".into(), 1.into());
            fields.insert("mlp_only_layers".into(), experts.dense_layers.clone().into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitmill_checkpoint::{Experts, RoleKind};
    use serde_json::json;

    fn cut(removed: &[usize]) -> Cut {
        let config = ModelConfig { n_layers: 5, ..embedded::checkpoint().unwrap().config().clone() };
        Cut::new(&config, Some(&Depth { n_layers: 5, removed: removed.into(), influence: None }))
    }

    #[test]
    fn layers_that_stay_are_counted_anew() {
        let cut = cut(&[1, 3]);
        let role = |layer| cut.role(Role::in_layer(layer, RoleKind::AttnQ)).and_then(|role| role.layer);
        assert_eq!([0, 1, 2, 3, 4].map(role), [Some(0), None, Some(1), None, Some(2)]);
        assert_eq!(cut.config.n_layers, 3);
        assert_eq!(cut.role(Role::outside(RoleKind::Output)), Some(Role::outside(RoleKind::Output)));
    }

    #[test]
    fn layers_without_experts_keep_their_kind() {
        let dense_layers = vec![0, 1, 2, 4];
        let experts =
            Experts { count: 8, used: 2, width: 64, shared_width: None, normalised: true, dense_layers };
        let config = embedded::checkpoint().unwrap().config().clone();
        let config = ModelConfig { n_layers: 5, experts: Some(experts), ..config };
        let cut = Cut::new(&config, Some(&Depth { n_layers: 5, removed: vec![1], influence: None }));
        assert_eq!(cut.config.experts.as_ref().unwrap().dense_layers, [0, 1, 3]);
        assert!(cut.config.experts_in(2).is_some() && cut.config.experts_in(3).is_none());
        let mut json = json!({ "num_hidden_layers": 5, "decoder_sparse_step": 4, "mlp_only_layers": [4] });
        cut.rewrite(&mut json);
        let expected =
            json!({ "num_hidden_layers": 4, "decoder_sparse_step": 1, "mlp_only_layers": [0, 1, 3] });
        assert_eq!(json, expected);
    }

    #[test]
    fn config_json_loses_what_is_counted_by_layer() {
        let mut config = json!({
            "num_hidden_layers": 5,
            "layer_types": ["a", "b", "c", "d", "e"],
            "max_window_layers": 4,
            "hidden_size": 7,
        });
        cut(&[1, 3]).rewrite(&mut config);
        let expected = json!({
            "num_hidden_layers": 3,
            "layer_types": ["a", "c", "e"],
            "max_window_layers": 2,
            "hidden_size": 7,
        });
        assert_eq!(config, expected);
        let mut beyond = json!({ "num_hidden_layers": 5, "max_window_layers": 28 });
        cut(&[0]).rewrite(&mut beyond);
        assert_eq!(beyond, json!({ "num_hidden_layers": 4, "max_window_layers": 4 }));
    }
}
