//! Convolutions that filter every channel on its own.

use candle_core::{Result, bail};
use pulp::{Arch, WithSimd};
use rayon::prelude::*;

use super::super::super::ConvConfig;
use super::bands::{Window, bands};
use super::finish::Finish;
use super::{Images, LANES};

/// The integer weights of a depthwise convolution.
pub(crate) struct Depthwise {
    /// By vector of channels and tap.
    weights: Vec<[i32; LANES]>,
    /// Of every channel's weights.
    sums: Vec<[i32; LANES]>,
    shape: [usize; 4],
    config: ConvConfig,
}

impl Depthwise {
    /// Packs weights `[C,1,kh,kw]`; `None` if it is not one filter for every channel.
    pub fn new(weight: &[i8], shape: [usize; 4], config: ConvConfig) -> Option<Self> {
        let [channels, per_group, kh, kw] = shape;
        let taps = kh * kw;
        // Even sums of that many products fit 32 bits, and no filter is larger.
        if per_group != 1 || config.groups != channels || taps == 0 || taps > 1 << 14 || weight.len() != channels * taps
        {
            return None;
        }
        let vectors = channels.div_ceil(LANES);
        let mut weights = vec![[0; LANES]; vectors * taps];
        let mut sums = vec![[0; LANES]; vectors];
        for (channel, filter) in weight.chunks_exact(taps).enumerate() {
            let (vector, lane) = (channel / LANES, channel % LANES);
            for (tap, &w) in filter.iter().enumerate() {
                weights[vector * taps + tap][lane] = i32::from(w);
                sums[vector][lane] += i32::from(w);
            }
        }
        Some(Self { weights, sums, shape, config })
    }

    /// What becomes of images whose code of 0 is `zero`: `[B,H,W,C]`.
    pub fn run<F: Finish>(&self, images: Images<'_>, zero: u8, finish: &F) -> Result<Vec<F::Out>> {
        let [channels, _, kh, kw] = self.shape;
        if images.c != channels {
            bail!("integer convolution: expected {channels} channels, found {}", images.c);
        }
        let (oh, ow) = images.output(&self.shape, &self.config)?;
        let mut out = vec![F::Out::default(); images.b * oh * ow * channels];
        let starts: Vec<[i32; LANES]> = self.sums.iter().map(|sums| sums.map(|sum| -i32::from(zero) * sum)).collect();
        bands(images.b, (oh, ow), &mut out, channels).into_par_iter().for_each(|(band, out)| {
            let window = band.window(images, &self.shape, &self.config, zero, true);
            let taps = (0..kh * kw).map(|tap| {
                let (y, x) = (tap / kw * self.config.dilation, tap % kw * self.config.dilation);
                (y * window.width + x) * channels
            });
            let taps: Vec<usize> = taps.collect();
            let before = band.before;
            Arch::new().dispatch(Filter {
                layer: self,
                taps: &taps,
                window: &window,
                starts: &starts,
                before,
                finish,
                out,
            });
        });
        Ok(out)
    }
}

/// All pixels of a band.
struct Filter<'a, F: Finish> {
    layer: &'a Depthwise,
    /// How far from a window's beginning its taps are.
    taps: &'a [usize],
    window: &'a Window<'a>,
    starts: &'a [[i32; LANES]],
    before: usize,
    finish: &'a F,
    out: &'a mut [F::Out],
}

impl<F: Finish> WithSimd for Filter<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Self { layer, taps, window, starts, before, finish, out } = self;
        let channels = layer.shape[0];
        for (pixel, (&at, out)) in window.pixels.iter().zip(out.chunks_exact_mut(channels)).enumerate() {
            for (vector, out) in out.chunks_mut(LANES).enumerate() {
                let mut sums = starts[vector];
                let weights = &layer.weights[vector * taps.len()..][..taps.len()];
                for (&tap, weights) in taps.iter().zip(weights) {
                    let bytes = &window.bytes[at + tap + vector * LANES..][..out.len()];
                    match bytes.first_chunk::<LANES>() {
                        Some(bytes) => add(&mut sums, bytes, weights),
                        None => add(&mut sums, bytes, weights),
                    }
                }
                let at = (before + pixel) * channels + vector * LANES;
                finish.write(&sums, vector, at, out);
            }
        }
    }
}

#[inline(always)]
fn add(sums: &mut [i32; LANES], bytes: &[u8], weights: &[i32; LANES]) {
    for ((sum, &byte), &weight) in sums.iter_mut().zip(bytes).zip(weights) {
        *sum = sum.wrapping_add(i32::from(byte).wrapping_mul(weight));
    }
}
