//! Run-time choice of instruction set for the CPU kernels.
//!
//! Rust compiles for SSE2 unless told otherwise, so each kernel's body is compiled once per level
//! and the CPU is asked which to run. The bodies are plain loops over fixed-size lanes that the
//! compiler vectorises, or, where registers must be held by hand (matrix products), generic over
//! `pulp::Simd`; nothing here is written in intrinsics.

use std::sync::atomic::{AtomicU8, Ordering};

use pulp::{Simd, WithSimd};

/// An instruction-set level, lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What the target guarantees: SSE2 on x86-64, NEON on AArch64.
    Portable = 1,
    /// AVX2 and FMA.
    Avx2 = 2,
    /// AVX-512 F, BW, CD, DQ and VL.
    Avx512 = 3,
}

impl Level {
    /// Floats in one vector of [`run`](Self::run).
    pub fn lanes(self) -> usize {
        match self {
            Level::Avx512 => 16,
            Level::Avx2 => 8,
            Level::Portable if cfg!(target_arch = "aarch64") => 4,
            Level::Portable => 1,
        }
    }

    /// Runs `work` with this level's vectors, which the CPU must have.
    pub fn run<W: WithSimd>(self, work: W) -> W::Output {
        #[cfg(target_arch = "x86_64")]
        match self {
            // `try_new` asks again, which is one load, so that nothing here is taken on trust.
            Level::Avx512 => {
                if let Some(simd) = pulp::x86::V4::try_new() {
                    return Simd::vectorize(simd, work);
                }
            }
            Level::Avx2 => {
                if let Some(simd) = pulp::x86::V3::try_new() {
                    return Simd::vectorize(simd, work);
                }
            }
            Level::Portable => {}
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(simd) = pulp::aarch64::Neon::try_new() {
            return Simd::vectorize(simd, work);
        }
        assert_eq!(self.lanes(), 1, "the CPU lacks {self:?}");
        Simd::vectorize(pulp::Scalar::new(), work)
    }
}

/// 0 until the CPU has been asked.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The level in force: the best the CPU has, unless [`force`] lowered it.
pub fn level() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        0 => {
            let best = best();
            LEVEL.store(best as u8, Ordering::Relaxed);
            best
        }
        1 => Level::Portable,
        2 => Level::Avx2,
        _ => Level::Avx512,
    }
}

