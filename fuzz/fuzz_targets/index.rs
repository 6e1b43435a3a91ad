//! Any bytes as `model.safetensors.index.json`.
#![no_main]
use std::path::Path;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = warploom::checkpoint::check_index(Path::new("model.safetensors.index.json"), bytes);
});
