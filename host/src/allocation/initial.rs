//! Which modules are active until the first reallocation.

use dynalora_plugin_api::{Budget, Count, ModuleInfo, Random, draw_without_replacement};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::seed::initial_seed;
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
        (Initial::All, None) => Ok(None),
        (Initial::All, Some(_)) => Err(Error::user(
            "`initial_k` is given, but `initial = \"all\"` starts with every module",
        )
        .help("set initial = \"random\" in [allocation], or leave `initial_k` out")),
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

/// The units active at first: drawn from `units` with equal chances as far as `budget` allows, or all.
pub fn draw(budget: Option<Budget>, units: &[ModuleInfo], run_seed: u64) -> Result<Vec<bool>> {
    let Some(budget) = budget else {
        return Ok(vec![true; units.len()]);
    };
    let limit = budget.resolve(units).map_err(|error| {
        Error::user("the initial choice cannot be drawn")
            .because(error)
            .help("set `initial_k` in [allocation] to a count that fits or to a share such as \"50%\"")
    })?;
    let mut active = vec![false; units.len()];
    let mut random = Random::new(initial_seed(run_seed));
    let order = draw_without_replacement(&vec![1.0; units.len()], units.len(), &mut random);
    for index in limit.take(order) {
        active[index] = true;
    }
    Ok(active)
}

#[cfg(test)]
mod tests {
    use dynalora_plugin_api::By;
    use dynalora_plugin_api::testing::modules;

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
    fn a_budget_of_parameters_bounds_the_initial_choice_too() {
        let parameters = json!({ "k": "50%", "by": "parameters", "epsilon": 1.0 });
        let budget = initial_budget(Initial::Random, None, Some(&parameters)).unwrap();
        assert_eq!(budget.unwrap().by, By::Parameters);
        let units = modules(40);
        let size = |active: &[bool]| {
            let sizes = units.iter().zip(active).filter(|(_, active)| **active);
            sizes.map(|(unit, _)| unit.parameters).sum::<u64>()
        };
        let all = size(&[true; 40]);
        for seed in 0..20 {
            let share = size(&draw(budget, &units, seed).unwrap()) as f64 / all as f64;
            assert!((0.45..=0.5).contains(&share), "{share}");
        }
        // `initial_k` counts units, whatever the allocator counts.
        let three = Some(Count::Exactly(3));
        let budget = initial_budget(Initial::Random, three, Some(&parameters)).unwrap();
        assert_eq!(budget.unwrap().by, By::Modules);
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

    #[test]
    fn draws_by_seed_and_nothing_else() {
        let half = Some(Count::Percent(50.0).into());
        let units = modules(40);
        let first = draw(half, &units, 7).unwrap();
        assert_eq!(first.iter().filter(|active| **active).count(), 20);
        assert_eq!(first, draw(half, &units, 7).unwrap());
        assert_ne!(first, draw(half, &units, 8).unwrap());
        assert_eq!(draw(None, &units[..3], 7).unwrap(), [true; 3]);
        assert!(draw(Some(Count::Exactly(41).into()), &units, 7).is_err());
    }
}
