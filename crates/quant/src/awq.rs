//! AWQ: input features that matter are scaled up before rounding, so that their weights get more of the grid.
//!
//! arXiv:2306.00978. Of scales `s = mean|x|^α`, α from 0 to 1, those are taken that leave the smallest error of the layers'
//! outputs, `Σ ‖(Q(W·s)/s − W)·x‖²`; then, for each group of weights, the range whose clipping leaves the smallest error of
//! the group's part of the output. As AutoAWQ does it, departing from it so:
//!
//! - The error is that of the linear layers' own outputs, through the Hessian or a sample of inputs, and no block is run.
//! - Scales of 1 are a candidate in every search: no result is worse than rounding to nearest.
//! - Where one output feeds several features (v under grouped queries), they share a scale and none is left out.
//!
//! [`fold`](crate::fold) carries the scales into what comes before.

use bitmill_kernels::{Strided, set_product};
use bitmill_tensor::Grouped;
use rayon::prelude::*;

use crate::fold::Sharing;
use crate::rtn::min_max;
use crate::smooth::{check_activations, check_weights};
use crate::{Clip, Error, quantize_rows_clipped};

/// What a layer's inputs are known by.
#[derive(Debug, Clone, Copy)]
pub enum Inputs<'a> {
    /// A multiple of the sum of `x·xᵀ`, `[in_features, in_features]`, both triangles: a [`Hessian`](bitmill_stats::Hessian) that is
    /// mirrored.
    Hessian(&'a [f32]),
    /// Some inputs, `[tokens, in_features]`: cheaper than a Hessian while they are fewer than it has rows.
    Tokens(&'a [f32]),
}

/// How scales are made of statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ScaleRule {
    /// `mean|x|^α`, as in the paper.
    Activations,
    /// `mean|x|^α / mean|w|^(1−α)` with weights relative to the largest of their group: AutoAWQ's "duo scaling".
    #[default]
    ActivationsAndWeights,
    /// Both, each in turn.
    Both,
}

/// What is searched.
#[derive(Debug, Clone, Copy)]
pub struct AwqOptions<'a> {
    /// Values of α, from 0 to 1.
    pub steps: usize,
    /// How scales are made.
    pub rule: ScaleRule,
    /// Features that must have one scale.
    pub sharing: Option<&'a Sharing>,
    /// Rows of each matrix that errors are counted over, evenly spread; `None`: all. An eighth of a matrix finds the same α, or
    /// its neighbour, for an eighth of the time.
    pub rows: Option<usize>,
}

impl Default for AwqOptions<'_> {
    fn default() -> Self {
        Self { steps: 20, rule: ScaleRule::default(), sharing: None, rows: None }
    }
}

/// Scales, and what they are worth.
#[derive(Debug, Clone, PartialEq)]
pub struct AwqScales {
    /// What each column is multiplied with, and what makes the feature divided by; `None` where nothing is better than no
    /// scales.
    pub scales: Option<Vec<f32>>,
    /// The α that they are of.
    pub alpha: f32,
    /// The error of the outputs with them, in the unit of the inputs' squares.
    pub error: f64,
    /// The error without.
    pub unscaled_error: f64,
}

