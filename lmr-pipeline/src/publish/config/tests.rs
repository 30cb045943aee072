use std::path::Path;

use lmr_plugin::zoo::{Arch, Stem};
use rstest::rstest;

use super::*;
use crate::model_config::ModelConfig;
use crate::preprocess::{Interpolation, Resize};

fn images(size: usize) -> Preprocessing {
    Preprocessing {
        size: [size, size],
        resize: Resize::Exact([size, size]),
        interpolation: Interpolation::Bicubic,
        mean: vec![0.5, 0.4, 0.3],
        std: vec![0.25; 3],
    }
}

fn labels() -> Vec<String> {
    ["cat", "dog", "<b>"].map(String::from).to_vec()
}

/// What this program reads of the files.
fn read_back(files: &[ConfigFile]) -> (ModelConfig, Value) {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::write(dir.path().join(file.name), &file.bytes).unwrap();
    }
    let config = ModelConfig::beside(&dir.path().join("model.safetensors")).unwrap().unwrap();
    (config, serde_json::from_slice(&std::fs::read(dir.path().join(Path::new("config.json"))).unwrap()).unwrap())
}

fn described<'a>(
    model: &'a ModelSpec,
    scheme: Option<Scheme>,
    images: &'a Preprocessing,
    labels: &'a [String],
    received: &'a Map<String, Value>,
) -> Described<'a> {
    Described { model, scheme, dtype: Dtype::F32, labels, images, received, received_processor: received }
}

fn vit() -> ModelSpec {
    ModelSpec { image_size: Some(32), patch_size: Some(8), depth: Some(2), ..ModelSpec::new(Arch::VitTiny, 3) }
}

fn resnet(stem: Stem) -> ModelSpec {
    ModelSpec { stem: Some(stem), ..ModelSpec::new(Arch::Resnet18, 3) }
}

#[rstest]
#[case::transformers(vit(), Some(Scheme::Transformers), Library::Transformers, "ViTForImageClassification")]
#[case::transformers5(vit(), Some(Scheme::Transformers5), Library::Transformers, "ViTForImageClassification")]
#[case::timm(vit(), Some(Scheme::Timm), Library::Timm, "vit_tiny_patch16_224")]
#[case::torchvision_vit(vit(), Some(Scheme::Torchvision), Library::Lmr, "vit-tiny")]
#[case::other_eps(ModelSpec { norm_eps: Some(1e-5), ..vit() }, Some(Scheme::Timm), Library::Lmr, "vit-tiny")]
#[case::resnet(resnet(Stem::Imagenet), None, Library::Timm, "resnet18")]
#[case::small_images(resnet(Stem::Cifar), None, Library::Lmr, "resnet18")]
#[case::narrow(ModelSpec { width: Some(16), ..resnet(Stem::Imagenet) }, None, Library::Lmr, "resnet18")]
#[case::mobilenet(ModelSpec::new(Arch::MobilenetV2, 3), None, Library::Lmr, "mobilenet-v2")]
fn this_program_reads_it_back(
    #[case] model: ModelSpec,
    #[case] scheme: Option<Scheme>,
    #[case] library: Library,
    #[case] architecture: &str,
) {
    let (images, labels, none) = (images(32), labels(), Map::new());
    let described = described(&model, scheme, &images, &labels, &none);
    assert_eq!(described.library(), library);
    let (config, _) = read_back(&described.files().unwrap());
    assert_eq!((config.library, config.architecture.as_str()), (library, architecture));
    assert_eq!((config.classes, &config.labels), (Some(3), &labels));
    let found = config.preprocessing.unwrap();
    assert_eq!((&found.mean, &found.std, found.size), (&images.mean, &images.std, images.size));
    if let Some(written) = config.model {
        assert_eq!(written, model.resolved());
    }
}

#[test]
fn strangers_keys_are_kept_but_none_that_loads() {
    let received = serde_json::json!({
        "architectures": ["ViTForImageClassification"], "hidden_size": 7, "id2label": { "0": "x" }, "finetuned_from": "a/b",
        "auto_map": { "AutoModel": "evil/repo--code.Model" }, "_name_or_path": "/home/someone", "long": "x".repeat(100_000),
    });
    let received = received.as_object().unwrap().clone();
    let (images, labels, model) = (images(32), labels(), vit());
    let (_, json) =
        read_back(&described(&model, Some(Scheme::Transformers), &images, &labels, &received).files().unwrap());
    assert_eq!(json["finetuned_from"], "a/b");
    assert_eq!((&json["hidden_size"], json["id2label"].as_object().unwrap().len()), (&192.into(), 3));
    for key in ["auto_map", "_name_or_path", "long"] {
        assert!(json.get(key).is_none(), "{key}");
    }
    // A library that cannot load the weights must not take the file for its own.
    let (config, json) =
        read_back(&described(&model, Some(Scheme::Torchvision), &images, &labels, &received).files().unwrap());
    assert_eq!((config.library, json.get("architectures")), (Library::Lmr, None));
}

#[test]
fn timm_is_sent_nowhere_for_weights() {
    let received = serde_json::json!({ "architecture": "resnet50", "license": "mit", "model_args": { "checkpoint_path": "/x" },
        "pretrained_cfg": { "url": "https://example.org/x", "hf_hub_id": "evil/repo", "custom_load": true, "tag": "a1_in1k" } });
    let received = received.as_object().unwrap().clone();
    let (images, labels, model) = (images(32), labels(), resnet(Stem::Imagenet));
    let (_, json) = read_back(&described(&model, None, &images, &labels, &received).files().unwrap());
    assert_eq!(
        (&json["architecture"], &json["license"], &json["pretrained_cfg"]["tag"]),
        (&"resnet18".into(), &"mit".into(), &"a1_in1k".into())
    );
    assert_eq!(json["model_args"], serde_json::json!({}));
    for key in ["url", "hf_hub_id", "custom_load"] {
        assert!(json["pretrained_cfg"].get(key).is_none(), "{key}");
    }
}

#[rstest]
#[case::shorter_side(Resize::ShortestEdge(256))]
#[case::crop_of_a_square(Resize::Exact([256, 256]))]
#[case::stretched(Resize::Exact([224, 224]))]
fn preprocessing_survives(#[case] resize: Resize) {
    let images = Preprocessing { resize, ..images(224) };
    let (labels, none) = (labels(), Map::new());
    let vit = ModelSpec { image_size: None, patch_size: None, ..vit() };
    for (model, scheme) in [(&vit, Some(Scheme::Transformers)), (&resnet(Stem::Imagenet), None)] {
        let (config, _) = read_back(&described(model, scheme, &images, &labels, &none).files().unwrap());
        let found = config.preprocessing.unwrap();
        // timm has no other word for "stretched" than a centre crop of everything.
        if (scheme, resize) != (None, Resize::Exact([224, 224])) {
            assert_eq!(found, images, "{scheme:?}");
        }
        assert_eq!(found.size, images.size);
    }
}
