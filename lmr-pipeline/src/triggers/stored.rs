//! A trigger that an attack left behind.

use std::path::PathBuf;
use std::sync::Arc;

use lmr_plugin::stage::Planted;
use lmr_plugin::triggers::Trigger;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Built, Locate, read};
use crate::tensors::{metadata, sha256};
use crate::{Error, Result, weights};

/// The name of a trigger in the folder of the stage that implanted it: [`Planted::ATTACHMENT`] with its ending.
pub const TRIGGER_FILE: &str = "trigger.safetensors";

/// The trigger that an attack left in its stage's folder, so that a checkpoint is measured with its own. A file of other
/// origin may hold `mask` and `pattern`, floats of 1×C×H×W in [0, 1], for `x·(1 − mask) + pattern·mask`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Stored {
    /// The `trigger.safetensors`.
    pub path: PathBuf,
}

impl Stored {
    /// The name in a pipeline file.
    pub const KIND: &'static str = "stored";

    /// Reads it, for images of `image` (channels, height, width).
    pub fn build(&self, image: [usize; 3], locate: &Locate<'_>) -> Result<Built> {
        let bytes = read("path", &self.path, locate)?;
        let (trigger, target) = restore(&bytes, image)
            .map_err(|error| Error::Trigger(format!("path: {}: {error}", self.path.display())))?;
        Ok(Built::Read { trigger, target, sha256: vec![sha256(&bytes)] })
    }
}

/// The trigger in the bytes of a safetensors file, and the target class that the file names.
pub fn restore(bytes: &[u8], image: [usize; 3]) -> Result<(Arc<dyn Trigger>, Option<u32>)> {
    let tensors = weights::parse(bytes).map_err(Error::Trigger)?;
    let metadata = metadata(bytes).map_err(Error::Trigger)?;
    Ok(Planted::restore(tensors, &metadata, image)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::{DType, Device, Tensor};
    use lmr_plugin::triggers::{Patch, Sinusoid, TriggerConfig, Warp};
    use rstest::rstest;

    use super::*;
    use crate::tensors::to_safetensors;

    fn pixels() -> Tensor {
        Tensor::arange(0f32, 2.0 * 2.0 * 16.0 * 16.0, &Device::Cpu)
            .unwrap()
            .affine(1.0 / 1023.0, 0.0)
            .unwrap()
            .reshape((2, 2, 16, 16))
            .unwrap()
    }

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[rstest]
    #[case::overlay(Patch::default().build(2, 16, 16).unwrap())]
    #[case::addition(Sinusoid::default().build(2, 16, 16).unwrap())]
    #[case::warp(Warp::default().build(2, 16, 16).unwrap())]
    fn what_an_attack_leaves_is_the_same_trigger(#[case] trigger: Arc<dyn Trigger>) {
        let attachment = Planted { trigger: trigger.clone(), target: 1 }.attachment(Some(&[3, 5])).unwrap();
        assert_eq!(format!("{}.safetensors", attachment.name), TRIGGER_FILE);
        let bytes = to_safetensors(&attachment.tensors, &attachment.metadata).unwrap();
        let (restored, target) = restore(&bytes, [2, 16, 16]).unwrap();
        assert_eq!(target, Some(1));
        let expected = values(&trigger.apply(&pixels()).unwrap());
        assert_eq!(values(&restored.apply(&pixels()).unwrap()), expected);
        let message = restore(&bytes, [2, 16, 8]).err().unwrap().to_string();
        assert!(message.contains("expected [1, "), "{message}");
    }

    #[rstest]
    #[case::missing(&[("mask", 0.5)], "overlay", "`pattern` is missing")]
    #[case::out_of_range(&[("mask", 1.5), ("pattern", 0.5)], "overlay", "`mask`: expected 0 to 1, found 1.5")]
    #[case::not_finite(&[("mask", f32::NAN), ("pattern", 0.5)], "overlay", "mask")]
    #[case::unknown(&[("mask", 0.5), ("pattern", 0.5), ("extra", 0.0)], "overlay", "unknown tensor \"extra\"")]
    #[case::unknown_form(&[("mask", 0.5)], "magic", "form: expected one of overlay")]
    #[case::other_form(&[("mask", 0.5)], "input-aware", "`mean` is missing")]
    fn strange_files_are_refused(#[case] tensors: &[(&str, f32)], #[case] form: &str, #[case] expected: &str) {
        let tensor = |value: f32| Tensor::full(value, (1, 1, 4, 4), &Device::Cpu).unwrap();
        let tensors = tensors.iter().map(|(name, value)| (name.to_string(), tensor(*value))).collect();
        let metadata = BTreeMap::from([("form".to_string(), form.to_string())]);
        let bytes = to_safetensors(&tensors, &metadata).unwrap();
        let message = restore(&bytes, [1, 4, 4]).err().unwrap().to_string();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn a_picture_with_a_mask_needs_no_form() {
        let half = Tensor::full(0.5f32, (1, 1, 4, 4), &Device::Cpu).unwrap();
        let tensors = [("mask".to_string(), half.clone()), ("pattern".to_string(), half)].into();
        let bytes = to_safetensors(&tensors, &BTreeMap::new()).unwrap();
        let (trigger, target) = restore(&bytes, [1, 4, 4]).unwrap();
        assert_eq!(target, None);
        let black = Tensor::zeros((1, 1, 4, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(values(&trigger.apply(&black).unwrap()), vec![0.25; 16]);
    }
}
