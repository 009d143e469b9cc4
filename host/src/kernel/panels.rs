//! The layout that products read their right-hand matrices in: panels, a few vectors wide and contiguous along `k`.
//!
//! A frozen weight is in memory once. Products with it read its panels where they lie; those with its transpose, and
//! both where it is kept in half precision, make a stretch of a panel of f32 of it as they go.

use bytemuck::{Pod, Zeroable};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::bf16::{round, round_row};
use super::cpu::Disjoint;
use super::matrix::Matrix;
use super::simd::{Level, level, vectorised};

/// One cache line, which panels start on.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Line([f32; 16]);

/// Vectors in a row of a panel.
pub const VECTORS: usize = 2;

/// Columns of the widest panel.
const WIDEST: usize = 16 * VECTORS;

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

/// How a weight's values are kept: in half precision where that loses nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// All of a float's bits.
    F32,
    /// The upper half of them: the lower are zero in every value.
    Bf16,
    /// IEEE 754's half precision, which every value has.
    F16,
    /// Rounded to bf16, two rows of a column side by side, for [products in bf16](super::bf16).
    Pairs,
}

impl Element {
    /// The smallest that keeps these values as they are.
    fn of(values: &[f32]) -> Self {
        let halves = |value: &f32| {
            let rounded = f16::from_f32_const(*value).to_f32_const();
            rounded.to_bits() == value.to_bits()
        };
        if values.iter().all(|value| value.to_bits() & 0xFFFF == 0) {
            Element::Bf16
        } else if values.iter().all(halves) {
            Element::F16
        } else {
            Element::F32
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 | Element::F16 | Element::Pairs => 2,
        }
    }
}

/// A right-hand matrix `[k, n]` laid out once for the way products read it.
#[derive(Clone)]
pub struct Panels {
    lines: Vec<Line>,
    element: Element,
    /// k.
    pub rows: usize,
    /// n.
    pub columns: usize,
    /// Its vectors are as wide as this level's.
    pub level: Level,
}

impl std::fmt::Debug for Panels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Panels {} × {} {:?}",
            self.rows, self.columns, self.element
        )
    }
}

impl Panels {
    /// Lays out `matrix`, in half precision where its values are such.
    pub fn new(matrix: Matrix<'_>) -> Self {
        Self::of(matrix, Element::of(matrix.values))
    }

    /// Lays out `matrix`, rounded, for products in bf16.
    pub fn rounded(matrix: Matrix<'_>) -> Self {
        Self::of(matrix, Element::Pairs)
    }

