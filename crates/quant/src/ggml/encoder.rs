//! Rows into blocks: the public door, the trait that each block type implements, and the choice of a CPU's code.

use std::marker::PhantomData;

use bitmill_tensor::{BlockType, FloatType};

use super::{
    importance::{Importance, sum_of_squares},
    iq1, iq2, iq3, iq4, mxfp4, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0,
    refine::Refined,
    refine_grid::OnGrid,
    ternary,
};
use crate::{Error, error::first_non_finite};

/// How scales and codes of blocks are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BlockSearch {
    /// As ggml does, byte for byte.
    #[default]
    Ggml,
    /// From there on, while the squared error falls, weighed by importance where there is any; never more than ggml's.
    /// `q8_0` has nothing to gain and stays ggml's.
    Best,
}

/// What blocks a matrix becomes, and what its errors count.
#[derive(Debug, Clone, Copy)]
pub struct BlockEncoder<'a> {
    /// The blocks.
    pub block: BlockType,
    /// How much the errors of each column count; `None` leaves it to the weights alone.
    pub importance: Option<Importance<'a>>,
    /// How they are chosen.
    pub search: BlockSearch,
}

impl BlockEncoder<'_> {
    /// ggml's blocks, errors weighed by the weights alone.
    pub fn new(block: BlockType) -> Self {
        Self { block, importance: None, search: BlockSearch::Ggml }
    }
}

/// Encodes `weight`, whole rows of `cols`, into `out`.
///
/// Runs in the calling thread and allocates nothing; rows are independent, so callers split them.
///
/// ```
/// use bitmill_quant::{BlockEncoder, quantize_blocks};
/// use bitmill_tensor::BlockType;
///
/// let weight: Vec<f32> = (0..64).map(|i| i as f32 - 16.0).collect();
/// let mut blocks = [0; 2 * 34];
/// quantize_blocks(&BlockEncoder::new(BlockType::Q8_0), 64, &weight, &mut blocks)?;
/// assert_eq!(&blocks[..4], &[0x08, 0x30, 0x81, 0x89]); // the scale 16 / 127 as f16, then −127, −119, …
/// # Ok::<(), bitmill_quant::Error>(())
/// ```
///
/// # Errors
/// [`UnevenGroups`](Error::UnevenGroups) if a row is not whole blocks, [`NonFinite`](Error::NonFinite) for NaN and
/// infinity, [`ScaleOverflow`](Error::ScaleOverflow) if a block's scale is beyond f16 (llama-quantize refuses both
/// too), [`ImportanceLength`](Error::ImportanceLength) if there is not one importance for each column,
/// [`NeedsImportance`](Error::NeedsImportance) if there is none and [`needs_importance`] says so; `out` is then unspecified.
///
/// # Panics
/// If `weight` is not whole rows, or `out` has another length than their blocks.
pub fn quantize_blocks(
    encoder: &BlockEncoder<'_>,
    cols: usize,
    weight: &[f32],
    out: &mut [u8],
) -> Result<(), Error> {
    let block = encoder.block;
    if !cols.is_multiple_of(block.weights()) {
        return Err(Error::UnevenGroups { in_features: cols, group_size: block.weights() });
    }
    assert!(weight.len().is_multiple_of(cols), "whole rows of {cols}");
    assert_eq!(out.len(), weight.len() / block.weights() * block.bytes(), "bytes of the {block} blocks");
    if encoder.importance.is_none() && needs_importance(block) {
        return Err(Error::NeedsImportance { block });
    }
    let importance = match encoder.importance {
        Some(importance) => Some(importance.of_row(cols)?),
        None => None,
    };
    if weight.is_empty() {
        return Ok(());
    }
    if let Some(at) = first_non_finite(weight) {
        return Err(Error::NonFinite { row: at / cols, col: at % cols, value: weight[at] });
    }
    let rows = Rows { cols, weight, importance };
    let encoded = match block {
        BlockType::Q4_0 => each_small_block::<q4_0::Q4_0, _>(rows, out),
        BlockType::Q4_1 => each_small_block::<q4_1::Q4_1, _>(rows, out),
        BlockType::Q5_0 => each_small_block::<q5_0::Q5_0, _>(rows, out),
        BlockType::Q5_1 => each_small_block::<q5_1::Q5_1, _>(rows, out),
        BlockType::Q8_0 => each_block::<q8_0::Q8_0, _, _>(rows, out),
        BlockType::Q2_K => each_block::<q2_k::Q2_K, _, _>(rows, out),
        BlockType::Q3_K => each_block::<q3_k::Q3_K, _, _>(rows, out),
        BlockType::Q4_K => each_block::<q4_k::Q4_K, _, _>(rows, out),
        BlockType::Q5_K => each_block::<q5_k::Q5_K, _, _>(rows, out),
        BlockType::Q6_K => each_block::<q6_k::Q6_K, _, _>(rows, out),
        BlockType::IQ4_NL => each_block::<iq4::IQ4_NL, _, _>(rows, out),
        BlockType::IQ4_XS => each_block::<iq4::IQ4_XS, _, _>(rows, out),
        BlockType::IQ1_S => each_block::<iq1::IQ1_S, _, _>(rows, out),
        BlockType::IQ1_M => each_block::<iq1::IQ1_M, _, _>(rows, out),
        BlockType::IQ2_XXS => each_block::<iq2::IQ2_XXS, _, _>(rows, out),
        BlockType::IQ2_XS => each_block::<iq2::IQ2_XS, _, _>(rows, out),
        BlockType::IQ2_S => each_block::<iq2::IQ2_S, _, _>(rows, out),
        BlockType::IQ3_XXS => each_block::<iq3::IQ3_XXS, _, _>(rows, out),
        BlockType::IQ3_S => each_block::<iq3::IQ3_S, _, _>(rows, out),
        BlockType::TQ1_0 => each_block::<ternary::TQ1_0, _, _>(rows, out),
        BlockType::TQ2_0 => each_block::<ternary::TQ2_0, _, _>(rows, out),
        BlockType::MXFP4 => each_block::<mxfp4::MXFP4, _, _>(rows, out),
    };
    encoded.map_err(|(at, scale)| Error::ScaleOverflow {
        row: at / cols,
        col: at % cols,
        scale,
        float: FloatType::F16,
    })?;
    if encoder.search == BlockSearch::Best {
        make_better(block, rows, out);
    }
    Ok(())
}

