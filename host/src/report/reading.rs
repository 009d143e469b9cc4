//! One run, read for a report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Figure;
use crate::error::{Error, Result};
use crate::recipe::{HeadBias, Metric, Recipe};
use crate::run::{
    AllocationRecord, EvalRecord, MetricRecord, Provenance, Run, Stall, StepRecord, Summary, layer,
};

/// What a report takes from a run.
#[derive(Clone, Debug, Serialize)]
pub struct Reading {
    /// The folder as it was given.
    pub path: PathBuf,
    /// The recipe's seed.
    pub seed: u64,
    /// Whether the run came to its end.
    pub finished: bool,
    /// Optimiser steps made, as far as they are recorded.
    pub steps: u64,
    /// What is known of it.
    pub figures: BTreeMap<Figure, f64>,
    /// The metric after so many steps.
    pub curve: Vec<(u64, f64)>,
    /// The stretch in which it ended with the loss of a constant answer, if it did.
    pub collapse: Option<Stall>,
    /// Whether it was looked for, as in runs of older versions it was not.
    #[serde(skip)]
    pub watched: bool,
    /// The fault after which it went on without its plugins, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub given_up: Option<GivenUp>,
    /// Steps whose update was left out because it was not finite.
    pub skipped: u64,
    /// What it learns: a task, or the file it is evaluated on.
    #[serde(skip)]
    pub task: String,
    /// The digests of what it is evaluated on; none where they are not known.
    #[serde(skip)]
    pub evaluated_on: Option<Vec<String>>,
    /// The digests of all that it read, by name; none where they are not known, as in runs of older versions.
    #[serde(skip)]
    pub inputs: Option<BTreeMap<String, String>>,
    /// The programs that trained it.
    #[serde(skip)]
    pub programs: Vec<String>,
    /// The metric's name.
    #[serde(skip)]
    pub metric: String,
    /// The resolved recipe.
    #[serde(skip)]
    pub recipe: Recipe,
    /// Paths of the adapted modules.
    #[serde(skip)]
    pub modules: Vec<String>,
    /// Which of them were active when.
    #[serde(skip)]
    pub choices: Vec<Choice>,
    /// Numbers of the plugins' own, by plugin and name: after which step, one value or one per module.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, Vec<(u64, Vec<f64>)>>,
}

/// When and why a run went on without its plugins (`allocation.on_plugin_fault = "keep"`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GivenUp {
    /// After this step.
    pub step: u64,
    /// The fault.
    pub fault: String,
}

/// A choice and the steps it governed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// The steps after this one …
    pub from: u64,
    /// … up to and including this one.
    pub to: u64,
    /// Per module, which are active, …
    pub active: Vec<bool>,
    /// … their ranks, …
    pub ranks: Vec<u32>,
    /// … and the scores that it rests on; empty for an initial choice.
    pub scores: Vec<f64>,
}

impl Reading {
    /// Reads the run in `folder`; `metric` names another metric than the one that picks its best checkpoint.
    pub fn open(folder: &Path, metric: Option<&str>) -> Result<Reading> {
        let run = Run::open(folder)?;
        let recipe = recipe(&run)?;
        let metric = metric.unwrap_or(recipe.deciding_metric().name()).to_owned();
        let summary = run.summary()?;
        let provenance = run.provenance()?;
        let inputs = provenance.as_ref().map(Provenance::identity);
        let evaluated_on = inputs.as_ref().map(|inputs| {
            let files = inputs.iter();
            let files = files.filter(|(name, _)| name.starts_with("data.validation"));
            files.map(|(_, digest)| digest.clone()).collect()
        });
        let (mut records, mut evaluations) = (Vec::new(), Vec::new());
        for record in run.metrics()? {
            match record {
                MetricRecord::Step(record) => records.push(record),
                MetricRecord::Evaluation(record) => evaluations.push(record),
            }
        }
        let logged = records.last();
        let steps = (summary.as_ref()).map_or(logged.map_or(0, |last| last.step), |s| s.steps);
        let curve = curve(&run, &evaluations, &metric)?;
        let records = run.allocations()?;
        let numbers = numbers(&records);
        let given_up = records.iter().find_map(|record| {
            let (step, fault) = (record.step, record.fault.clone()?);
            Some(GivenUp { step, fault })
        });
        let (modules, choices) = choices(&run, records, steps)?;

        let mut figures = BTreeMap::new();
        let values = || {
            curve
                .iter()
                .map(|(_, value)| *value)
                .filter(|v| v.is_finite())
        };
        let best = match metric == Metric::Perplexity.name() {
            true => f64::min,
            false => f64::max,
        };
        if let Some(best) = values().reduce(best) {
            figures.insert(Figure::Metric, best);
        }
        if let Some((_, last)) = curve.last().filter(|(_, value)| value.is_finite()) {
            figures.insert(Figure::Final, *last);
        }
        time_and_work(&mut figures, summary.as_ref(), logged, &evaluations, steps);
        of_choices(&mut figures, &modules, &choices);
        Ok(Reading {
            path: folder.to_owned(),
            seed: recipe.seed,
            finished: summary.is_some(),
            steps,
            figures,
            curve,
            collapse: summary
                .as_ref()
                .and_then(|summary| summary.collapse().copied()),
            watched: summary
                .as_ref()
                .is_none_or(|summary| summary.stalls.is_some()),
            given_up,
            skipped: summary.as_ref().map_or(0, |summary| summary.skipped),
            task: task(&recipe),
            evaluated_on,
            inputs,
            programs: provenance.map_or(Vec::new(), |known| known.programs()),
            metric,
            recipe,
            modules,
            choices,
            numbers,
        })
    }
}

