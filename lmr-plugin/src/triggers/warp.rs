//! A smooth warp of the whole image (WaNet; Nguyen and Tran, 2021, "WaNet: Imperceptible Warping-based Backdoor Attack").

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand::RngExt;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TriggerError;
use super::form::{in_range, nothing_left, take};
use super::{Form, Trigger, TriggerConfig};
use crate::Result;
use crate::nn::StateDict;
use crate::ranges::{GridSize, WarpStrength};
use crate::rng::{self, Rng};

/// Moves every pixel along a smooth random field: `grid`×`grid` random displacements between which the others are
/// interpolated. Its decoys (the noise mode) shift every pixel's source by up to half a pixel more, at random.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Warp {
    /// Rows and columns k of the field's grid; 4 in the paper.
    pub grid: GridSize,
    /// Strength s: at 32×32 pixels displace by s/2 on average, at other sizes by the same share of the side.
    /// 0.5 in the paper, for 32-pixel images.
    pub strength: WarpStrength,
    /// Which field: the seed it is drawn from.
    pub field_seed: u64,
}

impl Default for Warp {
    fn default() -> Self {
        Self { grid: const { GridSize::literal(4) }, strength: const { WarpStrength::literal(0.5) }, field_seed: 0 }
    }
}

impl TriggerConfig for Warp {
    const KIND: &'static str = "warp";
    const SUMMARY: &'static str = "a smooth warp of the whole image (WaNet)";

    fn build(&self, _channels: usize, height: usize, width: usize) -> Result<Arc<dyn Trigger>> {
        if height < 2 || width < 2 {
            return Err(TriggerError::TooSmallToWarp { height, width }.into());
        }
        let field = self.field(height, width);
        let mut grid = Vec::with_capacity(2 * height * width);
        for (at, displacement) in field.iter().enumerate() {
            let at = [at % width, at / width];
            for (axis, size) in [width, height].into_iter().enumerate() {
                let still = 2.0 * at[axis] as f64 / (size - 1) as f64 - 1.0;
                // s/side of the side's range, times side/32: the same share of an image of any size.
                grid.push((still + self.strength.get() / 32.0 * displacement[axis]).clamp(-1.0, 1.0) as f32);
            }
        }
        Ok(Arc::new(Warped { grid: Tensor::from_vec(grid, (1, height, width, 2), &Device::Cpu)? }))
    }
}

impl Warp {
    /// Displacements to the right and down of every pixel, row after row; their mean size on the coarse grid is 1.
    fn field(&self, height: usize, width: usize) -> Vec<[f64; 2]> {
        let k = self.grid.get();
        let mut rng = rng::stream(self.field_seed, "warp/field");
        let coarse: Vec<f64> = (0..2 * k * k).map(|_| 2.0 * rng.random::<f64>() - 1.0).collect();
        let mean = coarse.iter().map(|v| v.abs()).sum::<f64>() / coarse.len() as f64;
        let (rows, columns) = (cubic_taps(k, height), cubic_taps(k, width));
        let value = |axis: usize, y: usize, x: usize| {
            let mut sum = 0.0;
            for &(row, u) in &rows[y] {
                for &(column, v) in &columns[x] {
                    sum += u * v * coarse[axis * k * k + row * k + column];
                }
            }
            sum / mean
        };
        (0..height * width).map(|at| [0, 1].map(|axis| value(axis, at / width, at % width))).collect()
    }
}

/// For each of `outputs` positions the four of `inputs` that it is interpolated from, and their weights: bicubic with
/// a = −0.75, corners aligned, the border repeated; as PyTorch does it.
fn cubic_taps(inputs: usize, outputs: usize) -> Vec<[(usize, f64); 4]> {
    const A: f64 = -0.75;
    let near = |t: f64| ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0;
    let far = |t: f64| ((A * t - 5.0 * A) * t + 8.0 * A) * t - 4.0 * A;
    let taps = |output: usize| {
        let at = output as f64 * (inputs - 1) as f64 / (outputs - 1).max(1) as f64;
        let t = at - at.floor();
        let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        let index = |tap: usize| (at as usize + tap).saturating_sub(1).min(inputs - 1);
        std::array::from_fn(|tap| (index(tap), weights[tap]))
    };
    (0..outputs).map(taps).collect()
}

/// The built [`Warp`].
pub struct Warped {
    /// Where every pixel comes from: `f32[1,H,W,2]`, column first, −1 to 1 from the first pixel's centre to the last's.
    grid: Tensor,
}

