//! Plain Rust compiled once for each kind of CPU.

use crate::isa::{Isa, Kind};

/// Work in plain Rust whose loops the compiler makes vectors of.
///
/// `run` and all that it calls in its loops are `#[inline(always)]`: what is not compiled into the caller is compiled
/// without the caller's instructions. Rust neither contracts nor reorders floating point, so the result is the same bits
/// whatever the instructions.
pub trait Work {
    /// What comes of it.
    type Output;

    /// Does it.
    fn run(self) -> Self::Output;
}

impl Isa {
    /// `work.run()`, compiled for these instructions.
    ///
    /// ```
    /// use bitmill_kernels::{Isa, Work};
    ///
    /// struct Sum<'a>(&'a [f32; 16]);
    /// impl Work for Sum<'_> {
    ///     type Output = f32;
    ///     #[inline(always)]
    ///     fn run(self) -> f32 {
    ///         self.0.iter().sum()
    ///     }
    /// }
    /// assert_eq!(Isa::best().run(Sum(&[0.5; 16])), 8.0);
    /// ```
    pub fn run<W: Work>(self, work: W) -> W::Output {
        match self.0 {
            Kind::Scalar => work.run(),
            // SAFETY: only `Isa::available` makes Avx2, after asking the CPU.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { with_avx2(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { with_avx512(work) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_avx2<W: Work>(work: W) -> W::Output {
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
fn with_avx512<W: Work>(work: W) -> W::Output {
    work.run()
}
