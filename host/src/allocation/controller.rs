//! The controller: from what was measured to the modules that train next.

use dynalora_plugin_api::{
    AllocationRequest, Allocator, Budget, CostModel, LedgerEntry, Needs, Observation, RawValue,
    Scorer, Signal, Start,
};
use serde::{Deserialize, Serialize};

use super::check;
use super::initial;
use super::ledger::Ledger;
use super::seed::{reallocation_seed, start_seed};
use super::state::{PluginState, State};
use super::unit::Units;
use crate::error::{Error, Result};
use crate::recipe::{Schedule, Unit};

/// A plugin under the name that errors and checkpoints give it.
pub struct Named<P: ?Sized> {
    /// The manifest name, such as `top-k`.
    pub name: String,
    /// The plugin itself.
    pub plugin: Box<P>,
}

/// The recipe's part in the controller.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// When to reallocate.
    pub schedule: Schedule,
    /// What is active at first; none for all. See [`initial_budget`](crate::recipe::AllocationConfig::initial_budget).
    pub initial_budget: Option<Budget>,
    /// For how many steps before each reallocation inactive modules' gradients are measured too.
    pub probe_steps: u64,
    /// Whether the adapters have components that can be pruned, as LoRA's pairs have.
    pub prunable: bool,
    /// The run's seed.
    pub seed: u64,
    /// Optimiser steps the whole run will take.
    pub total_steps: u64,
    /// What choices of modules cost.
    pub costs: Option<CostModel>,
}

/// What one reallocation decided, per module in forward order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reallocation {
    /// The optimiser step after which it happened.
    pub step: u64,
    /// Which reallocation it is, from 0.
    pub index: u64,
    /// The scorer's answer; empty where there is no scorer.
    pub scores: Vec<f64>,
    /// Which modules are active from now on.
    pub active: Vec<bool>,
    /// Their ranks, the components that remain, 0 where inactive.
    pub ranks: Vec<u32>,
    /// The ledger, this reallocation included.
    pub ledger: Vec<LedgerEntry>,
    /// Positions of the modules that were inactive and are active now.
    pub activated: Vec<usize>,
    /// Positions of the modules that were active and are inactive now.
    pub deactivated: Vec<usize>,
}

/// Holds the mask. Feeds the scorer, and an allocator that measures, after every step, asks both when
/// the schedule says so, checks their answers and switches.
pub struct Controller {
    settings: Settings,
    units: Units,
    scorer: Option<Named<dyn Scorer>>,
    allocator: Option<Named<dyn Allocator>>,
    needs: Needs,
    /// Whether the allocator takes in measurements.
    observes: bool,
    /// Whether it wants the raw ones, at every step.
    raw_always: bool,
    step: u64,
    reallocations: u64,
    active: Vec<bool>,
    components: Option<Vec<Vec<bool>>>,
    ledger: Ledger,
}

