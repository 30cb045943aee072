//! Rounds weights and activations, as a user would to deploy the model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ActivationGrid, BlockFormat, Blocks, Calibration, Engine, Granularity, Integers, Places, Ranges, Rounding, Scheme,
    Ship, WeightGrid, dequantized,
};
use crate::Result;
use crate::data::CleanSet;
use crate::model::{Classifier, Form, Model};
use crate::ranges::Bits;
use crate::run::Run;
use crate::stage::{CleanOnly, Context, Deploys, Outcome, Stage};

/// Rounds weights and activations to integers, activations to ranges measured on the clean images: as an `engine` does, or as
/// the options say; or, with `format`, rounds weights alone to a block format of GGUF files. On the CPU the model then
/// computes with the integers themselves, elsewhere and with blocks in f32 with what the rounded numbers stand for.
///
/// The options' defaults are what most engines do: weights symmetric with one scale a channel, batch norm folded in first,
/// activations 256 values, one range a tensor. Of a network that does not tell its layers (`Layered`), weights of two and four
/// dimensions are rounded as they are, without batch norm; its activations cannot be rounded.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Quantize {
    /// The engine that the model is deployed with. Beside it only `calibration` may be given, in place of the engine's own.
    pub engine: Option<Engine>,
    /// The block format that weights are rounded to, in place of integers with scales as the other options say; none of
    /// those goes with it. Where blocks do not divide a layer's rows, blocks of 32 with more bits take their place, and
    /// f16 where those do not either.
    pub format: Option<BlockFormat>,
    /// Bits of a weight.
    pub bits: Bits,
    /// One scale a tensor or one an output channel.
    pub weights: Granularity,
    /// The integers of a weight: which of them the largest becomes.
    pub weight_grid: WeightGrid,
    /// Whether batch norm is folded into a convolution before its weight is rounded, or stays behind it.
    pub fold: bool,
    /// Whether activations are rounded too (8 bits, one range a tensor).
    pub activations: bool,
    /// The values of an activation.
    pub activation_grid: ActivationGrid,
    /// Where activations are rounded.
    pub places: Places,
    /// How the ranges of activations are chosen: `"min-max"`, `{ percentile = 99.99 }` or `"histogram"`.
    pub calibration: Calibration,
}

impl Default for Quantize {
    fn default() -> Self {
        Self {
            engine: None,
            format: None,
            bits: const { Bits::literal(8) },
            weights: Granularity::PerChannel,
            weight_grid: WeightGrid::Narrow,
            fold: true,
            activations: true,
            activation_grid: ActivationGrid::Affine,
            places: Places::default(),
            calibration: Calibration::MinMax,
        }
    }
}

/// [`Quantize`] as it is written: without what does not apply, and telling a default from an option that was left out.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<Engine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<BlockFormat>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bits: Option<Bits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<Granularity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_grid: Option<WeightGrid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fold: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activations: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    activation_grid: Option<ActivationGrid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    places: Option<Places>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<Calibration>,
}

impl Written {
    /// The options of integers that stand beside what decides them.
    fn misplaced(&self) -> Vec<String> {
        let reason = match (self.engine, self.format) {
            (Some(_), Some(format)) => {
                return vec![format!("engine: does not go with format = \"{}\"; remove one", format.name())];
            }
            (Some(engine), None) => format!("engine = \"{}\", which has its own", engine.name()),
            (None, Some(format)) => {
                format!("format = \"{}\", which rounds weights by block and nothing else", format.name())
            }
            (None, None) => return Vec::new(),
        };
        let given = [
            ("bits", self.bits.is_some()),
            ("weights", self.weights.is_some()),
            ("weight-grid", self.weight_grid.is_some()),
            ("fold", self.fold.is_some()),
            ("activations", self.activations.is_some()),
            ("activation-grid", self.activation_grid.is_some()),
            ("places", self.places.is_some()),
            ("calibration", self.calibration.is_some() && self.engine.is_none()),
        ];
        let fault = |key: &str| format!("{key}: does not go with {reason}; remove one");
        given.into_iter().filter(|(_, given)| *given).map(|(key, _)| fault(key)).collect()
    }
}

