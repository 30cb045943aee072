//! Names the backdoor class by anti-learning (equations 3 and 4 of the LMR paper).
//!
//! Gradient *ascent* on the cross-entropy of clean images makes a copy of the model forget what it knows. What it
//! forgets last is the backdoor: the copy's predictions collapse onto the attacker's class. The class is
//! `argmax_c s(c)` with `s(c) = mean_i log p_θ'(c | x_i)`, the mean of log-probabilities.
//!
//! Anti-learning always ends on *some* class, also for a clean model. What tells the two apart is
//! [`Estimated::collapse`]: copies of a backdoored model end on one class with most images, those of a clean one
//! scatter.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PurifyError;
use crate::data::{Augment, CleanSet, Images};
use crate::deploy::Deployment;
use crate::losses;
use crate::model::Model;
use crate::optim::Schedule;
use crate::predict;
use crate::ranges::{Count, NonNegative, OpenFraction, Positive, Times, Votes};
use crate::rng;
use crate::run::Run;
use crate::stage::{CleanOnly, CleanUse, Context, Finding, ModelUse, Outcome, Purifies, Stage};
use crate::train::{Defaults, Flow, Objective, Recipe, Usual};
use crate::{Error, Result};

/// Estimates the backdoor class from clean images alone. The given model is not changed: anti-learning happens on a
/// deep copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Estimate {
    /// The backdoor class if it is known, below K; then nothing is estimated.
    pub class: Option<u32>,
    /// The ascent. After its steps the learning rate is tripled and it starts over, at most twice. It has no minimum to settle
    /// in, hence the limit on the gradient norm; of the batch norm modes only `batch` has been measured.
    pub training: Recipe<Self>,
    /// Anti-learning ends as soon as accuracy on the clean images is at or below this. The paper goes near chance;
    /// only the default has been measured.
    pub stop_accuracy: OpenFraction,
    /// Independent ascents (other batches) that vote on the class, at most; the rest is spared once a class has the
    /// majority. The scores are their mean. Odd.
    pub votes: Votes,
    /// Accuracy after a step is measured on at most this many of the clean images.
    pub check_images: Count,
    /// The form whose class is estimated: `"as-is"`, `{ quantize = { .. } }` or `{ prune = { .. } }`. A backdoor that sleeps
    /// until deployment may show in the deployed form alone. What is forgotten then is a network with the rounded weights
    /// (activations are not rounded), or with zeros for the pruned filters.
    pub deploy: Deployment,
}

impl Default for Estimate {
    fn default() -> Self {
        Self {
            class: None,
            training: Recipe::default(),
            stop_accuracy: const { OpenFraction::literal(0.3) },
            votes: const { Votes::literal(3) },
            check_images: const { Count::literal(250) },
            deploy: Deployment::AsIs,
        }
    }
}

impl Defaults for Estimate {
    fn recipe() -> Recipe<Self> {
        Recipe {
            epochs: const { Times::literal(0) },
            min_steps: const { Times::literal(200) },
            schedule: Schedule::Constant,
            weight_decay: const { NonNegative::literal(0.0) },
            clip_norm: const { Some(Positive::literal(20.0)) },
            augment: Augment::NONE,
            ..Usual::recipe().over()
        }
    }
}

/// The estimated (or given) backdoor class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackdoorClass {
    /// Index below K.
    pub class: u32,
}

impl Finding for BackdoorClass {
    const NAME: &'static str = "backdoor-class";
}

/// What anti-learning showed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimated {
    /// The class with the highest score among those with the most votes.
    pub class: u32,
    /// `s(c)` for every class, averaged over the votes; at most 0. Empty when the class was given.
    pub scores: Vec<f64>,
    /// Lead of the highest score over the second.
    pub gap: f64,
    /// Class named by each vote that was cast.
    pub votes: Vec<u32>,
    /// Steps each vote took.
    pub steps: Vec<usize>,
    /// Accuracy of the given model on the clean images.
    pub accuracy: f64,
    /// Accuracy after every step of the first vote's ascent.
    pub curve: Vec<f64>,
    /// How many clean images the copies assign to each class in the end, summed over the votes.
    pub predicted: Vec<usize>,
    /// Share of those images that end on the named class. Over ten clean sets each, 0.76 to 0.92 for a backdoored
    /// ResNet-18 on Fashion-MNIST and at most 0.54 for a clean one trained the same way; below
    /// [`Estimated::COLLAPSED`] the estimate counts as a guess.
    pub collapse: f64,
    /// Reasons to distrust the estimate; empty if there is none.
    pub low_confidence: Vec<String>,
}

