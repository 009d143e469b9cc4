//! `dynalora plugins replay`: what a plugin would have chosen in a run that there is, without training.

use std::path::{Path, PathBuf};

use dynalora_plugin_api::{
    CostModel, Kind, LedgerEntry, Measured, ModuleInfo, Needs, Observation, ScoreRequest, Scorer,
    Signal,
};
use serde::Serialize;
use serde_json::Value;

use crate::adapter::Adapted;
use crate::allocation::{Controller, InForce, Named, Settings, Units};
use crate::cli::{Common, print, print_json, table};
use crate::error::{Error, Result};
use crate::model::{Pretrained, fetch};
use crate::plugin::{self, Loaded, PluginPath};
use crate::recipe::{AdapterKind, Length, PluginConfig, Recipe};
use crate::run::{AllocationRecord, Observed, Run, SignalRecord};
use crate::train::eva::Found;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A scorer's or an allocator's name, or the path of its library
    plugin: String,
    /// The folder of the run
    #[arg(long, value_name = "RUN")]
    run: PathBuf,
    /// A parameter of the plugin; may be given several times. By default those of the recipe, if it is the plugin
    /// that the run was made with
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the choices as JSON
    #[arg(long)]
    json: bool,
}

/// The whole comparison.
#[derive(Debug, Serialize)]
struct Replay {
    plugin: String,
    kinds: Vec<Kind>,
    parameters: Value,
    run: PathBuf,
    /// Paths of the modules.
    modules: Vec<String>,
    /// Recorded steps of which the plugin was told, and of which it could not be told all that it wanted.
    told: usize,
    not_recorded: usize,
    /// Reallocations in which it would have chosen something else.
    differ: usize,
    reallocations: Vec<Choice>,
}

/// One reallocation, then and now, per module in forward order.
#[derive(Debug, Serialize)]
struct Choice {
    step: u64,
    index: u64,
    scores_then: Vec<f64>,
    scores: Vec<f64>,
    active_then: Vec<bool>,
    active: Vec<bool>,
    /// Ranks that the plugin would have given, where it prunes components.
    ranks: Option<Vec<u32>>,
    /// Positions of modules that it would have chosen and that were not.
    added: Vec<usize>,
    /// Positions of modules that were chosen and that it would not have chosen.
    dropped: Vec<usize>,
}

pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let record = Recorded::read(&arguments.run)?;
    let replay = replay(arguments, common, &record)?;
    match arguments.json {
        true => print_json(&replay),
        false => print(&told(&replay)),
    }
}

/// What there is of a run.
struct Recorded {
    recipe: Recipe,
    modules: Vec<ModuleInfo>,
    /// With how many components each starts, where any can grow.
    initial_ranks: Option<Vec<u32>>,
    total_steps: u64,
    /// What choices cost in its steps; recorded with the signals.
    costs: Option<CostModel>,
    /// The initial choice.
    first: AllocationRecord,
    reallocations: Vec<AllocationRecord>,
    /// None where the run recorded no signals.
    observed: Option<Vec<Observed>>,
}

impl Recorded {
    fn read(dir: &Path) -> Result<Self> {
        let run = Run::open(dir)?;
        let (recipe, _) = Recipe::parse(&run.recipe_path(), &run.recipe()?, &[])?;
        let mut allocations = run.allocations()?.into_iter();
        let nothing = || {
            Error::user(format!(
                "the run {} has recorded no reallocation: there is nothing to replay",
                dir.display()
            ))
            .help("give a run whose schedule has come due")
        };
        let first = allocations.next().ok_or_else(nothing)?;
        // A record of a fault is of no choice.
        let choices = allocations.filter(|record| record.index.is_some());
        let reallocations: Vec<AllocationRecord> = choices.collect();
        if reallocations.is_empty() {
            return Err(nothing());
        }
        let (mut header, mut observed) = (None, None);
        for record in run.signals()?.unwrap_or_default() {
            match record {
                SignalRecord::Modules {
                    modules,
                    initial_ranks,
                    total_steps,
                    costs,
                    ..
                } => {
                    let costs = costs.map(|costs| *costs);
                    header = Some((modules, initial_ranks, total_steps, costs));
                }
                SignalRecord::Observed(step) => {
                    observed.get_or_insert_with(Vec::new).push(step);
                }
            }
        }
        if header.is_some() {
            observed.get_or_insert_default();
        }
        let (modules, initial_ranks, total_steps, costs) = match header {
            Some(header) => header,
            None => {
                let adapted = adapted(&recipe, &first)?;
                let total_steps = total_steps(&recipe, &run)?;
                (adapted.modules, adapted.initial_ranks, total_steps, None)
            }
        };
        let paths: Vec<&String> = modules.iter().map(|module| &module.path).collect();
        let fits = |record: &AllocationRecord| {
            let lengths = [record.active.len(), record.ranks.len(), record.ledger.len()];
            lengths == [modules.len(); 3] && [0, modules.len()].contains(&record.scores.len())
        };
        if first.modules.iter().collect::<Vec<_>>() != paths
            || !fits(&first)
            || !reallocations.iter().all(fits)
        {
            return Err(Error::user(format!(
                "the run {} has records of other modules than its model has",
                dir.display()
            ))
            .help("its allocations.jsonl or signals.jsonl, or the model that its recipe names, has changed"));
        }
        Ok(Recorded {
            recipe,
            modules,
            initial_ranks,
            total_steps,
            costs,
            first,
            reallocations,
            observed,
        })
    }
}

