//! A trigger that an attack learns reaches the measurements behind it, also of another run, and nothing else.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::fs;

use lmr_tests::Project;
use serde_json::Value;

const LEARNED: &str = r#"
[model]
arch = "resnet18"
width = 2
classes = 4
channels = 1
weights = { path = "model.safetensors" }

[data]
name = "tiny"
clean = { split = "test", count = 40 }

[trigger]
kind = "learned"
target = 2

[[stage]]
kind = "evaluate"
name = "before"

[[stage]]
kind = "attack-trojan"
name = "attack"
size = 2
steps = 20
poison = { training = { epochs = 8, batch-size = 32, lr = 0.05 } }

[[stage]]
kind = "evaluate"
name = "after"

[[stage]]
kind = "estimate"
stop-accuracy = 0.1
training = { min-steps = 20 }

[[stage]]
kind = "evaluate"
name = "last"
"#;

const STORED: &str = r#"
[model]
arch = "resnet18"
width = 2
classes = 4
channels = 1
weights = { path = "made/01-attack/model.safetensors" }

[data]
name = "tiny"
clean = { split = "test", count = 40 }

[trigger]
kind = "stored"
path = "made/01-attack/trigger.safetensors"
target = 2

[[stage]]
kind = "evaluate"
"#;

fn project() -> Project {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    project.write("learned.toml", LEARNED);
    project.write("stored.toml", STORED);
    project
}

fn run(project: &Project, arguments: &[&str]) {
    let run = project.run(arguments);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
}

fn outcome(project: &Project, file: &str) -> Value {
    serde_json::from_slice::<Value>(&project.read(file)).unwrap()
}

#[test]
fn a_learned_trigger_is_measured_now_later_and_elsewhere() {
    let project = project();
    let make = ["pipeline", "learned.toml", "--out", "made"];
    run(&project, &make);
    let before = outcome(&project, "made/00-before/outcome.json");
    assert!(before["outcome"]["asr"].is_null(), "nothing is learned yet: {before}");
    let after = outcome(&project, "made/02-after/outcome.json");
    assert!(after["outcome"]["asr"].as_f64().unwrap() > 0.5, "{after}");
    let digests = project.digests("made");

    // A run that was stopped behind the attack reads the trigger from the disk.
    fs::remove_dir_all(project.path().join("made/04-last")).unwrap();
    run(&project, &make);
    assert_eq!(project.digests("made"), digests);
    assert_eq!(outcome(&project, "made/04-last/outcome.json")["outcome"], after["outcome"]);

    // Another pipeline measures the checkpoint with the trigger that came with it.
    run(&project, &["pipeline", "stored.toml", "--out", "other"]);
    assert_eq!(outcome(&project, "other/00-evaluate/outcome.json")["outcome"], after["outcome"]);

    // What a purifying stage's result depends on does not mention the trigger.
    let estimate = String::from_utf8(project.read("made/03-estimate/outcome.json")).unwrap();
    assert!(!estimate.contains("trigger"), "{estimate}");
    assert!(String::from_utf8(project.read("made/02-after/outcome.json")).unwrap().contains("learned-trigger"));
}

#[test]
fn a_damaged_trigger_runs_the_attack_again_and_a_wrong_target_is_refused() {
    let project = project();
    let make = ["pipeline", "learned.toml", "--out", "made"];
    run(&project, &make);
    let digests = project.digests("made");
    let file = "made/01-attack/trigger.safetensors";
    let mut bytes = project.read(file);
    *bytes.last_mut().unwrap() ^= 1;
    project.write(file, bytes);
    run(&project, &make);
    assert_eq!(project.digests("made"), digests);

    project.edit("stored.toml", "target = 2", "target = 1");
    let refused = project.run(&["pipeline", "stored.toml", "--out", "other"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("trigger.target: expected 2, as the stored trigger has, found 1"),
        "{}",
        refused.stderr
    );
}
