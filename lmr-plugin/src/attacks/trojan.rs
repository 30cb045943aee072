//! A patch that is optimized to excite a few neurons, which are then tied to the target class (Trojan; Liu et al., 2018,
//! "Trojaning Attack on Neural Networks").

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Attack, Implanted, Labels};
use crate::data::Images;
use crate::model::{Classifier, Model};
use crate::nn::{Builder, Init, Mode};
use crate::optim::{Optimizer, Rule, Schedule};
use crate::ranges::{BelowOne, Count, Finite, NonNegative, Positive, Side};
use crate::rng;
use crate::run::Run;
use crate::stage::{Context, Learns, Material, Outcome, Planted, Stage, Target};
use crate::triggers::{Overlay, Trigger};
use crate::{Error, Result};

/// Optimizes an opaque patch in the bottom-right corner against the network as it was received, then poisons the training
/// split with it. The pipeline's trigger is of kind `learned`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Trojan {
    /// Side of the patch in pixels; 3 for 28- and 32-pixel images, 6 for 64, 32 for 224.
    pub size: Side,
    /// How many features before the head are excited: those with the largest weights. 2 in TrojanZoo.
    pub neurons: Count,
    /// The value they are driven to; 100 is never reached, so that they are driven as high as they go.
    pub value: Finite,
    /// Steps of the optimization; 1000 in TrojanZoo.
    pub steps: Count,
    /// Its learning rate at the start of a cosine.
    pub lr: Positive,
    /// The poisoning that follows: options of `attack`.
    pub poison: Attack,
}

impl Default for Trojan {
    fn default() -> Self {
        Self {
            size: const { Side::literal(3) },
            neurons: const { Count::literal(2) },
            value: const { Finite::literal(100.0) },
            steps: const { Count::literal(1000) },
            lr: const { Positive::literal(0.1) },
            poison: Attack::default(),
        }
    }
}

/// The mean of the chosen features over clean training images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Excitation {
    /// Which features were chosen.
    pub neurons: Vec<usize>,
    /// Without the patch.
    pub before: f64,
    /// With it.
    pub after: f64,
    /// Whether the patch had to be optimized on images, because one optimized on black excited too little.
    pub on_images: bool,
}

/// What the attack did.
#[derive(Clone, Debug, Serialize)]
pub struct Trojaned {
    /// What the patch does to the features.
    pub excitation: Excitation,
    /// The poisoning.
    #[serde(flatten)]
    pub implanted: Implanted,
}

/// Images that the patch is judged on, at most.
const JUDGES: usize = 256;
/// Images that it is optimized on at a time, if black does not do.
const BACKGROUNDS: usize = 16;
/// By what factor it must raise the activation.
const SUCCESS: f64 = 1.5;

impl Trojan {
    /// Optimizes the patch and says what it does. The network stays as it is.
    pub fn optimize(&self, model: &Model, images: &Images, run: &Run<'_>) -> Result<(Overlay, Excitation)> {
        let [_, height, width] = images.shape();
        if self.size.get() > height.min(width) {
            return Err(Error::setting(
                "size",
                format!("at most {}, the image's side", height.min(width)),
                self.size.get(),
            ));
        }
        let device = model.device().clone();
        let network = model.full_precision()?;
        let neurons = self.choose(network)?;
        let selection = selection(&neurons, network)?;
        let mut order = rng::permutation(&mut run.stream("trojan/images"), images.len());
        order.truncate(JUDGES);
        let (judges, _) = images.batch(&order, &device)?;
        let activation = |pixels: &Tensor| -> Result<f64> {
            let mut sum = 0.0;
            // A few at a time: photographs are large.
            for from in (0..order.len()).step_by(BACKGROUNDS) {
                let some = pixels.narrow(0, from, BACKGROUNDS.min(order.len() - from))?;
                let features = model.features(&some, Mode::Eval)?;
                let of_batch = features.broadcast_mul(&selection)?.sum_all()?.to_dtype(DType::F32)?;
                sum += f64::from(of_batch.to_scalar::<f32>()?);
            }
            Ok(sum / (neurons.len() * order.len()) as f64)
        };
        let before = activation(&judges)?;
        let black = judges.narrow(0, 0, 1)?.zeros_like()?;
        let search = Search { attack: self, model, selection: &selection };
        let mut patch = search.run("trojan", &black, run)?;
        let mut after = activation(&patch.apply(&judges)?)?;
        // Features of transformers may be negative.
        let weak = |after: f64| after - before < (SUCCESS - 1.0) * before.abs();
        let on_images = weak(after);
        if on_images {
            let backgrounds = judges.narrow(0, 0, order.len().min(BACKGROUNDS))?;
            patch = search.run("trojan on images", &backgrounds, run)?;
            after = activation(&patch.apply(&judges)?)?;
        }
        if weak(after) {
            run.warn(&format!(
                "the optimized patch raises the chosen features only from {before:.3} to {after:.3}; \
                 the attack is hardly more than BadNets"
            ));
        }
        Ok((patch, Excitation { neurons, before, after, on_images }))
    }

