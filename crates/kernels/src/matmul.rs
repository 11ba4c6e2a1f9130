//! `y = x · weightᵀ` over packed weights.

use std::cell::Cell;
use std::ops::Range;

use bitmill_tensor::{Matrix, WeightData, WeightView};
use rayon::prelude::*;

use crate::activations::{Activations, CHUNK, Token};
use crate::dense_panel::{self, DensePanel};
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

/// Tokens up to which dot products of whole rows are faster than panels: floats, packed weights on the exact path
/// (which unpacks them again for each token), and codes on the fast path.
const FLOAT_ROWS_TOKENS: usize = 4;
const PACKED_ROWS_TOKENS: usize = 2;
const FAST_ROWS_TOKENS: usize = 3;
/// Multiplications below which threads cost more than they bring.
const SERIAL_WORK: usize = 1 << 17;
/// Weights that one task takes at least.
const TASK_WEIGHTS: usize = 1 << 16;
/// Panels of 16 rows that are unpacked side by side at most: the activations are read once for all of them.
const STRIP_PANELS: usize = 4;
/// Chunks of 256 columns of an int8 panel that are multiplied with all tokens before the next ones: 16 KiB of codes.
const PANEL_CHUNKS: usize = 4;
/// Tokens whose sums are kept at a time beside a strip: 128 KiB.
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
    matmul_each(isa, path, x, [(*weight, y)]);
}

