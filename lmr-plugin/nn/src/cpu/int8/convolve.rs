//! Dense convolutions: which bytes meet which weights.
//!
//! Images are channels-last, so the taps of a kernel's row are one run of bytes. Only where there is padding are images
//! copied, with the code of 0 around them; otherwise every window is read where it is.

use candle_core::{Result, bail};
use rayon::prelude::*;

use super::bands::{Band, bands};
use super::finish::Finish;
use super::packing::{Dense, Panel};
use super::work::Job;
use super::{GROUP, Images, Instructions, Kernel, LANES};

impl Kernel {
    fn sweep<F: Finish>(self, vectors: usize, job: &Job<'_>, finish: &F, out: &mut [F::Out]) {
        match (self.0, vectors) {
            // SAFETY: this kernel is only chosen where its instructions are available, and the job was checked.
            #[cfg(target_arch = "x86_64")]
            (Instructions::Vnni, 1) => unsafe { super::vnni::sweep::<F, 1, 14>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Instructions::Vnni, 2) => unsafe { super::vnni::sweep::<F, 2, 12>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Instructions::Vnni, 3) => unsafe { super::vnni::sweep::<F, 3, 8>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Instructions::Vnni, _) => unsafe { super::vnni::sweep::<F, 4, 6>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2, 1) => unsafe { super::avx2::sweep::<F, 1>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2, 2) => unsafe { super::avx2::sweep::<F, 2>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2, 3) => unsafe { super::avx2::sweep::<F, 3>(job, finish, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2, _) => unsafe { super::avx2::sweep::<F, 4>(job, finish, out) },
            (Instructions::Plain, 1) => super::plain::sweep::<F, 1>(job, finish, out),
            (Instructions::Plain, 2) => super::plain::sweep::<F, 2>(job, finish, out),
            (Instructions::Plain, 3) => super::plain::sweep::<F, 3>(job, finish, out),
            (Instructions::Plain, _) => super::plain::sweep::<F, 4>(job, finish, out),
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
