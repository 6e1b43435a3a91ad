//! A decode step allocates nothing: every buffer of a generation is there before its first round.

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use common::{golden_dir, greedy, load};
use warploom::{
    backend::Cpu,
    checkpoint::Checkpoint,
    decode::{Generator, Limits, MAX_DRAFT, Policy, Request, Sampling},
    model::Llama,
};

struct Counting;
static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator unchanged; counting does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn rounds_allocate_nothing() {
    let mut quantised = Checkpoint::open(&golden_dir("gqa_bf16")).unwrap();
    quantised.set_fp8(true).unwrap();
    let quantised = Llama::new(&quantised, Cpu::new(), 256).unwrap();
    let stored = load(&golden_dir("gqa_bf16"), 256);
    let sampled =
        Sampling { temperature: 0.8, top_k: 50, top_p: 0.9, min_p: 0.01, repetition_penalty: 1.1, seed: 1 };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    // A thread's first steal sets up its place in rayon's bookkeeping, once in the pool's life.
    pool.install(|| {
        for _ in 0..100 {
            rayon::join(|| std::thread::sleep(std::time::Duration::from_micros(100)), || ());
        }
    });
    for policy in Policy::ALL {
        for (sampling, llama) in [(Sampling::default(), &stored), (sampled, &stored), (sampled, &quantised)] {
            pool.install(|| {
                let mut generator =
                    Generator::new(llama, Limits { sequences: 3, context: 256, max_draft: MAX_DRAFT })
                        .unwrap();
                for i in 0..3 {
                    let prompt: Vec<u32> = (0..20 + i).collect();
                    let policy = policy.build(4, 1 + i as usize, 6, None).unwrap();
                    generator.start(Request { sampling, policy, ..greedy(&prompt, 100) }).unwrap();
                }
                let mut tokens = 0;
                let before = CALLS.load(Ordering::Relaxed);
                while generator.is_active() {
                    generator
                        .round(&mut |_: usize, _: u32| {
                            tokens += 1;
                            None
                        })
                        .unwrap();
                }
                let calls = CALLS.load(Ordering::Relaxed) - before;
                assert_eq!((tokens, calls), (300, 0), "{policy}, temperature {}", sampling.temperature);
            });
        }
    }
}
