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

fn plan(path: &Path, profile: Option<&str>) -> Plan {
    let text = std::fs::read_to_string(path).unwrap();
    let mut set = Vec::new();
    // Some begin with what another one leaves; any checkpoint and trigger will do for a plan.
    if text.contains("path = \"runs/") {
        set.push("model.weights.path=configs/quickstart/model.safetensors".to_string());
    }
    if text.contains("kind = \"stored\"") {
        let bundled = "configs/quickstart/trigger.safetensors";
        set.extend([format!("trigger.path={bundled}"), "data.name=fashion_mnist".into(), "model.channels=1".into()]);
    }
    let mut overrides = Overrides::default();
    (overrides.profile, overrides.set) = (profile.map(String::from), set);
    Plan::load(path, &overrides).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of a pipeline's profiles.
fn profiles(path: &Path) -> Vec<String> {
    let table: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
    table.get("profile").and_then(toml::Value::as_table).into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

#[test]
fn every_config_plans_with_every_profile() {
    let (own, attacks) = (pipelines("configs"), pipelines("configs/attacks"));
    assert!(!own.is_empty() && attacks.len() == 10);
    for path in own.iter().chain(&attacks) {
        plan(path, None);
        profiles(path).iter().for_each(|name| drop(plan(path, Some(name))));
    }
}

/// The zoo's command line names them.
#[test]
fn every_attack_has_both_profiles() {
    for path in pipelines("configs/attacks") {
        assert_eq!(profiles(&path), ["cpu", "paper"], "{}", path.display());
    }
}
