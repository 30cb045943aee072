//! Rounds weights and activations, as a user would to deploy the model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BlockFormat, Blocks, Calibration, Granularity, Integers, Ranges, Rounding, Scheme};
use crate::Result;
use crate::data::CleanSet;
use crate::model::{Classifier, Form, Model};
use crate::ranges::Bits;
use crate::run::Run;
use crate::stage::{CleanOnly, Context, Deploys, Outcome, Stage};

/// Folds batch norm into the convolutions, rounds weights symmetrically and activations to 8-bit affine ranges
/// measured on the clean images; or, with `format`, rounds weights alone to a block format of GGUF files. On the CPU the model then
/// computes with the integers themselves, elsewhere and with blocks in f32 with what the rounded numbers stand for.
///
/// Of a network that does not tell its layers (`Layered`), weights of two and four dimensions are rounded as they are, without
/// batch norm; its activations cannot be rounded.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Quantize {
    /// The block format that weights are rounded to, in place of integers with scales as the other options say; none of
    /// those goes with it. Where blocks do not divide a layer's rows, blocks of 32 with more bits take their place, and
    /// f16 where those do not either.
    pub format: Option<BlockFormat>,
    /// Bits of a weight.
    pub bits: Bits,
    /// One scale a tensor or one an output channel.
    pub weights: Granularity,
    /// Whether activations are rounded too (8 bits, one range a tensor).
    pub activations: bool,
    /// How the ranges of activations are chosen: `"min-max"`, `{ percentile = 99.99 }` or `"histogram"`.
    pub calibration: Calibration,
}

impl Default for Quantize {
    fn default() -> Self {
        Self {
            format: None,
            bits: const { Bits::literal(8) },
            weights: Granularity::PerTensor,
            activations: true,
            calibration: Calibration::MinMax,
        }
    }
}

/// [`Quantize`] as it is written: without what does not apply, and telling a default from an option that was left out.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<BlockFormat>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bits: Option<Bits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<Granularity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activations: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<Calibration>,
}

impl Written {
    /// The options of integers that stand beside a block format.
    fn misplaced(&self) -> Vec<String> {
        let Some(format) = self.format else { return Vec::new() };
        let given = [
            ("bits", self.bits.is_some()),
            ("weights", self.weights.is_some()),
            ("activations", self.activations.is_some()),
            ("calibration", self.calibration.is_some()),
        ];
        let fault = |key: &str| {
            let name = format.name();
            format!(
                "{key}: does not go with format = \"{name}\", which rounds weights by block and nothing else; remove one"
            )
        };
        given.into_iter().filter(|(_, given)| *given).map(|(key, _)| fault(key)).collect()
    }
}

impl Serialize for Quantize {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let Self { format, bits, weights, activations, calibration } = self.clone();
        let written = match format {
            Some(_) => Written { format, ..Written::default() },
            None => Written {
                format,
                bits: Some(bits),
                weights: Some(weights),
                activations: Some(activations),
                calibration: Some(calibration),
            },
        };
        written.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Quantize {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let written = Written::deserialize(from)?;
        let misplaced = written.misplaced();
        if !misplaced.is_empty() {
            return Err(serde::de::Error::custom(misplaced.join("; ")));
        }
        let default = Self::default();
        Ok(Self {
            format: written.format,
            bits: written.bits.unwrap_or(default.bits),
            weights: written.weights.unwrap_or(default.weights),
            activations: written.activations.unwrap_or(default.activations),
            calibration: written.calibration.unwrap_or(default.calibration),
        })
    }
}

impl Quantize {
    /// To a block format.
    pub fn blocks(format: BlockFormat) -> Self {
        Self { format: Some(format), ..Self::default() }
    }

    /// The quantized form of `model`, which itself stays as it is.
    pub fn quantize(&self, model: &Model, clean: &CleanSet, run: &Run<'_>) -> Result<Box<dyn Form>> {
        self.round(model.full_precision()?, self.ranges(model, clean, run)?)
    }

    /// The ranges of activations on the clean images; empty if activations are not rounded.
    pub fn ranges(&self, model: &Model, clean: &CleanSet, run: &Run<'_>) -> Result<Ranges> {
        match self.rounding() {
            Rounding::Integers(Scheme { activations: true, .. }) => self.calibration.measure(model, clean, run),
            _ => Ok(Ranges::default()),
        }
    }

