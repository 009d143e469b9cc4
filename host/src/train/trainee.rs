//! The model with everything in it that trains, the batches that go to it and the values that come back.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{Tensor, TensorData};

use crate::adapter::{Adapters, Pass};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::kernel::{Ad, Kernels, Sequences};
use crate::model::architecture::CHANNELS;
use crate::model::{Input, Model, Tokens, whole_numbers};

/// The model with everything in it that trains.
#[derive(Clone, Debug)]
pub struct Trainee<B: Kernels> {
    /// The frozen part.
    pub model: Model<B>,
    /// The adapters.
    pub adapters: Adapters<B>,
    /// The head's tensors, in the order of `model.head.tensors()`.
    pub head: Vec<Tensor<B, 2>>,
}

impl<B: Kernels> Trainee<B> {
    /// Logits `[answers, outputs]` of a batch, one answer to each example, or to each of its words, from the hidden states of
    /// all tokens after the first `depth` layers.
    pub fn answers(
        &self,
        x: Tensor<Ad<B>, 2>,
        depth: usize,
        sequences: &Sequences,
        batch: &Batch,
        pass: &mut Pass<B>,
    ) -> Tensor<Ad<B>, 2> {
        match batch.word_rows() {
            Some(rows) => self.model.of_tokens(x, depth, sequences, &rows, pass),
            None => self.model.forward_from(x, depth, sequences, pass),
        }
    }
}

/// A packed batch on the device.
pub fn upload<B: Kernels>(batch: &Batch, device: &B::Device) -> Input<B> {
    let ints = |values: &[u32]| whole_numbers(values.iter().map(|value| *value as usize), device);
    let tokens = match &batch.images {
        None => Tokens::Words {
            ids: ints(&batch.ids),
            types: ints(&batch.type_ids),
            positions: ints(&batch.positions),
        },
        Some(images) => {
            let [height, width] = images.processor.size();
            let shape = [images.len(), CHANNELS, height, width];
            Tokens::Pixels(Tensor::from_data(
                TensorData::new(images.normalised(), shape),
                device,
            ))
        }
    };
    Input {
        tokens,
        sequences: Sequences::new(&batch.offsets),
    }
}

/// Transfers from the device to the host that this process has made.
static READS: AtomicU64 = AtomicU64::new(0);

/// How many transfers from the device to the host this process has made.
pub fn reads() -> u64 {
    READS.load(Ordering::Relaxed)
}

/// A tensor's values on the host.
pub fn read<B: Kernels, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<f32>> {
    READS.fetch_add(1, Ordering::Relaxed);
    let data = tensor.try_into_data().map_err(|error| {
        Error::failure(format!("the device has failed: {error}")).help(
            "the latest checkpoint is whole: `--resume` goes on from it, `--set device=cpu` does without the device",
        )
    })?;
    data.into_vec::<f32>()
        .map_err(|error| Error::failure(format!("the device did not give f32 values: {error:?}")))
}