/// Scales for the matrices that read the same features.
///
/// ```
/// use bitmill_quant::{AwqOptions, Clip, Inputs, RtnGrid, awq};
/// use bitmill_tensor::{Bits, FloatType, Granularity, ZeroPoint};
/// let grid = RtnGrid {
///     bits: Bits::new(3).unwrap(),
///     granularity: Granularity::Channel,
///     zero_point: ZeroPoint::Symmetric,
///     scale: FloatType::BF16,
/// };
/// // The third feature is large and its weight small: unscaled, it rounds to 0.
/// let (weight, hessian) = ([1.0, -0.9, 0.12], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 400.0]);
/// let found = awq::search_scales(
///     &grid.layout(3)?, Clip::None, &[&weight], &[1.0, 1.0, 20.0], Inputs::Hessian(&hessian), &AwqOptions::default(),
/// )?;
/// assert!(found.error < 0.1 * found.unscaled_error);
/// assert!(found.scales.unwrap()[2] > 1.0);
/// # Ok::<(), bitmill_quant::Error>(())
/// ```
///
/// Rows are split over the threads of the pool that this is called in, in pieces that follow from the shapes alone.
///
/// # Shapes
/// `matrices`: `[out_features, in_features]` each. `mean_abs`: `[in_features]`, the mean of `|x|`.
///
/// # Errors
/// [`UnevenGroups`](Error::UnevenGroups); [`BadActivation`](Error::BadActivation) if a mean is negative, infinite or NaN;
/// [`NonFinite`](Error::NonFinite) if a weight is; [`ScaleOverflow`](Error::ScaleOverflow) if a group needs a scale beyond its
/// type without being scaled; [`BadInputs`](Error::BadInputs) if the inputs make the error NaN or infinite.
///
/// # Panics
/// If shapes do not fit one another, or `options.steps` is 0.
pub fn search_scales(
    grid: &Grouped,
    clip: Clip,
    matrices: &[&[f32]],
    mean_abs: &[f32],
    inputs: Inputs<'_>,
    options: &AwqOptions<'_>,
) -> Result<AwqScales, Error> {
    let round = |_, rows: &[f32], decided: &mut [f32]| {
        quantize_rows_clipped(grid, clip, rows, mean_abs.len(), decided).map(drop)
    };
    search_scales_by(&round, grid.group_size.get(), matrices, mean_abs, inputs, options)
}

/// Rounds rows of the matrix of this number, and puts what they become in place of the last.
pub type Round<'a> = &'a (dyn Fn(usize, &[f32], &mut [f32]) -> Result<(), Error> + Sync);

/// [`search_scales`] for matrices that are stored in any way, each in its own: `round` says what becomes of rows, and
/// `group_size` how many weights share a scale.
///
/// # Shapes
/// As [`search_scales`].
///
/// # Errors
/// As [`search_scales`], and what `round` returns for rows that are not scaled.
///
/// # Panics
/// As [`search_scales`].
pub fn search_scales_by(
    round: Round<'_>,
    group_size: usize,
    matrices: &[&[f32]],
    mean_abs: &[f32],
    inputs: Inputs<'_>,
    options: &AwqOptions<'_>,
) -> Result<AwqScales, Error> {
    assert!(options.steps > 0, "no value of alpha");
    let in_features = mean_abs.len();
    check_activations(mean_abs)?;
    inputs.check(in_features);
    for weight in matrices {
        check_weights(weight, in_features)?;
    }
    let chosen: Vec<Vec<&[f32]>> =
        matrices.iter().map(|weight| spread_rows(weight, in_features, options.rows)).collect();
    let error = |scales: Option<&[f32]>| output_error(round, &chosen, scales, inputs, in_features);

    let unscaled_error = error(None)?;
    let mut best = AwqScales { scales: None, alpha: 0.0, error: unscaled_error, unscaled_error };
    if unscaled_error == 0.0 {
        return Ok(best);
    }
    let mean_weight = mean_weights(matrices, in_features, group_size);
    let (mean_x, mean_w) = match options.sharing {
        Some(sharing) => (sharing.mean(mean_abs), sharing.mean(&mean_weight)),
        None => (mean_abs.to_vec(), mean_weight),
    };
    let rules: &[ScaleRule] = match options.rule {
        ScaleRule::Both => &[ScaleRule::Activations, ScaleRule::ActivationsAndWeights],
        ref one => std::slice::from_ref(one),
    };
    for rule in rules {
        for step in 0..options.steps {
            let alpha = step as f32 / options.steps as f32;
            let scales = candidate(*rule, alpha, &mean_x, &mean_w);
            let scales = options.sharing.map_or_else(|| scales.clone(), |sharing| sharing.spread(&scales));
            // Scales that take a group beyond the type of its scale are no candidate.
            let Ok(error) = error(Some(&scales)) else { continue };
            if error < best.error {
                best = AwqScales { scales: Some(scales), alpha, error, unscaled_error };
            }
        }
    }
    Ok(best)
}

/// Scales of one α, their largest and smallest as far above 1 as below.
fn candidate(rule: ScaleRule, alpha: f32, mean_x: &[f32], mean_w: &[f32]) -> Vec<f32> {
    const LEAST: f32 = 1e-4;
    let scale = |(x, w): (&f32, &f32)| match rule {
        ScaleRule::Activations => x.powf(alpha).max(LEAST),
        _ => (x.powf(alpha) / (w.powf(1.0 - alpha) + LEAST)).max(LEAST),
    };
    let mut scales: Vec<f32> = mean_x.iter().zip(mean_w).map(scale).collect();
    let (low, high) = min_max(&scales);
    let middle = (f64::from(low) * f64::from(high)).sqrt() as f32;
    for scale in &mut scales {
        *scale /= middle;
        if !(scale.is_finite() && *scale > 0.0) {
            *scale = 1.0;
        }
    }
    scales
}

