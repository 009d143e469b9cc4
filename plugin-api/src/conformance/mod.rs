//! The conformance kit: whether a plugin keeps the rules of [`Scorer`] and [`Allocator`].
//!
//! The same checks run in a plugin's own tests ([`scorer`], [`allocator`]) and on a compiled library
//! (`dynalora plugins check`).

mod allocator;
mod common;
mod scorer;

use serde_json::Value;

use crate::abi::host::{self, RemoteAllocator, RemoteScorer};
use crate::abi::plugin::{AllocatorSide, ScorerSide, table};
use crate::parameters::example;
use crate::testing::{start_of, text};
use crate::{Allocator, Error, Kind, Manifest, ModuleInfo, Plugin, Result, Scorer, Start, Unit};

/// One rule and whether the plugin keeps it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// The rule, in a few words.
    pub name: &'static str,
    /// Whether it is kept.
    pub passed: bool,
    /// How it is broken; where it is kept, what there is to say about it, or nothing.
    pub detail: String,
}

/// What the checks found.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Report {
    /// The plugin.
    pub manifest: Manifest,
    /// The parameters it was checked with: given, or made up from the schema.
    pub parameters: Value,
    /// The rules, in the order they were checked.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether every rule is kept.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.passed)
    }

    /// Panics with the rules that are broken, if there are any: the last line of a unit test.
    #[track_caller]
    pub fn assert(&self) {
        let broken: Vec<String> = self
            .checks
            .iter()
            .filter(|check| !check.passed)
            .map(|check| format!("  {}: {}", check.name, check.detail))
            .collect();
        assert!(
            broken.is_empty(),
            "`{}` breaks rules:\n{}",
            self.manifest.name,
            broken.join("\n")
        );
    }
}

/// Makes a fresh plugin from parameters.
pub type Make<'a, T> = &'a dyn Fn(&Value, &[ModuleInfo]) -> Result<Box<T>>;

/// Checks a scorer type, with `parameters` made up from its schema.
pub fn scorer<S: Plugin + Scorer + 'static>() -> Report {
    let table = table::<(ScorerSide<S>,)>();
    checked(host::manifest(table, Kind::Scorer, "0.0.0"), |manifest| {
        check_scorer(manifest, None, &|parameters, modules| {
            Ok(Box::new(RemoteScorer::in_process(
                table,
                &text(parameters),
                modules,
            )?))
        })
    })
}

/// Checks an allocator type, with `parameters` made up from its schema.
pub fn allocator<A: Plugin + Allocator + 'static>() -> Report {
    let table = table::<(AllocatorSide<A>,)>();
    checked(
        host::manifest(table, Kind::Allocator, "0.0.0"),
        |manifest| {
            check_allocator(manifest, None, &|parameters, modules| {
                Ok(Box::new(RemoteAllocator::in_process(
                    table,
                    &text(parameters),
                    modules,
                )?))
            })
        },
    )
}

#[track_caller]
fn checked(manifest: Result<Manifest>, check: impl FnOnce(Manifest) -> Report) -> Report {
    match manifest {
        Ok(manifest) => check(manifest),
        // Only in a unit test, whose failure this is.
        Err(error) => panic!("no manifest: {error}"),
    }
}

/// Checks the scorer that `make` makes, with these parameters or with some made up from the schema.
pub fn check_scorer(
    manifest: Manifest,
    parameters: Option<Value>,
    make: Make<'_, dyn Scorer>,
) -> Report {
    let parameters = parameters.unwrap_or_else(|| example(&manifest.parameters));
    let mut checks = Checks::default();
    let try_make = |p: &Value, modules: &[ModuleInfo]| make(p, modules).map(drop);
    if common::check(&mut checks, &manifest, &parameters, &try_make) {
        let started = |parameters: &Value, modules: &[ModuleInfo]| {
            let mut scorer = make(parameters, modules)?;
            scorer.start(&start_of(modules))?;
            Ok(scorer)
        };
        scorer::check(&mut checks, &|modules| started(&parameters, modules));
        checks.check("any run", || {
            any_run(|run, modules| make(&parameters, modules)?.start(run))
        });
        checks.check("extreme parameters", || {
            extreme_parameters(&manifest.parameters, &parameters, |parameters| {
                scorer::bears_extremes(&|modules| started(parameters, modules))
            })
        });
    }
    Report {
        manifest,
        parameters,
        checks: checks.0,
    }
}

