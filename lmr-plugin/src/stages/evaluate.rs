//! Measures a model as it would be used: ACC, ASR, TA.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::model::Model;
use crate::predict;
use crate::run::Run;
use crate::stage::{Context, ModelUse, Outcome, Stage};
use crate::truth::Truth;

/// Measures accuracy on clean test images (ACC) and, where a trigger is configured, the attack success rate (ASR) and
/// the accuracy under the trigger (TA). One of the two stages that see the truth about the attack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Evaluate {}

/// What [`Evaluate`] measures. Shares are fractions in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// ACC: share of all clean test images classified as their label.
    pub acc: f64,
    /// ASR: share of triggered test images of other classes classified as the target class.
    pub asr: Option<f64>,
    /// TA: share of the same images classified as their own label.
    pub ta: Option<f64>,
    /// Clean test images.
    pub samples: usize,
    /// Triggered test images: those whose label is not the target class.
    pub triggered: usize,
    /// ACC within every class, `null` for a class without test images.
    pub per_class_acc: Vec<Option<f64>>,
}

impl Evaluate {
    /// Measures `model`, in whatever form it is, on the truth's test images.
    pub fn evaluate(&self, model: &Model, truth: &Truth, run: &Run<'_>) -> Result<Evaluation> {
        let forward = |pixels: &_| model.logits(pixels);
        let labels = truth.test.labels();
        let predicted = predict::predictions(&forward, &truth.test, None, model.device(), (run, "clean images"))?;
        let per_class_acc = (0..truth.test.classes() as u32)
            .map(|class| {
                let of_class = || predicted.iter().zip(labels).filter(|(_, y)| **y == class);
                let total = of_class().count();
                (total > 0).then(|| of_class().filter(|(p, y)| p == y).count() as f64 / total as f64)
            })
            .collect();
        let mut result = Evaluation {
            acc: predict::accuracy(&predicted, labels),
            asr: None,
            ta: None,
            samples: labels.len(),
            triggered: 0,
            per_class_acc,
        };
        if let Some(planted) = &truth.planted {
            let others: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] != planted.target).collect();
            let victims = truth.test.select(&others)?;
            let trigger = Some(planted.trigger.as_ref());
            let phase = (run, "triggered images");
            let predicted = predict::predictions(&forward, &victims, trigger, model.device(), phase)?;
            let hits = predicted.iter().filter(|p| **p == planted.target).count();
            result.asr = Some(hits as f64 / victims.len() as f64);
            result.ta = Some(predict::accuracy(&predicted, victims.labels()));
            result.triggered = victims.len();
        }
        Ok(result)
    }
}

impl Stage for Evaluate {
    const KIND: &'static str = "evaluate";
    const SUMMARY: &'static str = "measures ACC, ASR and TA on the test images";
    const MODEL: ModelUse = ModelUse::Inspects;
    type Needs = ();
    type Gives = ();
    type Sees = Truth;

    fn run(&self, ctx: &mut Context<'_>, (): (), truth: &Truth) -> Result<Outcome<()>> {
        let result = self.evaluate(ctx.model, truth, &ctx.run)?;
        ctx.run.metric("acc", 0, result.acc);
        for (name, value) in [("asr", result.asr), ("ta", result.ta)] {
            if let Some(value) = value {
                ctx.run.metric(name, 0, value);
            }
        }
        Outcome::new((), &result)
    }
}
