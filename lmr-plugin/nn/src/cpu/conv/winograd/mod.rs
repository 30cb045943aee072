//! Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, 2016, "Fast Algorithms for Convolutional Neural Networks"):
//! 36 products where a direct sum needs 144, for 3x3 kernels that move by one.
//!
//! With the image index innermost no transform shuffles lanes: every value is a vector of images.

mod forward;
mod input;
mod tiling;
mod transform;
mod weight_gradient;

use pulp::{Arch, Simd, WithSimd};

use self::forward::Winograd;
use self::tiling::Tiling;
use self::transform::{IN, kernel as kernel_factors};
pub(super) use self::weight_gradient::weight_gradient;
use super::finish::Finish;
use super::geometry::Geometry;
use super::weights::{Packed, Panel};

/// Whether these kernels compute a convolution, and faster than the direct ones.
pub(super) fn suits(geometry: &Geometry) -> bool {
    let Geometry { x, y, kh, kw, config, before } = *geometry;
    let shape = (kh, kw, config.stride, config.dilation, config.groups) == (3, 3, 1, 1, 1) && before.0 <= 2;
    shape && x.c >= 8 && y.c >= 8 && y.h >= 3 && y.w >= 3
}

fn tiling(geometry: &Geometry) -> Tiling {
    // At stride 1 as much lies before the rows as before the columns.
    Tiling { from: geometry.x, to: geometry.y, padding: geometry.before.0 }
}

/// Fills `out` with a convolution; returns what [`Winograd::run`] does.
pub(super) fn convolve(
    x: &[f32],
    weight: &[f32],
    geometry: &Geometry,
    finish: Finish<'_>,
    out: &mut [f32],
) -> Vec<Vec<f64>> {
    let (c, o) = (geometry.x.c, geometry.y.c);
    let weights = &pack(o, c, |row, depth| &weight[(row * c + depth) * 9..][..9], false);
    Winograd { input: x, tiling: tiling(geometry), weights, finish }.run(out)
}

/// Fills `dx` with the gradient with respect to a convolution's input: the convolution of `dz` with the kernel turned by
/// half a circle.
pub(super) fn input_gradient(dz: &[f32], weight: &[f32], geometry: &Geometry, finish: Finish<'_>, dx: &mut [f32]) {
    let (c, o) = (geometry.x.c, geometry.y.c);
    let weights = &pack(c, o, |row, depth| &weight[(depth * c + row) * 9..][..9], true);
    let tiling = Tiling { from: geometry.y, to: geometry.x, padding: 2 - geometry.before.0 };
    Winograd { input: dz, tiling, weights, finish }.run(dx);
}

/// `G g Gᵀ` of all kernels, packed; `turned` by half a circle first.
fn pack<'a>(rows: usize, depth: usize, kernel: impl Fn(usize, usize) -> &'a [f32] + Sync, turned: bool) -> Packed {
    let arch = Arch::new();
    Packed::new(1, rows, depth, IN * IN, |panel, data| {
        arch.dispatch(Pack { panel, depth, kernel: &kernel, turned, data });
    })
}

/// Kernels that are transformed before they are written.
const RUN: usize = 16;

/// The most output channels of a panel.
const MAX_WIDTH: usize = 8;

/// One panel of packed weights.
struct Pack<'a, F> {
    panel: &'a Panel,
    depth: usize,
    kernel: &'a F,
    turned: bool,
    data: &'a mut [f32],
}

