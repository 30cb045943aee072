//! Measures a model as it would be used: ACC, ASR, TA.

use std::cell::RefCell;

use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::data::CleanSet;
use crate::deploy::{Deployment, Forms};
use crate::model::Model;
use crate::predict;
use crate::run::Run;
use crate::stage::{CleanUse, Context, Examination, Examines, ModelUse, Outcome, Planted, Stage};

/// Measures accuracy on clean test images (ACC) and, where there is a trigger, the attack success rate (ASR) and the
/// accuracy under the trigger (TA). The only stage that is shown the answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Evaluate {
    /// The forms to measure a full-precision model in: `["as-is", { quantize = { engine = "litert" } }, { prune = { ratio = 0.5 } }]`,
    /// or `"all"`: full precision, every engine, and 10 to 70% pruned. If empty, the model is measured in the form it comes in.
    pub deploy: Forms,
    /// Rounds images with the trigger to 8 bits a pixel, as a file would: what is left of a trigger that has to get through
    /// one. Off, it keeps faint noise and warps as they are.
    pub eight_bit: bool,
}

/// What [`Evaluate`] measures. Shares are fractions in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// ACC: share of all clean test images classified as their label.
    pub acc: f64,
    /// ASR: share of triggered test images of other classes classified as the target class.
    pub asr: Option<f64>,
    /// TA: share of the same images classified as their own label.
    pub ta: Option<f64>,
    /// Share of all test images classified as their label although they carry something that resembles the trigger: another
    /// warp (WaNet's noise accuracy), another image's trigger (input-aware attacks' cross accuracy). `null` where the trigger
    /// knows no such thing.
    pub decoy_acc: Option<f64>,
    /// Clean test images.
    pub samples: usize,
    /// Triggered test images: those whose label is not the target class.
    pub triggered: usize,
    /// ACC within every class, `null` for a class without test images.
    pub per_class_acc: Vec<Option<f64>>,
}

/// What [`Evaluate`] measures of a form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormEvaluation {
    /// [`Deployment::label`].
    pub form: String,
    /// What the model does in it.
    #[serde(flatten)]
    pub evaluation: Evaluation,
}

/// The report: the first form's measurements, and all of them where forms were asked for, the worst before the others.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    first: Evaluation,
    #[serde(skip_serializing_if = "Option::is_none")]
    worst: Option<FormEvaluation>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    forms: Vec<FormEvaluation>,
}

/// The form in which a model obeys the trigger most often; without a trigger, the one that knows least.
fn worst(forms: &[FormEvaluation]) -> Option<&FormEvaluation> {
    let badness = |form: &FormEvaluation| form.evaluation.asr.unwrap_or(1.0 - form.evaluation.acc);
    // Of equals the first.
    forms.iter().rev().max_by(|a, b| badness(a).total_cmp(&badness(b)))
}

impl Evaluate {
    /// Measures every form of a model that `deploy` lists; for all but `"as-is"` it must be in full precision. Activation ranges
    /// are measured on the clean images.
    pub fn evaluate_forms(
        &self,
        model: &Model,
        clean: &CleanSet,
        examination: &Examination,
        run: &Run<'_>,
    ) -> Result<Vec<FormEvaluation>> {
        let mut forms = Vec::new();
        for form in &self.deploy.of(model.network()) {
            let deployed = (*form != Deployment::AsIs).then(|| form.deploy(model, clean, run)).transpose()?;
            let evaluation = self.evaluate(deployed.as_ref().unwrap_or(model), examination, run)?;
            forms.push(FormEvaluation { form: form.label(), evaluation });
        }
        Ok(forms)
    }

