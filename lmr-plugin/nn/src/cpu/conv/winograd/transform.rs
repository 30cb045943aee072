//! The one-dimensional transforms of F(4, 3), and how two dimensions are made of them.
//!
//! With the points 0, ±√2, ±1/√2 and infinity the result is about twice as far from the exact one as that of a direct
//! sum, in the mean over random values; with the usual points 0, ±1, ±2 it is four to six times as far.

use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

use pulp::Simd;

/// Outputs of a tile along one dimension.
pub(super) const OUT: usize = 4;

/// Inputs, and products, of a tile along one dimension.
pub(super) const IN: usize = 6;

/// `Bᵀ d`: what six inputs contribute to the products.
#[inline(always)]
pub(super) fn input<S: Simd>(simd: S, [d0, d1, d2, d3, d4, d5]: [S::f32s; IN]) -> [S::f32s; IN] {
    let (half, two, five_halves, a, b) = (
        simd.splat_f32s(-0.5),
        simd.splat_f32s(-2.0),
        simd.splat_f32s(-2.5),
        simd.splat_f32s(SQRT_2),
        simd.splat_f32s(FRAC_1_SQRT_2),
    );
    let (minus_a, minus_b) = (simd.splat_f32s(-SQRT_2), simd.splat_f32s(-FRAC_1_SQRT_2));
    let (even_a, odd_a) = (simd.mul_add_e_f32s(d2, half, d4), simd.mul_add_e_f32s(d1, half, d3));
    let (even_b, odd_b) = (simd.mul_add_e_f32s(d2, two, d4), simd.mul_add_e_f32s(d1, two, d3));
    [
        simd.mul_add_e_f32s(d2, five_halves, simd.add_f32s(d0, d4)),
        simd.mul_add_e_f32s(odd_a, a, even_a),
        simd.mul_add_e_f32s(odd_a, minus_a, even_a),
        simd.mul_add_e_f32s(odd_b, b, even_b),
        simd.mul_add_e_f32s(odd_b, minus_b, even_b),
        simd.mul_add_e_f32s(d3, five_halves, simd.add_f32s(d1, d5)),
    ]
}

/// `Aᵀ m`: four outputs from six products.
#[inline(always)]
pub(super) fn output<S: Simd>(simd: S, [m0, m1, m2, m3, m4, m5]: [S::f32s; IN]) -> [S::f32s; OUT] {
    let (half, two, a, b) =
        (simd.splat_f32s(0.5), simd.splat_f32s(2.0), simd.splat_f32s(SQRT_2), simd.splat_f32s(FRAC_1_SQRT_2));
    let (a3, b3) = (simd.splat_f32s(2.0 * SQRT_2), simd.splat_f32s(0.5 * FRAC_1_SQRT_2));
    let (even_a, odd_a) = (simd.add_f32s(m1, m2), simd.sub_f32s(m1, m2));
    let (even_b, odd_b) = (simd.add_f32s(m3, m4), simd.sub_f32s(m3, m4));
    [
        simd.add_f32s(m0, simd.add_f32s(even_a, even_b)),
        simd.mul_add_e_f32s(odd_a, a, simd.mul_f32s(odd_b, b)),
        simd.mul_add_e_f32s(even_a, two, simd.mul_f32s(even_b, half)),
        simd.mul_add_e_f32s(odd_a, a3, simd.mul_add_e_f32s(odd_b, b3, m5)),
    ]
}

/// `A y`: what the gradients of four outputs contribute to those of the products.
#[inline(always)]
pub(super) fn gradient<S: Simd>(simd: S, [y0, y1, y2, y3]: [S::f32s; OUT]) -> [S::f32s; IN] {
    let (half, two, a, b) =
        (simd.splat_f32s(0.5), simd.splat_f32s(2.0), simd.splat_f32s(SQRT_2), simd.splat_f32s(FRAC_1_SQRT_2));
    let (minus_a, minus_b) = (simd.splat_f32s(-SQRT_2), simd.splat_f32s(-FRAC_1_SQRT_2));
    let (even_a, odd_a) = (simd.mul_add_e_f32s(y2, two, y0), simd.mul_add_e_f32s(y3, two, y1));
    let (even_b, odd_b) = (simd.mul_add_e_f32s(y2, half, y0), simd.mul_add_e_f32s(y3, half, y1));
    [
        y0,
        simd.mul_add_e_f32s(odd_a, a, even_a),
        simd.mul_add_e_f32s(odd_a, minus_a, even_a),
        simd.mul_add_e_f32s(odd_b, b, even_b),
        simd.mul_add_e_f32s(odd_b, minus_b, even_b),
        y3,
    ]
}

