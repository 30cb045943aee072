//! A faint full-size image mixed into every pixel (Blend; Chen et al., 2017).

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand::RngExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Overlay, Trigger, TriggerConfig};
use crate::ranges::AboveZero;
use crate::{Result, rng};

/// `(1 − α)·x + α·P` with one fixed image P of uniform noise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Blend {
    /// Share α of the pattern; 0.2 in the literature.
    pub alpha: AboveZero,
    /// Which noise image: the seed it is drawn from.
    pub pattern_seed: u64,
}

impl Default for Blend {
    fn default() -> Self {
        Self { alpha: const { AboveZero::literal(0.2) }, pattern_seed: 0 }
    }
}

impl TriggerConfig for Blend {
    const KIND: &'static str = "blend";
    const SUMMARY: &'static str = "a faint noise image mixed into every pixel (Blend)";

    fn build(&self, channels: usize, height: usize, width: usize) -> Result<Arc<dyn Trigger>> {
        let mut rng = rng::stream(self.pattern_seed, "blend/pattern");
        let pattern: Vec<f32> = (0..channels * height * width).map(|_| rng.random()).collect();
        let shape = (1, channels, height, width);
        let mask = Tensor::full(self.alpha.get() as f32, shape, &Device::Cpu)?;
        let pattern = Tensor::from_vec(pattern, shape, &Device::Cpu)?;
        Ok(Arc::new(Overlay::new(mask, pattern, [channels, height, width])?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn black_becomes_alpha_times_the_pattern_and_the_pattern_is_fixed() {
        let blend = Blend { alpha: AboveZero::literal(0.2), pattern_seed: 3 };
        let trigger = blend.build(3, 4, 4).unwrap();
        let black = Tensor::zeros((2, 3, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let y = trigger.apply(&black).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let pattern = trigger.tensors().unwrap()["pattern"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for image in y.chunks(48) {
            for (found, p) in image.iter().zip(&pattern) {
                assert!((found - 0.2 * p).abs() < 1e-7);
            }
        }
        let again = blend.build(3, 4, 4).unwrap().tensors().unwrap()["pattern"]
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert_eq!(pattern, again);
    }
}
