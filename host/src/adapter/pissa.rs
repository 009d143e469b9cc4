//! PiSSA: pairs that start from the principal components of the module's own weight (Meng et al. 2024).
//!
//! PEFT takes `s·B₀A₀` out of the frozen weight and trains the pair in its place: `y = (W − s·B₀A₀)·x + s·BA·x`. Here the
//! weight stays as it is and what has been learnt since is added, `s·(BA − B₀A₀)`: the same function with the same
//! gradients, and an adapter of the model as it was published, of which a module that is left out, scaled or shared is
//! as in LoRA. Without a small difference of large products, it is the pair of twice the rank
//!
//! ```text
//! BA − B₀A₀ = (B − B₀)·A + B₀·(A − A₀) = [B − B₀ | B₀]·[A ; A − A₀]
//! ```

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use faer::linalg::solvers::SvdError;
use faer::{Mat, MatRef};
use rand::SeedableRng;
use rand::distr::Distribution;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

use super::stream;
use crate::error::{Error, Result};

/// `[A₀, B₀]` of a frozen weight `[out, in]`, row by row: of its `rank` largest singular values σ with the vectors u and
/// v the rows `√(σ/s)·v` and the columns `√(σ/s)·u`, so that `s·B₀A₀` is the nearest matrix of that rank; or nearly
/// these, by so many `iterations`. `name` is the module's.
pub fn principal(
    weight: &[f32],
    [outputs, inputs]: [usize; 2],
    rank: usize,
    scale: f32,
    iterations: Option<usize>,
    (seed, name): (u64, &str),
) -> Result<[Vec<f32>; 2]> {
    let weight = MatRef::from_row_major_slice(weight, outputs, inputs);
    let found = match iterations {
        None => whole(weight),
        Some(iterations) => nearly(weight, rank, iterations, (seed, name)),
    };
    let (u, sigma, v) = found.map_err(|_| {
        Error::failure(format!(
            "the singular values of the weight of {name} were not found"
        ))
    })?;
    let root = |k: usize| (sigma[k] / scale).sqrt();
    let a = (0..rank).flat_map(|k| (0..inputs).map(move |i| (k, i)));
    let b = (0..outputs).flat_map(|o| (0..rank).map(move |k| (o, k)));
    Ok([
        a.map(|(k, i)| root(k) * v[(i, k)]).collect(),
        b.map(|(o, k)| root(k) * u[(o, k)]).collect(),
    ])
}

/// U, the singular values and V.
pub type Svd = (Mat<f32>, Vec<f32>, Mat<f32>);

/// `W = U·Σ·Vᵀ`.
pub fn whole(weight: MatRef<'_, f32>) -> Result<Svd, SvdError> {
    let svd = weight.thin_svd()?;
    let sigma = svd.S().column_vector().iter().copied().collect();
    Ok((svd.U().to_owned(), sigma, svd.V().to_owned()))
}

/// The largest singular values by so many `iterations` of a subspace of `rank` random directions (Halko et al. 2011,
/// algorithms 4.4 and 5.1), as PyTorch's `svd_lowrank`, which draws others.
pub fn nearly(
    weight: MatRef<'_, f32>,
    rank: usize,
    iterations: usize,
    (seed, name): (u64, &str),
) -> Result<Svd, SvdError> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream(name));
    let directions: Mat<f32> = Mat::from_fn(weight.ncols(), rank, |_, _| {
        StandardNormal.sample(&mut random)
    });
    let basis = |span: Mat<f32>| span.qr().compute_thin_Q();
    let mut q = basis(weight * directions);
    for _ in 0..iterations {
        q = basis(weight.transpose() * &q);
        q = basis(weight * &q);
    }
    let (u, sigma, v) = whole((q.transpose() * weight).as_ref())?;
    Ok((&q * u, sigma, v))
}

/// The pair of twice the rank that `BA − B₀A₀` is the product of: of values, or on their way through a pass.
pub fn moved<B: Backend>(
    [a, b]: [Tensor<B, 2>; 2],
    [a0, b0]: [Tensor<B, 2>; 2],
) -> [Tensor<B, 2>; 2] {
    [
        Tensor::cat(vec![a.clone(), a - a0], 0),
        Tensor::cat(vec![b - b0.clone(), b0], 1),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix of the singular values 8, 4, 2, 1, …, by products of rotations.
    fn weight(outputs: usize, inputs: usize) -> Vec<f32> {
        let basis = |n: usize, salt: u64| {
            let mut random = ChaCha8Rng::seed_from_u64(salt);
            let values: Mat<f32> = Mat::from_fn(n, n, |_, _| StandardNormal.sample(&mut random));
            values.qr().compute_thin_Q()
        };
        let (u, v): (Mat<f32>, Mat<f32>) = (basis(outputs, 1), basis(inputs, 2));
        let value = |o: usize, i: usize| {
            let terms = (0..outputs.min(inputs))
                .map(|k| u[(o, k)] * 8.0 * 0.5_f32.powi(k as i32) * v[(i, k)]);
            terms.sum::<f32>()
        };
        (0..outputs)
            .flat_map(|o| (0..inputs).map(move |i| (o, i)))
            .map(|(o, i)| value(o, i))
            .collect()
    }

    #[test]
    fn what_is_left_of_the_weight_has_the_smaller_singular_values() {
        for [outputs, inputs] in [[12, 9], [7, 16]] {
            let weight = weight(outputs, inputs);
            for iterations in [None, Some(8)] {
                let (rank, scale, shape) = (3, 2.0, [outputs, inputs]);
                let [a, b] = principal(&weight, shape, rank, scale, iterations, (1, "query"))
                    .expect("singular values");
                let share = |o: usize, i: usize| {
                    let terms = (0..rank).map(|k| b[o * rank + k] * a[k * inputs + i]);
                    scale * terms.sum::<f32>()
                };
                let rest =
                    Mat::from_fn(outputs, inputs, |o, i| weight[o * inputs + i] - share(o, i));
                let (_, sigma, _) = whole(rest.as_ref()).expect("singular values");
                assert!(
                    (sigma[0] - 1.0).abs() < 1e-3,
                    "{iterations:?}: {}",
                    sigma[0]
                );
                // Half of it in each.
                let norm = |values: &[f32]| values.iter().map(|it| it * it).sum::<f32>();
                let expected = (8.0 + 4.0 + 2.0) / scale;
                assert!((norm(&a) - expected).abs() < 1e-3 * expected);
                assert!((norm(&b) - expected).abs() < 1e-3 * expected);
            }
        }
    }
}
