//! Causal attention with grouped heads over a cache of keys and values.
//!
//! Many queries: blocks of queries against blocks of keys as matrix products, with a running maximum and sum per
//! query, so that memory does not grow with the context. Few queries: dot products.

use std::cell::RefCell;
use std::ops::Range;

use bitmill_tensor::Matrix;
use rayon::prelude::*;

use super::{LANES, dot, exp::exp, largest, tree_sum, twins};
use crate::Isa;

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Elements of a head; scores are divided by its square root.
    pub head_dim: usize,
    /// Positions that a query sees: its own and those before it; `None` if all of them.
    pub window: Option<usize>,
}

/// The keys and values that one layer has seen of one sequence.
#[derive(Debug, Clone)]
pub struct KvCache {
    width: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    /// An empty cache for rows of `kv_width` = KV heads · head_dim elements.
    pub fn new(kv_width: usize) -> Self {
        Self { width: kv_width, keys: Vec::new(), values: Vec::new() }
    }

    /// Elements of a row of keys.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.keys.len() / self.width.max(1)
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Forgets every position from `len` on; its memory stays for the next ones.
    pub fn truncate(&mut self, len: usize) {
        self.keys.truncate(len * self.width);
        self.values.truncate(len * self.width);
    }

    /// Makes room for `positions` more, so that appending them allocates nothing.
    pub fn reserve(&mut self, positions: usize) {
        self.keys.reserve(positions * self.width);
        self.values.reserve(positions * self.width);
    }

    /// Bytes of memory taken.
    pub fn bytes(&self) -> usize {
        (self.keys.capacity() + self.values.capacity()) * size_of::<f32>()
    }

    /// Appends `rows` of `keys` and `values`.
    pub(crate) fn append(&mut self, keys: &Matrix, values: &Matrix, rows: Range<usize>) {
        assert_eq!((keys.cols(), values.cols()), (self.width, self.width), "rows of the cache's width");
        let elements = rows.start * self.width..rows.end * self.width;
        self.keys.extend_from_slice(&keys.as_slice()[elements.clone()]);
        self.values.extend_from_slice(&values.as_slice()[elements]);
    }
}

/// Rows of scores worked on at once: queries of all heads that share keys.
const BLOCK_ROWS: usize = 128;
/// Keys of a block: with 128 rows its scores are 128 KiB and stay in the L2 cache.
const BLOCK_KEYS: usize = 256;
/// Sequences with fewer new tokens than this go through dot products: packing keys for a product would cost more.
const FEW_QUERIES: usize = 4;
/// Multiplications from which a call is split over threads.
const SPLIT_FROM: usize = 1 << 18;

/// What a task needs of its thread, kept between calls.
#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
    running: Vec<(f32, f32)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The output, which tasks fill at places of their own.
struct Output {
    start: *mut f32,
    cols: usize,
    rows: usize,
}

// SAFETY: tasks write through `slice` alone, each to rows and columns that no other task has.
unsafe impl Sync for Output {}

impl Output {
    /// `len` elements of `row` from `col`.
    ///
    /// # Safety
    /// No two slices that are alive at once may overlap.
    #[allow(clippy::mut_from_ref, reason = "the contract above is what makes it sound")]
    unsafe fn slice(&self, row: usize, col: usize, len: usize) -> &mut [f32] {
        assert!(row < self.rows && col + len <= self.cols);
        // SAFETY: inside the matrix by the assertion; alone by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.cols + col), len) }
    }
}

/// One sequence's share of a batch.
#[derive(Clone, Copy)]
struct Span<'a> {
    first_row: usize,
    tokens: usize,
    cache: &'a KvCache,
}

