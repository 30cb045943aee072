//! The commands, and where their values come from.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use lmr_tests::Project;
use rstest::rstest;
use serde_json::Value;

fn project() -> Project {
    Project::new(env!("CARGO_BIN_EXE_lmr-under-test"))
}

fn json(project: &Project, name: &str) -> Value {
    serde_json::from_slice(&project.read(name)).unwrap()
}

#[test]
fn a_run_leaves_what_the_contract_says() {
    let project = project();
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    for part in ["received", "purified + int8", "ACC", "ASR", "TA", "estimated backdoor class"] {
        assert!(run.stdout.contains(part), "{}", run.stdout);
    }
    let report = json(&project, "runs/tiny/report.json");
    assert_eq!(report["schema"], 1);
    assert_eq!((&report["run"]["name"], &report["run"]["seed"]), (&"tiny".into(), &0.into()));
    assert_eq!(report["data"], serde_json::json!({ "name": "tiny", "clean": 40, "test": 120 }));
    assert_eq!(report["model"]["source"], "model.safetensors");
    let stages = report["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(names[..3], ["received", "estimate", "logit-repel"]);
    assert_eq!(
        (&stages[0]["from"], &stages[1]["from"], &stages[8]["from"]),
        (&Value::Null, &"received".into(), &"purify".into())
    );
    for stage in stages.iter().filter(|stage| stage["kind"] == "evaluate") {
        for metric in ["acc", "asr", "ta"] {
            assert!((0.0..=1.0).contains(&stage["outcome"][metric].as_f64().unwrap()), "{stage}");
        }
        assert_eq!(stage["outcome"]["samples"], 120);
    }
    assert!(stages[1]["outcome"]["class"].is_u64() && stages[1]["outcome"]["scores"].is_array());
    for file in [
        "config.toml",
        "data.json",
        "log.jsonl",
        "report.md",
        "00-received/outcome.json",
        "04-purify/model.safetensors",
    ] {
        assert!(!project.read(&format!("runs/tiny/{file}")).is_empty(), "{file}");
    }
    assert_eq!(json(&project, "runs/tiny/data.json")["clean-indices"].as_array().unwrap().len(), 40);

    // The resolved configuration gives the same run again.
    let again = project.run(&["pipeline", "runs/tiny/config.toml", "--out", "again"]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(project.digests("runs/tiny"), project.digests("again"));
}

#[test]
fn without_a_trigger_accuracy_is_all_there_is() {
    let project = project();
    project.edit("pipeline.toml", "[trigger]\nkind = \"patch\"\nsize = 2\ntarget = 0\n", "");
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let outcome = &json(&project, "runs/tiny/report.json")["stages"][0]["outcome"];
    assert!(outcome["acc"].is_number() && outcome["asr"].is_null() && outcome["ta"].is_null(), "{outcome}");
}

#[test]
fn a_plan_runs_nothing_and_knows_what_is_finished() {
    let project = project();
    let before = project.files();
    let plan = project.run(&["pipeline", "pipeline.toml", "--plan"]);
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    for part in ["backdoor-class", "purified + int8", "would run"] {
        assert!(plan.stdout.contains(part), "{}", plan.stdout);
    }
    assert_eq!(project.files(), before);

    project.run(&["pipeline", "pipeline.toml"]);
    let plan = project.run(&["pipeline", "pipeline.toml", "--plan", "--set", "stage.recover.training.epochs=3"]);
    let reused = plan.stdout.lines().filter(|line| line.contains("would be reused")).count();
    assert_eq!(reused, 4, "the stages before `recover`: {}", plan.stdout);
}

#[test]
fn what_did_not_change_is_reused() {
    let project = project();
    project.run(&["pipeline", "pipeline.toml"]);
    let first = project.digests("runs/tiny");
    let reused = |arguments: &[&str]| -> Vec<bool> {
        let run = project.run(&[&["pipeline", "pipeline.toml"], arguments].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let report = json(&project, "runs/tiny/report.json");
        report["stages"].as_array().unwrap().iter().map(|stage| stage["reused"].as_bool().unwrap()).collect()
    };
    assert_eq!(reused(&[]), [true; 10]);
    assert_eq!(project.digests("runs/tiny"), first);
    assert_eq!(reused(&["--fresh"]), [false; 10]);
    assert_eq!(project.digests("runs/tiny"), first);
    // Two branches leave from `purify`; only the one whose stage changed runs again.
    let pruned = reused(&["--set", "stage.pruned.ratio=0.25"]);
    assert_eq!(pruned, [true, true, true, true, true, true, true, true, false, false]);
    assert_eq!(reused(&["--set", "run.seed=5"]), [false; 10]);
}

#[rstest]
#[case::file(&[], &[], 0)]
#[case::environment_over_file(&[("LMR_RUN__SEED", "1")], &[], 1)]
#[case::set_over_environment(&[("LMR_RUN__SEED", "1")], &["run.seed=2"], 2)]
#[case::last_set_wins(&[], &["run.seed=2", "run.seed=3"], 3)]
fn layers_are_merged_in_order(#[case] env: &[(&str, &str)], #[case] sets: &[&str], #[case] seed: i64) {
    let project = project();
    let mut arguments = vec!["pipeline", "attack.toml", "--set", "stage.attack.training.epochs=1", "--out", "out"];
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    let status = project.command(&arguments).envs(env.iter().copied()).output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    let config: toml::Table = String::from_utf8(project.read("out/config.toml")).unwrap().parse().unwrap();
    assert_eq!(config["run"]["seed"].as_integer(), Some(seed));
    assert_eq!(config["stage"][0]["training"]["epochs"].as_integer(), Some(1));
    assert_eq!(config["stage"][0]["poison-rate"].as_float(), Some(0.1), "defaults are written out");
}

#[test]
fn a_stage_is_set_by_name_kind_and_index() {
    let project = project();
    let sets = ["stage.purify.training.epochs=3", "stage.logit-repel.m1=0.5", "stage.6.bits=4", "data.test.count=7"];
    let mut arguments = vec!["pipeline", "pipeline.toml", "--out", "out"];
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    let env = [("LMR_STAGE__ESTIMATE__TRAINING__MIN_STEPS", "5")];
    let output = project.command(&arguments).envs(env).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let config: toml::Table = String::from_utf8(project.read("out/config.toml")).unwrap().parse().unwrap();
    let stage = |index: usize, key: &str| config["stage"][index][key].clone();
    assert_eq!(stage(4, "training")["epochs"], 3.into());
    assert_eq!(stage(2, "m1"), 0.5.into());
    assert_eq!(stage(6, "bits"), 4.into());
    assert_eq!(stage(1, "training")["min-steps"], 5.into());
    assert_eq!(config["data"]["test"]["count"], 7.into());
}

/// A profile is stronger than the file and weaker than everything else; a value of another shape takes the old one's place.
#[test]
fn a_profile_is_a_layer() {
    let project = project();
    let profile = "\n[profile.long]\nrun.seed = 3\nstage.purify.training = { epochs = 1, schedule.steps = [0.5] }\n\
        stage.logit-repel.training.lr = 0.25\n\n[profile.other]\nrun.seed = 4\n";
    project.edit("pipeline.toml", "[run]", &format!("{profile}\n[run]"));
    let resolved = |arguments: &[&str]| -> toml::Table {
        let run = project.run(&[&["pipeline", "pipeline.toml", "--out", "out"], arguments].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        String::from_utf8(project.read("out/config.toml")).unwrap().parse().unwrap()
    };
    assert_eq!(resolved(&[])["run"]["seed"], 0.into());
    let long = resolved(&["--profile", "long", "--set", "stage.logit-repel.training.lr=0.125"]);
    assert_eq!(long["run"]["seed"], 3.into());
    assert_eq!(
        (&long["stage"][4]["training"]["epochs"], &long["stage"][2]["training"]["lr"]),
        (&1.into(), &0.125.into())
    );
    assert_eq!(long["stage"][4]["training"]["schedule"]["steps"], vec![0.5].into());
    assert!(long.get("profile").is_none(), "{long}");
    let unknown = project.run(&["pipeline", "pipeline.toml", "--profile", "lnog"]);
    assert_eq!(unknown.code, Some(2), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("there is no profile `lnog`; did you mean `long`?"), "{}", unknown.stderr);
}

#[test]
fn quiet_is_quiet_and_pipes_get_lines() {
    let project = project();
    let quiet = project.run(&["pipeline", "attack.toml", "--quiet"]);
    assert_eq!((quiet.code, quiet.stdout.as_str(), quiet.stderr.as_str()), (Some(0), "", ""));
    let plain = project.run(&["pipeline", "attack.toml", "--fresh"]);
    assert!(plain.stderr.contains("[1/2] attack"), "{}", plain.stderr);
    assert!(!plain.stderr.contains('\u{1b}') && !plain.stdout.contains('\u{1b}'), "{}", plain.stderr);
}

#[test]
fn the_schema_knows_every_kind_and_option() {
    let project = project();
    let schema = project.run(&["schema", "--out", "schema.json"]);
    assert_eq!(schema.code, Some(0), "{}", schema.stderr);
    let schema = json(&project, "schema.json");
    let kinds = schema["properties"]["stage"]["items"]["oneOf"].as_array().unwrap();
    let find = |kind: &str| kinds.iter().find(|entry| entry["properties"]["kind"]["const"] == kind).unwrap();
    for kind in lmr_pipeline::registry::STAGES {
        assert_eq!(find(kind.kind)["additionalProperties"], false);
    }
    let lr = &find("recover")["properties"]["training"]["properties"]["lr"];
    assert!(lr["description"].is_string() && lr["default"] == 0.03 && lr["exclusiveMinimum"] == 0.0, "{lr}");
    assert!(schema["properties"]["trigger"]["oneOf"].as_array().unwrap().len() >= 2);
    assert!(schema["properties"]["model"]["properties"]["weights"]["description"].is_string());

    let reference = project.run(&["stages"]);
    assert_eq!(reference.code, Some(0));
    for kind in lmr_pipeline::registry::STAGES {
        assert!(reference.stdout.contains(&format!("## {}", kind.kind)), "{}", reference.stdout);
    }
}

/// An option without a sentence would be an empty line in editors and in the reference.
#[test]
fn every_option_is_documented() {
    for entry in lmr_pipeline::schema::stages().into_iter().chain(lmr_pipeline::schema::triggers()) {
        for option in entry.options {
            assert!(!option.description.is_empty(), "{}.{}", entry.kind, option.key);
        }
    }
}