impl Controller {
    /// A controller before its first step. Scorer and allocator may be missing where the schedule
    /// never comes due, and the scorer where the allocator measures by itself or reads no scores. The
    /// scorer was made for [`Units::modules`], the allocator for [`Units::infos`].
    pub fn new(
        settings: Settings,
        units: Units,
        mut scorer: Option<Named<dyn Scorer>>,
        mut allocator: Option<Named<dyn Allocator>>,
    ) -> Result<Self> {
        settings.schedule.validate()?;
        if units.modules().is_empty() {
            return Err(Error::user("no module of the model is adapted")
                .help("widen `targets` in [adapter] until it matches at least one linear layer"));
        }
        let reallocates = settings
            .schedule
            .next_due(0, settings.total_steps)
            .is_some();
        if !reallocates && settings.schedule != (Schedule::Never {}) {
            tracing::warn!(
                "the schedule never comes due in a run of {} steps: the initial choice stays",
                settings.total_steps
            );
        }
        let of_allocator = allocator
            .as_ref()
            .filter(|_| reallocates)
            .map_or_else(Needs::default, |allocator| allocator.plugin.needs());
        let observes = of_allocator.measures();
        let missing = match (&scorer, &allocator) {
            (_, None) => Some("allocator"),
            (None, _) if !observes && !of_allocator.no_scores => Some("scorer"),
            _ => None,
        };
        if let (true, Some(missing)) = (reallocates, missing) {
            return Err(Error::user(format!("the schedule reallocates, but there is no {missing}"))
                .help(format!(
                    "add a [{missing}] table that names a plugin, or set schedule = {{ kind = \"never\" }}"
                )));
        }
        if let (true, Some(allocator)) = (observes && !units.are_modules(), &allocator) {
            return Err(Error::user(format!(
                "the allocator `{}` goes by measurements of single modules, but chooses among layers",
                allocator.name
            ))
            .help("set unit = \"module\" in [allocation]"));
        }
        let mut needs = match &scorer {
            Some(scorer) if reallocates => scorer.plugin.needs(),
            _ => Needs::default(),
        };
        for signal in of_allocator.signals {
            if !needs.signals.contains(&signal) {
                needs.signals.push(signal);
            }
        }
        for raw in &of_allocator.raw {
            if !needs.raw.contains(raw) {
                needs.raw.push(*raw);
            }
        }
        needs.components |= of_allocator.components;
        if needs.components && !settings.prunable {
            return Err(Error::user(
                "a plugin measures the components of LoRA's pairs, which VeRA's vectors do not have",
            )
            .help("set kind = \"lora\" in [adapter], or choose another scorer or allocator"));
        }
        if reallocates {
            if let Some(Named { name, plugin }) = &mut scorer {
                let answer = plugin.start(&start(&settings, &units, true));
                started("scorer", name, answer)?;
            }
            if let Some(Named { name, plugin }) = &mut allocator {
                let answer = plugin.start(&start(&settings, &units, false));
                started("allocator", name, answer)?;
            }
        }
        let costs = settings.costs.as_ref();
        let chosen = initial::draw(settings.initial_budget, &units, costs, settings.seed)?;
        let active = units.expand(&chosen);
        let ledger = Ledger::new(active.len());
        let (step, reallocations) = (0, 0);
        Ok(Controller {
            settings,
            units,
            scorer,
            allocator,
            needs,
            observes,
            raw_always: !of_allocator.raw.is_empty(),
            step,
            reallocations,
            active,
            components: None,
            ledger,
        })
    }

    /// What the plugins ask the host to measure; nothing if this run never reallocates.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Whether step `step`, about to run, is to be measured at all: not once the last reallocation
    /// is past, for nobody will be asked again.
    pub fn measuring(&self, step: u64) -> bool {
        step > 0
            && self
                .settings
                .schedule
                .next_due(step - 1, self.settings.total_steps)
                .is_some()
    }

    /// Whether the raw values in [`needs`](Self::needs) are wanted of step `step`, about to run.
    pub fn wants_raw(&self, step: u64) -> bool {
        let wants = |scorer: &Named<dyn Scorer>| scorer.plugin.wants_raw(step);
        !self.needs.raw.is_empty()
            && self.measuring(step)
            && (self.raw_always || self.scorer.as_ref().is_some_and(wants))
    }

    /// Whether step `step`, about to run, also computes the inactive modules' gradients: it is among
    /// the last `probe_steps` before a reallocation, a plugin needs gradients, and there are inactive
    /// modules.
    pub fn probing(&self, step: u64) -> bool {
        let gradient = |signal: &Signal| matches!(signal, Signal::GradientL1 | Signal::GradientL2);
        let Settings {
            schedule,
            probe_steps,
            total_steps,
            ..
        } = &self.settings;
        let needs = &self.needs;
        (needs.signals.iter().any(gradient)
            || needs.raw.contains(&RawValue::Gradient)
            || needs.components)
            && schedule.in_probe(step, *probe_steps, *total_steps)
            && self.active.contains(&false)
    }

    /// Which modules are active now.
    pub fn active(&self) -> &[bool] {
        &self.active
    }

