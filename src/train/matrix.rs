//! Strided views of f32 buffers and the one matrix product that the trainer uses.

/// A read-only `rows × cols` matrix inside a buffer.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` rows of `cols` values, one after the other.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Matrix::strided(data, rows, cols, cols)
    }

    /// `rows` rows of `cols` values that begin `row_stride` values apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride);
        Matrix { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn transposed(self) -> Self {
        Matrix {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// A writable `rows × cols` matrix inside a buffer.
pub struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// `rows` rows of `cols` values, one after the other.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        MatrixMut::strided(data, rows, cols, cols)
    }

    /// `rows` rows of `cols` values that begin `row_stride` values apart.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check(data.len(), rows, cols, row_stride);
        MatrixMut { data, rows, cols, row_stride }
    }
}

fn check(len: usize, rows: usize, cols: usize, row_stride: usize) {
    assert!(row_stride >= cols, "rows of {cols} values cannot begin {row_stride} values apart");
    let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols };
    assert!(len >= needed, "a {rows} × {cols} matrix needs {needed} values, the buffer has {len}");
}

/// What a product does with the values that its output already holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// They are overwritten.
    Set,
    /// The product is added to them.
    Add,
}

/// `out = scale · a · b` or `out += scale · a · b`, on the calling thread.
pub fn multiply(update: Update, out: MatrixMut<'_>, scale: f32, a: Matrix<'_>, b: Matrix<'_>) {
    assert_eq!((a.rows, a.cols, b.cols), (out.rows, b.rows, out.cols), "shapes do not chain");
    let beta = if update == Update::Add { 1.0 } else { 0.0 };
    // SAFETY: the constructors of `Matrix` and `MatrixMut` checked that every (row, column) of the three
    // matrices lies inside its slice, transposition only exchanges the two strides of a checked matrix, the
    // shapes chain, and `out` is borrowed mutably, so it overlaps neither `a` nor `b`.
    unsafe {
        matrixmultiply::sgemm(
            a.rows,
            a.cols,
            b.cols,
            scale,
            a.data.as_ptr(),
            a.row_stride as isize,
            a.col_stride as isize,
            b.data.as_ptr(),
            b.row_stride as isize,
            b.col_stride as isize,
            beta,
            out.data.as_mut_ptr(),
            out.row_stride as isize,
            1,
        );
    }
}
