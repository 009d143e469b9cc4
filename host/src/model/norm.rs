//! Norms of a checkpoint.

use super::Weights;
use super::architecture::NormPart;
use super::linear::Source;
use crate::error::Result;
use crate::kernel::{Kernels, Norm};

/// What a checkpoint calls the scale, and the shift if there is one, of the norm `name`.
pub(super) fn norm_names(
    weights: &Weights,
    name: &str,
    part: &NormPart,
) -> (String, Option<String>) {
    // TensorFlow's first checkpoints say gamma and beta.
    let [weight, bias] = match weights.contains(&format!("{name}.gamma")) {
        true => ["gamma", "beta"],
        false => ["weight", "bias"],
    };
    let shift = part.bias.then(|| format!("{name}.{bias}"));
    (format!("{name}.{weight}"), shift)
}

/// Loads the norm at `path` of the body over so many features.
pub(super) fn load_norm<B: Kernels>(
    source: Source<'_>,
    path: &str,
    part: &NormPart,
    features: usize,
    device: &B::Device,
) -> Result<Norm<B>> {
    let weights = source.weights;
    let (scale, shift) = norm_names(weights, &format!("{}{path}", source.prefix), part);
    let shift = shift.map(|name| weights.tensor(&name, [features], device));
    let scale = weights.tensor(&scale, [features], device)?;
    Ok(Norm {
        kind: part.kind,
        gamma: match part.less_one {
            true => scale + 1.0,
            false => scale,
        },
        beta: shift.transpose()?,
        epsilon: part.epsilon,
    })
}

/// Refuses a checkpoint that lacks the norm at `path` of the body.
pub(super) fn require_norm(
    source: Source<'_>,
    path: &str,
    part: &NormPart,
    features: usize,
) -> Result<()> {
    let (scale, shift) = norm_names(source.weights, &format!("{}{path}", source.prefix), part);
    source.weights.require(&scale, &[features])?;
    match shift {
        Some(shift) => source.weights.require(&shift, &[features]),
        None => Ok(()),
    }
}
