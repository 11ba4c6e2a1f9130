//! Sixteen rows that go through the same operations side by side.
//!
//! A lane is a row: none ever meets another, so a row comes out the same whatever rows lie beside it. Products are added
//! fused, on every CPU.

use std::ops::{Add, Mul, Sub};

/// Rows side by side.
pub(super) const LANES: usize = 16;

/// One number of each of sixteen rows.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Rows(pub [f32; LANES]);

/// A truth of each of sixteen rows: all bits set, or none.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Which([u32; LANES]);

// Loops and no closures: those would be functions of their own, compiled without the caller's instructions where the
// compiler finds the caller too large for them.
macro_rules! each_lane {
    ($lane:ident => $value:expr) => {{
        let mut out = [0.0; LANES];
        for $lane in 0..LANES {
            out[$lane] = $value;
        }
        Rows(out)
    }};
}

impl Rows {
    pub(super) const ZERO: Self = Self([0.0; LANES]);

    #[inline(always)]
    pub(super) fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    /// `self + a * b`.
    #[inline(always)]
    pub(super) fn plus(self, a: Self, b: Self) -> Self {
        each_lane!(lane => a.0[lane].mul_add(b.0[lane], self.0[lane]))
    }

    /// `self − a * b`.
    #[inline(always)]
    pub(super) fn minus(self, a: Self, b: Self) -> Self {
        each_lane!(lane => (-a.0[lane]).mul_add(b.0[lane], self.0[lane]))
    }

    /// Within `low..=high`; NaN becomes `low`.
    #[inline(always)]
    pub(super) fn within(self, low: f32, high: f32) -> Self {
        let above = each_lane!(lane => if self.0[lane] > low { self.0[lane] } else { low });
        each_lane!(lane => if above.0[lane] < high { above.0[lane] } else { high })
    }

    /// The nearest integers, ties to even, of magnitudes below 2^22.
    #[inline(always)]
    pub(super) fn rounded(self) -> Self {
        const MAGIC: f32 = 12_582_912.0;
        each_lane!(lane => (self.0[lane] + MAGIC) - MAGIC)
    }

    /// `1 / self`, 0 for 0 and where that overflows.
    #[inline(always)]
    pub(super) fn inverse(self) -> Self {
        let inverse = each_lane!(lane => 1.0 / self.0[lane]);
        each_lane!(lane => if inverse.0[lane].abs() <= f32::MAX { inverse.0[lane] } else { 0.0 })
    }

    /// Where `self < other`; nowhere beside NaN.
    #[inline(always)]
    pub(super) fn below(self, other: Self) -> Which {
        let mut out = [0; LANES];
        for (lane, out) in out.iter_mut().enumerate() {
            *out = if self.0[lane] < other.0[lane] { u32::MAX } else { 0 };
        }
        Which(out)
    }
}

impl Which {
    /// `yes` where true, `no` elsewhere.
    #[inline(always)]
    pub(super) fn select(self, yes: Rows, no: Rows) -> Rows {
        each_lane!(lane => {
            f32::from_bits(yes.0[lane].to_bits() & self.0[lane] | no.0[lane].to_bits() & !self.0[lane])
        })
    }

    #[inline(always)]
    pub(super) fn any(self) -> bool {
        let mut any = 0;
        for lane in self.0 {
            any |= lane;
        }
        any != 0
    }
}

macro_rules! by_lane {
    ($trait:ident, $method:ident, $operator:tt) => {
        impl $trait for Rows {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                each_lane!(lane => self.0[lane] $operator other.0[lane])
            }
        }
    };
}
by_lane!(Add, add, +);
by_lane!(Sub, sub, -);
by_lane!(Mul, mul, *);
