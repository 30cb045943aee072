//! Checkpoints that PyTorch wrote are read and written back; `fixtures/checkpoints/make.py` made the files.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::path::PathBuf;

use candle_core::{DType, Tensor};
use lmr_pipeline::weights::{Checkpoint, Container, Export, read};
use lmr_tests::Project;
use rstest::rstest;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/checkpoints").join(name)
}

fn load(name: &str, key: Option<&str>) -> Checkpoint {
    read(&fixture(name), key).unwrap()
}

/// What `make.py` puts into every tensor: i/8 - 1.
fn values(count: usize) -> Vec<f64> {
    (0..count).map(|i| i as f64 / 8.0 - 1.0).collect()
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[rstest]
#[case::zip("plain.pth", None, Container::TorchZip, DType::F32, "", "")]
#[case::legacy("legacy.pth", None, Container::TorchLegacy, DType::F32, "", "")]
#[case::protocol4("protocol4.pth", None, Container::TorchZip, DType::F32, "", "")]
#[case::f16("f16.pth", None, Container::TorchZip, DType::F16, "", "")]
#[case::bf16("bf16.pth", None, Container::TorchZip, DType::BF16, "", "")]
#[case::f64("f64.pth", None, Container::TorchZip, DType::F64, "", "")]
#[case::nested_parallel("parallel.pth", None, Container::TorchZip, DType::F32, "state_dict", "module.")]
#[case::chosen("two.pth", Some("model_ema"), Container::TorchZip, DType::F32, "model_ema", "")]
#[case::attack_result("attack_result.pt", None, Container::TorchZip, DType::F32, "model", "")]
fn state_dicts_are_found(
    #[case] name: &str,
    #[case] chosen: Option<&str>,
    #[case] container: Container,
    #[case] dtype: DType,
    #[case] key: &str,
    #[case] prefix: &str,
) {
    let Checkpoint { state, layout, .. } = load(name, chosen);
    assert_eq!((layout.container, layout.key.as_str(), layout.wrapping.prefix.as_str()), (container, key, prefix));
    let names: Vec<&str> = layout.entries.iter().map(|entry| &entry.name[prefix.len()..]).collect();
    assert_eq!(names, ["conv1.weight", "bn1.running_var", "bn1.num_batches_tracked", "fc.weight", "fc.bias"]);
    assert_eq!((state["conv1.weight"].dims(), state["conv1.weight"].dtype()), (&[2, 1, 3, 3][..], dtype));
    assert_eq!(flat(&state["conv1.weight"]), values(18));
    assert_eq!(flat(&state["bn1.running_var"]), [1.0, 1.125]);
    assert_eq!(state["bn1.num_batches_tracked"].to_scalar::<i64>().unwrap(), 7);
    assert_eq!(flat(&state["fc.weight"]), values(8));
}

#[rstest]
#[case("odd.pth")]
#[case("odd_legacy.pth")]
fn views_and_integers_are_read(#[case] name: &str) {
    let Checkpoint { state, layout, .. } = load(name, None);
    let base = Tensor::from_vec(values(48), (6, 8), &candle_core::Device::Cpu).unwrap();
    let rows = |rows: &[u32]| base.index_select(&Tensor::new(rows, base.device()).unwrap(), 0).unwrap();
    for (name, expected) in [
        ("transposed", base.t().unwrap()),
        ("slice", rows(&[1, 3]).narrow(1, 3, 5).unwrap()),
        ("parameter", rows(&[2, 3])),
        ("tied", base.clone()),
        ("again", base.clone()),
    ] {
        assert_eq!(state[name].dims(), expected.dims(), "{name}");
        assert_eq!(flat(&state[name]), flat(&expected), "{name}");
    }
    assert_eq!((state["scalar"].rank(), flat(&state["scalar"])), (0, vec![2.5]));
    assert_eq!(state["empty"].dims(), [0, 3]);
    assert_eq!(flat(&state["channels_last"]), values(24));
    assert_eq!(flat(&state["bool"]), [1.0, 0.0]);
    assert_eq!(flat(&state["i8"]), [-1.0, 5.0]);
    assert_eq!(flat(&state["i32"]), [-1.0, f64::from(1 << 30)]);
    assert_eq!(layout.skipped, ["text"]);
}

#[test]
fn a_whole_module_gives_its_state_dict() {
    let Checkpoint { state, layout, .. } = load("module.pth", None);
    let names: Vec<&str> = layout.entries.iter().map(|entry| entry.name.as_str()).collect();
    let norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"].map(|n| format!("block.1.{n}"));
    let expected = [&["block.0.weight"][..], &norm.each_ref().map(String::as_str), &["fc.weight", "fc.bias"]].concat();
    assert_eq!(names, expected, "in PyTorch's order, without the buffer that is not persistent");
    assert_eq!(flat(&state["block.0.weight"]), values(18));
    assert_eq!(flat(&state["fc.weight"]), values(8));
}

#[test]
fn what_is_beside_the_weights_is_noted() {
    let notes = load("attack_result.pt", None).notes;
    let expected =
        [("model_name", "preactresnet18"), ("num_classes", "4"), ("data_path", "../data"), ("clean_data", "cifar10")];
    assert_eq!(notes, expected.map(|(name, value)| (name.to_string(), value.to_string())));
}

#[rstest]
#[case::several("two.pth", None, "holds several state dicts (`model`, `model_ema`); choose one with `key`")]
#[case::no_such_key("two.pth", Some("modle"), "has no state dict `modle`; did you mean `model`?")]
#[case::needs_no_key("plain.pth", Some("model"), "it is one itself")]
fn a_key_chooses(#[case] name: &str, #[case] key: Option<&str>, #[case] expected: &str) {
    let message = read(&fixture(name), key).unwrap_err().to_string();
    assert!(message.contains(name) && message.contains(expected), "{message}");
}

/// Under the names, in the dtypes and the order it came with; the same again from what was written.
#[rstest]
fn checkpoints_are_written_back(
    #[values(
        "plain.pth",
        "legacy.pth",
        "f16.pth",
        "bf16.pth",
        "f64.pth",
        "parallel.pth",
        "odd.pth",
        "attack_result.pt",
        "module.pth"
    )]
    name: &str,
    #[values(Export::Pth, Export::Safetensors)] export: Export,
) {
    let first = load(name, None);
    let bytes = first.layout.write(&first.state, export).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("written");
    std::fs::write(&path, &bytes).unwrap();
    let second = read(&path, None).unwrap();
    let (mut before, mut after) = (first.layout.entries.clone(), second.layout.entries.clone());
    if export == Export::Safetensors {
        // The format has an order of its own.
        before.sort_by(|a, b| a.name.cmp(&b.name));
        after.sort_by(|a, b| a.name.cmp(&b.name));
    }
    assert_eq!(before, after);
    assert_eq!(first.layout.wrapping.prefix, second.layout.wrapping.prefix);
    for (name, tensor) in &first.state {
        let again = &second.state[name];
        assert_eq!((tensor.dims(), tensor.dtype()), (again.dims(), again.dtype()), "{name}");
        assert_eq!(flat(tensor), flat(again), "{name}");
    }
    assert!(second.layout.write(&second.state, export).unwrap() == bytes, "the same bytes");
}

