//! Eight floats that go through the same operations side by side.
//!
//! Plain arrays, one loop of eight for each operation: small enough for the compiler to make one instruction of each
//! (two with SSE2). Every lane is rounded by itself, so a lane's result is that of the scalar code.

use std::ops::{Add, Div, Mul, Sub};

/// Eight floats.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(super) struct F8(pub [f32; 8]);

/// Eight truths: all bits set, or none.
#[derive(Clone, Copy)]
#[repr(align(32))]
pub(super) struct M8([u32; 8]);

/// Eight sub-blocks of `N` weights, one after another, as a lane for each: its weight `i` in vector `i`.
#[inline(always)]
pub(super) fn by_sub_block<const N: usize>(weights: &[f32]) -> [F8; N] {
    let mut x = [F8::ZERO; N];
    for (lane, sub_block) in weights.as_chunks::<N>().0.iter().enumerate() {
        for i in 0..N {
            x[i].0[lane] = sub_block[i];
        }
    }
    x
}

/// The lanes of one after those of the other.
#[inline(always)]
pub(super) fn both(first: F8, second: F8) -> [f32; 16] {
    let mut out = [0.0; 16];
    out[..8].copy_from_slice(&first.0);
    out[8..].copy_from_slice(&second.0);
    out
}

impl F8 {
    pub(super) const ZERO: Self = Self([0.0; 8]);

    #[inline(always)]
    pub(super) fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    pub(super) fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    #[inline(always)]
    pub(super) fn sqrt(self) -> Self {
        Self(self.0.map(f32::sqrt))
    }

    #[inline(always)]
    pub(super) fn neg(self) -> Self {
        Self(self.0.map(|value| -value))
    }

    /// Where `self < other`; nowhere beside NaN.
    #[inline(always)]
    pub(super) fn below(self, other: Self) -> M8 {
        M8(std::array::from_fn(|lane| if self.0[lane] < other.0[lane] { u32::MAX } else { 0 }))
    }

    /// Where `self == other`.
    #[inline(always)]
    pub(super) fn equals(self, other: Self) -> M8 {
        M8(std::array::from_fn(|lane| if self.0[lane] == other.0[lane] { u32::MAX } else { 0 }))
    }

    /// The integer below each, for 0 ≤ value < 2^22. Not `as i32`: that saturates, which no vector instruction does.
    #[inline(always)]
    pub(super) fn floor(self) -> [i32; 8] {
        let nearest: [i32; 8] = std::array::from_fn(|lane| super::nearest_int(self.0[lane]));
        let rounded = Self(std::array::from_fn(|lane| nearest[lane] as f32));
        // All bits set is −1.
        let above = self.below(rounded);
        std::array::from_fn(|lane| nearest[lane].wrapping_add(above.0[lane] as i32))
    }

    /// [`nearest_int`](super::nearest_int) of each, kept within `low..=high`, as floats.
    #[inline(always)]
    pub(super) fn nearest_within(self, low: i32, high: i32) -> Self {
        let mut codes = self.0.map(super::nearest_int);
        codes = codes.map(|code| code.max(low));
        codes = codes.map(|code| code.min(high));
        Self(codes.map(|code| code as f32))
    }
}

impl M8 {
    pub(super) const NONE: Self = Self([0; 8]);

    #[inline(always)]
    pub(super) fn any(self) -> bool {
        self.0.into_iter().fold(0, |any, lane| any | lane) != 0
    }

    #[inline(always)]
    pub(super) fn all(self) -> bool {
        self.0.into_iter().fold(u32::MAX, |all, lane| all & lane) != 0
    }

    #[inline(always)]
    pub(super) fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] & other.0[lane]))
    }

    #[inline(always)]
    pub(super) fn and_not(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] & !other.0[lane]))
    }

    /// `yes` where true, `no` elsewhere.
    #[inline(always)]
    pub(super) fn select(self, yes: F8, no: F8) -> F8 {
        F8(std::array::from_fn(|lane| {
            f32::from_bits(yes.0[lane].to_bits() & self.0[lane] | no.0[lane].to_bits() & !self.0[lane])
        }))
    }

    #[inline(always)]
    pub(super) fn lane(self, lane: usize) -> bool {
        self.0[lane] != 0
    }
}

macro_rules! by_lane {
    ($trait:ident, $method:ident, $operator:tt) => {
        impl $trait for F8 {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(std::array::from_fn(|lane| self.0[lane] $operator other.0[lane]))
            }
        }
    };
}
by_lane!(Add, add, +);
by_lane!(Sub, sub, -);
by_lane!(Mul, mul, *);
by_lane!(Div, div, /);
