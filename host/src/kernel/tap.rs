//! Looking at a gradient as the backward pass comes by.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn_backend::Backend;
use burn_backend::tensor::FloatTensor;

use super::Ad;
use super::record::{input, is_tracked, plain, record};

/// What is done with the gradient that came by.
#[derive(Clone)]
struct Look<B: Backend>(Arc<dyn Fn(Tensor<B, 2>) + Send + Sync>);

impl<B: Backend> std::fmt::Debug for Look<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Look")
    }
}

/// `y` itself. Where a gradient flows back into it, that gradient is shown to what `look` makes and goes on as it
/// is; elsewhere nothing is made, and nothing enters the graph.
pub fn tap<B, F>(y: Tensor<Ad<B>, 2>, look: impl FnOnce() -> F) -> Tensor<Ad<B>, 2>
where
    B: Backend,
    F: Fn(Tensor<B, 2>) + Send + Sync + 'static,
{
    if !is_tracked(&y) {
        return y;
    }
    let inner = y.clone().inner();
    record([input(y)], inner, || Look(Arc::new(look())), backward::<B>)
}

fn backward<B: Backend>(
    look: Look<B>,
    gradient: FloatTensor<B>,
    _: [bool; 1],
) -> [Option<FloatTensor<B>>; 1] {
    (look.0)(plain(gradient.clone()));
    [Some(gradient)]
}
