//! The `config.json` that timm and transformers keep beside a checkpoint, and transformers' `preprocessor_config.json`:
//! what the model is, what its classes are called, and what it expects of an image. [`OwnConfig`] is what LMR writes for
//! models that neither library has.
//!
//! Their writers own these files, so unknown keys are not an error; a known key with an impossible value is.

mod convention;
mod network;
mod own;
mod processor;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use lmr_plugin::zoo::ModelSpec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use convention::Convention;
pub use network::Stated;
pub(crate) use network::{differing, filled};
pub use own::OwnConfig;

use crate::preprocess::{Interpolation, Preprocessing, Resize, check_side};
use crate::{Error, Result};

/// 21,841 class names with descriptions take 2 MB.
pub(crate) const MAX_FILE: u64 = 16 << 20;
/// What is read beside a checkpoint.
pub(crate) const FILES: &[&str] = &["config.json", "preprocessor_config.json"];
const MAX_CLASSES: usize = 100_000;

/// What `config.json` says, whoever wrote it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ModelConfig {
    /// The library that wrote it.
    pub library: Library,
    /// The library's name for the architecture: `resnet18`, `ViTForImageClassification`.
    pub architecture: String,
    /// The whole `[model]` table, if LMR wrote the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSpec>,
    /// Number of classes.
    pub classes: Option<usize>,
    /// Names of the classes in their order; empty if the file has none.
    pub labels: Vec<String>,
    /// What it says about other keys of `[model]`.
    pub stated: Vec<Stated>,
    /// Keys that may change what the model computes, and that are not known.
    pub unknown: Vec<String>,
    /// What is done to an image before the model sees it, if a file says so.
    pub preprocessing: Option<Preprocessing>,
}

/// Who wrote a `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Library {
    /// PyTorch Image Models.
    Timm,
    /// Hugging Face transformers.
    Transformers,
    /// This program.
    Lmr,
}

impl ModelConfig {
    /// What LMR wrote about a model into another file: an [`OwnConfig`] as JSON.
    pub(crate) fn own(json: &str) -> Result<Self, String> {
        parse::<OwnConfig>(json.as_bytes())?.checked()
    }

    /// Reads the `config.json` in the folder of a checkpoint; `None` if there is none.
    pub fn beside(checkpoint: &Path) -> Result<Option<Self>> {
        let path = checkpoint.with_file_name("config.json");
        if !path.is_file() {
            return Ok(None);
        }
        let error = |message: String| Error::input(&path, message);
        let bytes = read(&path)?;
        let raw: Raw = parse(&bytes).map_err(error)?;
        let keys: Map<String, Value> = parse(&bytes).map_err(error)?;
        let mut config = match raw {
            Raw { architecture: Some(_), .. } => raw.timm(&keys),
            Raw { architectures: Some(_), .. } => raw.transformers(&keys),
            Raw { lmr: Some(own), .. } => own.checked(),
            _ => {
                let message =
                    "names neither `architecture` (timm) nor `architectures` (transformers), nor has it `lmr`";
                return Err(error(message.into()));
            }
        }
        .map_err(error)?;
        let path = path.with_file_name("preprocessor_config.json");
        if config.preprocessing.is_none() && path.is_file() {
            let found = processor::read(&read(&path)?).map_err(|message| Error::input(&path, message))?;
            config.preprocessing = Some(found.preprocessing);
            config.unknown.extend(found.unknown);
        }
        Ok(Some(config))
    }
}

/// A JSON object beside a checkpoint with all its keys, whatever they mean; `None` if there is no such file.
pub(crate) fn object_beside(checkpoint: &Path, name: &str) -> Result<Option<Map<String, Value>>> {
    let path = checkpoint.with_file_name(name);
    if !path.is_file() {
        return Ok(None);
    }
    parse(&read(&path)?).map(Some).map_err(|message| Error::input(&path, message))
}

/// The bytes of a description, which is not long.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let unreadable = |error: std::io::Error| Error::input(path, format!("cannot be read: {error}"));
    let mut bytes = Vec::new();
    File::open(path).map_err(unreadable)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::input(path, format!("has more than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

/// Reads JSON; an error says under which key.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let key = error.path().to_string();
        if matches!(key.as_str(), "." | "?") {
            error.inner().to_string()
        } else {
            format!("{}: {}", key.escape_debug(), error.inner())
        }
    })
}

/// Everybody's keys.
#[derive(Deserialize)]
struct Raw {
    // timm
    architecture: Option<String>,
    num_classes: Option<usize>,
    label_names: Option<Vec<String>>,
    pretrained_cfg: Option<RawPretrained>,
    // transformers
    architectures: Option<Vec<String>>,
    id2label: Option<BTreeMap<usize, String>>,
    // LMR
    lmr: Option<OwnConfig>,
}

