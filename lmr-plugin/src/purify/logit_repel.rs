//! Phase 1 of LMR: pushes the backdoor class's logit below the others on clean images (equations 5 to 8).

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::teacher::Distillation;
use super::{BackdoorClass, Teacher};
use crate::Result;
use crate::data::CleanSet;
use crate::losses::Repulsion;
use crate::model::Model;
use crate::predict;
use crate::ranges::{NonNegative, Positive, Times};
use crate::run::Run;
use crate::stage::{CleanOnly, Context, Finding, Outcome, Purifies, Stage};
use crate::train::{Defaults, Flow, Objective, Recipe, Usual};

/// Trains all parameters on `SCE + α·DSC + β·CM` and records how far the head moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LogitRepel {
    /// m1: how far class c's logit must trail the best other one on images of other classes. The paper's main
    /// experiments say 3, its ablation 10. A larger margin removes more of the backdoor and more of the accuracy; 7 was
    /// the better bargain on a development model.
    pub m1: Positive,
    /// m2: how far the label's logit must lead.
    pub m2: Positive,
    /// α, the weight of the suppression (DSC).
    pub alpha: NonNegative,
    /// β, the weight of the conditional margin (CM); at 0 nothing keeps class c alive.
    pub beta: NonNegative,
    /// γ, the weight of distillation from the model as it comes in, on images of other classes without
    /// class c. Not in the paper; 0 is the paper's.
    pub distill: NonNegative,
    /// Temperature of the distillation.
    pub temperature: Positive,
    /// The training: epochs are the budget T1. The one vision transformer tried needed AdamW, at 1e-3.
    pub training: Recipe<Self>,
    /// Ends the phase after the first epoch in which accuracy on clean images of class c is near chance
    /// (Algorithm 1). Off by default; in the one trial made here it did not fire.
    pub early_switch: bool,
}

impl Default for LogitRepel {
    fn default() -> Self {
        Self {
            m1: const { Positive::literal(7.0) },
            m2: const { Positive::literal(0.5) },
            alpha: const { NonNegative::literal(1.0) },
            beta: const { NonNegative::literal(0.25) },
            distill: const { NonNegative::literal(1.0) },
            temperature: const { Positive::literal(2.0) },
            training: Recipe::default(),
            early_switch: false,
        }
    }
}

impl Defaults for LogitRepel {
    fn recipe() -> Recipe<Self> {
        Recipe {
            epochs: const { Times::literal(10) },
            min_steps: const { Times::literal(50) },
            lr: const { Positive::literal(0.03) },
            weight_decay: const { NonNegative::literal(0.0) },
            ..Usual::recipe().over()
        }
    }
}

/// How far each column of the head's backdoor row moved during Phase 1: the input of [`DeltaPrune`](super::DeltaPrune).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadDelta {
    /// `s_j = |W1[c,j] − W0[c,j]|` for every column j (equation 9).
    pub scores: Vec<f32>,
}

impl Finding for HeadDelta {
    const NAME: &'static str = "head-delta";
}

impl HeadDelta {
    /// Equation 9 from the head's weights `f32[K,D]` before and after Phase 1. Only row `class` counts.
    pub fn between(before: &Tensor, after: &Tensor, class: u32) -> Result<Self> {
        let row = |w: &Tensor| w.detach().get(class as usize);
        let scores = (row(after)? - row(before)?)?.abs()?.to_vec1()?;
        Ok(Self { scores })
    }
}

/// What Phase 1 leaves.
pub struct Repelled {
    /// How far the head moved.
    pub delta: HeadDelta,
    /// The model as it came in: what [`Recover`](super::Recover) learns from.
    pub received: Teacher,
    /// What happened.
    pub report: RepelReport,
}

/// What Phase 1 did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RepelReport {
    /// The class that was repelled.
    pub class: u32,
    /// One entry an epoch.
    pub epochs: Vec<RepelEpoch>,
    /// Whether the early switch ended the phase.
    pub switched_early: bool,
    /// How far the bias of class c moved. Lowering it is a shortcut to the margin that leaves the features alone.
    pub bias_shift: f32,
}

/// One epoch of Phase 1. The terms are means over the epoch's images, unweighted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RepelEpoch {
    /// Selective cross-entropy.
    pub sce: f64,
    /// Directed suppression.
    pub dsc: f64,
    /// Conditional margin.
    pub cm: f64,
    /// Distillation; `null` if its weight is 0.
    pub distillation: Option<f64>,
    /// Accuracy on the clean images.
    pub accuracy: f64,
    /// Accuracy on the clean images of class c, `null` if there are none.
    pub class_accuracy: Option<f64>,
    /// Share of clean images of other classes on which class c trails by more than m1.
    pub beyond_margin: f64,
}

