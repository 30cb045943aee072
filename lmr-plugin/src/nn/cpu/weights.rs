//! Weights repacked for the gather kernel: panels of a few output channels, depth-major.

use pulp::{Arch, Simd, WithSimd};

use super::geometry::Geometry;

/// The output channels that the kernel computes at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    /// First output channel.
    pub row: usize,
    /// Output channels, at most `width`.
    pub rows: usize,
    /// 8 or 4: the floats per depth; the surplus is zero.
    pub width: usize,
    /// First input channel that the panel's group reads.
    pub input: usize,
    /// Where the panel begins in the packed data.
    pub start: usize,
}

/// Packed weights: in a panel, `[tap][input channel][width]`.
pub(super) struct Packed {
    pub data: Vec<f32>,
    pub panels: Vec<Panel>,
    /// Input channels per tap.
    pub depth: usize,
}

struct PanelWidth;

impl WithSimd for PanelWidth {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        if S::REGISTER_COUNT >= 32 { 8 } else { 4 }
    }
}

impl Packed {
    /// Weights for the forward pass: rows are output channels.
    pub fn forward(weight: &[f32], geometry: &Geometry) -> Self {
        let (o, c, taps) = (geometry.o_group(), geometry.c_group(), geometry.taps());
        Self::new(geometry.config.groups, o, c, taps, |row, i, tap| weight[(row * c + i) * taps + tap])
    }

    /// Weights for the gradient with respect to the input: rows are input channels.
    pub fn backward(weight: &[f32], geometry: &Geometry) -> Self {
        let (o, c, taps) = (geometry.o_group(), geometry.c_group(), geometry.taps());
        Self::new(geometry.config.groups, c, o, taps, |row, i, tap| {
            weight[((row / c * o + i) * c + row % c) * taps + tap]
        })
    }

    /// `rows` and `depth` are per group; `at(row, i, tap)` takes the row over all groups and `i` within the group.
    fn new(groups: usize, rows: usize, depth: usize, taps: usize, at: impl Fn(usize, usize, usize) -> f32) -> Self {
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
        let mut data = Vec::with_capacity(start);
        for panel in &panels {
            for tap in 0..taps {
                for i in 0..depth {
                    data.extend((0..panel.width).map(|r| if r < panel.rows { at(panel.row + r, i, tap) } else { 0.0 }));
                }
            }
        }
        Self { data, panels, depth }
    }
}
