//! `dynalora evaluate`

use std::path::PathBuf;

use serde::Serialize;

use super::session::{self, OnDevice, Session};
use super::{Common, print, print_json, table};
use crate::data::Encoded;
use crate::error::Result;
use crate::kernel::Kernels;
use crate::metrics::Metric;
use crate::train::evaluate;
use crate::trained::{Purpose, Trained};

/// Arguments of `dynalora evaluate`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A run's folder, or a PEFT adapter's
    target: PathBuf,
    /// The recipe whose model and data to use; a run has its own
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Replace a value of the recipe that acts on an evaluation, such as data.validation
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Threads to compute with on the CPU; by default the recipe's
    #[arg(long, value_parser = session::threads())]
    threads: Option<usize>,
    /// Which part of the data: validation or test
    #[arg(long, default_value = "validation")]
    split: String,
    /// Print the scores as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Score {
    split: String,
    examples: usize,
    loss: f64,
    metrics: std::collections::BTreeMap<String, f64>,
}

/// Scores every part of the data that `split` names, and reads no other.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let trained = Trained::open(
        &arguments.target,
        arguments.recipe.as_deref(),
        &arguments.set,
        Purpose::Evaluate,
    )?;
    session::use_threads(arguments.threads.or(trained.recipe.threads))?;
    let metrics = trained.metrics()?;
    let splits = trained.load_split(&arguments.split)?;
    let session = Session::start(&trained.recipe, common)?;
    let batch_tokens = trained.recipe.evaluation.batch_tokens;
    let scores = session.on_device(Evaluate {
        trained: &trained,
        metrics: &metrics,
        splits: &splits,
        batch_tokens,
    })?;
    if arguments.json {
        return print_json(&scores);
    }
    let mut table = table(&["split", "examples", "loss", "metric", "value"]);
    for score in scores {
        for (metric, value) in score.metrics {
            table.add_row([
                score.split.clone(),
                score.examples.to_string(),
                format!("{:.4}", score.loss),
                metric,
                format!("{value:.4}"),
            ]);
        }
    }
    print(&table.trim_fmt())
}

struct Evaluate<'a> {
    trained: &'a Trained,
    metrics: &'a [Metric],
    splits: &'a [(String, Encoded)],
    batch_tokens: usize,
}

impl OnDevice for Evaluate<'_> {
    type Output = Vec<Score>;

    fn run<B: Kernels>(self, device: &B::Device) -> Result<Vec<Score>> {
        let trainee = self.trained.load::<B>(device)?;
        let scores = self.splits.iter().map(|(split, data)| {
            let (loss, metrics) =
                evaluate::evaluate(&trainee, data, self.metrics, self.batch_tokens, device)?;
            let metrics = metrics
                .iter()
                .map(|(metric, value)| (metric.name().to_owned(), *value));
            Ok(Score {
                split: split.clone(),
                examples: data.len(),
                loss,
                metrics: metrics.collect(),
            })
        });
        scores.collect()
    }
}
