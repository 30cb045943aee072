//! Pooling of codes: a larger code is a larger value.

use pulp::Arch;
use rayon::prelude::*;

use super::{Affine, Images};
use crate::padding::Padding;

/// Largest codes of the windows, `[B,h,w,C]`, which all reach into the image; padding never wins.
pub fn max_pool(
    images: Images<'_>,
    (oh, ow): (usize, usize),
    (kernel, stride, padding): (usize, usize, Padding),
) -> Vec<u8> {
    let Images { bytes, b, h, w, c } = images;
    // The coordinates of a window, without padding.
    let span = |o: usize, size: usize| {
        let (begin, before) = (o * stride, padding.around(size, kernel, stride).0);
        begin.saturating_sub(before)..(begin + kernel).saturating_sub(before).min(size)
    };
    let mut out = vec![0; b * oh * ow * c];
    let arch = Arch::new();
    out.par_chunks_mut(ow * c).enumerate().for_each(|(row, out)| {
        let (image, oy) = (row / oh, row % oh);
        arch.dispatch(|| {
            for (ox, out) in out.chunks_exact_mut(c).enumerate() {
                for y in span(oy, h) {
                    for x in span(ox, w) {
                        let pixel = &bytes[((image * h + y) * w + x) * c..][..c];
                        out.iter_mut().zip(pixel).for_each(|(out, &code)| *out = code.max(*out));
                    }
                }
            }
        });
    });
    out
}

/// The mean over the pixels of every image: `[B,C]`. Sums are of integers.
pub fn mean(images: Images<'_>, from: Affine) -> Vec<f32> {
    let Images { bytes, b, h, w, c } = images;
    let pixels = h * w;
    let mut out = vec![0.0; b * c];
    let share = (f64::from(from.scale()) / pixels as f64) as f32;
    let offset = f64::from(from.zero()) * pixels as f64;
    out.par_chunks_mut(c.max(1)).zip(bytes.par_chunks((pixels * c).max(1))).for_each(|(out, image)| {
        let mut sums = vec![0u32; c];
        for pixel in image.chunks_exact(c) {
            sums.iter_mut().zip(pixel).for_each(|(sum, &code)| *sum = sum.wrapping_add(u32::from(code)));
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = (f64::from(sum) - offset) as f32 * share);
    });
    out
}
