//! Products of values rounded to bf16, summed up in f32: twice the work of f32 where the CPU has AVX512-BF16.
//!
//! Its instruction adds two products to a sum, that of the second values first, each rounded once. Where the CPU lacks
//! it, the f32 kernel does the same on rounded values whose pairs are swapped: the same bits, but for products below
//! 1.2e-38, which the instruction takes for zero.

use rayon::prelude::*;

use super::gemm::{Segment, Start};
use super::matrix::Matrix;
use super::simd::{Level, level, vectorised};

/// Whether products run on the CPU's own instruction.
pub fn native() -> bool {
    #[cfg(target_arch = "x86_64")]
    let there = is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    let there = false;
    there && level() == Level::Avx512
}

/// A left-hand matrix, rounded.
pub struct Rounded {
    /// How its values are kept.
    pub values: Values,
    /// Pairs in a row: the last has a zero where the columns are odd.
    pub pairs: usize,
}

/// The values of a [`Rounded`], row by row.
pub enum Values {
    /// Two bf16 each, the first in the lower half.
    Pairs(Vec<u32>),
    /// Floats, each pair's second value first.
    Swapped(Vec<f32>),
}

impl Rounded {
    /// Rounds a matrix whose rows lie in one piece each.
    pub fn new(matrix: Matrix<'_>) -> Self {
        let (rows, columns) = (matrix.height(), matrix.width());
        let stride = matrix.row_major().expect("rows in one piece");
        let pairs = columns.div_ceil(2);
        let row = |index: usize| &matrix.values[index * stride..][..columns];
        let values = if native() {
            let mut values = vec![0; rows * pairs];
            each_row(&mut values, pairs, |index, values| {
                round_row(row(index), bytemuck::cast_slice_mut(values));
            });
            Values::Pairs(values)
        } else {
            let mut values = vec![0.0; rows * 2 * pairs];
            each_row(&mut values, 2 * pairs, |index, values| {
                for (values, given) in values.chunks_mut(2).zip(row(index).chunks(2)) {
                    for (at, value) in given.iter().enumerate() {
                        values[1 - at] = f32::from_bits(u32::from(round(*value)) << 16);
                    }
                }
            });
            Values::Swapped(values)
        };
        Rounded { values, pairs }
    }
}

/// Writes the rows of a matrix, several in a task: one is dearer than a short row.
fn each_row<T: Send>(values: &mut [T], width: usize, write: impl Fn(usize, &mut [T]) + Sync) {
    let width = width.max(1);
    let some = (1 << 14) / width + 1;
    let tasks = values.par_chunks_mut(some * width).enumerate();
    tasks.for_each(|(task, rows)| {
        for (index, row) in rows.chunks_mut(width).enumerate() {
            write(task * some + index, row);
        }
    });
}

/// To the nearest bf16, ties to even; what is no number stays none.
#[inline(always)]
pub fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    let bits = if value.is_nan() { quiet } else { nearest };
    (bits >> 16) as u16
}

vectorised! {
    /// f32 to bf16, to nearest.
    pub fn round_row(from: &[f32], to: &mut [u16]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = round(*from);
        }
    }
}

/// Swaps every two of `count` rows of a panel; behind an odd number of them comes one of zeros.
///
/// # Safety
/// `panel` has room for them.
pub unsafe fn swap_rows(panel: *mut f32, count: usize, width: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if count % 2 == 1 {
            std::ptr::write_bytes(panel.add(count * width), 0, width);
        }
        for row in (0..count).step_by(2) {
            let row = panel.add(row * width);
            std::ptr::swap_nonoverlapping(row, row.add(width), width);
        }
    }
}

/// A stretch as the kernel reads it: `k` steps of two along rows of the left and down a panel.
#[derive(Clone, Copy)]
pub struct PairSegment {
    /// The left matrix's first pair.
    pub left: *const u32,
    /// How far apart its rows are, in pairs.
    pub row_stride: usize,
    /// The panel's first row of pairs, of [`WIDTH`] each.
    pub panel: *const u32,
    /// Steps.
    pub k: usize,
}

/// Columns of a panel that the instruction reads.
const WIDTH: usize = 32;

