//! How a batch is cut into tasks, and what a task reads.

use std::borrow::Cow;

use super::{Images, LANES};
use crate::layers::ConvConfig;

/// Output pixels that a task has if possible: enough to read a panel of weights once for many of them, few enough that their
/// windows stay in the second-level cache.
const PIXELS: usize = 256;

/// Some whole images, or some rows of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Band {
    image: usize,
    images: usize,
    row: usize,
    rows: usize,
    columns: usize,
    /// Pixels of the output before it.
    pub before: usize,
}

/// Cuts an output of `b` images of `h` by `w` pixels with `channels` elements into bands: by its shape alone.
pub(super) fn bands<T>(b: usize, (h, w): (usize, usize), out: &mut [T], channels: usize) -> Vec<(Band, &mut [T])> {
    let images = (PIXELS / (h * w).max(1)).max(1);
    let rows = if images > 1 || h * w <= 2 * PIXELS { h } else { (PIXELS / w.max(1)).clamp(1, h) };
    let (mut rest, mut bands) = (out, Vec::new());
    for image in (0..b).step_by(images) {
        for row in (0..h).step_by(rows.max(1)) {
            let (images, rows) = (images.min(b - image), rows.min(h - row));
            let (part, more) = std::mem::take(&mut rest).split_at_mut(images * rows * w * channels);
            rest = more;
            bands.push((Band { image, images, row, rows, columns: w, before: (image * h + row) * w }, part));
        }
    }
    bands
}

/// The part of the input that a band reads.
pub(super) struct Window<'a> {
    pub bytes: Cow<'a, [u8]>,
    /// Pixels in a row of it.
    pub width: usize,
    /// Where the windows of the band's pixels begin.
    pub pixels: Vec<usize>,
}

impl Band {
    /// The images' bytes where they are if nothing is read beyond them, which `whole` says of the channels; otherwise a copy
    /// with padding, and a vector of bytes more.
    pub fn window<'a>(
        &self,
        images: Images<'a>,
        &[_, _, kh, kw]: &[usize; 4],
        config: &ConvConfig,
        zero: u8,
        whole: bool,
    ) -> Window<'a> {
        let &ConvConfig { stride, padding, dilation, .. } = config;
        let Images { bytes, h, w, c, .. } = images;
        let around = |size: usize, taps: usize| padding.around(size, dilation * (taps - 1) + 1, stride);
        let ((above, below), (left, right)) = (around(h, kh), around(w, kw));
        let (bytes, first_row, height, width) = if [above, below, left, right] == [0; 4] && whole {
            let part = &bytes[self.image * h * w * c..(self.image + self.images) * h * w * c];
            (Cow::Borrowed(part), self.row * stride, h, w)
        } else {
            let (height, width) = ((self.rows - 1) * stride + (kh - 1) * dilation + 1, left + w + right);
            let mut copy = Vec::with_capacity(self.images * height * width * c + LANES);
            for image in 0..self.images {
                for y in 0..height {
                    let source = (self.row * stride + y).checked_sub(above).filter(|&y| y < h);
                    if let Some(source) = source {
                        let from = ((self.image + image) * h + source) * w * c;
                        copy.resize(copy.len() + left * c, zero);
                        copy.extend_from_slice(&bytes[from..from + w * c]);
                    }
                    copy.resize((image * height + y + 1) * width * c, zero);
                }
            }
            copy.resize(copy.len() + LANES, zero);
            (Cow::Owned(copy), 0, height, width)
        };
        let mut pixels = Vec::with_capacity(self.images * self.rows * self.columns);
        for image in 0..self.images {
            for row in 0..self.rows {
                let start = image * height + first_row + row * stride;
                pixels.extend((0..self.columns).map(|x| (start * width + x * stride) * c));
            }
        }
        Window { bytes, width, pixels }
    }
}
