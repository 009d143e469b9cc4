//! Matrix products on raw CPU buffers: one micro-kernel that all of them end in.
//!
//! A product is cut as in Goto & van de Geijn (2008). The right-hand matrix lies in *panels*, a few vectors
//! wide and contiguous along `k`; the left-hand one is read where it lies, one broadcast element at a time.
//! A tile of rows × panel is summed up in registers and written once. Frozen weights keep their
//! [panels](super::panels); other right-hand matrices are copied into one as they are met, or read in place where
//! few rows would pay for the copy. A task is some rows of one panel, so that a copy is used by all of them. Each element is summed in an order that depends on `k` alone, so that the number of threads
//! never changes a bit.

use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::bf16::{self, PairSegment, Rounded, Values};
use super::cpu::Disjoint;
use super::matrix::Matrix;
use super::panels::{Line, Panels, VECTORS, load, narrowest, pack, panel_width, store};
use super::simd::{Level, level};

/// Rows of a panel that are gone through before the tiles move on: a panel of them fits the first-level cache, or the
/// second beside what streams past.
const DEPTH: usize = 384;

/// Rows of the left-hand matrix that one task takes at most: these and their part of the other's panels stay in the
/// second-level cache from one panel to the next.
const ROWS: usize = 192;

/// The same where a panel is copied first.
const COPIED_ROWS: usize = 1024;

/// Rows of the largest tile.
const TILE: usize = 12;

/// Values of the widest panels that one step reads: a stretch and a short one beside it.
const SCRATCH: usize = (DEPTH + DEPTH / 8) * 16 * VECTORS;

/// The right-hand side of a product.
#[derive(Clone, Copy)]
enum Right<'a> {
    Panels(&'a Panels),
    /// The transpose of what they hold.
    Transposed(&'a Panels),
    /// With a factor.
    Plain(Matrix<'a>, f32),
}

/// A left-hand matrix, as products with a frozen weight read it.
pub struct Left<'a> {
    matrix: Matrix<'a>,
    /// Where the weight is for products in bf16.
    rounded: Option<Rounded>,
}

impl<'a> Left<'a> {
    /// For products with `panels`, or others of their kind.
    pub fn new(matrix: Matrix<'a>, panels: &Panels) -> Self {
        Left {
            matrix,
            rounded: panels.is_paired().then(|| Rounded::new(matrix)),
        }
    }
}

/// One product of a sum of products.
#[derive(Clone, Copy)]
pub struct Term<'a> {
    left: Matrix<'a>,
    /// The same, where the product is in bf16.
    rounded: Option<&'a Rounded>,
    right: Right<'a>,
}

impl<'a> Term<'a> {
    /// `left · right`, the right one laid out beforehand.
    pub fn packed(left: &'a Left<'a>, right: &'a Panels) -> Self {
        assert_eq!(left.matrix.columns, right.rows, "inner sizes of a product");
        Self::frozen(left, Right::Panels(right))
    }

    /// `left · rightᵀ`, the right one laid out beforehand.
    pub fn transposed(left: &'a Left<'a>, right: &'a Panels) -> Self {
        assert_eq!(
            left.matrix.columns, right.columns,
            "inner sizes of a product"
        );
        Self::frozen(left, Right::Transposed(right))
    }

    fn frozen(left: &'a Left<'a>, right: Right<'a>) -> Self {
        Term {
            left: left.matrix,
            rounded: left.rounded.as_ref(),
            right,
        }
    }

    /// `scale · left · right`.
    pub fn plain(scale: f32, left: Matrix<'a>, right: Matrix<'a>) -> Self {
        assert_eq!(left.columns, right.rows, "inner sizes of a product");
        Term {
            left,
            rounded: None,
            right: Right::Plain(right, scale),
        }
    }

    fn rows(&self) -> usize {
        self.left.rows
    }

    /// Whether a panel of a frozen weight is copied before it is read.
    fn is_copied(&self) -> bool {
        match self.right {
            Right::Panels(panels) => self.rounded.is_none() && panels.in_place(0, 0).is_none(),
            Right::Transposed(_) => true,
            Right::Plain(..) => false,
        }
    }