#[derive(Deserialize)]
struct RawPretrained {
    num_classes: Option<usize>,
    input_size: [usize; 3],
    interpolation: String,
    crop_pct: Option<f64>,
    crop_mode: Option<String>,
    mean: Option<Vec<f64>>,
    std: Option<Vec<f64>>,
}

impl Raw {
    fn timm(self, keys: &Map<String, Value>) -> Result<ModelConfig, String> {
        let read = network::timm(keys, self.architecture.as_deref().unwrap_or_default())?;
        let pretrained = self.pretrained_cfg;
        let classes = self.num_classes.or(pretrained.as_ref().and_then(|config| config.num_classes));
        ModelConfig {
            library: Library::Timm,
            architecture: self.architecture.unwrap_or_default(),
            model: None,
            classes,
            labels: self.label_names.unwrap_or_default(),
            stated: read.stated,
            unknown: read.unknown,
            preprocessing: pretrained.map(RawPretrained::preprocessing).transpose()?,
        }
        .checked()
    }

    fn transformers(self, keys: &Map<String, Value>) -> Result<ModelConfig, String> {
        let read = network::transformers(keys)?;
        let labels = self.id2label.unwrap_or_default();
        if let Some((expected, (found, _))) = labels.iter().enumerate().find(|(at, (index, _))| at != *index) {
            return Err(format!("id2label: has no class {expected}, but {found}"));
        }
        ModelConfig {
            library: Library::Transformers,
            architecture: self.architectures.and_then(|all| all.into_iter().next()).unwrap_or_default(),
            model: None,
            classes: (!labels.is_empty()).then_some(labels.len()),
            labels: labels.into_values().collect(),
            stated: read.stated,
            unknown: read.unknown,
            preprocessing: None,
        }
        .checked()
    }
}

impl ModelConfig {
    fn checked(self) -> Result<Self, String> {
        // It is printed: a hostile name could rewrite the terminal.
        if self.architecture.is_empty() || self.architecture.contains(char::is_control) {
            return Err(format!("expected the name of an architecture, found {:?}", self.architecture));
        }
        if let Some(classes) = self.classes
            && !(1..=MAX_CLASSES).contains(&classes)
        {
            return Err(format!("expected 1 to {MAX_CLASSES} classes, found {classes}"));
        }
        if let Some(classes) = self.classes
            && !self.labels.is_empty()
            && self.labels.len() != classes
        {
            return Err(format!("has {classes} classes and {} names of classes", self.labels.len()));
        }
        for stated in &self.stated {
            stated.check()?;
        }
        Ok(self)
    }
}

impl RawPretrained {
    fn preprocessing(self) -> Result<Preprocessing, String> {
        let [channels, height, width] = self.input_size;
        let (Some(mean), Some(std)) = (self.mean, self.std) else {
            return Err("pretrained_cfg: has no `mean` and `std`; timm would take those of the model's code".into());
        };
        let interpolation = match self.interpolation.as_str() {
            "nearest" => Interpolation::Nearest,
            "bilinear" => Interpolation::Bilinear,
            "bicubic" => Interpolation::Bicubic,
            "lanczos" => Interpolation::Lanczos,
            other => {
                return Err(format!(
                    "pretrained_cfg.interpolation: expected nearest, bilinear, bicubic or lanczos, found {other:?}"
                ));
            }
        };
        check_side("pretrained_cfg.input_size", height)?;
        check_side("pretrained_cfg.input_size", width)?;
        // timm divides, rounds down, and with `squash` gives up the proportions.
        let crop = self.crop_pct.unwrap_or(0.875);
        let resized = |side| resized("pretrained_cfg.crop_pct", side, crop);
        let resize = match self.crop_mode.as_deref() {
            Some("squash") => Resize::Exact([resized(height)?, resized(width)?]),
            None | Some("center") if height == width => Resize::ShortestEdge(resized(height)?),
            None | Some("center") => {
                return Err(format!(
                    "pretrained_cfg.input_size: expected a square with crop_mode \"center\", found {height}x{width}"
                ));
            }
            Some(other) => {
                return Err(format!("pretrained_cfg.crop_mode: expected center or squash, found {other:?}"));
            }
        };
        if channels != mean.len() {
            return Err(format!("pretrained_cfg.mean: expected {channels} numbers, found {}", mean.len()));
        }
        let found = Preprocessing { size: [height, width], resize, interpolation, mean, std };
        found.validate().map(|()| found)
    }
}

