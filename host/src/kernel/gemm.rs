//! Matrix products on raw CPU buffers: one micro-kernel that all of them end in.
//!
//! A product is cut as in Goto & van de Geijn (2008). The right-hand matrix lies in *panels*, a few vectors
//! wide and contiguous along `k`; the left-hand one is read where it lies, one broadcast element at a time.
//! A tile of rows × panel is summed up in registers and written once. Frozen weights keep their panels;
//! other right-hand matrices are copied into one as they are met, or read in place where few rows would pay
//! for the copy. Each element is summed in an order that depends on `k` alone, so that the number of threads
//! never changes a bit.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::cpu::Disjoint;
use super::simd::{Level, level};

/// A matrix seen in values: element `(i, j)` lies at `i · row_stride + j · column_stride`.
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

/// One cache line, which panels start on.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Vectors in a row of a panel.
const VECTORS: usize = 2;

/// Rows of a panel that are gone through before the tiles move on: a panel of them fits the L2, and with
/// [`ROWS`] rows of the other matrix.
const DEPTH: usize = 384;

/// Rows of the left-hand matrix that one task takes.
const ROWS: usize = 192;

/// Values of the widest panels that one step reads: a stretch and a short one beside it.
const SCRATCH: usize = (DEPTH + DEPTH / 8) * 16 * VECTORS;

/// Columns of a panel.
pub fn panel_width(level: Level) -> usize {
    VECTORS * level.lanes()
}

/// Columns of a panel made for `columns`: one vector is enough for few.
pub fn narrowest(level: Level, columns: usize) -> usize {
    if columns <= level.lanes() {
        level.lanes()
    } else {
        panel_width(level)
    }
}

/// A right-hand matrix `[k, n]` laid out once for the way products read it.
#[derive(Clone)]
pub struct Panels {
    values: Vec<Line>,
    rows: usize,
    columns: usize,
    /// Its vectors are as wide as this level's.
    level: Level,
}

impl std::fmt::Debug for Panels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Panels {} × {}", self.rows, self.columns)
    }
}

impl Panels {
    /// Lays out `matrix`.
    pub fn new(matrix: Matrix<'_>) -> Self {
        let level = level();
        Self::filled(matrix.rows, matrix.columns, level, |first, count, out| {
            let part = matrix.columns(first, count);
            // SAFETY: `out` has room for a panel.
            unsafe { pack(level, part, 1.0, panel_width(level), out) }
        })
    }

    /// The transpose, laid out in the same way. Nothing but these panels is read, so that the pages of the
    /// matrix they were made from can stay on disk.
    pub fn transposed(&self) -> Self {
        let width = panel_width(self.level);
        let all: &[f32] = bytemuck::cast_slice(&self.values);
        Self::filled(self.columns, self.rows, self.level, |first, count, out| {
            for (index, panel) in all.chunks_exact(self.rows * width).enumerate() {
                let columns = width.min(self.columns - index * width);
                let part = Matrix::strided(panel, self.rows, columns, width).t();
                // SAFETY: `out` has room for a panel, of which these are the rows from `index · width` on.
                unsafe {
                    let out = out.add(index * width * width);
                    pack(self.level, part.columns(first, count), 1.0, width, out);
                }
            }
        })
    }

    /// Panels that `fill` writes: it is told the first column, how many there are, and where.
    fn filled(
        rows: usize,
        columns: usize,
        level: Level,
        fill: impl Fn(usize, usize, *mut f32) + Sync,
    ) -> Self {
        let width = panel_width(level);
        let panel = rows * width;
        let panels = columns.div_ceil(width);
        let mut values = vec![Line([0.0; 16]); (panels * panel).div_ceil(16)];
        let to = Disjoint::new(values.as_mut_ptr().cast());
        (0..panels).into_par_iter().for_each(|index| {
            let first = index * width;
            // SAFETY: the panels do not overlap, and `values` has room for all.
            let out = unsafe { to.pointer(index * panel) };
            fill(first, width.min(columns - first), out);
        });
        Panels {
            values,
            rows,
            columns,
            level,
        }
    }

