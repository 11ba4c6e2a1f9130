//! A decoder layer in plain f32 whose gradients can be taken: for methods that learn weights layer by layer.
//!
//! The forward pass keeps what the backward pass needs, for as many texts as run at once; a caller that has more of them
//! runs some after others, and gradients add up. Arithmetic is the compute boundary's, as everywhere here.

use bitmill_checkpoint::{RoleKind, Tensor};
use bitmill_kernels::{AttentionShape, Compute, KvCache, dequantize_rows};
use bitmill_tensor::Matrix;

use crate::staged::Stage;
use crate::weights::{Ffn, Linear};
use crate::{Error, Model};

/// The matrices of a layer, in the order in which they run.
const KINDS: [RoleKind; 7] = [
    RoleKind::AttnQ,
    RoleKind::AttnK,
    RoleKind::AttnV,
    RoleKind::AttnOutput,
    RoleKind::FfnGate,
    RoleKind::FfnUp,
    RoleKind::FfnDown,
];
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

/// A decoder layer whose matrices are in memory, widened: they can be changed, and what a loss says of them asked for.
///
/// ```
/// use bitmill_checkpoint::{Checkpoint, RoleKind};
/// use bitmill_kernels::{Compute, Isa, Path};
/// use bitmill_model::{LayerGradients, LayerRun, Model, Reach};
///
/// let folder = bitmill_testkit::tiny(bitmill_testkit::Variant::Llama);
/// let model = Model::load(&Checkpoint::open(folder.path())?)?;
/// let compute = Compute::new(Isa::best(), Path::Exact);
/// let stage = model.enter(&compute, &[&[1, 17, 42]])?;
///
/// let layer = model.plain_layer(&compute, 0)?;
/// let (mut run, mut gradients) = (LayerRun::default(), LayerGradients::new(&layer));
/// layer.forward(&compute, &stage, &mut run);
/// // Of the loss `½ Σ output²`.
/// let of_output = run.output().clone();
/// layer.backward(&compute, &stage, &mut run, &of_output, Reach::Input, &mut gradients);
/// assert_eq!(gradients.matrix(RoleKind::FfnDown).unwrap().cols(), 160);
/// assert_eq!(run.of_input().rows(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct PlainLayer {
    parameters: Parameters,
    eps: f32,
    shape: AttentionShape,
}

/// What a loss says of a layer's parameters, summed over the backward passes since it was [cleared](Self::clear).
#[derive(Debug, Clone)]
pub struct LayerGradients {
    parameters: Parameters,
}

/// The parameters of a layer, or something of each of them.
#[derive(Debug, Clone)]
struct Parameters {
    matrices: [Matrix; 7],
    /// Of q, k, v and what follows attention.
    biases: [Option<Vec<f32>>; 4],
    attn_norm: Vec<f32>,
    ffn_norm: Vec<f32>,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
}

/// How far gradients are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// To the matrices, biases and norms, but for the first norm.
    Matrices,
    /// Through the first norm to what entered the layer.
    Input,
}

/// Activations of a forward pass, and what a backward pass makes of them.
#[derive(Debug, Default)]
pub struct LayerRun {
    /// What q, k and v multiply.
    normed: Matrix,
    /// q and k before their norms, where they have any.
    raw: [Matrix; 2],
    q: Matrix,
    k: Matrix,
    v: Matrix,
    attended: Matrix,
    /// After attention.
    middle: Matrix,
    ffn_normed: Matrix,
    gate: Matrix,
    up: Matrix,
    inner: Matrix,
    output: Matrix,
    caches: Vec<KvCache>,
    /// Gradients under way.
    of: Flowing,
    of_input: Matrix,
}

#[derive(Debug, Default)]
struct Flowing {
    inner: Matrix,
    normed: Matrix,
    part: Matrix,
    middle: Matrix,
    attended: Matrix,
    q: Matrix,
    k: Matrix,
    v: Matrix,
}

impl Model {
    /// Layer `index`, widened.
    ///
    /// # Errors
    /// [`Error::HasExperts`] for a layer with a mixture of experts.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn plain_layer(&self, compute: &Compute, index: usize) -> Result<PlainLayer, Error> {
        let layer = &self.weights.layers[index];
        let Ffn::Plain(block) = &layer.ffn else { return Err(Error::HasExperts { layer: index }) };
        let linears: [&Linear; 7] =
            [&layer.q, &layer.k, &layer.v, &layer.o, &block.gate, &block.up, &block.down];
        let bias = |at: usize| linears[at].bias.clone();
        Ok(PlainLayer {
            parameters: Parameters {
                matrices: linears.map(|linear| widened(compute, &linear.weight)),
                biases: [bias(Q), bias(K), bias(V), bias(O)],
                attn_norm: layer.attn_norm.clone(),
                ffn_norm: layer.ffn_norm.clone(),
                q_norm: layer.q_norm.clone(),
                k_norm: layer.k_norm.clone(),
            },
            eps: self.config.rms_norm_eps,
            shape: AttentionShape {
                n_heads: self.config.n_heads,
                n_kv_heads: self.config.n_kv_heads,
                head_dim: self.config.head_dim,
                window: self.config.window_of(index),
            },
        })
    }
}

