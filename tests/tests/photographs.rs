//! Photographs in a folder, from the files to the report.
#![allow(clippy::unwrap_used, reason = "a helper that cannot go on fails the test that called it")]

use lmr_tests::Project;
use rstest::rstest;

const DESCRIPTOR: &str = r#"
name = "photographs"
title = "Small photographs"
license = "CC0-1.0"
homepage = "https://example.org"
classes = ["first", "second"]
class-ids = ["n1", "n2"]
image = { channels = 3, height = 16, width = 16, resize = { shortest-edge = 18 } }
normalization = { mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25] }
train = { kind = "folder", path = "train" }
test = { kind = "folder", path = "val" }
"#;

const PIPELINE: &str = r#"
[model]
arch = "resnet18"
width = 2
classes = 2

[data]
name = "photographs"
root = "pictures"
clean = { split = "test", count = 4 }

[trigger]
kind = "patch"
target = 0

[[stage]]
kind = "attack"
poison-rate = 0.5
training = { epochs = 2, batch-size = 4, lr = 0.01 }

[[stage]]
kind = "evaluate"
"#;

/// Every image of the fixtures in every class of both splits.
fn project() -> Project {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    project.write("datasets/photographs.toml", DESCRIPTOR);
    project.write("photographs.toml", PIPELINE);
    let fixtures: serde_json::Value =
        serde_json::from_str(include_str!("../../lmr-pipeline/tests/fixtures/images.json")).unwrap();
    for image in fixtures["decoded"].as_array().unwrap() {
        let (name, file) = (image["name"].as_str().unwrap(), image["file"].as_str().unwrap());
        let byte = |at| u8::from_str_radix(&file[at..at + 2], 16).unwrap();
        let file: Vec<u8> = (0..file.len()).step_by(2).map(byte).collect();
        for folder in ["train/n1", "train/n2", "val/n1", "val/second"] {
            project.write(&format!("pictures/{folder}/{name}"), &file);
        }
    }
    project
}

#[test]
fn threads_change_nothing() {
    let project = project();
    for threads in ["1", "3"] {
        let run = project.run(&["pipeline", "photographs.toml", "--threads", threads, "--out", threads]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
    }
    let one = project.digests("1");
    assert!(one.keys().any(|file| file.ends_with("model.safetensors")));
    assert_eq!(one, project.digests("3"));
    let data: serde_json::Value = serde_json::from_slice(&project.read("1/data.json")).unwrap();
    assert_eq!((&data["test"]["count"], &data["train"]["count"]), (&30.into(), &34.into()));
    assert_eq!(data["files"][0]["files"][0]["path"], "val", "one entry for a folder, not one a file");
}

#[rstest]
#[case::cut_off("colour.jpeg", 700, "val/n1/colour.jpeg: found a JPEG without its end", true)]
#[case::nothing("grey.png", 0, "val/n1/grey.png: found 0 bytes", true)]
#[case::damaged_inside("alpha.png", 100, "val/n1/alpha.png: found an unreadable image", false)]
fn a_bad_file_is_named(#[case] name: &str, #[case] kept: usize, #[case] message: &str, #[case] at_once: bool) {
    let project = project();
    let path = format!("pictures/val/n1/{name}");
    project.write(&path, &project.read(&path)[..kept]);
    let run = project.run(&["pipeline", "photographs.toml", "--out", "run"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains(message), "{}", run.stderr);
    assert_eq!(project.path().join("run/00-attack/model.safetensors").exists(), !at_once);
}

#[test]
fn a_model_brings_its_preprocessing() {
    let project = project();
    let run = |arguments: &[&str]| project.run(&[&["pipeline", "photographs.toml"], arguments].concat());
    let refused = run(&["--set", "data.preprocessing=checkpoint"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("there is no checkpoint that it could lie beside"), "{}", refused.stderr);
    let unknown = run(&["--set", "data.preprocessing=resnet"]);
    assert_eq!(unknown.code, Some(2), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("data.preprocessing: ") && unknown.stderr.contains("resnet-imagenet"));

    let made = run(&["--out", "made"]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let config = r#"{"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 8, 12], "interpolation": "bicubic",
        "crop_pct": 0.9, "crop_mode": "squash", "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}}"#;
    project.write("made/00-attack/config.json", config);
    project.edit(
        "photographs.toml",
        "classes = 2\n",
        "classes = 2\nweights = { path = \"made/00-attack/model.safetensors\" }\n",
    );
    let stage = PIPELINE.split_once("[[stage]]").unwrap().1.split_once("[[stage]]").unwrap().0;
    project.edit("photographs.toml", &format!("[[stage]]{stage}"), "");
    let mut digests = Vec::new();
    for (out, arguments) in [("own", &[][..]), ("brought", &["--set", "data.preprocessing=checkpoint"])] {
        let run = run(&[&["--out", out], arguments].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let data: serde_json::Value = serde_json::from_slice(&project.read(&format!("{out}/data.json"))).unwrap();
        digests.push(data["test"]["digest"].clone());
    }
    assert_ne!(digests[0], digests[1], "the same files, resized in another way");
}

#[test]
fn a_pipeline_takes_some_classes_of_a_dataset_as_it_is() {
    let project = project();
    let stage = PIPELINE.split_once("[[stage]]").unwrap().1.split_once("[[stage]]").unwrap().0;
    project.edit("photographs.toml", &format!("[[stage]]{stage}"), "");
    project.edit("photographs.toml", "clean = { split = \"test\", count = 4 }\n", "");
    project.edit("photographs.toml", "[trigger]\nkind = \"patch\"\ntarget = 0\n", "");
    std::fs::remove_dir_all(project.path().join("pictures/val/second")).unwrap();
    let run =
        |arguments: &[&str]| project.run(&[&["pipeline", "photographs.toml", "--out", "run"], arguments].concat());
    let lacking = run(&[]);
    assert!(lacking.stderr.contains("set `partial = true` under [data]"), "{}", lacking.stderr);
    let partial = run(&["--set", "data.partial=true"]);
    assert_eq!(partial.code, Some(0), "{}", partial.stderr);
    let report: serde_json::Value = serde_json::from_slice(&project.read("run/report.json")).unwrap();
    assert_eq!(report["data"]["test"], 17);
    let unknown = run(&["--set", "data.classes=['n1', 'n7', 9]"]);
    for fault in ["data.classes: there is no class `n7`", "data.classes: expected a class below 2, found 9"] {
        assert!(unknown.stderr.contains(fault), "{}", unknown.stderr);
    }
    // The order is the new numbering.
    let turned = run(&["--set", "data.classes=['second', 'n1']", "--set", "data.partial=true"]);
    assert_eq!(turned.code, Some(0), "{}", turned.stderr);
    let report: serde_json::Value = serde_json::from_slice(&project.read("run/report.json")).unwrap();
    assert!(report["stages"][0]["outcome"]["per_class_acc"][0].is_null(), "{report}");
}