    fn panel(&self, index: usize, row: usize) -> *const f32 {
        let width = panel_width(self.level);
        self.values
            .as_ptr()
            .cast::<f32>()
            .wrapping_add((index * self.rows + row) * width)
    }
}

/// Copies `scale · matrix` into a panel of `width` columns, zeros beside the last of its own.
///
/// # Safety
/// `out` has room for `matrix.rows · width` values.
pub unsafe fn pack(level: Level, matrix: Matrix<'_>, scale: f32, width: usize, out: *mut f32) {
    level.run(Pack {
        matrix,
        scale,
        width,
        out,
    });
}

struct Pack<'a> {
    matrix: Matrix<'a>,
    scale: f32,
    width: usize,
    out: *mut f32,
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Pack {
            matrix,
            scale,
            width,
            out,
        } = self;
        let columns = matrix.columns;
        // SAFETY: rows and columns are the matrix's own, and `out` has room by the caller's promise.
        unsafe {
            if matrix.column_stride == 1 && columns == width {
                let factor = simd.splat_f32s(scale);
                for row in 0..matrix.rows {
                    let (from, to) = (matrix.at(row, 0), out.add(row * width));
                    for column in (0..width).step_by(S::F32_LANES) {
                        let values = simd.mul_f32s(factor, load::<S>(from.add(column)));
                        store::<S>(to.add(column), values);
                    }
                }
                return;
            }
            if columns < width {
                std::ptr::write_bytes(out, 0, matrix.rows * width);
            }
            if matrix.column_stride == 1 {
                for row in 0..matrix.rows {
                    for column in 0..columns {
                        *out.add(row * width + column) = scale * *matrix.at(row, column);
                    }
                }
            } else {
                for column in 0..columns {
                    for row in 0..matrix.rows {
                        *out.add(row * width + column) = scale * *matrix.at(row, column);
                    }
                }
            }
        }
    }
}

/// The right-hand side of a product.
#[derive(Clone, Copy)]
enum Right<'a> {
    Panels(&'a Panels),
    /// With a factor.
    Plain(Matrix<'a>, f32),
}

/// One product of a sum of products.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    left: Matrix<'a>,
    right: Right<'a>,
}

impl<'a> Term<'a> {
    /// `left · right`, the right one laid out beforehand.
    pub fn packed(left: Matrix<'a>, right: &'a Panels) -> Self {
        assert_eq!(left.columns, right.rows, "inner sizes of a product");
        Term {
            left,
            right: Right::Panels(right),
        }
    }

    /// `scale · left · right`.
    pub fn plain(scale: f32, left: Matrix<'a>, right: Matrix<'a>) -> Self {
        assert_eq!(left.columns, right.rows, "inner sizes of a product");
        Term {
            left,
            right: Right::Plain(right, scale),
        }
    }

    fn rows(&self) -> usize {
        self.left.rows
    }

    fn columns(&self) -> usize {
        match self.right {
            Right::Panels(panels) => panels.columns,
            Right::Plain(matrix, _) => matrix.columns,
        }
    }
}

/// What a sum of products starts from.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Nothing; whatever the destination holds is written over.
    Zero,
    /// A row that every row starts with.
    Bias(&'a [f32]),
    /// What the destination holds.
    Sum,
}

/// Where a product is written: rows of `stride` values, of which it takes the first columns.
#[derive(Clone, Copy)]
pub struct Out {
    values: Disjoint,
    stride: usize,
}

impl Out {
    /// From `values` on, in rows `stride` apart.
    pub fn new(values: *mut f32, stride: usize) -> Self {
        Out {
            values: Disjoint::new(values),
            stride,
        }
    }
}

