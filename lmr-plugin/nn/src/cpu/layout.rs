//! The layout of activations between two layers: `f32[G,H,W,C,N]`, where the batch is `G` blocks of `N` images.
//!
//! The image index is innermost, so a SIMD vector holds the same pixel of 16 images. Whatever a kernel tap reads is then
//! an aligned run of whole vectors: no shifted loads, no padding to store or to multiply, no layout change between
//! layers, and every stride, dilation and image size is handled by the same code. All values are real: `G * N` is the
//! batch exactly, and the last vector of a row is masked.

use candle_core::{Result, Tensor, bail};

/// Dimensions of a blocked activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dims {
    /// Blocks of images.
    pub g: usize,
    /// Height.
    pub h: usize,
    /// Width.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// Images in a block.
    pub n: usize,
}

impl Dims {
    pub fn of(t: &Tensor) -> Result<Self> {
        match *t.dims() {
            [g, h, w, c, n] => Ok(Self { g, h, w, c, n }),
            ref other => bail!("expected a blocked activation of 5 dimensions, found {other:?}"),
        }
    }

    /// Those of an `f32[B,C,H,W]` image batch.
    pub fn of_batch(b: usize, c: usize, h: usize, w: usize) -> Self {
        let (g, n) = split_batch(b);
        Self { g, h, w, c, n }
    }

    pub fn shape(&self) -> [usize; 5] {
        [self.g, self.h, self.w, self.c, self.n]
    }

    /// Pixels of all blocks.
    pub fn positions(&self) -> usize {
        self.g * self.h * self.w
    }

    /// Floats that belong to one position: a row of `N` per channel.
    pub fn position_len(&self) -> usize {
        self.c * self.n
    }

    pub fn len(&self) -> usize {
        self.positions() * self.position_len()
    }

    /// Values per channel.
    pub fn count(&self) -> usize {
        self.positions() * self.n
    }

    /// How many consecutive positions make one unit of parallel work, and of summation: a function of the shape alone,
    /// so that results do not depend on the number of threads.
    pub fn chunk_positions(&self) -> usize {
        (self.positions() / 64).max(1)
    }
}

/// The most images in a block: beyond this, rows of neighbouring channels are so far apart that they evict each other
/// from the cache.
const MAX_BLOCK: usize = 128;

/// Splits a batch into equal blocks, `(G, N)`: of whole vectors where possible, and not much above [`MAX_BLOCK`] images.
fn split_batch(batch: usize) -> (usize, usize) {
    let cost = |n: usize| {
        let idle_lanes = n.next_multiple_of(16) as f64 / n as f64;
        if n > MAX_BLOCK { 1.5 * idle_lanes } else { idle_lanes }
    };
    let blocks = (1..=batch).filter(|g| batch.is_multiple_of(*g)).map(|g| (g, batch / g));
    blocks.min_by(|a, b| cost(a.1).total_cmp(&cost(b.1))).unwrap_or((1, batch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_split_into_whole_vectors_where_possible() {
        for (batch, expected) in [(1, (1, 1)), (128, (1, 128)), (100, (1, 100)), (512, (4, 128)), (1009, (1, 1009))] {
            assert_eq!(split_batch(batch), expected, "{batch}");
        }
    }
}
