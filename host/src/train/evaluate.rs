//! Evaluation: every example once, longest first, in batches of a token budget.

use dynalora_plugin_api::Trial;

use super::trainee::{Trainee, read, upload};
use crate::adapter::Pass;
use crate::data::{Batch, Encoded, Label, evaluation_batches};
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::metrics::{self, Answers, Metric};

/// The logits of every example, `[examples][outputs]`, in the order of the data, or of every word of theirs that is asked
/// for; an error where one is not finite.
pub fn logits<B: Kernels>(
    trainee: &Trainee<B>,
    data: &Encoded,
    batch_tokens: usize,
    device: &B::Device,
) -> Result<Vec<Vec<f32>>> {
    let all = logits_until(
        &|| false,
        &Trial::default(),
        trainee,
        data,
        batch_tokens,
        device,
    )?;
    Ok(all.expect("nobody asks"))
}

/// Mean loss over `data` with the adapters changed as a trial says.
pub fn trial_loss<B: Kernels>(
    trainee: &Trainee<B>,
    data: &Encoded,
    trial: &Trial,
    batch_tokens: usize,
    device: &B::Device,
) -> Result<f64> {
    let found = changed_until(&|| false, trial, trainee, data, &[], batch_tokens, device)?;
    Ok(found.expect("nobody asks").0)
}

/// Mean loss and `metrics` with the adapters changed as a `trial` says, or nothing where somebody `asked` to stop.
fn changed_until<B: Kernels>(
    asked: &dyn Fn() -> bool,
    trial: &Trial,
    trainee: &Trainee<B>,
    data: &Encoded,
    metrics: &[Metric],
    batch_tokens: usize,
    device: &B::Device,
) -> Result<Option<Evaluated>> {
    if let Some(Label::Tokens(_)) = data.labels.first() {
        return tokens_until(asked, trial, trainee, data, metrics, batch_tokens, device);
    }
    let logits = logits_until(asked, trial, trainee, data, batch_tokens, device)?;
    match logits {
        Some(logits) => score(data, metrics, &logits).map(Some),
        None => Ok(None),
    }
}

/// The mean loss of a predicted token, and `metrics`.
fn tokens_until<B: Kernels>(
    asked: &dyn Fn() -> bool,
    trial: &Trial,
    trainee: &Trainee<B>,
    data: &Encoded,
    metrics: &[Metric],
    batch_tokens: usize,
    device: &B::Device,
) -> Result<Option<Evaluated>> {
    let (mut sum, mut count) = (0.0, 0);
    let model = &trainee.model;
    let one = |batch: &Batch, mut pass: Pass<B>| {
        let input = upload::<B>(batch, device);
        let x = model.base.prefix(&input, 0, &mut pass);
        let tokens = batch
            .next_tokens()
            .ok_or_else(|| Error::failure("a batch mixes tokens with other labels"))?;
        let loss = model.next_tokens(x, 0, &input.sequences, &tokens, &mut pass);
        let loss = read(loss.inner())?[0];
        if !loss.is_finite() {
            return Err(not_finite(&data.places.name(batch.indices[0]), loss));
        }
        sum += f64::from(loss) * tokens.ids.len() as f64;
        count += tokens.ids.len();
        Ok(())
    };
    if !each_batch(asked, trial, trainee, data, batch_tokens, one)? {
        return Ok(None);
    }
    let answers = Answers::Tokens { loss: sum, count };
    let metrics = metrics::compute(metrics, answers)?;
    Ok(Some((sum / count.max(1) as f64, metrics)))
}

/// Hands each batch of `data` to `run`, with a pass for adapters changed as a `trial` says; whether all were run before
/// somebody `asked` to stop.
fn each_batch<B: Kernels>(
    asked: &dyn Fn() -> bool,
    trial: &Trial,
    trainee: &Trainee<B>,
    data: &Encoded,
    batch_tokens: usize,
    mut run: impl FnMut(&Batch, Pass<B>) -> Result<()>,
) -> Result<bool> {
    for batch in evaluation_batches(data, batch_tokens) {
        if asked() {
            return Ok(false);
        }
        let mut pass = Pass::evaluate(&trainee.adapters, &trainee.head);
        pass.change(trial);
        run(&batch, pass)?;
    }
    Ok(true)
}

/// Neither a label nor a metric, nor a token, could be had from it.
pub fn not_finite(place: &str, value: f32) -> Error {
    Error::failure(format!("{place}: the model answers with {value}")).help(
        "the adapter's or the base model's weights are not finite, or so large that sums overflow: take another \
         checkpoint, or train again with a lower rate",
    )
}

