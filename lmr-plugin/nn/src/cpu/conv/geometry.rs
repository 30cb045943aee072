//! Which input positions an output position reads.

use candle_core::{Result, bail};

use crate::cpu::layout::Dims;
use crate::layers::ConvConfig;

/// One dimension of a kernel: for every output coordinate the input coordinates it reads and through which tap.
/// Taps that fall on padding do not appear, so nothing is ever multiplied by padding.
pub(crate) struct Axis {
    starts: Vec<usize>,
    taps: Vec<(usize, usize)>,
}

impl Axis {
    /// The taps `(input, tap)` of output coordinate `o`.
    pub fn taps(&self, o: usize) -> &[(usize, usize)] {
        &self.taps[self.starts[o]..self.starts[o + 1]]
    }

    fn new(len: usize, pairs: impl Fn(usize) -> Vec<(usize, usize)>) -> Self {
        let (mut starts, mut taps) = (vec![0], Vec::new());
        for o in 0..len {
            taps.extend(pairs(o));
            starts.push(taps.len());
        }
        Self { starts, taps }
    }
}

/// A convolution between two blocked activations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub x: Dims,
    pub y: Dims,
    pub kh: usize,
    pub kw: usize,
    pub config: ConvConfig,
}

impl Geometry {
    /// For an input and a weight `[O,C/groups,kh,kw]`.
    pub fn new(x: Dims, weight: [usize; 4], config: ConvConfig) -> Result<Self> {
        let [o, c_group, kh, kw] = weight;
        let ConvConfig { stride, padding, dilation, groups } = config;
        if x.c != c_group * groups {
            bail!("convolution: {} input channels do not fit a weight of {weight:?} in {groups} groups", x.c);
        }
        let out = |size: usize, taps: usize| (size + 2 * padding - dilation * (taps - 1) - 1) / stride + 1;
        let y = Dims { h: out(x.h, kh), w: out(x.w, kw), c: o, ..x };
        Ok(Self { x, y, kh, kw, config })
    }

    /// Input channels of one group.
    pub fn c_group(&self) -> usize {
        self.x.c / self.config.groups
    }

    /// Output channels of one group.
    pub fn o_group(&self) -> usize {
        self.y.c / self.config.groups
    }

    pub fn taps(&self) -> usize {
        self.kh * self.kw
    }

    pub fn weight_len(&self) -> usize {
        self.y.c * self.c_group() * self.taps()
    }

    /// The input coordinate that tap `k` of output coordinate `o` reads, unless it is padding.
    pub fn source(&self, o: usize, k: usize, size: usize) -> Option<usize> {
        let ConvConfig { stride, padding, dilation, .. } = self.config;
        (o * stride + k * dilation).checked_sub(padding).filter(|&i| i < size)
    }

    /// Rows and columns of the forward pass.
    pub fn forward_axes(&self) -> (Axis, Axis) {
        let axis = |out: usize, size: usize, kernel: usize| {
            Axis::new(out, |o| (0..kernel).filter_map(|k| Some((self.source(o, k, size)?, k))).collect())
        };
        (axis(self.y.h, self.x.h, self.kh), axis(self.y.w, self.x.w, self.kw))
    }

    /// Rows and columns of the gradient with respect to the input: for every input coordinate the outputs that read it.
    pub fn backward_axes(&self) -> (Axis, Axis) {
        let ConvConfig { stride, padding, dilation, .. } = self.config;
        let axis = |size: usize, out: usize, kernel: usize| {
            Axis::new(size, |i| {
                let reader = |k: usize| {
                    let shifted = (i + padding).checked_sub(k * dilation)?;
                    (shifted % stride == 0 && shifted / stride < out).then_some((shifted / stride, k))
                };
                (0..kernel).filter_map(reader).collect()
            })
        };
        (axis(self.x.h, self.y.h, self.kh), axis(self.x.w, self.y.w, self.kw))
    }
}
