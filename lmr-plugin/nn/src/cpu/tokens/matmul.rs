//! Small matrix products on strided rows, one thread each.

use gemm::{Parallelism, gemm};

/// A matrix inside a slice: element `(i, j)` is `data[i · row + j · column]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub row: usize,
    pub column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `columns` floats, `row` apart.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, row: usize) -> Self {
        Self { data, rows, columns, row, column: 1 }
    }

    /// The transposed matrix.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row: self.column, column: self.row, ..self }
    }

    fn end(&self) -> usize {
        (self.rows - 1) * self.row + (self.columns - 1) * self.column + 1
    }
}

/// `out = scale · a · b`; rows of `out` are `row` floats apart.
pub(crate) fn product(scale: f32, a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], row: usize) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(m > 0 && k > 0 && n > 0 && k == b.rows && n <= row);
    assert!(a.end() <= a.data.len() && b.end() <= b.data.len() && (m - 1) * row + n <= out.len());
    let stride = |stride: usize| stride as isize;
    // SAFETY: the assertions keep every element of the three matrices inside its slice; `out` overlaps no other.
    unsafe {
        gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride(row),
            false,
            a.data.as_ptr(),
            stride(a.column),
            stride(a.row),
            b.data.as_ptr(),
            stride(b.column),
            stride(b.row),
            0.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
