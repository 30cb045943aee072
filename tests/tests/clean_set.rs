//! What pipelines need of the clean set.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use lmr_tests::{Project, idx};
use serde_json::Value;

/// The tiny project with only the first stage, `evaluate`, and no clean set.
fn evaluating() -> Project {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    let text = String::from_utf8(project.read("pipeline.toml")).unwrap();
    let text = text.split("[[stage]]\nkind = \"estimate\"").next().unwrap();
    project.write("pipeline.toml", text.replace("clean = { split = \"test\", count = 40 }\n", ""));
    project
}

fn json(project: &Project, file: &str) -> Value {
    serde_json::from_slice(&project.read(file)).unwrap()
}

#[test]
fn a_pipeline_that_only_evaluates_needs_none() {
    let project = evaluating();
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let report = json(&project, "runs/tiny/report.json");
    // The whole split, none of it kept back; the usual 500 clean images would be more than there are.
    assert_eq!((&report["data"]["clean"], &report["stages"][0]["outcome"]["samples"]), (&0.into(), &160.into()));
    assert_eq!(json(&project, "runs/tiny/data.json")["clean-indices"], Value::Array(Vec::new()));
    // Given, it is left out.
    let given = project.run(&["pipeline", "pipeline.toml", "--set", "data.clean.count=40"]);
    assert_eq!(given.code, Some(0), "{}", given.stderr);
    assert_eq!(json(&project, "runs/tiny/report.json")["stages"][0]["outcome"]["samples"], 120);
    // Activation ranges are measured on clean images.
    project.edit("pipeline.toml", "name = \"received\"", "name = \"received\"\ndeploy = [{ quantize = {} }]");
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("the clean set's count is 500, but there are only 160 images"), "{}", run.stderr);
}

#[test]
fn a_class_without_clean_images_is_refused_before_any_stage_runs() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    let labels: Vec<u8> = (0..160).map(|image| image % 3).collect();
    project.write("datasets/tiny/test-labels", idx(&[160], &labels));
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    let message = "no image of 1 of 4 classes, such as class 3 (d), and `estimate` cannot tell such a class";
    assert!(run.stderr.contains(message), "{}", run.stderr);
    assert!(!project.path().join("runs/tiny").exists());
    let given = project.run(&["pipeline", "pipeline.toml", "--set", "stage.estimate.class=0"]);
    assert_eq!(given.code, Some(0), "{}", given.stderr);
}
