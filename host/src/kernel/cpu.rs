//! Raw buffers of the CPU backend: the only file that opens a tensor of burn-flex.

use std::mem::MaybeUninit;

use burn::tensor::{DType, Shape, Tensor, TensorPrimitive};
use burn_flex::{Flex, FlexTensor, Layout};

/// A read-only view of a contiguous tensor's values, which keeps them alive.
pub struct View(FlexTensor);

impl View {
    /// The values in row-major order. A tensor that is not contiguous is copied first.
    pub fn new<const D: usize>(tensor: Tensor<Flex, D>) -> Self {
        View(primitive(tensor).to_contiguous())
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        self.0.storage()
    }
}

/// Opens a tensor for writing: in place where nobody else holds the buffer, else in a copy.
pub fn into_values<const D: usize>(tensor: Tensor<Flex, D>) -> Buffer<D> {
    let dims = tensor.dims();
    Buffer {
        tensor: primitive(tensor).to_contiguous(),
        dims,
    }
}

/// A tensor open for writing.
pub struct Buffer<const D: usize> {
    tensor: FlexTensor,
    dims: [usize; D],
}

impl<const D: usize> Buffer<D> {
    /// The values in row-major order.
    pub fn values(&mut self) -> &mut [f32] {
        self.tensor.storage_mut()
    }

    /// The tensor, closed again.
    pub fn close(self) -> Tensor<Flex, D> {
        debug_assert_eq!(
            self.tensor.layout().num_elements(),
            self.dims.iter().product::<usize>()
        );
        Tensor::from_primitive(TensorPrimitive::Float(self.tensor))
    }
}

/// A tensor over freshly written values.
pub fn tensor<const D: usize>(values: Vec<f32>, dims: [usize; D]) -> Tensor<Flex, D> {
    debug_assert_eq!(values.len(), dims.iter().product::<usize>());
    let bytes = burn::tensor::Bytes::from_elems(values);
    let layout = Layout::contiguous(Shape::from(dims));
    Tensor::from_primitive(TensorPrimitive::Float(FlexTensor::new(
        bytes,
        layout,
        DType::F32,
    )))
}

/// A new buffer of `len` values, all written by `fill` before anyone reads one: nothing is zeroed first.
///
/// # Safety
/// `fill` must write every element.
pub unsafe fn written(len: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    fill(&mut values.spare_capacity_mut()[..len]);
    // SAFETY: the caller's `fill` wrote all `len` elements.
    unsafe { values.set_len(len) };
    values
}

fn primitive<const D: usize>(tensor: Tensor<Flex, D>) -> FlexTensor {
    match tensor.into_primitive() {
        TensorPrimitive::Float(tensor) => tensor,
        TensorPrimitive::QFloat(_) => unreachable!("no tensor of this project is quantised"),
    }
}

/// A pointer that threads may share because they write to disjoint parts of what it points to.
#[derive(Clone, Copy)]
pub struct Disjoint(*mut f32);

// SAFETY: whoever writes through `Disjoint::pointer` promises disjoint ranges.
unsafe impl Send for Disjoint {}
// SAFETY: as above.
unsafe impl Sync for Disjoint {}

impl Disjoint {
    /// Shares `values`, which must outlive every slice taken.
    pub fn new(values: *mut f32) -> Self {
        Disjoint(values)
    }

    /// The address of the value at `start`.
    ///
    /// # Safety
    /// In bounds, or one past the end.
    pub unsafe fn pointer(&self, start: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(start) }
    }
}
