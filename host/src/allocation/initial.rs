//! Which modules are active until the first reallocation.

use dynalora_plugin_api::{Count, Random, draw_without_replacement};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::seed::initial_seed;
use crate::error::{Error, Result};

/// The choice before anything has been measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Initial {
    /// Every module.
    #[default]
    All,
    /// `initial_k` units drawn with equal chances by the run's seed.
    Random,
}

/// How many units the initial choice draws; none for all of them.
///
/// `initial_k` is the recipe's key of that name, `allocator` the allocator's parameters: a random
/// choice without `initial_k` is as large as the allocator's `k`.
pub fn initial_count(
    initial: Initial,
    initial_k: Option<Count>,
    allocator: Option<&serde_json::Value>,
) -> Result<Option<Count>> {
    match (initial, initial_k) {
        (Initial::All, None) => Ok(None),
        (Initial::All, Some(_)) => Err(Error::user(
            "`initial_k` is given, but `initial = \"all\"` starts with every module",
        )
        .help("set initial = \"random\" in [allocation], or leave `initial_k` out")),
        (Initial::Random, Some(count)) => Ok(Some(count)),
        (Initial::Random, None) => {
            let advice = "set `initial_k` in [allocation] to a count or to a share such as \"50%\"";
            let k = allocator.and_then(|parameters| parameters.get("k")).ok_or_else(|| {
                let message = "`initial = \"random\"` does not know how many modules to draw: there is \
                               no `initial_k`, and the allocator has no `k`";
                Error::user(message).help(advice)
            })?;
            Count::deserialize(k).map(Some).map_err(|error| {
                let message = format!(
                    "`initial = \"random\"` cannot draw as many modules as the allocator's `k`, which is {k}"
                );
                Error::user(message).because(error).help(advice)
            })
        }
    }
}

/// The units active at first: `count` of `units` drawn with equal chances, or all of them.
pub fn draw(count: Option<Count>, units: usize, run_seed: u64) -> Result<Vec<bool>> {
    let Some(count) = count else {
        return Ok(vec![true; units]);
    };
    let count = count.resolve(units).map_err(|error| {
        Error::user("the initial choice cannot be drawn")
            .because(error)
            .help("set `initial_k` in [allocation] to a count that fits or to a share such as \"50%\"")
    })?;
    let mut active = vec![false; units];
    let mut random = Random::new(initial_seed(run_seed));
    for index in draw_without_replacement(&vec![1.0; units], count, &mut random) {
        active[index] = true;
    }
    Ok(active)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_count_is_the_recipes_or_else_the_allocators() {
        let k = json!({ "k": "50%" });
        let three = Some(Count::Exactly(3));
        assert_eq!(initial_count(Initial::All, None, Some(&k)).unwrap(), None);
        assert_eq!(
            initial_count(Initial::Random, three, Some(&k)).unwrap(),
            three
        );
        let half = Some(Count::Percent(50.0));
        assert_eq!(
            initial_count(Initial::Random, None, Some(&k)).unwrap(),
            half
        );
    }

    #[test]
    fn without_a_count_it_asks_for_one() {
        for allocator in [
            None,
            Some(json!({ "p": 0.9 })),
            Some(json!({ "k": 0.3 })),
            Some(json!(7)),
        ] {
            let error = initial_count(Initial::Random, None, allocator.as_ref()).unwrap_err();
            let help = miette::Diagnostic::help(&error).unwrap().to_string();
            assert!(help.contains("initial_k"), "{help}");
            assert_eq!(error.exit_code(), 2);
        }
        assert!(initial_count(Initial::All, Some(Count::Exactly(1)), None).is_err());
    }

    #[test]
    fn draws_by_seed_and_nothing_else() {
        let half = Some(Count::Percent(50.0));
        let first = draw(half, 40, 7).unwrap();
        assert_eq!(first.iter().filter(|active| **active).count(), 20);
        assert_eq!(first, draw(half, 40, 7).unwrap());
        assert_ne!(first, draw(half, 40, 8).unwrap());
        assert_eq!(draw(None, 3, 7).unwrap(), [true; 3]);
        assert!(draw(Some(Count::Exactly(41)), 40, 7).is_err());
    }
}