impl<'a, F: Fn(usize, usize) -> &'a [f32]> WithSimd for Pack<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { panel, depth, kernel, turned, data } = self;
        // The 36 destinations are so far apart that they evict each other from the cache: they are written in runs.
        let width = panel.width;
        let mut run = [[0.0; RUN * MAX_WIDTH]; IN * IN];
        for begin in (0..depth).step_by(RUN) {
            let count = RUN.min(depth - begin);
            for i in 0..count {
                for r in 0..panel.rows {
                    let taps = kernel(panel.row + r, begin + i);
                    let mut square = [[0.0; 3]; 3];
                    for (tap, &value) in taps.iter().enumerate() {
                        let tap = if turned { 8 - tap } else { tap };
                        square[tap / 3][tap % 3] = value;
                    }
                    for (run, factors) in run.chunks_exact_mut(IN).zip(kernel_factors(square)) {
                        for (run, factor) in run.iter_mut().zip(factors) {
                            run[i * width + r] = factor;
                        }
                    }
                }
            }
            for (tap, run) in run.iter().enumerate() {
                data[(tap * depth + begin) * width..][..count * width].copy_from_slice(&run[..count * width]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpu::activation::Bounds;
    use crate::cpu::conv::correlate::{dot, outer};
    use crate::cpu::conv::gather::Gather;
    use crate::cpu::layout::Dims;
    use crate::layers::ConvConfig;
    use crate::rng;
    use rand::RngExt;

    fn random(seed: u64, purpose: &str, len: usize) -> Vec<f32> {
        let mut rng = rng::stream(seed, purpose);
        (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
    }

    /// The largest difference in units of the largest value.
    fn distance(found: &[f32], expected: &[f32]) -> f32 {
        let most = expected.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
        found.iter().zip(expected).fold(0f32, |d, (a, b)| d.max((a - b).abs())) / most
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn agrees_with_the_direct_kernels(
            (g, h, w, n) in (1usize..3, 3usize..12, 3usize..12, prop_oneof![1usize..40, Just(130)]),
            (c, o) in (8usize..70, prop_oneof![8usize..40, 60usize..140]),
            padding in 0usize..3,
            seed in any::<u64>(),
        ) {
            let config = ConvConfig { padding: padding.into(), ..ConvConfig::default() };
            let x = Dims { g, h: h + 2, w: w + 2, c, n };
            let geometry = Geometry::new(x, [o, c, 3, 3], config).unwrap();
            prop_assert!(suits(&geometry));
            let weight = random(seed, "weight", geometry.weight_len());
            let (x, dy) = (random(seed, "x", geometry.x.len()), random(seed, "dy", geometry.y.len()));

            let (mut found, mut expected) = (vec![f32::NAN; dy.len()], vec![f32::NAN; dy.len()]);
            let sums = convolve(&x, &weight, &geometry, Finish::Statistics, &mut found);
            let (weights, axes) = (&Packed::forward(&weight, &geometry), geometry.forward_axes());
            let (from, to, kw) = (geometry.x, geometry.y, 3);
            let direct = Gather { input: &x, from, to, axes, weights, kw, finish: Finish::Statistics };
            let expected_sums = direct.run(&mut expected);
            prop_assert!(distance(&found, &expected) < 2e-5);
            for i in 0..2 * o {
                let [a, b] = [&sums, &expected_sums].map(|s| s.iter().map(|s| s[i]).sum::<f64>());
                prop_assert!((a - b).abs() < 1e-4 * (1.0 + expected_sums.iter().map(|s| s[i].abs()).sum::<f64>()), "{a} {b}");
            }

            let more = random(seed, "more", x.len());
            let (mut found, mut expected) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
            let finish = Finish::Activate { bias: None, residual: Some(&more), bounds: Bounds { low: 0.0, ..Bounds::NONE } };
            input_gradient(&dy, &weight, &geometry, finish, &mut found);
            let (weights, axes) = (&Packed::backward(&weight, &geometry), geometry.backward_axes());
            Gather { input: &dy, from: to, to: from, axes, weights, kw, finish }.run(&mut expected);
            prop_assert!(distance(&found, &expected) < 2e-5);

            let found = weight_gradient(&x, &dy, &geometry);
            prop_assert!(distance(&found, &dot::weight_gradient(&x, &dy, &geometry)) < 2e-5);
            prop_assert!(distance(&found, &outer::weight_gradient(&x, &dy, &geometry)) < 2e-5);
        }
    }
}
