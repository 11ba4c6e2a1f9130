//! What causal attention with grouped heads makes of gradients, for whole sequences.
//!
//! Probabilities are worked out again from queries and keys, a block of queries against all keys that it sees: memory grows
//! with a block's scores, not with the square of the length. A task has one KV head of one sequence, and every sum goes
//! through the blocks in their order.

use bitmill_tensor::Matrix;
use rayon::prelude::*;

use super::attention::AttentionShape;
use super::{backward, softmax};
use crate::Isa;
use crate::product::{Strided, add_product, set_product};

/// Queries of a block: with 2048 keys its scores are 1 MiB, and each gradient of keys is added to as seldom as that allows.
const BLOCK_QUERIES: usize = 128;

/// Queries, keys and values, or what gradients say of them: `[tokens, heads · head_dim]`.
pub(crate) type Heads<'a> = [&'a mut Matrix; 3];

/// What a task finds: gradients of the queries of its heads, of its keys and of its values.
type Found = [Vec<f32>; 3];

/// Gradients of `q`, `k` and `v` from those of what attention made of them; see
/// [`Compute::attention_backward`](crate::Compute::attention_backward).
pub(crate) fn attention(
    isa: Isa,
    shape: AttentionShape,
    [q, k, v]: [&Matrix; 3],
    starts: &[usize],
    dy: &Matrix,
    [dq, dk, dv]: Heads<'_>,
) {
    let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = shape;
    assert!(n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads), "{n_heads} heads over {n_kv_heads}");
    let (width, kv_width) = (n_heads * head_dim, n_kv_heads * head_dim);
    assert_eq!((q.cols(), dy.cols()), (width, width), "a query for every head");
    assert_eq!((k.cols(), v.cols()), (kv_width, kv_width), "a key and a value for every KV head");
    let rows = starts.last().copied().unwrap_or(0);
    assert!([q, k, v, dy].iter().all(|matrix| matrix.rows() == rows), "every row belongs to a sequence");
    dq.reshape(rows, width);
    dk.reshape(rows, kv_width);
    dv.reshape(rows, kv_width);
    let sequences = starts.len().saturating_sub(1);
    let tasks = (0..sequences * n_kv_heads).into_par_iter().map(|task| {
        let (sequence, kv_head) = (task / n_kv_heads, task % n_kv_heads);
        let rows = starts[sequence]..starts[sequence + 1];
        let part = |matrix: &Matrix, heads: usize| -> Vec<f32> {
            let cols = heads * head_dim;
            let part = |row: usize| matrix.row(row)[kv_head * cols..(kv_head + 1) * cols].iter().copied();
            rows.clone().flat_map(part).collect()
        };
        let group = n_heads / n_kv_heads;
        one_kv_head(isa, shape, [part(q, group), part(k, 1), part(v, 1), part(dy, group)], rows.len())
    });
    let found: Vec<Found> = tasks.collect();
    for (task, found) in found.iter().enumerate() {
        let (sequence, kv_head) = (task / n_kv_heads, task % n_kv_heads);
        for (out, found) in [&mut *dq, &mut *dk, &mut *dv].into_iter().zip(found) {
            let cols = out.cols() / n_kv_heads;
            for (row, found) in (starts[sequence]..).zip(found.chunks_exact(cols.max(1))) {
                out.row_mut(row)[kv_head * cols..(kv_head + 1) * cols].copy_from_slice(found);
            }
        }
    }
}

/// One KV head of one sequence of `tokens`: queries and `dy` are `[tokens, group · head_dim]`, keys and values
/// `[tokens, head_dim]`.
fn one_kv_head(isa: Isa, shape: AttentionShape, [q, k, v, dy]: [Vec<f32>; 4], tokens: usize) -> Found {
    let AttentionShape { n_heads, n_kv_heads, head_dim, window } = shape;
    let width = n_heads / n_kv_heads * head_dim;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut dq = vec![0.0; tokens * width];
    let (mut dk, mut dv) = (vec![0.0; tokens * head_dim], vec![0.0; tokens * head_dim]);
    let (mut p, mut ds) = (Vec::new(), Vec::new());
    for first in (0..tokens).step_by(BLOCK_QUERIES) {
        let end = (first + BLOCK_QUERIES).min(tokens);
        // No query sees what the first does not, and none what comes after the last.
        let start = (first + 1).saturating_sub(window.unwrap_or(usize::MAX));
        let (count, keys) = (end - first, end - start);
        let of_keys = |values| Strided::new(values, keys, head_dim, head_dim);
        let (key_block, value_block) = (of_keys(&k[start * head_dim..]), of_keys(&v[start * head_dim..]));
        p.resize(count * keys, 0.0);
        ds.resize(count * keys, 0.0);
        for head in 0..width / head_dim {
            let at = first * width + head * head_dim;
            let queries = Strided::new(&q[at..], count, head_dim, width);
            let dy = Strided::new(&dy[at..], count, head_dim, width);
            set_product(&mut p, keys, scale, queries, key_block.transposed());
            for (row, p) in p.chunks_exact_mut(keys).enumerate() {
                let seen = first + row + 1 - start;
                let unseen = seen.saturating_sub(window.unwrap_or(usize::MAX));
                p[..unseen].fill(0.0);
                softmax::softmax_row(isa, &mut p[unseen..seen]);
                p[seen..].fill(0.0);
            }
            let scores = Strided::new(&p, count, keys, keys);
            add_product(&mut dv[start * head_dim..], head_dim, 1.0, scores.transposed(), dy);
            set_product(&mut ds, keys, 1.0, dy, value_block.transposed());
            for (p, ds) in p.chunks_exact(keys).zip(ds.chunks_exact_mut(keys)) {
                backward::softmax_row(isa, p, ds);
            }
            let scores = Strided::new(&ds, count, keys, keys);
            set_product(&mut dq[at..], width, scale, scores, key_block);
            add_product(&mut dk[start * head_dim..], head_dim, scale, scores.transposed(), queries);
        }
    }
    [dq, dk, dv]
}
