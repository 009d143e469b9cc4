//! `allocation.initial`: what is active until the first reallocation, and how much of it.

use dynalora_plugin_api::{Budget, Count};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The choice before anything has been measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Initial {
    /// Every module.
    #[default]
    All,
    /// As much as `initial_k` allows, drawn with equal chances by the run's seed.
    Random,
    /// What the allocator chooses before the first step, after `calibration_steps` passes in which every module is
    /// measured and nothing is updated.
    Allocator,
}

/// What the initial choice may draw; none for everything.
///
/// `initial_k` is the recipe's key of that name and counts units. `allocator` are the allocator's
/// parameters: a random choice without `initial_k` is bounded by its `k` and `by`.
pub fn initial_budget(
    initial: Initial,
    initial_k: Option<Count>,
    allocator: Option<&Value>,
) -> Result<Option<Budget>> {
    match (initial, initial_k) {
        (Initial::All | Initial::Allocator, None) => Ok(None),
        (Initial::All | Initial::Allocator, Some(_)) => {
            let does = match initial {
                Initial::All => "`initial = \"all\"` starts with every module",
                _ => "under `initial = \"allocator\"` the allocator says how many",
            };
            Err(Error::user(format!("`initial_k` is given, but {does}"))
                .help("set initial = \"random\" in [allocation], or leave `initial_k` out"))
        }
        (Initial::Random, Some(count)) => Ok(Some(count.into())),
        (Initial::Random, None) => {
            let advice = "set `initial_k` in [allocation] to a count or to a share such as \"50%\"";
            let parameter = |name| allocator.and_then(|parameters| parameters.get(name));
            let k = parameter("k").ok_or_else(|| {
                let message = "`initial = \"random\"` does not know how many modules to draw: there is \
                               no `initial_k`, and the allocator has no `k`";
                Error::user(message).help(advice)
            })?;
            let budget = match parameter("by") {
                None => Count::deserialize(k).map(Budget::from),
                Some(by) => Budget::deserialize(json!({ "k": k, "by": by })),
            };
            budget.map(Some).map_err(|error| {
                let by = parameter("by").map_or(String::new(), |by| format!(" by {by}"));
                let message = format!(
                    "`initial = \"random\"` cannot draw as many modules as the allocator's `k`, which is {k}{by}"
                );
                Error::user(message).because(error).help(advice)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_the_recipes_or_else_the_allocators() {
        let k = json!({ "k": "50%" });
        let three = Some(Count::Exactly(3));
        assert_eq!(initial_budget(Initial::All, None, Some(&k)).unwrap(), None);
        assert_eq!(
            initial_budget(Initial::Random, three, Some(&k)).unwrap(),
            three.map(Budget::from)
        );
        let half = Some(Count::Percent(50.0).into());
        assert_eq!(
            initial_budget(Initial::Random, None, Some(&k)).unwrap(),
            half
        );
    }

    #[test]
    fn without_a_count_it_asks_for_one() {
        for allocator in [
            None,
            Some(json!({ "p": 0.9 })),
            Some(json!({ "k": 0.3 })),
            Some(json!({ "k": "50%", "by": "head" })),
            Some(json!(7)),
        ] {
            let error = initial_budget(Initial::Random, None, allocator.as_ref()).unwrap_err();
            let help = miette::Diagnostic::help(&error).unwrap().to_string();
            assert!(help.contains("initial_k"), "{help}");
            assert_eq!(error.exit_code(), 2);
        }
        assert!(initial_budget(Initial::All, Some(Count::Exactly(1)), None).is_err());
    }
}