/// Goes on from ggml's blocks.
fn make_better(block: BlockType, rows: Rows<'_>, out: &mut [u8]) {
    match block {
        BlockType::Q4_0 => improve_each::<Refined<q4_0::Q4_0, 1, 32, 32, 18>, _, _>(rows, out),
        BlockType::Q4_1 => improve_each::<Refined<q4_1::Q4_1, 1, 32, 32, 20>, _, _>(rows, out),
        BlockType::Q5_0 => improve_each::<Refined<q5_0::Q5_0, 1, 32, 32, 22>, _, _>(rows, out),
        BlockType::Q5_1 => improve_each::<Refined<q5_1::Q5_1, 1, 32, 32, 24>, _, _>(rows, out),
        BlockType::Q8_0 => {}
        BlockType::IQ1_S => improve_each::<OnGrid<iq1::IQ1_S, 32, 8, 2, 50>, _, _>(rows, out),
        BlockType::IQ1_M => improve_each::<OnGrid<iq1::IQ1_M, 32, 8, 2, 56>, _, _>(rows, out),
        BlockType::IQ2_XXS => improve_each::<OnGrid<iq2::IQ2_XXS, 32, 8, 2, 66>, _, _>(rows, out),
        BlockType::IQ2_XS => improve_each::<OnGrid<iq2::IQ2_XS, 32, 8, 2, 74>, _, _>(rows, out),
        BlockType::IQ2_S => improve_each::<OnGrid<iq2::IQ2_S, 32, 8, 2, 82>, _, _>(rows, out),
        BlockType::IQ3_XXS => improve_each::<OnGrid<iq3::IQ3_XXS, 64, 4, 3, 98>, _, _>(rows, out),
        BlockType::IQ3_S => improve_each::<OnGrid<iq3::IQ3_S, 64, 4, 3, 110>, _, _>(rows, out),
        BlockType::TQ1_0 => improve_each::<ternary::Fitted<ternary::TQ1_0, 54>, _, _>(rows, out),
        BlockType::TQ2_0 => improve_each::<ternary::Fitted<ternary::TQ2_0, 66>, _, _>(rows, out),
        BlockType::MXFP4 => improve_each::<mxfp4::Chosen, _, _>(rows, out),
        BlockType::Q2_K => improve_each::<Refined<q2_k::Q2_K, 16, 16, 256, 84>, _, _>(rows, out),
        BlockType::Q3_K => improve_each::<Refined<q3_k::Q3_K, 16, 16, 256, 110>, _, _>(rows, out),
        BlockType::Q4_K => improve_each::<Refined<q4_k::Q4_K, 8, 32, 256, 144>, _, _>(rows, out),
        BlockType::Q5_K => improve_each::<Refined<q5_k::Q5_K, 8, 32, 256, 176>, _, _>(rows, out),
        BlockType::Q6_K => improve_each::<Refined<q6_k::Q6_K, 16, 16, 256, 210>, _, _>(rows, out),
        BlockType::IQ4_NL => improve_each::<Refined<iq4::IQ4_NL, 1, 32, 32, 18>, _, _>(rows, out),
        BlockType::IQ4_XS => improve_each::<Refined<iq4::IQ4_XS, 8, 32, 256, 136>, _, _>(rows, out),
    }
}

