//! Convolutions that filter every channel on its own.

use candle_core::{Result, bail};
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::Instructions;
use super::bands::bands;
use super::finish::Finish;
use super::work::Filter;
use super::{Images, Kernel, LANES};
use crate::layers::ConvConfig;

/// The integer weights of a depthwise convolution.
pub struct Depthwise {
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
    pub fn run<F: Finish>(&self, kernel: Kernel, images: Images<'_>, zero: u8, finish: &F) -> Result<Vec<F::Out>> {
        let [channels, _, kh, kw] = self.shape;
        if images.c != channels {
            bail!("integer convolution: expected {channels} channels, found {}", images.c);
        }
        let (oh, ow) = images.output(&self.shape, &self.config)?;
        let mut out = vec![F::Out::default(); images.b * oh * ow * channels];
        let starts: Vec<[i32; LANES]> = self.sums.iter().map(|sums| sums.map(|sum| -i32::from(zero) * sum)).collect();
        bands(images.b, (oh, ow), &mut out, channels).into_par_iter().try_for_each(|(band, out)| {
            let whole = channels.is_multiple_of(LANES);
            let window = band.window(images, &self.shape, &self.config, zero, whole);
            let tap = |tap: usize| {
                let (y, x) = (tap / kw * self.config.dilation, tap % kw * self.config.dilation);
                (y * window.width + x) * channels
            };
            let taps: Vec<usize> = (0..kh * kw).map(tap).collect();
            for (vector, (weights, start)) in self.weights.chunks_exact(taps.len()).zip(&starts).enumerate() {
                let channel = vector * LANES;
                let before = band.before * channels + channel;
                let bytes = &window.bytes[channel..];
                let filter = Filter { bytes, pixels: &window.pixels, taps: &taps, weights, start, channels, before };
                filter.check()?;
                run(&filter, kernel, vector, finish, &mut out[channel..]);
            }
            Ok::<(), candle_core::Error>(())
        })?;
        Ok(out)
    }
}

/// Filters a vector of channels.
fn run<F: Finish>(filter: &Filter<'_>, kernel: Kernel, vector: usize, finish: &F, out: &mut [F::Out]) {
    match kernel.0 {
        // SAFETY: this kernel is only chosen where its instructions are available, and the windows were checked.
        #[cfg(target_arch = "x86_64")]
        Instructions::Vnni => unsafe { super::vnni::filter(filter, vector, finish, out) },
        _ => super::plain::filter(filter, vector, finish, out),
    }
}
