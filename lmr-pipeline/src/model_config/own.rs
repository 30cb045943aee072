//! The `config.json` of a model that neither timm nor transformers has a class for.

use lmr_plugin::zoo::ModelSpec;
use serde::{Deserialize, Serialize};

use super::{Library, ModelConfig};
use crate::preprocess::Preprocessing;

/// What stands under `lmr` in such a file: everything that is needed to load the weights beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct OwnConfig {
    /// The `[model]` table of a pipeline.
    pub model: ModelSpec,
    /// Names of the classes in their order; empty if they have none.
    #[serde(default)]
    pub labels: Vec<String>,
    /// What is done to an image before the model sees it.
    pub preprocessing: Preprocessing,
}

impl OwnConfig {
    /// Refuses impossible values.
    pub(super) fn checked(self) -> Result<ModelConfig, String> {
        if let [first, ..] = self.model.faults().as_slice() {
            return Err(format!("lmr.model.{first}"));
        }
        self.preprocessing.validate().map_err(|message| format!("lmr.preprocessing.{message}"))?;
        let means = self.preprocessing.mean.len();
        if means != self.model.channels {
            return Err(format!("lmr.preprocessing.mean: expected {} numbers, found {means}", self.model.channels));
        }
        let model = self.model.resolved();
        let arch = serde_json::to_value(model.arch).ok();
        ModelConfig {
            library: Library::Lmr,
            architecture: arch.as_ref().and_then(|arch| arch.as_str()).unwrap_or_default().to_owned(),
            classes: Some(model.classes),
            labels: self.labels,
            stated: Vec::new(),
            unknown: Vec::new(),
            preprocessing: Some(self.preprocessing),
            model: Some(model),
        }
        .checked()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::Result;

    const OWN: &str = r#"{"lmr": {"model": {"arch": "resnet18", "classes": 2, "channels": 1, "stem": "cifar", "width": 8},
        "labels": ["a", "b"], "preprocessing": {"size": [28, 28], "resize": {"exact": [28, 28]},
        "interpolation": "bilinear", "mean": [0.5], "std": [0.25]}}, "note": "kept by someone else"}"#;

    fn beside(config: &str) -> Result<ModelConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let found = ModelConfig::beside(&dir.path().join("model.safetensors"));
        found.map(Option::unwrap).map_err(|error| error.to_string())
    }

    #[test]
    fn is_read_back() {
        let config = beside(OWN).unwrap();
        assert_eq!((config.library, config.architecture.as_str()), (Library::Lmr, "resnet18"));
        assert_eq!((config.classes, config.labels.len()), (Some(2), 2));
        assert_eq!(config.model.unwrap().width, Some(8));
        assert_eq!(config.preprocessing.unwrap().mean, [0.5]);
    }

    #[rstest]
    #[case::model("\"width\": 8", "\"width\": 0", "lmr.model.width: expected 1 to 4096, found 0")]
    #[case::foreign("\"width\": 8", "\"depth\": 8", "lmr.model.depth: does not apply")]
    #[case::unknown("\"labels\"", "\"lables\"", "unknown field `lables`")]
    #[case::labels("[\"a\", \"b\"]", "[\"a\"]", "has 2 classes and 1 names of classes")]
    #[case::channels("\"channels\": 1", "\"channels\": 3", "lmr.preprocessing.mean: expected 3 numbers, found 1")]
    #[case::side("[28, 28],", "[0, 28],", "lmr.preprocessing.size: expected 1 to 4096 pixels, found 0")]
    fn impossible_values_are_named(#[case] from: &str, #[case] to: &str, #[case] expected: &str) {
        let message = beside(&OWN.replacen(from, to, 1)).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}
