//! Weights in the order in which the kernels read them.

use super::{LANES, Vector};
use crate::layers::ConvConfig;

/// Bytes of an activation that one instruction multiplies and sums.
pub(super) const GROUP: usize = 4;

/// Most vectors of output channels that are computed together.
const MOST_VECTORS: usize = 4;

/// Most products in a sum that 32 bits hold: of a byte and a signed byte, each at its largest.
const MAX_DEPTH: usize = (i32::MAX / (255 * 128)) as usize;

/// Taps that lie side by side in an image, channels innermost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Rows and columns from a window's first pixel.
    pub at: (usize, usize),
    /// Groups of bytes; what the last one has too many is multiplied with 0.
    pub groups: usize,
}

/// Consecutive vectors of output channels that are computed together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    /// The first of all vectors of output channels.
    pub first: usize,
    pub vectors: usize,
    /// Where its weights begin.
    pub weights: usize,
}

/// The integer weights of a dense convolution, or of a linear layer, which is one of a single tap.
pub struct Dense {
    /// By panel, run, group and vector: [`GROUP`] weights for each of [`LANES`] output channels.
    pub(super) weights: Vec<Vector>,
    pub(super) panels: Vec<Panel>,
    pub(super) runs: Vec<Run>,
    /// Of every output channel's weights, in whole vectors.
    pub(super) sums: Vec<[i32; LANES]>,
    pub(super) shape: [usize; 4],
    pub(super) config: ConvConfig,
}

impl Dense {
    /// Packs weights `[O,C,kh,kw]`; `None` if there are groups, or so many products in a sum that 32 bits do not hold it.
    pub fn new(weight: &[i8], shape: [usize; 4], config: ConvConfig) -> Option<Self> {
        let [o, c, kh, kw] = shape;
        let depth = c * kh * kw;
        if config.groups != 1 || depth > MAX_DEPTH || o * depth == 0 || weight.len() != o * depth {
            return None;
        }
        // Neighbouring taps are one run of bytes.
        let (starts, taps) = if config.dilation == 1 { (1, kw) } else { (kw, 1) };
        let groups = (taps * c).div_ceil(GROUP);
        let firsts: Vec<(usize, usize)> = (0..kh).flat_map(|y| (0..starts).map(move |x| (y, x))).collect();
        let run = |&(y, x): &(usize, usize)| Run { at: (y * config.dilation, x * config.dilation), groups };
        let runs = firsts.iter().map(run).collect();
        let vectors = o.div_ceil(LANES);
        let (mut panels, mut packed) = (Vec::new(), Vec::with_capacity(vectors * firsts.len() * groups));
        for first in (0..vectors).step_by(MOST_VECTORS) {
            let panel = Panel { first, vectors: MOST_VECTORS.min(vectors - first), weights: packed.len() };
            for (&(y, x), group) in firsts.iter().flat_map(|first| (0..groups).map(move |group| (first, group))) {
                for vector in first..first + panel.vectors {
                    let mut bytes = Vector([0; LANES * GROUP]);
                    for (i, byte) in bytes.0.iter_mut().enumerate() {
                        let (out, k) = (vector * LANES + i / GROUP, group * GROUP + i % GROUP);
                        if out < o && k < taps * c {
                            *byte = weight[((out * c + k % c) * kh + y) * kw + x + k / c];
                        }
                    }
                    packed.push(bytes);
                }
            }
            panels.push(panel);
        }
        let mut sums = vec![[0; LANES]; vectors];
        for (out, weights) in weight.chunks_exact(depth).enumerate() {
            sums[out / LANES][out % LANES] = weights.iter().map(|&w| i32::from(w)).sum();
        }
        Some(Self { weights: packed, panels, runs, sums, shape, config })
    }
}
