//! A model's tensors in the order of a forward pass.

use bitmill_checkpoint::{Checkpoint, Role, RoleKind, Tensor};
use bitmill_kernels::{Compute, Isa, widen};
use bitmill_tensor::{Matrix, WeightData};

use crate::Error;
use crate::experts::{Experts, FeedForward, Shared};

/// A weight matrix, left where it lies, and the bias beside it if the checkpoint has one.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Linear {
    /// `y = x · weightᵀ + bias`.
    pub(crate) fn run(&self, compute: &Compute, x: &Matrix, y: &mut Matrix) {
        Self::run_each(compute, x, [(self, y)]);
    }

    /// The same for several that share their `x`.
    pub(crate) fn run_each<const N: usize>(
        compute: &Compute,
        x: &Matrix,
        mut all: [(&Self, &mut Matrix); N],
    ) {
        compute.matmul_each(x, all.each_mut().map(|(linear, y)| (linear.weight.view(), &mut **y)));
        for (linear, y) in all {
            if let Some(bias) = &linear.bias {
                compute.add_bias(y, bias);
            }
        }
    }
}

/// One decoder layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attn_norm: Vec<f32>,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    /// Norms of each head of q and k, where a family has them.
    pub(crate) q_norm: Option<Vec<f32>>,
    pub(crate) k_norm: Option<Vec<f32>>,
    pub(crate) o: Linear,
    pub(crate) ffn_norm: Vec<f32>,
    pub(crate) ffn: Ffn,
}

/// What comes after attention.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a layer")]
pub(crate) enum Ffn {
    Plain(FeedForward),
    Experts(Experts),
}

/// All of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Vec<f32>,
    /// `None` where the head is the embedding.
    pub(crate) head: Option<Linear>,
}

impl Weights {
    pub(crate) fn load(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let config = checkpoint.config();
        let layers =
            (0..config.n_layers).map(|index| Layer::load(checkpoint, index)).collect::<Result<_, _>>()?;
        Ok(Self {
            embedding: required(checkpoint, Role::outside(RoleKind::TokenEmbedding))?,
            layers,
            norm: vector(&required(checkpoint, Role::outside(RoleKind::OutputNorm))?)?,
            head: match config.tied {
                true => None,
                false => Some(linear(checkpoint, Role::outside(RoleKind::Output), None)?),
            },
        })
    }

    /// Every matrix.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = &Tensor> {
        let head = self.head.iter().map(|head| &head.weight);
        std::iter::once(&self.embedding).chain(self.layers.iter().flat_map(Layer::matrices)).chain(head)
    }

    /// The matrix with this role, if the model has it.
    pub(crate) fn matrix_mut(&mut self, role: Role) -> Option<&mut Tensor> {
        match (role.layer, role.kind) {
            (None, RoleKind::TokenEmbedding) => Some(&mut self.embedding),
            (None, RoleKind::Output) => self.head.as_mut().map(|head| &mut head.weight),
            (Some(layer), _) => self.layers.get_mut(layer)?.matrix_mut(role),
            _ => None,
        }
    }

    /// The norm or bias with this role, if the model has it.
    pub(crate) fn vector_mut(&mut self, role: Role) -> Option<&mut Vec<f32>> {
        match (role.layer, role.kind) {
            (None, RoleKind::OutputNorm) => Some(&mut self.norm),
            (Some(layer), kind) => self.layers.get_mut(layer)?.vector_mut(kind),
            _ => None,
        }
    }
}

impl Layer {
    /// Every matrix.
    fn matrices(&self) -> impl Iterator<Item = &Tensor> {
        let Self { q, k, v, o, .. } = self;
        let (plain, experts) = match &self.ffn {
            Ffn::Plain(plain) => (Some(plain), None),
            Ffn::Experts(experts) => (None, Some(experts)),
        };
        let plain = plain.into_iter().flat_map(FeedForward::matrices);
        let experts = experts.into_iter().flat_map(Experts::matrices);
        [q, k, v, o].into_iter().map(|linear| &linear.weight).chain(plain).chain(experts)
    }

    /// Routers included.
    fn matrix_mut(&mut self, role: Role) -> Option<&mut Tensor> {
        let linear = match role.kind {
            RoleKind::Router => &mut self.ffn.experts_mut()?.router,
            RoleKind::SharedRouter => &mut self.ffn.experts_mut()?.shared.as_mut()?.gate,
            RoleKind::AttnQ => &mut self.q,
            RoleKind::AttnK => &mut self.k,
            RoleKind::AttnV => &mut self.v,
            RoleKind::AttnOutput => &mut self.o,
            kind => self.ffn.block_mut(role)?.linear_mut(kind)?,
        };
        Some(&mut linear.weight)
    }

    fn vector_mut(&mut self, kind: RoleKind) -> Option<&mut Vec<f32>> {
        match kind {
            RoleKind::AttnNorm => Some(&mut self.attn_norm),
            RoleKind::FfnNorm => Some(&mut self.ffn_norm),
            RoleKind::AttnQBias => self.q.bias.as_mut(),
            RoleKind::AttnKBias => self.k.bias.as_mut(),
            RoleKind::AttnVBias => self.v.bias.as_mut(),
            RoleKind::AttnOutputBias => self.o.bias.as_mut(),
            RoleKind::AttnQNorm => self.q_norm.as_mut(),
            RoleKind::AttnKNorm => self.k_norm.as_mut(),
            _ => None,
        }
    }

