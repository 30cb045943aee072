//! The contact sheet: what a trigger does, for people.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use candle_core::{Device, Tensor};
use image::imageops::{self, FilterType};
use image::{ImageFormat, Rgb, RgbImage};

use crate::observer::RunObserver;
use crate::triggers::restore;
use crate::{Error, Plan, Result};

/// One image each of at most so many classes.
const ROWS: usize = 8;
/// The side of a drawn image is a whole multiple of the image's own, at least so many pixels.
const SIDE: u32 = 96;
/// Space around every drawn image, in pixels.
const GAP: u32 = 4;
/// How much the difference is raised.
const GAIN: f32 = 10.0;

/// A PNG with a row for each of some test images of other classes than the target: the image, the image with the trigger, and
/// ten times the absolute difference.
pub fn draw(plan: &Plan, trigger: &Path, observer: &dyn RunObserver) -> Result<Vec<u8>> {
    let bytes = fs::read(trigger).map_err(Error::io("read", trigger))?;
    let shape = plan.dataset.descriptor().image.chw();
    let (trigger, _) = restore(&bytes, shape)?;
    let loaded = plan.dataset.load_watched(plan.data.test.split, observer);
    let name = || plan.data.name.clone();
    let images = loaded.map_err(|error| Error::Data { name: name(), message: error.to_string() })?.images;
    let target = plan.trigger.as_ref().map(|table| table.target);
    let mut chosen: Vec<usize> = Vec::new();
    for class in (0..images.classes() as u32).filter(|class| Some(*class) != target) {
        chosen.extend(images.labels().iter().position(|label| *label == class));
    }
    chosen.truncate(ROWS);
    let (clean, _) = images.batch(&chosen, &Device::Cpu)?;
    let triggered = trigger.apply(&clean)?;
    let model = |error: candle_core::Error| Error::Model(error.into());
    let difference = (&triggered - &clean).and_then(|t| t.abs()).and_then(|t| t.affine(f64::from(GAIN), 0.0));
    let columns = [&clean, &triggered, &difference.map_err(model)?];

    let [_, height, width] = shape.map(|side| side as u32);
    let zoom = SIDE.div_ceil(height.max(width)).max(1);
    let (tile_width, tile_height) = (width * zoom + GAP, height * zoom + GAP);
    let size = (tile_width * columns.len() as u32 + GAP, tile_height * chosen.len() as u32 + GAP);
    let mut sheet = RgbImage::from_pixel(size.0, size.1, Rgb([255; 3]));
    for (column, images) in columns.into_iter().enumerate() {
        for row in 0..chosen.len() {
            let tile = picture(&images.get(row).map_err(model)?).map_err(model)?;
            let tile = imageops::resize(&tile, width * zoom, height * zoom, FilterType::Nearest);
            let (x, y) = (GAP + column as u32 * tile_width, GAP + row as u32 * tile_height);
            imageops::replace(&mut sheet, &tile, x.into(), y.into());
        }
    }
    let mut png = Cursor::new(Vec::new());
    let written = sheet.write_to(&mut png, ImageFormat::Png);
    written.map_err(|error| Error::Internal(format!("writing a PNG: {error}")))?;
    Ok(png.into_inner())
}

/// Pixels `f32[C,H,W]`, clamped to `[0,1]`, as a picture; one channel becomes grey.
fn picture(pixels: &Tensor) -> candle_core::Result<RgbImage> {
    let (channels, height, width) = pixels.dims3()?;
    let values = pixels.clamp(0f32, 1f32)?.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?;
    Ok(RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let at = (y as usize * width + x as usize) * channels;
        Rgb(std::array::from_fn(|c| (255.0 * values[at + c.min(channels - 1)]).round() as u8))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_become_bytes() {
        let grey = Tensor::new(&[[[0f32, 0.5, 2.0]]], &Device::Cpu).unwrap();
        let picture = picture(&grey).unwrap();
        assert_eq!(picture.dimensions(), (3, 1));
        assert_eq!(picture.pixels().map(|p| p.0).collect::<Vec<_>>(), [[0; 3], [128; 3], [255; 3]]);
    }
}