/// `out = start + Σ terms`, on all threads of the pool.
///
/// # Safety
/// `out` has room for the terms' rows and columns, initialised where `start` is [`Start::Sum`]; nobody else
/// uses it meanwhile.
pub unsafe fn multiply(out: Out, start: Start<'_>, terms: &[Term<'_>]) {
    let (m, n) = (terms[0].rows(), terms[0].columns());
    for term in terms {
        assert_eq!((term.rows(), term.columns()), (m, n), "sizes of a sum");
    }
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), n, "a bias for every column");
    }
    if m == 0 || n == 0 {
        return;
    }
    let mut packed_for = terms.iter().filter_map(|term| match term.right {
        Right::Panels(panels) => Some(panels.level),
        Right::Plain(..) => None,
    });
    let level = packed_for.next().unwrap_or_else(level);
    assert!(
        packed_for.all(|other| other == level),
        "panels of one level"
    );
    let product = Product {
        out,
        start,
        terms,
        steps: steps(terms),
        columns: n,
    };
    let threads = rayon::current_num_threads();
    let panels = n.div_ceil(panel_width(level));
    // Two tasks a thread at least, so that a thread that is held up is helped out.
    let rows = ROWS.min(m.div_ceil(2 * threads).next_multiple_of(12));
    let tasks = m.div_ceil(rows);
    if tasks >= 2 * threads {
        (0..tasks).into_par_iter().for_each(|task| {
            product.block(level, task * rows..((task + 1) * rows).min(m), 0..panels);
        });
    } else {
        // Few rows: the panels are shared out instead.
        let width = panels.div_ceil(2 * threads);
        (0..panels.div_ceil(width))
            .into_par_iter()
            .for_each(|task| {
                product.block(level, 0..m, task * width..((task + 1) * width).min(panels));
            });
    }
}

/// `start + Σ terms` in a new buffer.
pub fn product(start: Start<'_>, terms: &[Term<'_>]) -> Vec<f32> {
    let (m, n) = (terms[0].rows(), terms[0].columns());
    assert!(!matches!(start, Start::Sum), "a new buffer holds nothing");
    let mut out: Vec<f32> = Vec::with_capacity(m * n);
    // SAFETY: the product writes every element of `out`, whose capacity is its size.
    unsafe {
        multiply(Out::new(out.as_mut_ptr(), n), start, terms);
        out.set_len(m * n);
    }
    out
}

/// A stretch of `k` of one term.
#[derive(Clone, Copy)]
struct Stretch {
    term: usize,
    first: usize,
    count: usize,
}

/// What one pass over the tiles adds up: a stretch, and a short one of the next term with it, so that a
/// LoRA pair costs no pass of its own.
type Step = [Option<Stretch>; 2];

fn steps(terms: &[Term<'_>]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (term, Term { left, .. }) in terms.iter().enumerate() {
        let k = left.columns;
        let short = k <= DEPTH / 8;
        if let (true, Some([_, room @ None])) = (short, steps.last_mut()) {
            *room = Some(Stretch {
                term,
                first: 0,
                count: k,
            });
            continue;
        }
        let parts = k.div_ceil(DEPTH).max(1);
        let part = k.div_ceil(parts).max(1);
        steps.extend((0..parts).map(|i| {
            let first = i * part;
            let stretch = Stretch {
                term,
                first,
                count: part.min(k - first),
            };
            [Some(stretch), None]
        }));
    }
    steps
}

struct Product<'a> {
    out: Out,
    start: Start<'a>,
    terms: &'a [Term<'a>],
    steps: Vec<Step>,
    columns: usize,
}

