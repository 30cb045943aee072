//! `config.json` and `preprocessor_config.json`, separated by a zero byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lmr_pipeline::model_config::ModelConfig;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().unwrap();
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    for name in ["config.json", "preprocessor_config.json"] {
        if let Some(part) = parts.next() {
            std::fs::write(folder.path().join(name), part).unwrap();
        }
    }
    let _ = ModelConfig::beside(&folder.path().join("model.safetensors"));
});