/// Whether the search of these blocks is nothing without importance: ggml's `ggml_quantize_requires_imatrix`.
///
/// ```
/// use bitmill_quant::needs_importance;
/// use bitmill_tensor::BlockType;
/// assert!(needs_importance(BlockType::IQ2_XS) && !needs_importance(BlockType::IQ2_S));
/// ```
pub const fn needs_importance(block: BlockType) -> bool {
    matches!(block, BlockType::IQ1_S | BlockType::IQ2_XXS | BlockType::IQ2_XS)
}

/// The encoder of one block type. A trait and not a function handed around, so that the whole of it is compiled into
/// each caller, for that caller's CPU.
pub(super) trait Encode<const WEIGHTS: usize, const BYTES: usize> {
    /// Writes one block, all of it; the scale if it is beyond f16.
    fn encode(
        weights: &[f32; WEIGHTS],
        weighing: Option<Weighing<'_, WEIGHTS>>,
        out: &mut [u8; BYTES],
    ) -> Result<(), f32>;
}

/// How much the errors of one block's weights count: ggml's `quant_weights`.
#[derive(Clone, Copy)]
pub(super) struct Weighing<'a, const WEIGHTS: usize> {
    /// Of each weight's column; none negative.
    pub importance: &'a [f32; WEIGHTS],
}

/// The encoder with importance of a block type of 32 weights whose search has a lane for each of eight blocks. Without
/// importance these types search nothing, and [`Encode`] is never given any.
pub(super) trait EncodeEight<const BYTES: usize>: Encode<32, BYTES> {
    /// Writes eight blocks of a row the mean of whose squares is `row_mean_square`; the first whose scale is beyond
    /// f16, and that scale.
    fn encode_eight(
        weights: &[f32; 256],
        importance: &[f32; 256],
        row_mean_square: f32,
        out: &mut [[u8; BYTES]; 8],
    ) -> Result<(), (usize, f32)>;
}

/// Whole rows of whole blocks, all finite.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub cols: usize,
    pub weight: &'a [f32],
    /// One for each column.
    pub importance: Option<&'a [f32]>,
}