/// Attention of a ragged batch. Sequence `s` has rows `starts[s]..starts[s + 1]` of `q` and `out`, its newest
/// tokens, whose keys and values `cache(s)` ends with.
pub(crate) fn attention<'c>(
    isa: Isa,
    shape: AttentionShape,
    q: &Matrix,
    starts: &[usize],
    cache: &(impl Fn(usize) -> &'c KvCache + Sync),
    out: &mut Matrix,
) {
    let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = shape;
    assert!(n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads), "{n_heads} heads over {n_kv_heads}");
    assert_eq!(q.cols(), n_heads * head_dim, "a query for every head");
    assert_eq!(starts.last().copied().unwrap_or(0), q.rows(), "every row belongs to a sequence");
    let sequences = starts.len().saturating_sub(1);
    let span = |s: usize| {
        let span = Span { first_row: starts[s], tokens: starts[s + 1] - starts[s], cache: cache(s) };
        assert_eq!(span.cache.width, n_kv_heads * head_dim, "a cache of this layer's width");
        assert!(span.tokens <= span.cache.len(), "new tokens are in the cache");
        span
    };
    let work: usize = (0..sequences)
        .map(|s| starts[s + 1] - starts[s])
        .zip(0..)
        .map(|(tokens, s)| tokens * cache(s).len() * q.cols())
        .sum();
    out.reshape(q.rows(), q.cols());
    let target = Output { start: out.as_mut_slice().as_mut_ptr(), cols: q.cols(), rows: q.rows() };
    let block = (BLOCK_ROWS / (n_heads / n_kv_heads)).max(1);
    let tasks = |span: &Span<'_>| {
        n_kv_heads * if span.tokens < FEW_QUERIES { 1 } else { span.tokens.div_ceil(block) }
    };
    let task = |span: Span<'_>, task: usize| {
        SCRATCH.with_borrow_mut(|scratch| {
            let kv_head = task % n_kv_heads;
            // SAFETY (of the slices written there): the task writes the heads of `kv_head`, in its own queries' rows.
            if span.tokens < FEW_QUERIES {
                few_queries(isa, shape, q, span, kv_head, scratch, &target);
            } else {
                let first = task / n_kv_heads * block;
                let queries = first..(first + block).min(span.tokens);
                many_queries(isa, shape, q, span, kv_head, queries, scratch, &target);
            }
        });
    };
    if work < SPLIT_FROM {
        for s in 0..sequences {
            let span = span(s);
            (0..tasks(&span)).for_each(|index| task(span, index));
        }
    } else {
        (0..sequences).into_par_iter().for_each(|s| {
            let span = span(s);
            (0..tasks(&span)).into_par_iter().for_each(|index| task(span, index));
        });
    }
}

/// One KV head's queries of a sequence with few new tokens.
fn few_queries(
    isa: Isa,
    shape: AttentionShape,
    q: &Matrix,
    span: Span<'_>,
    kv_head: usize,
    scratch: &mut Scratch,
    out: &Output,
) {
    let AttentionShape { n_heads, n_kv_heads, head_dim, window } = shape;
    let group = n_heads / n_kv_heads;
    let first_head = kv_head * group * head_dim;
    for query in 0..span.tokens {
        let row = span.first_row + query;
        let end = span.cache.len() - span.tokens + query + 1;
        let seen = end.saturating_sub(window.unwrap_or(usize::MAX))..end;
        scratch.scores.resize(group * seen.len(), 0.0);
        // SAFETY: this task alone has these heads of this row.
        let out = unsafe { out.slice(row, first_head, group * head_dim) };
        let heads = &q.row(row)[first_head..first_head + group * head_dim];
        attend_by_dots(isa, heads, span.cache, kv_head, head_dim, seen, &mut scratch.scores, out);
    }
}

/// Dot products as [`dot`] defines them, on one instruction set.
trait Dots {
    /// # Safety
    /// Inside a function with the features of the instruction set.
    unsafe fn dot(a: &[f32], b: &[f32]) -> f32;
}

struct Portable;
impl Dots for Portable {
    #[inline(always)]
    unsafe fn dot(a: &[f32], b: &[f32]) -> f32 {
        dot(a, b)
    }
}