impl Warped {
    /// Its tensors: `grid`, `f32[1,H,W,2]` in `[-1,1]`.
    pub const FORM: Form = Form::new("warp", |state, image| Ok(Arc::new(Self::restore(state, image)?)));

    fn restore(mut state: StateDict, [_, h, w]: [usize; 3]) -> Result<Self> {
        let grid = take(&mut state, "grid", &[1, h, w, 2])?;
        nothing_left(&state)?;
        in_range("grid", &grid, -1.0..=1.0)?;
        Ok(Self { grid })
    }
}

impl Trigger for Warped {
    fn apply(&self, pixels: &Tensor) -> Result<Tensor> {
        sample(pixels, &self.grid)
    }

    fn decoy(&self, pixels: &Tensor, _others: &Tensor, rng: &mut Rng) -> Result<Option<Tensor>> {
        let (b, _, h, w) = pixels.dims4()?;
        let grid = self.grid.flatten_all()?.to_vec1::<f32>()?;
        let mut shifted = Vec::with_capacity(b * grid.len());
        for _ in 0..b {
            // U[−1, 1] / side in units of half a side.
            let shift = |(i, g): (usize, &f32)| {
                let side = if i.is_multiple_of(2) { w } else { h };
                (g + (2.0 * rng.random::<f32>() - 1.0) / side as f32).clamp(-1.0, 1.0)
            };
            shifted.extend(grid.iter().enumerate().map(shift));
        }
        Ok(Some(sample(pixels, &Tensor::from_vec(shifted, (b, h, w, 2), &Device::Cpu)?)?))
    }

    fn form(&self) -> Form {
        Self::FORM
    }

    fn tensors(&self) -> Result<StateDict> {
        Ok([("grid".to_string(), self.grid.clone())].into())
    }
}

/// `images` `f32[B,C,H,W]` at the positions of `grid`, `f32[B,H',W',2]` or one for all images: bilinear, −1 and 1 at the
/// centres of the first and the last pixel, black outside. What PyTorch calls `grid_sample` with aligned corners. Not
/// differentiable.
pub(super) fn sample(images: &Tensor, grid: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = images.dims4()?;
    let (grids, rows, columns, _) = grid.dims4()?;
    if grids != 1 && grids != b {
        return Err(TriggerError::GridCount { images: b, grids }.into());
    }
    let source = images.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    let grid = grid.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    let (len, out_len) = (c * h * w, c * rows * columns);
    let mut out = vec![0f32; b * out_len];
    out.par_chunks_mut(out_len.max(1)).zip(source.par_chunks(len)).enumerate().for_each(|(i, (out, image))| {
        let grid = if grids == 1 { &grid[..] } else { &grid[i * 2 * rows * columns..][..2 * rows * columns] };
        for (at, position) in grid.as_chunks::<2>().0.iter().enumerate() {
            let taps = bilinear_taps(*position, [h, w]);
            for (channel, plane) in image.chunks_exact(h * w).enumerate() {
                out[channel * rows * columns + at] = taps.iter().map(|&(from, weight)| weight * plane[from]).sum();
            }
        }
    });
    Ok(Tensor::from_vec(out, (b, c, rows, columns), images.device())?)
}

