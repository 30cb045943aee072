//! Antialiased resampling of bytes with Pillow's numbers: a pass along the rows, rounded to bytes, then one along the
//! columns, both with weights in 22-bit fixed point.
//!
//! Own code, because what other resamplers give differs from Pillow by a level here and there.

use std::ops::Range;

use super::{Interpolation, Raster};

/// Bits after the point of a weight: eight are left for the pixel, two for the sum.
const BITS: u32 = 22;

/// The pixels in the rows and columns of a window of `image`, resized to height and width `to`; in HWC order.
pub(super) fn resample(
    interpolation: Interpolation,
    image: &Raster,
    to: [usize; 2],
    [rows, columns]: [Range<usize>; 2],
) -> Vec<u8> {
    let rows = taps(interpolation, image.height, to[0], rows);
    let columns = taps(interpolation, image.width, to[1], columns);
    // Rows above and below the window are never looked at.
    let first = rows.iter().map(|taps| taps.first).min().unwrap_or(0);
    let last = rows.iter().map(|taps| taps.first + taps.weights.len()).max().unwrap_or(0);
    let stride = image.width * image.channels;
    let looked_at = &image.pixels[first * stride..last * stride];
    let narrow = match image.channels {
        1 => along_rows::<1>(looked_at, stride, &columns),
        _ => along_rows::<3>(looked_at, stride, &columns),
    };
    along_columns(&narrow, columns.len() * image.channels, first, &rows)
}

/// The pixels that one new pixel is made of.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn along_rows<const C: usize>(pixels: &[u8], stride: usize, columns: &[Taps]) -> Vec<u8> {
    let mut out = Vec::with_capacity(pixels.len() / stride * columns.len() * C);
    for row in pixels.chunks_exact(stride) {
        let (row, _) = row.as_chunks::<C>();
        for taps in columns {
            let mut sums = [HALF; C];
            for (&weight, pixel) in taps.weights.iter().zip(&row[taps.first..]) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum = add(*sum, weight, value);
                }
            }
            out.extend(sums.map(round));
        }
    }
    out
}

/// `pixels` begin with row `first`.
fn along_columns(pixels: &[u8], stride: usize, first: usize, rows: &[Taps]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * stride);
    for taps in rows {
        let mut sums = vec![HALF; stride];
        for (&weight, row) in taps.weights.iter().zip(pixels[(taps.first - first) * stride..].chunks_exact(stride)) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum = add(*sum, weight, value);
            }
        }
        out.extend(sums.into_iter().map(round));
    }
    out
}

/// Where a sum begins, so that cutting its fraction off rounds.
const HALF: i32 = 1 << (BITS - 1);

/// Wrapping only because checks are slow: the weights of a pixel add up to 1, their magnitudes to less than 2.
fn add(sum: i32, weight: i32, value: u8) -> i32 {
    sum.wrapping_add(weight.wrapping_mul(i32::from(value)))
}

