//! Transposition in registers.

use std::ops::Range;

use pulp::Simd;

use crate::cpu::simd::{get, put};

/// More lanes than any vector has.
const MAX_LANES: usize = 16;

/// `to[i][j] = from[j][columns.start + i]`, where rows of `from` have `n` floats and rows of `to` are `stride` apart.
/// Columns of `to` up to the next whole vector are filled with 0; `stride` leaves room for them.
#[inline(always)]
pub(crate) fn transpose<S: Simd>(
    simd: S,
    from: &[f32],
    n: usize,
    columns: Range<usize>,
    to: &mut [f32],
    stride: usize,
) {
    let lanes = S::F32_LANES;
    let rows = from.len() / n;
    for row in (0..rows).step_by(lanes) {
        for column in (0..columns.len()).step_by(lanes) {
            let mut tile = [simd.splat_f32s(0.0); MAX_LANES];
            for (i, vector) in tile.iter_mut().enumerate().take(lanes) {
                if row + i < rows {
                    *vector = get(simd, &from[(row + i) * n..][columns.start..columns.end], column);
                }
            }
            exchange::<S, 1>(simd, &mut tile);
            exchange::<S, 2>(simd, &mut tile);
            exchange::<S, 4>(simd, &mut tile);
            exchange::<S, 8>(simd, &mut tile);
            for (i, &vector) in tile.iter().enumerate().take(lanes) {
                if column + i < columns.len() {
                    put(simd, &mut to[(column + i) * stride + row..][..lanes], 0, vector);
                }
            }
        }
    }
}

/// One step of a butterfly: swaps the upper right and the lower left part of every square of `2 D` vectors and lanes. With
/// a constant `D`, each swap becomes two permutations under a mask.
#[inline(always)]
fn exchange<S: Simd, const D: usize>(simd: S, tile: &mut [S::f32s; MAX_LANES]) {
    if D >= S::F32_LANES {
        return;
    }
    let bits: [f32; MAX_LANES] = std::array::from_fn(|lane| if lane & D != 0 { 1.0 } else { 0.0 });
    let upper = simd.greater_than_f32s(get(simd, &bits, 0), simd.splat_f32s(0.5));
    for i in 0..MAX_LANES {
        if i & D == 0 && i < S::F32_LANES {
            let (a, b) = (tile[i], tile[i + D]);
            tile[i] = simd.select_f32s(upper, simd.rotate_right_f32s(b, D), a);
            tile[i + D] = simd.select_f32s(upper, b, simd.rotate_left_f32s(a, D));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use pulp::{Arch, Scalar, WithSimd};

    use super::*;

    struct Job<'a> {
        from: &'a [f32],
        n: usize,
        columns: Range<usize>,
        to: &'a mut [f32],
        stride: usize,
    }

    impl WithSimd for Job<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            transpose(simd, self.from, self.n, self.columns, self.to, self.stride);
        }
    }

    proptest! {
        #[test]
        fn transposes(rows in 1usize..40, n in 1usize..40, cut in 0usize..40, more in 0usize..40) {
            let columns = cut % n..n - more % (n - cut % n);
            let from: Vec<f32> = (1..=rows * n).map(|i| i as f32).collect();
            let stride = rows.next_multiple_of(MAX_LANES);
            for scalar in [false, true] {
                let mut to = vec![0.0; columns.len() * stride];
                let job = Job { from: &from, n, columns: columns.clone(), to: &mut to, stride };
                if scalar { job.with_simd(Scalar::new()) } else { Arch::new().dispatch(job) }
                for (i, to) in to.chunks_exact(stride).enumerate() {
                    for (j, &to) in to.iter().enumerate() {
                        prop_assert_eq!(to, if j < rows { from[j * n + columns.start + i] } else { 0.0 });
                    }
                }
            }
        }
    }
}
