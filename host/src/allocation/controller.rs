//! The controller: from what was measured to the modules that train next.

use dynalora_plugin_api::{
    AllocationRequest, Allocator, Budget, CostModel, LedgerEntry, Moment, Needs, Numbers,
    Observation, ScoreRequest, Scorer, Start, Trial, TrialLosses, TrialRequest, Trials, Upcoming,
    Wants,
};

use super::check;
use super::initial;
use super::ledger::Ledger;
use super::offer::Wanted;
use super::seed::{reallocation_seed, start_seed};
use super::state::{Details, Fault};
use super::unit::Units;
use crate::error::{Error, Result};
use crate::recipe::{Schedule, Unit};
use keep::Kept;
pub use replay::{InForce, WouldBe};

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
    /// Whether the allocator chooses before the first step, and after how many passes without an update.
    pub first_choice: Option<u64>,
    /// For how many steps before each reallocation inactive modules' gradients are measured too.
    pub probe_steps: u64,
    /// Whether the adapters have components that can be pruned, as LoRA's pairs have.
    pub prunable: bool,
    /// How many of each module's components train while it is active and no allocator has said which; none for all.
    /// They can then grow.
    pub initial_ranks: Option<Vec<u32>>,
    /// The run's seed.
    pub seed: u64,
    /// Optimiser steps the whole run will take.
    pub total_steps: u64,
    /// What choices of modules cost.
    pub costs: Option<CostModel>,
    /// The adapters' learning rate at its peak.
    pub learning_rate: f64,
}

/// What one reallocation decided, per module in forward order.
#[derive(Clone, Debug, PartialEq)]
pub struct Reallocation {
    /// The optimiser step after which it happened; 0 for a choice before the first step.
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
    /// What else the allocator decided.
    pub details: Details,
    /// Positions of the modules that were inactive and are active now.
    pub activated: Vec<usize>,
    /// Positions of the modules that were active and are inactive now.
    pub deactivated: Vec<usize>,
    /// Numbers of the scorer's own.
    pub scorer_numbers: Numbers,
    /// Numbers of the allocator's own.
    pub allocator_numbers: Numbers,
}

/// A plugin, what it needs, and what of it is measured.
struct Asked<P: ?Sized> {
    name: String,
    plugin: Box<P>,
    needs: Needs,
    wanted: Wanted,
}

/// What is to be measured of a step, and who is told of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measuring {
    /// What is to be measured, for both plugins together.
    pub wanted: Wanted,
    /// Whether the step also computes the inactive modules' gradients.
    pub probing: bool,
    scorer: Wants,
    allocator: Wants,
}

impl Measuring {
    /// Whether any plugin is told of it.
    pub fn is_told(&self) -> bool {
        self.scorer.anything() || self.allocator.anything()
    }
}

/// Trials that the scorer and the allocator ask for, of single modules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrialsAsked {
    /// The scorer's.
    pub scorer: Trials,
    /// The allocator's.
    pub allocator: Trials,
    /// What their examples are to be drawn by.
    pub seed: u64,
}

/// What those trials gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrialsMade {
    /// The scorer's; none where it asked for none.
    pub scorer: Option<TrialLosses>,
    /// The allocator's; none where it asked for none.
    pub allocator: Option<TrialLosses>,
}

/// What both plugins answer at a reallocation.
struct Decided {
    scores: Option<Vec<f64>>,
    scorer_numbers: Numbers,
    choice: check::Choice,
    ask_again: Option<u64>,
    allocator_numbers: Numbers,
}

/// Holds the mask. Tells the plugins of the steps that they want, asks both when the schedule says so, checks their
/// answers and switches.
pub struct Controller {
    settings: Settings,
    units: Units,
    scorer: Option<Asked<dyn Scorer>>,
    allocator: Option<Asked<dyn Allocator>>,
    step: u64,
    reallocations: u64,
    /// The steps after which modules were chosen last and are chosen next, where the allocator decides about it.
    last_choice: Option<u64>,
    asked_for: Option<u64>,
    active: Vec<bool>,
    components: Option<Vec<Vec<bool>>>,
    details: Details,
    ledger: Ledger,
    kept: Kept,
    fault: Option<Fault>,
}

