//! What is done to a convolution's output while it is in the cache.

use pulp::Simd;

use crate::cpu::activation::Bounds;

/// What is done to the rows of a position as soon as they are complete.
#[derive(Clone, Copy)]
pub(crate) enum Finish<'a> {
    /// Nothing.
    Store,
    /// Sum and sum of squares per channel.
    Statistics,
    /// Adds a bias per channel and a residual, then cuts off.
    Activate { bias: Option<&'a [f32]>, residual: Option<&'a [f32]>, bounds: Bounds },
}

impl Finish<'_> {
    /// Room for the sums of `channels` channels, if they are wanted.
    #[inline(always)]
    pub fn statistics<S: Simd>(&self, simd: S, channels: usize) -> Vec<Statistics<S>> {
        match self {
            Finish::Statistics => vec![Statistics::new(simd); channels],
            _ => Vec::new(),
        }
    }

    /// Finishes one row of images: that of `channel`, which begins at `at` in the output. Its sums go to
    /// `statistics[index]`.
    #[inline(always)]
    pub fn row<S: Simd>(
        &self,
        simd: S,
        (row, at): (&mut [f32], usize),
        channel: usize,
        (statistics, index): (&mut [Statistics<S>], usize),
    ) {
        match *self {
            Finish::Store => {}
            Finish::Statistics => statistics[index].add(simd, row),
            Finish::Activate { bias, residual, bounds } => {
                let residual = residual.map(|r| &r[at..][..row.len()]);
                activate(simd, row, bias.map_or(0.0, |b| b[channel]), residual, bounds);
            }
        }
    }
}

/// Sums of one channel over a chunk, of differences from its first value: squares of the values themselves would lose the
/// variance of a channel that is far from 0.
#[derive(Clone, Copy)]
pub(crate) struct Statistics<S: Simd> {
    count: usize,
    pivot: f32,
    sum: S::f32s,
    squares: S::f32s,
}

impl<S: Simd> Statistics<S> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        Self { count: 0, pivot: 0.0, sum: simd.splat_f32s(0.0), squares: simd.splat_f32s(0.0) }
    }

    #[inline(always)]
    fn add(&mut self, simd: S, row: &[f32]) {
        if self.count == 0 {
            self.pivot = row[0];
        }
        self.count += row.len();
        let pivot = simd.splat_f32s(self.pivot);
        let mut add = |difference| {
            self.sum = simd.add_f32s(self.sum, difference);
            self.squares = simd.mul_add_e_f32s(difference, difference, self.squares);
        };
        let (vectors, tail) = S::as_simd_f32s(row);
        for &v in vectors {
            add(simd.sub_f32s(v, pivot));
        }
        if !tail.is_empty() {
            let rest = simd.mask_between_m32s(0, tail.len() as u32).mask();
            let difference = simd.sub_f32s(simd.partial_load_f32s(tail), pivot);
            add(simd.select_f32s(rest, difference, simd.splat_f32s(0.0)));
        }
    }

    /// The sum of all values and of their squares.
    #[inline(always)]
    pub fn totals(&self, simd: S) -> (f64, f64) {
        let (pivot, count) = (f64::from(self.pivot), self.count as f64);
        let (sum, squares) = (f64::from(simd.reduce_sum_f32s(self.sum)), f64::from(simd.reduce_sum_f32s(self.squares)));
        (sum + count * pivot, squares + 2.0 * pivot * sum + count * pivot * pivot)
    }
}

/// `activation(row + bias + residual)`, in place.
#[inline(always)]
pub(crate) fn activate<S: Simd>(simd: S, row: &mut [f32], bias: f32, residual: Option<&[f32]>, bounds: Bounds) {
    let bias = simd.splat_f32s(bias);
    let (vectors, rest) = S::as_mut_simd_f32s(row);
    let residual = residual.map(S::as_simd_f32s);
    for (i, v) in vectors.iter_mut().enumerate() {
        let mut sum = simd.add_f32s(*v, bias);
        if let Some((residual, _)) = residual {
            sum = simd.add_f32s(sum, residual[i]);
        }
        *v = bounds.cut(simd, sum);
    }
    if !rest.is_empty() {
        let mut sum = simd.add_f32s(simd.partial_load_f32s(rest), bias);
        if let Some((_, residual)) = residual {
            sum = simd.add_f32s(sum, simd.partial_load_f32s(residual));
        }
        simd.partial_store_f32s(rest, bounds.cut(simd, sum));
    }
}
