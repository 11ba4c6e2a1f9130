//! Columns of codes against GPTQModel's own packing, and words of whole codes against that of compressed-tensors 0.15.

use std::num::NonZeroUsize;

use bitmill_quant::{
    GroupedRows, awq_codes, awq_zero_points, gptq_zero_points, grouped_rows, pack_zero_points,
    pack_zero_words, transpose, words_of_rows,
};
use bitmill_tensor::{Bits, ColumnPacking, FloatType, Grouped, WeightData, WeightView, ZeroPoint};
use bitmill_testkit::Golden;

/// Codes row after row as compressed-tensors has them: one stream of bits a row, least significant first.
fn by_row(codes: &[u8], cols: usize, bits: usize) -> Vec<u8> {
    let mut packed = Vec::new();
    for row in codes.chunks(cols) {
        let mut bytes = vec![0u8; cols * bits / 8];
        for at in 0..cols * bits {
            bytes[at / 8] |= (row[at / bits] >> (at % bits) & 1) << (at % 8);
        }
        packed.extend(bytes);
    }
    packed
}

#[test]
fn columns_are_what_gptqmodel_packs() {
    let golden = Golden::open("tests/golden/packings.safetensors");
    for width in [2u8, 3, 4, 8] {
        let bits = Bits::new(width).unwrap();
        let part = |name: &str| golden.bytes(&format!("{width}/{name}"));
        let &[rows, cols] = golden.shape(&format!("{width}/codes")) else { panic!("a matrix") };
        let &[_, groups] = golden.shape(&format!("{width}/zeros")) else { panic!("a matrix") };
        let packed = by_row(part("codes"), cols, usize::from(width));
        let words = cols * usize::from(width) / 32;
        assert_eq!(transpose(&packed, rows, words, 4), part("gptq_v2/qweight"), "{width} bits");
        for (packing, name) in
            [(ColumnPacking::GptqV2, "gptq_v2/qzeros"), (ColumnPacking::GptqV1, "gptq/qzeros")]
        {
            let zeros = gptq_zero_points(part("zeros"), rows, groups, bits, packing);
            assert_eq!(zeros, part(name), "{width} bits, {packing:?}");
        }
        // The second form's words are compressed-tensors' in another order.
        let by_group = pack_zero_points(part("zeros"), rows, groups, bits);
        assert_eq!(transpose(&by_group, rows * usize::from(width) / 32, groups, 4), part("gptq_v2/qzeros"));
        if width == 4 {
            assert_eq!(awq_codes(&packed, rows, cols), part("awq/qweight"));
            assert_eq!(awq_zero_points(part("zeros"), rows, groups), part("awq/qzeros"));
        }
    }
}

#[test]
fn words_of_whole_codes_are_what_compressed_tensors_packed() {
    let golden = Golden::open("tests/golden/words.safetensors");
    for width in [3u8, 5, 6, 7] {
        let bits = Bits::new(width).unwrap();
        let part = |name: &str| golden.bytes(&format!("{width}/{name}"));
        let &[rows, cols] = golden.shape(&format!("{width}/codes")) else { panic!("a matrix") };
        let &[_, groups] = golden.shape(&format!("{width}/zeros")) else { panic!("a matrix") };
        let packed = by_row(part("codes"), cols, usize::from(width));
        assert_eq!(words_of_rows(&packed, cols, bits), part("packed"), "{width} bits");
        assert_eq!(pack_zero_words(part("zeros"), rows, groups, bits), part("zero_point"), "{width} bits");
        // And out of them again, by rows and by values.
        let group_size = NonZeroUsize::new(cols / groups).unwrap();
        for zero_point in [ZeroPoint::Asymmetric, ZeroPoint::Symmetric] {
            let layout = Grouped { bits, group_size, zero_point, scale: FloatType::F32 };
            let scales: Vec<u8> = (0..rows * groups).flat_map(|at| (1.0 + at as f32).to_le_bytes()).collect();
            let has_zeros = zero_point == ZeroPoint::Asymmetric;
            let data = WeightData::Columns {
                layout,
                packing: ColumnPacking::Words,
                packed: part("packed"),
                scales: &scales,
                zero_points: if has_zeros { part("zero_point") } else { &[] },
                group_of: &[],
                places: &[],
            };
            let view = WeightView::new(rows, cols, data).unwrap();
            let zero_codes = if has_zeros { part("zeros").to_vec() } else { Vec::new() };
            let expected = GroupedRows { packed: packed.clone(), scales: scales.clone(), zero_codes };
            assert_eq!(grouped_rows(&view, 0..rows).unwrap().unwrap(), expected);
        }
    }
}
