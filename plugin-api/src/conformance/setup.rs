//! What every check starts from: a plugin told of a run, and what the host would then send it.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Checks, Make, ensure, panicked};
use crate::abi::host::{Carrier, RemoteAllocator, RemoteScorer};
use crate::testing::{costs, layers, modules};
use crate::{
    Allocator, Error, Kind, Measured, ModuleInfo, Moment, Needs, Numbers, Observation, Random, Raw,
    RawValue, Result, Scorer, Signal, Start, TrialLosses, Trials, Unit, Upcoming, Wants,
};

/// How many modules most checks are made over.
pub const MODULES: usize = 24;

/// Every how many steps the runs of the checks choose anew.
pub const EVERY: u64 = 50;

/// What a call may take over 10,000 modules: a trainer waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which plugin is checked, and the run that it is told of.
#[derive(Clone)]
pub struct Setup<'a> {
    make: Make<'a>,
    parameters: Value,
    pub run: Start,
    /// Whether it is made over modules or over whole layers.
    pub unit: Unit,
}

/// The runs there may be, by what is special about them.
fn runs(kind: Kind) -> Vec<(&'static str, Start)> {
    let periodic = Start::periodic(1000, EVERY);
    let mut layers = periodic.clone();
    layers.unit = Unit::Layer;
    let mut first = periodic.clone();
    (first.first_choice, first.calibration_steps) = (true, 2);
    let (own, own_layers) = (own(&periodic), own(&layers));
    let mut runs = vec![
        ("", periodic),
        ("with a choice before the first step", first),
        ("whose schedule is the allocator's", own),
    ];
    // A scorer scores modules whatever the unit is.
    if kind == Kind::Allocator {
        runs.push(("by layers", layers));
        runs.push(("by layers whose schedule is the allocator's", own_layers));
    }
    runs
}

/// The same run where the allocator says when it is asked again.
fn own(run: &Start) -> Start {
    Start {
        schedule: "allocator".to_owned(),
        reallocations: 0,
        last_reallocation: None,
        ..run.clone()
    }
}

impl<'a> Setup<'a> {
    /// The first run that the plugin works in. That it refuses some is told; a panic, or none that it takes, breaks
    /// the rule.
    pub fn find(checks: &mut Checks, kind: Kind, make: Make<'a>, parameters: &Value) -> Self {
        let setup = |run: Start| Setup {
            make,
            parameters: parameters.clone(),
            unit: match kind {
                Kind::Scorer => Unit::Module,
                Kind::Allocator => run.unit,
            },
            run,
        };
        let more = [
            ("without reallocations", Start::periodic(1000, 1000)),
            ("of one step", Start::periodic(1, 1)),
            ("of 2⁶⁴ steps", Start::periodic(u64::MAX, 1)),
            ("of which nothing is known", Start::default()),
        ];
        let mut found = None;
        checks.check("any run", || {
            let mut refused = Vec::new();
            for (name, run) in runs(kind).into_iter().chain(more) {
                let setup = setup(run);
                let answer = setup.begun(kind, &setup.units(MODULES));
                match answer {
                    Err(error) if panicked(&error) => {
                        return Err(format!("a run {name}: {error}").into());
                    }
                    Err(error) if name.is_empty() => refused.push(format!("by modules ({error})")),
                    Err(_) => refused.push(name.to_owned()),
                    Ok(()) => {
                        found.get_or_insert(setup);
                    }
                }
            }
            ensure(found.is_some(), || {
                format!("it refuses every run: one {}", refused.join(", "))
            })?;
            Ok(match refused.is_empty() {
                true => String::new(),
                false => format!("refuses one {}", refused.join(", ")),
            })
        });
        found.unwrap_or_else(|| setup(Start::periodic(1000, EVERY)))
    }

    /// The same plugin with other parameters.
    pub fn with(&self, parameters: &Value) -> Self {
        Setup {
            parameters: parameters.clone(),
            ..self.clone()
        }
    }

    /// The same plugin over whole layers.
    pub fn by_layers(&self) -> Self {
        let mut setup = self.clone();
        (setup.unit, setup.run.unit) = (Unit::Layer, Unit::Layer);
        setup
    }

    /// The same plugin in a run in which it says when it is asked again.
    pub fn asked_by_its_answers(&self) -> Self {
        let mut setup = self.clone();
        setup.run = own(&setup.run);
        setup
    }

    /// So many of what it is made over.
    pub fn units(&self, count: usize) -> Vec<ModuleInfo> {
        match self.unit {
            Unit::Layer => layers(count),
            _ => modules(count),
        }
    }

