//! What a checkpoint and the files beside it say, from the file to the measurement and to what is published.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use lmr_pipeline::tensors::to_safetensors;
use lmr_plugin::nn::StateDict;
use lmr_plugin::rng;
use lmr_plugin::zoo::naming::{Scheme, from_torchvision};
use lmr_plugin::zoo::{Arch, HiddenActivation, ModelSpec};
use lmr_tests::{Finished, Project};
use rstest::rstest;
use serde_json::{Value, json};

const PIPELINE: &str = r#"
[run]
name = "tiny"
[model]
arch = "vit-tiny"
classes = 4
channels = 1
patch-size = 4
image-size = 8
depth = 1
weights = { path = "vit" }
[data]
name = "tiny"
clean = { split = "test", count = 40 }
test = { split = "train" }
[[stage]]
kind = "estimate"
class = 1
[[stage]]
kind = "logit-repel"
training = { epochs = 1 }
[[stage]]
kind = "delta-prune"
[[stage]]
kind = "recover"
name = "purified"
training = { epochs = 1 }
[[stage]]
kind = "evaluate"
from = "purified"
"#;

fn model() -> ModelSpec {
    ModelSpec {
        channels: 1,
        image_size: Some(8),
        patch_size: Some(4),
        depth: Some(1),
        norm_eps: Some(1e-12),
        heads: Some(12),
        activation: Some(HiddenActivation::Relu),
        ..ModelSpec::new(Arch::VitTiny, 4)
    }
}

fn state(scheme: Scheme) -> StateDict {
    let network = model().fresh(rng::stream(3, "tests"), &Device::Cpu).unwrap();
    from_torchvision(&network.params().state_dict().unwrap(), scheme).unwrap()
}

fn config() -> Value {
    json!({
        "architectures": ["ViTForImageClassification"], "model_type": "vit", "patch_size": 4, "image_size": 8,
        "num_attention_heads": 12, "hidden_act": "relu", "layer_norm_eps": 1e-12,
        "id2label": {"0": "a", "1": "b", "2": "c", "3": "d"},
    })
}

fn project(state: &StateDict, config: &Value) -> Project {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    project.write("vit/model.safetensors", to_safetensors(state, &BTreeMap::new()).unwrap());
    project.write("vit/config.json", config.to_string());
    project.write("pipeline.toml", PIPELINE);
    project
}

