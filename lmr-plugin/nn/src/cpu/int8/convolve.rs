//! Dense convolutions: which bytes meet which weights.
//!
//! Images are channels-last, so the taps of a kernel's row are one run of bytes. Only where there is padding are images
//! copied, with the code of 0 around them; otherwise every window is read where it is.

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::bands::{Band, bands};
use super::finish::Finish;
use super::packing::{Dense, Panel};
use super::{GROUP, Images, Kernel, LANES, Vector};

/// A panel of weights and the pixels it is for.
pub(super) struct Job<'a> {
    pub input: &'a [u8],
    /// Where the windows of the output's pixels begin.
    pub pixels: &'a [usize],
    /// How far from there each run of taps is, and how many groups of bytes it has.
    pub runs: &'a [(usize, usize)],
    /// The panel's weights.
    pub weights: &'a [Vector],
    /// What its sums begin with.
    pub starts: &'a [[i32; LANES]],
    /// Its first vector of output channels.
    first: usize,
    /// Output channels of all panels, at least 1.
    pub outputs: usize,
    /// How many elements of the whole output come before.
    before: usize,
}

impl Job<'_> {
    /// Gives `finish` the sums of the pixels from `first` on with their vector, the first element of the whole output that they
    /// are for, and their place in `out`; as many as it has room for.
    #[inline(always)]
    pub fn write<T, const V: usize>(
        &self,
        sums: &[[[i32; LANES]; V]],
        first: usize,
        out: &mut [T],
        finish: impl Fn(&[i32; LANES], usize, usize, &mut [T]),
    ) {
        let channel = self.first * LANES;
        let mut at = self.element(first);
        for (sums, out) in sums.iter().zip(out.chunks_exact_mut(self.outputs)) {
            for (v, (sums, out)) in sums.iter().zip(out[channel..].chunks_mut(LANES)).enumerate() {
                finish(sums, self.first + v, at + v * LANES, out);
            }
            at += self.outputs;
        }
    }

    /// Which element of the whole output the panel gives first for a pixel.
    #[inline(always)]
    pub fn element(&self, pixel: usize) -> usize {
        self.before + pixel * self.outputs + self.first * LANES
    }

    /// Refuses windows that reach beyond the input, and weights that are not there: the kernels check neither.
    fn check(&self, vectors: usize) -> Result<()> {
        let window = self.runs.iter().map(|&(offset, groups)| offset + groups * GROUP).max().unwrap_or(0);
        let end = self.pixels.iter().max().map_or(0, |pixel| pixel + window);
        let groups: usize = self.runs.iter().map(|run| run.1).sum();
        if end > self.input.len() || self.weights.len() != groups * vectors || self.starts.len() != vectors {
            bail!("integer convolution: {end} bytes are needed, {} are there", self.input.len());
        }
        Ok(())
    }
}

impl Kernel {
    fn sweep<F: Finish>(self, vectors: usize, job: &Job<'_>, finish: &F, out: &mut [F::Out]) {
        match (self, vectors) {
            // SAFETY: this kernel is only chosen where its instructions are available, and the job was checked.
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, 1) => unsafe { super::vnni::sweep::<F, 1, 14>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, 2) => unsafe { super::vnni::sweep::<F, 2, 12>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, 3) => unsafe { super::vnni::sweep::<F, 3, 8>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, _) => unsafe { super::vnni::sweep::<F, 4, 6>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, 1) => unsafe { super::avx2::sweep::<F, 1>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, 2) => unsafe { super::avx2::sweep::<F, 2>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, 3) => unsafe { super::avx2::sweep::<F, 3>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, _) => unsafe { super::avx2::sweep::<F, 4>(job, finish, out) },
            (Self::Plain, 1) => super::plain::sweep::<F, 1>(job, finish, out),
            (Self::Plain, 2) => super::plain::sweep::<F, 2>(job, finish, out),
            (Self::Plain, 3) => super::plain::sweep::<F, 3>(job, finish, out),
            (Self::Plain, _) => super::plain::sweep::<F, 4>(job, finish, out),
        }
    }
}

impl Dense {
    /// What becomes of images, or of rows as images of one pixel, whose code of 0 is `zero`: `[B,H,W,O]`.
    pub fn run<F: Finish>(&self, kernel: Kernel, images: Images<'_>, zero: u8, finish: &F) -> Result<Vec<F::Out>> {
        let [outputs, channels, ..] = self.shape;
        if images.c != channels {
            bail!("integer convolution: expected {channels} channels, found {}", images.c);
        }
        let starts: Vec<[i32; LANES]> = self.sums.iter().map(|sums| sums.map(|sum| -i32::from(zero) * sum)).collect();
        let (oh, ow) = images.output(&self.shape, &self.config)?;
        let mut out = vec![F::Out::default(); images.b * oh * ow * outputs];
        let bands = bands(images.b, (oh, ow), &mut out, outputs);
        bands
            .into_par_iter()
            .try_for_each(|(band, out)| self.run_band(kernel, (images, zero), &starts, &band, finish, out))?;
        Ok(out)
    }

    fn run_band<F: Finish>(
        &self,
        kernel: Kernel,
        (images, zero): (Images<'_>, u8),
        starts: &[[i32; LANES]],
        band: &Band,
        finish: &F,
        out: &mut [F::Out],
    ) -> Result<()> {
        let [outputs, c, _, kw] = self.shape;
        let run_bytes = if self.config.dilation == 1 { kw * c } else { c };
        let window = band.window(images, &self.shape, &self.config, zero, run_bytes.is_multiple_of(GROUP));
        let runs: Vec<(usize, usize)> =
            self.runs.iter().map(|run| ((run.at.0 * window.width + run.at.1) * c, run.groups)).collect();
        let groups: usize = runs.iter().map(|run| run.1).sum();
        for &Panel { first, vectors, weights } in &self.panels {
            let job = Job {
                input: &window.bytes,
                pixels: &window.pixels,
                runs: &runs,
                weights: &self.weights[weights..][..groups * vectors],
                starts: &starts[first..][..vectors],
                first,
                outputs,
                before: band.before * outputs,
            };
            job.check(vectors)?;
            kernel.sweep(vectors, &job, finish, out);
        }
        Ok(())
    }
}
