//! Made-up weights, the same that `tools/golden/ggml_blocks.c` makes.

#![allow(dead_code, reason = "each test and example takes what it needs")]

/// splitmix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u32) -> u32 {
        (self.next() >> 32) as u32 % n
    }

    /// Uniform in 0..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as i32 as f32 * power_of_two(-24)
    }

    /// Twelve uniforms: mean 0, variance 1.
    pub fn normal(&mut self) -> f32 {
        let sum: i64 = (0..12).map(|_| (self.next() >> 40) as i64).sum();
        (sum - (6 << 24)) as i32 as f32 * power_of_two(-24)
    }
}

fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// Keeps the upper `32 - drop` bits, rounded to nearest even.
fn rounded(value: f32, drop: u32) -> f32 {
    let bits = value.to_bits();
    let half = (1 << (drop - 1)) - 1;
    f32::from_bits((bits + half + (bits >> drop & 1)) >> drop << drop)
}

/// The distributions, in the order of their seeds.
pub const NAMES: [&str; 21] = [
    "normal",
    "heavy_tailed",
    "uniform",
    "constants",
    "zeros",
    "denormals",
    "outlier",
    "alternating",
    "bf16",
    "f16",
    "near_f16_max",
    "mixed_scales",
    "ternary",
    "positive",
    "negative",
    "sparse",
    "ramp",
    "vanishing",
    "f16_subnormal",
    "integers",
    "block_fates",
];

/// `count` weights of a distribution.
pub fn fill(name: &str, seed: u64, count: usize) -> Vec<f32> {
    let which = NAMES.iter().position(|known| *known == name).expect("a known distribution");
    let random = &mut Random::new(seed.wrapping_mul(1000).wrapping_add(which as u64));
    let (mut value, mut other, mut spot) = (0.0f32, 0.0f32, 0u32);
    let two = power_of_two;
    (0..count)
        .map(|i| match name {
            "normal" => random.normal() * two(-6),
            "heavy_tailed" => {
                let (a, b) = (random.normal(), random.normal());
                a / (b.abs() + two(-6)) * two(-7)
            }
            "uniform" => (random.unit() - 0.5) * two(-4),
            "constants" => {
                if i % 32 == 0 {
                    value = random.normal() * two(-5);
                }
                value
            }
            "zeros" => {
                if i % 3 == 0 {
                    -0.0
                } else {
                    0.0
                }
            }
            "denormals" => {
                let r = (random.next() >> 32) as u32;
                f32::from_bits(r & 0x8000_0000 | (r & 0x7f_ffff) >> (r >> 27 & 15))
            }
            "outlier" => {
                if i % 256 == 0 {
                    spot = random.below(256);
                }
                let small = random.normal() * two(-8);
                if i as u32 % 256 == spot { small * two(9) } else { small }
            }
            "alternating" => {
                let value = random.unit() * two(-5);
                if i % 2 == 1 { -value } else { value }
            }
            "bf16" => rounded(random.normal() * two(-6), 16),
            "f16" => rounded(random.normal() * two(-6) + two(-9), 13),
            "near_f16_max" => rounded((random.unit() - 0.5) * 131_008.0, 13),
            "mixed_scales" => {
                if i % 16 == 0 {
                    value = two(random.below(24) as i32 - 20);
                }
                random.normal() * value
            }
            "ternary" => {
                if i % 256 == 0 {
                    value = random.unit() * two(-4);
                }
                value * (random.below(3) as i32 - 1) as f32
            }
            "positive" => random.unit() * two(-5) + two(-8),
            "negative" => -two(-8) - random.unit() * two(-5),
            "sparse" => {
                let value = random.normal();
                if random.below(10) != 0 { 0.0 } else { value * two(-5) }
            }
            "ramp" => {
                if i % 256 == 0 {
                    value = random.normal();
                    other = random.unit() * two(-8);
                }
                value + other * (i % 256) as f32
            }
            "vanishing" => {
                if i % 16 == 0 {
                    value = two(-56 + random.below(12) as i32);
                }
                random.normal() * value
            }
            "f16_subnormal" => random.normal() * two(-23),
            "integers" => (random.below(31) as i32 - 15) as f32,
            _ => {
                if i % 16 == 0 {
                    spot = random.below(5);
                    value = random.normal();
                }
                other = random.normal() * two(-6);
                match spot {
                    0 => 0.0,
                    1 => value,
                    2 => other,
                    3 => other * two(-20),
                    _ if i % 16 == 5 => value,
                    _ => 0.0,
                }
            }
        })
        .collect()
}

/// The distributions of importance, in the order of their seeds.
pub const IMPORTANCE: [&str; 7] = ["ones", "squares", "sparse", "zeros", "denormals", "wide", "dead_blocks"];

/// The importance of `count` columns.
pub fn fill_importance(name: &str, seed: u64, count: usize) -> Vec<f32> {
    let which = IMPORTANCE.iter().position(|known| *known == name).expect("a known distribution");
    let random = &mut Random::new(seed.wrapping_mul(1000).wrapping_add(500 + which as u64));
    (0..count)
        .map(|i| match name {
            "ones" => 1.0,
            "squares" => {
                let value = random.normal();
                value * value
            }
            "sparse" => {
                let value = random.unit();
                if random.below(4) != 0 { 0.0 } else { value }
            }
            "zeros" => 0.0,
            "denormals" => f32::from_bits((random.next() >> 32) as u32 & 0x7f_ffff),
            "wide" => {
                let value = power_of_two(random.below(40) as i32 - 20);
                random.unit() * value
            }
            _ => {
                let value = random.unit();
                if i / 16 % 3 == 1 { 0.0 } else { value }
            }
        })
        .collect()
}

/// FNV-1a, 64 bits.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Little-endian bytes of floats.
pub fn bytes_of(weights: &[f32]) -> Vec<u8> {
    weights.iter().flat_map(|weight| weight.to_le_bytes()).collect()
}