/// Without training: what the received model does.
fn evaluated(project: &Project, out: &str, weights: &str) -> (Finished, Value) {
    let head = PIPELINE.split_once("[[stage]]").unwrap().0.replace("{ path = \"vit\" }", weights);
    project.write("measure.toml", format!("{head}[[stage]]\nkind = \"evaluate\"\n"));
    let run = project.run(&["pipeline", "measure.toml", "--out", out]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let report: Value = serde_json::from_slice(&project.read(&format!("{out}/report.json"))).unwrap();
    (run, report["stages"][0]["outcome"].clone())
}

#[test]
fn what_the_table_leaves_out_is_as_the_file_says_and_is_published_so() {
    let project = project(&state(Scheme::Transformers), &config());
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let resolved = String::from_utf8(project.read("runs/tiny/config.toml")).unwrap();
    for line in ["heads = 12", "activation = \"relu\"", "norm-eps = 0.000000000001"] {
        assert!(resolved.contains(line), "no {line} in {resolved}");
    }
    let run = project.run(&["publish", "runs/tiny", "--repo", "someone/tiny", "--dry-run"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let written: Value = serde_json::from_slice(&project.read("runs/tiny/publish/config.json")).unwrap();
    for (key, value) in config().as_object().unwrap() {
        assert_eq!(&written[key], value, "{key}");
    }
}

#[rstest]
#[case("depth = 1\n", "depth = 1\nheads = 3\n", "model.heads: expected 12, as `num_attention_heads` in")]
#[case("depth = 1\n", "depth = 1\nactivation = \"gelu\"\n", "model.activation: expected \"relu\", as `hidden_act` in")]
#[case("depth = 1\n", "depth = 1\nnorm-eps = 1e-6\n", "model.norm-eps: expected 1e-12, as `layer_norm_eps` in")]
fn a_table_that_says_otherwise_is_refused(#[case] from: &str, #[case] to: &str, #[case] expected: &str) {
    let project = project(&state(Scheme::Transformers), &config());
    project.edit("pipeline.toml", from, to);
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains(expected), "{}", run.stderr);
}

#[test]
fn a_key_that_is_not_known_is_named() {
    let mut config = config();
    config["attention_temperature"] = json!(2);
    let project = project(&state(Scheme::Transformers), &config);
    let (run, _) = evaluated(&project, "out", "{ path = \"vit\" }");
    assert!(run.stderr.contains("`attention_temperature` in its configuration is not known"), "{}", run.stderr);
}

/// The rows of the head in another order, and their names with them.
#[test]
fn classes_in_another_order_are_mapped() {
    let plain = project(&state(Scheme::Transformers), &config());
    let (_, expected) = evaluated(&plain, "out", "{ path = \"vit\" }");
    let mut turned = state(Scheme::Transformers);
    let rows = Tensor::new(&[2u32, 0, 3, 1], &Device::Cpu).unwrap();
    for name in ["classifier.weight", "classifier.bias"] {
        let tensor = turned[name].index_select(&rows, 0).unwrap();
        turned.insert(name.into(), tensor);
    }
    let mut config = config();
    config["id2label"] = json!({"0": "c", "1": "a", "2": "d", "3": "b"});
    let project = project(&turned, &config);
    let (run, found) = evaluated(&project, "out", "{ path = \"vit\" }");
    assert_eq!(found["acc"], expected["acc"]);
    assert!(
        run.stderr.contains("in another order (class 0 is \"c\" there and \"a\" in the dataset)"),
        "{}",
        run.stderr
    );
    let (_, unmapped) = evaluated(&project, "unmapped", "{ path = \"vit\", labels = \"dataset\" }");
    assert_ne!(unmapped["acc"], expected["acc"]);
}

#[rstest]
#[case::other(json!({"0": "ant", "1": "bee", "2": "cow", "3": "doe"}), "config.json has other names of classes")]
#[case::moved(json!({"0": "b", "1": "ant", "2": "c", "3": "d"}), "config.json has names of classes in another place")]
fn other_classes_are_refused(#[case] labels: Value, #[case] expected: &str) {
    let mut config = config();
    config["id2label"] = labels;
    let project = project(&state(Scheme::Transformers), &config);
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains(expected) && run.stderr.contains("weights.labels"), "{}", run.stderr);
}

/// A wrapped, averaged model with LayerScale, whose counter overflowed: it computes the same, and an export has all its names.
#[test]
fn a_wrapped_checkpoint_is_read_and_written_back() {
    let timm = json!({"architecture": "vit_tiny_patch16_224", "num_classes": 4, "global_pool": "token", "model_args":
        {"img_size": 8, "patch_size": 4, "depth": 1, "num_heads": 12, "act_layer": "relu"}});
    let plain = project(&state(Scheme::Timm), &timm);
    let (_, expected) = evaluated(&plain, "out", "{ path = \"vit\" }");
    let mut wrapped = state(Scheme::Timm);
    wrapped.insert("blocks.0.ls1.gamma".into(), Tensor::ones(192, DType::F32, &Device::Cpu).unwrap());
    let mut wrapped: StateDict =
        wrapped.into_iter().map(|(name, tensor)| (format!("module.backbone.{name}"), tensor)).collect();
    wrapped.insert("n_averaged".into(), Tensor::new(&[7i64], &Device::Cpu).unwrap());
    let project = project(&wrapped, &timm);
    let (run, found) = evaluated(&project, "out", "{ path = \"vit\" }");
    assert_eq!(found, expected);
    assert!(run.stderr.contains("`n_averaged`"), "{}", run.stderr);
    project.edit("pipeline.toml", "{ path = \"vit\" }", "{ path = \"vit\", export = \"safetensors\" }");
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let written = lmr_pipeline::weights::parse(&project.read("runs/tiny/03-purified/export.safetensors")).unwrap();
    wrapped.remove("n_averaged");
    assert_eq!(written.keys().collect::<Vec<_>>(), wrapped.keys().collect::<Vec<_>>());
}