impl Product<'_> {
    /// These rows and panels, on this thread.
    fn block(&self, level: Level, rows: Range<usize>, panels: Range<usize>) {
        let width = panel_width(level);
        let mut scratch = [const { MaybeUninit::<Line>::uninit() }; SCRATCH / 16];
        let scratch = scratch.as_mut_ptr().cast::<f32>();
        for (nth, step) in self.steps.iter().enumerate() {
            for panel in panels.clone() {
                let first = panel * width;
                let columns = width.min(self.columns - first);
                let mut segments = [Segment::NONE; 2];
                let mut room = scratch;
                for (segment, stretch) in segments.iter_mut().zip(step) {
                    let Some(stretch) = stretch else { continue };
                    let term = &self.terms[stretch.term];
                    let left = term.left;
                    let (panel, panel_stride) = match term.right {
                        Right::Panels(panels) => (panels.panel(panel, stretch.first), width),
                        Right::Plain(matrix, scale) => {
                            let part = matrix
                                .rows(stretch.first, stretch.count)
                                .columns(first, columns);
                            // Few rows would not pay for the copy.
                            let in_place = rows.len() <= 24 && scale == 1.0 && columns == width;
                            match part.row_major() {
                                Some(stride) if in_place => (part.at(0, 0), stride),
                                _ => {
                                    let width = narrowest(level, columns);
                                    let out = room;
                                    // SAFETY: the stretches of a step are no longer than DEPTH and an
                                    // eighth of it, which is what `scratch` has room for.
                                    unsafe {
                                        pack(level, part, scale, width, out);
                                        room = room.add(stretch.count * width);
                                    }
                                    (out.cast_const(), width)
                                }
                            }
                        }
                    };
                    *segment = Segment {
                        left: left.at(rows.start, stretch.first),
                        row_stride: left.row_stride,
                        column_stride: left.column_stride,
                        panel,
                        panel_stride,
                        k: stretch.count,
                    };
                }
                let start = match if nth == 0 { self.start } else { Start::Sum } {
                    Start::Bias(bias) => Start::Bias(&bias[first..][..columns]),
                    other => other,
                };
                // SAFETY: rows and columns lie within `out`, and no other task has them.
                unsafe {
                    let out = self
                        .out
                        .values
                        .pointer(rows.start * self.out.stride + first);
                    let stride = self.out.stride;
                    sweep(level, rows.len(), columns, segments, out, stride, start);
                }
            }
        }
    }
}

/// One stretch as the micro-kernel reads it: `k` steps along rows of the left and down a panel.
#[derive(Clone, Copy)]
pub struct Segment {
    /// Element (0, 0) of the left matrix, and how far apart its rows and columns are.
    pub left: *const f32,
    /// See `left`.
    pub row_stride: usize,
    /// See `left`.
    pub column_stride: usize,
    /// The panel's first row, and how far apart its rows are.
    pub panel: *const f32,
    /// See `panel`.
    pub panel_stride: usize,
    /// Steps.
    pub k: usize,
}

impl Segment {
    /// No steps at all.
    pub const NONE: Segment = Segment {
        left: std::ptr::null(),
        row_stride: 0,
        column_stride: 0,
        panel: std::ptr::null(),
        panel_stride: 0,
        k: 0,
    };
}

/// `rows × columns` of one panel, as many rows at a time as there are registers for. `start`'s bias is the
/// columns' own.
///
/// # Safety
/// The segments can be read and `out` written, in rows `stride` apart.
pub unsafe fn sweep(
    level: Level,
    rows: usize,
    columns: usize,
    segments: [Segment; 2],
    out: *mut f32,
    stride: usize,
    start: Start<'_>,
) {
    level.run(Sweep {
        rows,
        columns,
        segments,
        out,
        stride,
        start,
    });
}

struct Sweep<'a> {
    rows: usize,
    columns: usize,
    segments: [Segment; 2],
    out: *mut f32,
    stride: usize,
    start: Start<'a>,
}

impl WithSimd for Sweep<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Sweep {
            rows,
            columns,
            mut segments,
            mut out,
            stride,
            start,
        } = self;
        let mut left = rows;
        macro_rules! tiles {
            ($($count:literal)*) => {
                $(while left >= $count {
                    // SAFETY: by the caller's promise, with `left` rows to go.
                    unsafe {
                        if columns == VECTORS * S::F32_LANES {
                            tile::<S, $count, VECTORS>(simd, &segments, out, stride, start);
                        } else if columns == S::F32_LANES {
                            tile::<S, $count, 1>(simd, &segments, out, stride, start);
                        } else {
                            broken_tile::<S, $count>(simd, columns, &segments, out, stride, start);
                        }
                        out = out.add($count * stride);
                    }
                    for segment in &mut segments {
                        segment.left = segment.left.wrapping_add($count * segment.row_stride);
                    }
                    left -= $count;
                })*
            };
        }
        if S::REGISTER_COUNT >= 32 {
            tiles!(12 8 4 2 1);
        } else {
            tiles!(6 4 2 1);
        }
    }
}

