//! transformers' `preprocessor_config.json`: every step that it switches is obeyed or refused by name.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{parse, resized};
use crate::preprocess::{Interpolation, Preprocessing, Resize, check_side};

#[derive(Deserialize)]
struct Raw {
    size: Option<RawSize>,
    crop_size: Option<RawSize>,
    #[serde(default = "yes")]
    do_resize: bool,
    #[serde(default)]
    do_center_crop: bool,
    #[serde(default = "yes")]
    do_rescale: bool,
    #[serde(default = "yes")]
    do_normalize: bool,
    rescale_factor: Option<f64>,
    crop_pct: Option<f64>,
    #[serde(default = "bilinear")]
    resample: u8,
    image_mean: Option<Values>,
    image_std: Option<Values>,
}

fn yes() -> bool {
    true
}

/// Pillow's number for it, the default of transformers' image processors.
fn bilinear() -> u8 {
    2
}

/// One value for every channel, or one for all three.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Values {
    Each(Vec<f64>),
    All(f64),
}

/// `224`, `{"height": 224, "width": 224}` or `{"shortest_edge": 224}`.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum RawSize {
    Side(usize),
    Sides { height: usize, width: usize },
    Shortest { shortest_edge: usize },
}

/// Keys that say nothing about a classifier's input beside those of [`Raw`].
const FREE: &[&str] = &[
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "do_convert_rgb",
    "return_tensors",
    "data_format",
    "input_data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "_processor_class",
    "_valid_processor_keys",
    "auto_map",
];
/// Those of [`Raw`].
const KNOWN: &[&str] = &[
    "size",
    "crop_size",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "rescale_factor",
    "crop_pct",
    "resample",
    "image_mean",
    "image_std",
];

/// What the file says.
pub struct Read {
    /// What is done to an image.
    pub preprocessing: Preprocessing,
    /// Keys that are not known.
    pub unknown: Vec<String>,
}

/// Reads the file. A step that is not known is refused where it is switched on; other keys that are not known are told.
pub fn read(bytes: &[u8]) -> Result<Read, String> {
    let keys: Map<String, Value> = parse(bytes)?;
    let mut unknown = Vec::new();
    for (key, value) in keys.iter().filter(|(key, _)| !FREE.contains(&key.as_str()) && !KNOWN.contains(&key.as_str())) {
        let shown = key.escape_debug();
        match value {
            Value::Null | Value::Bool(false) => {}
            Value::Bool(true) if key.starts_with("do_") || key == "rescale_offset" => {
                return Err(format!("{shown}: expected false, since that step is not known here, found true"));
            }
            _ => unknown.push(shown.to_string()),
        }
    }
    let raw: Raw = parse(bytes)?;
    Ok(Read { preprocessing: raw.preprocessing()?, unknown })
}

impl Raw {
    fn preprocessing(self) -> Result<Preprocessing, String> {
        let interpolation = match self.resample {
            0 => Interpolation::Nearest,
            1 => Interpolation::Lanczos,
            2 => Interpolation::Bilinear,
            3 => Interpolation::Bicubic,
            other => return Err(format!("resample: expected 0, 1, 2 or 3, found {other}")),
        };
        if !self.do_resize {
            return Err("do_resize: expected true, found false; images here are brought to one size".into());
        }
        let given = self.size.ok_or("size: is not there; expected the size that images are brought to")?;
        let sides = |size: RawSize| match size {
            RawSize::Side(side) | RawSize::Shortest { shortest_edge: side } => [side, side],
            RawSize::Sides { height, width } => [height, width],
        };
        let size = match (self.do_center_crop, self.crop_size, given, self.crop_pct) {
            (true, Some(crop), ..) => sides(crop),
            (true, None, ..) => return Err("crop_size: is not there, but do_center_crop is true".into()),
            (false, _, RawSize::Shortest { .. }, None) => {
                return Err("do_center_crop: expected true, since size has only the shortest_edge, found false".into());
            }
            (false, ..) => sides(given),
        };
        size.iter().chain(&sides(given)).try_for_each(|side| check_side("size", *side))?;
        let resize = match (given, self.crop_pct) {
            // ConvNeXT's own crop: the shorter side is larger by this share before it; large inputs are stretched.
            (RawSize::Shortest { shortest_edge }, Some(_)) if shortest_edge >= 384 => Resize::Exact([shortest_edge; 2]),
            (RawSize::Shortest { shortest_edge }, Some(crop)) => {
                Resize::ShortestEdge(resized("crop_pct", shortest_edge, crop)?)
            }
            (RawSize::Shortest { shortest_edge }, None) => Resize::ShortestEdge(shortest_edge),
            (given, Some(_)) if sides(given) != size => {
                return Err("crop_pct: expected a size with shortest_edge beside it".into());
            }
            (given, _) => Resize::Exact(sides(given)),
        };
        let (mean, std) = self.normalization()?;
        let found = Preprocessing { size, resize, interpolation, mean, std };
        found.validate().map(|()| found)
    }

