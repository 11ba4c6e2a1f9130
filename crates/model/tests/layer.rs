//! The backward pass of a layer: against torch's (`tests/golden/layer.json` says which, `tools/golden/layer.py` makes it), and
//! its forward pass against that of the model.

use bitmill_checkpoint::{Checkpoint, RoleKind};
use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::{Error, LayerGradients, LayerRun, Model, PlainLayer, Reach, Stage};
use bitmill_tensor::Matrix;
use bitmill_testkit::{Golden, Variant, assert_close, tiny};

const REASON: &str = "another order of f32 sums";
const TOLERANCE: f32 = 1e-4;

const MATRICES: [(RoleKind, &str); 7] = [
    (RoleKind::AttnQ, "self_attn.q_proj.weight"),
    (RoleKind::AttnK, "self_attn.k_proj.weight"),
    (RoleKind::AttnV, "self_attn.v_proj.weight"),
    (RoleKind::AttnOutput, "self_attn.o_proj.weight"),
    (RoleKind::FfnGate, "mlp.gate_proj.weight"),
    (RoleKind::FfnUp, "mlp.up_proj.weight"),
    (RoleKind::FfnDown, "mlp.down_proj.weight"),
];
const VECTORS: [(RoleKind, &str); 7] = [
    (RoleKind::AttnNorm, "input_layernorm.weight"),
    (RoleKind::FfnNorm, "post_attention_layernorm.weight"),
    (RoleKind::AttnQBias, "self_attn.q_proj.bias"),
    (RoleKind::AttnKBias, "self_attn.k_proj.bias"),
    (RoleKind::AttnVBias, "self_attn.v_proj.bias"),
    (RoleKind::AttnQNorm, "self_attn.q_norm.weight"),
    (RoleKind::AttnKNorm, "self_attn.k_norm.weight"),
];

fn exact() -> Compute {
    Compute::new(Isa::best(), Path::Exact)
}

fn load(variant: Variant) -> Model {
    Model::load(&Checkpoint::open(tiny(variant).path()).unwrap()).unwrap()
}

/// Two texts of 24 tokens before layer `layer`, their states replaced by `x`.
fn stage(model: &Model, layer: usize, x: &[f32]) -> Stage {
    let tokens: Vec<u32> = (3..27).collect();
    let mut stage = model.enter(&exact(), &[&tokens, &tokens]).unwrap();
    stage.stand_before(layer, Matrix::from_vec(48, model.config().hidden_size, x.to_vec()));
    stage
}

fn every_seventh(values: &[f32]) -> Vec<f32> {
    values.iter().copied().step_by(7).collect()
}

/// The output, what `dy` says of the input, and of the parameters.
fn gradients(layer: &PlainLayer, stage: &Stage, dy: &Matrix) -> (Matrix, Matrix, LayerGradients) {
    let (mut run, mut gradients) = (LayerRun::default(), LayerGradients::new(layer));
    layer.forward(&exact(), stage, &mut run);
    let output = run.output().clone();
    layer.backward(&exact(), stage, &mut run, dy, Reach::Input, &mut gradients);
    (output, run.of_input().clone(), gradients)
}

#[test]
fn a_layers_gradients_are_those_of_torch() {
    let golden = Golden::open("tests/golden/layer.safetensors");
    for variant in [
        Variant::Qwen2,
        Variant::Qwen2Window,
        Variant::Qwen3,
        Variant::LlamaLlama3,
        Variant::Mistral,
        Variant::Qwen3Yarn,
    ] {
        let name = variant.name();
        let expected = |what: &str| golden.f32(&format!("{name}/{what}"));
        let model = load(variant);
        let layer = model.plain_layer(&exact(), 1).unwrap();
        let stage = stage(&model, 1, &expected("x"));
        let (output, dx, gradients) = gradients(&layer, &stage, &Matrix::from_vec(48, 64, expected("dy")));
        let close = |found: &[f32], what: &str| {
            let reason = format!("{name}, {what}: {REASON}");
            assert_close(&every_seventh(found), &expected(what), TOLERANCE, &reason);
        };
        close(output.as_slice(), "output");
        close(dx.as_slice(), "dx");
        for (kind, what) in MATRICES {
            close(gradients.matrix(kind).unwrap().as_slice(), what);
        }
        for (kind, what) in VECTORS {
            let has_it = golden.names().any(|other| other == format!("{name}/{what}"));
            assert_eq!(gradients.vector(kind).is_some(), has_it, "{name}: {what}");
            if let Some(found) = gradients.vector(kind) {
                close(found, what);
            }
        }
    }
}