fn round(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// The taps of the pixels in `window`, where `from` pixels become `to`.
fn taps(interpolation: Interpolation, from: usize, to: usize, window: Range<usize>) -> Vec<Taps> {
    let copy = |first| Taps { first, weights: vec![1 << BITS] };
    if from == to {
        return window.map(copy).collect();
    }
    let scale = from as f64 / to as f64;
    let (kernel, support): (fn(f64) -> f64, f64) = match interpolation {
        Interpolation::Nearest => {
            return window.map(|at| copy((((at as f64 + 0.5) * scale) as usize).min(from - 1))).collect();
        }
        Interpolation::Bilinear => (triangle, 1.0),
        Interpolation::Bicubic => (cubic, 2.0),
        Interpolation::Lanczos => (lanczos, 3.0),
    };
    // When an image shrinks, the kernel widens: that is the antialiasing.
    let stretch = scale.max(1.0);
    let support = support * stretch;
    let tap = |at: usize| {
        let centre = (at as f64 + 0.5) * scale;
        // Casts of negative numbers end at 0, where the image does.
        let first = (centre - support + 0.5) as usize;
        let last = ((centre + support + 0.5) as usize).min(from);
        let weight = |source: usize| kernel((source as f64 - centre + 0.5) * (1.0 / stretch));
        let weights: Vec<f64> = (first..last).map(weight).collect();
        let share = 1.0 / weights.iter().sum::<f64>();
        let fixed = |weight: f64| (weight * share * f64::from(1 << BITS)).round() as i32;
        Taps { first, weights: weights.into_iter().map(fixed).collect() }
    };
    window.map(tap).collect()
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// Keys' cubic with a = -0.5.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) };
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: every source pixel weighed by its distance to the new one, summed in f64, rounded to a byte.
    fn line(kernel: fn(f64) -> f64, pixels: &[u8], to: usize) -> Vec<f64> {
        let scale = pixels.len() as f64 / to as f64;
        let value = |at: usize| {
            let centre = (at as f64 + 0.5) * scale;
            let weight = |source: usize| kernel((source as f64 + 0.5 - centre) / scale.max(1.0));
            let total: f64 = (0..pixels.len()).map(weight).sum();
            let sum: f64 = pixels.iter().enumerate().map(|(at, &pixel)| weight(at) * f64::from(pixel)).sum();
            (sum / total).clamp(0.0, 255.0)
        };
        (0..to).map(value).collect()
    }

    proptest! {
        #[test]
        fn a_line_equals_the_definition(
            pixels in prop::collection::vec(any::<u8>(), 1..60),
            to in 1usize..90,
            (interpolation, kernel) in prop::sample::select(vec![
                (Interpolation::Bilinear, triangle as fn(f64) -> f64),
                (Interpolation::Bicubic, cubic),
                (Interpolation::Lanczos, lanczos),
            ]),
        ) {
            let expected = if pixels.len() == to {
                pixels.iter().map(|&pixel| f64::from(pixel)).collect()
            } else {
                line(kernel, &pixels, to)
            };
            let len = pixels.len();
            let row = Raster { pixels: pixels.clone(), channels: 1, height: 1, width: len };
            let column = Raster { pixels, channels: 1, height: len, width: 1 };
            let across = resample(interpolation, &row, [1, to], [0..1, 0..to]);
            let down = resample(interpolation, &column, [to, 1], [0..to, 0..1]);
            prop_assert_eq!(&across, &down);
            for (found, expected) in across.iter().zip(expected) {
                prop_assert!((f64::from(*found) - expected).abs() < 0.501, "{found} {expected}");
            }
        }

        #[test]
        fn a_window_is_part_of_the_whole(
            from in prop::array::uniform2(1usize..40),
            to in prop::array::uniform2(1usize..40),
            cut in prop::array::uniform2((0usize..40, 1usize..40)),
            seed in any::<u8>(),
        ) {
            let [height, width] = from;
            let pixels = (0..height * width * 3).map(|at| (at * at) as u8 ^ seed).collect();
            let image = Raster { pixels, channels: 3, height, width };
            let [rows, columns] = [0, 1].map(|side| {
                let (start, len) = cut[side];
                let start = start.min(to[side] - 1);
                start..(start + len).min(to[side])
            });
            let whole = resample(Interpolation::Bicubic, &image, to, [0..to[0], 0..to[1]]);
            let window = resample(Interpolation::Bicubic, &image, to, [rows.clone(), columns.clone()]);
            let expected: Vec<u8> = rows
                .flat_map(|row| whole[(row * to[1] + columns.start) * 3..(row * to[1] + columns.end) * 3].to_vec())
                .collect();
            prop_assert_eq!(window, expected);
        }

        #[test]
        fn sums_cannot_wrap(from in 1usize..3000, to in 1usize..3000) {
            for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos] {
                for taps in taps(interpolation, from, to, 0..to) {
                    let magnitudes: i64 = taps.weights.iter().map(|weight| i64::from(weight.abs())).sum();
                    prop_assert!(magnitudes * 255 + i64::from(HALF) <= i64::from(i32::MAX), "{magnitudes}");
                }
            }
        }
    }
}
