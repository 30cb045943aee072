//! Safetensors, `torch.save`'s zip files and pickles: an error or a checkpoint, and what is read can be written back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lmr_pipeline::weights::{Export, read};
use std::io::Write;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    if let Ok(checkpoint) = read(file.path(), None) {
        let written = checkpoint.layout.write(&checkpoint.state, Export::Safetensors);
        if let Ok(written) = written {
            let mut again = tempfile::NamedTempFile::new().unwrap();
            again.write_all(&written).unwrap();
            let again = read(again.path(), None).unwrap();
            assert_eq!(again.state.len(), checkpoint.state.len());
        }
    }
});
