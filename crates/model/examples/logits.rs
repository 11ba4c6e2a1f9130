//! The logits of every position of a text: `logits MODEL TOKEN,TOKEN,…` writes f32, little-endian, row after row.
//! `tools/checks/tiny_models.py` compares them with another implementation's.

use std::io::Write;

use bitmill_checkpoint::Checkpoint;
use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::{Model, Sequence, Want};
use bitmill_tensor::Matrix;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, tokens] = arguments.as_slice() else {
        return Err("usage: logits MODEL TOKEN,TOKEN,…".into());
    };
    let tokens = tokens.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    let model = Model::load(&Checkpoint::open(path.as_ref())?)?;
    let (mut cache, mut logits) = (model.new_cache(), Matrix::default());
    let mut batch = [Sequence { tokens: &tokens, cache: &mut cache, want: Want::All }];
    model.forward(&Compute::new(Isa::best(), Path::Exact), &mut batch, &mut logits)?;
    let bytes: Vec<u8> = logits.as_slice().iter().flat_map(|x| x.to_le_bytes()).collect();
    Ok(std::io::stdout().write_all(&bytes)?)
}
