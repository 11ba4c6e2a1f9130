//! Thousands of damaged files: each opens or ends in an error, without a panic and without asking for much more
//! memory than the file has bytes.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bitmill_checkpoint::{Checkpoint, Region, compressed_tensors_config, grouped_specs};
use bitmill_tensor::{Bits, FloatType, Grouped, ZeroPoint};
use common::{FFN, Gguf, HIDDEN, config, safetensors, tensors};
use serde_json::json;

/// Remembers the largest single request.
struct Largest;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

/// Files of each format.
const ROUNDS: usize = 2500;

/// SplitMix64: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// Damages `bytes` within their first `reach`: flips, overwrites with telling numbers, cuts, copies, removes.
    fn damage(&mut self, bytes: &mut Vec<u8>, reach: usize) {
        const NUMBERS: [u64; 10] = [
            0,
            1,
            u64::MAX,
            1 << 63,
            (1 << 63) - 1,
            1 << 32,
            (1 << 32) - 1,
            1 << 31,
            0x7fff_fff8,
            u64::MAX - 31,
        ];
        for _ in 0..=self.below(3) {
            let reach = reach.min(bytes.len());
            if reach == 0 {
                return;
            }
            let at = self.below(reach);
            let end = (at + 1 + self.below(16)).min(bytes.len());
            match self.below(8) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.next() as u8,
                2 => {
                    let number = NUMBERS[self.below(NUMBERS.len())].to_le_bytes();
                    let width = if self.below(2) == 0 { 4 } else { 8 };
                    let end = (at + width).min(bytes.len());
                    bytes[at..end].copy_from_slice(&number[..end - at]);
                }
                3 => bytes.truncate(at),
                4 => drop(bytes.drain(at..end)),
                5 => {
                    let part = bytes[at..end].to_vec();
                    let to = self.below(reach);
                    bytes.splice(to..to, part);
                }
                6 => {
                    // In JSON: another digit, bracket, quote or sign.
                    const TEXT: &[u8] = b"0123456789[]{}\",:-e.\\\xff\0 ";
                    bytes[at] = TEXT[self.below(TEXT.len())];
                }
                _ => {
                    let digits = NUMBERS[self.below(NUMBERS.len())].to_string().into_bytes();
                    let from = bytes[at..].iter().position(u8::is_ascii_digit).map_or(at, |digit| at + digit);
                    let to = bytes[from..]
                        .iter()
                        .position(|byte| !byte.is_ascii_digit())
                        .map_or(from, |n| from + n);
                    bytes.splice(from..to, digits);
                }
            }
        }
    }
}

/// Opens `files` and, if they open, looks at every tensor.
fn open_and_look(files: &[(&str, Vec<u8>)]) -> bool {
    let total: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let files: Vec<(String, Region)> =
        files.iter().map(|(name, bytes)| ((*name).to_owned(), Region::from_vec(bytes.clone()))).collect();
    LARGEST.store(0, Ordering::Relaxed);
    let result = Checkpoint::from_files("damaged", files);
    check_memory(total);
    look(result)
}

fn check_memory(total: usize) {
    let largest = LARGEST.load(Ordering::Relaxed);
    // A string's header is 24 bytes, its least form in a file 8, and vectors double as they grow.
    assert!(largest <= 8 * total + 65_536, "{largest} bytes asked for at once, for {total} bytes of files");
}

fn look(result: Result<Checkpoint, bitmill_checkpoint::Error>) -> bool {
    match result {
        Ok(checkpoint) => {
            for info in checkpoint.tensors() {
                let tensor = checkpoint.tensor(&info.name).unwrap();
                assert!(tensor.view().stored_bytes() as u64 <= info.stored_bytes);
                tensor.stored_row(0);
            }
            checkpoint.chat_template();
            checkpoint.tokenizer_source();
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            error.hint();
            false
        }
    }
}

