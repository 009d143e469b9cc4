//! Gradient checkpointing (Chen et al. 2016): what goes into each layer is kept, and what the layer makes of it is
//! computed once more on the way back, one layer at a time.
//!
//! Every layer gets the same input, the same dropout and the same gradient of its output as without, so that all
//! gradients are the same, bit for bit.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;

use super::trainee::Trainee;
use crate::adapter::{Observe, Part, Pass};
use crate::error::Result;
use crate::kernel::{Ad, Kernels, Sequences, is_tracked};

/// Gradients of one backward pass.
pub type Found<B> = <Ad<B> as AutodiffBackend>::Gradients;

/// The layers that are run twice: from the lowest with a module in `tracked`, or above one, to the last but one. Those
/// below keep nothing, and the last goes back as soon as it is run. None where all `depth` layers of a model lie below,
/// which have been run.
fn twice<B: Kernels>(trainee: &Trainee<B>, tracked: &[bool], depth: usize) -> Range<usize> {
    let layers = trainee.model.base.depth();
    let top = (layers - 1).max(depth);
    let modules = (0..tracked.len()).filter(|module| tracked[*module]);
    let lowest = modules.map(|module| trainee.adapters.layers_below(module, layers));
    let first = lowest.min().unwrap_or(top);
    first.max(depth).min(top)..top
}

/// Loss and gradients from the hidden states `x` of all tokens after the first `depth` layers; `loss` makes it of those
/// after more. `seed` is that of the pass, beside the part of the batch that it runs. The gradients of one tensor may be
/// in several of those that come back, and are their sum.
pub fn backward<B: Kernels>(
    trainee: &Trainee<B>,
    (x, depth): (Tensor<Ad<B>, 2>, usize),
    sequences: &Sequences,
    (tracked, seed, part): (&[bool], u64, Option<Part>),
    pass: &mut Pass<B>,
    loss: impl FnOnce(Tensor<Ad<B>, 2>, usize, &mut Pass<B>) -> Result<Tensor<Ad<B>, 1>>,
) -> Result<(Tensor<B, 1>, Vec<Found<B>>)> {
    let base = &trainee.model.base;
    let around = base.around(sequences, &x.device());
    let layers = twice(trainee, tracked, depth);
    // Of what trains in the embeddings, below all layers.
    let embedded = is_tracked(&x).then(|| x.clone());
    let mut x = base.between(x, depth..layers.start, &around, pass);
    if embedded.is_some() {
        x = Tensor::from_inner(x.inner());
    }
    let nothing = vec![false; tracked.len()];
    let mut ahead = Pass::train(
        &trainee.adapters,
        &trainee.head,
        &nothing,
        Observe::default(),
        seed,
    )
    .of_part(part);
    let mut inputs = Vec::new();
    for layer in layers.clone() {
        inputs.push(x.clone().inner());
        x = base.between(x, layer..layer + 1, &around, &mut ahead);
    }
    // A gradient is wanted of what a layer that trains has made.
    let entered = |x: Tensor<B, 2>, layer: usize| {
        let x = Tensor::<Ad<B>, 2>::from_inner(x);
        match layer > layers.start || embedded.is_some() {
            true => x.require_grad(),
            false => x,
        }
    };
    let x = entered(x.inner(), layers.end);
    let loss = loss(x.clone(), layers.end, pass)?;
    let value = loss.clone().inner();
    let mut found = vec![loss.backward()];
    let taken = |above: &Tensor<Ad<B>, 2>, found: &mut Vec<Found<B>>| {
        let last = found.last_mut().expect("one for each layer above");
        let gradient = above.grad_remove(last);
        gradient.expect("it is tracked, and the loss depends on it")
    };
    let mut above = x;
    for layer in layers.clone().rev() {
        let gradient = taken(&above, &mut found);
        let x = entered(inputs.pop().expect("one for each layer"), layer);
        let y = base.between(x.clone(), layer..layer + 1, &around, pass);
        // Whose gradient with respect to y is that gradient, exactly.
        let product = (y * Tensor::from_inner(gradient)).sum();
        found.push(product.backward());
        above = x;
    }
    if let Some(embedded) = embedded {
        let gradient = taken(&above, &mut found);
        let product = (embedded * Tensor::from_inner(gradient)).sum();
        found.push(product.backward());
    }
    Ok((value, found))
}