/// Checks the allocator that `make` makes, with these parameters or with some made up from the schema.
pub fn check_allocator(
    manifest: Manifest,
    parameters: Option<Value>,
    make: Make<'_, dyn Allocator>,
) -> Report {
    let parameters = parameters.unwrap_or_else(|| example(&manifest.parameters));
    let mut checks = Checks::default();
    let try_make = |p: &Value, modules: &[ModuleInfo]| make(p, modules).map(drop);
    if common::check(&mut checks, &manifest, &parameters, &try_make) {
        let started = |parameters: &Value, modules: &[ModuleInfo]| {
            let mut allocator = make(parameters, modules)?;
            allocator.start(&start_of(modules))?;
            Ok(allocator)
        };
        allocator::check(&mut checks, &|modules| started(&parameters, modules));
        checks.check("any run", || {
            any_run(|run, modules| make(&parameters, modules)?.start(run))
        });
        checks.check("extreme parameters", || {
            extreme_parameters(&manifest.parameters, &parameters, |parameters| {
                allocator::bears_extremes(&|modules| started(parameters, modules))
            })
        });
    }
    Report {
        manifest,
        parameters,
        checks: checks.0,
    }
}

/// A plugin may refuse a run before it starts, but not panic.
fn any_run(start: impl Fn(&Start, &[ModuleInfo]) -> Result<Vec<String>>) -> Result<String> {
    let mut layers = Start::periodic(1000, 50);
    layers.unit = Unit::Layer;
    let runs = [
        ("without reallocations", Start::periodic(1000, 1000)),
        ("of one step", Start::periodic(1, 1)),
        ("of 2⁶⁴ steps", Start::periodic(u64::MAX, 1)),
        ("by layers", layers),
        ("of which nothing is known", Start::default()),
    ];
    let mut refused = Vec::new();
    for (run, told) in runs {
        match start(&told, &crate::testing::modules(24)) {
            Ok(_) => {}
            Err(error) if panicked(&error) => return Err(format!("a run {run}: {error}").into()),
            Err(_) => refused.push(run),
        }
    }
    Ok(match refused.is_empty() {
        true => String::new(),
        false => format!("refuses one {}", refused.join(", ")),
    })
}

/// With each parameter at the ends of what its schema allows, the plugin refuses or works.
fn extreme_parameters(
    schema: &Value,
    good: &Value,
    works: impl Fn(&Value) -> Result<()>,
) -> Result<String> {
    let (mut taken, mut refused) = (0, 0);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        for value in crate::parameters::extremes(schema, property) {
            let mut parameters = good.clone();
            if let Some(parameters) = parameters.as_object_mut() {
                parameters.insert(name.clone(), value.clone());
            }
            match works(&parameters) {
                Ok(()) => taken += 1,
                // Said by the checks, not by the plugin.
                Err(error) if error.to_string().starts_with(BROKEN) || panicked(&error) => {
                    return Err(format!("{name} = {value}: {error}").into());
                }
                Err(_) => refused += 1,
            }
        }
    }
    Ok(format!("{taken} taken, {refused} refused"))
}

/// How an error begins that says which rule is broken, where a plugin's own would be in order.
const BROKEN: &str = "a rule is broken: ";

/// Marks what a check found, as against what a plugin said.
fn broken(error: Error) -> Error {
    format!("{BROKEN}{error}").into()
}

fn panicked(error: &Error) -> bool {
    error.to_string().contains("it panicked")
}

/// The checks made so far.
#[derive(Default)]
struct Checks(Vec<Check>);

impl Checks {
    /// Makes one; the answer is what there is to say about a rule kept.
    fn check(&mut self, name: &'static str, check: impl FnOnce() -> Result<String>) -> bool {
        let (passed, detail) = match check() {
            Ok(remark) => (true, remark),
            Err(error) => (false, error.to_string()),
        };
        self.0.push(Check {
            name,
            passed,
            detail,
        });
        passed
    }
}

/// An error unless `rule` holds.
fn ensure(rule: bool, broken: impl FnOnce() -> String) -> Result<()> {
    if rule {
        Ok(())
    } else {
        Err(Error::from(broken()))
    }
}

/// Nothing to remark.
fn kept() -> Result<String> {
    Ok(String::new())
}
