//! Every pipeline that ships with the project can be planned.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::path::{Path, PathBuf};

use lmr_pipeline::{Overrides, Plan};

/// The pipeline files of a folder of the project.
fn pipelines(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "toml")).collect()
}

fn plan(path: &Path, mut set: Vec<String>) -> Plan {
    // Some begin with what another one leaves; any checkpoint will do for a plan.
    if std::fs::read_to_string(path).unwrap().contains("path = \"runs/") {
        set.push("model.weights.path=configs/quickstart/model.safetensors".into());
    }
    Plan::load(path, &Overrides { set, ..Overrides::default() })
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_config_plans() {
    let (own, attacks) = (pipelines("configs"), pipelines("configs/attacks"));
    assert!(!own.is_empty() && attacks.len() == 9);
    own.iter().chain(&attacks).for_each(|path| drop(plan(path, Vec::new())));
}

/// The `--set` values that a header suggests.
#[test]
fn what_the_attacks_suggest_plans_too() {
    for path in pipelines("configs/attacks") {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("#     --set "));
        let set: Vec<String> =
            lines.flat_map(|line| line.split(" --set ")).map(|set| set.trim_matches('\'').to_string()).collect();
        assert!(!set.is_empty(), "{}", path.display());
        plan(&path, set);
    }
}