/// `G g`: three weights as factors of the products.
#[inline(always)]
fn weight([g0, g1, g2]: [f32; 3]) -> [f32; IN] {
    let (even_a, odd_a) = ((g0 + 2.0 * g2) / 6.0, SQRT_2 / 6.0 * g1);
    let (even_b, odd_b) = ((g0 + 0.5 * g2) * (-2.0 / 3.0), -2.0 / 3.0 * FRAC_1_SQRT_2 * g1);
    [g0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, g2]
}

/// `Gᵀ s`: the gradient of three weights from those of the products' factors.
#[inline(always)]
pub(super) fn weight_gradient<S: Simd>(simd: S, [s0, s1, s2, s3, s4, s5]: [S::f32s; IN]) -> [S::f32s; 3] {
    let (sixth, third) = (simd.splat_f32s(1.0 / 6.0), simd.splat_f32s(1.0 / 3.0));
    let two_thirds = simd.splat_f32s(-2.0 / 3.0);
    let (odd_a, odd_b) = (simd.splat_f32s(SQRT_2 / 6.0), simd.splat_f32s(-2.0 / 3.0 * FRAC_1_SQRT_2));
    let (sum_a, sum_b) = (simd.add_f32s(s1, s2), simd.add_f32s(s3, s4));
    [
        simd.mul_add_e_f32s(sum_a, sixth, simd.mul_add_e_f32s(sum_b, two_thirds, s0)),
        simd.mul_add_e_f32s(simd.sub_f32s(s1, s2), odd_a, simd.mul_f32s(simd.sub_f32s(s3, s4), odd_b)),
        simd.mul_add_e_f32s(simd.sub_f32s(sum_a, sum_b), third, s5),
    ]
}

/// Applies a one-dimensional transform to the columns and then to the rows of squares, one square a vector:
/// `from(row, column, vector)` reads them, `to(row, column, vector, value)` writes the result, and `between` holds what is
/// half done. A column of all vectors at a time, since values of neighbouring rows and columns lie so far apart that more
/// streams would evict each other from the first-level cache.
///
/// Plain loops: closures inside `array::from_fn` would be compiled without the vector instructions.
#[inline(always)]
pub(super) fn both<S: Simd, const FROM: usize, const TO: usize>(
    simd: S,
    vectors: usize,
    between: &mut [f32],
    from: impl Fn(usize, usize, usize) -> S::f32s,
    one: impl Fn([S::f32s; FROM]) -> [S::f32s; TO],
    mut to: impl FnMut(usize, usize, usize, S::f32s),
) {
    let row = vectors * S::F32_LANES;
    let between = &mut S::as_mut_simd_f32s(&mut between[..FROM * TO * row]).0[..FROM * TO * vectors];
    for j in 0..FROM {
        for vector in 0..vectors {
            let mut column = [simd.splat_f32s(0.0); FROM];
            for (i, value) in column.iter_mut().enumerate() {
                *value = from(i, j, vector);
            }
            for (i, &value) in one(column).iter().enumerate() {
                between[(i * FROM + j) * vectors + vector] = value;
            }
        }
    }
    for i in 0..TO {
        let between = &between[i * FROM * vectors..][..FROM * vectors];
        for vector in 0..vectors {
            let mut row = [simd.splat_f32s(0.0); FROM];
            for (j, value) in row.iter_mut().enumerate() {
                *value = between[j * vectors + vector];
            }
            for (j, &value) in one(row).iter().enumerate() {
                to(i, j, vector, value);
            }
        }
    }
}

/// `G g Gᵀ` of one kernel.
#[inline(always)]
pub(super) fn kernel(taps: [[f32; 3]; 3]) -> [[f32; IN]; IN] {
    let mut columns = [[0.0; 3]; IN];
    for x in 0..3 {
        for (row, value) in columns.iter_mut().zip(weight([taps[0][x], taps[1][x], taps[2][x]])) {
            row[x] = value;
        }
    }
    let mut factors = [[0.0; IN]; IN];
    for (factors, row) in factors.iter_mut().zip(columns) {
        *factors = weight(row);
    }
    factors
}