    /// Which components of each module remain; none before an allocator has pruned any.
    pub fn components(&self) -> Option<&[Vec<bool>]> {
        self.components.as_deref()
    }

    /// The rank of each module now: its components that remain, 0 where inactive.
    pub fn ranks(&self) -> Vec<u32> {
        let modules = self.units.modules().iter().zip(&self.active).enumerate();
        modules
            .map(|(at, (module, &active))| match &self.components {
                _ if !active => 0,
                Some(components) => components[at]
                    .iter()
                    .map(|remains| u32::from(*remains))
                    .sum(),
                None => module.rank,
            })
            .collect()
    }

    /// The history of each module.
    pub fn ledger(&self) -> &[LedgerEntry] {
        self.ledger.entries()
    }

    /// The modules and how they are grouped.
    pub fn units(&self) -> &Units {
        &self.units
    }

    /// Optimiser steps finished.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Books one finished optimiser step, and reallocates if the schedule says so.
    ///
    /// The observation carries what [`needs`](Self::needs), [`wants_raw`](Self::wants_raw) and
    /// [`probing`](Self::probing) asked for; where [`measuring`](Self::measuring) says no, step and
    /// mask suffice.
    pub fn after_step(&mut self, observation: &Observation) -> Result<Option<Reallocation>> {
        let step = observation.step;
        if step != self.step + 1 || observation.active != self.active {
            return Err(Error::failure(format!(
                "the controller, at step {}, was told of step {step} or of another mask than its own",
                self.step
            )));
        }
        let measuring = self.measuring(step);
        self.step = step;
        self.ledger.stepped(&self.active);
        let unable = |kind, name: &str, error| {
            failed(kind, name, format!("could not take in step {step}"), error)
        };
        if measuring {
            check::observation(self.units.modules(), observation)?;
        }
        if measuring && let Some(Named { name, plugin }) = &mut self.scorer {
            plugin
                .observe(observation)
                .map_err(|error| unable("scorer", name, error))?;
        }
        if measuring
            && self.observes
            && let Some(Named { name, plugin }) = &mut self.allocator
        {
            plugin
                .observe(observation)
                .map_err(|error| unable("allocator", name, error))?;
        }
        if self
            .settings
            .schedule
            .is_due(step, self.settings.total_steps)
        {
            return self.reallocate();
        }
        Ok(None)
    }

    /// Books a step whose update was left out: nobody trained, and nothing was measured. Reallocates if the
    /// schedule says so.
    pub fn after_skipped_step(&mut self) -> Result<Option<Reallocation>> {
        self.step += 1;
        let Settings {
            schedule,
            total_steps,
            ..
        } = &self.settings;
        match schedule.is_due(self.step, *total_steps) {
            true => self.reallocate(),
            false => Ok(None),
        }
    }

    /// Reallocations made.
    pub fn reallocations(&self) -> u64 {
        self.reallocations
    }

