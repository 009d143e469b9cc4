//! What a batch needs on the device, copied there at once.

use std::marker::PhantomData;

use burn::tensor::{DType, Int, Shape, Tensor};
use burn_backend::DeviceOps;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, get_client};
use burn_ir::{BackendIr, CustomOpIr, HandleContainer, OperationIr, TensorIr};

/// What computes on a GPU behind burn's fusion.
type Gpu<R, BT> = CubeBackend<R, f32, i32, BT>;

/// One copy, of which each list is a part, as an operation of the stream.
struct Copy<R: CubeRuntime, BT: BoolElement> {
    desc: CustomOpIr,
    bytes: Vec<u8>,
    /// How many bytes each list takes.
    places: Vec<usize>,
    device: R::Device,
    backend: PhantomData<BT>,
}

impl<R: CubeRuntime, BT: BoolElement> std::fmt::Debug for Copy<R, BT> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Copy")
    }
}

impl<R, BT> Operation<<Gpu<R, BT> as FusionBackend>::FusionRuntime> for Copy<R, BT>
where
    R: CubeRuntime,
    R::Device: DeviceOps,
    BT: BoolElement,
{
    fn execute(&self, handles: &mut HandleContainer<<Gpu<R, BT> as BackendIr>::Handle>) {
        let client = R::client(&self.device);
        let whole = client.create_from_slice(&self.bytes);
        let mut start = 0;
        for (out, size) in self.desc.outputs.iter().zip(&self.places) {
            let end = start + size;
            let after = self.bytes.len() - end;
            let part = whole.clone();
            let part = part.offset_start(start as u64).offset_end(after as u64);
            let tensor = CubeTensor::new_contiguous(
                client.clone(),
                self.device.clone(),
                out.shape.clone(),
                part,
                out.dtype,
            );
            handles.register_int_tensor::<Gpu<R, BT>>(&out.id, tensor);
            start = end;
        }
    }
}

/// [`Kernels::whole_numbers`](super::Kernels::whole_numbers) where burn computes by cubecl: each list begins where a buffer
/// may.
pub fn whole_numbers<R, BT>(
    lists: &[Vec<u32>],
    device: &R::Device,
) -> Vec<Tensor<Fusion<Gpu<R, BT>>, 1, Int>>
where
    R: CubeRuntime,
    R::Device: DeviceOps,
    BT: BoolElement,
{
    if lists.is_empty() {
        return Vec::new();
    }
    let alignment = R::client(device).properties().memory.alignment as usize;
    let mut bytes: Vec<u8> = Vec::new();
    let mut places = Vec::new();
    for list in lists {
        let start = bytes.len();
        bytes.extend_from_slice(bytemuck::cast_slice(list));
        let size = (4 * list.len().max(1)).next_multiple_of(alignment);
        bytes.resize(start + size, 0);
        places.push(size);
    }
    let client = get_client::<Gpu<R, BT>>(device);
    let outputs: Vec<TensorIr> = lists
        .iter()
        .map(|list| {
            let shape = Shape::new([list.len()]);
            TensorIr::uninit(client.create_empty_handle(), shape, DType::I32)
        })
        .collect();
    let desc = CustomOpIr::new("whole_numbers", &[], &outputs);
    let operation = Copy::<R, BT> {
        desc: desc.clone(),
        bytes,
        places,
        device: device.clone(),
        backend: PhantomData,
    };
    let copied = client.register(
        OperationStreams::default(),
        OperationIr::Custom(desc),
        operation,
    );
    copied.into_iter().map(Tensor::from_primitive).collect()
}