/// Encodes block by block; where the first block begins whose scale is beyond f16, counted through all rows, with that
/// scale.
pub(super) fn each_block<E: Encode<WEIGHTS, BYTES>, const WEIGHTS: usize, const BYTES: usize>(
    rows: Rows<'_>,
    out: &mut [u8],
) -> Result<(), (usize, f32)> {
    match rows.importance {
        None => for_this_cpu::<Plain<E, WEIGHTS, BYTES>>(rows, out),
        Some(_) => for_this_cpu::<Weighed<E, WEIGHTS, BYTES>>(rows, out),
    }
}

/// [`each_block`] for types that search eight blocks at once where there is importance.
pub(super) fn each_small_block<E: EncodeEight<BYTES>, const BYTES: usize>(
    rows: Rows<'_>,
    out: &mut [u8],
) -> Result<(), (usize, f32)> {
    match rows.importance {
        None => for_this_cpu::<Plain<E, 32, BYTES>>(rows, out),
        Some(_) => for_this_cpu::<Eights<E, BYTES>>(rows, out),
    }
}

/// A way through rows of blocks. One for each search: where two of them were compiled into one function, the compiler
/// made vectors of two lanes out of the second.
pub(super) trait Walk {
    fn walk(rows: Rows<'_>, out: &mut [u8]) -> Result<(), (usize, f32)>;
}

/// Walks with the widest vectors that the CPU has.
///
/// The encoders are plain Rust whose lanes are sub-blocks or weights. They are compiled here again for AVX2 and for
/// AVX-512: the same operations in the same order, eight at once. Rust contracts no multiplication with an addition by
/// itself, so all give the same bytes.
pub(super) fn for_this_cpu<W: Walk>(rows: Rows<'_>, out: &mut [u8]) -> Result<(), (usize, f32)> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;

        #[target_feature(enable = "avx2,avx512f,avx512vl,avx512dq,avx512bw")]
        fn with_avx512<W: Walk>(rows: Rows<'_>, out: &mut [u8]) -> Result<(), (usize, f32)> {
            W::walk(rows, out)
        }
        #[target_feature(enable = "avx2")]
        fn with_avx2<W: Walk>(rows: Rows<'_>, out: &mut [u8]) -> Result<(), (usize, f32)> {
            W::walk(rows, out)
        }
        if has!("avx2") && has!("avx512f") && has!("avx512vl") && has!("avx512dq") && has!("avx512bw") {
            // SAFETY: the CPU was just asked for all that this function needs beyond a safe one.
            return unsafe { with_avx512::<W>(rows, out) };
        }
        if has!("avx2") {
            // SAFETY: the CPU was just asked for AVX2, the only thing that this function needs beyond a safe one.
            return unsafe { with_avx2::<W>(rows, out) };
        }
    }
    W::walk(rows, out)
}

/// Block by block, without importance.
pub(super) struct Plain<E, const WEIGHTS: usize, const BYTES: usize>(PhantomData<E>);

impl<E: Encode<WEIGHTS, BYTES>, const WEIGHTS: usize, const BYTES: usize> Walk for Plain<E, WEIGHTS, BYTES> {
    #[inline(always)]
    fn walk(rows: Rows<'_>, out: &mut [u8]) -> Result<(), (usize, f32)> {
        let (blocks, _) = rows.weight.as_chunks::<WEIGHTS>();
        let (encoded, _) = out.as_chunks_mut::<BYTES>();
        for (index, (block, bytes)) in blocks.iter().zip(encoded).enumerate() {
            E::encode(block, None, bytes).map_err(|scale| (WEIGHTS * index, scale))?;
        }
        Ok(())
    }
}

/// Block by block, with importance.
pub(super) struct Weighed<E, const WEIGHTS: usize, const BYTES: usize>(PhantomData<E>);