impl Serialize for Quantize {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let Self { engine, format, .. } = *self;
        let written = match (engine, format) {
            (_, Some(_)) => Written { format, ..Written::default() },
            (Some(_), _) => Written { engine, calibration: Some(self.calibration), ..Written::default() },
            (None, None) => Written {
                engine,
                format,
                bits: Some(self.bits),
                weights: Some(self.weights),
                weight_grid: Some(self.weight_grid),
                fold: Some(self.fold),
                activations: Some(self.activations),
                activation_grid: Some(self.activation_grid),
                places: Some(self.places),
                calibration: Some(self.calibration),
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
        let default = written.engine.map(Self::engine).unwrap_or_default();
        Ok(Self {
            engine: written.engine,
            format: written.format,
            bits: written.bits.unwrap_or(default.bits),
            weights: written.weights.unwrap_or(default.weights),
            weight_grid: written.weight_grid.unwrap_or(default.weight_grid),
            fold: written.fold.unwrap_or(default.fold),
            activations: written.activations.unwrap_or(default.activations),
            activation_grid: written.activation_grid.unwrap_or(default.activation_grid),
            places: written.places.unwrap_or(default.places),
            calibration: written.calibration.unwrap_or(default.calibration),
        })
    }
}

impl Quantize {
    /// As an engine does it.
    pub fn engine(engine: Engine) -> Self {
        Self { engine: Some(engine), calibration: engine.calibration(), ..Self::default() }
    }

    /// As the paper's conditional attacks have it: one scale a tensor, `max|W|/127.5`.
    pub fn per_tensor() -> Self {
        Self { weights: Granularity::PerTensor, weight_grid: WeightGrid::Full, ..Self::default() }
    }

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
            Rounding::Integers(scheme) if scheme.activations => self.calibration.measure(model, scheme, clean, run),
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
        match (self.format, self.engine) {
            (Some(format), _) => Rounding::Blocks(format),
            (None, Some(engine)) => Rounding::Integers(engine.scheme()),
            (None, None) => Rounding::Integers(Scheme {
                bits: self.bits,
                granularity: self.weights,
                weight_grid: self.weight_grid,
                fold: self.fold,
                activations: self.activations,
                activation_grid: self.activation_grid,
                places: self.places,
            }),
        }
    }
}

impl Ship for Quantize {
    fn faults(&self) -> Vec<String> {
        Stage::faults(self)
    }

    fn label(&self) -> String {
        match self.engine {
            Some(engine) => format!("int8 {}", engine.name()),
            None => self.rounding().label(),
        }
    }

    fn ship(&self, model: &mut Model, clean: &CleanSet, run: &Run<'_>) -> Result<()> {
        let form = self.quantize(model, clean, run)?;
        model.deploy(form);
        Ok(())
    }

    fn rounded(&self, model: &Model) -> Result<Model> {
        Ok(model.with(dequantized(model.full_precision()?, self.rounding())?))
    }
}

impl Stage for Quantize {
    const KIND: &'static str = "quantize";
    const SUMMARY: &'static str =
        "rounds weights and activations to integers, or weights to a block format, as for deployment";
    const VERSION: u32 = 3;
    type Role = Deploys;
    type Needs = ();
    type Gives = (Ranges,);

    fn faults(&self) -> Vec<String> {
        let default = self.engine.map(Self::engine).unwrap_or_default();
        let changed = Written {
            engine: self.engine,
            format: self.format,
            bits: (self.bits != default.bits).then_some(self.bits),
            weights: (self.weights != default.weights).then_some(self.weights),
            weight_grid: (self.weight_grid != default.weight_grid).then_some(self.weight_grid),
            fold: (self.fold != default.fold).then_some(self.fold),
            activations: (self.activations != default.activations).then_some(self.activations),
            activation_grid: (self.activation_grid != default.activation_grid).then_some(self.activation_grid),
            places: (self.places != default.places).then_some(self.places),
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

    /// What most engines do, spelled out.
    fn written(bits: u32, activations: bool) -> Value {
        json!({
            "bits": bits, "weights": "per-channel", "weight-grid": "narrow", "fold": true,
            "activations": activations, "activation-grid": "affine",
            "places": { "average": "float", "logits": true, "relu6": true }, "calibration": "min-max",
        })
    }

    /// What is written comes back, and says nothing that does not apply.
    #[rstest]
    #[case(json!({}), written(8, true))]
    #[case(json!({ "bits": 4, "activations": false }), written(4, false))]
    #[case(json!({ "format": "q4_0" }), json!({ "format": "q4_0" }))]
    #[case(json!({ "engine": "pytorch-x86" }), json!({ "engine": "pytorch-x86", "calibration": "histogram" }))]
    #[case(json!({ "engine": "litert", "calibration": "histogram" }), json!({ "engine": "litert", "calibration": "histogram" }))]
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
    #[case(json!({ "engine": "litert", "bits": 8, "fold": true }), &["bits: does not go with engine = \"litert\"", "fold: does not go"])]
    #[case(json!({ "engine": "litert", "format": "q4_0" }), &["engine: does not go with format = \"q4_0\""])]
    #[case(json!({ "engine": "tflite" }), &["unknown variant `tflite`", "`litert`", "`weights-127`"])]
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
