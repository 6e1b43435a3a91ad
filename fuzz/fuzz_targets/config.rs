//! Any bytes as `config.json`, and as `generation_config.json` beside it.
#![no_main]
use std::path::Path;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = warploom::checkpoint::Config::from_json(Path::new("config.json"), bytes, Some(bytes))
    {
        // What was accepted must be consistent.
        assert_eq!(config.masks.len(), config.layers);
        assert!(config.parameters() > 0 && config.heads % config.kv_heads == 0);
    }
});