impl<E: Encode<WEIGHTS, BYTES>, const WEIGHTS: usize, const BYTES: usize> Walk
    for Weighed<E, WEIGHTS, BYTES>
{
    #[inline(always)]
    fn walk(rows: Rows<'_>, out: &mut [u8]) -> Result<(), (usize, f32)> {
        let (blocks, _) = rows.weight.as_chunks::<WEIGHTS>();
        let (encoded, _) = out.as_chunks_mut::<BYTES>();
        let (importance, _) = rows.importance.expect("walked for it").as_chunks::<WEIGHTS>();
        let of_blocks = importance.iter().cycle();
        for (index, ((block, bytes), importance)) in blocks.iter().zip(encoded).zip(of_blocks).enumerate() {
            E::encode(block, Some(Weighing { importance }), bytes)
                .map_err(|scale| (WEIGHTS * index, scale))?;
        }
        Ok(())
    }
}

/// A better search than ggml's of one block type.
pub(super) trait Improve<const WEIGHTS: usize, const BYTES: usize> {
    /// Puts a block of less error in the place of the one that ggml made of `weights`, if it finds one. `counts` is what the squared
    /// error of each weight counts.
    fn improve(weights: &[f32; WEIGHTS], counts: &[f32; WEIGHTS], block: &mut [u8; BYTES]);
}

/// Block by block, blocks that ggml's search has made.
struct Improved<I, const WEIGHTS: usize, const BYTES: usize>(PhantomData<I>);

impl<I: Improve<WEIGHTS, BYTES>, const WEIGHTS: usize, const BYTES: usize> Walk
    for Improved<I, WEIGHTS, BYTES>
{
    #[inline(always)]
    fn walk(rows: Rows<'_>, out: &mut [u8]) -> Result<(), (usize, f32)> {
        let (blocks, _) = rows.weight.as_chunks::<WEIGHTS>();
        let (encoded, _) = out.as_chunks_mut::<BYTES>();
        let alike = [[1.0; WEIGHTS]];
        let counts = rows.importance.map_or(&alike[..], |importance| importance.as_chunks().0);
        for ((weights, block), counts) in blocks.iter().zip(encoded).zip(counts.iter().cycle()) {
            I::improve(weights, counts, block);
        }
        Ok(())
    }
}

fn improve_each<I: Improve<WEIGHTS, BYTES>, const WEIGHTS: usize, const BYTES: usize>(
    rows: Rows<'_>,
    out: &mut [u8],
) {
    let improved = for_this_cpu::<Improved<I, WEIGHTS, BYTES>>(rows, out);
    debug_assert!(improved.is_ok(), "what is not better is left alone");
}

/// Eight small blocks at a time, with importance; the last of a row are filled up with blocks of zeros.
pub(super) struct Eights<E, const BYTES: usize>(PhantomData<E>);

impl<E: EncodeEight<BYTES>, const BYTES: usize> Walk for Eights<E, BYTES> {
    #[inline(always)]
    fn walk(rows: Rows<'_>, out: &mut [u8]) -> Result<(), (usize, f32)> {
        let importance = rows.importance.expect("walked for it");
        let row_bytes = rows.cols / 32 * BYTES;
        for (row, (weight, out)) in
            rows.weight.chunks_exact(rows.cols).zip(out.chunks_exact_mut(row_bytes)).enumerate()
        {
            let row_mean_square = sum_of_squares(weight) / rows.cols as f32;
            for (eight, out) in out.chunks_mut(8 * BYTES).enumerate() {
                let from = 256 * eight;
                let count = (rows.cols - from).min(256);
                let (mut block_weights, mut block_importance) = ([0.0; 256], [0.0; 256]);
                block_weights[..count].copy_from_slice(&weight[from..][..count]);
                block_importance[..count].copy_from_slice(&importance[from..][..count]);
                let mut encoded = [[0; BYTES]; 8];
                E::encode_eight(&block_weights, &block_importance, row_mean_square, &mut encoded)
                    .map_err(|(block, scale)| (rows.cols * row + from + 32 * block, scale))?;
                out.copy_from_slice(&encoded.as_flattened()[..out.len()]);
            }
        }
        Ok(())
    }
}