    fn of(matrix: Matrix<'_>, element: Element) -> Self {
        let level = level();
        let (rows, width) = (kept_rows(matrix.rows, element), panel_width(level));
        let panels = matrix.columns.div_ceil(width);
        // Panels of an odd number of rows of halves need not begin with a line: all of theirs are read unaligned.
        let bytes = panels * rows * width * element.bytes();
        let mut lines = vec![Line([0.0; 16]); bytes.div_ceil(size_of::<Line>())];
        let to = Disjoint::new(lines.as_mut_ptr().cast());
        (0..panels).into_par_iter().for_each(|index| {
            let first = index * width;
            let part = matrix.columns(first, width.min(matrix.columns - first));
            let values = index * rows * width;
            match element {
                // SAFETY: the panels do not overlap, and `lines` has room for all.
                Element::F32 => unsafe { pack(level, part, 1.0, width, to.pointer(values)) },
                Element::Bf16 | Element::F16 | Element::Pairs => {
                    let mut panel = vec![0.0; rows * width];
                    // SAFETY: as above, of `panel`.
                    unsafe { pack(level, part, 1.0, width, panel.as_mut_ptr()) };
                    // SAFETY: as above, of halves.
                    let to = unsafe {
                        let to = to.pointer(0).cast::<u16>().add(values);
                        std::slice::from_raw_parts_mut(to, panel.len())
                    };
                    match element {
                        Element::F16 => to
                            .reinterpret_cast_mut::<f16>()
                            .convert_from_f32_slice(&panel),
                        Element::Pairs => narrow_in_pairs(&panel, width, to),
                        // Which is exact.
                        _ => round_row(&panel, to),
                    }
                }
            }
        });
        Panels {
            lines,
            element,
            rows: matrix.rows,
            columns: matrix.columns,
            level,
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// Where panel `index` has row `row`; none where it is not of f32.
    pub fn in_place(&self, index: usize, row: usize) -> Option<*const f32> {
        let from = self.lines.as_ptr().cast::<f32>();
        (self.element == Element::F32).then(|| from.wrapping_add(self.at(index, row)))
    }

    /// How many values lie before row `row` of panel `index`.
    fn at(&self, index: usize, row: usize) -> usize {
        (index * kept_rows(self.rows, self.element) + row) * panel_width(self.level)
    }

    /// Whether it is for products in bf16.
    pub fn is_paired(&self) -> bool {
        self.element == Element::Pairs
    }

    /// Where panel `index` has the pairs of row `row`, which is even, and the next.
    pub fn pairs(&self, index: usize, row: usize) -> *const u32 {
        let from = self.lines.as_ptr().cast::<u32>();
        from.wrapping_add(self.at(index, row) / 2)
    }

    /// `count` rows of panel `index` from row `first` on, in f32; of pairs both rows.
    ///
    /// # Safety
    /// `out` has room for them.
    pub unsafe fn widened(&self, index: usize, first: usize, count: usize, out: *mut f32) {
        let values = kept_rows(count, self.element) * panel_width(self.level);
        let from = self.at(index, first);
        let halves = || &bytemuck::cast_slice::<Line, u16>(&self.lines)[from..][..values];
        // SAFETY: by the caller's promise; what is not written yet is zero before anyone reads it.
        let out = unsafe {
            std::ptr::write_bytes(out, 0, values);
            std::slice::from_raw_parts_mut(out, values)
        };
        match self.element {
            Element::F32 => {
                let floats: &[f32] = bytemuck::cast_slice(&self.lines);
                out.copy_from_slice(&floats[from..][..values]);
            }
            Element::Bf16 => widen(halves(), out),
            Element::F16 => halves().reinterpret_cast::<f16>().convert_to_f32_slice(out),
            Element::Pairs => widen_pairs(halves(), panel_width(self.level), out),
        }
    }

    /// `count` rows of panel `index` of the transpose from row `first` on, in f32.
    ///
    /// # Safety
    /// `out` has room for `count` rows.
    pub unsafe fn transposed(&self, index: usize, first: usize, count: usize, out: *mut f32) {
        let width = panel_width(self.level);
        let top = index * width;
        let rows = width.min(self.rows - top);
        let mut wide = [0f32; WIDEST * WIDEST];
        // SAFETY: every read lies in a panel's rows and every write in `count` rows of `out`.
        unsafe {
            if rows < width {
                std::ptr::write_bytes(out, 0, count * width);
            }
            let mut row = first;
            while row < first + count {
                let (panel, column) = (row / width, row % width);
                let columns = (width - column).min(first + count - row);
                let block = match self.in_place(panel, top) {
                    Some(block) => block,
                    None => {
                        self.widened(panel, top, rows, wide.as_mut_ptr());
                        wide.as_ptr()
                    }
                };
                let to = out.add((row - first) * width);
                transpose(self.level, [rows, columns], block.add(column), to, width);
                row += columns;
            }
        }
    }

    /// Pairs of rows of panel `index` of the transpose, from row `first` on, which is even, until `count` rows are there.
    ///
    /// # Safety
    /// `out` has room for them.
    pub unsafe fn transposed_pairs(&self, index: usize, first: usize, count: usize, out: *mut u32) {
        let width = panel_width(self.level);
        let top = index * width;
        let pairs = width.min(self.rows - top).div_ceil(2);
        // SAFETY: every read lies in a panel and every write in the rows of `out`.
        unsafe {
            if 2 * pairs < width {
                std::ptr::write_bytes(out, 0, count.div_ceil(2) * width);
            }
            let mut row = first;
            while row < first + count {
                let (panel, column) = (row / width, row % width);
                // Columns beyond the last are zeros.
                let columns = (width - column).min(first + count - row).div_ceil(2);
                let block = self.pairs(panel, top).add(column);
                let to = out.add((row - first) / 2 * width);
                transpose_pairs([pairs, columns], block, to, width);
                row += 2 * columns;
            }
        }
    }
}

/// Rows that a panel has room for.
fn kept_rows(rows: usize, element: Element) -> usize {
    match element {
        Element::Pairs => rows.next_multiple_of(2),
        Element::F32 | Element::Bf16 | Element::F16 => rows,
    }
}

/// f32 rounded to bf16, two rows side by side.
fn narrow_in_pairs(panel: &[f32], width: usize, to: &mut [u16]) {
    for (rows, to) in panel.chunks(2 * width).zip(to.chunks_mut(2 * width)) {
        for (column, pair) in to.chunks_mut(2).enumerate() {
            pair[0] = round(rows[column]);
            pair[1] = round(rows[width + column]);
        }
    }
}

vectorised! {
    /// Pairs to rows of f32.
    fn widen_pairs(from: &[u16], width: usize, to: &mut [f32]) {
        for (pairs, rows) in from.chunks(2 * width).zip(to.chunks_mut(2 * width)) {
            let (first, second) = rows.split_at_mut(width);
            for ((pair, first), second) in pairs.chunks_exact(2).zip(first).zip(second) {
                *first = f32::from_bits(u32::from(pair[0]) << 16);
                *second = f32::from_bits(u32::from(pair[1]) << 16);
            }
        }
    }
}

vectorised! {
    /// bf16 to f32.
    fn widen(from: &[u16], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(*from) << 16);
        }
    }
}

