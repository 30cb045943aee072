//! Which forms of a model are looked at.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Deployment, Engine, Quantize, StructuredPrune};
use crate::model::Classifier;
use crate::ranges::BelowOne;

/// A list of forms, or `"all"`: full precision, every engine, and 10 to 70% pruned.
#[derive(Clone, Debug, PartialEq)]
pub enum Forms {
    /// These.
    List(Vec<Deployment>),
    /// All that a model is usually shipped in.
    All,
}

impl Default for Forms {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

/// What [`Forms::All`] is written as.
const ALL: &str = "all";

impl Forms {
    /// The forms, in the order in which they are looked at. Of all, those are left out that a network cannot take: rounded
    /// activations where it does not tell its layers, pruning where nothing of it can be pruned.
    pub fn of(&self, network: &dyn Classifier) -> Vec<Deployment> {
        let Self::List(forms) = self else {
            let (layered, prunable) = (network.layered().is_some(), !network.prunable().is_empty());
            let engines = Engine::ALL.into_iter().filter(|engine| layered || !engine.scheme().activations);
            let engines = engines.map(|engine| Deployment::Quantize(Quantize::engine(engine)));
            let pruned = RATIOS.into_iter().filter(|_| prunable);
            let pruned = pruned.map(|ratio| Deployment::Prune(StructuredPrune { ratio, ..StructuredPrune::default() }));
            return std::iter::once(Deployment::AsIs).chain(engines).chain(pruned).collect();
        };
        forms.clone()
    }

    /// Whether a model is looked at in the form it comes in, and in no other.
    pub fn is_as_is(&self) -> bool {
        matches!(self, Self::List(forms) if forms.iter().all(|form| *form == Deployment::AsIs))
    }

    /// Whether ranges of activations are measured for one of them.
    pub fn calibrates(&self) -> bool {
        match self {
            Self::List(forms) => forms.iter().any(|form| matches!(form, Deployment::Quantize(_))),
            Self::All => true,
        }
    }

    /// What is impossible about it; keys begin with `key`.
    pub fn faults(&self, key: &str) -> Vec<String> {
        let Self::List(forms) = self else { return Vec::new() };
        let faults = |(index, form): (usize, &Deployment)| form.faults(&format!("{key}[{index}]"));
        forms.iter().enumerate().flat_map(faults).collect()
    }
}

/// How much of the filters is pruned.
const RATIOS: [BelowOne; 7] = [
    BelowOne::literal(0.1),
    BelowOne::literal(0.2),
    BelowOne::literal(0.3),
    BelowOne::literal(0.4),
    BelowOne::literal(0.5),
    BelowOne::literal(0.6),
    BelowOne::literal(0.7),
];

impl Serialize for Forms {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::List(forms) => forms.serialize(to),
            Self::All => ALL.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Forms {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Forms;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a list of forms, or \"{ALL}\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Forms, E> {
                match text {
                    ALL => Ok(Forms::All),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Forms, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Forms::List)
            }
        }

        from.deserialize_any(Either)
    }
}

impl JsonSchema for Forms {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Forms".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let list = generator.subschema_for::<Vec<Deployment>>();
        json_schema!({ "anyOf": [list, { "const": ALL }] })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::rng;
    use crate::zoo::{Arch, ModelSpec};

    #[rstest]
    #[case(json!("all"), Forms::All)]
    #[case(json!([]), Forms::default())]
    #[case(json!(["as-is"]), Forms::List(vec![Deployment::AsIs]))]
    fn forms_are_written(#[case] written: Value, #[case] forms: Forms) {
        assert_eq!(serde_json::from_value::<Forms>(written.clone()).unwrap(), forms);
        assert_eq!(serde_json::to_value(&forms).unwrap(), written);
    }

    #[rstest]
    #[case(json!("some"), "a list of forms, or \"all\"")]
    #[case(json!(["as-was"]), "unknown variant `as-was`")]
    #[case(json!(7), "a list of forms, or \"all\"")]
    fn other_words_are_refused(#[case] written: Value, #[case] expected: &str) {
        let message = serde_json::from_value::<Forms>(written).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn all_forms_have_names_of_their_own() {
        let spec = ModelSpec { width: Some(4), channels: 1, ..ModelSpec::new(Arch::Resnet18, 3) };
        let network = spec.fresh(rng::stream(0, "weights"), &candle_core::Device::Cpu).unwrap();
        let labels: Vec<String> = Forms::All.of(network.as_ref()).iter().map(Deployment::label).collect();
        assert_eq!(labels.len(), 1 + Engine::ALL.len() + RATIOS.len());
        let distinct: std::collections::BTreeSet<&String> = labels.iter().collect();
        assert_eq!(distinct.len(), labels.len(), "{labels:?}");
        assert!(["as is", "int8 onnxruntime", "70% pruned"].iter().all(|name| labels.iter().any(|l| l == name)));
    }
}
