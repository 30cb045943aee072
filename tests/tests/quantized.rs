//! Quantized models that were published, as checkpoints: they load as what they are, or say why they do not.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use lmr_pipeline::weights::read;
use lmr_tests::Project;
use serde_json::Value;

const FORMS: &str = r#"
[[stage]]
kind = "quantize"
name = "int8"
weights = "per-tensor"

[[stage]]
kind = "evaluate"
name = "measured int8"

[[stage]]
kind = "quantize"
name = "q8"
from = "purify"
format = "q8_0"

[[stage]]
kind = "evaluate"
name = "measured q8"
"#;

/// A project whose run was published with an integer form and one in blocks.
fn published() -> Project {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    let text = String::from_utf8(project.read("pipeline.toml")).unwrap();
    let (before, _) = text.split_once("[[stage]]\nkind = \"evaluate\"\nname = \"purified\"").unwrap();
    project.write("pipeline.toml", format!("{before}{FORMS}"));
    let run = project.run(&["pipeline", "pipeline.toml"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let arguments =
        ["publish", "runs/tiny", "--repo", "a/b", "--include", "int8", "--include", "q8", "--dry-run", "made"];
    let run = project.run(&arguments);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let (data, _) = before.split_once("[[stage]]").unwrap();
    project.write("measure.toml", format!("{data}[[stage]]\nkind = \"evaluate\"\n"));
    project
}

fn outcome(project: &Project, run: &str, stage: &str) -> Value {
    let report: Value = serde_json::from_slice(&project.read(&format!("{run}/report.json"))).unwrap();
    let stages = report["stages"].as_array().unwrap();
    stages.iter().find(|found| found["name"] == stage).unwrap()["outcome"].clone()
}

#[test]
fn they_measure_what_the_run_measured_and_stay_as_they_are() {
    let project = published();
    // How many layers have which format is in the report: rows of 3·3·2 and more numbers, which no block of 32 divides.
    let blocks = outcome(&project, "runs/tiny", "q8");
    assert_eq!(blocks["format"], "q8_0");
    let layers: u64 = blocks["layers"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(layers, 21, "{blocks}");
    for (file, stage, label) in
        [("made/int8", "measured int8", "int8 per tensor"), ("made/q8/model.gguf", "measured q8", "q8_0")]
    {
        let set = format!("model.weights.path={file}");
        let run = project.run(&["pipeline", "measure.toml", "--out", "again", "--set", &set]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert_eq!(outcome(&project, "again", "evaluate"), outcome(&project, "runs/tiny", stage), "{file}");
        let report: Value = serde_json::from_slice(&project.read("again/report.json")).unwrap();
        assert!(report["model"]["source"].as_str().unwrap().ends_with(&format!(", {label}")), "{report}");
        let measure = String::from_utf8(project.read("measure.toml")).unwrap();
        for (stage, name) in [
            ("quantize", "quantize"),
            ("estimate", "estimate"),
            ("structured-prune", "structured-prune"),
            ("evaluate\"\ndeploy = [\"as-is\", { prune = {} }]\nname = \"forms", "forms"),
        ] {
            project.write("other.toml", measure.replace("\"evaluate\"", &format!("\"{stage}\"")));
            let run = project.run(&["pipeline", "other.toml", "--out", "other", "--set", &set]);
            assert_eq!(run.code, Some(2), "{}", run.stderr);
            let expected = format!("is quantized ({label}), and these stages need the full-precision model: `{name}`;");
            assert!(run.stderr.contains(&expected), "{}", run.stderr);
        }
        // As it is, it can be measured.
        project.write("other.toml", measure.replace("\"evaluate\"", "\"evaluate\"\ndeploy = [\"as-is\"]"));
        let run = project.run(&["pipeline", "other.toml", "--out", "as-is", "--set", &set]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let path = if file == "made/int8" { "made/int8/model.safetensors" } else { file };
        let run = project.run(&["inspect", path]);
        assert!(run.stdout.contains(label) && run.stdout.contains("width = 2"), "{}", run.stdout);
    }
    // The same bytes once more, and twice the same in the file.
    let first = project.read("made/q8/model.gguf");
    project.run(&["publish", "runs/tiny", "--repo", "a/b", "--include", "q8", "--dry-run", "twice"]);
    assert!(project.read("twice/q8/model.gguf") == first);
    // What Candle reads is what is there.
    let content = candle_core::quantized::gguf_file::Content::read(&mut std::io::Cursor::new(&first)).unwrap();
    let read = read(&project.path().join("made/q8/model.gguf"), None).unwrap();
    assert_eq!(content.tensor_infos.len(), read.state.len());
    assert_eq!(content.metadata["general.architecture"].to_string().unwrap(), "resnet18");
    let config: Value = serde_json::from_str(content.metadata["lmr.config"].to_string().unwrap()).unwrap();
    assert_eq!((&config["labels"][3], &config["preprocessing"]["std"][0]), (&"d".into(), &0.25.into()));
}

/// `bytes` with the first occurrence of a text replaced by one of the same length.
fn replaced(mut bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

#[test]
fn what_does_not_fit_is_said() {
    let project = published();
    let refused = |path: &str, changed: Vec<u8>, expected: &str| {
        let before = project.read(path);
        match changed.is_empty() {
            true => std::fs::remove_file(project.path().join(path)).unwrap(),
            false => project.write(path, changed),
        }
        let folder = path.rsplit_once('/').unwrap().0;
        let set = format!("model.weights.path={folder}");
        let run = project.run(&["pipeline", "measure.toml", "--out", "again", "--set", &set]);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{expected}: {}", run.stderr);
        assert!(run.stderr.contains(expected), "{expected}: {}", run.stderr);
        project.write(path, before);
    };
    let json = |from: &str, to: &str| {
        String::from_utf8(project.read("made/int8/quantization.json")).unwrap().replace(from, to).into_bytes()
    };
    let described = "made/int8/quantization.json";
    refused(described, Vec::new(), "beside it is no quantization.json to tell their bits");
    refused(described, b"{".to_vec(), "quantization.json: EOF");
    refused(described, json("\"bits\": 8", "\"bits\": 9"), "bits: expected 2 to 8, found 9");
    refused(described, json("\"bits\": 8", "\"bits\": 4"), "expected integers from -7 to 7, found");
    refused(described, json("\"bits\": 8", "\"bits\": \"8\""), "bits: invalid type");
    refused(described, json("per-tensor", "per-chanel"), "granularity: unknown variant `per-chanel`");
    refused(
        described,
        json("per-tensor", "per-channel"),
        "conv1.weight_scale: expected [2, 1, 1, 1], found [1, 1, 1, 1]",
    );
    refused(
        described,
        json("\"activations\": true", "\"activations\": false"),
        "30 unexpected: conv1.activation_range, ",
    );

    let weights = "made/int8/model.safetensors";
    let integers = || project.read(weights);
    refused(weights, replaced(integers(), "\"fc.bias\"", "\"fc.biaz\""), "fc.bias (perhaps `fc.biaz`)");
    refused(weights, integers()[..integers().len() - 3].to_vec(), "is cut off or damaged");
    let mut endless = integers();
    // The first tensor, which is of 32-bit floats.
    let at = 8 + u64::from_le_bytes(*endless.first_chunk().unwrap()) as usize;
    endless[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(weights, endless, "values are NaN or infinite");

    let blocks = "made/q8/model.gguf";
    let file = || project.read(blocks);
    refused(blocks, replaced(file(), "lmr.format", "lmr.fromat"), "has no key `lmr.format`");
    refused(blocks, replaced(file(), "q8_0", "q8_9"), "lmr.format: expected q4_0, q4_1");
    refused(blocks, replaced(file(), "\"width\":2", "\"width\":3"), "it is for a model with width = 3");
    refused(blocks, replaced(file(), "\"classes\":4", "\"classes\":0"), "lmr.config: lmr.model.classes: expected 2");
    refused(blocks, replaced(file(), "fc.bias", "fc.biaz"), "fc.bias (perhaps `fc.biaz`)");
    refused(blocks, file()[..file().len() - 40].to_vec(), "is cut off or damaged");
}

/// A head of its own needs full precision.
#[test]
fn a_fresh_head_is_refused() {
    let project = published();
    project.edit(
        "measure.toml",
        "weights = { path = \"model.safetensors\" }",
        "weights = { path = \"made/int8\", head = \"fresh\" }",
    );
    let run = project.run(&["pipeline", "measure.toml"]);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("is quantized, and keeps its head"), "{}", run.stderr);
}