/// The tiny model in two shards, one matrix packed.
fn folder() -> Vec<(&'static str, Vec<u8>)> {
    let name = "model.layers.0.mlp.down_proj.weight";
    let layout = Grouped {
        bits: Bits::new(4).unwrap(),
        group_size: 16.try_into().unwrap(),
        zero_point: ZeroPoint::Asymmetric,
        scale: FloatType::BF16,
    };
    let mut stored = tensors("llama");
    stored.retain(|(tensor, ..)| tensor != name);
    for spec in grouped_specs(name, HIDDEN, FFN, &layout) {
        let bytes = match spec.dtype {
            bitmill_tensor::Dtype::I64 => {
                [HIDDEN as i64, FFN as i64].iter().flat_map(|n| n.to_le_bytes()).collect()
            }
            _ => vec![0; spec.bytes() as usize],
        };
        stored.push((spec.name, spec.dtype.name(), spec.shape, bytes));
    }
    let mut config = config("llama");
    config["quantization_config"] = compressed_tensors_config(&[(layout, vec![])], &["lm_head".to_owned()]);
    let (first, second) = stored.split_at(6);
    let mut map = serde_json::Map::new();
    for (shard, part) in [("a.safetensors", first), ("b.safetensors", second)] {
        map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(shard))));
    }
    vec![
        ("config.json", config.to_string().into_bytes()),
        ("generation_config.json", br#"{"eos_token_id": [1, 2], "bos_token_id": 3}"#.to_vec()),
        ("model.safetensors.index.json", json!({"weight_map": map}).to_string().into_bytes()),
        ("a.safetensors", safetensors(first)),
        ("b.safetensors", safetensors(second)),
    ]
}

// One test, so that the largest request is this one's.
#[test]
fn damaged_files_end_in_errors_not_panics() {
    let folder = folder();
    assert!(open_and_look(&folder), "the undamaged folder opens");
    let mut random = Random(20_250_301);
    let mut opened = 0;
    for round in 0..ROUNDS {
        let mut files = folder.clone();
        let which = round % files.len();
        // Damage the header, not the weights: those may hold anything.
        let reach = match files[which].0 {
            name if name.ends_with(".safetensors") => {
                8 + u64::from_le_bytes(files[which].1[..8].try_into().unwrap()) as usize
            }
            _ => files[which].1.len(),
        };
        random.damage(&mut files[which].1, reach);
        opened += usize::from(open_and_look(&files));
    }
    // Some damage is harmless (a space, a renamed field); most is not.
    assert!(opened < ROUNDS / 2, "{opened} of {ROUNDS} damaged folders opened");

    let mut gguf = Gguf::tiny("llama");
    gguf.text("tokenizer.ggml.model", "gpt2");
    let mut tokens = 8u32.to_le_bytes().to_vec();
    tokens.extend_from_slice(&3u64.to_le_bytes());
    (0..3).for_each(|_| tokens.extend(common::string("token")));
    gguf.set("tokenizer.ggml.tokens", 9, tokens);
    let header = gguf.header().len();
    let bytes = gguf.bytes();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("damaged.gguf");
    let mut opened = 0;
    for _ in 0..ROUNDS {
        let mut bytes = bytes.clone();
        random.damage(&mut bytes, header);
        std::fs::write(&path, &bytes).unwrap();
        LARGEST.store(0, Ordering::Relaxed);
        let result = Checkpoint::open(&path);
        check_memory(bytes.len());
        opened += usize::from(look(result));
    }
    assert!(opened < ROUNDS / 2, "{opened} of {ROUNDS} damaged GGUF files opened");

    // Strings of nothing are the most memory a byte can ask for.
    let mut many = Gguf::tiny("llama");
    let mut empty = 8u32.to_le_bytes().to_vec();
    empty.extend_from_slice(&100_000u64.to_le_bytes());
    empty.resize(empty.len() + 800_000, 0);
    many.set("tokenizer.ggml.tokens", 9, empty);
    let bytes = many.bytes();
    std::fs::write(&path, &bytes).unwrap();
    LARGEST.store(0, Ordering::Relaxed);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest <= 3 * bytes.len(), "{largest} for {}", bytes.len());
    drop(checkpoint);
}
