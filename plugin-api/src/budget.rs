//! How much may be active: `k`, counted in modules, in trainable parameters, or in what training them costs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Cost, CostModel, Count, ModuleInfo, Result, Start};

/// How much an allocator activates. Serves as the `Parameters` of one that needs nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// How many modules to activate: a count, or a share such as "50%".
    pub k: Count,
    /// What a share is a share of: "modules"; "parameters", the adapters' trainable ones; "flops" or "memory",
    /// what a step with all modules active takes above one with none. But for "modules" they are taken, in
    /// the allocator's order, up to the first that would exceed the share.
    #[serde(default)]
    pub by: By,
}

/// What a share is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// All modules, whatever their sizes.
    #[default]
    Modules,
    /// The trainable parameters of their adapters.
    Parameters,
    /// The floating-point operations by which a step with all modules active exceeds one with none: what the
    /// backward pass takes. The lowest active layer decides most of it.
    Flops,
    /// The bytes by which the activations kept, the weights laid out for the way back, the gradients and the
    /// moments of such a step exceed those of one with none.
    Memory,
}

impl By {
    /// Whether it goes by the run's [`CostModel`].
    pub fn is_cost(self) -> bool {
        matches!(self, By::Flops | By::Memory)
    }

    /// What is counted of a cost; nothing where it is not costs that are counted.
    fn of(self, cost: Cost) -> u64 {
        match self {
            By::Modules | By::Parameters => 0,
            By::Flops => cost.flops(),
            By::Memory => cost.memory(),
        }
    }
}

/// The name it has in a recipe.
impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

impl From<Count> for Budget {
    fn from(k: Count) -> Self {
        Budget { k, by: By::Modules }
    }
}

impl Budget {
    /// The budget over these modules. An error for a count they cannot fill, and for a count of anything but
    /// modules. One by costs needs the run's, which come with [`Limit::start`].
    pub fn resolve(self, modules: &[ModuleInfo]) -> Result<Limit> {
        match (self.by, self.k) {
            (By::Modules, k) => Ok(Limit(Measure::Modules(k.resolve(modules.len())?))),
            (by, Count::Exactly(count)) => Err(format!(
                "by = \"{by}\" takes a share, but `k` is the count {count}: write a share such \
                 as k = \"50%\", or leave `by` out to count modules"
            )
            .into()),
            (By::Parameters, Count::Percent(percent)) => {
                // Refuses what there is no share of.
                self.k.resolve(modules.len())?;
                let sizes: Vec<u64> = modules.iter().map(|module| module.parameters).collect();
                let all = sizes
                    .iter()
                    .fold(0, |sum: u64, size| sum.saturating_add(*size));
                // The allowance keeps rounding from taking one off a share that is a whole number.
                let most = (all as f64 * percent / 100.0 * (1.0 + 1e-12)).floor() as u64;
                Ok(Limit(Measure::Parameters { most, sizes }))
            }
            (by, Count::Percent(percent)) => {
                self.k.resolve(modules.len())?;
                Ok(Limit(Measure::Costs {
                    by,
                    percent,
                    modules: modules.len(),
                    known: None,
                }))
            }
        }
    }
}

/// A [`Budget`] over the modules of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit(Measure);

#[derive(Clone, Debug, PartialEq)]
enum Measure {
    Modules(usize),
    Parameters {
        most: u64,
        sizes: Vec<u64>,
    },
    Costs {
        by: By,
        percent: f64,
        modules: usize,
        /// What there is to be had by, and the most it may come to.
        known: Option<(Box<CostModel>, u64)>,
    },
}

impl Limit {
    /// Takes the run's cost model, for a budget that goes by it: to be called in [`Allocator::start`]. Any
    /// other budget needs nothing of the run. An error where the host tells of no costs.
    ///
    /// [`Allocator::start`]: crate::Allocator::start
    pub fn start(&mut self, start: &Start) -> Result<()> {
        match (&self.0, &start.costs) {
            (Measure::Costs { by, .. }, None) => Err(format!(
                "by = \"{by}\" goes by what modules cost, which this host does not tell: use another `by`, or a \
                 newer dynalora"
            )
            .into()),
            (_, None) => Ok(()),
            (_, Some(costs)) => self.with_costs(costs),
        }
    }