/// The adapted modules, from the base model, with the ranks that EVA gave them.
fn adapted(recipe: &Recipe, first: &AllocationRecord) -> Result<Adapted> {
    let folder = fetch::resolve(&recipe.model.name, &recipe.model.revision)?;
    let pretrained = Pretrained::open_for(&folder, &recipe.model, recipe.data.problem())?;
    let adapted = pretrained.adapted(&recipe.adapter)?;
    let redistributes = recipe.adapter.eva().is_some_and(|eva| eva.redistributes());
    Ok(match &first.eva {
        Some(eva) if redistributes => {
            Found::known(eva.clone()).check(&adapted)?;
            adapted.redistributed(&recipe.adapter, pretrained.config.prefix, &eva.ranks)
        }
        _ => adapted,
    })
}

fn total_steps(recipe: &Recipe, run: &Run) -> Result<u64> {
    match (recipe.train.length(), run.summary()?) {
        (Length::Steps(steps), _) => Ok(steps),
        (Length::Epochs(_), Some(summary)) => Ok(summary.steps),
        (Length::Epochs(_), None) => Err(Error::user(format!(
            "the run {} is not finished, and its recipe does not say of how many steps it is",
            run.dir().display()
        ))
        .help("let it end with --resume, or give a run with train.log_signals = true, which records that")),
    }
}

/// Gives the scores of the recorded run again.
struct RecordedScores(std::vec::IntoIter<Vec<f64>>);

impl Scorer for RecordedScores {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn observe(&mut self, _: &Observation) -> dynalora_plugin_api::Result<()> {
        Ok(())
    }

    fn scores(&mut self, _: &ScoreRequest) -> dynalora_plugin_api::Result<Vec<f64>> {
        Ok(self.0.next().unwrap_or_default())
    }
}

fn replay(arguments: &Arguments, common: &Common, record: &Recorded) -> Result<Replay> {
    let recipe = &record.recipe;
    let path = PluginPath::new(&common.plugin_dir, &recipe.plugin_dirs)?;
    let found = plugin::describe(&path, &arguments.plugin)?;
    let kinds: Vec<Kind> = found.iter().map(|found| found.manifest.kind).collect();
    let name = &found[0].manifest.name;
    let units = Units::new(recipe.allocation.unit, record.modules.clone());
    let parameters = |kind| parameters(arguments, name, own(recipe, kind));
    let mut used = Value::Null;

    let scorer = match kinds.contains(&Kind::Scorer) {
        true => {
            used = parameters(Kind::Scorer)?;
            let loaded = plugin::load_scorer(
                &path,
                &arguments.plugin,
                &used,
                None,
                units.modules(),
                |own| own,
            )?;
            can_be_told(
                "scorer",
                &loaded.manifest.name,
                &loaded.plugin.needs(),
                record,
            )?;
            Some(named(loaded))
        }
        false => recorded_scores(record),
    };
    let allocator = match kinds.contains(&Kind::Allocator) {
        true => {
            used = parameters(Kind::Allocator)?;
            plugin::load_allocator(
                &path,
                &arguments.plugin,
                &used,
                None,
                units.infos(),
                |own| own,
            )?
        }
        // A scorer alone: the run's own allocator chooses by its scores.
        false => {
            let allocator = recipe.allocator.as_ref().ok_or_else(|| {
                Error::user(format!(
                    "the run's recipe has no [allocator], so that nothing chooses by the scores of `{name}`"
                ))
                .help("replay an allocator, or a run that has one")
            })?;
            let parameters = allocator.parameters_json();
            let isolation = allocator.isolation.as_ref();
            let name = &allocator.plugin;
            plugin::load_allocator(&path, name, &parameters, isolation, units.infos(), |own| {
                own
            })?
        }
    };
    let needs = allocator.plugin.needs();
    can_be_told("allocator", &allocator.manifest.name, &needs, record)?;
    if needs.scores && scorer.is_none() {
        return Err(Error::user(format!(
            "the allocator `{}` goes by scores, and the run {} has recorded none: it had no scorer",
            allocator.manifest.name,
            arguments.run.display()
        ))
        .help("give a run that was made with a scorer"));
    }
    let settings = Settings {
        schedule: recipe.allocation.schedule.clone(),
        initial_budget: None,
        initial_ranks: record.initial_ranks.clone(),
        first_choice: recipe.allocation.first_choice(),
        probe_steps: recipe.allocation.probe_steps,
        prunable: recipe.adapter.kind == AdapterKind::Lora,
        seed: recipe.seed,
        total_steps: record.total_steps,
        learning_rate: recipe.train.learning_rate,
        costs: record.costs.clone(),
    };
    let scorer = scorer.filter(|_| needs.scores || kinds.contains(&Kind::Scorer));
    let mut controller = Controller::new(settings, units, scorer, Some(named(allocator)))?;
    let (reallocations, told, not_recorded) = live_again(&mut controller, record)?;
    let differs = |choice: &&Choice| !choice.added.is_empty() || !choice.dropped.is_empty();
    Ok(Replay {
        plugin: name.clone(),
        kinds,
        parameters: used,
        run: arguments.run.clone(),
        modules: (record.modules.iter())
            .map(|module| module.path.clone())
            .collect(),
        told,
        not_recorded,
        differ: reallocations.iter().filter(differs).count(),
        reallocations,
    })
}

