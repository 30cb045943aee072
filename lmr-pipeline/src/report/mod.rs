//! What a run found: `report.json`, the contract that other tools read, and `report.md` for people.

mod expect;
mod markdown;

use std::borrow::Cow;
use std::collections::BTreeMap;

use lmr_plugin::purify::{Estimate, Estimated};
use lmr_plugin::stage::Stage;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::artifacts::Record;
use crate::device::{self, ComputeDtype};
use crate::inputs::Inputs;
use crate::plan::{Plan, Step};

pub use expect::Checked;
pub use markdown::markdown;

/// `report.json`. Metrics are fractions in [0, 1]; `asr` and `ta` are null where no trigger is configured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// Version of this format.
    pub schema: u32,
    /// The run.
    pub run: RunReport,
    /// The model as it was received.
    pub model: ModelReport,
    /// The images.
    pub data: DataReport,
    /// Every stage in the order of the pipeline.
    pub stages: Vec<StageReport>,
    /// What the pipeline expected of them.
    #[serde(default)]
    pub expect: Vec<Checked>,
}

/// `run` of a report.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunReport {
    /// The run's name.
    pub name: String,
    /// Its seed.
    pub seed: u64,
    /// `cpu`, `cuda` or `metal`.
    pub device: String,
    /// What products were computed in.
    #[serde(default)]
    pub dtype: ComputeDtype,
    /// Version of this program.
    pub version: String,
    /// When it began, RFC 3339.
    pub started: String,
    /// How long it took, reused stages not counted.
    pub seconds: f64,
}

/// `model` of a report.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ModelReport {
    /// The architecture.
    pub arch: String,
    /// The file it came from (`owner/name@commit/file` on the Hub), or the seed that its weights were drawn from.
    pub source: String,
    /// The repository on the Hub it came from; null for a local file.
    #[serde(default)]
    pub repo: Option<String>,
    /// The commit of that repository.
    #[serde(default)]
    pub commit: Option<String>,
    /// SHA-256 of that file; null for drawn weights.
    pub sha256: Option<String>,
}

/// `data` of a report.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DataReport {
    /// The dataset.
    pub name: String,
    /// Clean images.
    pub clean: usize,
    /// Test images; 0 if no stage measures.
    pub test: usize,
}

/// A stage in a report.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StageReport {
    /// Position in the pipeline file, from 0.
    pub index: usize,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The stage whose model and findings it took; null for the model as it was received.
    pub from: Option<String>,
    /// How long it took when it ran.
    pub seconds: f64,
    /// Whether a former run did the work.
    pub reused: bool,
    /// What it found.
    pub outcome: Value,
    /// SHA-256 of the files it left in its folder.
    pub files: BTreeMap<String, String>,
}

impl Report {
    pub(crate) fn new(
        plan: &Plan,
        inputs: &Inputs,
        stages: Vec<StageReport>,
        started: jiff::Timestamp,
        seconds: f64,
    ) -> Self {
        let arch = serde_json::to_value(plan.model.arch).ok();
        let origin = inputs.source.origin.as_ref();
        Self {
            schema: 1,
            run: RunReport {
                name: plan.run.name.clone(),
                seed: plan.run.seed,
                device: device::name(&inputs.device).into(),
                dtype: plan.run.dtype,
                version: env!("CARGO_PKG_VERSION").into(),
                started: started.to_string(),
                seconds,
            },
            model: ModelReport {
                arch: arch.and_then(|arch| Some(arch.as_str()?.to_string())).unwrap_or_default(),
                source: inputs.source.source.clone(),
                repo: origin.map(|origin| origin.repo.clone()),
                commit: origin.map(|origin| origin.commit.clone()),
                sha256: inputs.source.sha256.clone(),
            },
            data: DataReport {
                name: inputs.data.name.clone(),
                clean: inputs.data.clean.count,
                test: inputs.data.test.as_ref().map_or(0, |test| test.count),
            },
            expect: expect::check(&plan.expect, &stages),
            stages,
        }
    }

    /// What every stage that measures found, in order.
    pub fn measurements(&self) -> Vec<Measurement<'_>> {
        self.stages.iter().flat_map(Measurement::all).collect()
    }

    /// What the last `estimate` found.
    pub fn estimated(&self) -> Option<Estimated> {
        let stage = self.stages.iter().rev().find(|stage| stage.kind == Estimate::KIND)?;
        serde_json::from_value(stage.outcome.clone()).ok()
    }
}

impl StageReport {
    pub(crate) fn new(plan: &Plan, step: &Step, record: &Record, seconds: f64, reused: bool) -> Self {
        Self {
            index: step.index,
            kind: step.kind.kind.into(),
            name: step.name.clone(),
            from: step.from.map(|from| plan.steps[from].name.clone()),
            seconds,
            reused,
            outcome: record.outcome.clone(),
            files: record.files.clone(),
        }
    }
}

/// ACC, ASR and TA of the model at one place of the pipeline.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Measurement<'a> {
    /// The stage's name; followed by the form, where one stage measured several.
    pub name: Cow<'a, str>,
    /// Accuracy on clean test images.
    pub acc: f64,
    /// Attack success rate, if a trigger is configured.
    pub asr: Option<f64>,
    /// Accuracy under the trigger, if one is configured.
    pub ta: Option<f64>,
    /// Accuracy under something that resembles the trigger, if the trigger knows such a thing.
    pub decoy_acc: Option<f64>,
}

impl<'a> Measurement<'a> {
    /// What a stage measured, if it is one that measures; of several forms, the first one.
    pub fn of(stage: &'a StageReport) -> Option<Self> {
        // Only a stage that evaluates has both.
        stage.outcome.get("samples")?;
        Self::read(stage.name.as_str().into(), &stage.outcome)
    }

    /// What a stage measured of each form.
    pub fn all(stage: &'a StageReport) -> Vec<Self> {
        match stage.outcome.get("forms").and_then(Value::as_array) {
            Some(forms) => forms.iter().filter_map(|form| Self::of_form(stage, form)).collect(),
            None => Self::of(stage).into_iter().collect(),
        }
    }

    /// A sentence on the worst of the forms that a stage measured; none if it measured one.
    pub fn worst(stage: &'a StageReport) -> Option<String> {
        let count = stage.outcome.get("forms")?.as_array()?.len();
        let worst = Self::of_form(stage, stage.outcome.get("worst")?)?;
        let asr = worst.asr.map(|asr| format!(", ASR {} %", percent(Some(asr)))).unwrap_or_default();
        let acc = percent(Some(worst.acc));
        (count > 1).then(|| format!("Worst of {count} forms is `{}`: ACC {acc} %{asr}.", worst.name))
    }

    fn of_form(stage: &StageReport, form: &Value) -> Option<Self> {
        Self::read(format!("{}: {}", stage.name, form.get("form")?.as_str()?).into(), form)
    }

    fn read(name: Cow<'a, str>, values: &Value) -> Option<Self> {
        let number = |key: &str| values.get(key).and_then(Value::as_f64);
        let (asr, ta, decoy_acc) = (number("asr"), number("ta"), number("decoy_acc"));
        Some(Self { name, acc: number("acc")?, asr, ta, decoy_acc })
    }
}

/// A fraction in percent with two decimals, or a dash.
pub fn percent(fraction: Option<f64>) -> String {
    fraction.map_or_else(|| "–".into(), |fraction| format!("{:.2}", 100.0 * fraction))
}
