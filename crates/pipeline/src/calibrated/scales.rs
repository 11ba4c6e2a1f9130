//! Scales by which runtimes round to 8-bit floats: of their cache of keys and values, and of what matrices multiply. What a layer
//! had of the calibration tokens, as it was compressed, reaches the largest number.
//!
//! They follow from a layer's run alone, as its matrices do: a run that was killed runs the layer again that it was in, and finds the same.

use bitmill_calib::Cached;
use bitmill_checkpoint::RoleKind;
use bitmill_tensor::{Element, FloatType};

use super::Calibrated;
use super::tensor::MethodRecord;
use crate::Error;

/// What something is divided by, as it is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredScale {
    pub value: f32,
    pub float: FloatType,
}

/// What runtimes divide by that have a tensor, where that is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RuntimeScales {
    /// What the matrix multiplies.
    pub inputs: Option<StoredScale>,
    /// The keys or values that it makes, in a cache.
    pub cache: Option<StoredScale>,
}

impl Calibrated<'_> {
    /// What runtimes divide by that have planned tensor `index`, whose layer has just run and whose record is `method`.
    ///
    /// # Errors
    /// [`Error::InputRange`] if a scale of its inputs is asked for that they do not give.
    pub fn runtime_scales(
        &self,
        index: usize,
        method: Option<&MethodRecord>,
    ) -> Result<RuntimeScales, Error> {
        let planned = &self.plan.tensors[index];
        let largest = method.and_then(|method| method.largest_input);
        let inputs = match (planned.has_input_scale(), largest) {
            (false, _) => None,
            (true, Some(largest)) => Some(self.scale(largest as f32, Element::Fp8.reach())),
            (true, None) => return Err(Error::InputRange { tensor: planned.name.clone() }),
        };
        Ok(RuntimeScales { inputs, cache: self.cache_scale(index) })
    }

    /// What brings `reach` to the `largest` number, as in compressed-tensors.
    fn scale(&self, reach: f32, largest: f32) -> StoredScale {
        let float = self.checkpoint.config().dtype;
        let scale = float.round(reach / largest);
        StoredScale { value: if scale == 0.0 { epsilon(float) } else { scale }, float }
    }

    /// What the keys or values of planned tensor `index`, whose layer has just run, are divided by in a cache, if it makes any and the
    /// recipe asks: their largest magnitude becomes the largest number.
    fn cache_scale(&self, index: usize) -> Option<StoredScale> {
        let largest = self.plan.recipe.kv_cache?.number.largest();
        let Cached { keys, values } = self.cached?;
        let reach = match self.plan.tensors[index].role.kind {
            RoleKind::AttnK => keys,
            RoleKind::AttnV => values,
            _ => return None,
        };
        Some(self.scale(reach, largest))
    }
}

