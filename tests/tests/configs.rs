//! Every pipeline that ships with the project can be planned.

use std::path::Path;

use lmr_pipeline::{Error, Overrides, Plan};

#[test]
fn every_config_plans() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut found = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "toml") {
            continue;
        }
        found += 1;
        // Some purify what another one leaves; any checkpoint will do for a plan.
        let earlier = std::fs::read_to_string(&path).unwrap().contains("path = \"runs/");
        let weights = earlier.then(|| "model.weights.path=configs/quickstart/model.safetensors".to_string());
        let plan = Plan::load(&path, &Overrides { set: weights.into_iter().collect(), ..Overrides::default() });
        assert!(plan.is_ok(), "{}", plan.err().map(|error: Error| error.to_string()).unwrap_or_default());
    }
    assert!(found > 0);
}