    /// A carrier to a fresh one that has not been told of a run.
    pub fn carrier(&self, units: &[ModuleInfo]) -> Result<Box<dyn Carrier>> {
        (self.make)(&self.parameters, units)
    }

    /// A scorer, told of the run.
    pub fn scorer(&self, units: &[ModuleInfo]) -> Result<RemoteScorer> {
        self.scorer_through(units, |carrier| carrier)
    }

    /// The same through a carrier of another kind.
    pub fn scorer_through(
        &self,
        units: &[ModuleInfo],
        through: impl FnOnce(Box<dyn Carrier>) -> Box<dyn Carrier>,
    ) -> Result<RemoteScorer> {
        let mut scorer = RemoteScorer::new(through(self.carrier(units)?))?;
        scorer.start(&self.start(units))?;
        Ok(scorer)
    }

    /// An allocator, told of the run.
    pub fn allocator(&self, units: &[ModuleInfo]) -> Result<RemoteAllocator> {
        self.allocator_through(units, |carrier| carrier)
    }

    /// The same through a carrier of another kind.
    pub fn allocator_through(
        &self,
        units: &[ModuleInfo],
        through: impl FnOnce(Box<dyn Carrier>) -> Box<dyn Carrier>,
    ) -> Result<RemoteAllocator> {
        let mut allocator = RemoteAllocator::new(through(self.carrier(units)?), units)?;
        allocator.start(&self.start(units))?;
        Ok(allocator)
    }

    /// The run over these units, with what they cost; nothing of a run of which nothing is known.
    fn start(&self, units: &[ModuleInfo]) -> Start {
        let known = self.run.total_steps > 0;
        Start {
            costs: known.then(|| costs(units)),
            ..self.run.clone()
        }
    }

    fn begun(&self, kind: Kind, units: &[ModuleInfo]) -> Result<()> {
        match kind {
            Kind::Scorer => self.scorer(units).map(drop),
            Kind::Allocator => self.allocator(units).map(drop),
        }
    }
}

/// A scorer or an allocator, as far as it observes.
pub trait Observer {
    fn needs(&self) -> Needs;
    fn wants(&self, upcoming: &Upcoming) -> Wants;
    fn observe(&mut self, observation: &Observation) -> Result<()>;
}

macro_rules! observer {
    ($type:ty, $trait:ident) => {
        impl Observer for $type {
            fn needs(&self) -> Needs {
                $trait::needs(self)
            }

            fn wants(&self, upcoming: &Upcoming) -> Wants {
                $trait::wants(self, upcoming)
            }

            fn observe(&mut self, observation: &Observation) -> Result<()> {
                $trait::observe(self, observation)
            }
        }
    };
}

observer!(RemoteScorer, Scorer);
observer!(RemoteAllocator, Allocator);

/// What is measured of a module at a step.
pub type Measure<'a> = &'a dyn Fn(u64, usize) -> Option<f32>;