impl Controller {
    /// A controller before its first step. Scorer and allocator may be missing where the schedule
    /// never comes due, and the scorer where the allocator measures by itself or reads no scores. The
    /// scorer was made for [`Units::modules`], the allocator for [`Units::infos`].
    pub fn new(
        settings: Settings,
        units: Units,
        scorer: Option<Named<dyn Scorer>>,
        allocator: Option<Named<dyn Allocator>>,
    ) -> Result<Self> {
        settings.schedule.validate()?;
        if units.modules().is_empty() {
            return Err(Error::user("no module of the model is adapted")
                .help("widen `targets` in [adapter] until it matches at least one linear layer"));
        }
        let due = settings.schedule.next_due(0, settings.total_steps);
        if due.is_none() && settings.schedule != (Schedule::Never {}) {
            tracing::warn!(
                "the schedule never comes due in a run of {} steps: the initial choice stays",
                settings.total_steps
            );
        }
        // Plugins that nobody will ever ask are not asked what they need either.
        let chooses = due.is_some() || settings.first_choice.is_some();
        let scorer = scorer.filter(|_| chooses).map(|Named { name, plugin }| {
            let needs = plugin.needs();
            asked("scorer", name, plugin, needs)
        });
        let allocator = allocator.filter(|_| chooses).map(|Named { name, plugin }| {
            let needs = plugin.needs();
            asked("allocator", name, plugin, needs)
        });
        let (mut scorer, mut allocator) = (scorer.transpose()?, allocator.transpose()?);
        if chooses {
            fit_together(&settings, &units, scorer.as_ref(), allocator.as_ref())?;
        }
        if let Some(Asked { name, plugin, .. }) = &mut scorer {
            let answer = plugin.start(&start(&settings, &units, true));
            started("scorer", name, answer)?;
        }
        if let Some(Asked { name, plugin, .. }) = &mut allocator {
            let answer = plugin.start(&start(&settings, &units, false));
            started("allocator", name, answer)?;
        }
        let costs = settings.costs.as_ref();
        let chosen = initial::draw(settings.initial_budget, &units, costs, settings.seed)?;
        let active = units.expand(&chosen);
        let ledger = Ledger::new(active.len());
        let components = unsaid(&settings, &units, &active);
        let details = Details {
            frozen: components.is_some(),
            ..Details::default()
        };
        Ok(Controller {
            asked_for: settings.schedule.asked_first(),
            settings,
            units,
            scorer,
            allocator,
            step: 0,
            reallocations: 0,
            last_choice: None,
            active,
            components,
            details,
            ledger,
            kept: Kept::default(),
            fault: None,
        })
    }

    /// The first step later than `finished` that a reallocation follows, as far as is known.
    fn next_due(&self, finished: u64) -> Option<u64> {
        let Settings {
            schedule,
            total_steps,
            ..
        } = &self.settings;
        match schedule {
            _ if self.fault.is_some() => None,
            Schedule::Allocator { .. } => self
                .asked_for
                .filter(|due| *due > finished && due < total_steps),
            schedule => schedule.next_due(finished, *total_steps),
        }
    }

    /// What is measured of step `step`, which is about to run: nothing once the last reallocation is past, for nobody
    /// will be asked again.
    pub fn upcoming(&self, step: u64) -> Measuring {
        let Some(due) = step.checked_sub(1).and_then(|done| self.next_due(done)) else {
            return Measuring::default();
        };
        let mut upcoming = Upcoming::default();
        upcoming.step = step;
        upcoming.total_steps = self.settings.total_steps;
        upcoming.previous_reallocation = self.last_choice;
        upcoming.next_reallocation = Some(due);
        upcoming.some_inactive = self.active.contains(&false);
        upcoming.probing = due - step < self.settings.probe_steps;
        let wants = |observes: bool, wants: &dyn Fn() -> Wants| match observes {
            true => wants(),
            false => Wants::NOTHING,
        };
        let of_scorer = self.scorer.as_ref().map(|it| {
            let wants = wants(it.needs.observes(), &|| it.plugin.wants(&upcoming));
            (wants, it.wanted.at(wants))
        });
        let of_allocator = self.allocator.as_ref().map(|it| {
            let wants = wants(it.needs.observes(), &|| it.plugin.wants(&upcoming));
            (wants, it.wanted.at(wants))
        });
        let (scorer, first) = of_scorer.unwrap_or_default();
        let (allocator, second) = of_allocator.unwrap_or_default();
        let wanted = first.and(&second);
        Measuring {
            probing: upcoming.probing && wanted.gradients() && upcoming.some_inactive,
            wanted,
            scorer,
            allocator,
        }
    }

