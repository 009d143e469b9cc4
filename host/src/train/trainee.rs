//! The model with everything in it that trains, the batches that go to it and the values that come back.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{Int, Tensor, TensorData};

use crate::adapter::{Adapters, Pass, Uploaded};
use crate::data::{Batch, Label};
use crate::error::{Error, Result};
use crate::kernel::{Ad, Kernels, Sequences};
use crate::model::architecture::CHANNELS;
use crate::model::{Input, Model, Tokens};

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
    let [ids, types, positions] = [&batch.ids, &batch.type_ids, &batch.positions];
    let lists = match &batch.images {
        None => vec![ids.clone(), types.clone(), positions.clone()],
        Some(_) => Vec::new(),
    };
    input(
        batch,
        &mut B::whole_numbers(&lists, device).into_iter(),
        device,
    )
}

/// A packed batch on the device, of what is already there of its tokens.
fn input<B: Kernels>(
    batch: &Batch,
    lists: &mut impl Iterator<Item = Tensor<B, 1, Int>>,
    device: &B::Device,
) -> Input<B> {
    let mut next = || lists.next().expect("three lists of a batch of texts");
    let tokens = match &batch.images {
        None => Tokens::Words {
            ids: next(),
            types: next(),
            positions: next(),
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

impl<B: Kernels> Trainee<B> {
    /// A batch that is learnt from, on the device, with the rows that the head reads and the classes that are to be answered:
    /// all whole numbers are copied there at once. The tokens only where the layers that read them are run.
    pub fn upload(
        &self,
        batch: &Batch,
        with_tokens: bool,
        device: &B::Device,
    ) -> (Option<Input<B>>, Uploaded<B>) {
        let (rows, classes) = match batch.next_tokens() {
            Some(tokens) => (Some(tokens.rows), Some(tokens.ids)),
            None => {
                let one_of_each = || {
                    let sequences = Sequences::new(&batch.offsets);
                    self.model.base.one_of_each(&sequences)
                };
                let rows = batch.word_rows().or_else(one_of_each);
                (rows, Label::classes(&batch.expected()))
            }
        };
        let rows = rows.map(|rows| rows.into_iter().map(|row| row as u32).collect::<Vec<u32>>());
        let mut lists = Vec::new();
        if with_tokens && batch.images.is_none() {
            lists.extend([&batch.ids, &batch.type_ids, &batch.positions].map(Vec::clone));
        }
        let (has_rows, has_classes) = (rows.is_some(), classes.is_some());
        lists.extend(rows.into_iter().chain(classes));
        let mut lists = B::whole_numbers(&lists, device).into_iter();
        let input = with_tokens.then(|| input(batch, &mut lists, device));
        let mut next = |is_there: bool| is_there.then(|| lists.next()).flatten();
        let uploaded = Uploaded {
            rows: next(has_rows),
            classes: next(has_classes),
        };
        (input, uploaded)
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
