//! The method at its defaults, on the bundled model and data: the backdoor is found, it goes, and the accuracy stays.
//! Without the method it does not go, and the pipeline's own expectations say so.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Fewer test images than the quickstart measures on; everything else is as it is.
const TEST_IMAGES: &str = "data.test.count=2000";

/// Runs the quickstart in a folder, and gives its exit code and the stages of its report.
fn quickstart(out: &Path, sets: &[&str]) -> (Option<i32>, Vec<Value>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    command.current_dir(root).args(["pipeline", "configs/quickstart.toml", "--set", TEST_IMAGES]);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LMR_")) {
        command.env_remove(name);
    }
    for set in sets {
        command.args(["--set", set]);
    }
    let run = command.arg("--out").arg(out).output().unwrap();
    let report = std::fs::read(out.join("report.json"));
    let report: Value = serde_json::from_slice(&report.unwrap_or_else(|_| panic!("{run:?}"))).unwrap();
    (run.status.code(), report["stages"].as_array().unwrap().clone())
}

fn metric(stages: &[Value], name: &str, metric: &str) -> f64 {
    let stage = stages.iter().find(|stage| stage["name"] == name).unwrap();
    stage["outcome"][metric].as_f64().unwrap()
}

#[test]
fn the_backdoor_goes_and_the_accuracy_stays() {
    let out = tempfile::tempdir().unwrap();
    let (code, stages) = quickstart(out.path(), &[]);
    assert_eq!(metric(&stages, "estimate", "class"), 0.0, "the trigger's target");
    let received = ["acc", "asr", "ta"].map(|which| metric(&stages, "received", which));
    assert!(received[0] > 0.92 && received[1] > 0.99 && received[2] < 0.01, "{received:?}");
    for name in ["purified", "purified + int8"] {
        let [acc, asr, ta] = ["acc", "asr", "ta"].map(|which| metric(&stages, name, which));
        assert!(acc > received[0] - 0.02 && asr < 0.03 && ta > 0.88, "{name}: ACC {acc}, ASR {asr}, TA {ta}");
    }
    assert_eq!(code, Some(0), "the pipeline's own expectations are met");

    // Everything but the repulsion: the estimate is reused, nothing is pushed, the fine-tuning is the same.
    let without = ["stage.logit-repel.alpha=0", "stage.logit-repel.beta=0", "stage.delta-prune.ratio=0"];
    let (code, stages) = quickstart(out.path(), &without);
    assert_eq!(stages[1]["reused"], true);
    let asr = metric(&stages, "purified", "asr");
    assert!(asr > 0.1, "the backdoor goes by itself: {asr}");
    assert_eq!(code, Some(3), "and the pipeline says that it stayed");
}