    /// Takes a cost model, for a budget that goes by it. An error for one of other modules.
    pub fn with_costs(&mut self, costs: &CostModel) -> Result<()> {
        if let Measure::Costs {
            by,
            percent,
            modules,
            known,
        } = &mut self.0
        {
            costs.check(*modules)?;
            let (none, all) = (by.of(costs.none()), by.of(costs.all()));
            let whole = all.saturating_sub(none) as f64;
            // The allowance keeps rounding from taking one off a share that is a whole number.
            let share = (whole * *percent / 100.0 * (1.0 + 1e-12)).floor() as u64;
            *known = Some((Box::new(costs.clone()), none.saturating_add(share)));
        }
        Ok(())
    }

    /// The modules that the budget allows, taken from an allocator's `order`, best or first drawn
    /// first. Never none of several: the first is taken even if it alone exceeds the budget.
    ///
    /// By anything but modules, taking stops at the first module that does not fit. Going on to smaller ones
    /// would use more of the budget, but it would activate modules that the allocator ranked below one
    /// left out, and prefer small modules whatever their score. By costs a module fits if those taken before it
    /// and it together do: what it adds hangs on what lies above and below.
    ///
    /// An error where the budget goes by costs and was not told of them.
    pub fn take(&self, order: impl IntoIterator<Item = usize>) -> Result<Vec<usize>> {
        let order = order.into_iter();
        Ok(match &self.0 {
            Measure::Modules(count) => order.take(*count).collect(),
            Measure::Parameters { most, sizes } => {
                let mut sum: u64 = 0;
                order
                    .enumerate()
                    .take_while(|&(place, module)| {
                        sum = sum.saturating_add(sizes[module]);
                        place == 0 || sum <= *most
                    })
                    .map(|(_, module)| module)
                    .collect()
            }
            Measure::Costs {
                by,
                modules,
                known: Some((costs, most)),
                ..
            } => {
                let mut order: Vec<usize> = order.collect();
                let fits = |count: usize| {
                    let mut active = vec![false; *modules];
                    order[..count]
                        .iter()
                        .for_each(|&module| active[module] = true);
                    by.of(costs.cost(&active)) <= *most
                };
                // What is taken only ever costs more with each, so that the last that fits can be found by halves.
                let (mut fit, mut beyond) = (0, order.len() + 1);
                while beyond - fit > 1 {
                    let middle = fit.midpoint(beyond);
                    match fits(middle) {
                        true => fit = middle,
                        false => beyond = middle,
                    }
                }
                order.truncate(fit.max(1));
                order
            }
            Measure::Costs {
                by, known: None, ..
            } => {
                return Err(format!(
                    "by = \"{by}\" goes by what modules cost, which the allocator has not passed on: it must call \
                     Limit::start in Allocator::start"
                )
                .into());
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{costs, modules, start_of};
    use crate::{Random, draw_without_replacement};

    fn read(value: Value) -> Budget {
        serde_json::from_value(value).unwrap()
    }

    /// Modules with adapters of these sizes.
    fn sized(sizes: &[u64]) -> Vec<ModuleInfo> {
        let mut modules = modules(sizes.len());
        for (module, size) in modules.iter_mut().zip(sizes) {
            module.parameters = *size;
        }
        modules
    }

    /// What is taken of modules of these sizes in their own order.
    fn taken(percent: f64, sizes: &[u64]) -> Vec<usize> {
        let budget = Budget {
            k: Count::Percent(percent),
            by: By::Parameters,
        };
        let limit = budget.resolve(&sized(sizes)).unwrap();
        limit.take(0..sizes.len()).unwrap()
    }

    #[test]
    fn counts_modules_unless_told_otherwise() {
        let half = read(json!({ "k": "50%" }));
        assert_eq!(half.by, By::Modules);
        assert_eq!(half, read(json!({ "k": "50%", "by": "modules" })));
        let limit = half.resolve(&sized(&[1, 1, 1, 97])).unwrap();
        assert_eq!(limit.take([3, 1, 0, 2]).unwrap(), [3, 1]);
        let three = read(json!({ "k": 3 })).resolve(&modules(4)).unwrap();
        assert_eq!(three.take([3, 1, 0, 2]).unwrap(), [3, 1, 0]);
    }

    #[test]
    fn a_share_of_the_parameters_stops_at_the_first_that_does_not_fit() {
        assert_eq!(taken(50.0, &[20, 20, 30, 5, 25]), [0, 1]);
        assert_eq!(taken(70.0, &[20, 20, 30, 5, 25]), [0, 1, 2]);
        assert_eq!(taken(100.0, &[20, 20, 30, 5, 25]), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn the_first_is_taken_even_if_it_alone_is_too_much() {
        assert_eq!(taken(10.0, &[90, 5, 5]), [0]);
        assert_eq!(taken(1e-9, &[1, 1]), [0]);
        assert_eq!(taken(50.0, &[u64::MAX, u64::MAX]), [0]);
        assert_eq!(taken(50.0, &[0, 0]), [0, 1]);
    }

    #[test]
    fn a_whole_share_is_not_lost_to_rounding() {
        // In floating point 10,000 · 0.57 / 100 is just below 57.
        assert_eq!(taken(0.57, &[56, 1, 10_000 - 57]), [0, 1]);
    }

    #[test]
    fn a_count_of_parameters_is_refused() {
        let budget = read(json!({ "k": 12, "by": "parameters" }));
        insta::assert_snapshot!(
            budget.resolve(&modules(24)).unwrap_err(),
            @r#"by = "parameters" takes a share, but `k` is the count 12: write a share such as k = "50%", or leave `by` out to count modules"#
        );
        let share = read(json!({ "k": "50%", "by": "parameters" }));
        assert!(share.resolve(&[]).is_err());
        for by in ["flops", "memory"] {
            let error = read(json!({ "k": 1, "by": by })).resolve(&modules(24));
            let error = error.unwrap_err().to_string();
            assert!(
                error.contains(&format!("by = \"{by}\" takes a share")),
                "{error}"
            );
        }
        assert!(serde_json::from_value::<Budget>(json!({ "k": 1, "by": "seconds" })).is_err());
        assert!(serde_json::from_value::<Budget>(json!({ "by": "modules" })).is_err());
    }

    #[test]
    fn the_schema_shows_both() {
        let schema = schemars::schema_for!(Budget).to_value();
        assert_eq!(schema["required"], json!(["k"]));
        assert_eq!(schema["additionalProperties"], json!(false));
        let k = &schema["properties"]["k"];
        assert_eq!(k["oneOf"][0], json!({ "type": "integer", "minimum": 1 }));
        assert_eq!(k["examples"], json!(["50%", 12]));
        let by = &schema["properties"]["by"];
        assert_eq!(by["default"], "modules");
        assert!(
            by["description"]
                .as_str()
                .unwrap()
                .contains("\"parameters\"")
        );
        let words: Vec<&Value> = schema["$defs"]["By"]["oneOf"]
            .as_array()
            .unwrap()
            .iter()
            .collect();
        assert_eq!(
            (&words[0]["const"], &words[1]["const"]),
            (&json!("modules"), &json!("parameters"))
        );
        assert_eq!(
            (&words[2]["const"], &words[3]["const"]),
            (&json!("flops"), &json!("memory"))
        );
    }

    /// A share of what these modules cost, told of it.
    fn costed(by: By, percent: f64, modules: &[ModuleInfo]) -> Limit {
        let k = Count::Percent(percent);
        let mut limit = Budget { k, by }.resolve(modules).unwrap();
        limit.start(&start_of(modules)).unwrap();
        limit
    }

    #[test]
    fn by_flops_the_lowest_module_decides_and_those_above_it_are_cheap() {
        let modules = modules(24);
        let half = costed(By::Flops, 50.0, &modules);
        // From the top down until the way back is half as long; the lowest first is all there is.
        let upper = half.take((0..24).rev()).unwrap();
        assert!((8..=16).contains(&upper.len()), "{upper:?}");
        assert_eq!(half.take(0..24).unwrap(), [0]);
        // Beside one that reaches the middle all above it cost little.
        let again = [vec![12], (13..24).collect(), vec![0]].concat();
        assert!(half.take(again).unwrap().len() >= 8);
    }

    #[test]
    fn a_budget_by_costs_must_be_told_of_them() {
        let modules = modules(6);
        for (by, name) in [(By::Flops, "flops"), (By::Memory, "memory")] {
            let k = Count::Percent(50.0);
            let mut limit = Budget { k, by }.resolve(&modules).unwrap();
            let error = limit.take(0..6).unwrap_err().to_string();
            assert!(
                error.contains(name) && error.contains("Limit::start"),
                "{error}"
            );
            let error = limit.start(&Start::default()).unwrap_err().to_string();
            assert!(
                error.contains(name) && error.contains("this host"),
                "{error}"
            );
            let other = limit.with_costs(&costs(&modules[1..])).unwrap_err();
            assert!(other.to_string().contains("not of 6"), "{other}");
            limit.with_costs(&costs(&modules)).unwrap();
            assert!(!limit.take(0..6).unwrap().is_empty());
        }
        // Others need nothing of the run.
        let mut plain = Budget::from(Count::Exactly(2)).resolve(&modules).unwrap();
        plain.start(&Start::default()).unwrap();
        plain.start(&start_of(&modules)).unwrap();
        assert_eq!(plain.take(0..6).unwrap(), [0, 1]);
    }

    proptest! {
        #[test]
        fn what_is_taken_fits_and_the_next_would_not(
            sizes in prop::collection::vec(prop_oneof![0..100_u64, 0..1_u64 << 40], 1..40),
            percent in 1_u32..=100,
        ) {
            let taken = taken(f64::from(percent), &sizes);
            // The same in whole numbers, which do not round.
            let sum = |count: usize| sizes[..count].iter().map(|s| u128::from(*s)).sum::<u128>();
            let fits = |count: usize| sum(count) * 100 <= sum(sizes.len()) * u128::from(percent);
            prop_assert_eq!(&taken, &(0..taken.len()).collect::<Vec<_>>());
            prop_assert!(taken.len() == 1 || fits(taken.len()));
            prop_assert!(taken.len() == sizes.len() || !fits(taken.len() + 1));
        }

        #[test]
        fn what_costs_allow_is_kept_and_the_next_would_exceed_it(
            count in 1..60_usize, seed in any::<u64>(), percent in 1_u32..=100, memory in any::<bool>(),
        ) {
            let modules = modules(count);
            let by = if memory { By::Memory } else { By::Flops };
            let order = draw_without_replacement(&vec![1.0; count], count, &mut Random::new(seed));
            let taken = costed(by, f64::from(percent), &modules).take(order.clone()).unwrap();
            prop_assert_eq!(&taken[..], &order[..taken.len()]);
            let model = costs(&modules);
            let cost = |taken: &[usize]| {
                let mut active = vec![false; count];
                taken.iter().for_each(|module| active[*module] = true);
                u128::from(by.of(model.cost(&active)))
            };
            let (none, all) = (cost(&[]), cost(&order));
            let fits = |taken: &[usize]| (cost(taken) - none) * 100 <= (all - none) * u128::from(percent);
            prop_assert!(taken.len() == 1 || fits(&taken));
            prop_assert!(taken.len() == count || !fits(&order[..taken.len() + 1]));
            prop_assert!(percent < 100 || taken.len() == count);
        }
    }
}
