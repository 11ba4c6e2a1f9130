//! `y = x · weightᵀ` over packed weights.

use std::cell::Cell;

use bitmill_tensor::{Matrix, WeightView};
use rayon::prelude::*;

use crate::activations::{Activations, Token};
use crate::dequant::unpack;
use crate::isa::{Isa, Kind};
use crate::panel::{self, Panel, TILE_TOKENS};
use crate::row::Row;
use crate::scalar;

/// How a product with packed weights is computed. Quality is measured on [`Path::Exact`], latency on
/// [`Path::Fast`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Path {
    /// f32 activations; weights are unpacked on the fly.
    Exact,
    /// Activations rounded to int8 in blocks of 32, each with its own f32 scale, against integer codes. Plain
    /// floats, and groups that are not whole blocks of 32, go the exact way.
    Fast,
}

/// Tokens up to which the exact path takes dot products of whole rows instead of panels.
const EXACT_ROWS_TOKENS: usize = 4;
/// The same of the fast path.
const FAST_ROWS_TOKENS: usize = 4;
/// Multiplications below which threads cost more than they bring.
const SERIAL_WORK: usize = 1 << 17;
/// Weights that one task takes at least.
const TASK_WEIGHTS: usize = 1 << 16;
/// Rows of a panel of f32: enough that reading the activations again for each panel does not show.
const F32_PANEL_ROWS: usize = 128;
/// Columns of a panel of f32, a multiple of 256: the panel stays in a cache (1 MiB).
const F32_PANEL_COLUMNS: usize = 2048;
/// Blocks of an int8 panel that are multiplied with all tokens before the next ones: 16 KiB of codes.
const TILE_BLOCKS: usize = 32;
/// Tokens whose sums are kept at a time beside an int8 panel: 32 KiB.
const SUM_TOKENS: usize = 512;

/// `y[t, o] = Σ_i x[t, i] · weight[o, i]`.
///
/// Rows of the weight are split over the current `rayon` pool; the split changes no bit of the result.
///
/// # Shapes
/// `x`: `[tokens, in_features]`. `y` becomes `[tokens, out_features]`.
///
/// # Panics
/// If `x` has another number of columns than `weight`.
pub fn matmul(isa: Isa, path: Path, weight: &WeightView<'_>, x: &Matrix, y: &mut Matrix) {
    assert_eq!(x.cols(), weight.in_features(), "activations against in_features");
    let (tokens, out_features, in_features) = (x.rows(), weight.out_features(), weight.in_features());
    y.reshape(tokens, out_features);
    if tokens == 0 || out_features == 0 {
        return;
    }
    if in_features == 0 {
        return y.as_mut_slice().fill(0.0);
    }
    if path == Path::Fast && scalar::has_fast_path(&Row::of(weight, 0)) {
        thread_local! {
            static ROUNDED: Cell<Activations> = Cell::default();
        }
        // Taken, not borrowed: while this thread waits for others it may start another product.
        let mut rounded = ROUNDED.take();
        rounded.round(isa, x);
        if tokens <= FAST_ROWS_TOKENS {
            by_rows(weight, y, |row, t| fast_dot(isa, row, in_features, rounded.token(t)));
        } else {
            by_int8_panels(isa, weight, &rounded, y);
        }
        ROUNDED.set(rounded);
    } else if tokens <= EXACT_ROWS_TOKENS {
        by_rows(weight, y, |row, t| exact_dot(isa, row, x.row(t)));
    } else {
        by_f32_panels(isa, weight, x, y);
    }
}

/// See [`scalar::exact_dot`]; the same bits on every instruction set.
pub(crate) fn exact_dot(isa: Isa, row: &Row<'_>, x: &[f32]) -> f32 {
    match isa.0 {
        Kind::Scalar => scalar::exact_dot(row, x),
        // SAFETY: only `Isa::available` makes Avx2, after asking the CPU; `matmul` checked the lengths.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => unsafe { crate::avx2::exact_dot(row, x) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => unsafe { crate::avx512::exact_dot(row, x) },
    }
}

/// See [`scalar::fast_dot`]; the same bits on every instruction set.
pub(crate) fn fast_dot(isa: Isa, row: &Row<'_>, in_features: usize, token: Token<'_>) -> f32 {
    match isa.0 {
        Kind::Scalar => scalar::fast_dot(row, in_features, token),
        // SAFETY: only `Isa::available` makes Avx2, after asking the CPU; `matmul` checked the lengths and that
        // there is a fast path.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => unsafe { crate::avx2::fast_dot(row, in_features, token) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => unsafe { crate::avx512::fast_dot(row, in_features, token) },
    }
}

/// Runs `task` on `0..tasks`, here if `work` multiplications are too few to share.
fn share(tasks: usize, work: usize, task: impl Fn(usize) + Sync + Send) {
    if work < SERIAL_WORK || tasks == 1 || rayon::current_num_threads() == 1 {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().for_each(task);
    }
}

/// Where the outputs of disjoint rows of the weight lie in `y`, `[tokens, out_features]`.
#[derive(Clone, Copy)]
struct Outputs {
    first: *mut f32,
    tokens: usize,
    out_features: usize,
}
// SAFETY: each task writes the columns of its own rows only, so no element is touched by two threads.
unsafe impl Send for Outputs {}
// SAFETY: as above.
unsafe impl Sync for Outputs {}

impl Outputs {
    fn new(y: &mut Matrix) -> Self {
        Self { tokens: y.rows(), out_features: y.cols(), first: y.as_mut_slice().as_mut_ptr() }
    }

