//! What the kernels are given to do: bytes, weights, and which pixels they are for.

use candle_core::{Result, bail};

use super::{GROUP, LANES, Vector};

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
    pub first: usize,
    /// Output channels of all panels, at least 1.
    pub outputs: usize,
    /// How many elements of the whole output come before.
    pub before: usize,
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
    pub fn check(&self, vectors: usize) -> Result<()> {
        let window = self.runs.iter().map(|&(offset, groups)| offset + groups * GROUP).max().unwrap_or(0);
        let end = self.pixels.iter().max().map_or(0, |pixel| pixel + window);
        let groups: usize = self.runs.iter().map(|run| run.1).sum();
        if end > self.input.len() || self.weights.len() != groups * vectors || self.starts.len() != vectors {
            bail!("integer convolution: {end} bytes are needed, {} are there", self.input.len());
        }
        Ok(())
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
    pub channels: usize,
    /// How many elements of the whole output come before.
    pub before: usize,
}

impl Filter<'_> {
    /// Refuses windows that reach beyond the input: the kernels do not check.
    pub fn check(&self) -> Result<()> {
        let last = |of: &[usize]| of.iter().max().copied().unwrap_or(0);
        let end = last(self.pixels) + last(self.taps) + LANES;
        if end > self.bytes.len() || self.weights.len() != self.taps.len() {
            bail!("integer convolution: {end} bytes are needed, {} are there", self.bytes.len());
        }
        Ok(())
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