/// The received model as `torch.save` would write it, from a wrapper and in half precision.
fn received_as_pth(project: &Project) -> Vec<u8> {
    let Checkpoint { state, mut layout, .. } = read(&project.path().join("model.safetensors"), None).unwrap();
    layout.wrapping.prefix = "module.".into();
    for entry in &mut layout.entries {
        entry.name.insert_str(0, "module.");
        if entry.dtype == safetensors::Dtype::F32 {
            entry.dtype = safetensors::Dtype::BF16;
        }
    }
    layout.write(&state, Export::Pth).unwrap()
}

#[test]
fn a_purified_model_goes_back_the_way_it_came() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    project.write("model.pth", received_as_pth(&project));
    project.edit("pipeline.toml", "{ path = \"model.safetensors\" }", "{ path = \"model.pth\", export = \"pth\" }");
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let stage = project.path().join("runs/tiny/04-purify");
    let (received, export) =
        (read(&project.path().join("model.pth"), None).unwrap(), read(&stage.join("export.pth"), None).unwrap());
    assert_eq!(received.layout, export.layout);
    let purified = read(&stage.join("model.safetensors"), None).unwrap().state;
    assert!(export.state.iter().any(|(name, tensor)| flat(tensor) != flat(&received.state[name])), "it was purified");
    for (name, tensor) in &export.state {
        let rounded = purified[name].to_dtype(tensor.dtype()).unwrap();
        assert_eq!(flat(tensor), flat(&rounded), "{name}");
    }
    // A reused stage is written again, the same.
    let before = project.digests("runs/tiny");
    std::fs::remove_file(stage.join("export.pth")).unwrap();
    assert_eq!(project.run(&["pipeline", "pipeline.toml"]).code, Some(0));
    assert_eq!(project.digests("runs/tiny"), before);
}