impl LogitRepel {
    /// Trains `model` in place.
    pub fn repel(&self, model: &Model, class: BackdoorClass, clean: &CleanSet, run: &Run<'_>) -> Result<Repelled> {
        let received = Teacher::copy(model, class)?;
        let class = class.class;
        let network = model.full_precision()?;
        let head = network.head();
        let before = head.weight().as_tensor().detach().copy()?;
        let bias = |class: u32| -> Result<f32> {
            Ok(match head.bias() {
                Some(bias) => bias.as_tensor().get(class as usize)?.to_scalar()?,
                None => 0.0,
            })
        };
        let bias_before = bias(class)?;
        let loss =
            Repulsion { class, alpha: self.alpha.get(), beta: self.beta.get(), m1: self.m1.get(), m2: self.m2.get() };
        let mut phase = Phase1 {
            stage: self,
            loss,
            distillation: Distillation::new(&received, self.distill.get(), self.temperature),
            model,
            clean,
            sums: [0.0; 4],
            steps: 0,
            epochs: Vec::new(),
            switched: false,
            run,
        };
        self.training.train("logit-repel", model, &clean.images, &mut phase, run)?;
        let bias_shift = bias(class)? - bias_before;
        if f64::from(bias_shift.abs()) > self.m1.get() / 2.0 {
            run.warn(&format!(
                "the bias of class {class} moved by {bias_shift:.2}, more than m1/2: the margin may come from the bias \
                 alone, with the features of the backdoor untouched"
            ));
        }
        let delta = HeadDelta::between(&before, head.weight(), class)?;
        let (epochs, switched_early) = (phase.epochs, phase.switched);
        Ok(Repelled { delta, received, report: RepelReport { class, epochs, switched_early, bias_shift } })
    }
}

struct Phase1<'a> {
    stage: &'a LogitRepel,
    loss: Repulsion,
    distillation: Distillation<'a>,
    model: &'a Model,
    clean: &'a CleanSet,
    sums: [f64; 4],
    steps: usize,
    epochs: Vec<RepelEpoch>,
    switched: bool,
    run: &'a Run<'a>,
}

impl Objective for Phase1<'_> {
    fn before_forward(&mut self, images: &Tensor) -> Result<()> {
        self.distillation.ask(images)
    }

    fn loss(&mut self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let [sce, dsc, cm] = self.loss.terms(logits, labels)?;
        let distillation = self.distillation.term(logits, labels)?;
        for (sum, term) in self.sums.iter_mut().zip([Some(&sce), Some(&dsc), Some(&cm), distillation.as_ref()]) {
            if let Some(term) = term {
                *sum += f64::from(term.mean_all()?.to_scalar::<f32>()?);
            }
        }
        self.steps += 1;
        let total = ((sce + (dsc * self.loss.alpha)?)? + (cm * self.loss.beta)?)?.mean_all()?;
        match distillation {
            Some(distillation) => Ok((total + (distillation * self.stage.distill.get())?)?),
            None => Ok(total),
        }
    }

    fn after_epoch(&mut self, _: usize) -> Result<Flow> {
        let forward = |pixels: &Tensor| self.model.logits(pixels);
        let run = (&self.run.silent(), "clean set");
        let logits = predict::logits(&forward, &self.clean.images, None, self.model.device(), run)?;
        let labels = self.clean.images.labels();
        let predicted = predict::classes(&logits)?;
        let class = self.loss.class;
        let (mut own, mut own_right, mut others, mut beyond) = (0, 0, 0, 0);
        for ((row, &label), &found) in logits.to_vec2::<f32>()?.iter().zip(labels).zip(&predicted) {
            if label == class {
                own += 1;
                own_right += usize::from(found == label);
            } else {
                let z = row[class as usize];
                let rival = (0..row.len()).filter(|&j| j != class as usize).map(|j| row[j]).fold(f32::MIN, f32::max);
                others += 1;
                beyond += usize::from(f64::from(rival - z) > self.loss.m1);
            }
        }
        let share = |part: usize, all: usize| part as f64 / all.max(1) as f64;
        let [sce, dsc, cm, distillation] = std::mem::take(&mut self.sums).map(|sum| sum / self.steps.max(1) as f64);
        let distillation = (self.stage.distill.get() > 0.0).then_some(distillation);
        self.steps = 0;
        let class_accuracy = (own > 0).then(|| share(own_right, own));
        let accuracy = predict::accuracy(&predicted, labels);
        self.epochs.push(RepelEpoch {
            sce,
            dsc,
            cm,
            distillation,
            accuracy,
            class_accuracy,
            beyond_margin: share(beyond, others),
        });
        // With fewer than five images of class c, "near chance" is noise.
        let chance = (2.0 / logits.dims2()?.1 as f64).max(0.05);
        self.switched = self.stage.early_switch && own >= 5 && share(own_right, own) <= chance;
        Ok(if self.switched { Flow::Stop } else { Flow::Continue })
    }
}

impl Stage for LogitRepel {
    const KIND: &'static str = "logit-repel";
    const SUMMARY: &'static str = "pushes the backdoor class's logit below the others on clean images";
    type Role = Purifies;
    type Needs = (BackdoorClass,);
    type Gives = (HeadDelta,);

    fn faults(&self) -> Vec<String> {
        self.training.faults("training")
    }

    fn run(&self, ctx: &mut Context<'_>, (class,): (BackdoorClass,), _: &CleanOnly) -> Result<Outcome<(HeadDelta,)>> {
        let repelled = self.repel(ctx.model, class, ctx.clean, &ctx.run)?;
        Outcome::new((repelled.delta,), &repelled.report)
    }
}
