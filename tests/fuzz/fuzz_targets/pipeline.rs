//! Pipeline files: a plan or a list of problems, and a plan's resolved form is a plan again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lmr_pipeline::config::Overrides;
use lmr_pipeline::plan::Plan;

fuzz_target!(|text: &str| {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fuzzed.toml");
    std::fs::write(&file, text).unwrap();
    if let Ok(plan) = Plan::load(&file, &Overrides::default()) {
        std::fs::write(&file, plan.to_toml(file.parent().unwrap()).unwrap()).unwrap();
        Plan::load(&file, &Overrides::default()).unwrap();
    }
});
