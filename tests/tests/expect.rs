//! What a pipeline expects of its numbers: read, checked while planned and in the end, printed, reported.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use lmr_tests::{Finished, PIPELINE, Project};
use rstest::rstest;
use serde_json::{Value, json};

/// A measurement, its int8 form and a branch that is measured alike.
const MEASURE: &str = r#"
[model]
arch = "resnet18"
width = 2
classes = 4
channels = 1
weights = { path = "model.safetensors" }

[data]
name = "tiny"
clean = { split = "test", count = 40 }

[[stage]]
kind = "evaluate"
name = "received"
deploy = ["as-is", { quantize = {} }]

[[stage]]
kind = "structured-prune"
ratio = 0.9

[[stage]]
kind = "evaluate"
name = "far + pruned"
"#;

fn project(expect: &str) -> Project {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    project.write("measure.toml", format!("{MEASURE}\n{expect}"));
    project
}

fn measure(project: &Project, arguments: &[&str]) -> (Finished, Value) {
    let run = project.run(&[&["pipeline", "measure.toml", "--out", "out"], arguments].concat());
    let report = serde_json::from_slice(&project.read("out/report.json")).unwrap();
    (run, report)
}

#[rstest]
#[case::unknown_stage("recieved.acc = 1", &["expect.recieved.acc: no stage is called `recieved`; did you mean `received`?"])]
#[case::unknown_other("received.acc = { drop-from = \"far\", max = 1 }", &["expect.received.acc.drop-from: no stage is called `far`"])]
#[case::itself("received.acc = { drop-from = \"received\", max = 1 }", &["expect.received.acc.drop-from: `received` is the stage itself"])]
#[case::no_number("received.acc = \"high\"", &["expect.received.acc: expected a number, or a table with `min`, `max` or `drop-from`, found \"high\""])]
#[case::truth("received.acc = true", &["expect.received.acc: expected a number", "found true"])]
#[case::infinite("received.acc = inf", &["expect.received.acc: expected a number", "found inf"])]
#[case::infinite_end("received.acc = { max = nan }", &["expect.received.acc.max: expected a finite number, found NaN"])]
#[case::empty("received.acc = {}", &["expect.received.acc: expected a number", "found an empty table"])]
#[case::no_end("received.acc = { drop-from = \"far + pruned\" }", &["expect.received.acc: expected `min` or `max` beside `drop-from`"])]
#[case::upside_down("received.acc = { min = 0.9, max = 0.1 }", &["expect.received.acc.min: expected at most max = 0.1, found 0.9"])]
#[case::unknown_key("received.acc = { max = 0.1, drop-form = \"far + pruned\" }", &["expect.received.acc.drop-form: unknown key; did you mean `drop-from`?"])]
#[case::end_of_wrong_type("received.acc = { max = \"0.1\" }", &["expect.received.acc.max: expected a number, found \"0.1\""])]
#[case::no_path("received = 3", &["expect.received: expected numbers of a stage", "found 3"])]
#[case::all_at_once("received.acc = true\nelsewhere.acc = 1\nelsewhere.asr = 1", &["2 problems, nothing was run", "expect.received.acc: ", "expect.elsewhere.acc: "])]
fn impossible_expectations_are_refused_before_anything_runs(#[case] expect: &str, #[case] fragments: &[&str]) {
    let project = project(&format!("[expect]\n{expect}\n"));
    let before = project.files();
    let run = project.run(&["pipeline", "measure.toml"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    for fragment in fragments {
        assert!(run.stderr.contains(fragment), "no {fragment:?} in: {}", run.stderr);
    }
    assert_eq!(project.files(), before);
}

#[test]
fn what_is_met_ends_well_and_is_shown() {
    let expect = "[expect]\nreceived.acc = { min = 0.2, max = 1 }\nreceived.samples = 120\nreceived.forms.1.acc = { min = 0.2 }\n\
        \"far + pruned\".acc = { drop-from = \"received\", min = -1, max = 1 }\n";
    let project = project(expect);
    let (run, report) = measure(&project, &[]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    for part in ["received.samples", "received.forms.1.acc", "a drop from `received` of -1 to 1", "0.2 to 1"] {
        assert!(run.stdout.contains(part), "no {part:?} in: {}", run.stdout);
        assert!(String::from_utf8(project.read("out/report.md")).unwrap().contains(part), "{part}");
    }
    let checked = report["expect"].as_array().unwrap();
    let acc = |stage: usize| report["stages"][stage]["outcome"]["acc"].as_f64().unwrap();
    let find = |stage: &str, path: &str| checked.iter().find(|it| it["stage"] == stage && it["path"] == path).unwrap();
    assert_eq!(checked.len(), 4);
    assert_eq!(
        find("received", "samples"),
        &json!({ "stage": "received", "path": "samples", "expected": 120.0, "found": 120.0, "met": true })
    );
    assert_eq!(find("received", "acc")["found"], acc(0));
    assert_eq!(find("far + pruned", "acc")["found"], acc(0) - acc(2), "by how much it dropped");
    assert_eq!(find("far + pruned", "acc")["expected"], json!({ "min": -1.0, "max": 1.0, "drop-from": "received" }));
    assert_eq!(find("received", "forms.1.acc")["found"], report["stages"][0]["outcome"]["forms"][1]["acc"]);

    // The resolved configuration expects the same.
    let again = project.run(&["pipeline", "out/config.toml", "--out", "again"]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(project.digests("out"), project.digests("again"));
    let again: Value = serde_json::from_slice(&project.read("again/report.json")).unwrap();
    assert_eq!(again["expect"], report["expect"]);
}

#[rstest]
#[case::another_number("received.samples = 121", "received.samples: expected 121, found 120")]
#[case::too_small("received.samples = { min = 121 }", "received.samples: expected at least 121, found 120")]
#[case::too_large("received.samples = { max = 119 }", "received.samples: expected at most 119, found 120")]
#[case::no_drop(
    "\"far + pruned\".samples = { drop-from = \"received\", min = 1 }",
    "far + pruned.samples: expected a drop from `received` of at least 1, found 0"
)]
#[case::misspelt(
    "received.decoy-acc = 1",
    "but the outcome of `received` has no `decoy-acc`; did you mean `decoy_acc`?"
)]
#[case::null(
    "received.asr = { max = 0.1 }",
    "received.asr: expected at most 0.1, but `asr` of `received` is null, not a number"
)]
#[case::list("received.forms = 1", "but `forms` of `received` is a list of 2, not a number")]
#[case::past_the_end("received.forms.2.acc = 1", "but `forms` of `received` is a list of 2, counted from 0")]
#[case::inside_a_number("received.acc.asr = 1", "but `acc` of `received` is 0.")]
#[case::not_over_there(
    "received.forms.0.acc = { drop-from = \"far + pruned\", max = 1 }",
    "but the outcome of `far + pruned` has no `forms`"
)]
fn what_is_missed_is_named(#[case] expect: &str, #[case] sentence: &str) {
    let project = project(&format!("[expect]\n{expect}\nreceived.triggered = 0\n"));
    let (run, report) = measure(&project, &[]);
    assert_eq!(run.code, Some(3), "{}", run.stderr);
    assert!(
        run.stderr.contains("error: an expectation is missed: ") && run.stderr.contains(sentence),
        "{}",
        run.stderr
    );
    assert!(run.stdout.contains("missed") && run.stdout.contains("met"), "{}", run.stdout);
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    let met: Vec<bool> = report["expect"].as_array().unwrap().iter().map(|it| it["met"].as_bool().unwrap()).collect();
    assert_eq!(met.iter().filter(|met| !**met).count(), 1, "{report}");
    assert!(String::from_utf8(project.read("out/report.md")).unwrap().contains("**missed**"));
}