    /// The first token's output of `row`.
    fn column(self, row: usize) -> *mut f32 {
        self.first.wrapping_add(row)
    }

    /// Writes `y[token, row]`.
    ///
    /// # Safety
    /// No other thread writes this row's column; the matrix is still borrowed.
    unsafe fn set(self, token: usize, row: usize, value: f32) {
        debug_assert!(token < self.tokens && row < self.out_features);
        // SAFETY: within the matrix, which outlives the tasks.
        unsafe { self.first.add(token * self.out_features + row).write(value) }
    }
}

/// A dot product for each row and token; a row's tokens follow each other, so that its bytes come from memory once.
fn by_rows(weight: &WeightView<'_>, y: &mut Matrix, dot: impl Fn(&Row<'_>, usize) -> f32 + Sync + Send) {
    let (tokens, out_features, in_features) = (y.rows(), weight.out_features(), weight.in_features());
    let rows = (TASK_WEIGHTS / in_features).clamp(1, out_features);
    let outputs = Outputs::new(y);
    share(out_features.div_ceil(rows), tokens * out_features * in_features, |task| {
        for o in task * rows..((task + 1) * rows).min(out_features) {
            let row = Row::of(weight, o);
            for t in 0..tokens {
                // SAFETY: row `o` belongs to this task alone.
                unsafe { outputs.set(t, o, dot(&row, t)) };
            }
        }
    });
}

/// Unpacks panels of rows to f32 and multiplies them by the `gemm` crate.
fn by_f32_panels(isa: Isa, weight: &WeightView<'_>, x: &Matrix, y: &mut Matrix) {
    thread_local! {
        static PANEL: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    let (tokens, in_features, out_features) = (x.rows(), x.cols(), weight.out_features());
    let outputs = Outputs::new(y);
    let panels = out_features.div_ceil(F32_PANEL_ROWS);
    share(panels, tokens * out_features * in_features, |panel| {
        let first = panel * F32_PANEL_ROWS;
        let rows = F32_PANEL_ROWS.min(out_features - first);
        let mut scratch = PANEL.take();
        scratch.resize(F32_PANEL_ROWS * F32_PANEL_COLUMNS.min(in_features), 0.0);
        for start in (0..in_features).step_by(F32_PANEL_COLUMNS) {
            let columns = F32_PANEL_COLUMNS.min(in_features - start);
            for (i, out) in scratch.chunks_exact_mut(columns).take(rows).enumerate() {
                unpack(isa, &Row::of(weight, first + i), start, out);
            }
            // SAFETY: this task owns columns [first, first + rows) of `y`, whose rows are `out_features` apart; `x`
            // is [tokens, in_features] and is read from column `start`; `scratch` holds [rows, columns].
            unsafe {
                gemm::gemm(
                    tokens,
                    rows,
                    columns,
                    outputs.column(first),
                    1,
                    out_features as isize,
                    start > 0,
                    x.as_slice().as_ptr().add(start),
                    1,
                    in_features as isize,
                    scratch.as_ptr(),
                    columns as isize,
                    1,
                    1.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        }
        PANEL.set(scratch);
    });
}

/// Unpacks panels of 16 rows to integers side by side and multiplies them with rounded activations.
fn by_int8_panels(isa: Isa, weight: &WeightView<'_>, x: &Activations, y: &mut Matrix) {
    thread_local! {
        static PANEL: Cell<(Panel, Vec<f32>)> = Cell::default();
    }
    let (tokens, in_features, out_features) = (y.rows(), weight.in_features(), weight.out_features());
    let outputs = Outputs::new(y);
    let work = tokens * out_features * in_features;
    // Few tokens make a panel cheap: a task takes several.
    let panels = out_features.div_ceil(panel::ROWS);
    let per_task = (SERIAL_WORK / (panel::ROWS * in_features * tokens)).clamp(1, panels);
    share(panels.div_ceil(per_task), work, |task| {
        let (mut panel, mut sums) = PANEL.take();
        for index in task * per_task..((task + 1) * per_task).min(panels) {
            let first = index * panel::ROWS;
            let rows = panel::ROWS.min(out_features - first);
            panel.fill(isa, weight, first);
            for start in (0..tokens).step_by(SUM_TOKENS) {
                let n = SUM_TOKENS.min(tokens - start);
                sums.clear();
                sums.resize(n * panel::ROWS, 0.0);
                multiply_tokens(isa, &panel, x, start, &mut sums);
                for (t, sums) in sums.chunks_exact(panel::ROWS).enumerate() {
                    for (r, &sum) in sums.iter().take(rows).enumerate() {
                        // SAFETY: row `first + r` belongs to this task alone.
                        unsafe { outputs.set(start + t, first + r, sum) };
                    }
                }
            }
        }
        PANEL.set((panel, sums));
    });
}

/// `sums += panel · tokens from first on`, `[tokens][16 rows]`.
fn multiply_tokens(isa: Isa, panel: &Panel, x: &Activations, first: usize, sums: &mut [f32]) {
    let blocks = panel.shape.blocks;
    for block in (0..blocks).step_by(TILE_BLOCKS) {
        let n = TILE_BLOCKS.min(blocks - block);
        for (tile, sums) in sums.chunks_mut(TILE_TOKENS * panel::ROWS).enumerate() {
            let count = sums.len() / panel::ROWS;
            let first = first + tile * TILE_TOKENS;
            // A short tile names its last token again; only `count` of them are used.
            let tokens: [Token<'_>; TILE_TOKENS] = std::array::from_fn(|t| x.token(first + t.min(count - 1)));
            panel::multiply(isa, panel, &tokens[..count], block, n, sums);
        }
    }
}