impl Estimate {
    /// Anti-learns copies of `model` on the clean images and names the class they end on.
    ///
    /// Errors if a score is not finite, or if the model knows too little to forget anything.
    pub fn estimate(&self, model: &Model, clean: &CleanSet, run: &Run<'_>) -> Result<Estimated> {
        let classes = model.network().classes();
        if let Some(class) = self.class {
            if class as usize >= classes {
                return Err(Error::NoSuchClass { what: "class", class, classes });
            }
            return Ok(Estimated { class, ..Estimated::empty() });
        }
        let deployed;
        let model = match &self.deploy {
            Deployment::AsIs => model,
            form => {
                deployed = form.rounded(model)?;
                &deployed
            }
        };
        let accuracy = accuracy(model, &clean.images, run)?;
        if accuracy <= self.stop_accuracy.get() {
            return Err(PurifyError::AccuracyTooLow { accuracy, stop_accuracy: self.stop_accuracy.get() }.into());
        }
        let mut result = Estimated { accuracy, ..Estimated::empty() };
        let mut scores = vec![0.0; classes];
        result.predicted = vec![0; classes];
        let votes = self.votes.get();
        for vote in 0..votes {
            let ascent = self.ascend(model, clean, vote, run)?;
            for (sum, s) in scores.iter_mut().zip(&ascent.scores) {
                *sum += s;
            }
            for &class in &ascent.predicted {
                result.predicted[class as usize] += 1;
            }
            result.votes.push(argmax(&ascent.scores) as u32);
            result.steps.push(ascent.curve.len());
            if !ascent.converged {
                result.low_confidence.push(format!(
                    "vote {}: accuracy stayed above {} for {} steps at three learning rates",
                    vote + 1,
                    self.stop_accuracy,
                    ascent.curve.len()
                ));
            }
            if vote == 0 {
                result.curve = ascent.curve;
            }
            let named = argmax(&ascent.scores) as u32;
            if 2 * result.votes.iter().filter(|&&v| v == named).count() > votes {
                break;
            }
        }
        let cast = result.votes.len();
        for sum in &mut scores {
            *sum /= cast as f64;
        }
        let count = |class: u32| result.votes.iter().filter(|&&v| v == class).count();
        let most = result.votes.iter().map(|&v| count(v)).max().unwrap_or(0);
        let elected: Vec<f64> = (0..classes as u32)
            .map(|c| if count(c) == most { scores[c as usize] } else { f64::NEG_INFINITY })
            .collect();
        result.class = argmax(&elected) as u32;
        if most < cast {
            result.low_confidence.push(format!("the votes disagree: {:?}", result.votes));
        }
        let on_class = result.predicted[result.class as usize] as f64;
        result.collapse = on_class / (cast * clean.images.len()) as f64;
        if result.collapse < Estimated::COLLAPSED {
            result.low_confidence.push(format!(
                "only {:.0}% of the clean images end on class {}; a model without a backdoor looks like this",
                100.0 * result.collapse,
                result.class
            ));
        }
        let absent = clean.absent_classes();
        if !absent.is_empty() {
            result.low_confidence.push(format!("no clean image of classes {absent:?}: nothing pushes them down"));
        }
        let second = (0..classes).filter(|&c| c != result.class as usize).map(|c| scores[c]);
        result.gap = scores[result.class as usize] - second.fold(f64::NEG_INFINITY, f64::max);
        result.scores = scores;
        Ok(result)
    }

    fn ascend(&self, model: &Model, clean: &CleanSet, vote: usize, run: &Run<'_>) -> Result<Ascent> {
        let (mut training, stop) = (self.training.clone(), self.stop_accuracy.get());
        let mut tries = 0;
        // Another part of the clean images for every vote, the same for all its steps.
        let mut order = rng::permutation(&mut run.stream(&format!("unlearn {}/check", vote + 1)), clean.images.len());
        order.truncate(self.check_images.get());
        let check = clean.images.select(&order)?;
        loop {
            let copy = model.try_clone()?;
            let mut ascent = AntiLearning { copy: &copy, check: &check, stop, curve: Vec::new(), run };
            training.train(&format!("unlearn {}", vote + 1), &copy, &clean.images, &mut ascent, run)?;
            let converged = ascent.curve.last().is_some_and(|a| *a <= stop);
            let curve = ascent.curve;
            if converged || tries == 2 {
                let logits = logits(&copy, &clean.images, run)?;
                let scores = posterior_scores(&logits)?;
                return Ok(Ascent { scores, predicted: predict::classes(&logits)?, curve, converged });
            }
            tries += 1;
            training.lr = Positive::new(3.0 * training.lr.get())?;
        }
    }
}