/// As [`gemm::sweep`](super::gemm::sweep), the pairs before the segment.
///
/// # Safety
/// The CPU has the instruction, the segments can be read and `out` written, in rows `stride` apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub unsafe fn sweep(
    rows: usize,
    columns: usize,
    mut pairs: PairSegment,
    mut side: Segment,
    mut out: *mut f32,
    stride: usize,
    start: Start<'_>,
) {
    let mut left = rows;
    macro_rules! tiles {
        ($($count:literal)*) => {
            $(while left >= $count {
                // SAFETY: by the caller's promise, with `left` rows to go.
                unsafe {
                    if columns > WIDTH / 2 {
                        tile::<$count, 2>(columns, &pairs, &side, out, stride, start);
                    } else {
                        tile::<$count, 1>(columns, &pairs, &side, out, stride, start);
                    }
                    out = out.add($count * stride);
                }
                pairs.left = pairs.left.wrapping_add($count * pairs.row_stride);
                side.left = side.left.wrapping_add($count * side.row_stride);
                left -= $count;
            })*
        };
    }
    tiles!(12 8 4 2 1);
}

/// `ROWS` rows by `WIDE` vectors of sixteen columns, summed up in registers.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn tile<const ROWS: usize, const WIDE: usize>(
    columns: usize,
    pairs: &PairSegment,
    side: &Segment,
    out: *mut f32,
    stride: usize,
    start: Start<'_>,
) {
    use std::arch::x86_64::*;
    use std::mem::transmute;
    let mask: [__mmask16; WIDE] = std::array::from_fn(|v| {
        let left = columns - v * 16;
        if left >= 16 { !0 } else { (1 << left) - 1 }
    });
    let mut sums = [[_mm512_setzero_ps(); WIDE]; ROWS];
    // SAFETY: the caller's promise covers every row, column and step; columns beyond are masked out.
    unsafe {
        let rows: [*const u32; ROWS] =
            std::array::from_fn(|row| pairs.left.wrapping_add(row * pairs.row_stride));
        let mut panel = pairs.panel;
        for step in 0..pairs.k {
            let right: [__m512bh; WIDE] = std::array::from_fn(|v| {
                transmute::<__m512i, __m512bh>(_mm512_loadu_si512(panel.add(v * 16).cast()))
            });
            for (row, sums) in rows.iter().zip(&mut sums) {
                let left = _mm512_set1_epi32(row.add(step).read() as i32);
                let left = transmute::<__m512i, __m512bh>(left);
                for (sum, right) in sums.iter_mut().zip(&right) {
                    *sum = _mm512_dpbf16_ps(*sum, left, *right);
                }
            }
            panel = panel.wrapping_add(WIDTH);
        }
        let rows: [*const f32; ROWS] =
            std::array::from_fn(|row| side.left.wrapping_add(row * side.row_stride));
        let mut panel = side.panel;
        let mut at = 0;
        for _ in 0..side.k {
            let right: [__m512; WIDE] = std::array::from_fn(|v| _mm512_loadu_ps(panel.add(v * 16)));
            for (row, sums) in rows.iter().zip(&mut sums) {
                let left = _mm512_set1_ps(*row.wrapping_add(at));
                for (sum, right) in sums.iter_mut().zip(&right) {
                    *sum = _mm512_fmadd_ps(left, *right, *sum);
                }
            }
            at += side.column_stride;
            panel = panel.wrapping_add(side.panel_stride);
        }
        match start {
            Start::Zero => {}
            Start::Bias(bias) => {
                let bias: [__m512; WIDE] = std::array::from_fn(|v| {
                    _mm512_maskz_loadu_ps(mask[v], bias.as_ptr().wrapping_add(v * 16))
                });
                for sums in &mut sums {
                    for (sum, bias) in sums.iter_mut().zip(&bias) {
                        *sum = _mm512_add_ps(*sum, *bias);
                    }
                }
            }
            Start::Sum => {
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let from = out.wrapping_add(row * stride + v * 16);
                        *sum = _mm512_add_ps(*sum, _mm512_maskz_loadu_ps(mask[v], from));
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                _mm512_mask_storeu_ps(out.wrapping_add(row * stride + v * 16), mask[v], *sum);
            }
        }
    }
}