fn named<P: ?Sized>(loaded: Loaded<P>) -> Named<P> {
    Named {
        name: loaded.manifest.name,
        plugin: loaded.plugin,
    }
}

/// The run's scores in their order, if it had a scorer.
fn recorded_scores(record: &Recorded) -> Option<Named<dyn Scorer>> {
    let scores: Vec<Vec<f64>> = (record.reallocations.iter())
        .map(|record| record.scores.clone())
        .collect();
    let any = scores.iter().all(|scores| !scores.is_empty());
    any.then(|| Named {
        name: "recorded".to_owned(),
        plugin: Box::new(RecordedScores(scores.into_iter())) as Box<dyn Scorer>,
    })
}

/// The table of the recipe for this kind.
fn own(recipe: &Recipe, kind: Kind) -> Option<&PluginConfig> {
    match kind {
        Kind::Scorer => recipe.scorer.as_ref(),
        Kind::Allocator => recipe.allocator.as_ref(),
    }
}

/// The parameters that are given; those of the recipe below them, where it names the same plugin.
fn parameters(arguments: &Arguments, name: &str, own: Option<&PluginConfig>) -> Result<Value> {
    let own = own.filter(|own| own.plugin == name || own.plugin == arguments.plugin);
    let mut parameters = own.map_or(
        Value::Object(Default::default()),
        PluginConfig::parameters_json,
    );
    for set in &arguments.set {
        let (key, text) = set.split_once('=').ok_or_else(|| {
            Error::user(format!("--set {set}: there is no `=`"))
                .help("give a parameter of the plugin and its value: --set k=50%")
        })?;
        // As --set of train has it: TOML where it is, else text.
        let value = toml::from_str::<toml::Table>(&format!("value = {text}"))
            .ok()
            .and_then(|mut table| table.remove("value"))
            .map_or_else(
                || Ok(Value::from(text)),
                |value| {
                    serde_json::to_value(value)
                        .map_err(|error| Error::user(format!("--set {set}: {error}")))
                },
            )?;
        if let Some(parameters) = parameters.as_object_mut() {
            parameters.insert(key.trim().to_owned(), value);
        }
    }
    Ok(parameters)
}

/// Refuses a plugin that needs what was not recorded, by name.
fn can_be_told(kind: &str, name: &str, needs: &Needs, record: &Recorded) -> Result<()> {
    let refuse = |what: String, help: &str| {
        Err(Error::user(format!("the {kind} `{name}` needs {what}")).help(help.to_owned()))
    };
    if needs.held_back > 0 {
        return refuse(
            "trial passes, which a replay cannot make".to_owned(),
            "train with it: trials need the model",
        );
    }
    if let Some(raw) = needs.raw.first() {
        return refuse(
            format!("the raw value `{raw}`, which is not recorded"),
            "train with it: only what is small is recorded",
        );
    }
    if !needs.observes() {
        return Ok(());
    }
    let again = "record a run of the recipe with --set train.log_signals=true, with plugins that measure what this \
                 one needs";
    let Some(observed) = &record.observed else {
        let what = needs.signals.first().map(Signal::to_string);
        let what = what.map_or("measurements".to_owned(), |what| {
            format!("the signal `{what}`")
        });
        return refuse(format!("{what}, and the run has no signals.jsonl"), again);
    };
    for signal in &needs.signals {
        if !observed
            .iter()
            .any(|it| it.signals.contains_key(signal.name()))
        {
            return refuse(
                format!("the signal `{signal}`, which the run has not recorded"),
                again,
            );
        }
    }
    if needs.components && !observed.iter().any(|it| !it.components.is_empty()) {
        return refuse(
            "components, which the run has not recorded".to_owned(),
            again,
        );
    }
    Ok(())
}