impl Reading {
    /// Whether it did otherwise than its recipe says.
    pub fn disturbed(&self) -> bool {
        self.given_up.is_some() || self.skipped > 0
    }
}

/// A run's own recipe. One of a version that did not know `model.head_bias` started it at zero.
fn recipe(run: &Run) -> Result<Recipe> {
    let mut recipe = Recipe::load(&run.recipe_path(), &[])?;
    if !run.recipe()?.contains("head_bias") {
        recipe.model.head_bias = HeadBias::Zero;
    }
    Ok(recipe)
}

/// What a run is evaluated on, in words.
fn task(recipe: &Recipe) -> String {
    let data = &recipe.data;
    match (data.task, &data.hub, &data.validation) {
        (Some(task), ..) => task.to_string(),
        (None, Some(id), split) => {
            let split = split.as_ref().map(|split| split.display().to_string());
            let parts = [Some(id), data.config.as_ref(), split.as_ref()];
            let parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
            parts.join(" ")
        }
        (None, None, Some(file)) => file.display().to_string(),
        (None, None, None) => "nothing".to_owned(),
    }
}

/// The metric at each evaluation, of the split that decides: the one evaluated first.
fn curve(run: &Run, evaluations: &[EvalRecord], metric: &str) -> Result<Vec<(u64, f64)>> {
    let split = evaluations.first().map(|first| &first.split);
    let deciding = evaluations
        .iter()
        .filter(|record| Some(&record.split) == split);
    deciding
        .map(|record| match record.metrics.get(metric) {
            Some(value) => Ok((record.step, *value)),
            None => {
                let measured: Vec<&str> = record.metrics.keys().map(String::as_str).collect();
                Err(Error::user(format!(
                    "the run {} has no metric `{metric}` at step {}",
                    run.dir().display(),
                    record.step
                ))
                .help(format!("it measured {}", measured.join(", "))))
            }
        })
        .collect()
}

/// The masks with the steps they governed. A mask that governed none is left out.
fn choices(
    run: &Run,
    records: Vec<AllocationRecord>,
    steps: u64,
) -> Result<(Vec<String>, Vec<Choice>)> {
    let modules = (records.first()).map_or(Vec::new(), |first| first.modules.clone());
    if let Some(record) = records.iter().find(|r| r.active.len() != modules.len()) {
        return Err(Error::user(format!(
            "{}: the record of step {} is of {} modules, but the file begins with {}",
            run.dir().join("allocations.jsonl").display(),
            record.step,
            record.active.len(),
            modules.len()
        ))
        .help("restore the file from a copy, or leave the run out"));
    }
    let ends = records.iter().skip(1).map(|record| record.step);
    let ends: Vec<u64> = ends.chain([steps]).collect();
    let choices = records.into_iter().zip(ends).map(|(record, to)| Choice {
        from: record.step,
        to: to.min(steps),
        active: record.active,
        ranks: record.ranks,
        scores: record.scores,
    });
    Ok((modules, choices.filter(|c| c.to > c.from).collect()))
}

