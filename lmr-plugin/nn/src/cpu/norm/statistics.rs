//! Sums per channel for batch norm.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::layout::Dims;
use crate::cpu::simd::get;

/// Sums and sums of squares per channel over positions that arrive one by one, of differences from the channel's first
/// value: squares of the values themselves would lose the variance of a channel that is far from 0.
pub(crate) struct Sums<S: Simd> {
    pivots: Vec<f32>,
    sums: Vec<(S::f32s, S::f32s)>,
    values: usize,
}

impl<S: Simd> Sums<S> {
    #[inline(always)]
    pub fn new(simd: S, channels: usize) -> Self {
        let zero = simd.splat_f32s(0.0);
        Self { pivots: vec![0.0; channels], sums: vec![(zero, zero); channels], values: 0 }
    }

    /// Adds the rows of `n` values of a position.
    #[inline(always)]
    pub fn add(&mut self, simd: S, position: &[f32], n: usize) {
        let first = self.values == 0;
        self.values += n;
        let zero = simd.splat_f32s(0.0);
        let rest = simd.mask_between_m32s(0, (n % S::F32_LANES) as u32).mask();
        for ((row, pivot), sums) in position.chunks_exact(n).zip(&mut self.pivots).zip(&mut self.sums) {
            if first {
                *pivot = row[0];
            }
            let pivot = simd.splat_f32s(*pivot);
            let (mut sum, mut squares) = *sums;
            for at in (0..n).step_by(S::F32_LANES) {
                let mut difference = simd.sub_f32s(get(simd, row, at), pivot);
                if at + S::F32_LANES > n {
                    difference = simd.select_f32s(rest, difference, zero);
                }
                sum = simd.add_f32s(sum, difference);
                squares = simd.mul_add_e_f32s(difference, difference, squares);
            }
            *sums = (sum, squares);
        }
    }

    /// The sums of all channels, then their sums of squares.
    #[inline(always)]
    pub fn totals(self, simd: S) -> Vec<f64> {
        let count = self.values as f64;
        let total = |(&pivot, &(sum, squares)): (&f32, &(S::f32s, S::f32s))| {
            let (pivot, sum) = (f64::from(pivot), f64::from(simd.reduce_sum_f32s(sum)));
            let squares = f64::from(simd.reduce_sum_f32s(squares));
            (sum + count * pivot, squares + 2.0 * pivot * sum + count * pivot * pivot)
        };
        let (sums, squares): (Vec<_>, Vec<_>) = self.pivots.iter().zip(&self.sums).map(total).unzip();
        sums.into_iter().chain(squares).collect()
    }
}

struct Chunk<'a> {
    x: &'a [f32],
    dims: Dims,
}

impl WithSimd for Chunk<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
        let mut sums = Sums::new(simd, self.dims.c);
        for position in self.x.chunks_exact(self.dims.position_len()) {
            sums.add(simd, position, self.dims.n);
        }
        sums.totals(simd)
    }
}

/// The sums and then the sums of squares per channel, for every chunk of positions.
pub(crate) fn sums(x: &[f32], dims: Dims) -> Vec<Vec<f64>> {
    let arch = Arch::new();
    x.par_chunks(dims.chunk_positions() * dims.position_len()).map(|x| arch.dispatch(Chunk { x, dims })).collect()
}