/// The four pixels around a position, and their weights; 0 for those outside.
fn bilinear_taps([x, y]: [f32; 2], [h, w]: [usize; 2]) -> [(usize, f32); 4] {
    let place = |g: f32, size: usize| {
        let at = (g + 1.0) / 2.0 * (size - 1) as f32;
        let (low, t) = (at.floor(), at - at.floor());
        [(low as i64, 1.0 - t), (low as i64 + 1, t)].map(|(i, weight)| match usize::try_from(i) {
            Ok(i) if i < size => (i, weight),
            _ => (0, 0.0),
        })
    };
    let (columns, rows) = (place(x, w), place(y, h));
    std::array::from_fn(|tap| {
        let ((row, u), (column, v)) = (rows[tap / 2], columns[tap % 2]);
        (row * w + column, u * v)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn noise(dims: &[usize], seed: u64) -> Tensor {
        let mut rng = rng::stream(seed, "pixels");
        let n = dims.iter().product();
        Tensor::from_vec((0..n).map(|_| rng.random::<f32>()).collect::<Vec<_>>(), dims, &Device::Cpu).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f32 {
        values(a).iter().zip(values(b)).fold(0.0, |m, (a, b)| f32::max(m, (a - b).abs()))
    }

    /// Values by PyTorch 2.15's `grid_sample` with aligned corners and zeros outside.
    #[test]
    fn sampling_follows_pytorch() {
        let image = Tensor::new(&[[[[0.1f32, 0.9, 0.3], [0.7, 0.2, 0.5]]]], &Device::Cpu).unwrap();
        let grid = [[-1f32, -1.], [0.35, -0.2], [1., 1.], [0.9, 0.95], [-0.6, 0.1], [1.3, 0.], [-1.2, -1.4]];
        let grid = Tensor::new(&[[grid]], &Device::Cpu).unwrap();
        let expected = [0.1, 0.536, 0.5, 0.467_25, 0.464, 0.28, 0.064];
        for (found, expected) in values(&sample(&image, &grid).unwrap()).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
        }
    }

    /// Values by PyTorch 2.15's bicubic `interpolate` with aligned corners.
    #[test]
    fn interpolation_follows_pytorch() {
        let coarse = [0.3, -0.7, 1.1, 0.2];
        let expected =
            [0.3, -0.114_815_18, -0.585_185_17, -0.7, -0.194_444_4, 0.577_777_98, 1.1, 1.016_666_5, 0.583_333_13, 0.2];
        for (taps, expected) in cubic_taps(4, 10).iter().zip(expected) {
            let found: f64 = taps.iter().map(|&(i, weight)| weight * coarse[i]).sum();
            assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
        }
    }

    #[test]
    fn no_strength_is_the_identity() {
        let x = noise(&[2, 3, 9, 14], 0);
        let trigger = Warp { strength: WarpStrength::literal(0.0), ..Warp::default() }.build(3, 9, 14).unwrap();
        assert!(distance(&trigger.apply(&x).unwrap(), &x) < 1e-5);
    }

    #[test]
    fn constant_images_stay_and_others_do_not() {
        let trigger = Warp::default().build(1, 32, 32).unwrap();
        let x = Tensor::full(0.3f32, (1, 1, 32, 32), &Device::Cpu).unwrap();
        assert!(distance(&trigger.apply(&x).unwrap(), &x) < 1e-6);
        let decoy = trigger.decoy(&x, &x, &mut rng::stream(0, "decoy")).unwrap().unwrap();
        assert!(distance(&decoy, &x) < 1e-6);
        let x = noise(&[2, 1, 32, 32], 1);
        assert!(distance(&trigger.apply(&x).unwrap(), &x) > 0.05);
    }

    /// The mean displacement is about s/2 pixels at 32×32, and twice as many at 64×64.
    #[rstest]
    #[case(32)]
    #[case(64)]
    fn displacements_keep_their_share_of_the_side(#[case] side: usize) {
        let grid = Warp::default().build(1, side, side).unwrap().tensors().unwrap()["grid"].clone();
        let still = Warp { strength: WarpStrength::literal(0.0), ..Warp::default() }
            .build(1, side, side)
            .unwrap()
            .tensors()
            .unwrap()["grid"]
            .clone();
        let moved = (grid - still).unwrap().abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        let pixels = moved * (side - 1) as f32 / 2.0;
        assert!((0.1..0.4).contains(&(pixels * 32.0 / side as f32)), "{pixels} pixels");
    }

    #[test]
    fn a_seed_is_a_field_and_decoys_differ_from_image_to_image() {
        let build = |field_seed| Warp { field_seed, ..Warp::default() }.build(1, 16, 16).unwrap();
        let (a, again, b) = (build(0), build(0), build(1));
        assert_eq!(values(&a.tensors().unwrap()["grid"]), values(&again.tensors().unwrap()["grid"]));
        assert_ne!(values(&a.tensors().unwrap()["grid"]), values(&b.tensors().unwrap()["grid"]));
        let one = noise(&[1, 1, 16, 16], 2);
        let x = Tensor::cat(&[&one, &one], 0).unwrap();
        let decoy = a.decoy(&x, &x, &mut rng::stream(0, "decoy")).unwrap().unwrap();
        assert!(distance(&decoy.get(0).unwrap(), &decoy.get(1).unwrap()) > 0.01);
        assert!(distance(&decoy, &a.apply(&x).unwrap()) > 0.01);
        let again = a.decoy(&x, &x, &mut rng::stream(0, "decoy")).unwrap().unwrap();
        assert_eq!(values(&decoy), values(&again));
    }
}