/// All rows of a matrix as they lie.
fn widened(compute: &Compute, tensor: &Tensor) -> Matrix {
    let view = tensor.view();
    let mut out = Matrix::zeros(view.out_features(), view.in_features());
    if view.in_features() > 0 {
        dequantize_rows(compute.isa(), &view, 0, out.as_mut_slice());
    }
    out
}

fn place(kind: RoleKind) -> Option<usize> {
    KINDS.iter().position(|&other| other == kind)
}

impl Parameters {
    fn matrix(&self, kind: RoleKind) -> Option<&Matrix> {
        Some(&self.matrices[place(kind)?])
    }
}

impl PlainLayer {
    /// The matrix of this kind, `[out_features, in_features]`, rows as the checkpoint has them.
    pub fn matrix(&self, kind: RoleKind) -> Option<&Matrix> {
        self.parameters.matrix(kind)
    }

    /// The same, to change.
    pub fn matrix_mut(&mut self, kind: RoleKind) -> Option<&mut Matrix> {
        Some(&mut self.parameters.matrices[place(kind)?])
    }

    /// Runs the layer on the states of `stage`, which stays before it; [`LayerRun::output`] is what comes of them.
    ///
    /// # Panics
    /// If the states are another model's.
    pub fn forward(&self, compute: &Compute, stage: &Stage, run: &mut LayerRun) {
        let scratch = stage.scratch();
        let x = &scratch.hidden;
        let LayerRun { normed, raw, q, k, v, attended, middle, ffn_normed, gate, up, inner, output, .. } =
            run;
        compute.rms_norm(x, &self.parameters.attn_norm, self.eps, normed);
        for (at, out) in [(Q, &mut *q), (K, &mut *k), (V, &mut *v)] {
            self.linear(compute, at, normed, out);
        }
        for ((x, norm), raw) in
            [(&mut *q, &self.parameters.q_norm), (&mut *k, &self.parameters.k_norm)].into_iter().zip(raw)
        {
            if let Some(norm) = norm {
                raw.clone_from(x);
                compute.rms_norm_heads(x, norm, self.eps);
            }
            compute.rope(x, &scratch.rotations);
        }
        if !scratch.query_factors.is_empty() {
            compute.scale_rows(q, &scratch.query_factors);
        }
        let caches = &mut run.caches;
        caches.resize_with(scratch.starts.len().saturating_sub(1), || KvCache::new(k.cols()));
        for (cache, rows) in caches.iter_mut().zip(scratch.starts.windows(2)) {
            cache.truncate(0);
            compute.append(cache, k, v, rows[0]..rows[1]);
        }
        let caches = &*caches;
        compute.attention(self.shape, q, &scratch.starts, |sequence| &caches[sequence], attended);
        self.linear(compute, O, attended, middle);
        compute.add_assign(middle, x);
        compute.rms_norm(middle, &self.parameters.ffn_norm, self.eps, ffn_normed);
        self.linear(compute, GATE, ffn_normed, gate);
        self.linear(compute, UP, ffn_normed, up);
        inner.clone_from(gate);
        compute.swiglu(inner, up);
        self.linear(compute, DOWN, inner, output);
        compute.add_assign(output, middle);
    }

