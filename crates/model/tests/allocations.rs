//! A decoded token allocates nothing, once buffers have grown and the cache has room.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use bitmill_checkpoint::Checkpoint;
use bitmill_kernels::{Compute, Isa, Path};
use bitmill_model::{Model, Sequence, Want};
use bitmill_tensor::Matrix;
use bitmill_testkit::{Variant, tiny};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's own, counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps this function's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps this function's contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps this function's contract.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_decoded_token_allocates_nothing() {
    for variant in [Variant::LlamaWide, Variant::Qwen2Moe] {
        decode(&Model::load(&Checkpoint::open(tiny(variant).path()).unwrap()).unwrap());
    }
}

fn decode(model: &Model) {
    // One thread: with more, rayon's queues allocate a block now and then.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for path in [Path::Exact, Path::Fast] {
        let compute = Compute::new(Isa::best(), path);
        pool.install(|| {
            let (mut cache, mut logits) = (model.new_cache(), Matrix::default());
            let mut run = |tokens: &[u32]| {
                let mut batch = [Sequence { tokens, cache: &mut cache, want: Want::Last }];
                model.forward(&compute, &mut batch, &mut logits).unwrap();
            };
            run(&[9; 40]);
            for token in 0..100 {
                run(&[token]);
            }
            cache.reserve(20);
            let mut run = |tokens: &[u32]| {
                let mut batch = [Sequence { tokens, cache: &mut cache, want: Want::Last }];
                model.forward(&compute, &mut batch, &mut logits).unwrap();
            };
            // The scores of one more position fit what grew by doubling; the first of these may still double it.
            run(&[5]);
            let before = COUNT.load(Ordering::Relaxed);
            for token in 0..10 {
                run(&[token]);
            }
            assert_eq!(COUNT.load(Ordering::Relaxed) - before, 0, "{path:?}");
        });
    }
}