/// The best level this CPU has.
pub fn best() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if pulp::x86::V4::try_new().is_some() {
            return Level::Avx512;
        }
        if pulp::x86::V3::try_new().is_some() {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// Lowers the level for the whole process, so that every level can be tested on one machine.
/// A level the CPU lacks is cut to the best it has.
pub fn force(level: Level) {
    LEVEL.store(level.min(best()) as u8, Ordering::Relaxed);
}

/// `a·b + c`, fused where the level has the instruction. Without it, `f32::mul_add` would be a call
/// into libm for every element.
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Defines a function whose body is compiled once per [`Level`]. Inside it, `FMA` is a constant that
/// says whether fused multiply-add is an instruction. Whatever the body calls must be
/// `#[inline(always)]`, or it would be compiled for the lowest level.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[allow(unused_variables, clippy::extra_unused_type_parameters)]
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                match $crate::kernel::simd::level() {
                    // SAFETY: `level` never exceeds what the CPU was found to have.
                    $crate::kernel::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernel::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernel::simd::Level::Portable => {}
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use vectorised;

/// `eˣ` for finite `x`, within 2 units in the last place (Cephes `expf`: range reduction by ln 2, then a
/// polynomial of degree 6). Branch-free, so that it vectorises.
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that n·ln 2 is subtracted exactly.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5·2²³ rounds to the nearest integer without a libm call.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let rounded = fma::<FMA>(x, LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = fma::<FMA>(n, -LN2_HI, x);
    let r = fma::<FMA>(n, -LN2_LO, r);
    let mut p = 1.987_569_1e-4;
    p = fma::<FMA>(p, r, 1.398_199_9e-3);
    p = fma::<FMA>(p, r, 8.333_452e-3);
    p = fma::<FMA>(p, r, 4.166_579_6e-2);
    p = fma::<FMA>(p, r, 1.666_666_5e-1);
    p = fma::<FMA>(p, r, 0.5);
    let y = fma::<FMA>(p, r * r, r) + 1.0;
    // 2ⁿ: the lowest bits of the rounded sum are n's own, and all others are shifted out.
    let scale = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    y * scale
}

/// The error function, within 4 units in the last place: the odd rational minimax approximation of
/// degree 13 over 8 on [-4, 4] that Eigen and XLA use; ±1 beyond.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub fn erf<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let x2 = x * x;
    let mut p = -2.726_142_2e-10;
    p = fma::<FMA>(p, x2, 2.770_681_4e-8);
    p = fma::<FMA>(p, x2, -2.101_024e-6);
    p = fma::<FMA>(p, x2, -5.692_506_4e-5);
    p = fma::<FMA>(p, x2, -7.349_906_3e-4);
    p = fma::<FMA>(p, x2, -2.954_599_8e-3);
    p = fma::<FMA>(p, x2, -1.609_603_3e-2);
    let mut q = -1.456_607_2e-5;
    q = fma::<FMA>(q, x2, -2.133_740_5e-4);
    q = fma::<FMA>(q, x2, -1.682_827e-3);
    q = fma::<FMA>(q, x2, -7.373_329e-3);
    q = fma::<FMA>(q, x2, -1.426_473_9e-2);
    x * p / q
}

/// Hyperbolic tangent, within 2e-7 of its value: a polynomial (Cephes' `tanhf`) where it is near its argument, so that small
/// ones lose nothing, and exponentials beyond.
#[inline(always)]
pub fn tanh<const FMA: bool>(x: f32) -> f32 {
    let x2 = x * x;
    let mut p = -5.704_989e-3;
    p = fma::<FMA>(p, x2, 2.063_908_8e-2);
    p = fma::<FMA>(p, x2, -5.373_971_6e-2);
    p = fma::<FMA>(p, x2, 1.333_144_2e-1);
    p = fma::<FMA>(p, x2, -3.333_328e-1);
    let small = fma::<FMA>(p * x2, x, x);
    let large = 1.0 - 2.0 / (exp::<FMA>(2.0 * x) + 1.0);
    if x.abs() < 0.625 { small } else { large }
}

/// Lanes of the running sums below: one AVX-512 register, two of AVX2.
pub const LANES: usize = 16;

/// Sum of `f` over a slice, in lanes that are added up at the end. The order of additions depends on
/// the length alone, never on the instruction set.
#[inline(always)]
pub fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f(*value);
        }
    }
    let mut sum: f32 = lanes.iter().sum();
    for value in rest {
        sum += f(*value);
    }
    sum
}

/// `x ← f(x)`, and the sum of what comes out, in the same order as [`sum_of`].
#[inline(always)]
pub fn map_sum(x: &mut [f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = f(*value);
            *lane += *value;
        }
    }
    let mut sum: f32 = lanes.iter().sum();
    for value in rest {
        *value = f(*value);
        sum += *value;
    }
    sum
}

/// The largest value of a slice.
#[inline(always)]
pub fn max_of(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    let mut max = f32::NEG_INFINITY;
    for value in lanes.iter().chain(rest) {
        max = max.max(*value);
    }
    max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_libm() {
        for i in -8000..=8000 {
            let x = i as f32 * 0.01;
            let (ours, theirs) = (exp::<true>(x), x.exp());
            assert!(
                (ours - theirs).abs() <= 3e-7 * theirs,
                "exp({x}) = {ours}, not {theirs}"
            );
        }
    }

    #[test]
    fn tanh_agrees_with_libm() {
        for i in -4000..=4000 {
            let x = i as f32 * 0.005;
            let (ours, theirs) = (tanh::<true>(x), x.tanh());
            assert!(
                (ours - theirs).abs() <= 3e-7 * theirs.abs(),
                "tanh({x}) = {ours}, not {theirs}"
            );
        }
        assert_eq!(tanh::<true>(1e-20), 1e-20);
        assert_eq!((tanh::<true>(99.0), tanh::<true>(-99.0)), (1.0, -1.0));
    }

    #[test]
    fn erf_agrees_with_the_series() {
        // erf x = 2/√π · Σ (-1)ⁿ x^(2n+1) / (n! (2n+1)), in f64.
        for i in -350..=350 {
            let x = i as f64 * 0.01;
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / n as f64;
                sum += term / (2 * n + 1) as f64;
            }
            let exact = sum * std::f64::consts::FRAC_2_SQRT_PI;
            let ours = erf::<true>(x as f32) as f64;
            assert!(
                (ours - exact).abs() < 5e-7,
                "erf({x}) = {ours}, not {exact}"
            );
        }
        assert_eq!(erf::<true>(9.0), erf::<true>(4.0));
    }
}