    /// The width of a panel that [`copy`](Self::copy) makes for so many columns.
    fn copied_width(&self, level: Level, columns: usize) -> usize {
        match self.right {
            Right::Plain(..) => narrowest(level, columns),
            Right::Panels(_) | Right::Transposed(_) => panel_width(level),
        }
    }

    /// Copies a stretch of panel `index` of the right-hand side.
    ///
    /// # Safety
    /// `out` has room for it.
    unsafe fn copy(
        &self,
        level: Level,
        index: usize,
        columns: usize,
        Stretch { first, count, .. }: Stretch,
        out: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.right {
                Right::Panels(panels) => panels.widened(index, first, count, out),
                Right::Transposed(panels) => panels.transposed(index, first, count, out),
                Right::Plain(matrix, scale) => {
                    let left = index * panel_width(level);
                    let part = matrix.rows(first, count).columns(left, columns);
                    pack(level, part, scale, narrowest(level, columns), out);
                }
            }
        }
    }

    fn columns(&self) -> usize {
        match self.right {
            Right::Panels(panels) => panels.columns,
            Right::Transposed(panels) => panels.rows,
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
        Right::Panels(panels) | Right::Transposed(panels) => Some(panels.level),
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
    let panels = n.div_ceil(panel_width(level));
    let copied = terms.iter().any(Term::is_copied);
    let rows = shared_rows(m, panels, rayon::current_num_threads(), copied);
    (0..m.div_ceil(rows) * panels)
        .into_par_iter()
        .for_each(|task| {
            let first = task / panels * rows;
            product.block(level, first..(first + rows).min(m), task % panels);
        });
}

/// How many of `m` rows one task takes, of one panel: as many as can be, so that a panel which has to be `copied` is used
/// often, of those that give each thread two tasks at least, so that one that is held up is helped out, and no thread a
/// tenth more than its share.
pub fn shared_rows(m: usize, panels: usize, threads: usize, copied: bool) -> usize {
    let most = if copied { COPIED_ROWS } else { ROWS };
    let even = |rows: &usize| {
        let tasks = m.div_ceil(*rows) * panels;
        let longest = tasks.div_ceil(threads) * m.min(*rows);
        tasks >= 2 * threads && 10 * longest * threads <= 11 * m * panels
    };
    let tiles = 1..=m.min(most).div_ceil(TILE);
    let rows = tiles.rev().map(|tiles| tiles * TILE).find(even);
    rows.unwrap_or(TILE)
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
    for (term, Term { left, rounded, .. }) in terms.iter().enumerate() {
        let k = left.columns;
        let short = k <= DEPTH / 8 && rounded.is_none();
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
        // Pairs are not taken apart.
        let part = part.next_multiple_of(1 + usize::from(rounded.is_some()));
        steps.extend((0..k.max(1)).step_by(part).map(|first| {
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
    /// These rows of a panel, on this thread.
    fn block(&self, level: Level, rows: Range<usize>, panel: usize) {
        let width = panel_width(level);
        let mut scratch = [const { MaybeUninit::<Line>::uninit() }; SCRATCH / 16];
        let scratch = scratch.as_mut_ptr().cast::<f32>();
        for (nth, step) in self.steps.iter().enumerate() {
            let first = panel * width;
            let columns = width.min(self.columns - first);
            let mut room = scratch;
            let mut read = |stretch: &Stretch| self.read(level, &rows, panel, *stretch, &mut room);
            let [longer, side] = [0, 1].map(|nth| step[nth].as_ref().map(&mut read));
            let start = match if nth == 0 { self.start } else { Start::Sum } {
                Start::Bias(bias) => Start::Bias(&bias[first..][..columns]),
                other => other,
            };
            let side = match side {
                Some(Reading::Floats(segment)) => segment,
                _ => Segment::NONE,
            };
            // SAFETY: rows and columns lie within `out`, and no other task has them; pairs are read where the CPU has
            // the instruction for them.
            unsafe {
                let out = self
                    .out
                    .values
                    .pointer(rows.start * self.out.stride + first);
                let stride = self.out.stride;
                match longer {
                    #[cfg(target_arch = "x86_64")]
                    Some(Reading::Pairs(pairs)) => {
                        bf16::sweep(rows.len(), columns, pairs, side, out, stride, start);
                    }
                    Some(Reading::Floats(longer)) => {
                        sweep(
                            level,
                            rows.len(),
                            columns,
                            [longer, side],
                            out,
                            stride,
                            start,
                        );
                    }
                    _ => unreachable!("a step begins with a stretch"),
                }
            }
        }
    }

    /// A stretch of a panel and of these rows; what has to be copied of the panel goes to `room`.
    fn read(
        &self,
        level: Level,
        rows: &Range<usize>,
        panel: usize,
        stretch: Stretch,
        room: &mut *mut f32,
    ) -> Reading {
        let width = panel_width(level);
        let first = panel * width;
        let columns = width.min(self.columns - first);
        let term = &self.terms[stretch.term];
        let left = term.left;
        let mut copied = |width: usize, copy: &dyn Fn(*mut f32)| {
            let out = *room;
            // The stretches of a step are no longer than DEPTH and an eighth of it, which is what there is room for.
            *room = out.wrapping_add(stretch.count.next_multiple_of(2) * width);
            copy(out);
            out.cast_const()
        };
        let at = (stretch.first, stretch.count);
        if let Some(Rounded { values, pairs }) = term.rounded {
            let (step, even) = (stretch.first / 2, stretch.count.next_multiple_of(2));
            return match values {
                Values::Pairs(values) => Reading::Pairs(PairSegment {
                    left: values.as_ptr().wrapping_add(rows.start * pairs + step),
                    row_stride: *pairs,
                    panel: match term.right {
                        Right::Transposed(panels) => copied(width, &|out| {
                            // SAFETY: see `copied`.
                            unsafe { panels.transposed_pairs(panel, at.0, at.1, out.cast()) }
                        })
                        .cast(),
                        Right::Panels(panels) => panels.pairs(panel, stretch.first),
                        Right::Plain(..) => unreachable!("rounded for a frozen weight"),
                    },
                    k: even / 2,
                }),
                Values::Swapped(values) => Reading::Floats(Segment {
                    left: values
                        .as_ptr()
                        .wrapping_add(rows.start * 2 * pairs + stretch.first),
                    row_stride: 2 * pairs,
                    column_stride: 1,
                    // SAFETY: see `copied`.
                    panel: copied(width, &|out| unsafe {
                        term.copy(level, panel, columns, stretch, out);
                        bf16::swap_rows(out, at.1, width);
                    }),
                    panel_stride: width,
                    k: even,
                }),
            };
        }
        let in_place = match term.right {
            Right::Panels(panels) => panels
                .in_place(panel, stretch.first)
                .map(|panel| (panel, width)),
            Right::Transposed(_) => None,
            // Few rows would not pay for the copy.
            Right::Plain(matrix, scale) => matrix
                .row_major()
                .filter(|_| rows.len() <= 24 && scale == 1.0 && columns == width)
                .map(|stride| (matrix.at(stretch.first, first), stride)),
        };
        let (panel, panel_stride) = in_place.unwrap_or_else(|| {
            let width = term.copied_width(level, columns);
            // SAFETY: see `copied`.
            let copy = |out| unsafe { term.copy(level, panel, columns, stretch, out) };
            (copied(width, &copy), width)
        });
        Reading::Floats(Segment {
            left: left.at(rows.start, stretch.first),
            row_stride: left.row_stride,
            column_stride: left.column_stride,
            panel,
            panel_stride,
            k: stretch.count,
        })
    }
}

/// A stretch as a micro-kernel reads it.
enum Reading {
    Floats(Segment),
    Pairs(PairSegment),
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