    /// Takes `of_output`, what a loss says of the output of the last forward pass over `stage`, back through the layer, and
    /// adds what it says of the parameters to `gradients`. `run` has to run forward again before the next one.
    ///
    /// # Shapes
    /// `of_output`: `[tokens, hidden_size]`, as the output.
    ///
    /// # Panics
    /// If shapes do not fit each other.
    pub fn backward(
        &self,
        compute: &Compute,
        stage: &Stage,
        run: &mut LayerRun,
        of_output: &Matrix,
        reach: Reach,
        gradients: &mut LayerGradients,
    ) {
        let scratch = stage.scratch();
        let LayerRun {
            normed,
            raw,
            q,
            k,
            v,
            attended,
            middle,
            ffn_normed,
            gate,
            up,
            inner,
            of,
            of_input,
            ..
        } = run;
        let [dq, dk, dv, d_o, dgate, dup, ddown] = &mut gradients.parameters.matrices;

        compute.product_backward_weight(of_output, inner, ddown);
        compute.product_backward_input(of_output, &self.parameters.matrices[DOWN], &mut of.inner);
        // `gate` and `of.inner` become what is said of gate and up.
        compute.swiglu_backward(gate, up, &mut of.inner);
        compute.product_backward_weight(gate, ffn_normed, dgate);
        compute.product_backward_weight(&of.inner, ffn_normed, dup);
        compute.product_backward_input(gate, &self.parameters.matrices[GATE], &mut of.normed);
        compute.product_backward_input(&of.inner, &self.parameters.matrices[UP], &mut of.part);
        compute.add_assign(&mut of.normed, &of.part);
        compute.rms_norm_backward(
            middle,
            &self.parameters.ffn_norm,
            self.eps,
            &of.normed,
            &mut of.middle,
            &mut gradients.parameters.ffn_norm,
        );
        compute.add_assign(&mut of.middle, of_output);

        compute.product_backward_weight(&of.middle, attended, d_o);
        compute.product_backward_input(&of.middle, &self.parameters.matrices[O], &mut of.attended);
        let (of_q, of_k, of_v) = (&mut of.q, &mut of.k, &mut of.v);
        compute.attention_backward(
            self.shape,
            [q, k, v],
            &scratch.starts,
            &of.attended,
            [&mut *of_q, &mut *of_k, &mut *of_v],
        );
        if !scratch.query_factors.is_empty() {
            compute.scale_rows(of_q, &scratch.query_factors);
        }
        let norms = [
            (&mut *of_q, &self.parameters.q_norm, &mut gradients.parameters.q_norm),
            (&mut *of_k, &self.parameters.k_norm, &mut gradients.parameters.k_norm),
        ];
        for ((of_x, norm, dnorm), raw) in norms.into_iter().zip(raw) {
            compute.rope_backward(of_x, &scratch.rotations);
            if let (Some(norm), Some(dnorm)) = (norm, dnorm) {
                compute.rms_norm_heads_backward(raw, norm, self.eps, of_x, dnorm);
            }
        }
        for (of_x, dweight) in [(&*of_q, dq), (&*of_k, dk), (&*of_v, dv)] {
            compute.product_backward_weight(of_x, normed, dweight);
        }
        let biases = [&*of_q, &*of_k, &*of_v, &of.middle];
        for (of_x, dbias) in biases.into_iter().zip(&mut gradients.parameters.biases) {
            if let Some(dbias) = dbias {
                compute.bias_backward(of_x, dbias);
            }
        }
        if reach == Reach::Matrices {
            return;
        }
        compute.product_backward_input(of_q, &self.parameters.matrices[Q], &mut of.normed);
        for (of_x, at) in [(&*of_k, K), (&*of_v, V)] {
            compute.product_backward_input(of_x, &self.parameters.matrices[at], &mut of.part);
            compute.add_assign(&mut of.normed, &of.part);
        }
        let x = &scratch.hidden;
        let dweight = &mut gradients.parameters.attn_norm;
        compute.rms_norm_backward(x, &self.parameters.attn_norm, self.eps, &of.normed, of_input, dweight);
        compute.add_assign(of_input, &of.middle);
    }

    fn linear(&self, compute: &Compute, at: usize, x: &Matrix, y: &mut Matrix) {
        compute.product(x, &self.parameters.matrices[at], y);
        if let Some(Some(bias)) = self.parameters.biases.get(at) {
            compute.add_bias(y, bias);
        }
    }
}

impl LayerRun {
    /// What the layer made of the states: `[tokens, hidden_size]`, residual stream included.
    pub fn output(&self) -> &Matrix {
        &self.output
    }

    /// What the last backward pass with [`Reach::Input`] says of the states that entered: `[tokens, hidden_size]`.
    pub fn of_input(&self) -> &Matrix {
        &self.of_input
    }
}

impl LayerGradients {
    /// Zeros for every parameter of `layer`.
    pub fn new(layer: &PlainLayer) -> Self {
        let mut gradients = Self { parameters: layer.parameters.clone() };
        gradients.clear();
        gradients
    }

    /// Makes all of them zeros again.
    pub fn clear(&mut self) {
        let Parameters { matrices, biases, attn_norm, ffn_norm, q_norm, k_norm } = &mut self.parameters;
        matrices.iter_mut().for_each(|matrix| matrix.as_mut_slice().fill(0.0));
        let optional = biases.iter_mut().chain([q_norm, k_norm]).flatten();
        optional.chain([attn_norm, ffn_norm]).for_each(|vector| vector.fill(0.0));
    }

    /// What is said of the matrix of this kind.
    pub fn matrix(&self, kind: RoleKind) -> Option<&Matrix> {
        self.parameters.matrix(kind)
    }

    /// What is said of the norm or bias of this kind, where the layer has it.
    pub fn vector(&self, kind: RoleKind) -> Option<&[f32]> {
        match kind {
            RoleKind::AttnQBias => self.parameters.biases[Q].as_deref(),
            RoleKind::AttnKBias => self.parameters.biases[K].as_deref(),
            RoleKind::AttnVBias => self.parameters.biases[V].as_deref(),
            RoleKind::AttnOutputBias => self.parameters.biases[O].as_deref(),
            RoleKind::AttnNorm => Some(&self.parameters.attn_norm),
            RoleKind::FfnNorm => Some(&self.parameters.ffn_norm),
            RoleKind::AttnQNorm => self.parameters.q_norm.as_deref(),
            RoleKind::AttnKNorm => self.parameters.k_norm.as_deref(),
            _ => None,
        }
    }
}