/// Measurements that a plugin must bear, and what they are.
pub const EXTREMES: [(&str, Measure<'static>); 7] = [
    ("nothing measured", &|_, _| None),
    ("most modules never measured", &|_, module| {
        (module == 3).then_some(1.0)
    }),
    ("equal measurements", &|_, _| Some(0.5)),
    ("all measurements zero", &|_, _| Some(0.0)),
    ("huge measurements", &|_, _| Some(f32::MAX)),
    ("subnormal measurements", &|_, _| Some(1e-45)),
    ("huge and subnormal measurements", &|_, module| {
        Some([f32::MAX, 1e-45, 0.0, 1.0][module % 4])
    }),
];

/// Values that differ from module to module and step to step, with some missing.
pub fn varied(step: u64, module: usize) -> Option<f32> {
    let mut random = Random::new(step * 1_000_003 + module as u64);
    (random.uniform() > 0.1).then(|| (random.uniform() * 10.0) as f32)
}

/// Step `step` as it is announced, in a run with a reallocation after every fiftieth and two probes before each.
pub fn upcoming(step: u64) -> Upcoming {
    let next = step.div_ceil(EVERY) * EVERY;
    Upcoming {
        step,
        total_steps: 1000,
        previous_reallocation: Some((step - 1) / EVERY * EVERY).filter(|step| *step > 0),
        next_reallocation: Some(next),
        // As `active_at` has it, but for a model of one module.
        some_inactive: step > EVERY,
        probing: next - step < 2,
    }
}

/// Which of so many units train during a step: all at first, then those that an allocator may have chosen.
fn active_at(step: u64, count: usize) -> Vec<bool> {
    let period = step.saturating_sub(1) / EVERY;
    let chosen = |unit: usize| (unit as u64 + period) % 3 != 2;
    (0..count)
        .map(|unit| count == 1 || period == 0 || chosen(unit))
        .collect()
}

/// Signals and raw values of the frozen weights are measured once, before the first step.
fn once(name: &str) -> bool {
    name.starts_with("frozen_weight")
}

/// What the host would send of a step, or of a moment before the first, over these units.
pub fn observation(
    needs: &Needs,
    wants: Wants,
    units: &[ModuleInfo],
    moment: Moment,
    at: &Upcoming,
    measure: Measure<'_>,
) -> Observation {
    let active = active_at(at.step, units.len());
    let gradients = |name: &str| name.contains("gradient") || name == "fisher";
    let value = |name: &str, unit: usize| {
        // A gradient is missing wherever the module is inactive, outside a probe, and an update wherever it is; all
        // else wherever the case says.
        let there = match name {
            "update_l2" => active[unit],
            name => !gradients(name) || active[unit] || at.probing,
        };
        let value = measure(at.step, unit).filter(|_| there)?;
        // The one signal that may be negative.
        let falls = name == "gradient_dot_weight" && unit % 2 == 1;
        Some(if falls { -value } else { value })
    };
    let now = |name: &str| once(name) == (moment == Moment::Start);
    let signals = needs.signals.iter();
    let signals = signals.filter(|signal| wants.signals && now(signal.name()));
    let signals = signals.map(|signal: &Signal| Measured {
        signal: signal.clone(),
        values: (0..units.len())
            .map(|unit| value(signal.name(), unit))
            .collect(),
    });
    let raw = needs.raw.iter();
    let raw = raw.filter(|raw| wants.raw && now(raw.name()));
    let raw = raw.map(|raw: &RawValue| Raw {
        value: raw.clone(),
        buffers: (0..units.len())
            .map(|unit| value(raw.name(), unit).map_or(Vec::new(), |value| vec![value; 16]))
            .collect(),
    });
    // The components of a module differ, but for what a case says of all.
    let components = units.iter().enumerate().map(|(unit, info)| {
        let value = value("gradient", unit);
        value.map_or(Vec::new(), |value| {
            let kth = |k| value / (1 + k) as f32;
            (0..info.components()).map(kth).collect()
        })
    });
    let sensitivities = needs.components && wants.components && moment != Moment::Start;
    Observation {
        moment,
        step: at.step,
        total_steps: at.total_steps,
        tokens: 128,
        examples: 8,
        loss: 0.5,
        learning_rate: 1e-3,
        probing: at.probing,
        signals: signals.collect(),
        raw: raw.collect(),
        components: match sensitivities {
            true => components.collect(),
            false => Vec::new(),
        },
        active,
        ..Observation::default()
    }
}

/// Sends a plugin what it wants of these steps; how many of them it was told a measurement of.
pub fn observe(
    plugin: &mut dyn Observer,
    units: &[ModuleInfo],
    steps: std::ops::RangeInclusive<u64>,
    measure: Measure<'_>,
) -> Result<usize> {
    let needs = plugin.needs();
    let mut told = 0;
    for step in steps {
        let at = upcoming(step);
        let wants = plugin.wants(&at);
        if !needs.observes() || !wants.anything() {
            continue;
        }
        let observation = observation(&needs, wants, units, Moment::Step, &at, measure);
        let measured = observation.signals.len() + observation.raw.len();
        told += usize::from(measured + observation.components.len() > 0);
        plugin.observe(&observation)?;
    }
    Ok(told)
}

/// Sends a plugin what comes before the first step: what is measured once, if it asks for that, and passes without an
/// update.
pub fn before_the_first_step(
    plugin: &mut dyn Observer,
    units: &[ModuleInfo],
    passes: usize,
) -> Result<()> {
    let needs = plugin.needs();
    let at = Upcoming {
        total_steps: 1000,
        ..Upcoming::default()
    };
    let mut send = |moment| {
        let told = observation(&needs, Wants::ALL, units, moment, &at, &varied);
        plugin.observe(&told)
    };
    let signals = needs.signals.iter().map(Signal::name);
    if signals
        .chain(needs.raw.iter().map(RawValue::name))
        .any(once)
    {
        send(Moment::Start)?;
    }
    for _ in 0..passes {
        if needs.observes() {
            send(Moment::Calibration)?;
        }
    }
    Ok(())
}

/// The large models that a plugin is tried on, by name. One that asks for trials is not tried on the largest: a trial
/// of each module has a factor for each, which is a hundred million of them.
pub fn large(needs: &Needs) -> &'static [(&'static str, usize)] {
    const ALL: [(&str, usize); 2] = [("1,000 modules", 1000), ("10,000 modules", 10_000)];
    match needs.held_back {
        0 => &ALL,
        _ => &ALL[..1],
    }
}

