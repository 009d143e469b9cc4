//! Matrix products on raw CPU buffers.

use gemm::Parallelism;

/// A matrix seen in a slice of values.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major `rows × columns` matrix.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a {rows} × {columns} matrix");
        Matrix {
            values,
            rows,
            columns,
            row_stride: columns,
            column_stride: 1,
        }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Matrix {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// What the destination holds before a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// Nothing worth reading: `out = scale · a·b`.
    Fresh,
    /// A sum to add to: `out += scale · a·b`.
    Sum,
}

/// `out (+)= scale · a·b`, with `out` row-major `[a.rows, b.columns]`, on all threads of the pool.
///
/// # Safety
/// `out` points to `a.rows · b.columns` values, initialised unless `into` is [`Into::Fresh`].
pub unsafe fn multiply(out: *mut f32, into: Into, scale: f32, a: Matrix<'_>, b: Matrix<'_>) {
    assert_eq!(a.columns, b.rows, "inner sizes of a product");
    let (m, n, k) = (a.rows, b.columns, a.columns);
    if m == 0 || n == 0 {
        return;
    }
    // SAFETY: the matrices cover their slices (checked on construction), `out` by the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            n as isize,
            into == Into::Sum,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::Rayon(rayon::current_num_threads()),
        );
    }
}

/// `scale · a·b` in a new buffer.
pub fn product(scale: f32, a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    let len = a.rows * b.columns;
    let mut out: Vec<f32> = Vec::with_capacity(len);
    // SAFETY: a fresh product writes every element of `out`, whose capacity is its size.
    unsafe {
        multiply(out.as_mut_ptr(), Into::Fresh, scale, a, b);
        out.set_len(len);
    }
    out
}

/// `out += scale · a·b`.
pub fn add_product(out: &mut [f32], scale: f32, a: Matrix<'_>, b: Matrix<'_>) {
    assert_eq!(out.len(), a.rows * b.columns, "the size of a product");
    // SAFETY: `out` has the product's size and is initialised.
    unsafe { multiply(out.as_mut_ptr(), Into::Sum, scale, a, b) }
}
