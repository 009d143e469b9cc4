//! Which modules are active until the first reallocation.

use dynalora_plugin_api::{Budget, ModuleInfo, Random, draw_without_replacement};

use super::seed::initial_seed;
use crate::error::{Error, Result};

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
    use dynalora_plugin_api::testing::modules;
    use dynalora_plugin_api::{By, Count};
    use serde_json::json;

    use super::*;
    use crate::recipe::{Initial, initial_budget};

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