/// The lanes stay in registers for the tree, where the compiler's version of [`Portable`] takes them through memory.
#[cfg(target_arch = "x86_64")]
struct Avx2;
#[cfg(target_arch = "x86_64")]
impl Dots for Avx2 {
    #[inline(always)]
    unsafe fn dot(a: &[f32], b: &[f32]) -> f32 {
        use std::arch::x86_64::*;
        let len = a.len().min(b.len());
        if !len.is_multiple_of(LANES) {
            return dot(a, b);
        }
        // SAFETY: `len` elements of both are read; the features are the caller's.
        unsafe {
            let (a, b) = (a.as_ptr(), b.as_ptr());
            let product = |at: usize| _mm256_mul_ps(_mm256_loadu_ps(a.add(at)), _mm256_loadu_ps(b.add(at)));
            let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            let mut at = 0;
            while at < len {
                low = _mm256_add_ps(low, product(at));
                high = _mm256_add_ps(high, product(at + 8));
                at += LANES;
            }
            let eight = _mm256_add_ps(low, high);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

/// # Safety
/// Inside a function with the features of `D`.
#[inline(always)]
unsafe fn attend_by_dots_body<D: Dots>(
    heads: &[f32],
    cache: &KvCache,
    kv_head: usize,
    head_dim: usize,
    seen: Range<usize>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let scale = 1.0 / (head_dim as f32).sqrt();
    let keys = seen.len();
    let at = |key: usize| (seen.start + key) * cache.width + kv_head * head_dim;
    for key in 0..keys {
        let row = &cache.keys[at(key)..at(key) + head_dim];
        for (head, query) in heads.chunks_exact(head_dim).enumerate() {
            // SAFETY: the features are the caller's.
            scores[head * keys + key] = unsafe { D::dot(query, row) } * scale;
        }
    }
    for scores in scores.chunks_exact_mut(keys) {
        let most = largest(scores);
        let sum = exp_and_sum(scores, most);
        for score in scores {
            *score /= sum;
        }
    }
    out.fill(0.0);
    for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
        let probabilities = &scores[head * keys..(head + 1) * keys];
        let value = |key: usize| &cache.values[at(key)..at(key) + head_dim];
        let mut key = 0;
        // Four keys at once: `out` is loaded and stored a quarter as often.
        while key + 4 <= keys {
            let p = &probabilities[key..key + 4];
            let rows = value(key).iter().zip(value(key + 1)).zip(value(key + 2)).zip(value(key + 3));
            for (out, (((a, b), c), d)) in out.iter_mut().zip(rows) {
                *out += (p[0] * a + p[1] * b) + (p[2] * c + p[3] * d);
            }
            key += 4;
        }
        while key < keys {
            for (out, value) in out.iter_mut().zip(value(key)) {
                *out += probabilities[key] * value;
            }
            key += 1;
        }
    }
}

/// `scores = exp(scores − most)`, and their sum.
#[inline(always)]
fn exp_and_sum(scores: &mut [f32], most: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut chunks = scores.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - most);
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, score) in lanes.iter_mut().zip(chunks.into_remainder()) {
        *score = exp(*score - most);
        *lane += *score;
    }
    tree_sum(lanes)
}

