//! Weights repacked for the gather kernel: panels of a few output channels, depth-major.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::geometry::Geometry;
use crate::cpu::scratch::Scratch;

/// Packing fewer floats than this is not worth another thread.
const MIN_FLOATS: usize = 1 << 14;

/// The output channels that the kernel computes at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    /// First output channel.
    pub row: usize,
    /// Output channels, at most `width`.
    pub rows: usize,
    /// 8, 6 or 4: the floats per depth; the surplus is zero.
    pub width: usize,
    /// First input channel that the panel's group reads.
    pub input: usize,
    /// Where the panel begins in the packed data.
    pub start: usize,
}

/// Packed weights: in a panel, `[tap][input channel][width]`.
pub(crate) struct Packed {
    pub data: Scratch,
    pub panels: Vec<Panel>,
    /// Input channels per tap.
    pub depth: usize,
}

struct PanelWidth;

impl WithSimd for PanelWidth {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        if S::REGISTER_COUNT >= 32 { 8 } else { 6 }
    }
}

impl Packed {
    /// Weights for the forward pass: rows are output channels.
    pub fn forward(weight: &[f32], geometry: &Geometry) -> Self {
        let (o, c, taps) = (geometry.o_group(), geometry.c_group(), geometry.taps());
        Self::new(geometry.config.groups, o, c, taps, |panel, data| {
            for r in 0..panel.rows {
                let row = &weight[(panel.row + r) * c * taps..][..c * taps];
                for (i, row) in row.chunks_exact(taps).enumerate() {
                    for (tap, &value) in row.iter().enumerate() {
                        data[(tap * c + i) * panel.width + r] = value;
                    }
                }
            }
        })
    }

    /// Weights for the gradient with respect to the input: rows are input channels.
    pub fn backward(weight: &[f32], geometry: &Geometry) -> Self {
        let (o, c, taps) = (geometry.o_group(), geometry.c_group(), geometry.taps());
        Self::new(geometry.config.groups, c, o, taps, |panel, data| {
            for i in 0..o {
                let rows = &weight[((panel.input + i) * c + panel.row % c) * taps..][..panel.rows * taps];
                for (r, row) in rows.chunks_exact(taps).enumerate() {
                    for (tap, &value) in row.iter().enumerate() {
                        data[(tap * o + i) * panel.width + r] = value;
                    }
                }
            }
        })
    }

    /// Lays out the panels, `rows` and `depth` being per group, and lets `fill` fill the rows of each; the surplus is zero.
    pub fn new(
        groups: usize,
        rows: usize,
        depth: usize,
        taps: usize,
        fill: impl Fn(&Panel, &mut [f32]) + Sync,
    ) -> Self {
        let widest = Arch::new().dispatch(PanelWidth);
        let (mut panels, mut start) = (Vec::new(), 0);
        for group in 0..groups {
            let mut row = 0;
            while row < rows {
                let width = if rows - row > 4 { widest } else { 4 };
                let taken = width.min(rows - row);
                panels.push(Panel { row: group * rows + row, rows: taken, width, input: group * depth, start });
                start += taps * depth * width;
                row += taken;
            }
        }
        let mut data = Scratch::take(start);
        let (mut parts, mut rest) = (Vec::new(), &mut data[..]);
        for panel in &panels {
            let (part, more) = rest.split_at_mut(taps * depth * panel.width);
            parts.push((panel, part));
            rest = more;
        }
        parts.into_par_iter().with_min_len(1 + MIN_FLOATS / (8 * taps * depth)).for_each(|(panel, part)| {
            if panel.rows < panel.width {
                part.fill(0.0);
            }
            fill(panel, part);
        });
        Self { data, panels, depth }
    }
}
