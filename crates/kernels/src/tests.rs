//! Every twin against the definition, and the definition against plain arithmetic.

use std::num::NonZeroUsize;
use std::sync::Once;

use bitmill_tensor::{
    Bits, BlockType, Codebook, DYNAMIC_MAP_BYTES, Element, Encoding, Extent, FloatType, Grouped, Matrix,
    Nested, ScaleType, Scaled, WeightData, WeightView, ZeroPoint,
};

use crate::activations::Activations;
use crate::dense_panel::{self, DensePanel};
use crate::matmul::{exact_dot, fast_dot};
use crate::panel::{self, Panel, ROWS};
use crate::row::Row;
use crate::{Isa, Path, dequantize_rows, matmul, scalar, widen};

/// xorshift64*: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in −1..1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 56) as u8).collect()
    }

    fn matrix(&mut self, rows: usize, cols: usize) -> Matrix {
        Matrix::from_vec(rows, cols, (0..rows * cols).map(|_| self.float()).collect())
    }
}

/// Bytes that end where a page that must not be read begins, so that reading past them is a crash, not luck.
#[cfg(unix)]
struct Guarded {
    map: *mut libc::c_void,
    mapped: usize,
    start: usize,
    len: usize,
}

#[cfg(unix)]
impl Guarded {
    fn new(bytes: &[u8]) -> Self {
        const PAGE: usize = 1 << 16;
        let body = bytes.len().div_ceil(PAGE).max(1) * PAGE;
        let mapped = body + PAGE;
        // SAFETY: a fresh private mapping; its last page is taken away, the rest is written within bounds.
        unsafe {
            let map = libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(map, libc::MAP_FAILED, "mmap");
            assert_eq!(libc::mprotect(map.byte_add(body), PAGE, libc::PROT_NONE), 0, "mprotect");
            let start = body - bytes.len();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.cast::<u8>().add(start), bytes.len());
            Self { map, mapped, start, len: bytes.len() }
        }
    }
}

#[cfg(unix)]
impl std::ops::Deref for Guarded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: these bytes were written in `new` and stay mapped until `drop`.
        unsafe { std::slice::from_raw_parts(self.map.cast::<u8>().add(self.start), self.len) }
    }
}