    fn load(checkpoint: &Checkpoint, index: usize) -> Result<Self, Error> {
        let role = |kind| Role::in_layer(index, kind);
        let linear = |kind, bias: Option<RoleKind>| linear(checkpoint, role(kind), bias.map(role));
        let norm = |kind| vector(&required(checkpoint, role(kind))?);
        let head_norm = |kind| {
            let tensor = checkpoint.tensor_with_role(role(kind));
            tensor.map(|tensor| checked(checkpoint, tensor).and_then(|tensor| vector(&tensor))).transpose()
        };
        Ok(Self {
            attn_norm: norm(RoleKind::AttnNorm)?,
            q: linear(RoleKind::AttnQ, Some(RoleKind::AttnQBias))?,
            k: linear(RoleKind::AttnK, Some(RoleKind::AttnKBias))?,
            v: linear(RoleKind::AttnV, Some(RoleKind::AttnVBias))?,
            q_norm: head_norm(RoleKind::AttnQNorm)?,
            k_norm: head_norm(RoleKind::AttnKNorm)?,
            o: linear(RoleKind::AttnOutput, Some(RoleKind::AttnOutputBias))?,
            ffn_norm: norm(RoleKind::FfnNorm)?,
            ffn: Ffn::load(checkpoint, index)?,
        })
    }
}

impl Ffn {
    fn experts_mut(&mut self) -> Option<&mut Experts> {
        match self {
            Self::Plain(_) => None,
            Self::Experts(experts) => Some(experts),
        }
    }

    /// The block that has the matrix with this role.
    fn block_mut(&mut self, role: Role) -> Option<&mut FeedForward> {
        match (self, role.expert) {
            (Self::Plain(block), None) => Some(block),
            (Self::Experts(experts), Some(number)) => experts.experts.get_mut(number),
            (Self::Experts(experts), None) => experts.shared.as_mut().map(|shared| &mut shared.block),
            (Self::Plain(_), Some(_)) => None,
        }
    }

    fn load(checkpoint: &Checkpoint, layer: usize) -> Result<Self, Error> {
        let Some(config) = checkpoint.config().experts_in(layer) else {
            let kinds = [RoleKind::FfnGate, RoleKind::FfnUp, RoleKind::FfnDown];
            let block = FeedForward::load(checkpoint, kinds.map(|kind| Role::in_layer(layer, kind)))?;
            return Ok(Self::Plain(block));
        };
        let in_layer = |kind| linear(checkpoint, Role::in_layer(layer, kind), None);
        let expert = |number| {
            let kinds = [RoleKind::FfnGate, RoleKind::FfnUp, RoleKind::FfnDown];
            FeedForward::load(checkpoint, kinds.map(|kind| Role::in_expert(layer, number, kind)))
        };
        let shared = config.shared_width.map(|_| {
            let kinds = [RoleKind::SharedGate, RoleKind::SharedUp, RoleKind::SharedDown];
            Ok::<_, Error>(Shared {
                gate: in_layer(RoleKind::SharedRouter)?,
                block: FeedForward::load(checkpoint, kinds.map(|kind| Role::in_layer(layer, kind)))?,
            })
        });
        Ok(Self::Experts(Experts {
            router: in_layer(RoleKind::Router)?,
            experts: (0..config.count).map(expert).collect::<Result<_, _>>()?,
            shared: shared.transpose()?,
            used: config.used,
            normalised: config.normalised,
        }))
    }
}

impl FeedForward {
    fn linear_mut(&mut self, kind: RoleKind) -> Option<&mut Linear> {
        match kind {
            RoleKind::FfnGate | RoleKind::SharedGate => Some(&mut self.gate),
            RoleKind::FfnUp | RoleKind::SharedUp => Some(&mut self.up),
            RoleKind::FfnDown | RoleKind::SharedDown => Some(&mut self.down),
            _ => None,
        }
    }

    /// From its gate, up and down.
    fn load(checkpoint: &Checkpoint, [gate, up, down]: [Role; 3]) -> Result<Self, Error> {
        let linear = |role| linear(checkpoint, role, None);
        Ok(Self { gate: linear(gate)?, up: linear(up)?, down: linear(down)? })
    }
}

fn linear(checkpoint: &Checkpoint, role: Role, bias: Option<Role>) -> Result<Linear, Error> {
    let bias = bias.and_then(|role| checkpoint.tensor_with_role(role));
    Ok(Linear {
        weight: required(checkpoint, role)?,
        bias: bias.map(|bias| checked(checkpoint, bias).and_then(|bias| vector(&bias))).transpose()?,
    })
}

fn required(checkpoint: &Checkpoint, role: Role) -> Result<Tensor, Error> {
    let name = role.canonical_name().unwrap_or_default();
    checked(checkpoint, checkpoint.tensor(&name)?)
}

/// `tensor`, if it has the shape that its role asks for.
fn checked(checkpoint: &Checkpoint, tensor: Tensor) -> Result<Tensor, Error> {
    match tensor.info.role.expected_shape(checkpoint.config()) {
        Some(expected) if expected != tensor.info.shape => {
            Err(Error::Shape { tensor: tensor.info.name, found: tensor.info.shape, expected })
        }
        _ => Ok(tensor),
    }
}

/// A norm or bias, widened.
pub(crate) fn vector(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    let WeightData::Float { float, bytes } = tensor.view().data() else {
        let (name, encoding) = (tensor.info.name.clone(), tensor.info.encoding.to_string());
        return Err(Error::PackedVector { tensor: name, encoding });
    };
    let mut out = vec![0.0; bytes.len() / float.size_bytes()];
    widen(Isa::best(), float, bytes, &mut out);
    Ok(out)
}
