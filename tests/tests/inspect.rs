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

#[test]
fn a_folder_is_its_checkpoint_or_what_else_is_in_it() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    project.write("folder/model.safetensors", project.read("model.safetensors"));
    project.write("folder/README.md", "");
    let run = project.run(&["inspect", "folder"]);
    assert!(run.stdout.contains("weights = { path = \"folder\" }"), "{}{}", run.stdout, run.stderr);
    project.write("other/model.onnx", b"\x08\x08\x12\x07pytorch");
    let run = project.run(&["inspect", "other"]);
    assert_eq!(run.code, Some(2));
    assert!(
        run.stderr.contains("model.onnx: is an ONNX model") && run.stderr.contains("has no checkpoint"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_table_is_offered_only_for_what_loads() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    let device = candle_core::Device::Cpu;
    for (change, fault) in [("more", "1 unexpected: extra.weight"), ("less", "layer3.0.bn2.weight")] {
        let mut state = lmr_tests::fresh_state(2);
        match change {
            "more" => state.insert("extra.weight".into(), Tensor::zeros(3, DType::F32, &device).unwrap()),
            _ => state.remove("layer3.0.bn2.weight"),
        };
        project.write_weights(state);
        let run = project.run(&["inspect", "model.safetensors"]);
        assert!(!run.stdout.contains("[model]"), "{}", run.stdout);
        let warning = "looks like resnet18, but cannot be loaded: ";
        assert!(run.stdout.contains(warning) && run.stdout.contains(fault), "{}", run.stdout);
        // Nothing was trained here, either.
        assert!(run.stdout.contains("this network was not trained"), "{}", run.stdout);
    }
}

#[test]
fn a_trunk_without_a_head_gets_a_fresh_one() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    let mut state = lmr_tests::fresh_state(2);
    state.retain(|name, _| !name.starts_with("fc."));
    project.write_weights(state);
    let run = project.run(&["inspect", "model.safetensors"]);
    let table = "arch = \"resnet18\"\nclasses = 2  # as many as the data has: the file has no head\n";
    assert!(run.stdout.contains(table), "{}", run.stdout);
    assert!(run.stdout.contains("weights = { path = \"model.safetensors\", head = \"fresh\" }"), "{}", run.stdout);
}
