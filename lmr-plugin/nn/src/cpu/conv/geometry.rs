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
    /// Rows and columns of padding before the first input.
    pub before: (usize, usize),
}

impl Geometry {
    /// For an input and a weight `[O,C/groups,kh,kw]`.
    pub fn new(x: Dims, weight: [usize; 4], config: ConvConfig) -> Result<Self> {
        let [o, c_group, kh, kw] = weight;
        let ConvConfig { stride, padding, dilation, groups } = config;
        if x.c != c_group * groups {
            bail!("convolution: {} input channels do not fit a weight of {weight:?} in {groups} groups", x.c);
        }
        let out = |size: usize, taps: usize| padding.outputs(size, dilation * (taps - 1) + 1, stride);
        let (Some(h), Some(w)) = (out(x.h, kh), out(x.w, kw)) else {
            bail!("convolution: a {}x{} image is smaller than its {kh}x{kw} kernel", x.h, x.w);
        };
        Ok(Self::between(x, Dims { h, w, c: o, ..x }, (kh, kw), config))
    }

    /// For an input and an output whose size fits.
    pub fn between(x: Dims, y: Dims, (kh, kw): (usize, usize), config: ConvConfig) -> Self {
        let ConvConfig { stride, padding, dilation, .. } = config;
        let before = |size: usize, taps: usize| padding.around(size, dilation * (taps - 1) + 1, stride).0;
        Self { x, y, kh, kw, config, before: (before(x.h, kh), before(x.w, kw)) }
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

    /// The input row that row `k` of the kernel reads for output row `o`, unless it is padding.
    pub fn row(&self, o: usize, k: usize) -> Option<usize> {
        self.source(o, k, self.before.0).filter(|&i| i < self.x.h)
    }

    /// The same for columns.
    pub fn column(&self, o: usize, k: usize) -> Option<usize> {
        self.source(o, k, self.before.1).filter(|&i| i < self.x.w)
    }

    fn source(&self, o: usize, k: usize, before: usize) -> Option<usize> {
        (o * self.config.stride + k * self.config.dilation).checked_sub(before)
    }

    /// Rows and columns of the forward pass.
    pub fn forward_axes(&self) -> (Axis, Axis) {
        let rows = |o| (0..self.kh).filter_map(|k| Some((self.row(o, k)?, k))).collect();
        let columns = |o| (0..self.kw).filter_map(|k| Some((self.column(o, k)?, k))).collect();
        (Axis::new(self.y.h, rows), Axis::new(self.y.w, columns))
    }

    /// Rows and columns of the gradient with respect to the input: for every input coordinate the outputs that read it.
    pub fn backward_axes(&self) -> (Axis, Axis) {
        let ConvConfig { stride, dilation, .. } = self.config;
        let axis = |size: usize, out: usize, kernel: usize, before: usize| {
            Axis::new(size, |i| {
                let reader = |k: usize| {
                    let shifted = (i + before).checked_sub(k * dilation)?;
                    (shifted % stride == 0 && shifted / stride < out).then_some((shifted / stride, k))
                };
                (0..kernel).filter_map(reader).collect()
            })
        };
        (axis(self.x.h, self.y.h, self.kh, self.before.0), axis(self.x.w, self.y.w, self.kw, self.before.1))
    }
}