    /// What is measured once, before anything runs; nothing where no plugin needs such.
    pub fn at_the_start(&self) -> Measuring {
        let once = |wanted: Option<&Wanted>| wanted.map_or(Wanted::default(), Wanted::once);
        let scorer = once(self.scorer.as_ref().map(|it| &it.wanted));
        let allocator = once(self.allocator.as_ref().map(|it| &it.wanted));
        Measuring {
            probing: false,
            scorer: Wants::all_if(!scorer.is_nothing()),
            allocator: Wants::all_if(!allocator.is_nothing()),
            wanted: scorer.and(&allocator),
        }
    }

    /// What is measured of a pass before the first step: all that is needed of steps.
    pub fn before_the_first_step(&self) -> Measuring {
        let scorer = self.scorer.as_ref().filter(|it| it.needs.observes());
        let allocator = self.allocator.as_ref().filter(|it| it.needs.observes());
        let wanted = scorer.map_or(Wanted::default(), |it| it.wanted.at(Wants::ALL));
        Measuring {
            wanted: match allocator {
                Some(allocator) => wanted.and(&allocator.wanted.at(Wants::ALL)),
                None => wanted,
            },
            probing: false,
            scorer: Wants::all_if(scorer.is_some()),
            allocator: Wants::all_if(allocator.is_some()),
        }
    }

    /// Whether the allocator chooses before the first step, and after how many passes without an update.
    pub fn first_choice(&self) -> Option<u64> {
        self.settings.first_choice
    }

    /// Which modules are active now.
    pub fn active(&self) -> &[bool] {
        &self.active
    }

    /// Which components of each module remain; none before an allocator has pruned any.
    pub fn components(&self) -> Option<&[Vec<bool>]> {
        self.components.as_deref()
    }

