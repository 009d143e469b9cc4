//! How a fused operation enters burn's autodiff graph.

use burn::tensor::{Tensor, TensorPrimitive};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_backend::Backend;
use burn_backend::tensor::FloatTensor;

/// The backward pass of an operation with `N` differentiable inputs: from the saved state, the output's
/// gradient and which inputs want one, to the inputs' gradients.
pub type BackwardFn<B, S, const N: usize> =
    fn(S, FloatTensor<B>, [bool; N]) -> [Option<FloatTensor<B>>; N];

struct Recorded<B: Backend, S, const N: usize>(BackwardFn<B, S, N>);

impl<B: Backend, S, const N: usize> std::fmt::Debug for Recorded<B, S, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorded")
    }
}

impl<B, S, const N: usize> Backward<B, N> for Recorded<B, S, N>
where
    B: Backend,
    S: Clone + Send + std::fmt::Debug + 'static,
{
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let gradient = grads.consume::<B>(&ops.node);
        let wanted = std::array::from_fn(|i| ops.parents[i].is_some());
        let gradients = (self.0)(ops.state, gradient, wanted);
        for (parent, gradient) in ops.parents.iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// Whether a gradient will flow back into `tensor`.
pub fn is_tracked<B: Backend, const D: usize>(tensor: &Tensor<Autodiff<B>, D>) -> bool {
    match tensor.clone().into_primitive() {
        TensorPrimitive::Float(tensor) => tensor.is_tracked(),
        TensorPrimitive::QFloat(_) => false,
    }
}

/// The node of a float tensor, to be passed to [`record`].
pub fn input<B: Backend, const D: usize>(
    tensor: Tensor<Autodiff<B>, D>,
) -> FloatTensor<Autodiff<B>> {
    match tensor.into_primitive() {
        TensorPrimitive::Float(tensor) => tensor,
        TensorPrimitive::QFloat(_) => unreachable!("no tensor of this project is quantised"),
    }
}

/// Puts `output` into the graph as computed from `inputs`. `state` is made, and kept until the backward
/// pass, only if one of the inputs is tracked: below the lowest active module nothing is recorded.
pub fn record<B, S, const N: usize, const D: usize>(
    inputs: [FloatTensor<Autodiff<B>>; N],
    output: Tensor<B, D>,
    state: impl FnOnce() -> S,
    backward: BackwardFn<B, S, N>,
) -> Tensor<Autodiff<B>, D>
where
    B: Backend,
    S: Clone + Send + std::fmt::Debug + 'static,
{
    if !inputs.iter().any(|input| input.is_tracked()) {
        return Tensor::from_inner(output);
    }
    let output = match output.into_primitive() {
        TensorPrimitive::Float(output) => output,
        TensorPrimitive::QFloat(_) => unreachable!("no tensor of this project is quantised"),
    };
    let nodes = inputs.map(|input| input.node.clone());
    let prepared = Recorded::<B, S, N>(backward)
        .prepare::<burn_autodiff::checkpoint::strategy::NoCheckpointing>(nodes)
        .compute_bound()
        .stateful();
    let output = match prepared {
        OpsKind::Tracked(prepared) => prepared.finish(state(), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    Tensor::from_primitive(TensorPrimitive::Float(output))
}

/// A tensor of the plain backend over a primitive.
pub fn plain<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// The primitive under a tensor of the plain backend.
pub fn unwrap<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    match tensor.into_primitive() {
        TensorPrimitive::Float(tensor) => tensor,
        TensorPrimitive::QFloat(_) => unreachable!("no tensor of this project is quantised"),
    }
}
