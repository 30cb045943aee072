//! The program, with weights and images from the Hub.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use image::{DynamicImage, GrayImage, ImageFormat};
use lmr_pipeline::tensors::{sha256, to_safetensors};
use lmr_plugin::rng;
use lmr_plugin::zoo::ModelSpec;
use lmr_tests::hub::{Delivery, Effect, Fault, Host, Kind, LoopbackHub};
use lmr_tests::{Finished, Project};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::Value;

use super::TOKEN;

const MODEL: &str =
    "arch = \"vit-tiny\"\nwidth = 12\ndepth = 1\nimage-size = 8\npatch-size = 4\nclasses = 4\nchannels = 1\n";
const CONFIG: &str = r#"{"architecture": "vit_tiny", "num_classes": 4, "pretrained_cfg": {"input_size": [1, 8, 8],
    "interpolation": "bicubic", "crop_pct": 1.0, "mean": [0.5], "std": [0.25]}}"#;

/// A tiny vision transformer in two shards, with its configuration.
fn sharded() -> Vec<(String, Vec<u8>)> {
    let spec: ModelSpec = toml::from_str(MODEL).unwrap();
    let state = spec.fresh(rng::stream(3, "hub"), &Device::Cpu).unwrap().params().state_dict().unwrap();
    let (mut files, mut map) = (vec![("config.json".to_owned(), CONFIG.into())], serde_json::Map::new());
    for (shard, parity) in [("model-1-of-2.safetensors", 0), ("model-2-of-2.safetensors", 1)] {
        let half =
            state.iter().enumerate().filter(|(at, _)| at % 2 == parity).map(|(_, (n, t))| (n.clone(), t.clone()));
        let half = half.collect::<lmr_plugin::nn::StateDict>();
        map.extend(half.keys().map(|name| (name.clone(), shard.into())));
        files.push((shard.to_owned(), to_safetensors(&half, &BTreeMap::new()).unwrap()));
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    files.push(("model.safetensors.index.json".to_owned(), index.to_string().into_bytes()));
    files
}

/// 160 grey images of 8×8 whose brightness is their class.
fn images() -> Vec<u8> {
    let png = |class: u8, at: u8| {
        let image = GrayImage::from_fn(8, 8, |x, y| [class * 60 + (at.wrapping_mul(7) ^ (x * y) as u8) % 40].into());
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(image).write_to(&mut bytes, ImageFormat::Png).unwrap();
        ByteArray::from(bytes.into_inner())
    };
    let pngs: Vec<ByteArray> = (0..160u8).map(|at| png(at % 4, at)).collect();
    let labels: Vec<i64> = (0..160).map(|at| at % 4).collect();
    let schema = parse_message_type("message m { required binary image; required int64 label; }").unwrap();
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&pngs, None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&labels, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.into_inner().unwrap()
}

/// A project whose weights and images are on a Hub, and the commits there.
struct Remote {
    project: Project,
    hub: LoopbackHub,
    model: String,
    data: String,
}

impl Remote {
    fn new() -> Self {
        let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
        let hub = LoopbackHub::start();
        let model = hub.commit(Kind::Model, "some/vit", sharded());
        let data = hub.commit(Kind::Dataset, "some/squares", [("data/test.parquet", images())]);
        let text = String::from_utf8(project.read("datasets/tiny.toml")).unwrap();
        let head = text.split("[train]").next().unwrap();
        let source = "[test]\nkind = \"parquet\"\nrepo = \"some/squares\"\nimage-column = \"image\"\n\
                      label-column = \"label\"\nfiles = [{ path = \"data/test.parquet\" }]\n";
        project.write("datasets/tiny.toml", format!("{head}{source}"));
        let text = String::from_utf8(project.read("pipeline.toml")).unwrap();
        let (start, rest) = (text.find("arch").unwrap(), text.find("[data]").unwrap());
        let model_table = format!("{MODEL}weights = {{ hub = \"some/vit\" }}\n\n");
        let text = format!("{}{model_table}{}", &text[..start], &text[rest..]);
        project.write(
            "pipeline.toml",
            text.replace("name = \"tiny\"\nclean", "name = \"tiny\"\npreprocessing = \"checkpoint\"\nclean"),
        );
        Self { project, hub, model, data }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        self.program(&[&["pipeline"], arguments].concat())
    }

    fn program(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.project.command(arguments);
        command.env("HF_HUB_CACHE", self.project.path().join("cache")).env("HF_ENDPOINT", self.hub.url());
        command.env("HF_TOKEN", TOKEN).env_remove("HF_HUB_OFFLINE");
        command
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        self.command(arguments).output().unwrap().into()
    }

    fn report(&self, run: &str) -> Value {
        serde_json::from_slice(&self.project.read(&format!("{run}/report.json"))).unwrap()
    }
}

#[test]
fn weights_and_images_from_the_hub_are_purified() {
    let remote = Remote::new();
    let plan = remote.run(&["pipeline.toml", "--plan"]);
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    for line in
        ["weights from some/vit@main: would be downloaded", "test split from some/squares@main: would be downloaded"]
    {
        assert!(plan.stdout.contains(line), "{}", plan.stdout);
    }
    assert!(remote.hub.requests().is_empty(), "a plan asks nothing");

    let run = remote.run(&["pipeline.toml", "-vv"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stderr.contains("model-1-of-2.safetensors  ") && run.stderr.contains(" downloaded  "),
        "{}",
        run.stderr
    );
    let report = remote.report("runs/tiny");
    let source = format!("some/vit@{}/model.safetensors.index.json", remote.model);
    assert_eq!((&report["model"]["source"], &report["model"]["repo"]), (&source.into(), &"some/vit".into()));
    assert_eq!(report["model"]["commit"], remote.model.as_str());
    let mut files = sharded();
    files.sort_by_key(|(name, _)| !name.ends_with("index.json"));
    let bytes: Vec<u8> = files.into_iter().filter(|(name, _)| name != "config.json").flat_map(|file| file.1).collect();
    assert_eq!(report["model"]["sha256"], sha256(&bytes), "of the index and the shards");
    let data: Value = serde_json::from_slice(&remote.project.read("runs/tiny/data.json")).unwrap();
    let file = &data["files"][0]["files"][0];
    assert_eq!(file["repo"], format!("some/squares@{}", remote.data));
    assert_eq!(file["sha256"], sha256(&images()));

    // The token went to the Hub and nowhere else.
    let requests = remote.hub.requests();
    for request in &requests {
        assert_eq!(request.header("authorization").is_some(), request.host == Host::Hub, "{request:?}");
    }
    assert!(!run.stderr.contains(TOKEN) && !run.stdout.contains(TOKEN));
    for file in remote.project.files() {
        let bytes = std::fs::read(remote.project.path().join(&file)).unwrap();
        assert!(!bytes.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes()), "{}", file.display());
    }

    // The branch moves on. What is in the cache is used, and a run of the resolved configuration stays at its commit.
    remote.hub.commit(Kind::Model, "some/vit", [("config.json", "{")]);
    remote.hub.forget();
    let offline: Finished =
        remote.command(&["pipeline.toml", "--out", "offline"]).env("HF_HUB_OFFLINE", "1").output().unwrap().into();
    assert_eq!(offline.code, Some(0), "{}", offline.stderr);
    let resolved = String::from_utf8(remote.project.read("runs/tiny/config.toml")).unwrap();
    assert!(resolved.contains(&format!("revision = \"{}\"", remote.model)), "{resolved}");
    std::fs::remove_file(remote.project.path().join("cache/models--some--vit/refs/main")).unwrap();
    let again = remote.run(&["runs/tiny/config.toml", "--out", "again"]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(remote.hub.requests().is_empty());
    assert_eq!(remote.project.digests("runs/tiny"), remote.project.digests("offline"));
    assert_eq!(remote.project.digests("runs/tiny"), remote.project.digests("again"));
    let plan = remote.run(&["runs/tiny/config.toml", "--plan", "--out", "again"]);
    assert!(plan.stdout.contains(&format!("weights from some/vit@{}: in the cache", remote.model)), "{}", plan.stdout);
    assert_eq!(plan.stdout.matches("would be reused").count(), 10, "{}", plan.stdout);
}

/// The whole way: shards and Parquet pulled, purified, published, pulled back.
#[test]
fn what_is_purified_goes_back_and_measures_the_same() {
    let remote = Remote::new();
    let run = remote.run(&["pipeline.toml"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let publish = ["publish", "runs/tiny", "--repo", "some/purified"];
    let published: Finished = remote.program(&publish).output().unwrap().into();
    assert_eq!(published.code, Some(0), "{}", published.stderr);
    let back = remote.run(&["pipeline.toml", "--set", "model.weights.hub=some/purified", "--out", "back"]);
    assert_eq!(back.code, Some(0), "{}", back.stderr);
    let outcome = |run: &str, name: &str| {
        let report = remote.report(run);
        let stage = report["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == name).unwrap();
        stage["outcome"].clone()
    };
    assert_eq!(outcome("back", "received"), outcome("runs/tiny", "purified"));
    assert_eq!(remote.report("back")["model"]["repo"], "some/purified");
    let digest = |run: &str, file: &str| sha256(&remote.project.read(&format!("{run}/{file}")));
    assert_ne!(digest("back", "04-purify/model.safetensors"), digest("runs/tiny", "04-purify/model.safetensors"));
}

#[test]
fn what_the_hub_refuses_is_bad_input() {
    let remote = Remote::new();
    let before = remote.project.files();
    let offline: Finished = remote.command(&["pipeline.toml"]).env("HF_HUB_OFFLINE", "1").output().unwrap().into();
    assert_eq!(offline.code, Some(2));
    assert!(offline.stderr.contains("`hf download some/vit --revision main`"), "{}", offline.stderr);
    let unknown = remote.run(&["pipeline.toml", "--set", "model.weights.hub=some/other"]);
    assert_eq!(unknown.code, Some(2));
    assert!(
        unknown.stderr.contains("the commit of `main` in model repository some/other is not known"),
        "{}",
        unknown.stderr
    );
    assert_eq!(remote.project.files(), before);
}

/// What depends on `config.json` is checked once it is here.
#[test]
fn a_config_on_the_hub_must_agree() {
    let remote = Remote::new();
    remote.hub.commit(
        Kind::Model,
        "some/vit",
        [("config.json", CONFIG.replace("\"num_classes\": 4", "\"num_classes\": 5"))],
    );
    for _ in 0..2 {
        let run = remote.run(&["pipeline.toml"]);
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        let expected = "model.classes: expected 5, as the checkpoint's config.json has, found 4";
        assert!(run.stderr.contains(expected), "{}", run.stderr);
        assert!(!remote.project.path().join("runs").exists());
    }
}

/// A folder as the Hub has it, here: an index, its shards and a configuration; images under their paths.
#[test]
fn local_folders_work_as_repositories_do() {
    let remote = Remote::new();
    let from_hub = remote.run(&["pipeline.toml"]);
    assert_eq!(from_hub.code, Some(0), "{}", from_hub.stderr);
    for (name, bytes) in sharded() {
        remote.project.write(&format!("vit/{name}"), bytes);
    }
    remote.project.write("squares/data/test.parquet", images());
    remote.project.edit("pipeline.toml", "hub = \"some/vit\"", "path = \"vit\"");
    remote.hub.forget();
    let local = remote.run(&["pipeline.toml", "--set", "data.root=squares", "--out", "local"]);
    assert_eq!(local.code, Some(0), "{}", local.stderr);
    assert!(remote.hub.requests().is_empty());
    let stages = |run: &str| {
        let mut digests = remote.project.digests(run);
        digests.retain(|path, _| path.components().count() > 1);
        digests
    };
    assert_eq!(stages("local"), stages("runs/tiny"));
    let model = &remote.report("local")["model"];
    assert_eq!((&model["source"], &model["repo"]), (&"vit".into(), &Value::Null));
    assert_eq!(model["sha256"], remote.report("runs/tiny")["model"]["sha256"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_download_goes_on() {
    let remote = Remote::new();
    let slow = Effect::Deliver(Delivery::Trickle(400, Duration::from_millis(100)));
    remote.hub.inject(Fault::new("/blobs/", slow).times(1));
    let child = remote.command(&["pipeline.toml"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    while !remote.hub.requests().iter().any(|request| request.host == Host::Cdn) {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let stopped: Finished = child.wait_with_output().unwrap().into();
    assert_eq!(stopped.code, Some(130), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("the same command continues"), "{}", stopped.stderr);
    let run = remote.run(&["pipeline.toml"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let requests = remote.hub.requests();
    let resumed = requests.iter().filter(|request| request.host == Host::Cdn && request.header("range").is_some());
    assert_eq!(resumed.count(), 1, "the file went on where it was");
}
