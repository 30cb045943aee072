//! A run that is killed at any moment ends with the same bytes as one that is not.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]
#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use lmr_tests::{Finished, Project};
use rstest::rstest;

/// Training stages long enough that a kill comes in their middle.
const SLOW: &[&str] = &[
    "--set",
    "stage.estimate.votes=9",
    "--set",
    "stage.logit-repel.training.epochs=120",
    "--set",
    "stage.recover.training.epochs=120",
];

fn project() -> Project {
    Project::new(env!("CARGO_BIN_EXE_lmr-under-test"))
}

fn finish(project: &Project, arguments: &[&str]) -> Vec<(String, bool)> {
    let run = project.run(arguments);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let at = arguments.iter().position(|argument| *argument == "--out").unwrap();
    let report: serde_json::Value =
        serde_json::from_slice(&project.read(&format!("{}/report.json", arguments[at + 1]))).unwrap();
    let reused =
        |stage: &serde_json::Value| (stage["name"].as_str().unwrap().into(), stage["reused"].as_bool().unwrap());
    report["stages"].as_array().unwrap().iter().map(reused).collect()
}

fn undisturbed(project: &Project, arguments: &[&str]) -> BTreeMap<PathBuf, String> {
    finish(project, &[arguments, &["--out", "undisturbed"]].concat());
    project.digests("undisturbed")
}

/// Starts a run and sends a signal once the stage has begun; true if the stage was cut short.
fn interrupt(project: &Project, arguments: &[&str], stage: &str, folder: &str, signal: &str) -> Finished {
    let child = project.spawn(arguments);
    let log = project.path().join("killed/log.jsonl");
    let began = format!("\"stage\":\"{stage}\",\"event\":\"started\"");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !fs::read_to_string(&log).unwrap_or_default().contains(&began) {
        assert!(Instant::now() < deadline, "{stage} never began");
        std::thread::sleep(Duration::from_millis(1));
    }
    Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    let finished = child.wait_with_output().unwrap().into();
    let done = project.path().join(format!("killed/{folder}/outcome.json")).exists();
    println!("{stage}: {}", if done { "was already finished" } else { "cut short" });
    finished
}

#[test]
fn killed_in_every_stage() {
    let project = project();
    let arguments = [&["pipeline", "pipeline.toml"], SLOW].concat();
    let expected = undisturbed(&project, &arguments);
    let killed = [&arguments[..], &["--out", "killed"]].concat();
    let stages = [
        ("received", "00-received"),
        ("estimate", "01-estimate"),
        ("logit-repel", "02-logit-repel"),
        ("delta-prune", "03-delta-prune"),
        ("purify", "04-purify"),
        ("purified", "05-purified"),
        ("int8", "06-int8"),
        ("purified + int8", "07-purified-int8"),
        ("pruned", "08-pruned"),
        ("purified + pruned", "09-purified-pruned"),
    ];
    for (stage, folder) in stages {
        // A stage that the last kill came too late for is finished, and does not begin again.
        if project.path().join(format!("killed/{folder}/outcome.json")).exists() {
            continue;
        }
        let run = interrupt(&project, &killed, stage, folder, "-KILL");
        // On a busy machine the last kill may meet a run that has written its report, or has just ended.
        let over = project.path().join("killed/09-purified-pruned/outcome.json").exists();
        assert!(over || run.code.is_none(), "{stage} was not killed: {}", run.stderr);
        assert!(over || !project.path().join("killed/report.json").exists(), "a report of a run that did not end");
    }
    let reused = finish(&project, &killed);
    let before = |name: &str| reused.iter().take_while(|(stage, _)| stage != name).all(|(_, reused)| *reused);
    assert!(before("purified + pruned"), "{reused:?}");
    assert_eq!(project.digests("killed"), expected);
}

#[test]
fn killed_in_an_attack() {
    let project = project();
    let arguments = ["pipeline", "attack.toml", "--set", "stage.attack.training.epochs=150"];
    let expected = undisturbed(&project, &arguments);
    let killed = [&arguments[..], &["--out", "killed"]].concat();
    interrupt(&project, &killed, "attack", "00-attack", "-KILL");
    assert!(!project.path().join("killed/00-attack/outcome.json").exists(), "the attack was over before the kill");
    finish(&project, &killed);
    assert_eq!(project.digests("killed"), expected);
}

#[test]
fn stopped_by_ctrl_c() {
    let project = project();
    let arguments = [&["pipeline", "pipeline.toml"], SLOW].concat();
    let expected = undisturbed(&project, &arguments);
    let stopped = [&arguments[..], &["--out", "killed"]].concat();
    let run = interrupt(&project, &stopped, "logit-repel", "02-logit-repel", "-INT");
    assert_eq!(run.code, Some(130), "{}", run.stderr);
    assert!(run.stderr.contains("the same command continues"), "{}", run.stderr);
    let reused = finish(&project, &stopped);
    assert_eq!(reused[..3], [("received".into(), true), ("estimate".into(), true), ("logit-repel".into(), false)]);
    assert_eq!(project.digests("killed"), expected);
}

/// What a kill, a full disk or a careless hand can leave in a run folder.
#[rstest]
#[case::half_written("04-purify/.partial-model.safetensors", Some(b"half".as_slice()), false)]
#[case::record_missing("04-purify/outcome.json", None, true)]
#[case::record_damaged("04-purify/outcome.json", Some(b"{\"key\":".as_slice()), true)]
#[case::weights_missing("04-purify/model.safetensors", None, true)]
#[case::weights_damaged("04-purify/model.safetensors", Some(b"\x08\0\0\0\0\0\0\0{}      ".as_slice()), true)]
#[case::timing_missing("04-purify/timing.json", None, false)]
#[case::log_torn("log.jsonl", Some(b"{\"time\":\"20".as_slice()), false)]
fn a_damaged_folder_heals(#[case] file: &str, #[case] content: Option<&[u8]>, #[case] runs_again: bool) {
    let project = project();
    let arguments = ["pipeline", "pipeline.toml", "--out", "out"];
    finish(&project, &arguments);
    let expected = project.digests("out");
    let path = format!("out/{file}");
    match content {
        Some(content) => project.write(&path, content),
        None => fs::remove_file(project.path().join(&path)).unwrap(),
    }
    let reused = finish(&project, &arguments);
    assert_eq!(reused.iter().any(|(_, reused)| !reused), runs_again, "{reused:?}");
    assert!(reused.iter().all(|(name, reused)| name == "purify" || *reused), "only what is damaged: {reused:?}");
    assert_eq!(project.digests("out"), expected);
    assert!(!project.files().iter().any(|file| file.to_string_lossy().contains(".partial-")));
    let log = String::from_utf8(project.read("out/log.jsonl")).unwrap();
    assert!(log.lines().filter(|line| !line.is_empty()).skip(1).all(|line| line.ends_with('}')), "{log}");
}

/// Weights alone do not make a quantized model; what does is restored from the findings of the finished stage.
#[test]
fn a_reused_deployment_measures_the_same() {
    let project = project();
    let arguments = ["pipeline", "pipeline.toml", "--out", "out"];
    finish(&project, &arguments);
    let expected = project.digests("out");
    for stage in ["07-purified-int8", "09-purified-pruned"] {
        fs::remove_file(project.path().join(format!("out/{stage}/outcome.json"))).unwrap();
    }
    let again: Vec<String> = finish(&project, &arguments).into_iter().filter(|(_, r)| !r).map(|(n, _)| n).collect();
    assert_eq!(again, ["purified + int8", "purified + pruned"]);
    assert_eq!(project.digests("out"), expected);
}