/// Equation 4: `s(c) = mean_i log p(c | x_i)` from logits `f32[N,K]`. Errors if a score is not finite.
pub fn posterior_scores(logits: &Tensor) -> Result<Vec<f64>> {
    let scores = losses::log_softmax(logits)?.mean(0)?.to_vec1::<f32>()?;
    match scores.iter().position(|s| !s.is_finite()) {
        Some(class) => Err(Error::NotFinite { what: "class score", step: class, value: scores[class].into() }),
        None => Ok(scores.into_iter().map(f64::from).collect()),
    }
}

struct Ascent {
    scores: Vec<f64>,
    predicted: Vec<u32>,
    curve: Vec<f64>,
    converged: bool,
}

/// Equation 3, and a look at the accuracy after every step.
struct AntiLearning<'a> {
    copy: &'a Model,
    check: &'a Images,
    stop: f64,
    curve: Vec<f64>,
    run: &'a Run<'a>,
}

impl Objective for AntiLearning<'_> {
    fn loss(&mut self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        Ok(losses::cross_entropy(logits, labels)?.mean_all()?.neg()?)
    }

    fn after_step(&mut self, _: usize) -> Result<Flow> {
        let accuracy = accuracy(self.copy, self.check, self.run)?;
        self.curve.push(accuracy);
        Ok(if accuracy <= self.stop { Flow::Stop } else { Flow::Continue })
    }
}

fn logits(model: &Model, images: &Images, run: &Run<'_>) -> Result<Tensor> {
    predict::logits(&|pixels| model.logits(pixels), images, None, model.device(), (&run.silent(), "clean set"))
}

fn accuracy(model: &Model, images: &Images, run: &Run<'_>) -> Result<f64> {
    let predicted = predict::classes(&logits(model, images, run)?)?;
    Ok(predict::accuracy(&predicted, images.labels()))
}

/// Index of the largest value, the lowest of tied ones.
fn argmax(values: &[f64]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

impl Estimated {
    /// The class, as the stages after it take it.
    pub fn backdoor_class(&self) -> BackdoorClass {
        BackdoorClass { class: self.class }
    }

    /// The share of images on the named class from which on a model looks backdoored.
    pub const COLLAPSED: f64 = 0.65;

    /// One sentence on how far the estimate is to be trusted.
    pub fn verdict(&self) -> String {
        if self.votes.is_empty() {
            return "The class was given.".into();
        }
        let share = format!("{:.0}% of the clean images end on it when a copy forgets", 100.0 * self.collapse);
        let verdict = if self.collapse < Self::COLLAPSED { "scattered, as in a clean model" } else { "collapsed" };
        format!("{share}: {verdict}.")
    }

    fn empty() -> Self {
        Self {
            class: 0,
            scores: Vec::new(),
            gap: 0.0,
            votes: Vec::new(),
            steps: Vec::new(),
            accuracy: 0.0,
            curve: Vec::new(),
            predicted: Vec::new(),
            collapse: 0.0,
            low_confidence: Vec::new(),
        }
    }
}

impl Stage for Estimate {
    const KIND: &'static str = "estimate";
    const SUMMARY: &'static str = "names the backdoor class by anti-learning a copy of the model";
    type Role = Purifies;
    const MODEL: ModelUse = ModelUse::Reads;
    type Needs = ();
    type Gives = (BackdoorClass,);

    fn faults(&self) -> Vec<String> {
        let mut faults = self.training.faults("training");
        faults.extend(self.deploy.faults("deploy"));
        faults
    }

    /// A class without images is never pushed down, and passes for the backdoor's.
    fn clean(&self) -> CleanUse {
        if self.class.is_some() { CleanUse::Images } else { CleanUse::EveryClass }
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), _: &CleanOnly) -> Result<Outcome<(BackdoorClass,)>> {
        let estimated = self.estimate(ctx.model, ctx.clean, &ctx.run)?;
        for reason in &estimated.low_confidence {
            ctx.run.warn(&format!("low confidence: {reason}"));
        }
        Outcome::new((estimated.backdoor_class(),), &estimated)
    }
}
