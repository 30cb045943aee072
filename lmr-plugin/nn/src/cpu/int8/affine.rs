//! The integers of an activation, shifted so that they fit a byte.

use crate::grid::Grid;
use crate::grid::MAGIC;

/// A [`Grid`] of at most 256 values that contains 0, as numbers of the width that the kernels compute with. A code is the
/// integer plus `zero`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    pub(super) scale: f32,
    pub(super) inverse: f32,
    pub(super) low: f32,
    pub(super) high: f32,
    pub(super) zero: u8,
}

impl Affine {
    /// Whether the grid has the right integers for codes of a byte.
    pub fn of(grid: &Grid) -> Option<Self> {
        let fits = (-255.0..=0.0).contains(&grid.low) && (0.0..=255.0).contains(&grid.high);
        (fits && grid.high - grid.low <= 255.0).then(|| Self {
            scale: grid.scale as f32,
            inverse: (1.0 / grid.scale) as f32,
            low: grid.low as f32,
            high: grid.high as f32,
            zero: -grid.low as u8,
        })
    }

    /// The distance between neighbours.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The code of 0.
    pub fn zero(&self) -> u8 {
        self.zero
    }

    /// The code of the nearest value, exactly as [`Grid::round`] finds it; NaN becomes the lowest.
    #[inline(always)]
    pub fn code(&self, value: f32) -> u8 {
        (self.magic(value).to_bits() as u8).wrapping_add(self.zero)
    }

    /// What the code of a value stands for.
    #[inline(always)]
    pub fn round(&self, value: f32) -> f32 {
        (self.magic(value) - MAGIC as f32) * self.scale
    }

    /// A number with the nearest integer of the grid in its lowest bits.
    #[inline(always)]
    fn magic(&self, value: f32) -> f32 {
        let q = value * self.inverse;
        let q = if q > self.low { q } else { self.low };
        let q = if q < self.high { q } else { self.high };
        q + MAGIC as f32
    }

    /// What a code stands for.
    #[inline(always)]
    pub fn value(&self, code: u8) -> f32 {
        (i32::from(code) - i32::from(self.zero)) as f32 * self.scale
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_code_stands_for_the_rounded_value(
            values in prop::collection::vec(-9.0f32..9.0, 1..50),
            scale in 0.001f64..0.2,
            zero in 0u8..=255,
        ) {
            let grid = Grid { scale, low: -f64::from(zero), high: 255.0 - f64::from(zero) };
            let affine = Affine::of(&grid).unwrap();
            let rounded = grid.round(&Tensor::new(values.as_slice(), &Device::Cpu).unwrap()).unwrap();
            for (value, rounded) in values.iter().zip(rounded.to_vec1::<f32>().unwrap()) {
                prop_assert_eq!(affine.value(affine.code(*value)), rounded);
                prop_assert_eq!(affine.round(*value), rounded);
            }
            prop_assert_eq!(affine.code(0.0), zero);
        }
    }

    #[test]
    fn a_grid_beyond_a_byte_has_no_codes() {
        assert_eq!(Affine::of(&Grid { scale: 1.0, low: -128.0, high: 128.0 }), None);
        assert_eq!(Affine::of(&Grid { scale: 1.0, low: 1.0, high: 128.0 }), None);
    }
}
