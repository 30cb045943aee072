//! Which positions a tile reads and writes.

use super::transform::{IN, OUT};
use crate::cpu::layout::Dims;

/// Squares of 4 by 4 outputs, in reading order, block of images after block of images.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    pub from: Dims,
    pub to: Dims,
    /// Rows and columns of padding before the first input.
    pub padding: usize,
}

impl Tiling {
    pub fn tiles(&self) -> usize {
        self.to.g * self.to.h.div_ceil(OUT) * self.to.w.div_ceil(OUT)
    }

    /// Block of images, and the first output row and column.
    fn corner(&self, tile: usize) -> (usize, usize, usize) {
        let (rows, columns) = (self.to.h.div_ceil(OUT), self.to.w.div_ceil(OUT));
        (tile / (rows * columns), tile / columns % rows * OUT, tile % columns * OUT)
    }

    /// The input positions of a tile; padding is `None`.
    pub fn sources(&self, tile: usize) -> [[Option<usize>; IN]; IN] {
        let (g, y, x) = self.corner(tile);
        let Dims { h, w, .. } = self.from;
        let inside = |at: usize, size: usize| at.checked_sub(self.padding).filter(|&i| i < size);
        std::array::from_fn(|i| std::array::from_fn(|j| Some((g * h + inside(y + i, h)?) * w + inside(x + j, w)?)))
    }

    /// The output positions of a tile; what lies beyond the edge is `None`.
    pub fn targets(&self, tile: usize) -> [[Option<usize>; OUT]; OUT] {
        let (g, y, x) = self.corner(tile);
        let Dims { h, w, .. } = self.to;
        std::array::from_fn(|i| {
            std::array::from_fn(|j| (y + i < h && x + j < w).then_some((g * h + y + i) * w + x + j))
        })
    }
}