/// One block of queries of the heads that share a KV head.
fn many_queries(
    isa: Isa,
    shape: AttentionShape,
    q: &Matrix,
    span: Span<'_>,
    kv_head: usize,
    queries: Range<usize>,
    scratch: &mut Scratch,
    out: &Output,
) {
    let AttentionShape { n_heads, n_kv_heads, head_dim, window } = shape;
    let window = window.unwrap_or(usize::MAX);
    let group = n_heads / n_kv_heads;
    let (count, width) = (queries.len(), span.cache.width);
    let rows = group * count;
    let past = span.cache.len() - span.tokens;
    let Scratch { queries: heads, scores, sums, running } = scratch;
    heads.clear();
    let scale = 1.0 / (head_dim as f32).sqrt();
    for head in kv_head * group..(kv_head + 1) * group {
        for query in queries.clone() {
            let row = &q.row(span.first_row + query)[head * head_dim..(head + 1) * head_dim];
            heads.extend(row.iter().map(|x| x * scale));
        }
    }
    scores.resize(rows * BLOCK_KEYS, 0.0);
    sums.clear();
    sums.resize(rows * head_dim, 0.0);
    running.clear();
    running.resize(rows, (f32::NEG_INFINITY, 0.0));
    let visible = past + queries.end;
    // No query sees what the first does not.
    let mut start = (past + queries.start + 1).saturating_sub(window);
    while start < visible {
        let keys = BLOCK_KEYS.min(visible - start);
        let at = start * width + kv_head * head_dim;
        let (key_block, value_block) = (&span.cache.keys[at..], &span.cache.values[at..]);
        assert!((keys - 1) * width + head_dim <= key_block.len().min(value_block.len()));
        // SAFETY: `heads` is [rows, head_dim], `scores` holds [rows, keys] within its rows of BLOCK_KEYS, and the
        // assertion above keeps the strided keys inside the cache.
        unsafe {
            gemm::gemm(
                rows,
                keys,
                head_dim,
                scores.as_mut_ptr(),
                1,
                BLOCK_KEYS as isize,
                false,
                heads.as_ptr(),
                1,
                head_dim as isize,
                key_block.as_ptr(),
                width as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        // Query i of the block sees the keys up to its own position: none after `past + queries.start + i`.
        let seen = (past + queries.start + 1) as isize - start as isize;
        online_softmax(isa, scores, sums, running, head_dim, count, keys, seen, window);
        // SAFETY: as above; `sums` is [rows, head_dim].
        unsafe {
            gemm::gemm(
                rows,
                head_dim,
                keys,
                sums.as_mut_ptr(),
                1,
                head_dim as isize,
                true,
                scores.as_ptr(),
                1,
                BLOCK_KEYS as isize,
                value_block.as_ptr(),
                1,
                width as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        start += keys;
    }
    for (row, (sums, (_, sum))) in sums.chunks_exact(head_dim).zip(running.iter()).enumerate() {
        let (head, query) = (kv_head * group + row / count, queries.start + row % count);
        // SAFETY: this task alone has these heads of these rows.
        let out = unsafe { out.slice(span.first_row + query, head * head_dim, head_dim) };
        for (out, x) in out.iter_mut().zip(sums) {
            *out = x / sum;
        }
    }
}

/// Turns a block of scores into exponentials under the new running maximum and rescales what was summed before.
///
/// Row `r` is query `r % count`, and sees the keys of the block before `seen + r % count`, the last `window` of them.
#[inline(always)]
fn online_softmax_body(
    scores: &mut [f32],
    sums: &mut [f32],
    running: &mut [(f32, f32)],
    head_dim: usize,
    count: usize,
    keys: usize,
    seen: isize,
    window: usize,
) {
    let rows = scores.chunks_exact_mut(BLOCK_KEYS).zip(sums.chunks_exact_mut(head_dim)).zip(running);
    for (row, ((scores, sums), (most, sum))) in rows.enumerate() {
        let end = seen + (row % count) as isize;
        let first = end.saturating_sub_unsigned(window).clamp(0, keys as isize) as usize;
        let end = end.clamp(first as isize, keys as isize) as usize;
        scores[..first].fill(0.0);
        scores[end..keys].fill(0.0);
        let scores = &mut scores[first..end];
        if scores.is_empty() {
            continue;
        }
        let new_most = largest(scores);
        let new_most = if new_most > *most { new_most } else { *most };
        let rescale = exp(*most - new_most);
        *sum = *sum * rescale + exp_and_sum(scores, new_most);
        *most = new_most;
        if rescale != 1.0 {
            for sum in sums {
                *sum *= rescale;
            }
        }
    }
}

/// Attention of one position's `heads`, which share a KV head, over the positions `seen` of `cache`.
fn attend_by_dots(
    isa: Isa,
    heads: &[f32],
    cache: &KvCache,
    kv_head: usize,
    head_dim: usize,
    seen: Range<usize>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::scalar() {
        #[target_feature(enable = "avx2")]
        fn avx2(
            heads: &[f32],
            cache: &KvCache,
            kv_head: usize,
            head_dim: usize,
            seen: Range<usize>,
            scores: &mut [f32],
            out: &mut [f32],
        ) {
            // SAFETY: the features are this function's own.
            unsafe { attend_by_dots_body::<Avx2>(heads, cache, kv_head, head_dim, seen, scores, out) }
        }
        // SAFETY: every x86 `Isa` but the scalar one has AVX2, and is only made after asking the CPU.
        return unsafe { avx2(heads, cache, kv_head, head_dim, seen, scores, out) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    // SAFETY: no features are asked for.
    unsafe { attend_by_dots_body::<Portable>(heads, cache, kv_head, head_dim, seen, scores, out) }
}

twins! {
    fn online_softmax(scores: &mut [f32], sums: &mut [f32], running: &mut [(f32, f32)], head_dim: usize, count: usize, keys: usize, seen: isize, window: usize)
        = online_softmax_body;
}

#[cfg(test)]
mod tests {
    use bitmill_testkit::{assert_close, noise};

    use super::*;

    fn heads(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> AttentionShape {
        AttentionShape { n_heads, n_kv_heads, head_dim, window: None }
    }

    /// Attention as the formula has it, in f64, a query at a time.
    fn by_formula(shape: AttentionShape, q: &Matrix, starts: &[usize], caches: &[KvCache]) -> Vec<f32> {
        let AttentionShape { n_heads, n_kv_heads, head_dim, window } = shape;
        let mut out = Vec::new();
        for (s, cache) in caches.iter().enumerate() {
            for row in starts[s]..starts[s + 1] {
                let position = cache.len() - (starts[s + 1] - row);
                for head in 0..n_heads {
                    let query = &q.row(row)[head * head_dim..(head + 1) * head_dim];
                    let of = |data: &[f32], key: usize| -> Vec<f64> {
                        let at = key * cache.width + head / (n_heads / n_kv_heads) * head_dim;
                        data[at..at + head_dim].iter().map(|&x| f64::from(x)).collect()
                    };
                    let score = |key| {
                        let products = query.iter().zip(of(&cache.keys, key)).map(|(&q, k)| f64::from(q) * k);
                        (products.sum::<f64>() / (head_dim as f64).sqrt()).exp()
                    };
                    let first = (position + 1).saturating_sub(window.unwrap_or(usize::MAX));
                    let weights: Vec<f64> = (first..=position).map(score).collect();
                    let total: f64 = weights.iter().sum();
                    for i in 0..head_dim {
                        let weighted =
                            |(key, weight): (usize, &f64)| weight * of(&cache.values, first + key)[i];
                        out.push((weights.iter().enumerate().map(weighted).sum::<f64>() / total) as f32);
                    }
                }
            }
        }
        out
    }

    /// Sequences as (positions before, new tokens).
    fn case(shape: AttentionShape, sequences: &[(usize, usize)]) -> (Matrix, Vec<usize>, Vec<KvCache>) {
        let width = shape.n_kv_heads * shape.head_dim;
        let mut starts = vec![0];
        let mut caches = Vec::new();
        for (s, (past, tokens)) in sequences.iter().enumerate() {
            starts.push(starts[s] + tokens);
            let mut cache = KvCache::new(width);
            let len = past + tokens;
            let rows = |name: &str| {
                // Keys of some size, so that the largest score moves from block to block.
                let values = noise(&format!("{name} {s} {len}"), len * width);
                Matrix::from_vec(len, width, values.into_iter().map(|x| 2.0 * x).collect())
            };
            cache.append(&rows("keys"), &rows("values"), 0..len);
            caches.push(cache);
        }
        let (rows, cols) = (starts[sequences.len()], shape.n_heads * shape.head_dim);
        (Matrix::from_vec(rows, cols, noise("queries", rows * cols)), starts, caches)
    }

    fn run(isa: Isa, shape: AttentionShape, q: &Matrix, starts: &[usize], caches: &[KvCache]) -> Matrix {
        let mut out = Matrix::from_vec(1, 3, vec![f32::NAN; 3]);
        attention(isa, shape, q, starts, &|s| &caches[s], &mut out);
        out
    }

    #[test]
    fn equals_the_formula_for_ragged_batches_and_grouped_heads() {
        for (shape, sequences) in [
            (heads(1, 1, 2), &[(0, 1)][..]),
            (heads(4, 2, 16), &[(0, 24), (3, 1), (0, 3), (250, 4)]),
            (heads(6, 2, 20), &[(700, 70), (0, 5), (900, 1)]),
            (heads(8, 1, 32), &[(0, 300), (17, 2)]),
            (heads(3, 3, 6), &[(0, 129), (255, 129), (256, 1)]),
        ] {
            let (q, starts, caches) = case(shape, sequences);
            for window in [None, Some(1), Some(3), Some(100), Some(257), Some(5000)] {
                let shape = AttentionShape { window, ..shape };
                let expected = by_formula(shape, &q, &starts, &caches);
                for isa in Isa::available() {
                    let out = run(isa, shape, &q, &starts, &caches);
                    assert_close(
                        out.as_slice(),
                        &expected,
                        2e-6,
                        "f32 scores of size 10 have errors of 1e-6",
                    );
                }
            }
        }
    }

    #[test]
    fn threads_and_instructions_change_no_bit_of_it() {
        let shape = heads(4, 2, 16);
        // The scalar twin of the few-query path sums in the same lanes as the AVX2 one.
        let (q, starts, caches) = case(shape, &[(300, 200), (600, 1), (0, 40), (600, 3)]);
        let outs = [1, 2, 5].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(Isa::best(), shape, &q, &starts, &caches))
        });
        assert!(outs.iter().all(|out| out == &outs[0]));
        assert_eq!(run(Isa::scalar(), shape, &q, &starts, &caches), outs[0]);
    }

    #[test]
    fn a_window_past_the_first_position_changes_no_bit() {
        let shape = heads(4, 2, 16);
        let (q, starts, caches) = case(shape, &[(300, 200), (600, 1)]);
        let all = run(Isa::best(), shape, &q, &starts, &caches);
        for window in [601, usize::MAX] {
            let shape = AttentionShape { window: Some(window), ..shape };
            assert_eq!(run(Isa::best(), shape, &q, &starts, &caches), all);
        }
    }

    #[test]
    fn truncated_positions_are_forgotten() {
        let shape = heads(2, 1, 4);
        let (q, starts, mut caches) = case(shape, &[(5, 1)]);
        let expected = run(Isa::best(), shape, &q, &starts, &caches);
        let more = Matrix::from_vec(2, 4, vec![9.0; 8]);
        caches[0].append(&more, &more, 1..2);
        assert_eq!(caches[0].len(), 7);
        caches[0].truncate(6);
        assert_eq!(run(Isa::best(), shape, &q, &starts, &caches), expected);
    }
}