/// A tile narrower than its panel, by way of a whole one.
#[inline(always)]
unsafe fn broken_tile<S: Simd, const ROWS: usize>(
    simd: S,
    columns: usize,
    segments: &[Segment; 2],
    out: *mut f32,
    stride: usize,
    start: Start<'_>,
) {
    let width = VECTORS * S::F32_LANES;
    let mut whole = [[0f32; 16 * VECTORS]; ROWS];
    let mut bias = [0f32; 16 * VECTORS];
    let to = whole.as_mut_ptr().cast::<f32>();
    // SAFETY: `whole` has room for the tile, `out` for its columns.
    unsafe {
        let start = match start {
            Start::Zero => Start::Zero,
            Start::Bias(given) => {
                bias[..columns].copy_from_slice(given);
                Start::Bias(&bias[..width])
            }
            Start::Sum => {
                for (row, values) in whole.iter_mut().enumerate() {
                    let from = std::slice::from_raw_parts(out.add(row * stride), columns);
                    values[..columns].copy_from_slice(from);
                }
                Start::Sum
            }
        };
        if columns <= S::F32_LANES {
            tile::<S, ROWS, 1>(simd, segments, to, 16 * VECTORS, start);
        } else {
            tile::<S, ROWS, VECTORS>(simd, segments, to, 16 * VECTORS, start);
        }
        for (row, values) in whole.iter().enumerate() {
            let to = std::slice::from_raw_parts_mut(out.add(row * stride), columns);
            to.copy_from_slice(&values[..columns]);
        }
    }
}

/// The micro-kernel: `ROWS` rows by `WIDE` vectors, summed up in registers.
#[inline(always)]
unsafe fn tile<S: Simd, const ROWS: usize, const WIDE: usize>(
    simd: S,
    segments: &[Segment; 2],
    out: *mut f32,
    stride: usize,
    start: Start<'_>,
) {
    // SAFETY: the caller's promise covers every row, column and step.
    unsafe {
        for row in 0..ROWS {
            prefetch(out.wrapping_add(row * stride));
        }
        let mut sums = [[simd.splat_f32s(0.0); WIDE]; ROWS];
        for segment in segments {
            let rows: [*const f32; ROWS] =
                std::array::from_fn(|row| segment.left.wrapping_add(row * segment.row_stride));
            let mut panel = segment.panel;
            let mut at = 0;
            for _ in 0..segment.k {
                let right: [S::f32s; WIDE] =
                    std::array::from_fn(|v| load::<S>(panel.add(v * S::F32_LANES)));
                for (row, sums) in rows.iter().zip(&mut sums) {
                    let left = simd.splat_f32s(*row.wrapping_add(at));
                    for (sum, right) in sums.iter_mut().zip(&right) {
                        *sum = simd.mul_add_e_f32s(left, *right, *sum);
                    }
                }
                at += segment.column_stride;
                panel = panel.wrapping_add(segment.panel_stride);
            }
        }
        // One short loop for each start: loops that the compiler unrolls whole leave the sums in registers.
        match start {
            Start::Zero => {}
            Start::Bias(bias) => {
                let bias: [S::f32s; WIDE] =
                    std::array::from_fn(|v| load::<S>(bias.as_ptr().add(v * S::F32_LANES)));
                for sums in &mut sums {
                    for (sum, bias) in sums.iter_mut().zip(&bias) {
                        *sum = simd.add_f32s(*sum, *bias);
                    }
                }
            }
            Start::Sum => {
                for (row, sums) in sums.iter_mut().enumerate() {
                    let from = out.add(row * stride);
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = simd.add_f32s(*sum, load::<S>(from.add(v * S::F32_LANES)));
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let to = out.add(row * stride);
            for (v, sum) in sums.iter().enumerate() {
                store::<S>(to.add(v * S::F32_LANES), *sum);
            }
        }
    }
}

/// Asks for the cache lines a tile will be written to, which are far apart, before it is summed up.
#[inline(always)]
fn prefetch(line: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.cast());
        _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(16).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

#[inline(always)]
unsafe fn load<S: Simd>(from: *const f32) -> S::f32s {
    // SAFETY: the caller's promise; alignment is not needed.
    unsafe { from.cast::<S::f32s>().read_unaligned() }
}

#[inline(always)]
unsafe fn store<S: Simd>(to: *mut f32, values: S::f32s) {
    // SAFETY: the caller's promise; alignment is not needed.
    unsafe { to.cast::<S::f32s>().write_unaligned(values) }
}