/// The mean over rows of `|w|` relative to the largest of its group.
fn mean_weights(matrices: &[&[f32]], in_features: usize, group_size: usize) -> Vec<f32> {
    let mut sums = vec![0f64; in_features];
    let mut rows = 0;
    for row in matrices.iter().flat_map(|weight| weight.chunks_exact(in_features)) {
        rows += 1;
        for (weights, sums) in row.chunks(group_size).zip(sums.chunks_mut(group_size)) {
            let largest = weights.iter().fold(0f32, |most, weight| most.max(weight.abs())) + 1e-6;
            for (weight, sum) in weights.iter().zip(sums) {
                *sum += f64::from(weight.abs() / largest);
            }
        }
    }
    sums.into_iter().map(|sum| (sum / f64::from(rows.max(1))) as f32).collect()
}

/// `count` rows of `weight`, evenly spread.
fn spread_rows(weight: &[f32], in_features: usize, count: Option<usize>) -> Vec<&[f32]> {
    let rows = weight.len() / in_features.max(1);
    let count = count.unwrap_or(rows).clamp(rows.min(1), rows);
    (0..count).map(|at| &weight[at * rows / count * in_features..][..in_features]).collect()
}

/// Rows that one task rounds: their differences fit an L2 cache up to 8192 features.
const TASK_ROWS: usize = 32;

/// `Σ ‖(Q(W·s)/s − W)·x‖²` over rows and inputs.
fn output_error(
    round: Round<'_>,
    matrices: &[Vec<&[f32]>],
    scales: Option<&[f32]>,
    inputs: Inputs<'_>,
    in_features: usize,
) -> Result<f64, Error> {
    let mut total = 0.0;
    for (matrix, rows) in matrices.iter().enumerate() {
        let errors: Vec<f64> = rows
            .par_chunks(TASK_ROWS)
            .map(|rows| {
                let mut scaled: Vec<f32> = rows.concat();
                if let Some(scales) = scales {
                    crate::fold::multiply_columns(&mut scaled, scales);
                }
                let mut moved = vec![0.0; scaled.len()];
                round(matrix, &scaled, &mut moved)?;
                for (moved, row) in moved.chunks_exact_mut(in_features).zip(rows) {
                    for (at, (moved, weight)) in moved.iter_mut().zip(*row).enumerate() {
                        let decided = scales.map_or(*moved, |scales| *moved / scales[at]);
                        *moved = decided - weight;
                    }
                }
                Ok(inputs.error(&moved, in_features))
            })
            .collect::<Result<_, Error>>()?;
        total += errors.iter().sum::<f64>();
    }
    if total.is_finite() { Ok(total) } else { Err(Error::BadInputs) }
}

impl Inputs<'_> {
    fn check(&self, in_features: usize) {
        match self {
            Self::Hessian(square) => {
                assert_eq!(square.len(), in_features * in_features, "a square of {in_features}")
            }
            Self::Tokens(x) => assert!(
                in_features == 0 || x.len().is_multiple_of(in_features),
                "{} values are not inputs of {in_features}",
                x.len()
            ),
        }
    }

    /// `Σ ‖moved·x‖²` over the rows of `moved`, whose products with the inputs are made in one call.
    fn error(&self, moved: &[f32], in_features: usize) -> f64 {
        let rows = moved.len() / in_features;
        let left = Strided::new(moved, rows, in_features, in_features);
        match self {
            Self::Hessian(square) => {
                let mut out = vec![0.0; moved.len()];
                set_product(
                    &mut out,
                    in_features,
                    1.0,
                    left,
                    Strided::new(square, in_features, in_features, in_features),
                );
                let sum: f64 = out.iter().zip(moved).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                // Rounding may leave less than nothing; a NaN stays.
                if sum < 0.0 { 0.0 } else { sum }
            }
            Self::Tokens(x) => {
                let tokens = x.len() / in_features;
                let mut out = vec![0.0; rows * tokens];
                let x = Strided::new(x, tokens, in_features, in_features).transposed();
                set_product(&mut out, tokens, 1.0, left, x);
                out.iter().map(|y| f64::from(*y) * f64::from(*y)).sum()
            }
        }
    }

    /// `Σ x·xᵀ` of the features `first..first + width`.
    fn block(&self, first: usize, width: usize, in_features: usize) -> Vec<f32> {
        match self {
            Self::Hessian(square) => (first..first + width)
                .flat_map(|row| &square[row * in_features + first..][..width])
                .copied()
                .collect(),
            Self::Tokens(x) => {
                let mut out = vec![0.0; width * width];
                let tokens = x.len() / in_features;
                if tokens > 0 {
                    let part = Strided::new(&x[first..], tokens, width, in_features);
                    set_product(&mut out, width, 1.0, part.transposed(), part);
                }
                out
            }
        }
    }
}

