//! The conformance kit: whether a plugin keeps the rules of [`Scorer`] and [`Allocator`].
//!
//! The same checks run in a plugin's own tests ([`scorer`], [`allocator`]) and on a compiled library
//! (`dynalora plugins check`). They go through the boundary, call by call as the host makes them, so that a plugin in
//! another language or process is checked as well ([`check`]).

mod allocator;
mod common;
mod scorer;
mod setup;
#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::abi::host::{self, Carrier, InProcess};
use crate::abi::plugin::{AllocatorSide, ScorerSide, table};
use crate::parameters::example;
use crate::testing::text;
use crate::{Allocator, Error, Kind, Manifest, ModuleInfo, Plugin, Result, Scorer};
use setup::Setup;

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

/// Makes a fresh plugin from parameters, over modules.
pub type Make<'a> = &'a dyn Fn(&Value, &[ModuleInfo]) -> Result<Box<dyn Carrier>>;

/// Checks a scorer type, with `parameters` made up from its schema.
#[track_caller]
pub fn scorer<S: Plugin + Scorer + 'static>() -> Report {
    in_process(table::<(ScorerSide<S>,)>(), Kind::Scorer, None)
}

/// Checks an allocator type, with `parameters` made up from its schema.
#[track_caller]
pub fn allocator<A: Plugin + Allocator + 'static>() -> Report {
    in_process(table::<(AllocatorSide<A>,)>(), Kind::Allocator, None)
}

/// The same with these parameters, a JSON object: for a type whose schema does not say which it takes.
#[track_caller]
pub fn scorer_with<S: Plugin + Scorer + 'static>(parameters: Value) -> Report {
    in_process(table::<(ScorerSide<S>,)>(), Kind::Scorer, Some(parameters))
}

/// The same with these parameters, a JSON object: for a type whose schema does not say which it takes.
#[track_caller]
pub fn allocator_with<A: Plugin + Allocator + 'static>(parameters: Value) -> Report {
    let table = table::<(AllocatorSide<A>,)>();
    in_process(table, Kind::Allocator, Some(parameters))
}

#[track_caller]
fn in_process(table: crate::abi::Table, kind: Kind, parameters: Option<Value>) -> Report {
    match host::manifest(table, kind, "0.0.0") {
        Ok(manifest) => check(manifest, parameters, &|parameters, modules| {
            let parameters = text(parameters);
            Ok(Box::new(InProcess::new(table, kind, &parameters, modules)?))
        }),
        // Only in a unit test, whose failure this is.
        Err(error) => panic!("no manifest: {error}"),
    }
}

/// Checks the plugin of this manifest that `make` makes, with these parameters or with some made up from the schema.
pub fn check(manifest: Manifest, parameters: Option<Value>, make: Make<'_>) -> Report {
    let parameters = parameters.unwrap_or_else(|| example(&manifest.parameters));
    let mut checks = Checks::default();
    if common::check(&mut checks, &manifest, &parameters, make) {
        let kind = manifest.kind;
        let setup = Setup::find(&mut checks, kind, make, &parameters);
        common::boundary(&mut checks, &setup);
        match kind {
            Kind::Scorer => scorer::check(&mut checks, &setup),
            Kind::Allocator => allocator::check(&mut checks, &setup),
        }
        checks.check("extreme parameters", || {
            extreme_parameters(&manifest.parameters, &parameters, |parameters| {
                let setup = setup.with(parameters);
                match kind {
                    Kind::Scorer => scorer::bears_extremes(&setup),
                    Kind::Allocator => allocator::bears_extremes(&setup),
                }
            })
        });
    }
    Report {
        manifest,
        parameters,
        checks: checks.0,
    }
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
