//! A purified model as a folder that others load, and on the Hub.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::collections::BTreeMap;
use std::fs;

use candle_core::Device;
use lmr_pipeline::tensors::{sha256, to_safetensors};
use lmr_pipeline::weights;
use lmr_plugin::models::naming::{Scheme, from_torchvision};
use lmr_plugin::models::{Arch, ModelSpec};
use lmr_plugin::rng;
use lmr_tests::Project;
use rstest::rstest;
use serde_json::Value;

/// Where the publications go, with the forms that are deployed.
const PUBLISH: &str = "\n[publish]\nrepo = \"someone/tiny\"\ninclude = [\"int8\", \"pruned\"]\ndry-run = true\n";
/// Measures a folder as it is.
const MEASURE: &str = "[[stage]]\nkind = \"evaluate\"\nname = \"received\"\n";

fn project() -> Project {
    Project::new(env!("CARGO_BIN_EXE_lmr-under-test"))
}

/// [`project`] with a ViT under transformers' names, with their `config.json`.
fn vit_project() -> Project {
    let project = project();
    let spec = ModelSpec {
        channels: 1,
        image_size: Some(8),
        patch_size: Some(4),
        depth: Some(1),
        norm_eps: Some(1e-12),
        ..ModelSpec::new(Arch::VitTiny, 4)
    };
    let model = spec.fresh(rng::stream(3, "tests"), &Device::Cpu).unwrap();
    let state = from_torchvision(&model.params().state_dict().unwrap(), Scheme::Transformers).unwrap();
    project.write("vit/model.safetensors", to_safetensors(&state, &BTreeMap::new()).unwrap());
    project.write(
        "vit/config.json",
        r#"{"architectures": ["ViTForImageClassification"], "model_type": "vit", "patch_size": 4, "image_size": 8,
            "layer_norm_eps": 1e-12, "id2label": {"0": "cat", "1": "<script>", "2": "a | b", "3": "owl\n---"},
            "auto_map": {"AutoModel": "evil/repo--code.Model"}, "finetuned_from": "someone/else"}"#,
    );
    project.write("vit/README.md", "---\nlicense: apache-2.0\n---\n# A ViT\n");
    let table = "arch = \"vit-tiny\"\nimage-size = 8\npatch-size = 4\ndepth = 1\nnorm-eps = 1e-12\nclasses = 4\n\
        channels = 1\nweights = { path = \"vit\" }\n";
    let from =
        "arch = \"resnet18\"\nwidth = 2\nclasses = 4\nchannels = 1\nweights = { path = \"model.safetensors\" }\n";
    project.edit("pipeline.toml", from, table);
    // Drawn weights know nothing that a copy could forget.
    project.edit("pipeline.toml", "max-steps = 20\nstop-accuracy = 0.1", "class = 0");
    project
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// The outcome of a stage that measures.
fn outcome(project: &Project, run: &str, stage: &str) -> Value {
    let report = json(&project.read(&format!("{run}/report.json")));
    let stages = report["stages"].as_array().unwrap();
    stages.iter().find(|found| found["name"] == stage).unwrap()["outcome"].clone()
}