/// What compressed-tensors divides by where there is nothing but zeros: the least that a float adds to 1.
fn epsilon(float: FloatType) -> f32 {
    match float {
        FloatType::F32 => f32::EPSILON,
        FloatType::F16 => 1.0 / 1024.0,
        FloatType::BF16 => 1.0 / 128.0,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bitmill_checkpoint::{Checkpoint, Overwrite, Role};
    use bitmill_kernels::{Compute, Isa, Path as ComputePath};
    use bitmill_model::Model;
    use bitmill_tensor::Matrix;
    use bitmill_testkit::{Float, Tiny, Variant};

    use super::*;
    use crate::{Plan, PlanOptions, Recipe, Silent, compress};

    const GPTQ: &str = "[[step]]\nkind = \"gptq\"\nbits = 4\ngranularity = { group = { size = 32 } }\n";

    /// Writes the output of `recipe`, whose size is as planned.
    fn written(checkpoint: &Checkpoint, recipe: &str, path: &Path) -> Plan {
        let recipe = Recipe::parse(recipe, Path::new("test.toml")).unwrap();
        let plan = Plan::new(checkpoint, &recipe, &PlanOptions::default()).unwrap();
        let record = compress(checkpoint, &plan, path, Overwrite::Refuse, &Silent).unwrap();
        let is_planned = |file: &Path| !file.ends_with("bitmill.json") && !file.ends_with("bitmill.md");
        let files = record.written.files.iter().filter(|(file, _)| is_planned(file));
        assert_eq!(files.map(|(_, bytes)| bytes).sum::<u64>(), plan.output_bytes, "sizes are exact");
        plan
    }

    /// The calibration windows before the first layer of `model`.
    fn entered(model: &Model, compute: &Compute, plan: &Plan) -> bitmill_model::Stage {
        let material = plan.material.as_ref().unwrap();
        let texts: Vec<&[u32]> = material.calibration.windows.iter().take(material.windows()).collect();
        model.enter(compute, &texts).unwrap()
    }

    fn largest(x: &Matrix) -> f32 {
        x.as_slice().iter().fold(0f32, |most, x| most.max(x.abs()))
    }

    /// By the output at `path` itself: the largest keys and values of each layer, as scales.
    fn reached(path: &Path, plan: &Plan) -> Vec<(usize, RoleKind, f32)> {
        let checkpoint = Checkpoint::open(path).unwrap();
        let model = Model::load(&checkpoint).unwrap();
        let compute = Compute::new(Isa::best(), ComputePath::Exact);
        let mut stage = entered(&model, &compute, plan);
        let mut found = Vec::new();
        for layer in 0..model.config().n_layers {
            let mut probe = bitmill_model::Stage::default();
            probe.copy_from(&stage);
            model.begin_layer(&compute, &mut probe);
            model.attend_layer(&compute, &mut probe);
            for (of, x) in [(RoleKind::AttnK, probe.keys()), (RoleKind::AttnV, probe.values())] {
                found.push((layer, of, checkpoint.config().dtype.round(largest(x) / 448.0)));
            }
            model.pass_layer(&compute, &mut stage, |_, _, _| ());
        }
        found
    }

    #[test]
    fn scales_are_of_what_the_output_itself_caches() {
        let awq = "[[step]]\nkind = \"awq\"\n".to_owned() + GPTQ;
        let learned = GPTQ.replace("\"gptq\"", "\"learned\"\niterations = 3").replace("bits = 4", "bits = 3");
        let some = GPTQ.replace("bits", "targets = [\"*.down_proj.weight\"]\nbits");
        let turned = "[[step]]\nkind = \"rotate\"\nvalues = true\n".to_owned() + GPTQ;
        let text = tempfile::tempdir().unwrap();
        let source = text.path().join("text.txt");
        let words = ["the", "low", "lower", "newest", "widest", "new", "wide", "a", "123", "你好"];
        let line: Vec<&str> = (0..2000).map(|at| words[at * at * 7 % 11 % words.len()]).collect();
        std::fs::write(&source, line.join(" ")).unwrap();
        for (variant, more, steps) in [
            (Variant::Llama, "", GPTQ),
            (Variant::Qwen2, "memory = \"100000B\"", GPTQ),
            (Variant::Qwen3, "", some.as_str()),
            (Variant::Qwen2, "", awq.as_str()),
            (Variant::Llama, "", learned.as_str()),
            (Variant::Llama, "", turned.as_str()),
        ] {
            let folder = Tiny::new(variant).float(Float::F32).write();
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let recipe = format!(
                "format = \"compressed-tensors\"\n[kv_cache]\ntype = \"fp8\"\n[calibration]\nsource = {source:?}\nsamples = 6\n\
                 length = 32\nheld_out = 2\nstates = \"f32\"\n{more}\n{steps}"
            );
            let path = text.path().join(format!("{}-{}", variant.name(), steps.len() + more.len()));
            let plan = written(&checkpoint, &recipe, &path);
            let written = Checkpoint::open(&path).unwrap();
            let mut stored =
                written.cache_scales().iter().map(|scale| (scale.layer, scale.of, scale.values[0]));
            for expected in reached(&path, &plan) {
                let found = stored.next().unwrap();
                assert_eq!((found.0, found.1), (expected.0, expected.1), "{variant:?}");
                // Rounded to nothing else than what the run itself met.
                let close = (found.2 / expected.2 - 1.0).abs() < 1e-6;
                assert!(close, "{variant:?}, {more} {steps}: {found:?} where {expected:?} is expected");
            }
            assert_eq!(stored.next(), None);
        }
    }

    #[test]
    fn scales_of_inputs_are_of_what_the_output_itself_multiplies() {
        let smooth = "[[step]]\nkind = \"smooth\"\n";
        let text = tempfile::tempdir().unwrap();
        // In batches, statistics are of the layer as it is, on what layers before it became.
        for (variant, before, memory, most) in [
            (Variant::Qwen2, "", "", 1e-4),
            (Variant::Llama, smooth, "", 1e-4),
            (Variant::Qwen3, "", "memory = \"100000B\"\n", 0.05),
        ] {
            let folder = Tiny::new(variant).float(Float::F32).write();
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let recipe = format!(
                "format = \"compressed-tensors\"\n[calibration]\nsamples = 6\nlength = 32\nheld_out = 2\nstates = \"f32\"\n\
                 {memory}{before}[[step]]\nkind = \"scaled\"\ntype = \"fp8\"\nactivations = \"static\"\n"
            );
            let path = text.path().join(variant.name());
            let plan = written(&checkpoint, &recipe, &path);

            let written = Checkpoint::open(&path).unwrap();
            let model = Model::load(&written).unwrap();
            let compute = Compute::new(Isa::best(), ComputePath::Exact);
            let mut stage = entered(&model, &compute, &plan);
            let mut seen = 0;
            for layer in 0..model.config().n_layers {
                model.pass_layer(&compute, &mut stage, |kind, _, x| {
                    let role = Role { kind, layer: Some(layer), expert: None };
                    let name = role.canonical_name().unwrap();
                    let found = written.input_scales().iter().find(|scale| scale.name == name).unwrap();
                    let expected = largest(x) / 448.0;
                    let close = (found.value / expected - 1.0).abs() < most;
                    assert!(close, "{variant:?}, {name}: {found:?} where {expected} is expected");
                    seen += 1;
                });
            }
            assert_eq!(seen, written.input_scales().len());
        }
    }
}
