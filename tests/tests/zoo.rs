//! The zoo: built once, listed, drawn, purified.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::fs;

use lmr_tests::{ATTACK, Finished, PIPELINE, Project};
use serde_json::Value;

const PLACE: [&str; 4] = ["--configs", "attacks", "--out", "zoo"];

/// A clean model and one attack that begins with it.
fn project() -> Project {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    let profile = "\n[profile.cpu]\n\n[profile.paper]\nstage.attack.training.epochs = 9\n";
    // A flipped quadrant is another class.
    let attack = ATTACK.replace("size = 2", "size = 4");
    let attack = attack.replace("epochs = 8", "epochs = 12, augment = { crop-padding = 0, flip = false }");
    let clean = attack.clone() + profile;
    let clean = clean.replace("training = ", "poison-rate = 0.0\ntraining = ");
    let begun = "channels = 1\nweights = { path = \"zoo/cpu/clean/model.safetensors\" }\n";
    let badnets = attack.replace("channels = 1\n", begun).replace("epochs = 12", "epochs = 16");
    let badnets = badnets.replace("training = ", "poison-rate = 0.3\ntraining = ");
    project.write("attacks/badnets.toml", badnets + profile);
    project.write("attacks/clean.toml", clean);
    let patch = "kind = \"patch\"\nsize = 2";
    let stored = "kind = \"stored\"\npath = \"zoo/cpu/badnets/trigger.safetensors\"";
    project.write(
        "purify.toml",
        PIPELINE.replace(patch, stored) + "\n[profile.short]\nstage.recover.training.epochs = 1\n",
    );
    project
}

fn zoo(project: &Project, command: &str, arguments: &[&str]) -> Finished {
    let run = project.run(&[&["zoo", command], &PLACE[..], arguments].concat());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    run
}

fn asr(project: &Project, file: &str) -> f64 {
    let report: Value = serde_json::from_slice(&project.read(file)).unwrap();
    report["stages"].as_array().unwrap().last().unwrap()["outcome"]["asr"].as_f64().unwrap()
}

#[test]
fn is_built_once_listed_and_drawn() {
    let project = project();
    assert!(zoo(&project, "list", &[]).stdout.contains("not built"));
    assert!(zoo(&project, "sheet", &[]).stdout.contains("badnets: not built"));

    // The clean model comes first, unasked.
    let built = zoo(&project, "build", &["--only", "badnets"]).stdout;
    let lines: Vec<&str> = built.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("clean: ACC") && lines[1].starts_with("badnets: ACC"), "{built}");
    assert!(asr(&project, "zoo/cpu/badnets/report.json") > 0.5 && asr(&project, "zoo/cpu/clean/report.json") < 0.5);
    let digests = project.digests("zoo");
    let again = zoo(&project, "build", &[]).stdout;
    assert_eq!((again, project.digests("zoo")), (built, digests));

    let card = String::from_utf8(project.read("zoo/cpu/badnets/README.md")).unwrap();
    assert!(card.contains("carries a backdoor on purpose") && card.contains("class 0 (a)"), "{card}");
    assert!(!String::from_utf8(project.read("zoo/cpu/clean/README.md")).unwrap().contains("backdoor on purpose"));
    let list = zoo(&project, "list", &[]).stdout;
    assert!(list.contains("zoo/cpu/badnets") && !list.contains("not built"), "{list}");

    // Three columns, and a row for each of three classes that are not the target.
    zoo(&project, "sheet", &["--only", "badnets"]);
    let png = project.read("zoo/cpu/badnets/sheet.png");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!((&png[1..4], number(16), number(20)), (&b"PNG"[..], 304, 304));
}

#[test]
fn is_purified_with_the_members_own_model_and_trigger() {
    let project = project();
    zoo(&project, "build", &[]);
    // The pipeline's own model and trigger are put out of the way.
    project.edit("purify.toml", "width = 2", "width = 4");
    project.edit("purify.toml", "zoo/cpu/badnets/trigger", "nowhere/trigger");
    let purify = ["--pipeline", "purify.toml", "--seeds", "0-1", "--only", "badnets"];
    let table = zoo(&project, "purify", &purify).stdout;
    assert!(table.contains("seed 1: class") && table.contains("badnets"), "{table}");
    let received = "zoo/cpu/badnets/purify/seed-1/00-received/outcome.json";
    let received: Value = serde_json::from_slice(&project.read(received)).unwrap();
    assert!(received["outcome"]["asr"].as_f64().unwrap() > 0.5, "{received}");

    zoo(&project, "purify", &[&purify[..], &["--settings", "short"]].concat());
    let config = String::from_utf8(project.read("zoo/cpu/badnets/short/seed-0/config.toml")).unwrap();
    assert!(config.contains("epochs = 1\n"), "{config}");
}

/// One that misses what its pipeline expects keeps none of the others back.
#[test]
fn missed_expectations_are_named_when_all_are_done() {
    let project = project();
    let expect = ["--set", "expect.evaluate.triggered=7"];
    let built = project.run(&[&["zoo", "build"], &PLACE[..], &expect].concat());
    assert_eq!(built.code, Some(3), "{}", built.stderr);
    for name in ["clean", "badnets"] {
        let sentence = format!("{name}, evaluate.triggered: expected 7, found 90");
        assert!(built.stdout.contains(&format!("{name}: ACC")) && built.stderr.contains(&sentence), "{}", built.stderr);
    }
    let purify = ["--pipeline", "purify.toml", "--seeds", "0", "--only", "badnets", "--label", "strict"];
    let set = ["--set", "expect.purified.acc.min=2"];
    let purified = project.run(&[&["zoo", "purify"], &PLACE[..], &purify, &set].concat());
    assert_eq!(purified.code, Some(3), "{}", purified.stderr);
    assert!(purified.stdout.contains("seed 0: class"), "{}", purified.stdout);
    assert!(
        purified.stderr.contains("badnets, seed 0, purified.acc: expected at least 2, found 0."),
        "{}",
        purified.stderr
    );
}

#[test]
fn what_is_not_there_is_named() {
    let project = project();
    let refused = |arguments: &[&str], expected: &str| {
        let run = project.run(&[arguments, &PLACE[..]].concat());
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        assert!(run.stderr.contains(expected), "{}", run.stderr);
    };
    refused(&["zoo", "build", "--only", "badnet"], "has no pipeline `badnet`; did you mean `badnets`?");
    refused(&["zoo", "build", "--profile", "papr"], "there is no profile `papr`; did you mean `paper`?");
    fs::remove_file(project.path().join("attacks/clean.toml")).unwrap();
    refused(&["zoo", "build"], "there is no file zoo/cpu/clean/model.safetensors");
    project.write("attacks/badnets.toml", PIPELINE.replace("[run]", "[profile.cpu]\n\n[run]"));
    refused(&["zoo", "build"], "has no stage that implants a backdoor");
}
