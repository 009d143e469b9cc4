//! What a checkpoint keeps of the controller and its plugins, and how it is taken up again.

use dynalora_plugin_api::LedgerEntry;

use super::{Asked, Controller, failed};
use crate::allocation::check;
use crate::allocation::state::{PluginState, State};
use crate::error::{Error, Result};
use crate::recipe::Schedule;

/// What the plugins gave last to be kept, for when one of them can give nothing any more.
#[derive(Default)]
pub(super) struct Kept {
    scorer: Option<PluginState>,
    allocator: Option<PluginState>,
    /// Whether it is of before a reallocation that has begun, which is made anew from there.
    pub(super) choosing: bool,
}

impl Controller {
    /// Has both plugins give what is to be kept of them.
    pub(super) fn keep_states(&mut self) -> Result<()> {
        let scorer = self
            .scorer
            .as_ref()
            .map(|it| keep("scorer", &it.name, it.plugin.save()));
        let allocator = self
            .allocator
            .as_ref()
            .map(|it| keep("allocator", &it.name, it.plugin.save()));
        self.kept.scorer = scorer.transpose()?;
        self.kept.allocator = allocator.transpose()?;
        Ok(())
    }

    /// What a checkpoint keeps.
    pub fn state(&mut self) -> Result<State> {
        self.keep_states()?;
        Ok(self.with_kept())
    }

    /// What a checkpoint keeps when a plugin has failed: of each the state that it gives now, or gave last; and of
    /// before the reallocation, if it failed in one.
    pub fn state_after_fault(&mut self) -> State {
        if !self.kept.choosing {
            if let Some(Asked { name, plugin, .. }) = &self.scorer
                && let Ok(kept) = keep("scorer", name, plugin.save())
            {
                self.kept.scorer = Some(kept);
            }
            if let Some(Asked { name, plugin, .. }) = &self.allocator
                && let Ok(kept) = keep("allocator", name, plugin.save())
            {
                self.kept.allocator = Some(kept);
            }
        }
        let mut state = self.with_kept();
        state.owed = self.is_due() && self.last_choice != Some(self.step);
        state
    }

    fn with_kept(&self) -> State {
        State {
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
            details: self.details.clone(),
            last_choice: self.last_choice,
            asked_for: self.asked_for,
            ledger: self.ledger.clone(),
            scorer: self.kept.scorer.clone(),
            allocator: self.kept.allocator.clone(),
            owed: false,
            fault: self.fault.clone(),
        }
    }

    /// Goes on from `state`, on a fresh controller with fresh plugins.
    pub fn restore(&mut self, state: State) -> Result<()> {
        if self.step != 0 {
            return Err(Error::failure("only a fresh controller can be restored"));
        }
        self.check_state(&state)?;
        if state.fault.is_some() {
            self.without_plugins();
        }
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
        self.details = state.details;
        self.last_choice = state.last_choice;
        self.asked_for = state.asked_for;
        self.ledger = state.ledger;
        self.fault = state.fault;
        self.kept = Kept {
            scorer: state.scorer,
            allocator: state.allocator,
            choosing: false,
        };
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
        let choice = check::Choice {
            active: state.active.clone(),
            components: state.components.clone(),
            details: state.details.clone(),
        };
        check::details(modules, self.settings.prunable, &choice).map_err(|rule| unfit(&rule))?;
        let together = |history: (&[bool], &[LedgerEntry])| {
            self.units.expand(&self.units.first(history.0)) == history.0
                && self.units.expand(&self.units.first(history.1)) == history.1
        };
        if !together((&state.active, state.ledger.entries())) {
            return Err(unfit(
                "the modules of a unit have different histories: `unit` has changed",
            ));
        }
        let future = state.last_choice.is_some_and(|step| step > state.step);
        let past = state.asked_for.is_some_and(|step| step <= state.step);
        let asks = matches!(self.settings.schedule, Schedule::Allocator { .. });
        if future
            || past && asks && state.step > 0 && !state.owed
            || !asks && state.asked_for.is_some()
        {
            return Err(unfit(
                "its reallocations contradict its step or the schedule",
            ));
        }
        if state.step > self.settings.total_steps {
            let (then, now) = (state.step, self.settings.total_steps);
            return Err(unfit(&format!(
                "it is at step {then}, this run ends at step {now}"
            )));
        }
        if state.fault.is_some() {
            // Nobody is asked any more.
            return Ok(());
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

fn unfit(why: &str) -> Error {
    Error::user(format!(
        "the checkpoint's allocation does not fit this run: {why}"
    ))
    .help("resume with the recipe and the plugins the run was started with, or start a new run")
}
