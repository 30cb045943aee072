//! IDX images (MNIST's format), plain and gzipped.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lmr_pipeline::datasets::{Dataset, Split};

const DESCRIPTOR: &str = r#"
name = "fuzzed"
title = "t"
license = "CC0-1.0"
homepage = "https://example.org"
classes = ["a", "b"]
image = { channels = 1, height = 2, width = 2 }
normalization = { mean = [0.5], std = [0.25] }
test = { kind = "idx", images = "images", labels = "labels" }
"#;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("fuzzed.toml", DESCRIPTOR.as_bytes());
    let labels = bytes.first().map_or(0, |&first| usize::from(first)).min(bytes.len());
    write("labels", &bytes[..labels]);
    write("images", &bytes[labels..]);
    let dataset = Dataset::open(folder.path().join("fuzzed.toml").to_str().unwrap()).unwrap();
    let _ = dataset.load(Split::Test);
});
