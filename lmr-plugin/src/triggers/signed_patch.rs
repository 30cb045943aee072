//! A patch that brightens some pixels and darkens others, in one corner or in all (label-consistent attacks; Turner et al.,
//! 2019, "Label-Consistent Backdoor Attacks").

use std::sync::Arc;

use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Addition, Trigger, TriggerConfig};
use crate::ranges::{AboveZero, Side};
use crate::{Error, Result};

/// `clip(x + a·S)` with the signs S `--+ / -+- / +-+` in a corner, enlarged to the size by nearest neighbour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SignedPatch {
    /// Side of the patch in pixels; 3 for 28- and 32-pixel images in the literature.
    pub size: Side,
    /// Amplitude a; 1 overwrites with black and white, 32/255 = 0.1255 is hard to see.
    pub amplitude: AboveZero,
    /// Whether all four corners carry it, the left ones mirrored, or the bottom-right one alone.
    pub all_corners: bool,
}

impl Default for SignedPatch {
    fn default() -> Self {
        Self { size: const { Side::literal(3) }, amplitude: const { AboveZero::literal(1.0) }, all_corners: false }
    }
}

const SIGNS: [[f32; 3]; 3] = [[-1., -1., 1.], [-1., 1., -1.], [1., -1., 1.]];

impl TriggerConfig for SignedPatch {
    const KIND: &'static str = "signed-patch";
    const SUMMARY: &'static str = "a patch that brightens and darkens, in one corner or in all (CL)";

    fn build(&self, channels: usize, height: usize, width: usize) -> Result<Arc<dyn Trigger>> {
        let k = self.size.get();
        let most = height.min(width) / if self.all_corners { 2 } else { 1 };
        if k > most {
            return Err(Error::setting("size", format!("1 to {most}"), k));
        }
        let mut delta = vec![0f32; channels * height * width];
        let (bottom, right) = (height - k, width - k);
        let corners: &[(usize, usize, bool)] = match self.all_corners {
            true => &[(0, 0, true), (0, right, false), (bottom, 0, true), (bottom, right, false)],
            false => &[(bottom, right, false)],
        };
        for &(top, left, mirrored) in corners {
            for (c, i, j) in (0..channels * k * k).map(|at| (at / (k * k), at / k % k, at % k)) {
                let column = if mirrored { k - 1 - j } else { j };
                let sign = SIGNS[3 * i / k][3 * column / k];
                delta[(c * height + top + i) * width + left + j] = sign * self.amplitude.get() as f32;
            }
        }
        let delta = Tensor::from_vec(delta, (1, channels, height, width), &Device::Cpu)?;
        Ok(Arc::new(Addition::new(delta, [channels, height, width])?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    fn nothing_but_the_corners_changes(#[values(false, true)] all_corners: bool) {
        let trigger = SignedPatch { all_corners, ..SignedPatch::default() }.build(1, 7, 8).unwrap();
        let x = Tensor::full(0.25f32, (2, 1, 7, 8), &Device::Cpu).unwrap();
        let y = trigger.apply(&x).unwrap().squeeze(1).unwrap().to_vec3::<f32>().unwrap();
        for image in y {
            for (i, j) in (0..56usize).map(|at| (at / 8, at % 8)) {
                let (row, column) = (if i < 3 { Some(i) } else { i.checked_sub(4) }, j.checked_sub(5));
                let column = column.or((j < 3).then(|| 2 - j));
                let marked = all_corners || (i >= 4 && j >= 5);
                let sign = row.zip(column).filter(|_| marked).map(|(r, c)| SIGNS[r][c]);
                let expected = sign.map_or(0.25, |sign| (0.25 + sign).clamp(0.0, 1.0));
                assert_eq!(image[i][j], expected, "{i}, {j}");
            }
        }
    }

    #[test]
    fn corners_that_overlap_are_refused() {
        let trigger = SignedPatch { size: Side::literal(4), all_corners: true, ..SignedPatch::default() };
        let message = trigger.build(1, 7, 9).err().unwrap().to_string();
        assert!(message.contains("expected 1 to 3, found 4"), "{message}");
    }
}
