//! `dynalora predict`

use std::io::BufRead;
use std::path::PathBuf;

use serde::Serialize;

use super::session::{OnDevice, Session};
use super::{Common, print};
use crate::data::{Encoded, Example, Problem, tokenize};
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::train::evaluate;
use crate::trained::Trained;

/// Arguments of `dynalora predict`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A run's folder, or a PEFT adapter's
    target: PathBuf,
    /// Texts to label; without any, lines of standard input. A tab parts the two texts of a pair
    texts: Vec<String>,
    /// The recipe whose model and labels to use; a run has its own
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Replace a value of the recipe
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print one JSON object a line, with the probability of each label
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Prediction {
    Class {
        text: String,
        label: String,
        probabilities: Vec<(String, f64)>,
    },
    Value {
        text: String,
        value: f32,
    },
}

/// Labels texts, one line each.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let trained = Trained::open(
        &arguments.target,
        arguments.recipe.as_deref(),
        &arguments.set,
    )?;
    let texts = if arguments.texts.is_empty() {
        standard_input()?
    } else {
        arguments.texts.clone()
    };
    if texts.is_empty() {
        return Err(Error::user("there is no text to label")
            .help("give texts as arguments, or one a line on standard input"));
    }
    let (labels, problem) = trained.labels()?;
    let examples: Vec<Example> = texts
        .iter()
        .map(|text| match text.split_once('\t') {
            Some((first, second)) => Example {
                text: first.to_owned(),
                text_pair: Some(second.to_owned()),
                label: None,
            },
            None => Example {
                text: text.clone(),
                text_pair: None,
                label: None,
            },
        })
        .collect();
    let encoded = tokenize(&trained.folder.tokenizer, &examples, trained.max_length())?;
    let session = Session::start(trained.recipe.device, common)?;
    let outputs = if problem == Problem::Regression {
        1
    } else {
        labels.len()
    };
    let logits = session.on_device(Predict {
        trained: &trained,
        encoded: &encoded,
        outputs,
    })?;
    for (text, logits) in texts.into_iter().zip(logits) {
        let prediction = match problem {
            Problem::Regression => Prediction::Value {
                text,
                value: logits[0],
            },
            Problem::Classification => Prediction::Class {
                text,
                label: labels[evaluate::class(&logits) as usize].clone(),
                probabilities: labels.iter().cloned().zip(softmax(&logits)).collect(),
            },
        };
        if arguments.json {
            let line = serde_json::to_string(&prediction)
                .map_err(|error| Error::failure(format!("cannot write a prediction: {error}")))?;
            print(&line)?;
            continue;
        }
        print(&match prediction {
            Prediction::Value { text, value } => format!("{value:.4}\t{text}"),
            Prediction::Class {
                text,
                label,
                probabilities,
            } => {
                let best = probabilities.iter().map(|(_, p)| *p).fold(0.0, f64::max);
                format!("{label}\t{best:.4}\t{text}")
            }
        })?;
    }
    Ok(())
}

fn standard_input() -> Result<Vec<String>> {
    let lines = std::io::stdin().lock().lines();
    let lines = lines.filter(|line| line.as_ref().map_or(true, |line| !line.trim().is_empty()));
    lines.collect::<std::io::Result<_>>().map_err(|error| {
        Error::user(format!("cannot read standard input: {error}")).help("texts must be UTF-8")
    })
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = logits
        .iter()
        .map(|logit| f64::from(logit - max).exp())
        .collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|exp| exp / sum).collect()
}

struct Predict<'a> {
    trained: &'a Trained,
    encoded: &'a Encoded,
    outputs: usize,
}

impl OnDevice for Predict<'_> {
    type Output = Vec<Vec<f32>>;

    fn run<B: Kernels>(self, device: &B::Device) -> Result<Vec<Vec<f32>>> {
        let trainee = self.trained.load::<B>(self.outputs, device)?;
        let tokens = self.trained.recipe.evaluation.batch_tokens;
        evaluate::logits(&trainee, self.encoded, tokens, device)
    }
}