/// Losses for whatever trials are asked for, after a look at them. `loss` gives that of the n-th.
pub fn losses(
    needs: &Needs,
    trials: Result<Trials>,
    units: &[ModuleInfo],
    loss: &dyn Fn(usize) -> f64,
) -> Result<Option<TrialLosses>> {
    if needs.held_back == 0 {
        return Ok(None);
    }
    let Trials { examples, trials } = trials?;
    ensure(examples <= needs.held_back, || {
        format!(
            "asks for trials on {examples} examples, of {} held back",
            needs.held_back
        )
    })?;
    let count = units.len();
    for (at, trial) in trials.iter().enumerate() {
        let factors = trial.factors.len();
        ensure([0, count].contains(&factors), || {
            format!("trial {at} has {factors} factors for {count} modules")
        })?;
        ensure(
            trial.factors.iter().all(|factor| factor.is_finite()),
            || format!("trial {at} has the factors {:?}", trial.factors),
        )?;
        let Some(components) = &trial.components else {
            continue;
        };
        let fits = components.len() == count
            && (components.iter().zip(units)).all(|(own, unit)| own.len() == unit.components());
        ensure(fits, || {
            format!("trial {at} does not have one flag per component of each module")
        })?;
    }
    Ok((!trials.is_empty())
        .then(|| TrialLosses::new(examples, 0.5, (0..trials.len()).map(loss).collect())))
}

/// A plausible loss of the n-th trial.
pub fn plausible(at: usize) -> f64 {
    0.5 + 0.1 * Random::new(at as u64).uniform()
}

/// Losses that a plugin must bear.
pub const LOSSES: [(&str, &dyn Fn(usize) -> f64); 4] = [
    ("equal losses", &|_| 0.5),
    ("losses of zero", &|_| 0.0),
    ("huge losses", &|_| 1e300),
    ("huge and subnormal losses", &|at| {
        [1e300, 5e-324, 0.0, 0.5][at % 4]
    }),
];

/// A plugin's own numbers: one, or one per unit, under names that can stand in a table.
pub fn numbers_are_sane(numbers: &Numbers, units: usize) -> Result<String> {
    for (name, values) in numbers {
        let word = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        ensure(
            !name.is_empty() && name.len() <= 60 && name.chars().all(word),
            || {
                format!(
                    "the name of the number {name:?}: expected at most 60 of the characters a-z A-Z 0-9 _ - . /"
                )
            },
        )?;
        ensure([1, units].contains(&values.len()), || {
            format!(
                "the number `{name}` has {} values: expected one, or one per module ({units})",
                values.len()
            )
        })?;
    }
    let names: Vec<&str> = numbers.keys().map(String::as_str).collect();
    Ok(match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    })
}

/// What is needed is asked for once.
pub fn needs_are_sane(needs: &Needs) -> Result<String> {
    let mut named: Vec<String> = needs.signals.iter().map(Signal::to_string).collect();
    named.extend(needs.raw.iter().map(|raw| format!("raw {raw}")));
    for (at, name) in named.iter().enumerate() {
        ensure(!named[..at].contains(name), || {
            format!("it asks for {name} twice")
        })?;
        let bare = name.trim_start_matches("raw ");
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        ensure(!bare.is_empty() && bare.chars().all(word), || {
            format!("it asks for {name:?}, which cannot be a name: they are like activation_l2")
        })?;
    }
    named.extend(needs.components.then(|| "components".to_owned()));
    named.extend(needs.steps.then(|| "steps".to_owned()));
    named.extend((needs.held_back > 0).then(|| format!("trials on {} examples", needs.held_back)));
    Ok(match named.is_empty() {
        true => "nothing is measured".to_owned(),
        false => named.join(", "),
    })
}

/// How long `call` took, in words; a rule is broken where it takes too long to wait for.
pub fn timed<T>(what: &str, call: impl FnOnce() -> Result<T>) -> Result<(T, String)> {
    let started = Instant::now();
    let answer = call()?;
    let took = started.elapsed();
    ensure(took < PATIENCE, || {
        format!("{what} takes {:.0} s", took.as_secs_f64())
    })?;
    Ok((answer, format!("{what} {:.1} ms", took.as_secs_f64() * 1e3)))
}

/// An error with where it came from before it.
pub fn within<T>(what: &str, answer: Result<T>) -> Result<T> {
    answer.map_err(|error| Error::from(format!("{what}: {error}")))
}
