//! Random crop, rotation, horizontal flip and cutout, as CIFAR training does it.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rand::RngExt;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::ranges::{Degrees, Pixels};
use crate::rng::Rng;

/// How a training batch is varied: a random crop of the zero-padded image, then a rotation about its centre, then a horizontal
/// flip half of the time, then a black square somewhere (cutout; DeVries and Taylor 2017).
///
/// The order and the padding follow the customary `RandomCrop(32, padding=4)`, `RandomHorizontalFlip()`, `ToTensor()`,
/// `Normalize(..)`: the border is black in *pixel* space, so after normalization it is not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Augment {
    /// Black pixels added on every side before an image of the original size is cut out; 0 turns cropping off.
    /// Default 4, customary for 32x32 images.
    pub crop_padding: Pixels,
    /// Whether to mirror left and right with probability one half. Default true; wrong for digits and letters.
    pub flip: bool,
    /// Largest rotation to either side in degrees; the nearest pixel is taken, and corners turn black. Default 0,
    /// which is off; WaNet, LIRA and Dynamic were published with 10.
    pub rotation: Degrees,
    /// Side in pixels of a square that is blacked out. Its centre falls on every pixel equally often, so that part of it
    /// may lie outside the image. Default 0, which is off; 8 is customary for CIFAR-10.
    pub cutout: Pixels,
}

impl Default for Augment {
    fn default() -> Self {
        Self::USUAL
    }
}

/// What chance decided for one image.
#[derive(Debug, Clone)]
pub(super) struct Draw {
    /// How far the content moves down and to the right, in pixels.
    shift: [isize; 2],
    flip: bool,
    /// Sine and cosine of the rotation, if there is one.
    turn: Option<[f32; 2]>,
    /// Rows and columns that are blacked out.
    hole: [Range<usize>; 2],
}

impl Augment {
    /// Crops and flips, as is customary for 32x32 images.
    pub const USUAL: Self = Self {
        crop_padding: Pixels::literal(4),
        flip: true,
        rotation: Degrees::literal(0),
        cutout: Pixels::literal(0),
    };

    /// Images as they are.
    pub const NONE: Self = Self { crop_padding: Pixels::literal(0), flip: false, ..Self::USUAL };

    /// Varies pixels `f32[B,C,H,W]` that are no longer bytes, each image at random; not differentiable.
    pub fn apply(&self, pixels: &Tensor, rng: &mut Rng) -> Result<Tensor> {
        let (b, c, h, w) = pixels.dims4()?;
        let draws: Vec<Draw> = (0..b).map(|_| self.draw([h, w], rng)).collect();
        let source = pixels.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let mut varied = vec![0f32; source.len()];
        let planes = varied.par_chunks_exact_mut(h * w).zip(source.par_chunks_exact(h * w)).enumerate();
        planes.for_each(|(i, (out, plane))| draws[i / c].render(plane, out, [h, w], |v| v));
        Ok(Tensor::from_vec(varied, (b, c, h, w), pixels.device())?)
    }

    /// Takes three numbers from `rng` for crop and flip, whether they are on or not, another if rotation is on, and two more if
    /// cutout is on.
    pub(super) fn draw(&self, size: [usize; 2], rng: &mut Rng) -> Draw {
        let padding = self.crop_padding.get() as u32;
        let mut shift = || padding as isize - rng.random_range(0..=2 * padding) as isize;
        let shift = [shift(), shift()];
        let flip = rng.random::<bool>() && self.flip;
        let turn = (self.rotation.get() > 0).then(|| {
            let degrees = self.rotation.get() as f32 * (2.0 * rng.random::<f32>() - 1.0);
            let (sine, cosine) = degrees.to_radians().sin_cos();
            [sine, cosine]
        });
        let cutout = self.cutout.get();
        let mut hole = |len: usize| {
            if cutout == 0 || len == 0 {
                return 0..0;
            }
            let first = rng.random_range(0..len as u64) as isize - (cutout / 2) as isize;
            first.max(0) as usize..len.min(first.saturating_add_unsigned(cutout).max(0) as usize)
        };
        Draw { shift, flip, turn, hole: size.map(&mut hole) }
    }
}

impl Draw {
    /// Writes one channel, each pixel through `convert`; what the shift uncovers stays as `out` is, which the caller hands over zeroed.
    pub(super) fn render<T: Copy>(
        &self,
        plane: &[T],
        out: &mut [f32],
        [height, width]: [usize; 2],
        convert: impl Fn(T) -> f32,
    ) {
        if let Some(turn) = self.turn {
            self.turned(plane, out, [height, width], turn, convert);
        } else {
            self.straight(plane, out, [height, width], convert);
        }
        let [rows, columns] = &self.hole;
        for row in rows.clone() {
            out[row * width..][columns.clone()].fill(0.0);
        }
    }