/// [`logits`], or none where somebody `asked` to stop before all were there.
fn logits_until<B: Kernels>(
    asked: &dyn Fn() -> bool,
    trial: &Trial,
    trainee: &Trainee<B>,
    data: &Encoded,
    batch_tokens: usize,
    device: &B::Device,
) -> Result<Option<Vec<Vec<f32>>>> {
    let answers = data.len().checked_sub(1);
    let answers = answers.map_or(0, |last| data.answers(last).end);
    let mut logits = vec![Vec::new(); answers];
    let model = &trainee.model;
    let one = |batch: &Batch, mut pass: Pass<B>| {
        let input = upload::<B>(batch, device);
        let x = model.base.prefix(&input, 0, &mut pass);
        let output = trainee.answers(x, 0, &input.sequences, batch, &mut pass);
        let output = output.inner();
        let width = output.dims()[1];
        let values = read(output)?;
        let mut rows = values.chunks_exact(width);
        for index in &batch.indices {
            for answer in data.answers(*index) {
                let row = rows.next().expect("one for each answer");
                if let Some(value) = row.iter().find(|value| !value.is_finite()) {
                    return Err(not_finite(&data.places.name(*index), *value));
                }
                logits[answer] = row.to_vec();
            }
        }
        Ok(())
    };
    let whole = each_batch(asked, trial, trainee, data, batch_tokens, one)?;
    Ok(whole.then_some(logits))
}

/// How many classes stand before this one: those with a larger logit, and the first of equals.
fn before(logits: &[f32], class: u32) -> u32 {
    let (own, class) = (logits[class as usize], class as usize);
    let others = logits.iter().enumerate();
    let before =
        others.filter(|(other, logit)| **logit > own || (**logit == own && *other < class));
    before.count() as u32
}

/// The class with the largest logit; the first of equals.
pub fn class(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (class, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = class;
        }
    }
    best as u32
}

/// Mean loss and `metrics` over `data`, which must be labelled.
pub fn evaluate<B: Kernels>(
    trainee: &Trainee<B>,
    data: &Encoded,
    metrics: &[Metric],
    batch_tokens: usize,
    device: &B::Device,
) -> Result<Evaluated> {
    let found = until(&|| false, trainee, data, metrics, batch_tokens, device)?;
    Ok(found.expect("nobody asks"))
}

/// [`evaluate`], or nothing where somebody `asked` to stop before it was done.
pub fn until<B: Kernels>(
    asked: &dyn Fn() -> bool,
    trainee: &Trainee<B>,
    data: &Encoded,
    metrics: &[Metric],
    batch_tokens: usize,
    device: &B::Device,
) -> Result<Option<Evaluated>> {
    let trial = Trial::default();
    changed_until(asked, &trial, trainee, data, metrics, batch_tokens, device)
}

/// Mean loss and metrics.
pub type Evaluated = (f64, Vec<(Metric, f64)>);

fn score(data: &Encoded, metrics: &[Metric], logits: &[Vec<f32>]) -> Result<Evaluated> {
    if let Some(expected) = Label::values(&data.labels) {
        let predicted: Vec<f32> = logits.iter().map(|row| row[0]).collect();
        let squares = predicted
            .iter()
            .zip(&expected)
            .map(|(p, e)| f64::from(p - e) * f64::from(p - e));
        let loss = squares.sum::<f64>() / expected.len().max(1) as f64;
        let answers = Answers::Values {
            predicted: &predicted,
            expected: &expected,
        };
        return Ok((loss, metrics::compute(metrics, answers)?));
    }
    let expected = Label::classes(&data.expected()).ok_or_else(|| {
        Error::user("the evaluation data has examples without a label")
            .help("evaluate on a labelled split, or use `dynalora predict`")
    })?;
    let loss = logits
        .iter()
        .zip(&expected)
        .map(|(row, class)| cross_entropy(row, *class));
    let loss = loss.sum::<f64>() / expected.len().max(1) as f64;
    let predicted: Vec<u32> = logits.iter().map(|row| class(row)).collect();
    let ranked = logits.iter().zip(&expected);
    let before: Vec<u32> = ranked.map(|(row, class)| before(row, *class)).collect();
    let answers = match &data.words {
        Some(words) => Answers::Tags {
            predicted: &predicted,
            expected: &expected,
            offsets: &words.offsets,
            names: &words.names,
        },
        None => Answers::Classes {
            predicted: &predicted,
            expected: &expected,
            before: &before,
        },
    };
    Ok((loss, metrics::compute(metrics, answers)?))
}

/// `log Σ exp(logits) - logits[class]`.
fn cross_entropy(logits: &[f32], class: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - max).exp())
        .sum();
    sum.ln() + f64::from(max) - f64::from(logits[class as usize])
}
