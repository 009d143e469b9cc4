//! Evaluation: every example once, longest first, in batches of a token budget.

use dynalora_plugin_api::Trial;

use super::ranks::Ranks;
use super::trainee::{Trainee, read, upload};
use crate::adapter::Pass;
use crate::data::{Batch, Encoded, Label, evaluation_batches};
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::metrics::{self, Answers, Metric};

/// Who evaluates together, and how one of them is asked to stop.
pub struct Among<'a> {
    /// Each runs some of the batches, and all have what came of all. The batches are those of one process, so that what
    /// comes of them is the same, bit for bit.
    pub ranks: &'a Ranks,
    /// Whether somebody has asked this one to stop.
    pub asked: &'a dyn Fn() -> bool,
}

impl Among<'_> {
    /// Makes `found`, of which each has its own part and zeros elsewhere, what all have found; false where not all have
    /// run their `whole` part.
    fn complete(&self, whole: bool, found: &mut Vec<f32>) -> Result<bool> {
        if self.ranks.count() == 1 {
            return Ok(whole);
        }
        found.push(f32::from(u8::from(!whole)));
        self.ranks.sum(found)?;
        Ok(found.pop() == Some(0.0))
    }
}

/// One that is alone, and goes to the end.
fn alone<R>(then: impl FnOnce(&Among<'_>) -> R) -> R {
    then(&Among {
        ranks: &Ranks::alone(),
        asked: &|| false,
    })
}

/// The logits of every example, `[examples][outputs]`, in the order of the data, or of every word of theirs that is asked
/// for; an error where one is not finite.
pub fn logits<B: Kernels>(
    trainee: &Trainee<B>,
    data: &Encoded,
    batch_tokens: usize,
    device: &B::Device,
) -> Result<Vec<Vec<f32>>> {
    let trial = Trial::default();
    let all = alone(|among| logits_until(among, &trial, trainee, data, batch_tokens, device))?;
    Ok(all.expect("nobody asks"))
}

/// Mean loss over `data` with the adapters changed as a trial says, by all `ranks`.
pub fn trial_loss<B: Kernels>(
    ranks: &Ranks,
    trainee: &Trainee<B>,
    data: &Encoded,
    trial: &Trial,
    batch_tokens: usize,
    device: &B::Device,
) -> Result<f64> {
    let asked = &|| false;
    let among = Among { ranks, asked };
    let found = changed_until(&among, trial, trainee, data, &[], batch_tokens, device)?;
    Ok(found.expect("nobody asks").0)
}

/// Mean loss and `metrics` with the adapters changed as a `trial` says, or nothing where somebody asked to stop.
fn changed_until<B: Kernels>(
    among: &Among<'_>,
    trial: &Trial,
    trainee: &Trainee<B>,
    data: &Encoded,
    metrics: &[Metric],
    batch_tokens: usize,
    device: &B::Device,
) -> Result<Option<Evaluated>> {
    if let Some(Label::Tokens(_)) = data.labels.first() {
        return tokens_until(among, trial, trainee, data, metrics, batch_tokens, device);
    }
    let logits = logits_until(among, trial, trainee, data, batch_tokens, device)?;
    match logits {
        Some(logits) => score(data, metrics, &logits).map(Some),
        None => Ok(None),
    }
}

/// The mean loss of a predicted token, and `metrics`.
fn tokens_until<B: Kernels>(
    among: &Among<'_>,
    trial: &Trial,
    trainee: &Trainee<B>,
    data: &Encoded,
    metrics: &[Metric],
    batch_tokens: usize,
    device: &B::Device,
) -> Result<Option<Evaluated>> {
    // Of each batch its loss, and how many tokens are predicted in it.
    let mut found = vec![0.0; 2 * evaluation_batches(data, batch_tokens).count()];
    let model = &trainee.model;
    let one = |nth: usize, batch: &Batch, mut pass: Pass<B>| {
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
        found[2 * nth..][..2].copy_from_slice(&[loss, tokens.ids.len() as f32]);
        Ok(())
    };
    let whole = each_batch(among, trial, trainee, data, batch_tokens, one)?;
    if !among.complete(whole, &mut found)? {
        return Ok(None);
    }
    let (mut sum, mut count) = (0.0, 0);
    for batch in found.as_chunks::<2>().0 {
        sum += f64::from(batch[0]) * f64::from(batch[1]);
        count += batch[1] as usize;
    }
    let answers = Answers::Tokens { loss: sum, count };
    let metrics = metrics::compute(metrics, answers)?;
    Ok(Some((sum / count.max(1) as f64, metrics)))
}

/// Hands each batch of `data` that is this rank's to `run`, with its number and a pass for adapters changed as a `trial` says;
/// whether all were run before somebody asked to stop.
fn each_batch<B: Kernels>(
    among: &Among<'_>,
    trial: &Trial,
    trainee: &Trainee<B>,
    data: &Encoded,
    batch_tokens: usize,
    mut run: impl FnMut(usize, &Batch, Pass<B>) -> Result<()>,
) -> Result<bool> {
    let Among { ranks, asked } = among;
    let batches = evaluation_batches(data, batch_tokens).enumerate();
    for (nth, batch) in batches.skip(ranks.rank()).step_by(ranks.count()) {
        if asked() {
            return Ok(false);
        }
        let mut pass = Pass::evaluate(&trainee.adapters, &trainee.head);
        pass.change(trial);
        run(nth, &batch, pass)?;
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

/// [`logits`], or none where somebody asked to stop before all were there.
fn logits_until<B: Kernels>(
    among: &Among<'_>,
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
    let one = |_: usize, batch: &Batch, mut pass: Pass<B>| {
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
    let whole = each_batch(among, trial, trainee, data, batch_tokens, one)?;
    if among.ranks.count() == 1 {
        return Ok(whole.then_some(logits));
    }
    let width = trainee.model.head.outputs();
    let own = logits.iter().flat_map(|row| match row.is_empty() {
        true => vec![0.0; width],
        false => row.clone(),
    });
    let mut all = own.collect();
    let whole = among.complete(whole, &mut all)?;
    let rows = all.chunks_exact(width).map(<[f32]>::to_vec);
    Ok(whole.then(|| rows.collect()))
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
    let found = alone(|among| until(among, trainee, data, metrics, batch_tokens, device))?;
    Ok(found.expect("nobody asks"))
}

/// [`evaluate`], or nothing where somebody asked to stop before it was done.
pub fn until<B: Kernels>(
    among: &Among<'_>,
    trainee: &Trainee<B>,
    data: &Encoded,
    metrics: &[Metric],
    batch_tokens: usize,
    device: &B::Device,
) -> Result<Option<Evaluated>> {
    let trial = Trial::default();
    changed_until(among, &trial, trainee, data, metrics, batch_tokens, device)
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
