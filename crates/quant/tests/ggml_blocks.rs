//! Our blocks against ggml's, byte for byte.

mod weighed;
mod weights;

use bitmill_quant::{BlockEncoder, Error, Importance, needs_importance, quantize_blocks};
use bitmill_tensor::{BlockType, FloatType};

const GOLDEN: &str = include_str!("golden/ggml_blocks.txt");
const WEIGHED: &str = include_str!("golden/ggml_blocks_weighed.txt");
const SEED: u64 = 1;
const COUNT: usize = 4096;

#[test]
fn blocks_equal_ggmls_byte_for_byte() {
    let mut compared = 0;
    for line in GOLDEN.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let weight = weights::fill(fields[1], SEED, COUNT);
        if fields[0] == "weights" {
            let hash = format!("{:016x}", weights::fnv1a(&weights::bytes_of(&weight)));
            assert_eq!(hash, fields[2], "the weights `{}` are made differently", fields[1]);
            continue;
        }
        let block = BlockType::parse(fields[0]).unwrap();
        // Old contents must not shine through.
        let mut bytes = vec![0xa5; COUNT / block.weights() * block.bytes()];
        quantize_blocks(&BlockEncoder::new(block), COUNT, &weight, &mut bytes).unwrap();
        let first: String = bytes[..block.bytes()].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(first, fields[3], "{block}, {}: first block", fields[1]);
        assert_eq!(format!("{:016x}", weights::fnv1a(&bytes)), fields[2], "{block}, {}", fields[1]);
        compared += 1;
    }
    let without = BlockType::ALL.into_iter().filter(|block| !needs_importance(*block)).count();
    assert_eq!((without, compared), (19, without * weights::NAMES.len()));
}

#[test]
fn blocks_with_importance_equal_ggmls_byte_for_byte() {
    let (mut compared, mut refused) = (0, 0);
    for line in WEIGHED.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let weight = weights::fill(fields[0], SEED, 6 * 896);
        let importance = weights::fill_importance(fields[1], SEED, 2 * 896);
        for (block, expected) in BlockType::ALL.into_iter().zip(&fields[2..]) {
            let found = weighed::weighed_hash(block, 896, &weight, &importance);
            assert_eq!(found, *expected, "{block}, {}, importance {}", fields[0], fields[1]);
            compared += 1;
            refused += usize::from(found == "-");
        }
    }
    assert_eq!(compared, BlockType::ALL.len() * weights::NAMES.len() * weights::IMPORTANCE.len());
    assert!(refused < compared / 20, "{refused} of {compared} refused");
}

/// Blocks of rows of 256; columns are of equal importance where a type needs some.
fn encode(block: BlockType, weight: &[f32]) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0xa5; weight.len() / block.weights() * block.bytes()];
    let importance = needs_importance(block).then(|| Importance::new(&[1.0; 256]).unwrap());
    let encoder = BlockEncoder { importance, ..BlockEncoder::new(block) };
    quantize_blocks(&encoder, 256, weight, &mut bytes).map(|()| bytes)
}

#[test]
fn blocks_do_not_depend_on_their_neighbours() {
    let weight = weights::fill("block_fates", 3, 256 * 13);
    for block in BlockType::ALL {
        let whole = encode(block, &weight).unwrap();
        for part in [1, 2, 3, 5, 8] {
            let parts: Vec<u8> =
                weight.chunks(256 * part).flat_map(|rows| encode(block, rows).unwrap()).collect();
            assert_eq!(whole, parts, "{block} in runs of {part}");
        }
    }
}

#[test]
fn no_weights_are_no_blocks() {
    for block in BlockType::ALL {
        assert_eq!(encode(block, &[]).unwrap(), []);
    }
}

#[test]
fn refuses_nan_and_infinity_naming_their_place() {
    for block in BlockType::ALL {
        for value in [f32::INFINITY, f32::NEG_INFINITY] {
            let mut weight = vec![0.25; 512];
            weight[300] = value;
            let error = encode(block, &weight).unwrap_err();
            assert_eq!(error, Error::NonFinite { row: 1, col: 44, value });
            assert_eq!(error.relocate(4), Error::NonFinite { row: 5, col: 44, value });
        }
        assert!(matches!(encode(block, &[f32::NAN; 256]), Err(Error::NonFinite { col: 0, .. })));
    }
}

#[test]
fn refuses_scales_beyond_f16_naming_the_block() {
    // MXFP4's scale is a power of two that reaches all floats.
    for block in BlockType::ALL.into_iter().filter(|block| *block != BlockType::MXFP4) {
        let mut weight = vec![0.25; 768];
        weight[600] = -3e38;
        let first_of_block = (600 % 256) / block.weights() * block.weights();
        match encode(block, &weight).unwrap_err() {
            Error::ScaleOverflow { row: 2, col, scale, float: FloatType::F16 } => {
                assert_eq!(col, first_of_block, "{block}");
                assert!(scale.is_nan() || scale.abs() > 65504.0, "{block}: {scale}");
            }
            other => panic!("{block}: {other:?}"),
        }
    }
}

#[test]
fn refuses_weights_that_are_not_whole_blocks() {
    for block in BlockType::ALL {
        let error = quantize_blocks(&BlockEncoder::new(block), 31, &[0.0; 31], &mut []).unwrap_err();
        assert_eq!(error, Error::UnevenGroups { in_features: 31, group_size: block.weights() });
    }
}

#[test]
fn refuses_to_search_without_importance_where_ggml_does() {
    for block in [BlockType::IQ1_S, BlockType::IQ2_XXS, BlockType::IQ2_XS] {
        let error = quantize_blocks(&BlockEncoder::new(block), 256, &[], &mut []).unwrap_err();
        assert_eq!(error, Error::NeedsImportance { block });
        assert!(error.hint().unwrap().contains("importance matrix"));
    }
}

#[test]
fn refuses_importance_that_is_none() {
    for value in [-1e-30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut columns = [1.0; 256];
        columns[7] = value;
        match Importance::new(&columns).unwrap_err() {
            Error::BadImportance { col: 7, value: found } => assert_eq!(found.to_bits(), value.to_bits()),
            other => panic!("{other:?}"),
        }
    }
    assert!(Importance::new(&[0.0, -0.0, f32::MAX]).is_ok());
}

#[test]
fn refuses_the_importance_of_another_width() {
    for block in BlockType::ALL {
        let columns = [1.0; 512];
        let encoder =
            BlockEncoder { importance: Some(Importance::new(&columns).unwrap()), ..BlockEncoder::new(block) };
        let error = quantize_blocks(&encoder, 256, &[], &mut []).unwrap_err();
        assert_eq!(error, Error::ImportanceLength { in_features: 256, found: 512 });
        assert!(error.hint().is_some());
    }
}