/// Writes the transpose of `rows × columns` values; the rows of either are `stride` apart.
///
/// # Safety
/// All of them can be read, and written.
unsafe fn transpose(
    level: Level,
    [rows, columns]: [usize; 2],
    from: *const f32,
    to: *mut f32,
    stride: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2 {
        // SAFETY: the CPU has the level, and the rest is the caller's promise.
        return unsafe { transpose_by_eights([rows, columns], from, to, stride) };
    }
    let _ = level;
    // SAFETY: the caller's promise.
    unsafe { transpose_one_by_one([0..rows, 0..columns], from, to, stride) }
}

/// Writes the transpose of `rows × columns` squares of two pairs each; the rows of either are `stride` pairs apart.
///
/// # Safety
/// All of them can be read, and written.
unsafe fn transpose_pairs(
    [rows, columns]: [usize; 2],
    from: *const u32,
    to: *mut u32,
    stride: usize,
) {
    for column in 0..columns {
        for row in 0..rows {
            // SAFETY: the caller's promise.
            unsafe {
                let square = from.add(row * stride + 2 * column).cast::<u64>();
                let square = square.read_unaligned();
                let kept = square & 0xFFFF_0000_0000_FFFF;
                let moved = (square >> 16 & 0xFFFF_0000) | (square & 0xFFFF_0000) << 16;
                let to = to.add(column * stride + 2 * row).cast::<u64>();
                to.write_unaligned(kept | moved);
            }
        }
    }
}

#[inline(always)]
unsafe fn transpose_one_by_one(
    [rows, columns]: [std::ops::Range<usize>; 2],
    from: *const f32,
    to: *mut f32,
    stride: usize,
) {
    for column in columns {
        for row in rows.clone() {
            // SAFETY: the caller's promise.
            unsafe { *to.add(column * stride + row) = *from.add(row * stride + column) };
        }
    }
}

/// Squares of eight in registers: three rounds of shuffles, of neighbours, pairs and halves.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn transpose_by_eights(
    [rows, columns]: [usize; 2],
    from: *const f32,
    to: *mut f32,
    stride: usize,
) {
    use std::arch::x86_64::*;
    let [whole_rows, whole_columns] = [rows, columns].map(|count| count - count % 8);
    // SAFETY: the caller's promise.
    unsafe {
        for row in (0..whole_rows).step_by(8) {
            for column in (0..whole_columns).step_by(8) {
                let from = from.add(row * stride + column);
                let a: [__m256; 8] = std::array::from_fn(|i| _mm256_loadu_ps(from.add(i * stride)));
                let b: [__m256; 8] = std::array::from_fn(|i| match i % 2 {
                    0 => _mm256_unpacklo_ps(a[i], a[i + 1]),
                    _ => _mm256_unpackhi_ps(a[i - 1], a[i]),
                });
                let c: [__m256; 8] = std::array::from_fn(|i| {
                    let (four, pair) = (i / 4 * 4, i % 4 / 2);
                    match i % 2 {
                        0 => _mm256_shuffle_ps::<0b01_00_01_00>(b[four + pair], b[four + pair + 2]),
                        _ => _mm256_shuffle_ps::<0b11_10_11_10>(b[four + pair], b[four + pair + 2]),
                    }
                });
                for i in 0..4 {
                    let to = to.add((column + i) * stride + row);
                    _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x20>(c[i], c[i + 4]));
                    let to = to.add(4 * stride);
                    _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x31>(c[i], c[i + 4]));
                }
            }
        }
        transpose_one_by_one([whole_rows..rows, 0..columns], from, to, stride);
        transpose_one_by_one([0..whole_rows, whole_columns..columns], from, to, stride);
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

#[inline(always)]
pub unsafe fn load<S: Simd>(from: *const f32) -> S::f32s {
    // SAFETY: the caller's promise; alignment is not needed.
    unsafe { from.cast::<S::f32s>().read_unaligned() }
}

#[inline(always)]
pub unsafe fn store<S: Simd>(to: *mut f32, values: S::f32s) {
    // SAFETY: the caller's promise; alignment is not needed.
    unsafe { to.cast::<S::f32s>().write_unaligned(values) }
}