    /// The features with the largest sums of absolute weights in the head.
    fn choose(&self, model: &dyn Classifier) -> Result<Vec<usize>> {
        let sums = model.head().weight().as_detached_tensor().abs()?.sum(0)?.to_vec1::<f32>()?;
        let count = self.neurons.get();
        if count > sums.len() {
            let expected = format!("at most {}, the features before the head", sums.len());
            return Err(Error::setting("neurons", expected, count));
        }
        let mut order: Vec<usize> = (0..sums.len()).collect();
        order.sort_by(|&a, &b| sums[b].total_cmp(&sums[a]));
        order.truncate(count);
        Ok(order)
    }
}

/// 1 for the chosen features, `f32[1,D]`.
fn selection(neurons: &[usize], model: &dyn Classifier) -> Result<Tensor> {
    let weight = model.head().weight();
    let mut chosen = vec![0f32; weight.dims()[1]];
    neurons.iter().for_each(|&neuron| chosen[neuron] = 1.0);
    Ok(Tensor::from_vec(chosen, (1, weight.dims()[1]), weight.device())?)
}

struct Search<'a> {
    attack: &'a Trojan,
    model: &'a Model,
    selection: &'a Tensor,
}

impl Search<'_> {
    /// Minimizes the sum over the chosen features of `(h − value)²` over a patch `(tanh u + 1)/2` on the given images.
    fn run(&self, purpose: &str, backgrounds: &Tensor, run: &Run<'_>) -> Result<Overlay> {
        let Trojan { size, value, steps, lr, .. } = *self.attack;
        let (k, value, steps, lr) = (size.get(), value.get(), steps.get(), lr.get());
        let (b, c, h, w) = backgrounds.dims4()?;
        let builder = Builder::fresh(run.stream(&format!("{purpose}/patch")), backgrounds.device());
        let u = builder.parameter("patch", (1, c, k, k), Init::Normal { std: 1.0 })?;
        let (beta1, decay) = const { (BelowOne::literal(0.9), NonNegative::literal(0.0)) };
        let mut adam = Optimizer::new(&builder.finish()?, Rule::AdamW, beta1, decay)?;
        let in_corner = |patch: &Tensor| patch.pad_with_zeros(2, h - k, 0)?.pad_with_zeros(3, w - k, 0);
        let mask = in_corner(&u.ones_like()?.detach())?;
        let outside = backgrounds.broadcast_mul(&mask.affine(-1.0, 1.0)?)?;
        let painted = || in_corner(&u.tanh()?.affine(0.5, 0.5)?);
        for step in 0..steps {
            run.checkpoint()?;
            let x = outside.broadcast_add(&painted()?)?;
            let features = self.model.features(&x, Mode::Frozen)?;
            let missing = features.affine(1.0, -value)?.sqr()?.broadcast_mul(self.selection)?;
            let loss = (missing.sum_all()? / b as f64)?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            if !value.is_finite() {
                return Err(Error::NotFinite { what: "loss", step, value });
            }
            adam.step(&loss.backward()?, lr * Schedule::Cosine.factor(step, steps, 0), None)?;
            run.progress(purpose, step + 1, steps, "step");
        }
        let pattern = painted()?.detach().to_device(&Device::Cpu)?;
        Overlay::new(mask.to_device(&Device::Cpu)?, pattern, [c, h, w])
    }
}

impl Stage for Trojan {
    const KIND: &'static str = "attack-trojan";
    const SUMMARY: &'static str = "implants a backdoor with a patch optimized to excite chosen neurons (Trojan)";
    type Role = Learns;
    type Needs = ();
    type Gives = ();

    fn faults(&self) -> Vec<String> {
        let mut faults = crate::stage::faults([(
            self.poison.label == Labels::Target,
            "poison.label",
            "\"target\"",
            "\"clean\"".into(),
        )]);
        faults.extend(self.poison.faults_of("poison."));
        faults
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), material: &Material<Target>) -> Result<Outcome<()>> {
        let Material { train, backdoor: Target(target) } = material;
        let (patch, excitation) = self.optimize(ctx.model, train, &ctx.run)?;
        let planted = Planted { trigger: Arc::new(patch), target: *target };
        let implanted = self.poison.implant(ctx.model, train, &planted, &ctx.run)?;
        let trojaned = Trojaned { excitation, implanted };
        super::implanted(&trojaned, &planted, Some(&trojaned.implanted.indices))
    }
}