/// Measures the weights at `weights` (a TOML table) in place of those of the pipeline.
fn measured(project: &Project, weights: &str, environment: &[(&str, &str)]) -> Value {
    let text = String::from_utf8(project.read("pipeline.toml")).unwrap();
    let (head, rest) = text.split_once("weights = {").unwrap();
    let (data, _) = rest.split_once("}\n").unwrap().1.split_once("[[stage]]").unwrap();
    let data = data.split("[publish]").next().unwrap_or_default();
    project.write("measure.toml", format!("{head}weights = {weights}\n{data}{MEASURE}"));
    let run = project.command(&["pipeline", "measure.toml", "--out", "measured", "--fresh"]);
    let run = lmr_tests::Finished::from({ run }.envs(environment.iter().copied()).output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    outcome(project, "measured", "received")
}

#[rstest]
#[case::resnet(project(), "lmr")]
#[case::vit(vit_project(), "transformers")]
fn a_folder_measures_as_the_run_did(#[case] project: Project, #[case] library: &str) {
    project.edit("pipeline.toml", "[[stage]]", &format!("{PUBLISH}\n[[stage]]"));
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.contains("dry run: nothing was sent") && run.stdout.contains("someone/tiny"), "{}", run.stdout);

    let folder = "runs/tiny/publish";
    let card = String::from_utf8(project.read(&format!("{folder}/README.md"))).unwrap();
    assert!(card.contains(&format!("library_name: {library}\n")), "{card}");
    for path in ["int8/model.safetensors", "pruned/model.safetensors", "pruned/config.json", "report.json", "lmr.toml"]
    {
        let digest = sha256(&project.read(&format!("{folder}/{path}")));
        assert!(card.contains(&digest) && run.stdout.contains(&digest), "{path}: {card}");
    }
    // Under the names and in the dtypes it came in.
    let (folder_weights, received) = match library {
        "lmr" => (format!("{folder}/model.safetensors"), "model.safetensors"),
        _ => (format!("{folder}/model.safetensors"), "vit/model.safetensors"),
    };
    let read = |path: &str| weights::read(&project.path().join(path), None).unwrap();
    assert_eq!(read(&folder_weights).layout, read(received).layout);

    for (path, stage) in [("publish", "purified"), ("publish/pruned", "purified + pruned")] {
        let found = measured(&project, &format!("{{ path = \"runs/tiny/{path}\" }}"), &[]);
        assert_eq!(found, outcome(&project, "runs/tiny", stage), "{path}");
    }
    // Somebody else's pipeline would have to agree.
    project.edit("measure.toml", "classes = 4", "classes = 5");
    let refused = project.run(&["pipeline", "measure.toml"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("as the checkpoint's config.json has"), "{}", refused.stderr);
}

#[test]
fn a_card_says_what_is_known_and_nothing_else() {
    let project = vit_project();
    project.run(&["pipeline", "pipeline.toml"]);
    project.write("runs/tiny/curve.svg", "<svg/>");
    let run = project.run(&["publish", "runs/tiny", "--repo", "someone/tiny", "--dry-run"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let card = String::from_utf8(project.read("runs/tiny/publish/README.md")).unwrap();
    let (head, body) = card.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap();
    // The received card's licence, and what was measured.
    let purified = outcome(&project, "runs/tiny", "purified");
    for line in [
        "license: apache-2.0".to_string(),
        "pipeline_tag: image-classification".into(),
        format!("value: {}", purified["acc"]),
    ] {
        assert!(head.contains(&line), "{line}: {head}");
    }
    assert!(!head.contains("base_model") && !head.contains("datasets"), "unknown here: {head}");
    for part in
        ["What is not guaranteed", "&lt;script&gt;", "a \\| b", "curve.svg", "`class = 0`", "for one trigger alone"]
    {
        assert!(body.contains(part), "{part}: {body}");
    }
    assert!(!body.contains("<script>") && !body.contains("owl\n"), "{body}");
    let config = json(&project.read("runs/tiny/publish/config.json"));
    assert_eq!(config["finetuned_from"], "someone/else");
    assert_eq!(config["id2label"]["1"], "<script>");
    assert!(config.get("auto_map").is_none(), "{config}");
    assert!(project.path().join("runs/tiny/publish/preprocessor_config.json").exists());
    // The pipeline in it runs, and publishes nothing.
    let again = project.run(&["pipeline", "runs/tiny/publish/lmr.toml", "--out", "again"]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert_eq!(outcome(&project, "again", "purified"), purified);

    // The same run gives the same bytes, also when it was resumed and the report written anew.
    let files = |folder: &str| -> BTreeMap<_, _> {
        let root = project.path().join(folder);
        let under = |path: &std::path::PathBuf| project.path().join(path).starts_with(&root);
        project
            .files()
            .into_iter()
            .filter(under)
            .map(|path| (path.clone(), sha256(&fs::read(project.path().join(path)).unwrap())))
            .collect()
    };
    let first = files("runs/tiny/publish");
    project.run(&["pipeline", "pipeline.toml"]);
    let run = project.run(&["publish", "runs/tiny", "--repo", "someone/tiny", "--dry-run"]);
    assert_eq!((run.code, files("runs/tiny/publish")), (Some(0), first));
}

#[test]
fn nothing_of_this_machine_is_in_it() {
    let project = project();
    let absolute = project.path().join("model.safetensors");
    project.edit("pipeline.toml", "\"model.safetensors\"", &format!("\"{}\"", absolute.display()));
    project.run(&["pipeline", "pipeline.toml"]);
    #[cfg(unix)]
    {
        project.write("elsewhere/secret.png", "secret");
        std::os::unix::fs::symlink(project.path().join("elsewhere/secret.png"), project.path().join("runs/tiny/a.png"))
            .unwrap();
    }
    let run = project.run(&["publish", "runs/tiny", "--repo", "someone/tiny", "--dry-run", "out"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let place = project.path().display().to_string();
    for file in project.files().into_iter().filter(|file| file.starts_with("out")) {
        let bytes = fs::read(project.path().join(&file)).unwrap();
        let found = bytes.windows(place.len()).any(|part| part == place.as_bytes());
        assert!(!found && bytes != b"secret", "{}", file.display());
    }
    // Another folder's files are safe.
    project.write("out/mine.txt", "mine");
    let run = project.run(&["publish", "runs/tiny", "--repo", "someone/tiny", "--dry-run", "out"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("mine.txt: is not of this publication"), "{}", run.stderr);
    assert_eq!(project.read("out/mine.txt"), b"mine");
}

#[rstest]
#[case::no_run(&["publish", "nowhere", "--repo", "a/b"], "nowhere: has no config.toml")]
#[case::no_repo(&["publish", "runs/tiny"], "say where to with --repo OWNER/NAME")]
#[case::repo(&["publish", "runs/tiny", "--repo", "../b", "--dry-run"], "repo: found \"../b\"")]
#[case::branch(&["publish", "runs/tiny", "--repo", "a/b", "--revision", "../x", "--dry-run"], "revision: found \"../x\"")]
#[case::commit(&["publish", "runs/tiny", "--repo", "a/b", "--revision", "0123456789012345678901234567890123456789", "--dry-run"], "found a commit, expected a branch")]
#[case::stage(&["publish", "runs/tiny", "--repo", "a/b", "--stage", "int8", "--dry-run"], "put its name in `include`")]
#[case::include(&["publish", "runs/tiny", "--repo", "a/b", "--include", "int", "--dry-run"], "no stage is called `int`; did you mean `int8`?")]
#[case::license(&["publish", "runs/tiny", "--repo", "a/b", "--license", "a\nb", "--dry-run"], "license: expected an identifier")]
fn bad_arguments_say_what_is_wrong(#[case] arguments: &[&str], #[case] expected: &str) {
    let project = project();
    project.run(&["pipeline", "pipeline.toml"]);
    let run = project.run(arguments);
    assert!(run.code.is_some_and(|code| code != 0), "{run:?}");
    assert!(run.stderr.contains(expected), "{}", run.stderr);
    assert!(!project.path().join("runs/tiny/publish").exists());
}

#[test]
fn what_changed_since_the_run_is_refused() {
    let project = project();
    project.run(&["pipeline", "pipeline.toml"]);
    let publish = || project.run(&["publish", "runs/tiny", "--repo", "a/b", "--dry-run"]);
    let (weights, received) =
        (project.read("runs/tiny/04-purify/model.safetensors"), project.read("model.safetensors"));
    project.write("runs/tiny/04-purify/model.safetensors", &received);
    let run = publish();
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("04-purify/model.safetensors: its SHA-256 is"), "{}", run.stderr);
    project.write("runs/tiny/04-purify/model.safetensors", &weights);
    project.write("model.safetensors", &weights);
    let run = publish();
    assert!(run.stderr.contains("is another file than the one this run started from"), "{}", run.stderr);
    project.write("model.safetensors", &received);
    fs::remove_file(project.path().join("runs/tiny/report.json")).unwrap();
    assert!(publish().stderr.contains("has no report.json"));
}

#[test]
fn a_pipeline_that_cannot_publish_does_not_run() {
    let project = project();
    project.edit("pipeline.toml", "[[stage]]", &format!("{PUBLISH}stage = \"purifi\"\n\n[[stage]]"));
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(
        run.stderr.contains("publish.stage: no stage is called `purifi`; did you mean `purify`?"),
        "{}",
        run.stderr
    );
    let run = project.run(&["pipeline", "pipeline.toml", "--set", "publish.stage=purify", "--plan"]);
    assert!(run.stdout.contains("someone/tiny, branch main") && run.stdout.contains("not sent"), "{}", run.stdout);
}
