//! The forms in which a model may be shipped, so that one stage can look at all of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Quantize, Ship, StructuredPrune};
use crate::Result;
use crate::data::CleanSet;
use crate::model::Model;
use crate::run::Run;

/// `Name("key"): Stage;`, with the documentation that the schema shows.
macro_rules! deployments {
    ($($(#[doc = $doc:literal])* $name:ident($key:literal): $stage:ty;)*) => {
        /// `"as-is"`, or a form and the options of its stage: `{ quantize = { .. } }`, `{ prune = { .. } }`.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[non_exhaustive]
        pub enum Deployment {
            /// Full precision and every filter.
            #[default]
            #[serde(rename = "as-is")]
            AsIs,
            $($(#[doc = $doc])* #[serde(rename = $key)] $name($stage),)*
        }

        impl Deployment {
            /// The form, and its key; `None` where there is nothing to do.
            fn form(&self) -> Option<(&'static str, &dyn Ship)> {
                match self {
                    Self::AsIs => None,
                    $(Self::$name(stage) => Some(($key, stage)),)*
                }
            }
        }
    };
}

deployments! {
    /// Rounded to integers or to a block format.
    Quantize("quantize"): Quantize;
    /// Without its smallest filters.
    Prune("prune"): StructuredPrune;
}

impl Deployment {
    /// What is impossible about it; keys begin with `prefix`.
    pub fn faults(&self, prefix: &str) -> Vec<String> {
        let Some((key, form)) = self.form() else { return Vec::new() };
        form.faults().into_iter().map(|fault| format!("{prefix}.{key}.{fault}")).collect()
    }

    /// `as is`, or a few words on the form.
    pub fn label(&self) -> String {
        self.form().map_or("as is".into(), |(_, form)| form.label())
    }

    /// A copy of a full-precision model in this form. Activation ranges are measured on the clean images.
    pub fn deploy(&self, model: &Model, clean: &CleanSet, run: &Run<'_>) -> Result<Model> {
        let mut model = model.try_clone()?;
        if let Some((_, form)) = self.form() {
            form.ship(&mut model, clean, run)?;
        }
        Ok(model)
    }

    /// A full-precision model that computes what the form does, see [`Ship::rounded`].
    pub fn rounded(&self, model: &Model) -> Result<Model> {
        match self.form() {
            None => model.try_clone(),
            Some((_, form)) => form.rounded(model),
        }
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
    #[case(json!({ "quantize": { "bits": 4, "weights": "per-tensor" } }), "int4 per tensor")]
    #[case(json!({ "quantize": { "engine": "litert" } }), "int8 litert")]
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