/// The side before a crop that keeps this share of it.
fn resized(key: &str, side: usize, share: f64) -> Result<usize, String> {
    if !(0.1..=1.0).contains(&share) {
        return Err(format!("{key}: expected 0.1 to 1, found {share}"));
    }
    Ok((side as f64 / share).floor() as usize)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    const TIMM: &str = r#"{"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 224, 224],
        "interpolation": "bicubic", "crop_pct": 0.95, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "tag": "a1"}}"#;
    const VIT: &str = r#"{"architectures": ["ViTForImageClassification"], "id2label": {"0": "a", "1": "b", "10": "k", "2": "c",
        "3": "d", "4": "e", "5": "f", "6": "g", "7": "h", "8": "i", "9": "j"}, "image_size": 224, "patch_size": 16,
        "layer_norm_eps": 1e-12, "hidden_size": 192}"#;
    const PROCESSOR: &str = r#"{"do_resize": true, "size": {"height": 224, "width": 224}, "resample": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#;

    fn beside(config: &str, processor: Option<&str>) -> Result<ModelConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        if let Some(processor) = processor {
            std::fs::write(dir.path().join("preprocessor_config.json"), processor).unwrap();
        }
        let found = ModelConfig::beside(&dir.path().join("model.safetensors"));
        found.map(Option::unwrap).map_err(|error| error.to_string())
    }

    #[test]
    fn timm() {
        let config = beside(TIMM, None).unwrap();
        assert_eq!(
            (config.library, config.architecture.as_str(), config.classes),
            (Library::Timm, "resnet18", Some(10))
        );
        let images = config.preprocessing.unwrap();
        assert_eq!((images.size, images.resize), ([224, 224], Resize::ShortestEdge(235)));
        assert_eq!((images.interpolation, images.mean), (Interpolation::Bicubic, vec![0.5, 0.4, 0.3]));
    }

    #[test]
    fn transformers() {
        let config = beside(VIT, Some(PROCESSOR)).unwrap();
        assert_eq!(config.architecture, "ViTForImageClassification");
        assert_eq!((config.classes, config.labels[10].as_str()), (Some(11), "k"), "classes in the order of numbers");
        let stated: Vec<(&str, Value)> = config.stated.iter().map(|s| (s.key, s.value.clone())).collect();
        let expected =
            [("width", json!(192)), ("image-size", json!(224)), ("norm-eps", json!(1e-12)), ("patch-size", json!(16))];
        assert_eq!(stated.len(), 4);
        assert!(expected.iter().all(|expected| stated.contains(expected)), "{stated:?}");
        let images = config.preprocessing.unwrap();
        assert_eq!((images.resize, images.interpolation), (Resize::Exact([224, 224]), Interpolation::Bilinear));
    }

    #[rstest]
    #[case::shortest("{\"height\": 224, \"width\": 224}", "{\"shortest_edge\": 256}, \"do_center_crop\": true, \"crop_size\": 224", [224, 224], Resize::ShortestEdge(256))]
    #[case::old("{\"height\": 224, \"width\": 224}", "384", [384, 384], Resize::Exact([384, 384]))]
    #[case::convnext("{\"height\": 224, \"width\": 224}", "{\"shortest_edge\": 224}, \"crop_pct\": 0.875", [224, 224], Resize::ShortestEdge(256))]
    #[case::large_convnext("{\"height\": 224, \"width\": 224}", "{\"shortest_edge\": 384}, \"crop_pct\": 0.875", [384, 384], Resize::Exact([384, 384]))]
    fn sizes(#[case] from: &str, #[case] to: &str, #[case] size: [usize; 2], #[case] resize: Resize) {
        let images = beside(VIT, Some(&PROCESSOR.replace(from, to))).unwrap().preprocessing.unwrap();
        assert_eq!((images.size, images.resize), (size, resize));
    }

    #[rstest]
    #[case::no_json("{", "config.json: EOF while parsing")]
    #[case::another_file("{}", "config.json: names neither `architecture`")]
    #[case::type_of_a_key(
        "{\"architecture\": \"x\", \"num_classes\": \"ten\"}",
        "config.json: num_classes: invalid type"
    )]
    #[case::nested(&TIMM.replace("[3, 224, 224]", "[3, 224]"), "pretrained_cfg.input_size: invalid length 2")]
    #[case::side(&TIMM.replace("224, 224", "0, 224"), "pretrained_cfg.input_size: expected 1 to 4096 pixels, found 0")]
    #[case::crop(&TIMM.replace("0.95", "1e-9"), "pretrained_cfg.crop_pct: expected 0.1 to 1")]
    #[case::interpolation(&TIMM.replace("bicubic", "cubist"), "pretrained_cfg.interpolation: expected nearest")]
    #[case::channels(&TIMM.replace("0.5, 0.4", "0.5"), "pretrained_cfg.mean: expected 3 numbers, found 2")]
    #[case::std(&TIMM.replace("0.2, 0.2, 0.2", "0.2, 0, 0.2"), "normalization.std: found 0")]
    #[case::classes(&TIMM.replace("10", "0"), "expected 1 to 100000 classes, found 0")]
    #[case::labels(&VIT.replace("\"10\"", "\"11\""), "id2label: has no class 10, but 11")]
    #[case::label_number(&VIT.replace("\"10\"", "\"x\""), "id2label")]
    #[case::eps(&VIT.replace("1e-12", "-1"), "layer_norm_eps: expected a number in (0, 1), found -1")]
    fn impossible_values_are_named(#[case] config: &str, #[case] expected: &str) {
        let message = beside(config, None).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}