    /// Crop, rotation and flip, pixel by pixel: where each comes from.
    fn turned<T: Copy>(
        &self,
        plane: &[T],
        out: &mut [f32],
        [height, width]: [usize; 2],
        [sine, cosine]: [f32; 2],
        convert: impl Fn(T) -> f32,
    ) {
        let centre = |len: usize| (len as f32 - 1.0) / 2.0;
        let within = |at: isize, len: usize| usize::try_from(at).ok().filter(|at| *at < len);
        for (row, line) in out.chunks_exact_mut(width.max(1)).enumerate() {
            for (column, out) in line.iter_mut().enumerate() {
                let column = if self.flip { width - 1 - column } else { column };
                let (dy, dx) = (row as f32 - centre(height), column as f32 - centre(width));
                // Both in the cropped frame, whose outside is black.
                let y = (cosine * dy - sine * dx + centre(height)).round() as isize;
                let x = (sine * dy + cosine * dx + centre(width)).round() as isize;
                if within(y, height).is_none() || within(x, width).is_none() {
                    continue;
                }
                let source = within(y - self.shift[0], height).zip(within(x - self.shift[1], width));
                if let Some((y, x)) = source {
                    *out = convert(plane[y * width + x]);
                }
            }
        }
    }

    /// Crop and flip, row by row.
    fn straight<T: Copy>(&self, plane: &[T], out: &mut [f32], [height, width]: [usize; 2], convert: impl Fn(T) -> f32) {
        let [down, right] = self.shift;
        let rows = overlap(height, down);
        let columns = overlap(width, right);
        if columns.is_empty() {
            return;
        }
        for row in rows {
            let source = &plane[row * width..][columns.clone()];
            let target = &mut out[row.wrapping_add_signed(down) * width..][..width];
            // The crop comes first and the flip second: mirroring happens in the cut-out frame.
            let first = columns.start.wrapping_add_signed(right);
            if self.flip {
                for (out, &value) in target[width - first - source.len()..width - first].iter_mut().rev().zip(source) {
                    *out = convert(value);
                }
            } else {
                for (out, &value) in target[first..][..source.len()].iter_mut().zip(source) {
                    *out = convert(value);
                }
            }
        }
    }
}

