//! Dataset descriptors.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lmr_pipeline::datasets::Descriptor;
use std::path::Path;

fuzz_target!(|text: &str| {
    let _ = Descriptor::parse(text, Path::new("fuzzed.toml"));
});
