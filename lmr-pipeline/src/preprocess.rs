//! From a photograph of any size to a model's input, as torchvision, timm and transformers evaluate.
//!
//! A photograph is resized, its centre cut out, and then normalized. The first two happen on bytes and give Pillow's
//! numbers to the bit; [`Normalization`] is the third.

mod resample;
#[cfg(test)]
mod tests;

use lmr_plugin::data::Normalization;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The largest side of an input; far above any classifier's, far below what exhausts memory.
pub(crate) const MAX_SIDE: usize = 4096;
/// The largest side before the crop, of which timm and transformers keep at least a tenth.
const MAX_RESIZED: usize = 10 * MAX_SIDE;

/// From an image of any size to the model's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Preprocessing {
    /// Height and width of the input, 1 to 4096.
    pub size: [usize; 2],
    /// What the image is resized to before the centre of `size` is cut out.
    pub resize: Resize,
    /// How it is resized.
    pub interpolation: Interpolation,
    /// Subtracted from each channel of pixels in [0, 1].
    pub mean: Vec<f64>,
    /// What each channel is then divided by, above 0.
    pub std: Vec<f64>,
}

/// The size before the crop, 1 to 40,960 pixels a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// The shorter side has so many pixels; the other follows, rounded down.
    ShortestEdge(usize),
    /// Height and width, whatever the proportions were.
    Exact([usize; 2]),
}

/// How pixels between pixels are made. All but `nearest` are antialiased, as Pillow's are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Interpolation {
    /// The nearest pixel.
    Nearest,
    /// Linear.
    #[default]
    Bilinear,
    /// Cubic, a = -0.5.
    Bicubic,
    /// Lanczos, 3 lobes.
    Lanczos,
}

impl Preprocessing {
    /// Refuses a size that no image is brought to, and numbers that cannot normalize.
    pub fn validate(&self) -> Result<(), String> {
        for side in self.size {
            check_side("size", side)?;
        }
        self.resize.validate()?;
        if self.mean.len() != self.std.len() || self.mean.is_empty() {
            return Err(format!("has {} means and {} standard deviations", self.mean.len(), self.std.len()));
        }
        self.normalization().validate(self.mean.len()).map_err(|error| error.to_string())
    }

    /// The last step, on pixels in [0, 1].
    pub fn normalization(&self) -> Normalization {
        let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect();
        Normalization { mean: narrow(&self.mean), std: narrow(&self.std) }
    }

    /// Resizes an image and cuts its centre out: writes `size` in CHW order to `out`.
    ///
    /// Only what the crop shows is computed, so the memory does not depend on the image's proportions. Where the resized
    /// image is smaller than the crop, the border is black.
    pub(crate) fn resize_and_crop(&self, image: &Raster, out: &mut [u8]) {
        let [height, width] = self.size;
        let to = self.resize.sides([image.height, image.width]);
        let [rows, columns] = [0, 1].map(|side| Window::centre(to[side], self.size[side]));
        let shown = resample::resample(self.interpolation, image, to, [rows.span(), columns.span()]);
        out.fill(0);
        for (row, pixels) in shown.chunks_exact(columns.len * image.channels).enumerate() {
            for (column, pixel) in pixels.chunks_exact(image.channels).enumerate() {
                for (channel, &value) in pixel.iter().enumerate() {
                    out[(channel * height + rows.border + row) * width + columns.border + column] = value;
                }
            }
        }
    }
}

/// An image as it was stored.
pub(crate) struct Raster {
    /// Bytes in HWC order.
    pub pixels: Vec<u8>,
    /// 1 or 3.
    pub channels: usize,
    /// Rows, at least 1.
    pub height: usize,
    /// Columns, at least 1.
    pub width: usize,
}

impl Resize {
    /// Refuses a side of no pixels, and one that is too long.
    pub(crate) fn validate(self) -> Result<(), String> {
        let sides = match self {
            Self::ShortestEdge(side) => [side; 2],
            Self::Exact(sides) => sides,
        };
        match sides.into_iter().find(|side| !(1..=MAX_RESIZED).contains(side)) {
            Some(side) => Err(format!("resize: expected 1 to {MAX_RESIZED} pixels, found {side}")),
            None => Ok(()),
        }
    }

    /// Height and width of what an image becomes.
    fn sides(self, [height, width]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Exact(sides) => sides,
            Self::ShortestEdge(edge) if height <= width => [edge, edge * width / height],
            Self::ShortestEdge(edge) => [edge * height / width, edge],
        }
    }
}

/// What a crop shows of one dimension of the resized image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    /// The first pixel that is shown.
    start: usize,
    /// How many are.
    len: usize,
    /// How many black ones come before.
    border: usize,
}

impl Window {
    /// torchvision's `CenterCrop`: the start is rounded to the nearest number, halves to the even one.
    fn centre(side: usize, crop: usize) -> Self {
        match side.checked_sub(crop) {
            Some(rest) => Self { start: rest / 2 + usize::from(rest % 4 == 3), len: crop, border: 0 },
            None => Self { start: 0, len: side, border: (crop - side) / 2 },
        }
    }

    fn span(self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }
}

/// Refuses an input of no pixels or of too many.
pub(crate) fn check_side(key: &str, side: usize) -> Result<(), String> {
    if !(1..=MAX_SIDE).contains(&side) {
        return Err(format!("{key}: expected 1 to {MAX_SIDE} pixels, found {side}"));
    }
    Ok(())
}
