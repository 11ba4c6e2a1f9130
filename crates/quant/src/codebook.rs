//! NF4 as QLoRA has it, arXiv:2305.14314: each weight over the largest magnitude of its block goes to the nearest of 16 values,
//! and (double quantization) those magnitudes less their mean to the nearest of 256, over the largest of 256 of them.
//!
//! Codes are bitsandbytes' own, bit by bit: multiplied with the reciprocal of the magnitude, a value in the middle between two
//! goes to the lower one. The same rule is taken for magnitudes, as bitsandbytes' kernels for GPUs have it (its code for CPUs
//! looks them up in a table and is a place off now and then). Their mean is summed in f64.

use bitmill_tensor::{Codebook, DYNAMIC_MAP, DYNAMIC_MAP_BYTES, Nested};

/// The largest magnitudes of blocks as codes: what scales of [`Nested`](bitmill_tensor::ScaleType::Nested) are.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NestedAbsmax {
    /// One for each block of the matrix, row after row.
    pub codes: Vec<u8>,
    /// f32, what 256 of them are multiplied with.
    pub absmax: Vec<u8>,
    /// What is added.
    pub offset: f32,
}

impl NestedAbsmax {
    /// Rounds the largest magnitudes of all blocks of a matrix, which are finite.
    ///
    /// ```
    /// use bitmill_quant::NestedAbsmax;
    /// let nested = NestedAbsmax::new(&[1.0, 3.0, 2.0]);
    /// // The mean is 2, and 1 is what is left at most: the last of 256 values, the first (−0.993) and 0.
    /// assert_eq!((nested.offset, nested.codes.as_slice()), (2.0, &[0, 255, 127][..]));
    /// assert_eq!(nested.as_nested().scale(1, 255), 3.0);
    /// ```
    pub fn new(absmax: &[f32]) -> Self {
        let sum: f64 = absmax.iter().map(|&most| f64::from(most)).sum();
        let offset = if absmax.is_empty() { 0.0 } else { (sum / absmax.len() as f64) as f32 };
        let mut nested = Self { offset, ..Self::default() };
        for absmax in absmax.chunks(Nested::BLOCK) {
            let most = absmax.iter().fold(0f32, |most, &absmax| most.max((absmax - offset).abs()));
            nested.absmax.extend(most.to_le_bytes());
            nested.codes.extend(absmax.iter().map(|absmax| {
                let value = over(absmax - offset, most);
                MIDDLES_OF_256.partition_point(|middle| *middle < value) as u8
            }));
        }
        nested
    }

    /// What readers need of it beside the codes.
    pub fn as_nested(&self) -> Nested<'_> {
        Nested { map: &DYNAMIC_MAP_BYTES, absmax: &self.absmax, offset: self.offset }
    }
}

/// The code of `weight` in a block whose largest magnitude is `absmax`.
pub(crate) fn nearest(list: Codebook, weight: f32, absmax: f32) -> u8 {
    let value = over(weight, absmax);
    let (middles, order) = match list {
        Codebook::Nf4 => (&MIDDLES_OF_NF4, None),
        Codebook::Fp4 => (&MIDDLES_OF_FP4, Some(&FP4_ORDER)),
    };
    let place: u8 = middles.iter().map(|middle| u8::from(*middle < value)).sum();
    order.map_or(place, |order| order[usize::from(place)])
}

/// `value / most`, nothing divided by zero.
fn over(value: f32, most: f32) -> f32 {
    // The constant is the library's: below it everything counts as one.
    (value * (1.0 / most.max(1e-38))).clamp(-1.0, 1.0)
}

/// Codes of the 4-bit floats in the order of their values; of the two zeros the positive one comes first.
const FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

const FP4_SORTED: [f32; 16] = {
    let mut sorted = [0.0; 16];
    let mut at = 0;
    while at < 16 {
        sorted[at] = Codebook::Fp4.values()[FP4_ORDER[at] as usize];
        at += 1;
    }
    sorted
};

static MIDDLES_OF_NF4: [f32; 15] = middles(Codebook::Nf4.values());
static MIDDLES_OF_FP4: [f32; 15] = middles(&FP4_SORTED);
static MIDDLES_OF_256: [f32; 255] = middles(&DYNAMIC_MAP);

/// What lies in the middle between each of `N + 1` ascending values and the next.
const fn middles<const N: usize, const M: usize>(values: &[f32; M]) -> [f32; N] {
    assert!(N + 1 == M, "one less than values");
    let mut middles = [0.0; N];
    let mut at = 0;
    while at < N {
        middles[at] = (values[at] + values[at + 1]) / 2.0;
        at += 1;
    }
    middles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_its_own_nearest_and_a_middle_goes_down() {
        for list in [Codebook::Nf4, Codebook::Fp4] {
            for &value in list.values() {
                let code = nearest(list, 3.0 * value, 3.0);
                assert_eq!(list.values()[usize::from(code)], value, "{list:?}");
            }
        }
        for (at, middle) in MIDDLES_OF_NF4.into_iter().enumerate() {
            assert_eq!(usize::from(nearest(Codebook::Nf4, middle, 1.0)), at);
            assert_eq!(usize::from(nearest(Codebook::Nf4, middle.next_up(), 1.0)), at + 1);
        }
    }

    #[test]
    fn equal_magnitudes_are_their_mean() {
        for most in [0.0f32, 0.75] {
            let nested = NestedAbsmax::new(&[most; 300]);
            assert_eq!((nested.offset, nested.absmax.len()), (most, 8));
            assert!((0..300).all(|block| nested.as_nested().scale(block, nested.codes[block]) == most));
        }
    }
}
