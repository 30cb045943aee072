//! A purified model as a folder that others load, and on the Hub.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::collections::BTreeMap;
use std::fs;

use candle_core::Device;
use lmr_pipeline::tensors::{sha256, to_safetensors};
use lmr_pipeline::weights;
use lmr_plugin::rng;
use lmr_plugin::zoo::naming::{Scheme, from_torchvision};
use lmr_plugin::zoo::{Arch, ModelSpec};
use lmr_tests::hub::{Answer, Delivery, Effect, Fault, Kind, LoopbackHub};
use lmr_tests::{Finished, Project};
use rstest::rstest;
use serde_json::Value;

/// Where the publications go, with the forms that are deployed.
const PUBLISH: &str = "\n[publish]\nrepo = \"someone/tiny\"\ninclude = [\"int8\", \"pruned\"]\ndry-run = true\n";
/// Measures a folder as it is.
const MEASURE: &str = "[[stage]]\nkind = \"evaluate\"\nname = \"received\"\n";

/// A form of the purified model in blocks, and what it measures.
const BLOCKS: &str = "\n[[stage]]\nkind = \"quantize\"\nname = \"q4\"\nfrom = \"purify\"\nformat = \"q4_0\"\n\n[[stage]]\nkind = \"evaluate\"\nname = \"purified + q4\"\n";

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
        channels = 1\nweights = { path = \"vit\", labels = \"dataset\" }\n";
    let from =
        "arch = \"resnet18\"\nwidth = 2\nclasses = 4\nchannels = 1\nweights = { path = \"model.safetensors\" }\n";
    project.edit("pipeline.toml", from, table);
    // Drawn weights know nothing that a copy could forget.
    project.edit("pipeline.toml", "stop-accuracy = 0.1\ntraining = { min-steps = 20 }", "class = 1");
    project.edit("pipeline.toml", "target = 0", "target = 2");
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
    let run = Finished::from({ run }.envs(environment.iter().copied()).output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    outcome(project, "measured", "received")
}

#[rstest]
#[case::resnet(project(), "lmr")]
#[case::vit(vit_project(), "transformers")]
fn a_folder_measures_as_the_run_did(#[case] project: Project, #[case] library: &str) {
    let include = PUBLISH.replace("\"int8\"", "\"int8\", \"q4\"");
    project.edit("pipeline.toml", "[[stage]]", &format!("{include}\n[[stage]]"));
    project.write("pipeline.toml", [project.read("pipeline.toml"), BLOCKS.into()].concat());
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.contains("dry run: nothing was sent") && run.stdout.contains("someone/tiny"), "{}", run.stdout);

    let folder = "runs/tiny/publish";
    let card = String::from_utf8(project.read(&format!("{folder}/README.md"))).unwrap();
    assert!(card.contains(&format!("library_name: {library}\n")), "{card}");
    for path in [
        "int8/model.safetensors",
        "int8/config.json",
        "q4/model.gguf",
        "pruned/model.safetensors",
        "pruned/config.json",
        "report.json",
        "lmr.toml",
    ] {
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

    for (path, stage) in [
        ("publish", "purified"),
        ("publish/pruned", "purified + pruned"),
        ("publish/int8", "purified + int8"),
        ("publish/q4", "purified + q4"),
    ] {
        let found = measured(&project, &format!("{{ path = \"runs/tiny/{path}\", labels = \"dataset\" }}"), &[]);
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
        ["What is not guaranteed", "&lt;script&gt;", "a \\| b", "curve.svg", "`class = 1`", "for one trigger alone"]
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

/// What must be seen nowhere.
const TOKEN: &str = "hf_aSecretThatNobodySees";

/// A finished run of the tiny pipeline, and a Hub to publish it on.
struct Published {
    project: Project,
    hub: LoopbackHub,
}

impl Published {
    fn new() -> Self {
        let project = project();
        let run = project.run(&["pipeline", "pipeline.toml"]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        Self { project, hub: LoopbackHub::start() }
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let home = self.project.path().join("hf").display().to_string();
        vec![
            ("HF_ENDPOINT", self.hub.url()),
            ("HF_TOKEN", format!("{TOKEN}\n")),
            ("HF_HOME", home),
            ("HF_HUB_OFFLINE", "0".into()),
        ]
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let run: Finished = self.project.command(arguments).envs(self.environment()).output().unwrap().into();
        assert!(!run.stdout.contains(TOKEN) && !run.stderr.contains(TOKEN), "{run:?}");
        run
    }

    fn publish(&self) -> Finished {
        self.run(&["publish", "runs/tiny", "--repo", "someone/tiny", "--include", "int8"])
    }

    /// The commit that `main` is at, and the digests of its files.
    fn remote(&self) -> Option<(String, BTreeMap<String, String>)> {
        let repositories = self.hub.repositories();
        let repository = repositories.get(Kind::Model, "someone/tiny")?;
        let head = repository.resolve("main")?.clone();
        let files = repository.files(&head)?.iter().map(|(path, bytes)| (path.clone(), sha256(bytes))).collect();
        Some((head, files))
    }

    /// Digests of the folder that was composed.
    fn local(&self) -> BTreeMap<String, String> {
        let of_folder = |path: std::path::PathBuf| {
            let name = path.strip_prefix("runs/tiny/publish").ok()?.to_string_lossy().into_owned();
            Some((name, sha256(&fs::read(self.project.path().join(&path)).unwrap())))
        };
        self.project.files().into_iter().filter_map(of_folder).collect()
    }

    /// How often a commit was asked for.
    fn commits(&self) -> usize {
        self.hub.requests().iter().filter(|request| request.path.contains("/commit/")).count()
    }
}

#[test]
fn what_is_published_is_pulled_and_measures_the_same() {
    let it = Published::new();
    let run = it.publish();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let (commit, files) = it.remote().unwrap();
    assert!(run.stdout.contains(&format!("published as commit {commit}")), "{}", run.stdout);
    assert!(run.stdout.contains(&format!("{}/someone/tiny/commit/{commit}", it.hub.url())), "{}", run.stdout);
    assert_eq!(files, it.local(), "all of the folder and nothing else");
    assert!(files.contains_key("int8/model.safetensors") && files.contains_key("README.md"), "{files:?}");

    // Twice is once.
    let again = it.publish();
    assert_eq!((again.code, it.commits()), (Some(0), 1), "{}", again.stderr);
    assert!(again.stdout.contains(&format!("nothing to send: all of it is in commit {commit}")), "{}", again.stdout);
    assert_eq!(it.remote().unwrap().0, commit);

    let environment = it.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let table = format!("{{ hub = \"someone/tiny\", revision = \"{commit}\" }}");
    assert_eq!(measured(&it.project, &table, &environment), outcome(&it.project, "runs/tiny", "purified"));
    // What is made of it again says where it came from.
    it.project.edit("pipeline.toml", "{ path = \"model.safetensors\" }", &table);
    it.project.edit("pipeline.toml", "name = \"tiny\"\nseed", "name = \"second\"\nseed");
    assert_eq!(it.run(&["pipeline", "pipeline.toml"]).code, Some(0));
    let run = it.run(&["publish", "runs/second", "--repo", "someone/second", "--dry-run"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let card = String::from_utf8(it.project.read("runs/second/publish/README.md")).unwrap();
    for part in ["base_model: someone/tiny\n".to_string(), format!("`{commit}`"), "license: other\n".into()] {
        assert!(card.contains(&part), "{part}: {card}");
    }
    for file in it.project.files() {
        let bytes = fs::read(it.project.path().join(&file)).unwrap();
        assert!(!bytes.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes()), "{}", file.display());
    }
}

#[test]
fn a_pipeline_publishes_as_its_last_act_and_once() {
    let it = Published::new();
    it.project.edit("pipeline.toml", "[[stage]]", "[publish]\nrepo = \"someone/tiny\"\nprivate = true\n\n[[stage]]");
    let run = it.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let (commit, files) = it.remote().unwrap();
    assert_eq!(files, it.local());
    let created = it.hub.requests().into_iter().find(|request| request.path == "/api/repos/create").unwrap();
    assert_eq!(json(&created.body)["private"], true);
    let resumed = it.run(&["pipeline", "pipeline.toml"]);
    assert_eq!((resumed.code, it.remote().unwrap().0), (Some(0), commit), "{}", resumed.stderr);
    assert_eq!(it.run(&["publish", "runs/tiny"]).code, Some(0), "the run knows where it goes");
    // Without what an upload needs, nothing runs.
    for (name, value, expected) in [
        ("HF_TOKEN", "", "there is no token; make one"),
        ("HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE forbids uploads"),
        ("HF_ENDPOINT", "http://example.org", "must begin with https://"),
    ] {
        let mut command = it.project.command(&["pipeline", "pipeline.toml", "--out", "elsewhere"]);
        let run: Finished = command.envs(it.environment()).env(name, value).output().unwrap().into();
        assert!(run.code != Some(0) && run.stderr.contains(expected), "{}", run.stderr);
        assert!(!it.project.path().join("elsewhere").exists());
    }
}

#[test]
fn other_files_stay_and_others_changes_are_not_overwritten() {
    let it = Published::new();
    it.hub.commit(Kind::Model, "someone/tiny", [("notes.txt", "mine"), ("README.md", "an older card")]);
    let run = it.publish();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.contains("left alone: notes.txt"), "{}", run.stdout);
    assert_eq!(it.remote().unwrap().1.get("notes.txt"), Some(&sha256(b"mine")));

    // Somebody commits between the look at the branch and the commit: another file, then one of ours.
    let stale = || Fault::new("/commit/", Effect::Answer(Answer::error(412, None, "A commit has happened since.")));
    it.hub.commit(Kind::Model, "someone/tiny", [("lmr.toml", "older")]);
    it.hub.inject(stale().times(1));
    let run = it.publish();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(it.remote().unwrap().1.get("lmr.toml"), it.local().get("lmr.toml"));
    let head = it.hub.commit(Kind::Model, "someone/tiny", [("lmr.toml", "theirs")]);
    it.hub.inject(stale());
    let run = it.publish();
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("somebody else changed the same files"), "{}", run.stderr);
    assert_eq!(it.remote().unwrap().0, head);
}

#[rstest]
#[case::unknown_token(
    Fault::new("/api/", Effect::Answer(Answer::error(401, None, "Invalid credentials in Authorization header"))),
    "does not know this token"
)]
#[case::read_only_token(Fault::new("/api/", Effect::Answer(Answer::error(403, None, "Forbidden"))).on("POST"), "this token may not write there")]
#[case::too_many(Fault::new("/commit/", Effect::Answer(Answer::error(429, None, "slow down"))), "wants fewer requests")]
#[case::invalid(
    Fault::new("/commit/", Effect::Answer(Answer::error(400, None, "bad license"))),
    "the Hub answered 400 (\"bad license\")"
)]
#[case::down(
    Fault::new("/commit/", Effect::Answer(Answer::error(500, None, "oops hf_aSecretThatNobodySees"))),
    "the Hub answered 500"
)]
#[case::cut(Fault::new("/commit/", Effect::Answer(Answer { delivery: Delivery::Cut(3), ..Answer::bytes("{\"commitOid\"") })), "as a whole or not at all")]
fn what_fails_is_said_and_leaves_nothing_half(#[case] fault: Fault, #[case] expected: &str) {
    let it = Published::new();
    it.hub.inject(fault);
    let run = it.publish();
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains(expected), "{}", run.stderr);
    assert!(it.remote().is_none_or(|(_, files)| files.is_empty()), "half a publication");
    it.hub.recover();
    let run = it.publish();
    assert_eq!(run.code, Some(0), "the next run goes on: {}", run.stderr);
    assert_eq!(it.remote().unwrap().1, it.local());
}

#[rstest]
#[case::server_error(Fault::new("/commit/", Effect::Answer(Answer::error(500, None, "oops"))).times(2))]
#[case::answer_lost(Fault::new("/commit/", Effect::Deliver(Delivery::Cut(0))).times(1))]
#[case::answer_cut(Fault::new("/commit/", Effect::Deliver(Delivery::Cut(5))).times(1))]
#[case::slow_listing(Fault::new("/tree/", Effect::Answer(Answer::error(503, None, "later"))).times(1))]
fn what_passes_is_waited_for(#[case] fault: Fault) {
    let it = Published::new();
    it.hub.inject(fault);
    let run = it.publish();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let (commit, files) = it.remote().unwrap();
    assert_eq!(files, it.local());
    assert!(run.stdout.contains(&commit), "{}", run.stdout);
}