/// The source positions of `0..len` that are still inside after a move by `shift`.
fn overlap(len: usize, shift: isize) -> Range<usize> {
    let lost = shift.unsigned_abs().min(len);
    if shift < 0 { lost..len } else { 0..len - lost }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::data::Images;
    use crate::data::images::unit;
    use crate::rng::stream;

    const PLANE: [u8; 6] = [51, 102, 153, 204, 255, 51];

    /// The definition, pixel by pixel: pad, cut out, flip, black out.
    fn reference(draw: &Draw, plane: &[u8], [height, width]: [usize; 2]) -> Vec<f32> {
        let pixel = |row: isize, column: isize| {
            let inside = (0..height as isize).contains(&row) && (0..width as isize).contains(&column);
            if inside { unit(plane[row as usize * width + column as usize]) } else { 0.0 }
        };
        let mut out = Vec::new();
        for row in 0..height {
            for column in 0..width {
                let lost = draw.hole[0].contains(&row) && draw.hole[1].contains(&column);
                let column = if draw.flip { width - 1 - column } else { column };
                let kept = pixel(row as isize - draw.shift[0], column as isize - draw.shift[1]);
                out.push(if lost { 0.0 } else { kept });
            }
        }
        out
    }

    #[rstest]
    fn every_draw_equals_the_definition(
        #[values(-3, -2, -1, 0, 1, 2, 9)] down: isize,
        #[values(-9, -3, -1, 0, 1, 2, 3)] right: isize,
        #[values(false, true)] flip: bool,
        #[values([0..0, 0..0], [1..2, 0..2], [0..2, 1..3])] hole: [Range<usize>; 2],
    ) {
        // Without rotation, and with one by nothing.
        for turn in [None, Some([0.0, 1.0])] {
            let draw = Draw { shift: [down, right], flip, turn, hole: hole.clone() };
            let mut found = vec![0.0; 6];
            draw.render(&PLANE, &mut found, [2, 3], unit);
            assert_eq!(found, reference(&draw, &PLANE, [2, 3]));
        }
    }

    #[test]
    fn a_quarter_turn_comes_before_the_flip() {
        let plane: Vec<u8> = (0..9).collect();
        let turned = |flip| {
            let draw = Draw { shift: [0, 0], flip, turn: Some([1.0, 0.0]), hole: [0..0, 0..0] };
            let mut found = vec![0.0; 9];
            draw.render(&plane, &mut found, [3, 3], f32::from);
            found
        };
        assert_eq!(turned(false), [6., 3., 0., 7., 4., 1., 8., 5., 2.]);
        assert_eq!(turned(true), [0., 3., 6., 1., 4., 7., 2., 5., 8.]);
    }

    #[test]
    fn rotations_go_both_ways_and_not_further_than_asked() {
        let augment = Augment { rotation: Degrees::literal(10), ..Augment::NONE };
        let mut rng = stream(0, "augment");
        let sines: Vec<f32> = (0..500).map(|_| augment.draw([8, 8], &mut rng).turn.unwrap()[0]).collect();
        let limit = 10f32.to_radians().sin() + 1e-6;
        assert!(sines.iter().all(|sine| sine.abs() <= limit));
        assert!(sines.iter().any(|s| *s > 0.9 * limit) && sines.iter().any(|s| *s < -0.9 * limit));
    }

    #[rstest]
    #[case(1, 12)]
    #[case(2, 20)]
    #[case(3, 20)]
    #[case(65_535, 1)]
    fn holes_are_centred_on_every_pixel(#[case] cutout: usize, #[case] kinds: usize) {
        let augment = Augment { cutout: Pixels::literal(cutout), ..Augment::NONE };
        let mut rng = stream(0, "augment");
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..2000 {
            let [rows, columns] = augment.draw([3, 4], &mut rng).hole;
            assert!(rows.end <= 3 && columns.end <= 4 && !rows.is_empty() && !columns.is_empty());
            *counts.entry((rows.start, rows.end, columns.start, columns.end)).or_insert(0) += 1;
        }
        assert!(counts.len() <= kinds, "{counts:?}");
        let covered: usize =
            counts.keys().map(|(top, bottom, left, right)| (bottom - top) * (right - left)).max().unwrap();
        assert_eq!(covered, cutout.min(3) * cutout.min(4));
    }

    #[test]
    fn cutout_leaves_the_other_draws_alone_for_the_first_image() {
        let plain = Augment::default().draw([32, 32], &mut stream(0, "augment"));
        let holed =
            Augment { cutout: Pixels::literal(8), ..Augment::default() }.draw([32, 32], &mut stream(0, "augment"));
        assert_eq!((plain.shift, plain.flip), (holed.shift, holed.flip));
    }

    #[test]
    fn off_is_the_plain_batch() {
        let images = Images::new((0..48).collect(), vec![0, 1, 0, 1], [3, 2, 2], 2).unwrap();
        let off = Augment::NONE;
        let (plain, _) = images.batch(&[3, 1, 0], &Device::Cpu).unwrap();
        let (same, _) = images.augmented_batch(&[3, 1, 0], &off, &mut stream(0, "a"), &Device::Cpu).unwrap();
        assert_eq!(
            plain.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            same.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        );
    }

    #[test]
    fn floats_vary_as_bytes_do() {
        let images = Images::new((0..96).collect(), vec![0, 1], [3, 4, 4], 2).unwrap();
        let augment = Augment { crop_padding: Pixels::literal(2), cutout: Pixels::literal(2), ..Augment::default() };
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (expected, _) = images.augmented_batch(&[0, 1], &augment, &mut stream(1, "a"), &Device::Cpu).unwrap();
        let (plain, _) = images.batch(&[0, 1], &Device::Cpu).unwrap();
        assert_eq!(values(augment.apply(&plain, &mut stream(1, "a")).unwrap()), values(expected));
    }

    #[test]
    fn draws_cover_all_shifts_and_both_sides_evenly() {
        let augment = Augment { crop_padding: Pixels::literal(1), ..Augment::default() };
        let mut rng = stream(0, "augment");
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..18_000 {
            let draw = augment.draw([4, 4], &mut rng);
            *counts.entry((draw.shift, draw.flip)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 18);
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn batch_does_not_depend_on_threads() {
        let images = Images::new((0..=255).cycle().take(64 * 48).collect(), vec![0; 64], [3, 4, 4], 1).unwrap();
        let order: Vec<usize> = (0..64).collect();
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (x, _) = pool
                .install(|| {
                    images.augmented_batch(&order, &Augment::default(), &mut stream(3, "augment"), &Device::Cpu)
                })
                .unwrap();
            x.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(run(1), run(4));
    }

    #[test]
    fn settings_reject_unknown_keys() {
        let parsed: Augment = serde_json::from_str(r#"{"crop-padding": 2}"#).unwrap();
        assert_eq!(parsed, Augment { crop_padding: Pixels::literal(2), ..Augment::default() });
        assert!(serde_json::from_str::<Augment>(r#"{"padding": 2}"#).is_err());
    }
}
