//! Which modules are active until the first reallocation.

use dynalora_plugin_api::{Budget, CostModel, Random, draw_without_replacement};

use super::seed::initial_seed;
use super::unit::Units;
use crate::error::{Error, Result};

/// The units active at first: drawn with equal chances as far as `budget` allows, or all. `costs` are the modules',
/// for a budget that goes by them.
pub fn draw(
    budget: Option<Budget>,
    units: &Units,
    costs: Option<&CostModel>,
    run_seed: u64,
) -> Result<Vec<bool>> {
    let count = units.infos().len();
    let Some(budget) = budget else {
        return Ok(vec![true; count]);
    };
    let cannot = |error| {
        Error::user("the initial choice cannot be drawn")
            .because(error)
            .help("set `initial_k` in [allocation] to a count that fits or to a share such as \"50%\"")
    };
    let mut limit = budget.resolve(units.infos()).map_err(cannot)?;
    if let Some(costs) = costs {
        limit.with_costs(&units.costs(costs)).map_err(cannot)?;
    }
    let mut active = vec![false; count];
    let mut random = Random::new(initial_seed(run_seed));
    let order = draw_without_replacement(&vec![1.0; count], count, &mut random);
    for index in limit.take(order).map_err(cannot)? {
        active[index] = true;
    }
    Ok(active)
}

#[cfg(test)]
mod tests {
    use dynalora_plugin_api::testing::{self, costs};
    use dynalora_plugin_api::{By, Cost, Count};
    use serde_json::json;

    use super::*;
    use crate::recipe::{Initial, Unit, initial_budget};

    fn drawn(budget: Option<Budget>, modules: usize, seed: u64) -> Result<Vec<bool>> {
        let units = Units::new(Unit::Module, testing::modules(modules));
        draw(budget, &units, Some(&costs(units.infos())), seed)
    }

    #[test]
    fn a_budget_of_parameters_bounds_the_initial_choice_too() {
        let parameters = json!({ "k": "50%", "by": "parameters", "epsilon": 1.0 });
        let budget = initial_budget(Initial::Random, None, Some(&parameters)).unwrap();
        assert_eq!(budget.unwrap().by, By::Parameters);
        let units = testing::modules(40);
        let size = |active: &[bool]| {
            let sizes = units.iter().zip(active).filter(|(_, active)| **active);
            sizes.map(|(unit, _)| unit.parameters).sum::<u64>()
        };
        let all = size(&[true; 40]);
        for seed in 0..20 {
            let share = size(&drawn(budget, 40, seed).unwrap()) as f64 / all as f64;
            assert!((0.45..=0.5).contains(&share), "{share}");
        }
        // `initial_k` counts units, whatever the allocator counts.
        let three = Some(Count::Exactly(3));
        let budget = initial_budget(Initial::Random, three, Some(&parameters)).unwrap();
        assert_eq!(budget.unwrap().by, By::Modules);
    }

    #[test]
    fn a_budget_of_costs_bounds_it_by_units() {
        for (by, of) in [
            ("flops", Cost::flops as fn(&Cost) -> u64),
            ("memory", Cost::memory),
        ] {
            let parameters = json!({ "k": "60%", "by": by });
            let budget = initial_budget(Initial::Random, None, Some(&parameters)).unwrap();
            let units = Units::new(Unit::Layer, testing::modules(36));
            let (model, mut most) = (costs(units.modules()), 0);
            let (none, all) = (of(&model.none()), of(&model.all()));
            for seed in 0..40 {
                let active = draw(budget, &units, Some(&model), seed).unwrap();
                let count = active.iter().filter(|active| **active).count();
                let cost = of(&model.cost(&units.expand(&active))) - none;
                assert!(
                    count == 1 || cost <= (all - none) * 6 / 10,
                    "{by}: {active:?}"
                );
                most = most.max(count);
            }
            assert!(most > 1, "{by}");
            let error = draw(budget, &units, None, 0).unwrap_err();
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn draws_by_seed_and_nothing_else() {
        let half = Some(Count::Percent(50.0).into());
        let first = drawn(half, 40, 7).unwrap();
        assert_eq!(first.iter().filter(|active| **active).count(), 20);
        assert_eq!(first, drawn(half, 40, 7).unwrap());
        assert_ne!(first, drawn(half, 40, 8).unwrap());
        assert_eq!(drawn(None, 3, 7).unwrap(), [true; 3]);
        assert!(drawn(Some(Count::Exactly(41).into()), 40, 7).is_err());
    }
}
