//! Unpacked GGUF blocks are, bit for bit, what the gguf package reads from the same bytes.

use bitmill_kernels::{Isa, dequantize_rows};
use bitmill_tensor::{BlockType, WeightData, WeightView};
use safetensors::SafeTensors;

#[test]
fn blocks_unpack_to_the_values_that_gguf_reads() {
    let golden = SafeTensors::deserialize(include_bytes!("golden/dequant.safetensors")).unwrap();
    for block in BlockType::ALL {
        let blocks = golden.tensor(&format!("{block}.blocks")).unwrap();
        let values = golden.tensor(&format!("{block}.values")).unwrap();
        let expected: Vec<u32> =
            values.data().chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
        let data = WeightData::Block { block, bytes: blocks.data() };
        let rows = 3;
        let view = WeightView::new(rows, expected.len() / rows, data).unwrap();
        for isa in Isa::available() {
            let mut found = vec![f32::NAN; expected.len()];
            dequantize_rows(isa, &view, 0, &mut found);
            for (i, (found, &expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found.to_bits(), expected, "{isa} {block} weight {i}: {found}");
            }
        }
    }
}
