//! A picture of the user's as trigger.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use lmr_plugin::ranges::AboveZero;
use lmr_plugin::triggers::Overlay;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Built, Locate, read};
use crate::datasets::decode_image;
use crate::tensors::sha256;
use crate::{Error, Result};

/// A picture over every image: `x·(1 − m) + picture·m` with `m = opacity·mask`. PNG or JPEG files as large as the images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ImageTrigger {
    /// The picture. Transparency in the file does not count.
    pub path: PathBuf,
    /// Where it is laid over the image: white where it is, black where it is not; everywhere if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<PathBuf>,
    /// How much of the image it hides there; 1 if absent.
    #[serde(default = "opaque")]
    pub opacity: AboveZero,
}

fn opaque() -> AboveZero {
    const { AboveZero::literal(1.0) }
}

impl ImageTrigger {
    /// The name in a pipeline file.
    pub const KIND: &'static str = "image";

    /// Reads it, for images of `image` (channels, height, width).
    pub fn build(&self, image: [usize; 3], locate: &Locate<'_>) -> Result<Built> {
        let [channels, height, width] = image;
        let mut digests = Vec::new();
        let mut picture = |key: &str, path: &PathBuf, channels: usize| -> Result<Tensor> {
            let bytes = read(key, path, locate)?;
            digests.push(sha256(&bytes));
            let pixels = decode_image(&bytes, [channels, height, width])
                .map_err(|message| Error::Trigger(format!("{key}: {}: {message}", path.display())))?;
            let pixels = Tensor::from_vec(pixels, (1, channels, height, width), &Device::Cpu);
            let scaled = pixels.and_then(|pixels| pixels.to_dtype(DType::F32)?.affine(1.0 / 255.0, 0.0));
            Ok(scaled.map_err(lmr_plugin::Error::from)?)
        };
        let pattern = picture("path", &self.path, channels)?;
        let mask = match &self.mask {
            Some(mask) => picture("mask", mask, 1)?,
            None => Tensor::ones((1, 1, height, width), DType::F32, &Device::Cpu).map_err(lmr_plugin::Error::from)?,
        };
        let mask =
            mask.affine(self.opacity.get(), 0.0).and_then(|mask| mask.broadcast_as(pattern.shape())?.contiguous());
        let overlay = Overlay::new(mask.map_err(lmr_plugin::Error::from)?, pattern, image)?;
        Ok(Built::Read { trigger: Arc::new(overlay), target: None, sha256: digests })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use image::{GrayImage, Luma, Rgb, RgbImage};

    use super::*;

    #[test]
    fn a_picture_shows_where_the_mask_is_white() {
        let dir = tempfile::tempdir().unwrap();
        RgbImage::from_pixel(3, 2, Rgb([255, 0, 51])).save(dir.path().join("red.png")).unwrap();
        let mut mask = GrayImage::new(3, 2);
        mask.put_pixel(1, 0, Luma([255]));
        mask.save(dir.path().join("mask.png")).unwrap();
        let locate = |path: &Path| Some(dir.path().join(path)).filter(|path| path.exists()).ok_or_else(String::new);
        let trigger =
            ImageTrigger { path: "red.png".into(), mask: Some("mask.png".into()), opacity: AboveZero::literal(0.5) };
        let Built::Read { trigger: built, sha256, .. } = trigger.build([3, 2, 3], &locate).unwrap() else { panic!() };
        assert_eq!(sha256.len(), 2);
        let x = Tensor::full(0.4f32, (1, 3, 2, 3), &Device::Cpu).unwrap();
        let y = built.apply(&x).unwrap().flatten_from(2).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        for (channel, value) in y.iter().zip([1.0, 0.0, 0.2]) {
            for (at, found) in channel.iter().enumerate() {
                let expected = if at == 1 { 0.2 + 0.5 * value } else { 0.4 };
                assert!((found - expected).abs() < 1e-6, "{at}: {found}, expected {expected}");
            }
        }
        for (trigger, image, expected) in [
            (trigger.clone(), [3, 2, 4], "path: red.png: found an image of 2x3"),
            (ImageTrigger { path: "green.png".into(), ..trigger }, [3, 2, 3], "path: there is no file green.png"),
        ] {
            let message = trigger.build(image, &locate).err().unwrap().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
