//! Convolutions that filter every channel on its own.

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::bands::bands;
use super::finish::Finish;
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
                filter.run(kernel, vector, finish, &mut out[channel..]);
            }
            Ok::<(), candle_core::Error>(())
        })?;
        Ok(out)
    }
}

/// A vector of channels of all pixels of a band.
pub(super) struct Filter<'a> {
    /// From the first channel on.
    pub bytes: &'a [u8],
    /// Where the windows of the output's pixels begin.
    pub pixels: &'a [usize],
    /// How far from there its taps are.
    pub taps: &'a [usize],
    /// As many as there are taps.
    pub weights: &'a [[i32; LANES]],
    /// What sums begin with.
    pub start: &'a [i32; LANES],
    /// Of an output pixel.
    channels: usize,
    /// How many elements of the whole output come before.
    before: usize,
}

impl Filter<'_> {
    /// Refuses windows that reach beyond the input: the kernels do not check.
    fn check(&self) -> Result<()> {
        let last = |of: &[usize]| of.iter().max().copied().unwrap_or(0);
        let end = last(self.pixels) + last(self.taps) + LANES;
        if end > self.bytes.len() || self.weights.len() != self.taps.len() {
            bail!("integer convolution: {end} bytes are needed, {} are there", self.bytes.len());
        }
        Ok(())
    }

    fn run<F: Finish>(&self, kernel: Kernel, vector: usize, finish: &F, out: &mut [F::Out]) {
        match kernel {
            // SAFETY: this kernel is only chosen where its instructions are available, and the windows were checked.
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni => unsafe { super::vnni::filter(self, vector, finish, out) },
            _ => super::plain::filter(self, vector, finish, out),
        }
    }

    /// Gives `finish` the sums of the pixels from `first` on with the first element of the whole output that they are for, and
    /// their place in `out`, which begins at the vector's first channel.
    #[inline(always)]
    pub fn write<T>(
        &self,
        vector: usize,
        sums: &[[i32; LANES]],
        first: usize,
        out: &mut [T],
        finish: impl Fn(&[i32; LANES], usize, &mut [T]),
    ) {
        let len = LANES.min(self.channels - vector * LANES);
        for (i, sums) in sums.iter().enumerate() {
            let at = (first + i) * self.channels;
            finish(sums, self.before + at, &mut out[at..at + len]);
        }
    }
}
