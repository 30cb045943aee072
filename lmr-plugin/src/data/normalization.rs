//! From pixels in [0, 1] to what a model was trained on.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DataError;
use crate::Result;

/// Per-channel mean and standard deviation of a data set's pixels, for pixels in [0, 1].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Normalization {
    /// What is subtracted from each channel; one finite number a channel.
    pub mean: Vec<f32>,
    /// What each channel is then divided by; one finite number above 0 a channel.
    pub std: Vec<f32>,
}

impl Normalization {
    /// Checks both lists against the number of channels and every number for being usable.
    pub fn validate(&self, channels: usize) -> Result<()> {
        for (list, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != channels {
                return Err(DataError::NormalizationLength { list, found: values.len(), channels }.into());
            }
        }
        let wrong = |list, found, expected| Err(DataError::NormalizationValue { list, found, expected }.into());
        if let Some(mean) = self.mean.iter().find(|mean| !mean.is_finite()) {
            return wrong("mean", *mean, "a finite number");
        }
        // A subnormal divisor would overflow pixels to infinity.
        if let Some(std) = self.std.iter().find(|std| !(std.is_normal() && **std > 0.0)) {
            return wrong("std", *std, "a finite number above 0");
        }
        Ok(())
    }

    /// `(x - mean) / std` for every channel of `images` (`[B, C, H, W]`, pixels in [0, 1]), on the device they are on.
    ///
    /// Gradients flow through it, so a perturbation can live in pixel space.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// let normalization = lmr_plugin::data::Normalization { mean: vec![0.5, 0.0], std: vec![0.5, 2.0] };
    /// let x = Tensor::new(&[[[[1f32]], [[1.0]]]], &Device::Cpu)?;
    /// assert_eq!(normalization.apply(&x)?.flatten_all()?.to_vec1::<f32>()?, [1.0, 0.5]);
    /// # Ok::<(), lmr_plugin::Error>(())
    /// ```
    pub fn apply(&self, images: &Tensor) -> Result<Tensor> {
        let (_, channels, _, _) = images.dims4()?;
        self.validate(channels)?;
        let constant =
            |values: &[f32]| Tensor::from_slice(values, (1, channels, 1, 1), images.device())?.to_dtype(images.dtype());
        Ok(images.broadcast_sub(&constant(&self.mean)?)?.broadcast_div(&constant(&self.std)?)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::too_few(vec![0.5], vec![0.2, 0.2], "normalization.mean: found 1 values, expected 2")]
    #[case::too_many(vec![0.5, 0.5], vec![0.2; 3], "normalization.std: found 3 values, expected 2")]
    #[case::zero(vec![0.5, 0.5], vec![0.2, 0.0], "normalization.std: found 0, expected a finite number above 0")]
    #[case::negative(vec![0.5, 0.5], vec![-1.0, 0.2], "normalization.std: found -1")]
    #[case::nan(vec![f32::NAN, 0.5], vec![0.2, 0.2], "normalization.mean: found NaN")]
    #[case::infinite(vec![0.5, 0.5], vec![0.2, f32::INFINITY], "normalization.std: found inf")]
    fn impossible_values_are_refused(#[case] mean: Vec<f32>, #[case] std: Vec<f32>, #[case] message: &str) {
        let error = Normalization { mean, std }.validate(2).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn gradient_is_the_inverse_deviation() {
        let normalization = Normalization { mean: vec![0.1, 0.2], std: vec![0.5, 0.25] };
        let x = Var::zeros((2, 2, 3, 3), DType::F32, &Device::Cpu).unwrap();
        let grads = normalization.apply(&x).unwrap().sum_all().unwrap().backward().unwrap();
        let grad = grads.get(&x).unwrap().mean((0, 2, 3)).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(grad, [2.0, 4.0]);
    }
}
