//! From what the micro-batches of a step gave on one rank to what they give on all: gradients and what was measured, summed
//! in one call. Nothing of the frozen weights goes over the wire.

use burn::tensor::{Tensor, TensorData};

use super::ranks::Ranks;
use super::readout::Readout;
use super::step::Passes;
use super::trainee::read;
use crate::adapter::{Observed, Sensed};
use crate::error::Result;
use crate::kernel::Kernels;

/// Makes what one rank found what all of the `ranks` find together.
pub(super) fn over<B: Kernels>(
    passes: &mut Passes<B>,
    ranks: &Ranks,
    device: &B::Device,
) -> Result<()> {
    if ranks.count() == 1 {
        return Ok(());
    }
    // While it is known how much of them is this rank's.
    outputs(passes, ranks, device)?;
    let mut readout = Readout::default();
    each_matrix(passes, |matrix| {
        let len = matrix.dims()[0] * matrix.dims()[1];
        readout.push(matrix.clone().reshape([len]));
    });
    each_vector(passes, |vector| {
        readout.push(vector.clone());
    });
    let mut values = readout.values()?;
    each_observed(passes, |observed| values.push(observed.rows as f32));
    ranks.sum(&mut values)?;
    let mut rest = &values[..];
    let mut next = |dims: &[usize]| {
        let (own, after) = rest.split_at(dims.iter().product());
        rest = after;
        TensorData::new(own.to_vec(), dims.to_vec())
    };
    each_matrix(passes, |matrix| {
        *matrix = Tensor::from_data(next(&matrix.dims()), device);
    });
    each_vector(passes, |vector| {
        *vector = Tensor::from_data(next(&vector.dims()), device);
    });
    let mut rows = rest.iter();
    each_observed(passes, |observed| {
        observed.rows = rows.next().map_or(0, |rows| *rows as usize);
    });
    Ok(())
}

/// Makes the outputs themselves, of the last micro-batch, which is the one they are asked of, those of all ranks.
fn outputs<B: Kernels>(passes: &mut Passes<B>, ranks: &Ranks, device: &B::Device) -> Result<()> {
    let modules = passes.observed.last_mut().into_iter().flatten().flatten();
    let outputs =
        modules.filter_map(|observed| Some((observed.rows, observed.raw_activation.as_mut()?)));
    let mut outputs: Vec<(usize, &mut Tensor<B, 2>)> = outputs.collect();
    if outputs.is_empty() {
        return Ok(());
    }
    let own = outputs.iter().map(|(rows, output)| match rows {
        0 => Ok(Vec::new()),
        _ => read((**output).clone()),
    });
    let all = ranks.end_to_end(&own.collect::<Result<Vec<_>>>()?)?;
    for ((_, output), values) in outputs.iter_mut().zip(all) {
        let width = output.dims()[1];
        let rows = values.len() / width.max(1);
        **output = Tensor::from_data(TensorData::new(values, [rows, width]), device);
    }
    Ok(())
}

/// Makes what was measured of a micro-batch that of none of its examples.
pub(super) fn uncount<B: Kernels>(observed: &mut [Option<Observed<B>>], sensed: &mut [Sensed<B>]) {
    for observed in observed.iter_mut().flatten() {
        observed.rows = 0;
        vectors_of(observed).for_each(|sums| *sums = sums.zeros_like());
    }
    for sums in sensed.iter_mut().flat_map(of_returned) {
        *sums = sums.zeros_like();
    }
}

/// The gradients.
fn each_matrix<B: Kernels>(passes: &mut Passes<B>, mut with: impl FnMut(&mut Tensor<B, 2>)) {
    passes.head_gradients.iter_mut().for_each(&mut with);
    for tensors in passes.gradients.iter_mut().flatten() {
        tensors.iter_mut().for_each(&mut with);
    }
}

/// Losses, and the sums that were measured.
fn each_vector<B: Kernels>(passes: &mut Passes<B>, mut with: impl FnMut(&mut Tensor<B, 1>)) {
    passes.losses.iter_mut().for_each(&mut with);
    each_observed(passes, |observed| vectors_of(observed).for_each(&mut with));
    let returned = passes.sensed.iter_mut().flatten();
    returned.flat_map(of_returned).for_each(with);
}

fn each_observed<B: Kernels>(passes: &mut Passes<B>, with: impl FnMut(&mut Observed<B>)) {
    let observed = passes.observed.iter_mut().flatten();
    observed.flatten().for_each(with);
}

fn vectors_of<B: Kernels>(observed: &mut Observed<B>) -> impl Iterator<Item = &mut Tensor<B, 1>> {
    let Observed {
        input,
        input_columns,
        activation,
        delta,
        ..
    } = observed;
    [input, input_columns, activation, delta]
        .into_iter()
        .flatten()
}

fn of_returned<B: Kernels>(sensed: &mut Sensed<B>) -> impl Iterator<Item = &mut Tensor<B, 1>> {
    let Sensed {
        output_gradient,
        fisher,
    } = sensed;
    [output_gradient, fisher].into_iter().flatten()
}