    /// The form for ranges measured before.
    fn round(&self, network: &dyn Classifier, ranges: Ranges) -> Result<Box<dyn Form>> {
        Ok(match self.rounding() {
            Rounding::Integers(scheme) => Box::new(Integers::new(network, scheme, ranges)?),
            Rounding::Blocks(format) => Box::new(Blocks::new(network, format)?),
        })
    }

    /// How it rounds weights, and with integers activations.
    pub fn rounding(&self) -> Rounding {
        match self.format {
            Some(format) => Rounding::Blocks(format),
            None => {
                Rounding::Integers(Scheme { bits: self.bits, granularity: self.weights, activations: self.activations })
            }
        }
    }
}

impl Stage for Quantize {
    const KIND: &'static str = "quantize";
    const SUMMARY: &'static str =
        "rounds weights and activations to integers, or weights to a block format, as for deployment";
    const VERSION: u32 = 2;
    type Role = Deploys;
    type Needs = ();
    type Gives = (Ranges,);

    fn faults(&self) -> Vec<String> {
        let default = Self::default();
        let changed = Written {
            format: self.format,
            bits: (self.bits != default.bits).then_some(self.bits),
            weights: (self.weights != default.weights).then_some(self.weights),
            activations: (self.activations != default.activations).then_some(self.activations),
            calibration: (self.calibration != default.calibration).then_some(self.calibration),
        };
        changed.misplaced()
    }

    fn run(&self, ctx: &mut Context<'_>, (): (), _: &CleanOnly) -> Result<Outcome<(Ranges,)>> {
        let ranges = self.ranges(ctx.model, ctx.clean, &ctx.run)?;
        let form = self.round(ctx.model.full_precision()?, ranges.clone())?;
        let outcome = Outcome::new((ranges,), &form.report()?);
        ctx.model.deploy(form);
        outcome
    }

    fn restore(&self, model: &mut Model, (ranges,): &(Ranges,)) -> Result<()> {
        let form = self.round(model.full_precision()?, ranges.clone())?;
        model.deploy(form);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    /// What is written comes back, and says nothing that does not apply.
    #[rstest]
    #[case(json!({}), json!({ "bits": 8, "weights": "per-tensor", "activations": true, "calibration": "min-max" }))]
    #[case(json!({ "bits": 4, "activations": false }), json!({ "bits": 4, "weights": "per-tensor", "activations": false, "calibration": "min-max" }))]
    #[case(json!({ "format": "q4_0" }), json!({ "format": "q4_0" }))]
    fn options_are_written_as_far_as_they_apply(#[case] given: Value, #[case] written: Value) {
        let stage: Quantize = serde_json::from_value(given).unwrap();
        assert_eq!(serde_json::to_value(&stage).unwrap(), written);
        assert_eq!(serde_json::from_value::<Quantize>(written).unwrap(), stage);
        assert!(Stage::faults(&stage).is_empty());
    }

    /// Also a default that is spelled out is something that the format does not do.
    #[rstest]
    #[case(json!({ "format": "q8_0", "bits": 8 }), &["bits: does not go with format = \"q8_0\""])]
    #[case(json!({ "format": "q4_k", "activations": true, "weights": "per-channel" }), &["weights: does not go with", "activations: does not go with"])]
    #[case(json!({ "format": "q2_k", "calibration": "histogram" }), &["calibration: does not go with"])]
    #[case(json!({ "format": "q4_2" }), &["unknown variant `q4_2`", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"])]
    #[case(json!({ "fromat": "q4_0" }), &["unknown field `fromat`"])]
    fn contradictions_name_their_keys(#[case] given: Value, #[case] expected: &[&str]) {
        let message = serde_json::from_value::<Quantize>(given).unwrap_err().to_string();
        assert!(expected.iter().all(|part| message.contains(part)), "{message}");
    }

    #[test]
    fn contradictions_in_code_are_faults() {
        let stage = Quantize { bits: Bits::literal(4), activations: false, ..Quantize::blocks(BlockFormat::Q4_0) };
        let faults = Stage::faults(&stage);
        assert!(
            faults.len() == 2 && faults[0].starts_with("bits: ") && faults[1].starts_with("activations: "),
            "{faults:?}"
        );
    }
}
