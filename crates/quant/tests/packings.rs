//! Columns of codes against GPTQModel's own packing.

use bitmill_quant::{awq_codes, awq_zero_points, gptq_zero_points, pack_zero_points, transpose};
use bitmill_tensor::{Bits, ColumnPacking};
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