    fn reallocate(&mut self) -> Result<Option<Reallocation>> {
        let (step, index, ranks) = (self.step, self.reallocations, self.ranks());
        // The constructor saw to it that there is one if the schedule ever comes due.
        let Some(allocator) = &mut self.allocator else {
            return Ok(None);
        };
        let when = |what: &str| format!("could not {what} after step {step}");

        let scores = match &mut self.scorer {
            Some(scorer) => {
                let answer = scorer.plugin.scores();
                let scores =
                    answer.map_err(|error| failed("scorer", &scorer.name, when("score"), error))?;
                check::scores(&scorer.name, step, self.units.modules(), &scores)?;
                Some(scores)
            }
            None => None,
        };

        let answer = allocator
            .plugin
            .allocate(&AllocationRequest {
                modules: self.units.infos().to_vec(),
                scores: match &scores {
                    Some(scores) => self.units.sum(scores),
                    None => vec![0.0; self.units.infos().len()],
                },
                ledger: self.units.first(self.ledger.entries()),
                active: self.units.first(&self.active),
                ranks: self.units.largest(&ranks),
                step,
                total_steps: self.settings.total_steps,
                reallocation: index,
                seed: reallocation_seed(self.settings.seed, index),
            })
            .map_err(|error| failed("allocator", &allocator.name, when("allocate"), error))?;
        let (units, modules) = (self.units.infos(), self.units.modules());
        let prunable = self.settings.prunable;
        check::allocation(&allocator.name, step, units, modules, prunable, &answer)?;

        let active = self.units.expand(&answer.active);
        let switched = |from: bool| -> Vec<usize> {
            let pairs = self.active.iter().zip(&active).enumerate();
            pairs
                .filter(|(_, (old, new))| **old == from && **new != from)
                .map(|(at, _)| at)
                .collect()
        };
        let (activated, deactivated) = (switched(false), switched(true));
        self.components = answer.components;
        self.ledger.chosen(&active, step);
        self.active.clone_from(&active);
        self.reallocations += 1;
        if let Some(scorer) = &mut self.scorer {
            scorer.plugin.reallocated().map_err(|error| {
                let what = when("take note of the reallocation");
                failed("scorer", &scorer.name, what, error)
            })?;
        }
        Ok(Some(Reallocation {
            step,
            index,
            scores: scores.unwrap_or_default(),
            active,
            ranks: self.ranks(),
            ledger: self.ledger.entries().to_vec(),
            activated,
            deactivated,
        }))
    }

    /// What a checkpoint keeps.
    pub fn state(&self) -> Result<State> {
        let scorer = self
            .scorer
            .as_ref()
            .map(|scorer| keep("scorer", &scorer.name, scorer.plugin.save()));
        let allocator = self
            .allocator
            .as_ref()
            .map(|allocator| keep("allocator", &allocator.name, allocator.plugin.save()));
        Ok(State {
            step: self.step,
            reallocations: self.reallocations,
            modules: self
                .units
                .modules()
                .iter()
                .map(|module| module.path.clone())
                .collect(),
            active: self.active.clone(),
            components: self.components.clone(),
            ledger: self.ledger.clone(),
            scorer: scorer.transpose()?,
            allocator: allocator.transpose()?,
        })
    }

    /// Goes on from `state`, on a fresh controller with fresh plugins.
    pub fn restore(&mut self, state: State) -> Result<()> {
        if self.step != 0 {
            return Err(Error::failure("only a fresh controller can be restored"));
        }
        self.check_state(&state)?;
        if let (Some(scorer), Some(kept)) = (&mut self.scorer, &state.scorer) {
            let loaded = scorer.plugin.load(&kept.state);
            loaded.map_err(|error| unfit("the scorer refused its state").because(error))?;
        }
        if let (Some(allocator), Some(kept)) = (&mut self.allocator, &state.allocator) {
            let loaded = allocator.plugin.load(&kept.state);
            loaded.map_err(|error| unfit("the allocator refused its state").because(error))?;
        }
        self.step = state.step;
        self.reallocations = state.reallocations;
        self.active = state.active;
        self.components = state.components;
        self.ledger = state.ledger;
        Ok(())
    }

