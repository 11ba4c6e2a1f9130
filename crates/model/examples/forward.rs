//! How fast a checkpoint runs, and how much of the time is not matrix products:
//! `forward MODEL [SEQUENCES [TOKENS [exact|fast]]]`, by default 16 sequences of 512 tokens on the exact path.

use std::time::Instant;

use bitmill_checkpoint::{Checkpoint, RoleKind};
use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::{Model, Sequence, Want};
use bitmill_tensor::Matrix;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let path = args.first().ok_or("usage: forward MODEL [SEQUENCES [TOKENS [exact|fast]]]")?;
    let sequences: usize = args.get(1).map_or(Ok(16), |text| text.parse())?;
    let tokens: usize = args.get(2).map_or(Ok(512), |text| text.parse())?;
    let path_kind = if args.get(3).is_some_and(|text| text == "fast") { Path::Fast } else { Path::Exact };

    let checkpoint = Checkpoint::open(path.as_ref())?;
    let model = Model::load(&checkpoint)?;
    let compute = Compute::new(Isa::best(), path_kind);
    report(&format!("{} on {}, {} threads", checkpoint.name(), compute.isa(), rayon::current_num_threads()));

    let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % model.config().vocab_size) as u32).collect();
    let total = (sequences * tokens) as f64;
    let mut logits = Matrix::default();
    let mut caches: Vec<_> = (0..sequences).map(|_| model.new_cache()).collect();
    let mut forward = || -> Result<(), Failure> {
        let mut batch: Vec<_> = caches
            .iter_mut()
            .map(|cache| {
                cache.truncate(0);
                Sequence { tokens: &ids, cache, want: Want::Last }
            })
            .collect();
        Ok(model.forward(&compute, &mut batch, &mut logits)?)
    };
    let whole = best_of(3, &mut forward)?;

    let (products, flops) = products(&checkpoint, &compute, sequences * tokens, sequences)?;
    report(&format!(
        "prefill {sequences} x {tokens}: {:.0} ms, {:.1} tokens/s; products with weights alone {:.0} ms, {:.1} GFLOP/s; \
         the rest {:.1} %",
        whole * 1e3,
        total / whole,
        products * 1e3,
        flops / products / 1e9,
        100.0 * (1.0 - products / whole),
    ));

    let cache = &mut caches[0];
    cache.reserve(64);
    let mut times = Vec::new();
    for token in 0..64 {
        let start = Instant::now();
        let mut batch = [Sequence { tokens: &[token], cache, want: Want::Last }];
        model.forward(&compute, &mut batch, &mut logits)?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let (alone, _) = self::products(&checkpoint, &compute, 1, 1)?;
    let bytes: u64 = matrices(&checkpoint).map(|info| info.0).sum();
    report(&format!(
        "decode after {tokens}: {:.2} ms a token, {:.2} GB/s of weights; products with weights alone {:.2} ms",
        times[times.len() / 2] * 1e3,
        bytes as f64 / times[times.len() / 2] / 1e9,
        alone * 1e3,
    ));
    Ok(())
}

/// Bytes and name of every matrix that a token is multiplied by.
fn matrices(checkpoint: &Checkpoint) -> impl Iterator<Item = (u64, &str, bool)> {
    let tied = checkpoint.config().tied;
    checkpoint.tensors().iter().filter_map(move |info| {
        let is_head = match info.role.kind {
            RoleKind::TokenEmbedding => tied,
            kind => kind == RoleKind::Output,
        };
        let multiplies = is_head || (info.role.is_matrix() && info.role.kind != RoleKind::TokenEmbedding);
        multiplies.then_some((info.stored_bytes, info.name.as_str(), is_head))
    })
}

/// Seconds and operations of the products of one forward pass, the head for `wanted` rows only. Matrix after matrix as
/// the pass has them, so that none is found in a cache where the pass would not find it.
fn products(
    checkpoint: &Checkpoint,
    compute: &Compute,
    rows: usize,
    wanted: usize,
) -> Result<(f64, f64), Failure> {
    let last_layer = format!("model.layers.{}.", checkpoint.config().n_layers - 1);
    let mut flops = 0.0;
    let mut weights = Vec::new();
    for (_, name, is_head) in matrices(checkpoint) {
        let tensor = checkpoint.tensor(name)?;
        // Past the last attention only the rows wanted go on.
        let few =
            is_head || name.starts_with(&last_layer) && (name.contains("mlp") || name.contains("o_proj"));
        let rows = if few { wanted } else { rows };
        flops += 2.0 * (rows * tensor.info.shape.iter().product::<usize>()) as f64;
        weights.push((tensor, rows));
    }
    let (mut x, mut y) = (Matrix::default(), Matrix::default());
    let seconds = best_of(3, &mut || {
        for (tensor, rows) in &weights {
            let weight = tensor.view();
            x.reshape(*rows, weight.in_features());
            compute.matmul(&weight, &x, &mut y);
        }
        Ok(())
    })?;
    Ok((seconds, flops))
}

/// The least of so many timings, in seconds.
fn best_of(repeats: usize, act: &mut dyn FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let mut best = f64::INFINITY;
    for _ in 0..repeats {
        let start = Instant::now();
        act()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

#[allow(clippy::print_stdout, reason = "an example's output")]
fn report(line: &str) {
    println!("{line}");
}
