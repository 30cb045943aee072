//! `lmr inspect`.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use candle_core::{DType, Tensor};
use lmr_tests::Project;

#[test]
fn inspect_shows_what_a_file_holds() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    project.write("attack_result.pt", include_bytes!("../fixtures/checkpoints/attack_result.pt"));
    let run = project.run(&["inspect", "attack_result.pt"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    for part in ["torch-zip", "preactresnet18", "key", "fc.weight", "4×2", "nothing looks wrong"] {
        assert!(run.stdout.contains(part), "no {part:?} in {}", run.stdout);
    }
    let run = project.run(&["inspect", "model.safetensors"]);
    let table = "[model]\narch = \"resnet18\"\nclasses = 4\nchannels = 1\nstem = \"cifar\"\n\
                 padding = \"torch\"  # the default: the file does not tell\nwidth = 2\n\
                 weights = { path = \"model.safetensors\" }";
    assert!(run.stdout.contains(table), "{}", run.stdout);
    let run = project.run(&["inspect", "model.safetensors", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&found["format"], &found["naming"]), (&"safetensors".into(), &"torchvision ResNet".into()));
    assert_eq!((&found["head"], &found["classes"], &found["dtypes"]["i64"]), (&"fc".into(), &4.into(), &20.into()));
    let bias = found["tensors"].as_array().unwrap().iter().find(|layer| layer["name"] == "fc.bias").unwrap();
    assert!(bias["min"].as_f64() < bias["mean"].as_f64() && bias["mean"].as_f64() < bias["max"].as_f64(), "{bias}");
}

/// What a run refuses is what one wants to look at.
#[test]
fn inspect_shows_numbers_that_are_wrong() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    let mut state = lmr_tests::fresh_state(2);
    let device = candle_core::Device::Cpu;
    state.insert("fc.bias".into(), Tensor::new(&[0f32, f32::NAN, 1.0, f32::INFINITY], &device).unwrap());
    state.insert("bn1.running_var".into(), Tensor::new(&[0f32, 1e9], &device).unwrap());
    state.insert("fc.weight".into(), Tensor::zeros((4, 16), DType::F32, &device).unwrap());
    project.write_weights(state);
    let run = project.run(&["inspect", "model.safetensors"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    for part in [
        "fc.bias: 1 of 4 values are NaN",
        "fc.bias: 1 of 4 values are infinite",
        "bn1.running_var: 1 of 2 variances are not positive",
        "bn1.running_var: 1 of 2 variances are above 1e6",
        "fc.weight: 4 of 4 channels are all zero",
    ] {
        assert!(run.stdout.contains(part), "no {part:?} in {}", run.stdout);
    }
    for (arguments, fragment) in [
        (&["inspect", "nowhere.pth"][..], "nowhere.pth: cannot be read"),
        (&["inspect", "pipeline.toml"], "pipeline.toml: is cut off or no safetensors file"),
        (&["inspect", "model.safetensors", "--key", "model"], "leave `key` out"),
    ] {
        let run = project.run(arguments);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""));
        assert!(run.stderr.starts_with("error: ") && run.stderr.contains(fragment), "{}", run.stderr);
    }
}

#[test]
fn a_config_beside_the_file_is_shown() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    project.write(
        "config.json",
        r#"{"architecture": "resnet18", "num_classes": 4, "pretrained_cfg": {"input_size": [3, 224, 224],
        "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}}"#,
    );
    let run = project.run(&["inspect", "model.safetensors"]);
    for part in ["config.json", "224x224, bicubic", "mean [0.5, 0.5, 0.5]"] {
        assert!(run.stdout.contains(part), "no {part:?} in {}", run.stdout);
    }
    project.write("config.json", "{}");
    let run = project.run(&["inspect", "model.safetensors"]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("config.json: names neither `architecture`"), "{}", run.stderr);
}