#[test]
fn a_layer_makes_of_states_what_the_model_does_in_every_family() {
    for variant in Variant::ALL {
        let model = load(variant);
        let x = bitmill_testkit::noise("states", 48 * model.config().hidden_size);
        for index in 0..2 {
            let mut stage = stage(&model, index, &x);
            let layer = match model.plain_layer(&exact(), index) {
                Ok(layer) => layer,
                Err(error) => {
                    assert!(matches!(error, Error::HasExperts { layer } if layer == index), "{error}");
                    continue;
                }
            };
            let mut run = LayerRun::default();
            layer.forward(&exact(), &stage, &mut run);
            model.pass_layer(&exact(), &mut stage, |_, _, _| ());
            let reason = format!("{}, layer {index}: {REASON}", variant.name());
            assert_close(run.output().as_slice(), stage.hidden().as_slice(), 1e-5, &reason);
        }
    }
}

/// Log-n attention and a KV head for every head have no golden layer: differences of the loss along some directions.
#[test]
fn gradients_are_slopes_along_directions_in_every_family() {
    for variant in [Variant::QwenV1Long, Variant::Llama2, Variant::LlamaDynamic, Variant::Qwen2Wide] {
        let model = load(variant);
        let width = model.config().hidden_size;
        let x = bitmill_testkit::noise("states", 48 * width);
        let dy = Matrix::from_vec(48, width, bitmill_testkit::noise("dy", 48 * width));
        let layer = model.plain_layer(&exact(), 0).unwrap();
        let (_, dx, found) = gradients(&layer, &stage(&model, 0, &x), &dy);
        let loss = |layer: &PlainLayer, x: &[f32]| {
            let mut run = LayerRun::default();
            layer.forward(&exact(), &stage(&model, 0, x), &mut run);
            let terms = run.output().as_slice().iter().zip(dy.as_slice());
            terms.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let check = |what: &str, gradient: &[f32], at: &dyn Fn(f32, &[f32]) -> f64| {
            let direction = bitmill_testkit::noise(what, gradient.len());
            let along: f64 =
                gradient.iter().zip(&direction).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let step = 1.0 / 1024.0;
            let slope = (at(step, &direction) - at(-step, &direction)) / f64::from(2.0 * step);
            let size: f64 = gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
            let name = variant.name();
            assert!((slope - along).abs() < 1e-2 * size, "{name}, {what}: {slope} where {along}, {size}");
        };
        let moved = |values: &[f32], step: f32, direction: &[f32]| -> Vec<f32> {
            values.iter().zip(direction).map(|(x, d)| x + step * d).collect()
        };
        check("x", dx.as_slice(), &|step, direction| loss(&layer, &moved(&x, step, direction)));
        for (kind, what) in MATRICES {
            check(what, found.matrix(kind).unwrap().as_slice(), &|step, direction| {
                let mut layer = layer.clone();
                let matrix = layer.matrix_mut(kind).unwrap();
                let values = moved(matrix.as_slice(), step / 8.0, direction);
                matrix.as_mut_slice().copy_from_slice(&values);
                8.0 * loss(&layer, &x)
            });
        }
    }
}

#[test]
fn threads_change_no_bit_and_passes_add_up() {
    let model = load(Variant::Qwen2Wide);
    let x = bitmill_testkit::noise("states", 48 * 256);
    let dy = Matrix::from_vec(48, 256, bitmill_testkit::noise("dy", 48 * 256));
    let layer = model.plain_layer(&exact(), 1).unwrap();
    let stage = stage(&model, 1, &x);
    let [one, three] = [1, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| gradients(&layer, &stage, &dy))
    });
    assert!(one.0 == three.0 && one.1 == three.1, "threads change what comes out");
    let (mut run, mut twice) = (LayerRun::default(), LayerGradients::new(&layer));
    for _ in 0..2 {
        layer.forward(&exact(), &stage, &mut run);
        layer.backward(&exact(), &stage, &mut run, &dy, Reach::Matrices, &mut twice);
    }
    for (kind, what) in MATRICES {
        assert_eq!(one.2.matrix(kind), three.2.matrix(kind), "{what}");
        let doubled: Vec<f32> = one.2.matrix(kind).unwrap().as_slice().iter().map(|g| 2.0 * g).collect();
        assert_close(twice.matrix(kind).unwrap().as_slice(), &doubled, 1e-6, REASON);
    }
    twice.clear();
    assert!(twice.matrix(RoleKind::AttnQ).unwrap().as_slice().iter().all(|&g| g == 0.0));
}
