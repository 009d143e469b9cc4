//! One head of one sequence: where its rows lie, and products of them.

use std::ops::Range;

use super::super::dropout::{Dropout, seed_of_head};
use super::super::gemm::{Segment, Start, sweep};
use super::super::matrix::Matrix;
use super::super::panels::{narrowest, pack, panel_width};
use super::super::simd::{LANES, Level};
use super::{AttentionShape, Buckets};

/// One head's rows in a part: its first value, and how far apart its rows are.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub first: usize,
    pub stride: usize,
}

/// One head of keys and values of one sequence, with the query heads that it serves.
pub(super) struct Head<'a> {
    pub queries: &'a [f32],
    pub pairs: &'a [f32],
    /// Of the sequence's first query of the first query head, of its keys and its values.
    pub places: [Place; 3],
    /// The same of the output, which has the queries' columns alone.
    pub output: Place,
    pub query_count: usize,
    pub len: usize,
    pub group: usize,
    pub size: usize,
    pub shape: AttentionShape,
    pub dropout: Dropout,
    /// Seeds the dropout of the first query head's weights.
    pub index: u32,
    pub relative: Option<Relative<'a>>,
}

/// A head's part of the relative positions.
pub(super) struct Relative<'a> {
    pub values: &'a [f32],
    /// Of the first row that the sequence has, among the keys and among the queries.
    pub places: [Place; 2],
    pub buckets: &'a Buckets,
    /// The rows that it has.
    pub span: Range<usize>,
}

impl Relative<'_> {
    /// Room for one product with the rows, a row each.
    pub fn width(&self) -> usize {
        self.span.len().next_multiple_of(LANES)
    }

    /// The rows of keys (0) or of queries (1), `rows × size`.
    pub fn matrix(&self, which: usize, size: usize) -> Matrix<'_> {
        let Place { first, stride } = self.places[which];
        Matrix::strided(&self.values[first..], self.span.len(), size, stride)
    }
}

impl Head<'_> {
    /// The rows of a matrix of this head in `values`, `rows × size`.
    pub fn matrix<'v>(&self, values: &'v [f32], place: Place, rows: usize) -> Matrix<'v> {
        Matrix::strided(&values[place.first..], rows, self.size, place.stride)
    }

    pub fn seed(&self, member: usize) -> u32 {
        seed_of_head(self.dropout.seed, self.index + member as u32)
    }

    /// Keys that the query `i` sees.
    pub fn seen(&self, i: usize) -> Range<usize> {
        self.shape.seen(i, self.query_count, self.len)
    }

    /// How many rows of relative positions it has, and room for one product with each.
    pub fn span(&self) -> [usize; 2] {
        let relative = self.relative.as_ref();
        relative.map_or([0, 0], |relative| [relative.span.len(), relative.width()])
    }

    /// The keys that so many queries from the `first` on are run against: all of them, or, where there is a limit to how
    /// far they see, those that one of them sees, from the start of a panel on.
    pub fn met(&self, level: Level, first: usize, rows: usize) -> Range<usize> {
        if self.shape.reach.is_none() {
            return 0..self.len;
        }
        let width = panel_width(level);
        let start = self.seen(first).start / width * width;
        start..self.seen(first + rows - 1).end
    }
}

/// The place of member `member` of a group of query heads.
pub(super) fn member(place: Place, member: usize, size: usize) -> Place {
    Place {
        first: place.first + member * size,
        ..place
    }
}

/// A right-hand matrix as the panels that products read: in place where its rows fill whole panels,
/// else copied into `room`.
pub(super) struct Panelled {
    panel: *const f32,
    /// Between the rows of a panel, and between panels.
    strides: [usize; 2],
    columns: usize,
}

impl Panelled {
    /// Some of its columns, from the start of a panel on, in whole vectors.
    pub fn columns(&self, level: Level, span: &Range<usize>) -> Panelled {
        let panel = span.start / panel_width(level) * self.strides[1];
        let whole = span.len().next_multiple_of(level.lanes());
        Panelled {
            panel: self.panel.wrapping_add(panel),
            strides: self.strides,
            columns: whole.min(self.columns - span.start),
        }
    }

    /// The same without its first rows.
    pub fn rows(&self, first: usize) -> Panelled {
        Panelled {
            panel: self.panel.wrapping_add(first * self.strides[0]),
            ..*self
        }
    }
}

/// Room for a copy of a `rows × columns` matrix in panels.
pub(super) fn panels_len(level: Level, rows: usize, columns: usize) -> usize {
    rows * columns.next_multiple_of(panel_width(level))
}

/// `padded` makes the columns whole vectors, zeros behind the matrix's own.
pub(super) fn panelled(
    level: Level,
    matrix: Matrix<'_>,
    padded: bool,
    room: &mut [f32],
) -> Panelled {
    let width = panel_width(level);
    let columns = matrix.width();
    if let (true, Some(stride)) = (columns.is_multiple_of(width), matrix.row_major()) {
        return Panelled {
            panel: matrix.at(0, 0),
            strides: [stride, width],
            columns,
        };
    }
    let rows = matrix.height();
    assert!(room.len() >= panels_len(level, rows, columns));
    let width = narrowest(level, columns);
    for first in (0..columns).step_by(width) {
        let part = matrix.columns(first, width.min(columns - first));
        // SAFETY: `room` holds all panels.
        unsafe { pack(level, part, 1.0, width, room.as_mut_ptr().add(first * rows)) };
    }
    Panelled {
        panel: room.as_ptr(),
        strides: [width, rows * width],
        columns: if padded {
            columns.next_multiple_of(level.lanes())
        } else {
            columns
        },
    }
}

/// `out (+)= left · right`; `left` in `rows` rows of `k` values with its two strides.
///
/// # Safety
/// `left` can be read and `out` written, in rows `stride` apart.
pub(super) unsafe fn times(
    level: Level,
    left: (*const f32, usize, usize),
    [rows, k]: [usize; 2],
    right: &Panelled,
    (out, stride): (*mut f32, usize),
    start: Start<'_>,
) {
    let width = panel_width(level);
    for (index, first) in (0..right.columns).step_by(width).enumerate() {
        let segment = Segment {
            left: left.0,
            row_stride: left.1,
            column_stride: left.2,
            panel: right.panel.wrapping_add(index * right.strides[1]),
            panel_stride: right.strides[0],
            k,
        };
        let columns = width.min(right.columns - first);
        // SAFETY: the caller's promise.
        unsafe {
            sweep(
                level,
                rows,
                columns,
                [segment, Segment::NONE],
                out.add(first),
                stride,
                start,
            );
        }
    }
}

/// `scratch` cut into parts of these lengths.
pub(super) fn cut<const N: usize>(scratch: &mut Vec<f32>, lens: [usize; N]) -> [&mut [f32]; N] {
    let all: usize = lens.iter().sum();
    if scratch.len() < all {
        scratch.resize(all, 0.0);
    }
    let mut rest = scratch.as_mut_slice();
    lens.map(|len| rest.split_off_mut(..len).expect("room for every part"))
}