/// The range of each group of `weight`, `[rows, groups]`, that leaves the smallest error of what the group adds to the output: the
/// largest `|w|` times 1.00, 0.95, … 0.55. [`clip`] applies them.
///
/// AutoAWQ leaves q and k out, whose product no layer's output shows.
///
/// # Shapes
/// `weight`: `[rows, in_features]`, scaled; `inputs` as it reads them, divided.
///
/// # Errors
/// As [`search_scales`].
///
/// # Panics
/// If shapes do not fit one another.
pub fn search_clips(
    grid: &Grouped,
    weight: &[f32],
    in_features: usize,
    inputs: Inputs<'_>,
) -> Result<Vec<f32>, Error> {
    const STEPS: u8 = 10;
    let group_size = grid.group_size.get();
    if in_features == 0 || !in_features.is_multiple_of(group_size) {
        return Err(Error::UnevenGroups { in_features, group_size });
    }
    inputs.check(in_features);
    check_weights(weight, in_features)?;
    let (rows, groups) = (weight.len() / in_features, in_features / group_size);
    let of_group = |group: usize| {
        let first = group * group_size;
        let block = inputs.block(first, group_size, in_features);
        let mut original: Vec<f32> = Vec::with_capacity(rows * group_size);
        weight
            .chunks_exact(in_features)
            .for_each(|row| original.extend_from_slice(&row[first..first + group_size]));
        let largest = |weights: &[f32]| weights.iter().fold(0f32, |most, weight| most.max(weight.abs()));
        let whole: Vec<f32> = original.chunks_exact(group_size).map(largest).collect();
        let (mut best, mut least) = (whole.clone(), vec![f64::INFINITY; rows]);
        let (mut clipped, mut moved) = (original.clone(), vec![0.0; original.len()]);
        let mut product = moved.clone();
        for step in 0..STEPS {
            let range = |row: usize| whole[row] * (1.0 - f32::from(step) / 20.0);
            clipped.copy_from_slice(&original);
            for (row, weights) in clipped.chunks_exact_mut(group_size).enumerate() {
                weights.iter_mut().for_each(|weight| *weight = weight.clamp(-range(row), range(row)));
            }
            quantize_rows_clipped(grid, Clip::None, &clipped, group_size, &mut moved)?;
            moved.iter_mut().zip(&original).for_each(|(moved, weight)| *moved -= weight);
            let left = Strided::new(&moved, rows, group_size, group_size);
            set_product(
                &mut product,
                group_size,
                1.0,
                left,
                Strided::new(&block, group_size, group_size, group_size),
            );
            let of_rows = product.chunks_exact(group_size).zip(moved.chunks_exact(group_size));
            for (row, (product, moved)) in of_rows.enumerate() {
                let error: f64 = product.iter().zip(moved).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                if !error.is_finite() {
                    return Err(Error::BadInputs);
                }
                if error < least[row] {
                    (best[row], least[row]) = (range(row), error);
                }
            }
        }
        Ok(best)
    };
    let columns: Vec<Vec<f32>> = (0..groups).into_par_iter().map(of_group).collect::<Result<_, Error>>()?;
    Ok((0..rows * groups).map(|at| columns[at % groups][at / groups]).collect())
}