    /// What else is in force beside modules and components.
    pub fn details(&self) -> &Details {
        &self.details
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

    /// With how many components each module starts, where any can grow.
    pub fn initial_ranks(&self) -> Option<&[u32]> {
        self.settings.initial_ranks.as_deref()
    }

    /// What choices of modules cost.
    pub fn costs(&self) -> Option<&CostModel> {
        self.settings.costs.as_ref()
    }

    /// The modules and how they are grouped.
    pub fn units(&self) -> &Units {
        &self.units
    }

    /// Optimiser steps finished.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Reallocations made.
    pub fn reallocations(&self) -> u64 {
        self.reallocations
    }

    /// Books one finished optimiser step and tells the plugins of it. The observation carries what `measuring`, which
    /// [`upcoming`](Self::upcoming) gave for it, asks for.
    pub fn after_step(&mut self, measuring: &Measuring, observation: &Observation) -> Result<()> {
        let step = observation.step;
        if step != self.step + 1 || observation.active != self.active {
            return Err(Error::failure(format!(
                "the controller, at step {}, was told of step {step} or of another mask than its own",
                self.step
            )));
        }
        self.step = step;
        self.ledger.stepped(&self.active);
        self.observe(measuring, observation)
    }

    /// Tells the plugins of what was measured: of a step, or before the first.
    pub fn observe(&mut self, measuring: &Measuring, observation: &Observation) -> Result<()> {
        let Measuring {
            wanted,
            scorer,
            allocator,
            ..
        } = measuring;
        if !scorer.anything() && !allocator.anything() {
            return Ok(());
        }
        check::observation(self.units.modules(), observation)?;
        let unable = |kind, name: &str, error| {
            let what = format!("could not take in step {}", observation.step);
            failed(kind, name, what, error)
        };
        if scorer.anything()
            && let Some(Asked {
                name,
                plugin,
                wanted: own,
                ..
            }) = &mut self.scorer
        {
            let told = told(observation, wanted, &own_part(own, *scorer, observation));
            plugin
                .observe(&told)
                .map_err(|error| unable("scorer", name, error))?;
        }
        if allocator.anything()
            && let Some(Asked {
                name,
                plugin,
                wanted: own,
                ..
            }) = &mut self.allocator
        {
            let told = told(observation, wanted, &own_part(own, *allocator, observation));
            plugin
                .observe(&told)
                .map_err(|error| unable("allocator", name, error))?;
        }
        Ok(())
    }

    /// Books a step whose update was left out: nobody trained, and nothing was measured.
    pub fn after_skipped_step(&mut self) {
        self.step += 1;
    }

    /// Whether a reallocation follows the step just finished.
    pub fn is_due(&self) -> bool {
        self.step > 0 && self.next_due(self.step - 1) == Some(self.step)
    }

    /// The trials that the plugins want to be made before the reallocation that is due.
    pub fn trials(&mut self) -> Result<TrialsAsked> {
        // Whatever fails from here on, the reallocation can be made again from here.
        self.keep_states()?;
        self.kept.choosing = true;
        let (step, index, ranks) = (self.step, self.reallocations, self.ranks());
        let mut request = TrialRequest::default();
        request.step = step;
        request.total_steps = self.settings.total_steps;
        request.reallocation = index;
        request.seed = reallocation_seed(self.settings.seed, index);
        let when = format!("could not say which trials it wants after step {step}");
        let mut asked = TrialsAsked {
            seed: request.seed,
            ..TrialsAsked::default()
        };
        if let Some(Asked {
            name,
            plugin,
            needs,
            ..
        }) = &mut self.scorer
            && needs.held_back > 0
        {
            (request.active, request.ranks) = (self.active.clone(), ranks.clone());
            let trials = plugin.trials(&request);
            let trials = trials.map_err(|error| failed("scorer", name, when.clone(), error))?;
            let modules = self.units.modules();
            let prunable = self.settings.prunable;
            check::trials("scorer", name, step, modules, needs, prunable, &trials)?;
            asked.scorer = trials;
        }
        if let Some(Asked {
            name,
            plugin,
            needs,
            ..
        }) = &mut self.allocator
            && needs.held_back > 0
        {
            request.active = self.units.first(&self.active);
            request.ranks = self.units.largest(&ranks);
            let trials = plugin.trials(&request);
            let trials = trials.map_err(|error| failed("allocator", name, when, error))?;
            let (infos, prunable) = (self.units.infos(), self.settings.prunable);
            check::trials("allocator", name, step, infos, needs, prunable, &trials)?;
            asked.allocator = Trials::new(
                trials.examples,
                trials
                    .trials
                    .into_iter()
                    .map(|trial| self.of_modules(trial))
                    .collect(),
            );
        }
        Ok(asked)
    }

    /// A trial of units as one of modules.
    fn of_modules(&self, trial: Trial) -> Trial {
        let mut expanded = trial;
        if !expanded.factors.is_empty() {
            expanded.factors = self.units.expand(&expanded.factors);
        }
        if let Some(components) = &mut expanded.components {
            *components = self.units.split(components);
        }
        expanded
    }

    /// Asks scorer and allocator, checks what they answer, and switches.
    pub fn reallocate(&mut self, made: &TrialsMade) -> Result<Reallocation> {
        let (step, index) = (self.step, self.reallocations);
        let Decided {
            scores,
            scorer_numbers,
            choice,
            ask_again,
            allocator_numbers,
        } = self.decide(made)?;
        let check::Choice {
            active,
            components,
            mut details,
        } = choice;
        let switched = |from: bool| -> Vec<usize> {
            let pairs = self.active.iter().zip(&active).enumerate();
            pairs
                .filter(|(_, (old, new))| **old == from && **new != from)
                .map(|(at, _)| at)
                .collect()
        };
        let (activated, deactivated) = (switched(false), switched(true));
        // Before anything is switched: a scorer that fails now has the choice left as it was.
        if let Some(Asked { name, plugin, .. }) = &mut self.scorer {
            plugin.reallocated(&active).map_err(|error| {
                let what = format!("could not take note of the reallocation after step {step}");
                failed("scorer", name, what, error)
            })?;
        }
        self.components = components.or_else(|| {
            let components = unsaid(&self.settings, &self.units, &active);
            details.frozen = components.is_some();
            components
        });
        self.details = details;
        self.ledger.chosen(&active, step);
        self.active.clone_from(&active);
        self.reallocations += 1;
        self.last_choice = Some(step);
        if let Schedule::Allocator { first } = &self.settings.schedule {
            // A choice before the first step leaves the schedule's own first one where it is.
            self.asked_for = match (ask_again, step) {
                (Some(steps), _) => step.checked_add(steps),
                (None, 0) => Some(*first),
                (None, _) => None,
            };
        }
        self.kept.choosing = false;
        Ok(Reallocation {
            step,
            index,
            scores: scores.unwrap_or_default(),
            active,
            ranks: self.ranks(),
            ledger: self.ledger.entries().to_vec(),
            details: self.details.clone(),
            activated,
            deactivated,
            scorer_numbers,
            allocator_numbers,
        })
    }

    /// Asks scorer and allocator, and checks what they answer.
    fn decide(&mut self, made: &TrialsMade) -> Result<Decided> {
        let (step, ranks) = (self.step, self.ranks());
        let (scores, scorer_numbers) = self.score(made.scorer.clone(), &ranks)?;
        let (choice, ask_again) =
            self.allocate(scores.as_deref(), made.allocator.clone(), &ranks)?;
        let allocator_numbers = match &self.allocator {
            Some(Asked { name, plugin, .. }) => {
                let numbers = plugin.numbers();
                let units = self.units.infos().len();
                check::numbers("allocator", name, step, units, numbers)?
            }
            None => Numbers::new(),
        };
        Ok(Decided {
            scores,
            scorer_numbers,
            choice,
            ask_again,
            allocator_numbers,
        })
    }

    /// The scorer's scores and its own numbers, where there is a scorer.
    fn score(
        &mut self,
        trials: Option<TrialLosses>,
        ranks: &[u32],
    ) -> Result<(Option<Vec<f64>>, Numbers)> {
        let (step, index) = (self.step, self.reallocations);
        let Some(Asked { name, plugin, .. }) = &mut self.scorer else {
            return Ok((None, Numbers::new()));
        };
        let mut request = ScoreRequest::default();
        request.step = step;
        request.total_steps = self.settings.total_steps;
        request.reallocation = index;
        request.seed = reallocation_seed(self.settings.seed, index);
        request.active.clone_from(&self.active);
        request.ranks = ranks.to_vec();
        request.ledger = self.ledger.entries().to_vec();
        request.trials = trials;
        let scores = plugin.scores(&request).map_err(|error| {
            failed(
                "scorer",
                name,
                format!("could not score after step {step}"),
                error,
            )
        })?;
        let modules = self.units.modules();
        check::scores(name, step, modules, &scores)?;
        let numbers = check::numbers("scorer", name, step, modules.len(), plugin.numbers())?;
        Ok((Some(scores), numbers))
    }

    /// The allocator's answer, checked, and when it wants to be asked again.
    fn allocate(
        &mut self,
        scores: Option<&[f64]>,
        trials: Option<TrialLosses>,
        ranks: &[u32],
    ) -> Result<(check::Choice, Option<u64>)> {
        let (step, index) = (self.step, self.reallocations);
        let Some(Asked { name, plugin, .. }) = &mut self.allocator else {
            return Err(Error::failure(
                "a reallocation is due, but there is no allocator",
            ));
        };
        let mut request = AllocationRequest::default();
        request.modules = self.units.infos().to_vec();
        request.scores = match scores {
            Some(scores) => self.units.sum(scores),
            None => vec![0.0; self.units.infos().len()],
        };
        request.ledger = self.units.first(self.ledger.entries());
        request.active = self.units.first(&self.active);
        request.ranks = self.units.largest(ranks);
        request.step = step;
        request.total_steps = self.settings.total_steps;
        request.reallocation = index;
        request.seed = reallocation_seed(self.settings.seed, index);
        request.trials = trials;
        let answer = plugin.allocate(&request).map_err(|error| {
            failed(
                "allocator",
                name,
                format!("could not allocate after step {step}"),
                error,
            )
        })?;
        let asks = matches!(self.settings.schedule, Schedule::Allocator { .. });
        let prunable = self.settings.prunable;
        let choice = check::allocation(name, step, &self.units, prunable, asks, &answer)?;
        Ok((choice, answer.ask_again))
    }

    /// Goes on without plugins from now on, with the modules that are active.
    pub fn give_up(&mut self, error: String) {
        self.fault = Some(Fault {
            step: self.step,
            error,
        });
        self.without_plugins();
    }

    fn without_plugins(&mut self) {
        (self.scorer, self.allocator) = (None, None);
        (self.kept, self.asked_for) = (Kept::default(), None);
    }

    /// The fault with which the plugins were given up.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }
}

fn failed(kind: &str, name: &str, what: String, error: dynalora_plugin_api::Error) -> Error {
    Error::plugin(format!("the {kind} `{name}` {what}"))
        .because(error)
        .help(format!(
            "`dynalora plugins check` finds faults of a plugin. {}",
            check::way_on(kind)
        ))
}

/// A plugin with what it needs, if all of that is offered.
fn asked<P: ?Sized>(kind: &str, name: String, plugin: Box<P>, needs: Needs) -> Result<Asked<P>> {
    Ok(Asked {
        wanted: Wanted::of(kind, &name, &needs)?,
        name,
        plugin,
        needs,
    })
}

/// Refuses plugins that cannot do without one another, or without what the run has.
fn fit_together(
    settings: &Settings,
    units: &Units,
    scorer: Option<&Asked<dyn Scorer>>,
    allocator: Option<&Asked<dyn Allocator>>,
) -> Result<()> {
    let missing = match (scorer, allocator) {
        (_, None) => Some("allocator"),
        (None, Some(it)) if it.needs.scores && !it.needs.observes() && it.needs.held_back == 0 => {
            Some("scorer")
        }
        _ => None,
    };
    if let Some(missing) = missing {
        return Err(Error::user(format!(
            "the schedule reallocates, but there is no {missing}"
        ))
        .help(format!(
            "add a [{missing}] table that names a plugin, or set schedule = {{ kind = \"never\" }}"
        )));
    }
    if let Some(allocator) = allocator.filter(|it| it.needs.measures() && !units.are_modules()) {
        return Err(Error::user(format!(
            "the allocator `{}` goes by measurements of single modules, but chooses among layers",
            allocator.name
        ))
        .help("set unit = \"module\" in [allocation]"));
    }
    let components = scorer.is_some_and(|it| it.needs.components)
        || allocator.is_some_and(|it| it.needs.components);
    if components && !settings.prunable {
        return Err(Error::user(
            "a plugin measures the components of LoRA's pairs, which VeRA's vectors do not have",
        )
        .help("set kind = \"lora\" in [adapter], or choose another scorer or allocator"));
    }
    Ok(())
}

/// What of its own a plugin is told of a moment.
fn own_part(own: &Wanted, wants: Wants, observation: &Observation) -> Wanted {
    match observation.moment {
        Moment::Start => own.once(),
        _ => own.at(wants),
    }
}

/// The part of an observation that a plugin asked for.
fn told<'a>(
    observation: &'a Observation,
    all: &Wanted,
    own: &Wanted,
) -> std::borrow::Cow<'a, Observation> {
    if own == all {
        return std::borrow::Cow::Borrowed(observation);
    }
    let mut told = Observation::default();
    told.moment = observation.moment;
    told.step = observation.step;
    told.total_steps = observation.total_steps;
    told.tokens = observation.tokens;
    told.loss = observation.loss;
    told.learning_rate = observation.learning_rate;
    told.metric.clone_from(&observation.metric);
    told.probing = observation.probing;
    told.active.clone_from(&observation.active);
    let signals = own.signals.iter().map(|signal| signal.name());
    told.signals = signals
        .filter_map(|name| observation.signals.iter().find(|it| it.signal == name))
        .cloned()
        .collect();
    let raw = own.raw.iter().map(|raw| raw.name());
    told.raw = raw
        .filter_map(|name| observation.raw.iter().find(|it| it.value == name))
        .cloned()
        .collect();
    if own.components {
        told.components.clone_from(&observation.components);
    }
    std::borrow::Cow::Owned(told)
}

/// Which components train where nothing is said of them: none where that is all of them, else of an active module
/// the first, as many as its initial rank.
fn unsaid(settings: &Settings, units: &Units, active: &[bool]) -> Option<Vec<Vec<bool>>> {
    let initial = settings.initial_ranks.as_ref()?;
    let modules = units.modules().iter().zip(active).zip(initial);
    let first = modules
        .map(|((module, active), initial)| (0..module.rank).map(move |k| *active && k < *initial));
    Some(first.map(Iterator::collect).collect())
}

/// What a plugin is told of the run.
fn start(settings: &Settings, units: &Units, scorer: bool) -> Start {
    let mut start = Start::default();
    start.total_steps = settings.total_steps;
    start.schedule = settings.schedule.name().to_owned();
    start.first_choice = settings.first_choice.is_some();
    start.calibration_steps = settings.first_choice.unwrap_or(0);
    start.probe_steps = settings.probe_steps;
    start.learning_rate = settings.learning_rate;
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

mod keep;
mod replay;
#[cfg(test)]
mod tests;
