//! The whole way on a tiny problem: a backdoor is implanted, found and removed, and the accuracy stays. The problem is
//! easy on purpose; how well the method works is measured on real data.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use lmr_tests::Project;
use serde_json::Value;

const PLAIN: &str = "{ crop-padding = 0, flip = false }";

fn run(project: &Project, config: &str, out: &str, sets: &[String]) -> Vec<Value> {
    let mut arguments = vec!["pipeline", config, "--out", out];
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    let run = project.run(&arguments);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let report: Value = serde_json::from_slice(&project.read(&format!("{out}/report.json"))).unwrap();
    report["stages"].as_array().unwrap().clone()
}

fn metric(stages: &[Value], name: &str, metric: &str) -> f64 {
    let stage = stages.iter().find(|stage| stage["name"] == name).unwrap();
    stage["outcome"][metric].as_f64().unwrap()
}

#[test]
fn the_backdoor_goes_and_the_accuracy_stays() {
    let project = Project::new(env!("CARGO_BIN_EXE_lmr-under-test"));
    let sets = ["model.width=8", "stage.attack.epochs=20", &format!("stage.attack.augment={PLAIN}")].map(String::from);
    let attacked = run(&project, "attack.toml", "attacked", &sets);
    assert!(metric(&attacked, "evaluate", "asr") > 0.95, "{attacked:?}");

    let sets = [
        "model.width=8",
        "model.weights.path=attacked/00-attack/model.safetensors",
        "data.clean.count=80",
        "stage.estimate.max-steps=60",
        // So easy a problem saturates the default margin on clean images without the backdoor noticing. With these, seeds 0
        // to 5 all end at an ASR of 0 and an ACC of 0.97 and more on a CPU with AVX2. Rounding differs from one kind of
        // CPU to another, and with a margin of 40 and 20 epochs one kind kept a third of the backdoor for three seeds.
        "stage.logit-repel.m1=60",
        "stage.logit-repel.lr=0.1",
        "stage.logit-repel.epochs=30",
        &format!("stage.logit-repel.augment={PLAIN}"),
        "stage.recover.lr=0.01",
        "stage.recover.epochs=60",
        &format!("stage.recover.augment={PLAIN}"),
    ];
    let purified = run(&project, "pipeline.toml", "purified", &sets.map(String::from));
    assert_eq!(purified[1]["outcome"]["class"], 0, "the trigger's target");
    assert!(metric(&purified, "received", "asr") > 0.95 && metric(&purified, "received", "ta") < 0.05);
    for name in ["purified", "purified + int8"] {
        let [acc, asr, ta] = ["acc", "asr", "ta"].map(|which| metric(&purified, name, which));
        assert!(acc > 0.9 && asr < 0.1 && ta > 0.9, "{name}: ACC {acc}, ASR {asr}, TA {ta}");
    }
}
