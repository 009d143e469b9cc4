//! Matrices as kernels read them: values and the steps between them.

/// A matrix seen in values: element `(i, j)` lies at `i · row_stride + j · column_stride`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
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

    /// `rows × columns` of values whose rows are `row_stride` apart.
    pub fn strided(values: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(
            rows == 0 || values.len() >= (rows - 1) * row_stride + columns,
            "a {rows} × {columns} matrix in rows of {row_stride}"
        );
        Matrix {
            values,
            rows,
            columns,
            row_stride,
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

    /// `count` columns from `first`, without moving anything.
    pub fn columns(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.columns, "columns of a matrix");
        let start = (first * self.column_stride).min(self.values.len());
        Matrix {
            values: &self.values[start..],
            columns: count,
            ..self
        }
    }

    /// `count` rows from `first`, without moving anything.
    pub fn rows(self, first: usize, count: usize) -> Self {
        self.t().columns(first, count).t()
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.columns
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.rows
    }

    /// How far apart its rows are, if the values of a row lie side by side.
    pub fn row_major(&self) -> Option<usize> {
        (self.column_stride == 1).then_some(self.row_stride)
    }

    /// The address of an element.
    pub fn at(&self, row: usize, column: usize) -> *const f32 {
        // In bounds by construction wherever the element exists; never read elsewhere.
        self.values
            .as_ptr()
            .wrapping_add(row * self.row_stride + column * self.column_stride)
    }
}