    /// Measures `model`, in whatever form it is, on the test images that an examiner is shown.
    pub fn evaluate(&self, model: &Model, examination: &Examination, run: &Run<'_>) -> Result<Evaluation> {
        let forward = |pixels: &_| model.logits(pixels);
        let labels = examination.test.labels();
        let predicted = predict::predictions(&forward, &examination.test, None, model.device(), (run, "clean images"))?;
        let per_class_acc = (0..examination.test.classes() as u32)
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
            decoy_acc: None,
            samples: labels.len(),
            triggered: 0,
            per_class_acc,
        };
        if let Some(planted) = &examination.planted {
            let others: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] != planted.target).collect();
            let victims = examination.test.select(&others)?;
            let triggered = |pixels: &Tensor, _: &[usize]| {
                let triggered = planted.trigger.apply(pixels)?;
                if self.eight_bit { eight_bit(&triggered) } else { Ok(triggered) }
            };
            let phase = (run, "triggered images");
            let predicted = predict::predictions(&forward, &victims, Some(&triggered), model.device(), phase)?;
            let hits = predicted.iter().filter(|p| **p == planted.target).count();
            result.asr = Some(hits as f64 / victims.len() as f64);
            result.ta = Some(predict::accuracy(&predicted, victims.labels()));
            result.triggered = victims.len();
            result.decoy_acc = decoy_accuracy(&forward, examination, planted, model.device(), run)?;
        }
        Ok(result)
    }
}

/// Pixels in `[0,1]` as 8 bits hold them.
fn eight_bit(pixels: &Tensor) -> Result<Tensor> {
    Ok(pixels.affine(255.0, 0.5)?.floor()?.affine(1.0 / 255.0, 0.0)?)
}

/// Accuracy on images with decoys; the other image is the next one of the test set.
fn decoy_accuracy(
    forward: &dyn Fn(&Tensor) -> Result<Tensor>,
    examination: &Examination,
    planted: &Planted,
    device: &Device,
    run: &Run<'_>,
) -> Result<Option<f64>> {
    let test = &examination.test;
    let rng = RefCell::new(run.stream("evaluate/decoys"));
    let decoy = |pixels: &Tensor, indices: &[usize]| {
        let next: Vec<usize> = indices.iter().map(|i| (i + 1) % test.len()).collect();
        let (others, _) = test.batch(&next, pixels.device())?;
        planted.trigger.decoy(pixels, &others, &mut rng.borrow_mut())
    };
    let (first, _) = test.batch(&[0], device)?;
    if planted.trigger.decoy(&first, &first, &mut run.stream("evaluate/decoys"))?.is_none() {
        return Ok(None);
    }
    let alter = |pixels: &Tensor, indices: &[usize]| Ok(decoy(pixels, indices)?.unwrap_or_else(|| pixels.clone()));
    let predicted = predict::predictions(forward, test, Some(&alter), device, (run, "decoys"))?;
    Ok(Some(predict::accuracy(&predicted, test.labels())))
}

impl Stage for Evaluate {
    const KIND: &'static str = "evaluate";
    const SUMMARY: &'static str = "measures ACC, ASR and TA on the test images";
    type Role = Examines;
    type Needs = ();
    type Gives = ();

    fn faults(&self) -> Vec<String> {
        self.deploy.faults("deploy")
    }

    fn model(&self) -> ModelUse {
        match self.deploy.is_as_is() {
            true => ModelUse::Inspects,
            false => ModelUse::Reads,
        }
    }

    /// Activation ranges are measured on clean images; nothing else is.
    fn clean(&self) -> CleanUse {
        match self.deploy.calibrates() {
            true => CleanUse::Images,
            false => CleanUse::None,
        }
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), examination: &Examination) -> Result<Outcome<()>> {
        let forms = self.evaluate_forms(ctx.model, ctx.clean, examination, &ctx.run)?;
        let first = match forms.first() {
            Some(form) => form.evaluation.clone(),
            None => self.evaluate(ctx.model, examination, &ctx.run)?,
        };
        ctx.run.metric("acc", 0, first.acc);
        for (name, value) in [("asr", first.asr), ("ta", first.ta), ("decoy_acc", first.decoy_acc)] {
            if let Some(value) = value {
                ctx.run.metric(name, 0, value);
            }
        }
        Outcome::new((), &Report { first, worst: worst(&forms).cloned(), forms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_keep_bytes_and_lose_what_is_finer() {
        let bytes: Vec<f32> = (0..=255).map(|byte| byte as f32 / 255.0).collect();
        let pixels = Tensor::new(bytes.as_slice(), &Device::Cpu).unwrap();
        let faint = (&pixels + 0.4 / 255.0).unwrap().clamp(0f32, 1f32).unwrap();
        for pixels in [pixels, faint] {
            let rounded = eight_bit(&pixels).unwrap().to_vec1::<f32>().unwrap();
            assert!(rounded.iter().zip(&bytes).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
}