/// The plugins are told what was recorded, asked where the run's were, and told what was chosen then.
fn live_again(
    controller: &mut Controller,
    record: &Recorded,
) -> Result<(Vec<Choice>, usize, usize)> {
    let mut observed = record
        .observed
        .as_deref()
        .unwrap_or_default()
        .iter()
        .peekable();
    let (mut told, mut not_recorded) = (0, 0);
    let mut choices = Vec::new();
    let mut before = &record.first;
    for (at, chosen) in record.reallocations.iter().enumerate() {
        let mut then = in_force(before, chosen, at as u64);
        controller.put_back(&then);
        while let Some(step) = observed.next_if(|it| it.step <= chosen.step) {
            match controller.observe_again(&observation(step, record.total_steps))? {
                Some(true) => told += 1,
                Some(false) => not_recorded += 1,
                None => {}
            }
        }
        then.step = chosen.step;
        controller.put_back(&then);
        let would = controller.consider(&chosen.active)?;
        let only = |one: &[bool], other: &[bool]| -> Vec<usize> {
            (0..one.len())
                .filter(|at| one[*at] && !other[*at])
                .collect()
        };
        choices.push(Choice {
            step: chosen.step,
            index: at as u64,
            added: only(&would.active, &chosen.active),
            dropped: only(&chosen.active, &would.active),
            scores_then: chosen.scores.clone(),
            scores: would.scores.unwrap_or_default(),
            active_then: chosen.active.clone(),
            active: would.active,
            ranks: would.ranks,
        });
        before = chosen;
    }
    Ok((choices, told, not_recorded))
}

/// What was in force from the choice `before` on until `next` was made.
fn in_force(before: &AllocationRecord, next: &AllocationRecord, made: u64) -> InForce {
    // A choice changes times and last step of a module's history, and steps the steps it was updated.
    let entries = before.ledger.iter().zip(&next.ledger);
    let ledger = entries.map(|(before, next)| LedgerEntry {
        steps_active: next.steps_active,
        ..*before
    });
    InForce {
        step: before.step,
        reallocations: made,
        last_choice: before.index.map(|_| before.step),
        next_choice: Some(next.step),
        active: before.active.clone(),
        ranks: before.ranks.clone(),
        ledger: ledger.collect(),
    }
}

fn observation(recorded: &Observed, total_steps: u64) -> Observation {
    let mut told = Observation::default();
    told.moment = recorded.moment;
    told.step = recorded.step;
    told.total_steps = total_steps;
    told.tokens = recorded.tokens;
    told.loss = recorded.loss;
    told.learning_rate = recorded.learning_rate;
    told.metric.clone_from(&recorded.metric);
    told.probing = recorded.probing;
    told.active.clone_from(&recorded.active);
    let signals = recorded.signals.iter();
    told.signals = signals
        .map(|(name, values)| Measured {
            signal: Signal::named(name.clone()),
            values: values.clone(),
        })
        .collect();
    told.components.clone_from(&recorded.components);
    told
}

fn told(replay: &Replay) -> String {
    let mut table = table(&["step", "active then", "active", "the same", "in its place"]);
    let paths = |positions: &[usize]| -> String {
        let names: Vec<&str> = (positions.iter())
            .map(|at| replay.modules[*at].as_str())
            .collect();
        match names.len() {
            0 => "none".to_owned(),
            1..=3 => names.join(", "),
            all => format!("{}, … ({all})", names[..3].join(", ")),
        }
    };
    let count = |active: &[bool]| active.iter().filter(|active| **active).count();
    for choice in &replay.reallocations {
        let same = count(&choice.active) - choice.added.len();
        let change = match (choice.added.is_empty(), choice.dropped.is_empty()) {
            (true, true) => String::new(),
            _ => format!("{} for {}", paths(&choice.added), paths(&choice.dropped)),
        };
        table.add_row([
            choice.step.to_string(),
            count(&choice.active_then).to_string(),
            count(&choice.active).to_string(),
            same.to_string(),
            change,
        ]);
    }
    let kinds: Vec<String> = replay.kinds.iter().map(Kind::to_string).collect();
    let mut text = format!(
        "{} ({}) with {} in {}: it would have chosen otherwise in {} of {} reallocations\n\n{}",
        replay.plugin,
        kinds.join(" and "),
        replay.parameters,
        replay.run.display(),
        replay.differ,
        replay.reallocations.len(),
        table.trim_fmt()
    );
    if replay.not_recorded > 0 {
        text.push_str(&format!(
            "\n\n{} recorded steps lack something that it wants of them; it was told of {}",
            replay.not_recorded, replay.told
        ));
    }
    text
}