/// Holds the weights of each group within its range.
///
/// ```
/// use bitmill_quant::awq;
/// let mut weight = [1.0, -3.0, 0.5, 4.0];
/// awq::clip(&mut weight, &[2.0, 3.0], 2);
/// assert_eq!(weight, [1.0, -2.0, 0.5, 3.0]);
/// ```
///
/// # Shapes
/// `weight`: `[rows, in_features]`. `clips`: `[rows, groups]`, each at least 0.
///
/// # Panics
/// If there is not a range for each group.
pub fn clip(weight: &mut [f32], clips: &[f32], group_size: usize) {
    assert_eq!(weight.len(), clips.len() * group_size, "a range for each group of {group_size}");
    for (weights, range) in weight.chunks_exact_mut(group_size.max(1)).zip(clips) {
        weights.iter_mut().for_each(|weight| *weight = weight.clamp(-range, *range));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RtnGrid;
    use bitmill_tensor::{Bits, FloatType, Granularity, ZeroPoint};

    const ROWS: usize = 40;
    const COLS: usize = 16;

    fn grid() -> Grouped {
        let granularity = Granularity::Group { size: 8.try_into().unwrap() };
        let grid = RtnGrid {
            bits: Bits::new(3).unwrap(),
            granularity,
            zero_point: ZeroPoint::Asymmetric,
            scale: FloatType::F32,
        };
        grid.layout(COLS).unwrap()
    }

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed) * 2_654_435_761) % 10_007) as f32 / 5_003.5 - 1.0).collect()
    }

    /// Inputs whose every fifth feature is large, their mean `|x|` and `Σ x·xᵀ`.
    fn inputs() -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let mut x = values(64 * COLS, 7);
        x.iter_mut()
            .enumerate()
            .filter(|(at, _)| (at % COLS).is_multiple_of(5))
            .for_each(|(_, x)| *x *= 30.0);
        let mut mean = vec![0.0; COLS];
        let mut hessian = vec![0.0; COLS * COLS];
        for row in x.chunks(COLS) {
            for (a, x) in row.iter().enumerate() {
                mean[a] += x.abs() / 64.0;
                row.iter().enumerate().for_each(|(b, y)| hessian[a * COLS + b] += x * y);
            }
        }
        (x, mean, hessian)
    }

    fn search(
        weight: &[f32],
        mean: &[f32],
        inputs: Inputs<'_>,
        options: &AwqOptions<'_>,
    ) -> Result<AwqScales, Error> {
        search_scales(&grid(), Clip::None, &[weight], mean, inputs, options)
    }

    #[test]
    fn hessian_and_tokens_find_the_same_scales_and_lose_less() {
        let (x, mean, hessian) = inputs();
        let weight = values(ROWS * COLS, 3);
        for rule in [ScaleRule::Activations, ScaleRule::ActivationsAndWeights, ScaleRule::Both] {
            let options = AwqOptions { rule, ..AwqOptions::default() };
            let by_hessian = search(&weight, &mean, Inputs::Hessian(&hessian), &options).unwrap();
            let by_tokens = search(&weight, &mean, Inputs::Tokens(&x), &options).unwrap();
            assert_eq!(by_hessian.scales, by_tokens.scales, "{rule:?}");
            assert!((by_hessian.error / by_tokens.error - 1.0).abs() < 1e-4);
            assert!(by_hessian.error < 0.8 * by_hessian.unscaled_error, "{rule:?}: {by_hessian:?}");
        }
    }

    #[test]
    fn equal_activations_need_no_scales() {
        let (_, _, hessian) = inputs();
        let options = AwqOptions { rule: ScaleRule::Activations, ..AwqOptions::default() };
        let found =
            search(&values(ROWS * COLS, 3), &[0.5; COLS], Inputs::Hessian(&hessian), &options).unwrap();
        assert_eq!((found.scales, found.error), (None, found.unscaled_error));
    }

    #[test]
    fn shared_features_get_one_scale() {
        let (_, mean, hessian) = inputs();
        let sharing = Sharing::of_heads(4, 2, 4);
        let options = AwqOptions { sharing: Some(&sharing), ..AwqOptions::default() };
        let found = search(&values(ROWS * COLS, 3), &mean, Inputs::Hessian(&hessian), &options).unwrap();
        let scales = found.scales.unwrap();
        assert_eq!((&scales[..4], &scales[8..12]), (&scales[4..8], &scales[12..]));
        assert!(found.error <= found.unscaled_error);
    }

    #[test]
    fn threads_change_nothing() {
        let (_, mean, hessian) = inputs();
        let weight = values(5 * TASK_ROWS * COLS, 3);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let found =
                    search(&weight, &mean, Inputs::Hessian(&hessian), &AwqOptions::default()).unwrap();
                let clips = search_clips(&grid(), &weight, COLS, Inputs::Hessian(&hessian)).unwrap();
                (found, clips)
            })
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn some_rows_stand_for_all() {
        let weight = values(ROWS * COLS, 3);
        assert_eq!(spread_rows(&weight, COLS, Some(4)).len(), 4);
        assert_eq!(spread_rows(&weight, COLS, Some(4))[3], &weight[30 * COLS..31 * COLS]);
        assert_eq!(spread_rows(&weight, COLS, None), weight.chunks(COLS).collect::<Vec<_>>());
        assert_eq!(spread_rows(&weight, COLS, Some(0)).len(), 1);
    }

    #[test]
    fn clips_lose_no_more_than_whole_ranges() {
        let (x, _, hessian) = inputs();
        let mut weight = values(ROWS * COLS, 3);
        weight.iter_mut().step_by(9).for_each(|weight| *weight *= 4.0);
        let clips = search_clips(&grid(), &weight, COLS, Inputs::Hessian(&hessian)).unwrap();
        assert_eq!(clips, search_clips(&grid(), &weight, COLS, Inputs::Tokens(&x)).unwrap());
        let mut clipped = weight.clone();
        clip(&mut clipped, &clips, 8);
        assert_ne!(clipped, weight);
        // A group's own error, for one group at a time.
        let error = |from: &[f32], group: usize| {
            let part = |weight: &[f32]| weight.chunks(8).skip(group).step_by(2).collect::<Vec<_>>().concat();
            let (from, original) = (part(from), part(&weight));
            let mut decided = vec![0.0; from.len()];
            quantize_rows_clipped(&grid(), Clip::None, &from, 8, &mut decided).unwrap();
            decided.iter_mut().zip(original).for_each(|(decided, weight)| *decided -= weight);
            let block = Inputs::Hessian(&hessian).block(8 * group, 8, COLS);
            Inputs::Hessian(&block).error(&decided, 8)
        };
        for group in 0..2 {
            assert!(error(&clipped, group) < error(&weight, group));
        }
    }

    #[test]
    fn hostile_statistics_stay_finite_or_are_named() {
        let weight = values(ROWS * COLS, 3);
        let (_, mean, hessian) = inputs();
        let options = AwqOptions::default();
        // No input at all, one token, and features from nothing to huge.
        let none = search(&weight, &[0.0; COLS], Inputs::Hessian(&[0.0; COLS * COLS]), &options).unwrap();
        assert_eq!((none.scales, none.error), (None, 0.0));
        let one = values(COLS, 5);
        let abs: Vec<f32> = one.iter().map(|x| x.abs()).collect();
        let found = search(&weight, &abs, Inputs::Tokens(&one), &options).unwrap();
        assert!(found.error.is_finite());
        let mut wild = mean.clone();
        (wild[0], wild[1], wild[2]) = (0.0, 1e38, 1e-38);
        let found = search(&weight, &wild, Inputs::Hessian(&hessian), &options).unwrap();
        assert!(found.scales.iter().flatten().all(|scale| scale.is_finite() && *scale > 0.0));
        let found = search(&[0.0; ROWS * COLS], &mean, Inputs::Hessian(&hessian), &options).unwrap();
        assert_eq!((found.scales, found.error), (None, 0.0));

        let mut bad = mean.clone();
        bad[3] = f32::NAN;
        let error = search(&weight, &bad, Inputs::Hessian(&hessian), &options).unwrap_err();
        assert!(matches!(error, Error::BadActivation { col: 3, .. }), "{error}");
        let mut bad = hessian.clone();
        bad[COLS + 1] = f32::NAN;
        assert_eq!(search(&weight, &mean, Inputs::Hessian(&bad), &options), Err(Error::BadInputs));
        assert_eq!(search_clips(&grid(), &weight, COLS, Inputs::Hessian(&bad)), Err(Error::BadInputs));
        let mut bad = weight.clone();
        bad[COLS] = f32::INFINITY;
        let error = search(&bad, &mean, Inputs::Hessian(&hessian), &options).unwrap_err();
        assert!(matches!(error, Error::NonFinite { row: 1, col: 0, .. }), "{error}");
    }
}