#[test]
fn another_number_of_classes_needs_a_fresh_head() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    let mut state = lmr_tests::fresh_state(2);
    for name in ["fc.weight", "fc.bias"] {
        state.insert(name.into(), Tensor::cat(&[&state[name], &state[name]], 0).unwrap());
    }
    project.write_weights(state);
    project.edit("pipeline.toml", "kind = \"evaluate\"\nname = \"received\"", "kind = \"evaluate\"");
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(2));
    for part in ["model.safetensors: ", "fc.bias", "a model with classes = 8", "weights.head = \"fresh\""] {
        assert!(run.stderr.contains(part), "no {part:?} in {}", run.stderr);
    }
    let run = project.run(&["pipeline", "pipeline.toml", "--set", "model.weights.head=fresh"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let report: serde_json::Value = serde_json::from_slice(&project.read("runs/tiny/report.json")).unwrap();
    assert_eq!(report["model"]["source"], "model.safetensors, with a fresh head");
    let found = read(&project.path().join("runs/tiny/04-purify/model.safetensors"), None).unwrap();
    assert_eq!(found.state["fc.bias"].dims(), [4]);
}

#[test]
fn another_architecture_is_named() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    let run = project.run(&["pipeline", "pipeline.toml", "--set", "model.width=4", "--set", "model.arch=resnet34"]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("it is for a model with arch = \"resnet18\", width = 2"), "{}", run.stderr);
}

const TIMM: &str = r#"{"architecture": "resnet18", "num_classes": 4, "pretrained_cfg": {"input_size": [1, 8, 8],
    "interpolation": "bicubic", "mean": [0.1], "std": [4.0]}}"#;

/// A folder as the Hub has it: the weights are found, and pixels are normalized as its `config.json` says.
#[test]
fn a_folder_with_a_config_is_a_checkpoint() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    let reused = || {
        let run = project.run(&["pipeline", "pipeline.toml"]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let report: serde_json::Value = serde_json::from_slice(&project.read("runs/tiny/report.json")).unwrap();
        report["stages"][0]["reused"].as_bool().unwrap()
    };
    assert!(!reused());
    project.write("received/model.safetensors", project.read("model.safetensors"));
    project.edit("pipeline.toml", "{ path = \"model.safetensors\" }", "{ path = \"received\" }");
    assert!(reused(), "the same model");
    project.write("received/config.json", TIMM);
    assert!(!reused(), "the model sees other numbers");
}

#[rstest]
#[case::classes(TIMM.replace("4,", "5,"), "model.classes: expected 5, as the checkpoint's config.json has, found 4; for other")]
#[case::channels(TIMM.replace("[1, 8, 8]", "[3, 8, 8]").replace("0.1", "0.1, 0, 0").replace("4.0", "4, 4, 4"), "model.channels: expected 3")]
#[case::broken("{".into(), "config.json: EOF")]
fn a_config_that_says_otherwise_is_refused(#[case] config: String, #[case] expected: &str) {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    project.write("config.json", config);
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains(expected), "{}", run.stderr);
}

#[rstest]
#[case::none(&[], "has no checkpoint; expected model.safetensors or another .safetensors, .pth, .pt, .bin")]
#[case::several(&["a.pth", "b.pt"], "has 2 checkpoints, a.pth and b.pt among them; name one")]
fn a_folder_without_one_checkpoint_is_refused(#[case] files: &[&str], #[case] expected: &str) {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    project.write("received/readme.md", "");
    files.iter().for_each(|file| project.write(&format!("received/{file}"), ""));
    project.edit("pipeline.toml", "{ path = \"model.safetensors\" }", "{ path = \"received\" }");
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains(expected), "{}", run.stderr);
}
