//! The YAML between the `---` lines of a model card, which the Hub reads.

use serde::{Deserialize, Serialize};

use crate::hub::names::check_license;
use crate::{Error, Result};

/// The keys in the order they are written. Unknown things are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Licence of the weights, as the Hub spells it.
    pub license: String,
    /// The library that loads the folder.
    pub library_name: String,
    /// What the model does.
    pub pipeline_tag: String,
    /// The repository that the received model came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// Its commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model_revision: Option<String>,
    /// What was made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model_relation: Option<String>,
    /// Words to find it by.
    pub tags: Vec<String>,
    /// Repositories of the dataset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<String>,
    /// What was measured.
    #[serde(default, rename = "model-index", skip_serializing_if = "Vec::is_empty")]
    pub model_index: Vec<Entry>,
}

/// A model and its results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The model's name.
    pub name: String,
    /// What was measured.
    pub results: Vec<Measured>,
}

/// What was measured on one dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What the model was to do.
    pub task: Named,
    /// On which images.
    pub dataset: Images,
    /// The numbers.
    pub metrics: Vec<Metric>,
}

/// A kind of thing and its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Named {
    /// The Hub's word for it.
    pub r#type: String,
    /// The word for people.
    pub name: String,
}

/// A dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Images {
    /// Its repository, or what it is called here.
    pub r#type: String,
    /// The name for people.
    pub name: String,
    /// The split.
    pub split: String,
}

/// A number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The Hub's word for the metric, where it has one.
    pub r#type: String,
    /// The name in the card.
    pub name: String,
    /// A fraction in [0, 1].
    pub value: f64,
}

impl Metadata {
    /// The lines of a card's front matter, `---` included.
    pub fn front_matter(&self) -> Result<String> {
        let yaml = serde_saphyr::to_string(self).map_err(|error| Error::Internal(format!("the card: {error}")))?;
        Ok(format!("---\n{}\n---\n", yaml.trim_end()))
    }
}

/// The `license` of another card's front matter, if it is one.
pub fn license_of(card: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Licensed {
        license: String,
    }
    let rest = card.strip_prefix('\u{feff}').unwrap_or(card).strip_prefix("---")?;
    let (yaml, _) = rest.split_once("\n---")?;
    let Licensed { license } = serde_saphyr::from_str(yaml).ok()?;
    check_license(&license).ok().map(|()| license)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn metadata() -> Metadata {
        let named = |r#type: &str, name: &str| Named { r#type: r#type.into(), name: name.into() };
        Metadata {
            license: "no".into(),
            library_name: "timm".into(),
            pipeline_tag: "image-classification".into(),
            base_model: Some("owner/1e3".into()),
            base_model_revision: Some("0123456789012345678901234567890123456789".into()),
            base_model_relation: Some("finetune".into()),
            tags: vec!["yes".into(), "a: b # c".into(), "\"quoted\" 'twice'".into(), "- x".into(), "1.0".into()],
            datasets: vec!["uoft-cs/cifar10".into()],
            model_index: vec![Entry {
                name: "---".into(),
                results: vec![Measured {
                    task: named("image-classification", "Image Classification"),
                    dataset: Images { r#type: "x".into(), name: "{{null}}".into(), split: "test".into() },
                    metrics: vec![Metric { r#type: "accuracy".into(), name: "ACC".into(), value: 0.1 + 0.2 }],
                }],
            }],
        }
    }

    #[test]
    fn comes_back_from_yaml_as_it_was() {
        let text = metadata().front_matter().unwrap();
        let yaml = text.strip_prefix("---\n").and_then(|rest| rest.strip_suffix("---\n")).unwrap();
        assert_eq!(serde_saphyr::from_str::<Metadata>(yaml).unwrap(), metadata(), "{yaml}");
        assert!(!yaml.lines().any(|line| line.starts_with("---")), "{yaml}");
    }

    #[rstest]
    #[case("---\nlicense: apache-2.0\ntags: [a]\n---\n# x", Some("apache-2.0"))]
    #[case("\u{feff}---\r\nlicense: 'mit'\r\n---\r\n", Some("mit"))]
    #[case("---\nlicense: [mit, bsd]\n---\n", None)]
    #[case("---\nlicense: \"<script>\"\n---\n", None)]
    #[case("---\ntags: &a [*a, *a]\n---\n", None)]
    #[case("license: mit", None)]
    #[case("---\nlicense: mit", None)]
    fn licences_of_other_cards(#[case] card: &str, #[case] expected: Option<&str>) {
        assert_eq!(license_of(card).as_deref(), expected);
    }
}
