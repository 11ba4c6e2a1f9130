//! Which instructions a kernel may use.

use std::fmt;
use std::sync::OnceLock;

/// A set of instructions that this CPU has; every kernel takes one and picks its twin by it.
///
/// There is no way to make an `Isa` that the CPU lacks, which is what makes calling the twins sound.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Isa(pub(crate) Kind);

/// The twins that exist.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Kind {
    /// The definition, in plain Rust.
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// All of `Avx2`, and AVX-512 F, BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The fastest that this CPU has. The CPU is asked once.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().copied().unwrap_or(Self::scalar()))
    }

    /// Every one that this CPU has, `scalar` first, the fastest last.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "other architectures have the scalar kind only")]
        let mut found = vec![Self(Kind::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                found.push(Self(Kind::Avx2));
                if has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni") {
                    found.push(Self(Kind::Avx512));
                }
            }
        }
        found
    }

    /// Plain Rust: the definition of every kernel, on every CPU.
    pub fn scalar() -> Self {
        Self(Kind::Scalar)
    }

    /// `"scalar"`, `"avx2"` or `"avx512-vnni"`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512-vnni",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::print_stdout, reason = "CI shows which twins it tested")]
    fn scalar_comes_first_and_the_best_last() {
        let available = Isa::available();
        println!("twins on this CPU: {available:?}");
        assert_eq!(available.first(), Some(&Isa::scalar()));
        assert_eq!(available.last(), Some(&Isa::best()));
    }
}