/// What is expected changes no result: finished stages are reused, and the reused numbers are checked.
#[test]
fn expectations_are_a_layer_like_others_and_no_part_of_a_stage() {
    let project =
        project("[expect]\nreceived.samples = 120\n\n[profile.strict]\nexpect.received.samples = { min = 121 }\n");
    let (run, _) = measure(&project, &[]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let digests = project.digests("out");
    let codes = [
        (vec!["--profile", "strict"], Some(3)),
        (vec!["--profile", "strict", "--set", "expect.received.samples.min=100"], Some(0)),
        (vec!["--set", "expect.received.samples=119"], Some(3)),
        (vec!["--set", "expect.far + pruned.acc.min=2"], Some(3)),
        (vec!["--quiet", "--set", "expect.received.samples.max=120"], Some(0)),
    ];
    for (arguments, code) in codes {
        let (run, report) = measure(&project, &arguments);
        assert_eq!(run.code, code, "{arguments:?}: {}", run.stderr);
        assert!(report["stages"].as_array().unwrap().iter().all(|stage| stage["reused"] == true), "{report}");
    }
    let stages = |digests: &std::collections::BTreeMap<std::path::PathBuf, String>| {
        let mut digests = digests.clone();
        digests.remove(std::path::Path::new("config.toml"));
        digests
    };
    assert_eq!(stages(&project.digests("out")), stages(&digests));
    let run = project.command(&["pipeline", "measure.toml", "--out", "out"]);
    let env = [("LMR_EXPECT__RECEIVED__SAMPLES", "7")];
    let run: Finished = { run }.envs(env).output().unwrap().into();
    assert_eq!(run.code, Some(3), "{}", run.stderr);
    let misspelt = project.run(&["pipeline", "measure.toml", "--set", "expect.recieved.acc=1"]);
    assert_eq!(misspelt.code, Some(2));
    assert!(
        misspelt.stderr.contains("--set expect.recieved.acc=1: expect.recieved.acc: no stage"),
        "{}",
        misspelt.stderr
    );
}

/// Every seed runs and the table is printed before the exit code says that some missed.
#[test]
fn repetitions_run_to_the_end_and_name_the_seeds() {
    let project = project("[expect]\nreceived.samples = 119\n");
    let run = project.run(&["repeat", "measure.toml", "--seeds", "1-2", "--out", "seeds"]);
    assert_eq!(run.code, Some(3), "{}", run.stderr);
    assert!(run.stdout.contains("seed 2: ") && run.stdout.contains("median"), "{}", run.stdout);
    for seed in [1, 2] {
        let sentence = format!("seed {seed}, received.samples: expected 119, found 120");
        assert!(run.stderr.contains("2 expectations are missed:") && run.stderr.contains(&sentence), "{}", run.stderr);
    }
}

/// A model that is not what its pipeline promises is not sent.
#[test]
fn what_missed_is_not_published() {
    let project = project("");
    let publish = "[publish]\nrepo = \"a/b\"\ndry-run = true\n\n[expect]\nreceived.samples = 120\n";
    project.write("pipeline.toml", format!("{PIPELINE}\n{publish}"));
    let run = |arguments: &[&str]| project.run(&[&["pipeline", "pipeline.toml", "--out", "out"], arguments].concat());
    let missed = run(&["--set", "expect.received.samples=119"]);
    assert_eq!(missed.code, Some(3), "{}", missed.stderr);
    assert!(!project.path().join("out/publish").exists());
    let met = run(&[]);
    assert_eq!(met.code, Some(0), "{}", met.stderr);
    assert!(project.path().join("out/publish/README.md").exists());
}

#[test]
fn the_schema_describes_expectations() {
    let project = project("");
    let run = project.run(&["schema"]);
    let schema: Value = serde_json::from_str(&run.stdout).unwrap();
    let expect = &schema["properties"]["expect"];
    assert!(expect["description"].as_str().unwrap().contains("exit code 3"), "{expect}");
    assert_eq!(expect["type"], "object");
    let range = &schema["definitions"]["Range"];
    assert_eq!(range["additionalProperties"], false, "{range}");
    for key in ["min", "max", "drop-from"] {
        assert!(range["properties"][key]["description"].is_string(), "{range}");
    }
}
