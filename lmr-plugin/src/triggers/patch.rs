//! An opaque patch in the bottom-right corner (BadNets, Gu et al., 2017).

use std::sync::Arc;

use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Overlay, Trigger, TriggerConfig};
use crate::ranges::Side;
use crate::{Error, Result};

/// A `size`×`size` patch, flush with the bottom-right corner, the same in all channels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Patch {
    /// Side of the patch in pixels; 3 for 28- and 32-pixel images, 6 for 64, 32 for 224 in the literature.
    pub size: Side,
    /// What is painted.
    pub pattern: Pattern,
}

/// What a patch shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Pattern {
    /// The 3×3 design `001 / 010 / 101`, enlarged to the size by nearest neighbour; 0 is black, 1 is white.
    Checker,
    /// All white.
    White,
}

impl Default for Patch {
    fn default() -> Self {
        Self { size: const { Side::literal(3) }, pattern: Pattern::Checker }
    }
}

impl TriggerConfig for Patch {
    const KIND: &'static str = "patch";
    const SUMMARY: &'static str = "an opaque patch in the bottom-right corner (BadNets)";

    fn build(&self, channels: usize, height: usize, width: usize) -> Result<Arc<dyn Trigger>> {
        let k = self.size.get();
        if k > height.min(width) {
            return Err(Error::setting("size", format!("1 to {}", height.min(width)), k));
        }
        let cell = |i: usize, j: usize| match self.pattern {
            Pattern::Checker => [[0f32, 0., 1.], [0., 1., 0.], [1., 0., 1.]][3 * i / k][3 * j / k],
            Pattern::White => 1.0,
        };
        let mut mask = vec![0f32; channels * height * width];
        let mut pattern = mask.clone();
        for c in 0..channels {
            for i in 0..k {
                for j in 0..k {
                    let at = (c * height + height - k + i) * width + width - k + j;
                    mask[at] = 1.0;
                    pattern[at] = cell(i, j);
                }
            }
        }
        let shape = (1, channels, height, width);
        let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?;
        let pattern = Tensor::from_vec(pattern, shape, &Device::Cpu)?;
        Ok(Arc::new(Overlay::new(mask, pattern, [channels, height, width])?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(3, [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0])]
    fn the_checker_is_flush_and_nothing_else_changes(#[case] size: usize, #[case] design: [f32; 9]) {
        let trigger = Patch { size: Side::literal(size), pattern: Pattern::Checker }.build(2, 5, 6).unwrap();
        let x = Tensor::full(0.25f32, (2, 2, 5, 6), &Device::Cpu).unwrap();
        let y = trigger.apply(&x).unwrap();
        let corner = y.narrow(2, 2, 3).unwrap().narrow(3, 3, 3).unwrap();
        for image in corner.flatten(0, 1).unwrap().to_vec3::<f32>().unwrap() {
            assert_eq!(image.concat(), design);
        }
        let changed = y.ne(&x).unwrap().to_dtype(candle_core::DType::F32).unwrap();
        assert_eq!(changed.sum_all().unwrap().to_scalar::<f32>().unwrap(), 2.0 * 2.0 * 9.0);
    }

    #[test]
    fn a_patch_larger_than_the_image_is_refused() {
        let message = Patch { size: Side::literal(7), ..Default::default() }.build(1, 6, 9).err().unwrap().to_string();
        assert!(message.contains("expected 1 to 6, found 7"), "{message}");
    }
}