#[cfg(unix)]
impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`.
        unsafe { libc::munmap(self.map, self.mapped) };
    }
}

#[cfg(not(unix))]
struct Guarded(Box<[u8]>);

#[cfg(not(unix))]
impl Guarded {
    fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

#[cfg(not(unix))]
impl std::ops::Deref for Guarded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Where the f16 scales of a block lie.
fn float_places(block: BlockType) -> &'static [usize] {
    match block {
        BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q5_0 | BlockType::IQ4_NL | BlockType::IQ4_XS => &[0],
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => &[0, 2],
        BlockType::Q2_K => &[80, 82],
        BlockType::Q3_K => &[108],
        BlockType::Q6_K => &[208],
        BlockType::IQ1_S | BlockType::IQ2_XXS | BlockType::IQ2_XS => &[0],
        BlockType::IQ2_S | BlockType::IQ3_XXS | BlockType::IQ3_S => &[0],
        BlockType::TQ1_0 => &[52],
        BlockType::TQ2_0 => &[64],
        // The scale is a byte, or spread over four words.
        BlockType::MXFP4 | BlockType::IQ1_M => &[],
    }
}

/// Gives a block scales that weights have: f16 numbers where it has some, powers of two around 2^-6 where it has those.
fn set_scales(block: BlockType, bytes: &mut [u8], mut scale: impl FnMut() -> [u8; 2]) {
    for &at in float_places(block) {
        bytes[at..at + 2].copy_from_slice(&scale());
    }
    match block {
        BlockType::MXFP4 => bytes[0] = 118 + bytes[0] % 8,
        BlockType::IQ1_M => {
            let scale = u16::from_le_bytes(scale());
            for word in 0..4 {
                let top = (scale >> (4 * word)) as u8 & 15;
                bytes[49 + 2 * word] = bytes[49 + 2 * word] & 15 | top << 4;
            }
        }
        _ => {}
    }
}

/// A random matrix of some encoding. Codes take every value; scales are of a size that weights have.
struct Sample {
    encoding: Encoding,
    out_features: usize,
    in_features: usize,
    weights: Guarded,
    scales: Guarded,
    zero_points: Guarded,
}

impl Sample {
    fn new(encoding: Encoding, out_features: usize, in_features: usize) -> Self {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (out_features * 65_537 + in_features) as u64);
        let scale_bits = |random: &mut Random| {
            let scale = random.float() * 0.02 + if random.next().is_multiple_of(2) { 0.03 } else { -0.03 };
            half::f16::from_f32(scale).to_le_bytes()
        };
        let (mut scales, mut zero_points) = (Vec::new(), Vec::new());
        let weights = match encoding {
            Encoding::Float(float) => {
                let mut bytes = Vec::new();
                (0..out_features * in_features).for_each(|_| float.push(random.float(), &mut bytes));
                bytes
            }
            Encoding::Block(block) => {
                let mut bytes = random.bytes(encoding.matrix_bytes(out_features, in_features));
                for bytes in bytes.chunks_exact_mut(block.bytes()) {
                    set_scales(block, bytes, || scale_bits(&mut random));
                }
                bytes
            }
            Encoding::Grouped(layout) => {
                let groups = layout.groups_per_row(in_features);
                for _ in 0..out_features * groups {
                    layout.scale.push(random.float() * 0.02 + 0.03, &mut scales);
                }
                if layout.zero_point == ZeroPoint::Asymmetric {
                    zero_points = random.bytes(4 * layout.zero_point_words(out_features) * groups);
                }
                random.bytes(4 * out_features * layout.words_per_row(in_features))
            }
            Encoding::Scaled(layout) => {
                let (lines, per_line) = layout.extent.scales(out_features, in_features);
                for _ in 0..lines * per_line {
                    match layout.scale {
                        ScaleType::Float(float) => float.push(random.float() * 0.02 + 0.03, &mut scales),
                        ScaleType::Fp8 => scales.push(40 + random.next() as u8 % 40),
                        ScaleType::PowerOfTwo => scales.push(118 + random.next() as u8 % 8),
                        ScaleType::Nested => scales.push(random.next() as u8),
                    }
                }
                // What nested scales are read with stands in for the zero points.
                if layout.scale == ScaleType::Nested {
                    for _ in 0..Nested::scales(lines * per_line) {
                        FloatType::F32.push(random.float() * 0.01 + 0.02, &mut zero_points);
                    }
                }
                let mut bytes = random.bytes(out_features * layout.element.row_bytes(in_features));
                // All ones are no number.
                bytes.iter_mut().filter(|byte| **byte & 127 == 127).for_each(|byte| *byte ^= 1);
                bytes
            }
            Encoding::Sparse { float, values } => {
                // The bitmask stands in for the scales, the row offsets for the zero points.
                let row_bytes = in_features.div_ceil(8);
                scales.resize(out_features * row_bytes, 0);
                let (mut bytes, mut kept) = (Vec::new(), 0);
                for row in 0..out_features {
                    zero_points.extend((kept as i64).to_le_bytes());
                    for i in 0..in_features {
                        let left = out_features * in_features - row * in_features - i;
                        if (random.next() >> 20) as usize % left < values - kept {
                            scales[row * row_bytes + i / 8] |= 1 << (i % 8);
                            float.push(random.float(), &mut bytes);
                            kept += 1;
                        }
                    }
                }
                assert_eq!(kept, values, "values of a sparse sample");
                bytes
            }
        };
        let [weights, scales, zero_points] = [weights, scales, zero_points].map(|bytes| Guarded::new(&bytes));
        Self { encoding, out_features, in_features, weights, scales, zero_points }
    }

    fn view(&self) -> WeightView<'_> {
        let data = match self.encoding {
            Encoding::Float(float) => WeightData::Float { float, bytes: &self.weights },
            Encoding::Block(block) => WeightData::Block { block, bytes: &self.weights },
            Encoding::Grouped(layout) => WeightData::Grouped {
                layout,
                packed: &self.weights,
                scales: &self.scales,
                zero_points: &self.zero_points,
            },
            Encoding::Scaled(layout) => {
                let (codes, scales) = (&*self.weights, &*self.scales);
                let nested = (layout.scale == ScaleType::Nested).then(|| Nested {
                    map: &DYNAMIC_MAP_BYTES,
                    absmax: &self.zero_points,
                    offset: 0.05,
                });
                WeightData::Scaled { layout, codes, scales, global: 1792.0, nested, kept: &[] }
            }
            Encoding::Sparse { float, .. } => WeightData::Sparse {
                float,
                bitmask: &self.scales,
                values: &self.weights,
                row_offsets: &self.zero_points,
            },
        };
        WeightView::new(self.out_features, self.in_features, data).unwrap()
    }

    /// All weights by the definition.
    fn unpacked(&self) -> Matrix {
        let mut all = Matrix::zeros(self.out_features, self.in_features);
        dequantize_rows(Isa::scalar(), &self.view(), 0, all.as_mut_slice());
        all
    }
}

fn grouped(bits: u8, group_size: usize, zero_point: ZeroPoint, scale: FloatType) -> Encoding {
    Encoding::Grouped(Grouped {
        bits: Bits::new(bits).unwrap(),
        group_size: NonZeroUsize::new(group_size).unwrap(),
        zero_point,
        scale,
    })
}

/// Every encoding at shapes that make each branch run: whole chunks of 256, part of one, part of a block.
fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    for float in [FloatType::F32, FloatType::F16, FloatType::BF16] {
        for in_features in [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 300] {
            samples.push(Sample::new(Encoding::Float(float), 5, in_features));
        }
    }
    for float in [FloatType::F32, FloatType::F16, FloatType::BF16] {
        for in_features in [1, 7, 8, 9, 31, 32, 33, 64, 255, 256, 300, 1000] {
            for values in [0, 5 * in_features / 3, 5 * in_features - 1, 5 * in_features] {
                samples.push(Sample::new(Encoding::Sparse { float, values }, 5, in_features));
            }
        }
    }
    let size = |n| NonZeroUsize::new(n).unwrap();
    for (element, extent, scale, widths) in [
        (Element::Int8, Extent::Row, ScaleType::Float(FloatType::BF16), &[1, 31, 32, 300][..]),
        (Element::Fp8, Extent::Matrix, ScaleType::Float(FloatType::F32), &[33, 256]),
        (
            Element::Fp8,
            Extent::Block { rows: size(16), cols: size(128) },
            ScaleType::Float(FloatType::F16),
            &[100, 128, 300],
        ),
        (Element::Fp8, Extent::Columns(size(48)), ScaleType::Float(FloatType::F16), &[96, 288]),
        (Element::Fp4, Extent::Columns(size(16)), ScaleType::Fp8, &[16, 48, 272]),
        (Element::Fp4, Extent::Columns(size(32)), ScaleType::PowerOfTwo, &[32, 288]),
        (Element::Fp6, Extent::Columns(size(32)), ScaleType::PowerOfTwo, &[32, 288]),
        (
            Element::Listed(Codebook::Nf4),
            Extent::Columns(size(64)),
            ScaleType::Float(FloatType::F32),
            &[64, 320],
        ),
        (Element::Listed(Codebook::Fp4), Extent::Columns(size(32)), ScaleType::Nested, &[32, 288, 512]),
    ] {
        for &in_features in widths {
            samples.push(Sample::new(Encoding::Scaled(Scaled { element, extent, scale }), 19, in_features));
        }
    }
    for block in BlockType::ALL {
        let widths: &[usize] =
            if block.weights() == 32 { &[32, 64, 96, 224, 256, 288, 896] } else { &[256, 512, 1280] };
        for &in_features in widths {
            samples.push(Sample::new(Encoding::Block(block), 19, in_features));
        }
    }
    for bits in [4, 8] {
        for zero_point in [ZeroPoint::Symmetric, ZeroPoint::Asymmetric] {
            // [in_features, group size]: whole blocks, chunks, rows, halves of a block, and odd ones.
            for (in_features, group_size) in [
                (256, 32),
                (320, 32),
                (384, 64),
                (384, 128),
                (896, 128),
                (288, 96),
                (512, 256),
                (1024, 512),
                (576, 576),
                (33, 33),
                (77, 77),
                (300, 300),
                (64, 16),
                (96, 24),
                (231, 7),
                (9, 1),
            ] {
                let scale = [FloatType::BF16, FloatType::F16, FloatType::F32][in_features % 3];
                samples.push(Sample::new(grouped(bits, group_size, zero_point, scale), 19, in_features));
            }
        }
    }
    for bits in [2, 3, 5, 6, 7] {
        for zero_point in [ZeroPoint::Symmetric, ZeroPoint::Asymmetric] {
            for (in_features, group_size) in
                [(256, 32), (384, 64), (896, 128), (288, 96), (1024, 512), (77, 77), (300, 300), (64, 16)]
            {
                let scale = [FloatType::BF16, FloatType::F16, FloatType::F32][in_features % 3];
                samples.push(Sample::new(grouped(bits, group_size, zero_point, scale), 37, in_features));
            }
        }
    }
    for bits in [1, 2, 3, 5, 6, 7] {
        samples.push(Sample::new(grouped(bits, 20, ZeroPoint::Asymmetric, FloatType::BF16), 37, 100));
    }
    samples
}

/// The twins of this CPU, named once in the test's output: CI shows what it tested.
#[allow(clippy::print_stdout, reason = "CI shows which twins it tested")]
fn twins() -> Vec<Isa> {
    static NAMED: Once = Once::new();
    let isas = Isa::available();
    NAMED.call_once(|| {
        println!("twins tested: {}", isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "));
    });
    isas
}

const GUARD: f32 = 12345.678;

/// `n` NaN between guard values; what `fill` wrote, after the guards were found untouched.
fn guarded_floats(n: usize, fill: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut buffer = vec![GUARD; n + 64];
    buffer[32..32 + n].fill(f32::NAN);
    fill(&mut buffer[32..32 + n]);
    assert!(buffer[..32].iter().chain(&buffer[32 + n..]).all(|&x| x == GUARD), "wrote outside its buffer");
    buffer[32..32 + n].to_vec()
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_isa_unpacks_the_same_bits() {
    for sample in samples() {
        let view = sample.view();
        let expected = bits_of(sample.unpacked().as_slice());
        for isa in twins() {
            for (first, rows) in [(0, sample.out_features), (2, 3), (sample.out_features - 1, 1)] {
                let n = rows * sample.in_features;
                let found = guarded_floats(n, |out| dequantize_rows(isa, &view, first, out));
                let expected = &expected[first * sample.in_features..][..n];
                assert_eq!(bits_of(&found), expected, "{isa} {} {}", sample.encoding, sample.in_features);
            }
        }
    }
}

/// With scales that are floats.
fn small_numbers<'a>(layout: Scaled, codes: &'a [u8], scales: &'a [u8], kept: &'a [u8]) -> WeightData<'a> {
    WeightData::Scaled { layout, codes, scales, global: 1.0, nested: None, kept }
}

#[test]
fn every_code_of_small_numbers_is_the_same_in_every_isa() {
    let scales: Vec<u8> = 1.5f32.to_le_bytes().to_vec();
    for (element, columns) in [
        (Element::Int8, 256),
        (Element::Fp8, 256),
        (Element::Fp4, 512),
        (Element::Fp6, 1024),
        (Element::Listed(Codebook::Nf4), 512),
        (Element::Listed(Codebook::Fp4), 512),
    ] {
        // Each byte once; of 6-bit numbers three times, in other places.
        let codes: Vec<u8> = (0..element.row_bytes(columns)).map(|at| (at * 5) as u8).collect();
        let codes = Guarded::new(&codes);
        let layout = Scaled { element, extent: Extent::Row, scale: ScaleType::Float(FloatType::F32) };
        let data = small_numbers(layout, &codes, &scales, &[]);
        let view = WeightView::new(1, columns, data).unwrap();
        let expected: Vec<f32> = (0..columns).map(|at| element.read(&codes, at) * 1.5).collect();
        for isa in twins() {
            let found = guarded_floats(columns, |out| dequantize_rows(isa, &view, 0, out));
            assert_eq!(bits_of(&found), bits_of(&expected), "{isa} {element:?}");
        }
    }
}

#[test]
fn two_numbers_of_each_four_lie_where_their_bits_are() {
    let (rows, columns) = (5, 100);
    let size = |n| NonZeroUsize::new(n).unwrap();
    for (element, extent) in [
        (Element::Int8, Extent::Row),
        (Element::Fp8, Extent::Columns(size(20))),
        (Element::Fp8, Extent::Block { rows: size(2), cols: size(64) }),
    ] {
        let (lines, per_line) = extent.scales(rows, columns);
        let scales: Vec<u8> = (0..lines * per_line).flat_map(|at| (0.5 + at as f32).to_le_bytes()).collect();
        let (mut codes, mut kept, mut expected) = (Vec::new(), vec![0u8; rows * 13], Vec::new());
        for row in 0..rows {
            for four in 0..columns / 4 {
                // Every way to choose two of four.
                let two = [0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100][(row * 7 + four) % 6];
                kept[13 * row + four / 2] |= two << (four % 2 * 4);
                for column in 4 * four..4 * four + 4 {
                    let is_kept = two >> (column % 4) & 1 == 1;
                    let line = row / extent.rows().min(rows) * per_line;
                    let scale = 0.5 + (line + column / extent.cols().min(columns)) as f32;
                    if is_kept {
                        codes.push((row * 31 + column) as u8 % 126);
                    }
                    let code = codes.last().copied().unwrap_or(0);
                    expected.push(if is_kept { element.read(&[code], 0) * scale } else { 0.0 });
                }
            }
        }
        let layout = Scaled { element, extent, scale: ScaleType::Float(FloatType::F32) };
        let (codes, kept) = (Guarded::new(&codes), Guarded::new(&kept));
        let data = small_numbers(layout, &codes, &scales, &kept);
        let view = WeightView::new(rows, columns, data).unwrap();
        for isa in twins() {
            let found = guarded_floats(rows * columns, |out| dequantize_rows(isa, &view, 0, out));
            assert_eq!(found, expected, "{isa} {layout}");
        }
    }
}

#[test]
fn kept_weights_lie_where_their_bits_are_and_what_is_not_there_is_zero() {
    let (rows, cols, float) = (3, 75, FloatType::BF16);
    let mut random = Random(11);
    let dense: Vec<f32> =
        (0..rows * cols).map(|i| if i * i % 5 < 2 { 0.0 } else { float.round(random.float()) }).collect();
    let (mut bitmask, mut values, mut row_offsets) = (vec![0u8; rows * 10], Vec::new(), Vec::new());
    for (r, row) in dense.chunks(cols).enumerate() {
        row_offsets.extend((values.len() as i64 / 2).to_le_bytes());
        for (i, weight) in row.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
            bitmask[10 * r + i / 8] |= 1 << (i % 8);
            float.push(*weight, &mut values);
        }
    }
    let unpacked = |isa: Isa, values: &[u8], row_offsets: &[u8]| {
        let values = Guarded::new(values);
        let data = WeightData::Sparse { float, bitmask: &bitmask, values: &values, row_offsets };
        let view = WeightView::new(rows, cols, data).unwrap();
        guarded_floats(rows * cols, |out| dequantize_rows(isa, &view, 0, out))
    };
    let mut cut = dense.clone();
    let last = cut.iter().rposition(|weight| *weight != 0.0).unwrap();
    cut[last] = 0.0;
    for isa in twins() {
        assert_eq!(unpacked(isa, &values, &row_offsets), dense, "{isa}");
        assert_eq!(unpacked(isa, &values[..values.len() - 2], &row_offsets), cut, "{isa}");
        for hostile in [-1, i64::MIN, i64::MAX, values.len() as i64] {
            let mut offsets = row_offsets.clone();
            offsets[8..16].copy_from_slice(&hostile.to_le_bytes());
            let found = unpacked(isa, &values, &offsets);
            assert!(found[cols..2 * cols].iter().all(|weight| *weight == 0.0), "{isa} {hostile}");
            assert_eq!(found[2 * cols..], dense[2 * cols..], "{isa} {hostile}");
        }
    }
}

#[test]
fn widening_gives_what_each_element_reads_as() {
    for float in [FloatType::F32, FloatType::F16, FloatType::BF16] {
        // Every pattern of 16 bits for the short types, infinities and subnormal numbers among them.
        let count = 65_536 + 13;
        let bytes: Vec<u8> = match float {
            FloatType::F32 => (0..count as u32).flat_map(|i| (i * 65_521).to_le_bytes()).collect(),
            _ => (0..count).flat_map(|i| (i as u16).to_le_bytes()).collect(),
        };
        for isa in twins() {
            let found = guarded_floats(count, |out| widen(isa, float, &bytes, out));
            for (i, found) in found.into_iter().enumerate() {
                let expected = float.read(&bytes, i);
                let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                assert!(same, "{isa} {float} element {i}: {found} for {expected}");
            }
        }
    }
}

#[test]
fn grouped_codes_unpack_as_their_format_has_them() {
    // Packed bit by bit, from the format's description: code `i` of a row at bit `i * bits`, zero point of row `o`
    // at bit `o * bits` of its group's column of words.
    let (out_features, in_features, group_size) = (13, 60, 20);
    for bits in 1..=8u8 {
        let mut random = Random(u64::from(bits));
        let limit = 1u64 << bits;
        let groups = in_features / group_size;
        let Encoding::Grouped(layout) = grouped(bits, group_size, ZeroPoint::Asymmetric, FloatType::BF16)
        else {
            unreachable!("a grouped encoding")
        };
        let words = layout.words_per_row(in_features);
        let mut packed = vec![0u8; 4 * words * out_features];
        let mut zero_points = vec![0u8; 4 * layout.zero_point_words(out_features) * groups];
        let mut scales = Vec::new();
        let mut expected = Vec::new();
        for o in 0..out_features {
            for g in 0..groups {
                let zero = random.next() % limit;
                let scale = FloatType::BF16.round(random.float());
                FloatType::BF16.push(scale, &mut scales);
                for bit in 0..usize::from(bits) {
                    let at = o * usize::from(bits) + bit;
                    let byte = 4 * (at / 32 * groups + g) + at % 32 / 8;
                    zero_points[byte] |= ((zero >> bit & 1) as u8) << (at % 8);
                }
                for i in g * group_size..(g + 1) * group_size {
                    let code = random.next() % limit;
                    for bit in 0..usize::from(bits) {
                        let at = i * usize::from(bits) + bit;
                        packed[4 * words * o + at / 8] |= ((code >> bit & 1) as u8) << (at % 8);
                    }
                    expected.push(scale * (code as f32 - zero as f32));
                }
            }
        }
        let data =
            WeightData::Grouped { layout, packed: &packed, scales: &scales, zero_points: &zero_points };
        let view = WeightView::new(out_features, in_features, data).unwrap();
        for isa in twins() {
            let mut found = vec![f32::NAN; expected.len()];
            dequantize_rows(isa, &view, 0, &mut found);
            assert_eq!(bits_of(&found), bits_of(&expected), "{isa} {bits}-bit");
        }
    }
}

#[test]
fn every_isa_takes_the_same_exact_dot() {
    let mut random = Random(7);
    for sample in samples() {
        let view = sample.view();
        let x = random.matrix(1, sample.in_features);
        for o in [0, sample.out_features - 1] {
            let row = Row::of(&view, o);
            let expected = scalar::exact_dot(&row, x.row(0));
            for isa in twins() {
                let found = exact_dot(isa, &row, x.row(0));
                assert_eq!(
                    found.to_bits(),
                    expected.to_bits(),
                    "{isa} {} {}",
                    sample.encoding,
                    sample.in_features
                );
            }
        }
    }
}

#[test]
fn every_isa_takes_the_same_fast_dot() {
    let mut random = Random(8);
    for sample in samples() {
        let view = sample.view();
        if !scalar::has_fast_path(&Row::of(&view, 0)) {
            continue;
        }
        let mut x = Activations::default();
        x.round(Isa::scalar(), &random.matrix(2, sample.in_features));
        for o in [0, sample.out_features - 1] {
            let row = Row::of(&view, o);
            let expected = scalar::fast_dot(&row, sample.in_features, x.token(1));
            for isa in twins() {
                let found = fast_dot(isa, &row, sample.in_features, x.token(1));
                assert_eq!(
                    found.to_bits(),
                    expected.to_bits(),
                    "{isa} {} {}",
                    sample.encoding,
                    sample.in_features
                );
            }
        }
    }
}

#[test]
fn the_largest_products_do_not_overflow() {
    // Codes and activations at the ends of their ranges, all of one sign: sums of pairs come nearest to 2^15.
    let all = |byte: u8, block: BlockType| {
        let mut bytes = vec![byte; block.bytes() * (512 / block.weights())];
        for bytes in bytes.chunks_exact_mut(block.bytes()) {
            let one = half::f16::from_f32(1.0).to_le_bytes();
            set_scales(block, bytes, || one);
        }
        bytes
    };
    for block in BlockType::ALL {
        for byte in [0x00, 0x7f, 0x80, 0xff] {
            let bytes = all(byte, block);
            let view = WeightView::new(1, 512, WeightData::Block { block, bytes: &bytes }).unwrap();
            let row = Row::of(&view, 0);
            for sign in [1.0, -1.0] {
                let x = Matrix::from_vec(8, 512, vec![sign; 8 * 512]);
                let mut rounded = Activations::default();
                rounded.round(Isa::scalar(), &x);
                let dot = scalar::fast_dot(&row, 512, rounded.token(0));
                for isa in twins() {
                    assert_eq!(fast_dot(isa, &row, 512, rounded.token(0)), dot, "{isa} {block} {byte:#x}");
                    let mut y = Matrix::default();
                    matmul(isa, Path::Fast, &view, &x, &mut y);
                    let bound = 1e-5 * dot.abs().max(1000.0);
                    assert!((y.row(7)[0] - dot).abs() <= bound, "{isa} {block} {byte:#x}");
                }
            }
        }
    }
}

#[test]
fn every_isa_multiplies_panels_to_the_same_bits() {
    let mut random = Random(9);
    for sample in samples() {
        let view = sample.view();
        if !scalar::has_fast_path(&Row::of(&view, 0)) {
            continue;
        }
        let mut x = Activations::default();
        x.round(Isa::scalar(), &random.matrix(8, sample.in_features));
        let chunks = sample.in_features.div_ceil(256);
        for (first, chunks) in [(0, 0..chunks), (16, 0..chunks), (3, chunks / 2..chunks)] {
            let mut expected_panel = Panel::default();
            expected_panel.fill(Isa::scalar(), &view, first, chunks.clone());
            for isa in twins() {
                let mut panel = Panel::default();
                // A panel that another matrix was in before.
                panel.codes.resize(100_000, 0x5a5a_5a5a);
                panel.scales.resize(100_000, f32::NAN);
                panel.offsets.resize(100_000, f32::NAN);
                panel.fill(isa, &view, first, chunks.clone());
                let what = format!("{isa} {} {}", sample.encoding, sample.in_features);
                assert_eq!(panel.shape, expected_panel.shape, "{what}");
                let blocks = panel.blocks;
                assert_eq!(blocks, expected_panel.blocks, "{what}");
                // What stands behind the row's end meets activations of zero.
                let quads = ROWS * ((sample.in_features - 256 * chunks.start) / 4);
                assert_eq!(panel.codes[..quads], expected_panel.codes[..quads], "{what}");
                let scales = if panel.shape.halves { 2 } else { 1 } * ROWS * blocks;
                assert_eq!(panel.scales[..scales], expected_panel.scales[..scales], "{what}");
                assert_eq!(panel.offsets[..scales], expected_panel.offsets[..scales], "{what}");
                for count in 1..=panel::TILE_TOKENS {
                    let tokens: Vec<_> = (0..count).map(|t| x.token(t)).collect();
                    let multiply = |isa, panel: &Panel| {
                        guarded_floats(count * ROWS, |sums| {
                            sums.fill(0.25);
                            panel::multiply(isa, panel, &tokens, sums);
                        })
                    };
                    let expected = multiply(Isa::scalar(), &expected_panel);
                    assert_eq!(bits_of(&multiply(isa, &panel)), bits_of(&expected), "{what} {count}");
                }
            }
        }
    }
}

#[test]
fn every_isa_multiplies_dense_panels_to_the_same_bits() {
    let mut random = Random(14);
    for sample in samples() {
        let view = sample.view();
        let x = random.matrix(dense_panel::TILE_TOKENS, sample.in_features);
        // The first columns, and those behind them where there are any.
        for start in [0, 256] {
            let Some(columns) = sample.in_features.checked_sub(start).map(|n| n.min(256)) else { continue };
            let mut expected_panel = DensePanel::default();
            expected_panel.fill(Isa::scalar(), &view, 1, start, columns);
            for isa in twins() {
                let mut panel = DensePanel::default();
                panel.fill(isa, &view, 1, start, columns);
                for count in 1..=dense_panel::TILE_TOKENS {
                    let multiply = |isa, panel: &DensePanel| {
                        guarded_floats(count * dense_panel::ROWS, |sums| {
                            sums.fill(0.25);
                            let x = x.as_slice().get(start..).unwrap_or(&[]);
                            dense_panel::multiply(isa, panel, x, sample.in_features, sums);
                        })
                    };
                    let expected = multiply(Isa::scalar(), &expected_panel);
                    let what = format!("{isa} {} {} x {count}", sample.encoding, sample.in_features);
                    assert_eq!(bits_of(&multiply(isa, &panel)), bits_of(&expected), "{what}");
                }
            }
        }
    }
}

/// `Σ x·w` and `Σ |x·w|` in f64.
fn reference(x: &[f32], w: &[f32]) -> (f64, f64) {
    let products = || x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
    (products().sum(), products().map(f64::abs).sum())
}

#[test]
fn exact_products_are_as_good_as_f32_sums_can_be() {
    let mut random = Random(10);
    for sample in samples() {
        let weights = sample.unpacked();
        for tokens in [1, 2, 3, 4, 5, 9, 33] {
            let x = random.matrix(tokens, sample.in_features);
            for isa in twins() {
                let mut y = Matrix::from_vec(1, 3, vec![f32::NAN; 3]);
                matmul(isa, Path::Exact, &sample.view(), &x, &mut y);
                assert_eq!((y.rows(), y.cols()), (tokens, sample.out_features));
                for t in 0..tokens {
                    for o in 0..sample.out_features {
                        let (sum, magnitude) = reference(x.row(t), weights.row(o));
                        // A chain of n roundings errs by at most n * 2^-24 of the magnitudes; chains here have
                        // n / 32 links and more, and errors cancel: a fixed small multiple suffices.
                        let bound = 16.0 * magnitude / f64::from(1 << 24) + 1e-30;
                        let error = (f64::from(y.row(t)[o]) - sum).abs();
                        assert!(
                            error <= bound,
                            "{isa} {} {} x {tokens}: off by {error:e}, bound {bound:e}",
                            sample.encoding,
                            sample.in_features
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn fast_products_are_those_of_the_rounded_activations() {
    let mut random = Random(11);
    for sample in samples() {
        let view = sample.view();
        let has_fast_path = scalar::has_fast_path(&Row::of(&view, 0));
        let weights = sample.unpacked();
        for tokens in [1, 3, 4, 5, 8, 13, 33] {
            let x = random.matrix(tokens, sample.in_features);
            let mut rounded = x.clone();
            if has_fast_path {
                let mut codes = Activations::default();
                codes.round(Isa::scalar(), &x);
                for t in 0..tokens {
                    let token = codes.token(t);
                    for (i, x) in rounded.row_mut(t).iter_mut().enumerate() {
                        *x = f32::from(token.codes[i]) * token.scales[i / 32];
                    }
                }
            }
            for isa in twins() {
                let mut y = Matrix::from_vec(1, 3, vec![f32::NAN; 3]);
                matmul(isa, Path::Fast, &view, &x, &mut y);
                for t in 0..tokens {
                    for o in 0..sample.out_features {
                        let (sum, _) = reference(rounded.row(t), weights.row(o));
                        // Offsets are summed apart from products: both are larger than their difference, by the
                        // ratio of a code's range to a code, hence not a multiple of Σ|x·w|.
                        let (_, magnitude) = reference(rounded.row(t), &vec![1.0; sample.in_features]);
                        let largest = weights.row(o).iter().fold(0f32, |m, w| m.max(w.abs()));
                        let bound = 32.0 * magnitude * f64::from(largest) / f64::from(1 << 24) + 1e-30;
                        let error = (f64::from(y.row(t)[o]) - sum).abs();
                        assert!(
                            error <= bound,
                            "{isa} {} {} x {tokens}: off by {error:e}, bound {bound:e}",
                            sample.encoding,
                            sample.in_features
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let mut random = Random(12);
    let pools = [1, 2, 3, 8].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    for encoding in [
        Encoding::Float(FloatType::BF16),
        Encoding::Block(BlockType::Q4_K),
        Encoding::Block(BlockType::Q6_K),
        Encoding::Block(BlockType::IQ4_XS),
        grouped(3, 64, ZeroPoint::Asymmetric, FloatType::BF16),
        grouped(4, 128, ZeroPoint::Asymmetric, FloatType::BF16),
    ] {
        let sample = Sample::new(encoding, 531, 768);
        for path in [Path::Exact, Path::Fast] {
            for tokens in [1, 2, 40] {
                let x = random.matrix(tokens, 768);
                let view = sample.view();
                let results = [0, 1, 2, 3].map(|pool| {
                    let mut y = Matrix::default();
                    pools[pool].install(|| matmul(Isa::best(), path, &view, &x, &mut y));
                    bits_of(y.as_slice())
                });
                assert!(results.iter().all(|y| *y == results[0]), "{encoding} {path:?} {tokens}");
            }
        }
    }
}

#[test]
fn nan_activations_do_not_vanish() {
    for encoding in [Encoding::Block(BlockType::Q4_K), Encoding::Block(BlockType::Q8_0)] {
        let sample = Sample::new(encoding, 5, 512);
        for path in [Path::Exact, Path::Fast] {
            for tokens in [1, 6] {
                let mut x = Random(13).matrix(tokens, 512);
                x.row_mut(tokens - 1)[300] = f32::NAN;
                for isa in twins() {
                    let mut y = Matrix::default();
                    matmul(isa, path, &sample.view(), &x, &mut y);
                    assert!(y.row(tokens - 1).iter().all(|y| y.is_nan()), "{isa} {encoding} {path:?}");
                    assert!(tokens == 1 || y.row(0).iter().all(|y| y.is_finite()), "{isa} {encoding}");
                }
            }
        }
    }
}

#[test]
fn empty_shapes_give_empty_or_zero_results() {
    let sample = Sample::new(Encoding::Float(FloatType::F32), 3, 0);
    for isa in twins() {
        let mut y = Matrix::from_vec(1, 1, vec![f32::NAN]);
        matmul(isa, Path::Fast, &sample.view(), &Matrix::zeros(2, 0), &mut y);
        assert_eq!((y.rows(), y.cols(), y.as_slice()), (2, 3, &[0.0; 6][..]));
        matmul(isa, Path::Exact, &sample.view(), &Matrix::zeros(0, 0), &mut y);
        assert_eq!((y.rows(), y.cols()), (0, 3));
        dequantize_rows(isa, &sample.view(), 0, &mut []);
    }
}