    /// Mean and standard deviation for pixels in [0, 1], whatever range the file has them for.
    fn normalization(&self) -> Result<(Vec<f64>, Vec<f64>), String> {
        let channels = |values: &Option<Values>| match values {
            Some(Values::Each(values)) => values.len(),
            _ => 3,
        };
        let spread = |key: &str, values: &Option<Values>, channels: usize| match values {
            Some(Values::Each(values)) => Ok(values.clone()),
            Some(Values::All(value)) => Ok(vec![*value; channels]),
            None => Err(format!("{key}: is not there, but do_normalize is not false")),
        };
        let channels = channels(&self.image_mean);
        let (mean, std) = match self.do_normalize {
            true => {
                (spread("image_mean", &self.image_mean, channels)?, spread("image_std", &self.image_std, channels)?)
            }
            false => (vec![0.0; channels], vec![1.0; channels]),
        };
        // Pixels of 0 to 255 are multiplied by the factor; the model's own range is [0, 1] times this.
        let range = match (self.do_rescale, self.rescale_factor) {
            (false, _) => 255.0,
            (true, None) => 1.0,
            (true, Some(factor)) if factor.is_finite() && factor > 0.0 => {
                let range = 255.0 * factor;
                // 1/255 in decimal digits.
                if (range - 1.0).abs() < 1e-6 { 1.0 } else { range }
            }
            (true, Some(factor)) => return Err(format!("rescale_factor: expected a number above 0, found {factor}")),
        };
        let scaled = |values: Vec<f64>| values.into_iter().map(|value| value / range).collect();
        Ok((scaled(mean), scaled(std)))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn with(keys: Value) -> Result<Read, String> {
        let mut all =
            json!({"size": {"height": 32, "width": 24}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]});
        for (key, value) in keys.as_object().unwrap() {
            match value {
                Value::Null => drop(all.as_object_mut().unwrap().remove(key)),
                value => all[key] = value.clone(),
            }
        }
        read(all.to_string().as_bytes())
    }

    /// A byte of the first channel after the file's normalization, by transformers' order: rescale, then normalize.
    #[rstest]
    #[case::usual(json!({}), (51.0 / 255.0 - 0.5) / 0.5)]
    #[case::decimal(json!({"rescale_factor": 0.003_921_568_627_450_98}), (51.0 / 255.0 - 0.5) / 0.5)]
    #[case::signed(json!({"rescale_factor": 1.0 / 127.5}), (51.0 / 127.5 - 0.5) / 0.5)]
    #[case::bytes(json!({"do_rescale": false}), (51.0 - 0.5) / 0.5)]
    #[case::plain(json!({"do_normalize": false}), 51.0 / 255.0)]
    #[case::plain_bytes(json!({"do_normalize": false, "do_rescale": false, "image_mean": null}), 51.0)]
    #[case::one_for_all(json!({"image_mean": 0.25, "image_std": 0.5}), (51.0 / 255.0 - 0.25) / 0.5)]
    fn pixels_are_what_the_file_says(#[case] keys: Value, #[case] expected: f64) {
        let images = with(keys).unwrap().preprocessing;
        assert_eq!((images.size, images.resize, images.mean.len()), ([32, 24], Resize::Exact([32, 24]), 3));
        let found = (51.0 / 255.0 - images.mean[0]) / images.std[0];
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }

    #[rstest]
    #[case(json!({"image_mean": null}), "image_mean: is not there, but do_normalize is not false")]
    #[case(json!({"image_std": null}), "image_std: is not there")]
    #[case(json!({"do_resize": false}), "do_resize: expected true")]
    #[case(json!({"size": null}), "size: is not there")]
    #[case(json!({"do_center_crop": true}), "crop_size: is not there")]
    #[case(json!({"size": {"shortest_edge": 32}}), "do_center_crop: expected true")]
    #[case(json!({"size": {"longest_edge": 32}}), "size: data did not match")]
    #[case(json!({"rescale_factor": 0.0}), "rescale_factor: expected a number above 0")]
    #[case(json!({"do_flip_channel_order": true}), "do_flip_channel_order: expected false")]
    #[case(json!({"rescale_offset": true}), "rescale_offset: expected false")]
    #[case(json!({"do_center_crop": true, "crop_size": 16, "crop_pct": 0.9}), "crop_pct: expected a size with")]
    #[case(json!({"resample": 4}), "resample: expected 0, 1, 2 or 3, found 4")]
    fn what_is_not_obeyed_is_refused_by_name(#[case] keys: Value, #[case] expected: &str) {
        let message = with(keys).err().unwrap();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn other_keys_are_told() {
        let keys = json!({"do_pad": false, "brightness": 2, "image_processor_type": "ViTImageProcessor", "do_convert_rgb": true});
        assert_eq!(with(keys).unwrap().unknown, ["brightness"]);
    }
}