/// The plugins' own numbers by name: `scorer.temperature`.
fn numbers(records: &[AllocationRecord]) -> BTreeMap<String, Vec<(u64, Vec<f64>)>> {
    let mut all = BTreeMap::<String, Vec<(u64, Vec<f64>)>>::new();
    for record in records {
        let kinds = [
            ("scorer", &record.numbers.scorer),
            ("allocator", &record.numbers.allocator),
        ];
        for (kind, numbers) in kinds {
            for (name, values) in numbers {
                let own = all.entry(format!("{kind}.{name}")).or_default();
                own.push((record.step, values.clone()));
            }
        }
    }
    all
}

fn time_and_work(
    figures: &mut BTreeMap<Figure, f64>,
    summary: Option<&Summary>,
    logged: Option<&StepRecord>,
    evaluations: &[EvalRecord],
    steps: u64,
) {
    let mut add = |figure, value: Option<f64>| {
        if let Some(value) = value {
            figures.insert(figure, value);
        }
    };
    if let Some(summary) = summary {
        let active = summary.active_parameters_mean;
        add(Figure::TrainableParameters, Some(active));
        let all = summary.adapter_parameters;
        add(
            Figure::TrainableShare,
            (all > 0).then(|| active / all as f64),
        );
    }
    let (seconds, memory, flops) = match (summary, logged) {
        (Some(summary), _) => (summary.seconds, summary.peak_memory, summary.flops),
        (None, Some(last)) => (last.seconds, last.peak_memory, last.flops),
        (None, None) => return,
    };
    add(Figure::Seconds, Some(seconds));
    // An evaluation after the last record of an unfinished run is not in that record's seconds.
    let evaluated = evaluations
        .iter()
        .filter(|record| summary.is_some() || record.step < steps);
    let evaluated: f64 = evaluated.map(|record| record.seconds).sum();
    add(
        Figure::StepSeconds,
        (steps > 0).then(|| (seconds - evaluated).max(0.0) / steps as f64),
    );
    add(Figure::PeakMemory, memory.map(|bytes| bytes as f64));
    // 0: from before they were counted.
    add(Figure::Flops, (flops > 0).then_some(flops as f64));
}

fn of_choices(figures: &mut BTreeMap<Figure, f64>, modules: &[String], choices: &[Choice]) {
    let steps: u64 = choices.iter().map(|choice| choice.to - choice.from).sum();
    if steps == 0 || modules.is_empty() {
        return;
    }
    let touched = (0..modules.len()).filter(|at| choices.iter().any(|c| c.active[*at]));
    figures.insert(
        Figure::UniqueShare,
        touched.count() as f64 / modules.len() as f64,
    );
    let layers: Vec<Option<u64>> = modules.iter().map(|path| layer(path)).collect();
    // Modules of which none is in a layer (a pooler's alone) have no lowest one.
    let Some(highest) = layers.iter().flatten().max() else {
        return;
    };
    // With nothing active in the layers, the backward pass ends above the highest of them.
    let above = highest + 1;
    let lowest = choices.iter().map(|choice| {
        let active = layers
            .iter()
            .zip(&choice.active)
            .filter(|(_, active)| **active);
        let lowest = active.map(|(layer, _)| layer.unwrap_or(above)).min();
        (lowest.unwrap_or(above) * (choice.to - choice.from)) as f64
    });
    figures.insert(Figure::LowestLayer, lowest.sum::<f64>() / steps as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_modules_in_layers_have_a_lowest_one() {
        let lowest = |modules: &[&str], active: &[bool]| {
            let modules: Vec<String> = modules.iter().map(ToString::to_string).collect();
            let choice = Choice {
                from: 0,
                to: 4,
                active: active.to_vec(),
                ..Default::default()
            };
            let mut figures = BTreeMap::new();
            of_choices(&mut figures, &modules, &[choice]);
            figures.get(&Figure::LowestLayer).copied()
        };
        let modules = ["layer.0.query", "layer.1.query", "pooler.dense"];
        assert_eq!(lowest(&modules, &[false, true, true]), Some(1.0));
        assert_eq!(lowest(&modules, &[false, false, true]), Some(2.0));
        assert_eq!(lowest(&modules[2..], &[true]), None);
    }
}