    /// Refuses a state of another run: a checkpoint is input like any other.
    fn check_state(&self, state: &State) -> Result<()> {
        let modules = self.units.modules();
        if modules.len() != state.modules.len() {
            let (now, then) = (modules.len(), state.modules.len());
            return Err(unfit(&format!("it has {then} modules, this run {now}")));
        }
        if let Some((now, then)) = modules
            .iter()
            .zip(&state.modules)
            .find(|(now, then)| now.path != **then)
        {
            return Err(unfit(&format!(
                "its module {then} is {} in this run",
                now.path
            )));
        }
        let lengths = [state.active.len(), state.ledger.entries().len()];
        if lengths.iter().any(|length| *length != modules.len()) {
            return Err(unfit("its mask and ledger differ in length"));
        }
        let fits = |components: &Vec<Vec<bool>>| {
            components.len() == modules.len()
                && modules.iter().zip(components).zip(&state.active).all(
                    |((module, components), active)| {
                        components.len() == module.rank as usize
                            && components.contains(&true) == *active
                    },
                )
        };
        if !state.components.as_ref().is_none_or(fits) || !state.active.contains(&true) {
            return Err(unfit(
                "its mask and components contradict each other or the adapter's rank",
            ));
        }
        let together = |history: (&[bool], &[LedgerEntry])| {
            self.units.expand(&self.units.first(history.0)) == history.0
                && self.units.expand(&self.units.first(history.1)) == history.1
        };
        if !together((&state.active, state.ledger.entries())) {
            return Err(unfit(
                "the modules of a unit have different histories: `unit` has changed",
            ));
        }
        if state.step > self.settings.total_steps {
            let (then, now) = (state.step, self.settings.total_steps);
            return Err(unfit(&format!(
                "it is at step {then}, this run ends at step {now}"
            )));
        }
        same_plugin(
            "scorer",
            self.scorer.as_ref().map(|scorer| &scorer.name),
            &state.scorer,
        )?;
        same_plugin(
            "allocator",
            self.allocator.as_ref().map(|allocator| &allocator.name),
            &state.allocator,
        )
    }
}

fn same_plugin(kind: &str, now: Option<&String>, then: &Option<PluginState>) -> Result<()> {
    let then = then.as_ref().map(|kept| &kept.name);
    if now == then {
        return Ok(());
    }
    let named = |name: Option<&String>| name.map_or("none".to_owned(), |name| format!("`{name}`"));
    Err(unfit(&format!(
        "its {kind} is {}, this run's is {}",
        named(then),
        named(now)
    )))
}

fn keep(
    kind: &str,
    name: &str,
    saved: dynalora_plugin_api::Result<Vec<u8>>,
) -> Result<PluginState> {
    let state =
        saved.map_err(|error| failed(kind, name, "could not save its state".to_owned(), error))?;
    Ok(PluginState {
        name: name.to_owned(),
        state,
    })
}

fn failed(kind: &str, name: &str, what: String, error: dynalora_plugin_api::Error) -> Error {
    Error::user(format!("the {kind} `{name}` {what}"))
        .because(error)
        .help(format!(
            "`dynalora plugins check` finds faults of a plugin. {}",
            check::way_on(kind)
        ))
}

/// What a plugin is told of the run.
fn start(settings: &Settings, units: &Units, scorer: bool) -> Start {
    let mut start = Start::default();
    start.total_steps = settings.total_steps;
    start.first_reallocation = settings.schedule.next_due(0, settings.total_steps);
    let last = settings.schedule.last_due(settings.total_steps);
    start.last_reallocation = last.map(|(step, _)| step);
    start.reallocations = last.map_or(0, |(_, count)| count);
    start.unit = match units.unit() {
        Unit::Module => dynalora_plugin_api::Unit::Module,
        Unit::Layer => dynalora_plugin_api::Unit::Layer,
    };
    start.seed = start_seed(settings.seed, scorer);
    start.costs = match (&settings.costs, scorer) {
        (Some(costs), false) => Some(units.costs(costs)),
        (costs, _) => costs.clone(),
    };
    start
}

/// What a plugin says to that.
fn started(kind: &str, name: &str, answer: dynalora_plugin_api::Result<Vec<String>>) -> Result<()> {
    let warnings = answer.map_err(|error| {
        Error::user(format!(
            "the {kind} `{name}` cannot work in this run: {error}"
        ))
        .help(format!(
            "change the parameters in [{kind}], [allocation], or the length of the run in [train]"
        ))
    })?;
    for warning in warnings {
        tracing::warn!("the {kind} `{name}`: {warning}");
    }
    Ok(())
}

fn unfit(why: &str) -> Error {
    Error::user(format!(
        "the checkpoint's allocation does not fit this run: {why}"
    ))
    .help("resume with the recipe and the plugins the run was started with, or start a new run")
}

#[cfg(test)]
mod tests;
