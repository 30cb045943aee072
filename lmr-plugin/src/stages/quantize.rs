//! Rounds weights and activations to integers, as a user would to deploy the model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::faults;
use crate::Result;
use crate::data::CleanSet;
use crate::model::Deployed;
use crate::models::Classifier;
use crate::quantization::{Calibration, Granularity, Quantized, Ranges, Scheme};
use crate::run::Run;
use crate::stage::{CleanOnly, Context, ModelUse, Outcome, Stage};

/// Folds batch norm into the convolutions, rounds weights symmetrically and activations to 8-bit affine ranges
/// measured on the clean images. On the CPU the model then computes with the integers themselves, elsewhere in f32 with what they
/// stand for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Quantize {
    /// Bits of a weight, 2 to 8.
    pub bits: u32,
    /// One scale a tensor or one an output channel.
    pub weights: Granularity,
    /// Whether activations are rounded too (8 bits, one range a tensor).
    pub activations: bool,
    /// How the ranges of activations are chosen: `"min-max"`, `{ percentile = 99.99 }` or `"histogram"`.
    pub calibration: Calibration,
}

impl Default for Quantize {
    fn default() -> Self {
        Self { bits: 8, weights: Granularity::PerTensor, activations: true, calibration: Calibration::MinMax }
    }
}

impl Quantize {
    /// The quantized form of `model`, which itself stays as it is.
    pub fn quantize(&self, model: &dyn Classifier, clean: &CleanSet, run: &Run<'_>) -> Result<Quantized> {
        Quantized::calibrate(model, self.scheme(), self.calibration, clean, run)
    }

    /// How it rounds.
    pub fn scheme(&self) -> Scheme {
        Scheme { bits: self.bits, granularity: self.weights, activations: self.activations }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    bits: u32,
    weights: Granularity,
    ranges: &'a Ranges,
}

impl Stage for Quantize {
    const KIND: &'static str = "quantize";
    const SUMMARY: &'static str = "rounds weights and activations to integers, as for deployment";
    const MODEL: ModelUse = ModelUse::Deploys;
    type Needs = ();
    type Gives = (Ranges,);
    type Sees = CleanOnly;

    fn faults(&self) -> Vec<String> {
        let mut faults = faults([((2..=8).contains(&self.bits), "bits", "2 to 8", self.bits.to_string())]);
        faults.extend(
            self.calibration
                .fault()
                .map(|(expected, found)| format!("calibration: expected {expected}, found {found}")),
        );
        faults
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), _: &CleanOnly) -> Result<Outcome<(Ranges,)>> {
        let quantized = self.quantize(ctx.model.full_precision()?, ctx.clean, &ctx.run)?;
        let ranges = quantized.ranges().clone();
        let outcome =
            Outcome::new((ranges.clone(),), &Report { bits: self.bits, weights: self.weights, ranges: &ranges });
        ctx.model.deploy(Deployed::Quantized(quantized));
        outcome
    }

    fn restore(&self, ctx: &mut Context<'_>, (ranges,): &(Ranges,)) -> Result<()> {
        let quantized = Quantized::new(ctx.model.full_precision()?, self.scheme(), ranges.clone())?;
        ctx.model.deploy(Deployed::Quantized(quantized));
        Ok(())
    }
}