/// [`matmul`] of one `x` with several weights: the same bits. `x` is rounded once, and rows of few tokens are shared
/// out once: for a small layer waking the threads counts.
///
/// # Panics
/// As [`matmul`], for each weight.
pub fn matmul_each<const N: usize>(
    isa: Isa,
    path: Path,
    x: &Matrix,
    products: [(WeightView<'_>, &mut Matrix); N],
) {
    thread_local! {
        static ROUNDED: Cell<Activations> = Cell::default();
    }
    // Taken, not borrowed: while this thread waits for others it may start another product.
    let mut rounded = ROUNDED.take();
    let mut is_rounded = false;
    let mut by_rows: [Option<RowProduct<'_>>; N] = [const { None }; N];
    for ((weight, y), by_rows) in products.into_iter().zip(&mut by_rows) {
        assert_eq!(x.cols(), weight.in_features(), "activations against in_features");
        y.reshape(x.rows(), weight.out_features());
        if x.rows() == 0 || weight.out_features() == 0 {
            continue;
        }
        if x.cols() == 0 {
            y.as_mut_slice().fill(0.0);
            continue;
        }
        let fast = path == Path::Fast && scalar::has_fast_path(&Row::of(&weight, 0));
        if fast && !is_rounded {
            rounded.round(isa, x);
            is_rounded = true;
        }
        let rows_tokens = match fast {
            true => FAST_ROWS_TOKENS,
            // Their rows are slow to read one by one.
            false if matches!(weight.data(), WeightData::Columns { .. }) => 0,
            false if weight.encoding().is_quantized() => PACKED_ROWS_TOKENS,
            false => FLOAT_ROWS_TOKENS,
        };
        if x.rows() <= rows_tokens {
            *by_rows = Some(RowProduct::new(weight, y, fast));
        } else if fast {
            by_int8_panels(isa, &weight, &rounded, y);
        } else {
            by_f32_panels(isa, &weight, x, y);
        }
    }
    multiply_rows(isa, x, &rounded, by_rows.as_slice());
    ROUNDED.set(rounded);
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

    /// Writes `y[token, row]`.
    ///
    /// # Safety
    /// No other thread writes this row's column; the matrix is still borrowed.
    unsafe fn set(self, token: usize, row: usize, value: f32) {
        debug_assert!(token < self.tokens && row < self.out_features);
        // SAFETY: within the matrix, which outlives the tasks.
        unsafe { self.first.add(token * self.out_features + row).write(value) }
    }

    /// Writes `rows` of `n` tokens from `first` on; `sums` is `[panels of 16 rows][n tokens][16 rows]`.
    ///
    /// # Safety
    /// No other thread writes these rows' columns; the matrix is still borrowed.
    unsafe fn set_strip(self, first: usize, n: usize, rows: Range<usize>, sums: &[f32]) {
        for t in 0..n {
            for (panel, sums) in sums.chunks_exact(n * panel::ROWS).enumerate() {
                let start = rows.start + panel * panel::ROWS;
                for (row, &sum) in (start..rows.end).zip(&sums[t * panel::ROWS..][..panel::ROWS]) {
                    // SAFETY: as this function's.
                    unsafe { self.set(first + t, row, sum) };
                }
            }
        }
    }
}

/// A product that is computed as a dot product for each row and token.
struct RowProduct<'a> {
    weight: WeightView<'a>,
    outputs: Outputs,
    /// With rounded activations.
    fast: bool,
    /// Rows of a task.
    rows: usize,
}

impl<'a> RowProduct<'a> {
    fn new(weight: WeightView<'a>, y: &mut Matrix, fast: bool) -> Self {
        let rows = (TASK_WEIGHTS / weight.in_features()).clamp(1, weight.out_features());
        Self { outputs: Outputs::new(y), weight, fast, rows }
    }

    fn tasks(&self) -> usize {
        self.weight.out_features().div_ceil(self.rows)
    }

    fn multiplications(&self) -> usize {
        self.outputs.tokens * self.weight.out_features() * self.weight.in_features()
    }

    /// A row's tokens follow each other, so that its bytes come from memory once.
    ///
    /// # Safety
    /// No other thread runs this task; the output is still borrowed.
    unsafe fn run(&self, isa: Isa, task: usize, x: &Matrix, rounded: &Activations) {
        let in_features = self.weight.in_features();
        for o in task * self.rows..((task + 1) * self.rows).min(self.weight.out_features()) {
            let row = Row::of(&self.weight, o);
            for t in 0..self.outputs.tokens {
                let sum = match self.fast {
                    true => fast_dot(isa, &row, in_features, rounded.token(t)),
                    false => exact_dot(isa, &row, x.row(t)),
                };
                // SAFETY: row `o` belongs to this task alone.
                unsafe { self.outputs.set(t, o, sum) };
            }
        }
    }
}

/// Runs all tasks of `products`, whose outputs are borrowed for as long, as one.
fn multiply_rows(isa: Isa, x: &Matrix, rounded: &Activations, products: &[Option<RowProduct<'_>>]) {
    let products = || products.iter().flatten();
    let tasks = products().map(RowProduct::tasks).sum();
    let work = products().map(RowProduct::multiplications).sum();
    share(tasks, work, |mut task| {
        for product in products() {
            if task < product.tasks() {
                // SAFETY: each task is run once.
                return unsafe { product.run(isa, task, x, rounded) };
            }
            task -= product.tasks();
        }
    });
}

/// Runs `task` on strips of rows, 16 or more of them, that it owns alone. Strips of [`STRIP_PANELS`] panels read the
/// activations less often; smaller ones leave each thread some.
fn by_strips(tokens: usize, weight: &WeightView<'_>, task: impl Fn(Range<usize>) + Sync + Send) {
    let (out_features, in_features) = (weight.out_features(), weight.in_features());
    let panels = out_features.div_ceil(panel::ROWS);
    let strip = panels.div_ceil(4 * rayon::current_num_threads()).clamp(1, STRIP_PANELS) * panel::ROWS;
    share(out_features.div_ceil(strip), tokens * out_features * in_features, |index| {
        task(index * strip..((index + 1) * strip).min(out_features));
    });
}

/// Unpacks panels of rows to f32 and multiplies them with the activations as they are.
fn by_f32_panels(isa: Isa, weight: &WeightView<'_>, x: &Matrix, y: &mut Matrix) {
    thread_local! {
        static SCRATCH: Cell<(Vec<DensePanel>, Vec<f32>)> = Cell::default();
    }
    let (tokens, in_features) = (x.rows(), x.cols());
    let outputs = Outputs::new(y);
    by_strips(tokens, weight, |rows| {
        let (mut panels, mut sums) = SCRATCH.take();
        let count = rows.len().div_ceil(panel::ROWS);
        panels.resize_with(count.max(panels.len()), DensePanel::default);
        for start in (0..tokens).step_by(SUM_TOKENS) {
            let n = SUM_TOKENS.min(tokens - start);
            sums.clear();
            sums.resize(count * n * panel::ROWS, 0.0);
            for column in (0..in_features).step_by(dense_panel::COLUMNS) {
                let columns = dense_panel::COLUMNS.min(in_features - column);
                for (p, panel) in panels.iter_mut().enumerate().take(count) {
                    panel.fill(isa, weight, rows.start + p * panel::ROWS, column, columns);
                }
                for tile in (0..n).step_by(dense_panel::TILE_TOKENS) {
                    let len = dense_panel::TILE_TOKENS.min(n - tile);
                    let x = &x.as_slice()[(start + tile) * in_features + column..];
                    for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(n * panel::ROWS)) {
                        let sums = &mut sums[tile * panel::ROWS..][..len * panel::ROWS];
                        dense_panel::multiply(isa, panel, x, in_features, sums);
                    }
                }
            }
            // SAFETY: the rows of the strip belong to this task alone.
            unsafe { outputs.set_strip(start, n, rows.clone(), &sums) };
        }
        SCRATCH.set((panels, sums));
    });
}

/// Unpacks panels of rows to integers side by side and multiplies them with rounded activations.
fn by_int8_panels(isa: Isa, weight: &WeightView<'_>, x: &Activations, y: &mut Matrix) {
    thread_local! {
        static SCRATCH: Cell<(Vec<Panel>, Vec<f32>)> = Cell::default();
    }
    let tokens = y.rows();
    let chunks = weight.in_features().div_ceil(CHUNK);
    let outputs = Outputs::new(y);
    by_strips(tokens, weight, |rows| {
        let (mut panels, mut sums) = SCRATCH.take();
        let count = rows.len().div_ceil(panel::ROWS);
        panels.resize_with(count.max(panels.len()), Panel::default);
        for start in (0..tokens).step_by(SUM_TOKENS) {
            let n = SUM_TOKENS.min(tokens - start);
            sums.clear();
            sums.resize(count * n * panel::ROWS, 0.0);
            for chunk in (0..chunks).step_by(PANEL_CHUNKS) {
                let chunks = chunk..chunks.min(chunk + PANEL_CHUNKS);
                for (p, panel) in panels.iter_mut().enumerate().take(count) {
                    panel.fill(isa, weight, rows.start + p * panel::ROWS, chunks.clone());
                }
                for tile in (0..n).step_by(TILE_TOKENS) {
                    let len = TILE_TOKENS.min(n - tile);
                    // A short tile names its last token again; only `len` of them are used.
                    let tokens: [Token<'_>; TILE_TOKENS] =
                        std::array::from_fn(|t| x.token(start + tile + t.min(len - 1)));
                    for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(n * panel::ROWS)) {
                        let sums = &mut sums[tile * panel::ROWS..][..len * panel::ROWS];
                        panel::multiply(isa, panel, &tokens[..len], sums);
                    }
                }
            }
            // SAFETY: the rows of the strip belong to this task alone.
            unsafe { outputs.set_strip(start, n, rows.clone(), &sums) };
        }
        SCRATCH.set((panels, sums));
    });
}
