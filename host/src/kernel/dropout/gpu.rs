//! The CPU's mask on a GPU: one launch, from nothing but numbers.

use std::marker::PhantomData;

use burn::tensor::{DType, Shape, Tensor};
use burn_backend::DeviceOps;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, cubecl};
use burn_fusion::stream::{Operation, OperationStreams};
use burn_fusion::{Fusion, FusionBackend, get_client};
use burn_ir::{CustomOpIr, HandleContainer, OperationIr, OperationOutput, TensorIr};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use super::{Dropout, Elements};
use crate::kernel::record::plain;

/// What computes on a GPU behind burn's fusion.
type Gpu<R, BT> = CubeBackend<R, f32, i32, BT>;

/// [`super::hash`].
#[cube]
fn hash(seed: u32, position: u32) -> u32 {
    let mut h = position ^ seed;
    h ^= h >> 16;
    h *= 0x85eb_ca6b_u32;
    h ^= h >> 13;
    h *= 0xc2b2_ae35_u32;
    h ^= h >> 16;
    h & 0x00ff_ffff
}

/// The factors of elements that lie one after the other, behind so many others.
#[cube(launch)]
fn in_a_row(factors: &mut Array<f32>, before: u32, seed: u32, threshold: u32, scale: f32) {
    if ABSOLUTE_POS < factors.len() {
        let kept = hash(seed, before + ABSOLUTE_POS as u32) >= threshold;
        factors[ABSOLUTE_POS] = select(kept, scale, 0.0f32);
    }
}

/// The factors of attention weights, `[sequences, heads, queries, keys]`; a sequence has as many keys as `lengths` says, and
/// the rest is padding. So many heads lie before them.
#[cube(launch)]
fn by_head(
    factors: &mut Array<f32>,
    lengths: &Array<i32>,
    heads: u32,
    queries: u32,
    keys: u32,
    before: u32,
    seed: u32,
    threshold: u32,
    scale: f32,
) {
    if ABSOLUTE_POS < factors.len() {
        let at = ABSOLUTE_POS as u32;
        let key = at % keys;
        let row = at / keys;
        let query = row % queries;
        let head = row / queries;
        let length = lengths[(head / heads) as usize] as u32;
        let seed = hash(seed, before + head) * 0x9e37_79b9_u32;
        let kept = hash(seed, query * length + key) >= threshold;
        factors[ABSOLUTE_POS] = select(kept, scale, 0.0f32);
    }
}

/// A mask, as an operation of the stream.
struct Mask<R: CubeRuntime, BT: BoolElement> {
    desc: CustomOpIr,
    of: [u32; 3],
    before: u32,
    dropout: Dropout,
    device: R::Device,
    backend: PhantomData<BT>,
}

impl<R: CubeRuntime, BT: BoolElement> std::fmt::Debug for Mask<R, BT> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mask")
    }
}

impl<R, BT> Operation<<Gpu<R, BT> as FusionBackend>::FusionRuntime> for Mask<R, BT>
where
    R: CubeRuntime,
    R::Device: DeviceOps,
    BT: BoolElement,
{
    fn execute(&self, handles: &mut HandleContainer<<Gpu<R, BT> as burn_ir::BackendIr>::Handle>) {
        let client = R::client(&self.device);
        let out = &self.desc.outputs[0];
        let count = out.shape.num_elements();
        let factors = empty_device_contiguous_dtype(
            client.clone(),
            self.device.clone(),
            out.shape.clone(),
            DType::F32,
        );
        let size = CubeDim::new(&client, count);
        let cubes = calculate_cube_count_elemwise(&client, count, size);
        let array = factors.clone().into_array_arg();
        let (before, Dropout { seed, .. }) = (self.before, self.dropout);
        let (threshold, scale) = (self.dropout.threshold(), self.dropout.scale());
        match self.desc.inputs.first() {
            None => {
                in_a_row::launch::<R>(&client, cubes, size, array, before, seed, threshold, scale)
            }
            Some(lengths) => {
                let lengths = handles.get_int_tensor::<Gpu<R, BT>>(lengths);
                let [heads, queries, keys] = self.of;
                by_head::launch::<R>(
                    &client,
                    cubes,
                    size,
                    array,
                    lengths.into_array_arg(),
                    heads,
                    queries,
                    keys,
                    before,
                    seed,
                    threshold,
                    scale,
                );
            }
        }
        handles.register_float_tensor::<Gpu<R, BT>>(&out.id, factors);
    }
}

/// [`Kernels::kept`](crate::kernel::Kernels::kept) where burn computes by cubecl.
pub fn kept<R, BT>(
    elements: &Elements<Fusion<Gpu<R, BT>>>,
    dropout: Dropout,
    device: &R::Device,
) -> Tensor<Fusion<Gpu<R, BT>>, 1>
where
    R: CubeRuntime,
    R::Device: DeviceOps,
    BT: BoolElement,
{
    let client = get_client::<Gpu<R, BT>>(device);
    let shape = Shape::new([elements.count()]);
    let out = TensorIr::uninit(client.create_empty_handle(), shape, DType::F32);
    let mut streams = OperationStreams::default();
    let (inputs, of) = match elements {
        Elements::InARow(_) => (Vec::new(), [0; 3]),
        Elements::ByHead { lengths, shape } => {
            let [_, heads, queries, keys] = *shape;
            let lengths = lengths.clone().into_primitive();
            streams.tensor(&lengths);
            (
                vec![lengths.into_ir()],
                [heads, queries, keys].map(|size| size as u32),
            )
        }
    };
    let desc = CustomOpIr::new("dropout", &inputs, &[out]);
    let operation = Mask::<R, BT> {
        desc: desc.clone(),
        of,
        before: elements.before(dropout),
        dropout,
        device: device.clone(),
        backend: PhantomData,
    };
    plain(
        client
            .register(streams, OperationIr::Custom(desc), operation)
            .output(),
    )
}
