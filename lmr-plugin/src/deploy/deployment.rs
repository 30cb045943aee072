//! The forms in which a model may be shipped, so that one stage can look at all of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PruneForm, Quantize, StructuredPrune, dequantized};
use crate::Result;
use crate::data::CleanSet;
use crate::model::Model;
use crate::run::Run;
use crate::stage::Stage;

/// `"as-is"`, `{ quantize = { .. } }` or `{ prune = { .. } }`, with the options of the stages `quantize` and
/// `structured-prune`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Deployment {
    /// Full precision and every filter.
    #[default]
    AsIs,
    /// Rounded to integers or to a block format.
    Quantize(Quantize),
    /// Without its smallest filters.
    Prune(StructuredPrune),
}

impl Deployment {
    /// What is impossible about it; keys begin with `prefix`.
    pub fn faults(&self, prefix: &str) -> Vec<String> {
        match self {
            Self::AsIs | Self::Prune(_) => Vec::new(),
            Self::Quantize(stage) => {
                stage.faults().into_iter().map(|fault| format!("{prefix}.quantize.{fault}")).collect()
            }
        }
    }

    /// A few words: `int8`, `int4 per channel`, `weights int8`, `q4_0`, `50% pruned`.
    pub fn label(&self) -> String {
        match self {
            Self::AsIs => "as is".into(),
            Self::Quantize(stage) => stage.rounding().label(),
            Self::Prune(StructuredPrune { ratio, .. }) => format!("{}% pruned", (1e4 * ratio.get()).round() / 100.0),
        }
    }

    /// A copy of a full-precision model in this form. Activation ranges are measured on the clean images.
    pub fn deploy(&self, model: &Model, clean: &CleanSet, run: &Run<'_>) -> Result<Model> {
        let mut model = model.try_clone()?;
        match self {
            Self::AsIs => {}
            Self::Quantize(stage) => {
                let form = stage.quantize(&model, clean, run)?;
                model.deploy(form);
            }
            Self::Prune(stage) => {
                stage.deploy(&mut model)?;
            }
        }
        Ok(model)
    }

    /// A full-precision model that computes what the form does, to train a copy of: with rounded weights (activations
    /// are not rounded), or with zeros for the pruned filters.
    pub fn rounded(&self, model: &Model) -> Result<Model> {
        let network = model.full_precision()?;
        Ok(match self {
            Self::AsIs => model.try_clone()?,
            Self::Quantize(stage) => model.with(dequantized(network, stage.rounding())?),
            Self::Prune(stage) if stage.form == PruneForm::Remove => model.with(stage.remove(network)?.0),
            Self::Prune(stage) => {
                let copy = model.try_clone()?;
                stage.prune(copy.network())?;
                copy
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::deploy::BlockFormat;

    #[rstest]
    #[case(json!("as-is"), "as is")]
    #[case(json!({ "quantize": {} }), "int8")]
    #[case(json!({ "quantize": { "bits": 4, "weights": "per-channel" } }), "int4 per channel")]
    #[case(json!({ "quantize": { "activations": false } }), "weights int8")]
    #[case(json!({ "quantize": { "format": "q4_0" } }), "q4_0")]
    #[case(json!({ "quantize": { "format": "q6_k" } }), "q6_k")]
    #[case(json!({ "prune": { "ratio": 0.125 } }), "12.5% pruned")]
    fn forms_are_written_and_called(#[case] written: serde_json::Value, #[case] label: &str) {
        let form: Deployment = serde_json::from_value(written).unwrap();
        assert_eq!(form.label(), label);
        assert_eq!(serde_json::from_value::<Deployment>(serde_json::to_value(&form).unwrap()).unwrap(), form);
    }

    #[test]
    fn faults_name_their_place() {
        let form = Deployment::Quantize(Quantize { activations: false, ..Quantize::blocks(BlockFormat::Q4_0) });
        let faults = form.faults("deploy[1]");
        assert!(faults.len() == 1 && faults[0].starts_with("deploy[1].quantize.activations: "), "{faults:?}");
    }
}
