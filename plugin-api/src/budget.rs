//! How much may be active: `k`, counted in modules or in trainable parameters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Count, ModuleInfo, Result};

/// How much an allocator activates. Serves as the `Parameters` of one that needs nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// How many modules to activate: a count, or a share such as "50%".
    pub k: Count,
    /// What a share is a share of: "modules", or "parameters", the adapters' trainable ones, of which
    /// modules are taken, in the allocator's order, up to the first that would exceed the share.
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
}

impl From<Count> for Budget {
    fn from(k: Count) -> Self {
        Budget { k, by: By::Modules }
    }
}

impl Budget {
    /// The budget over these modules. An error for a count they cannot fill, and for a count of
    /// parameters.
    pub fn resolve(self, modules: &[ModuleInfo]) -> Result<Limit> {
        match (self.by, self.k) {
            (By::Modules, k) => Ok(Limit(Measure::Modules(k.resolve(modules.len())?))),
            (By::Parameters, Count::Exactly(count)) => Err(format!(
                "by = \"parameters\" takes a share, but `k` is the count {count}: write a share such \
                 as k = \"50%\", or leave `by` out to count modules"
            )
            .into()),
            (By::Parameters, Count::Percent(percent)) => {
                // Refuses what there is no share of.
                self.k.resolve(modules.len())?;
                let sizes: Vec<u64> = modules.iter().map(|module| module.parameters).collect();
                let all = sizes.iter().fold(0, |sum: u64, size| sum.saturating_add(*size));
                // The allowance keeps rounding from taking one off a share that is a whole number.
                let most = (all as f64 * percent / 100.0 * (1.0 + 1e-12)).floor() as u64;
                Ok(Limit(Measure::Parameters { most, sizes }))
            }
        }
    }
}

/// A [`Budget`] over the modules of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit(Measure);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Measure {
    Modules(usize),
    Parameters { most: u64, sizes: Vec<u64> },
}

impl Limit {
    /// The modules that the budget allows, taken from an allocator's `order`, best or first drawn
    /// first. Never none of several: the first is taken even if it alone exceeds the budget.
    ///
    /// By parameters, taking stops at the first module that does not fit. Going on to smaller ones
    /// would use more of the budget, but it would activate modules that the allocator ranked below one
    /// left out, and prefer small modules whatever their score.
    pub fn take(&self, order: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let order = order.into_iter();
        match &self.0 {
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
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::modules;

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
        budget.resolve(&sized(sizes)).unwrap().take(0..sizes.len())
    }

    #[test]
    fn counts_modules_unless_told_otherwise() {
        let half = read(json!({ "k": "50%" }));
        assert_eq!(half.by, By::Modules);
        assert_eq!(half, read(json!({ "k": "50%", "by": "modules" })));
        let limit = half.resolve(&sized(&[1, 1, 1, 97])).unwrap();
        assert_eq!(limit.take([3, 1, 0, 2]), [3, 1]);
        let three = read(json!({ "k": 3 })).resolve(&modules(4)).unwrap();
        assert_eq!(three.take([3, 1, 0, 2]), [3, 1, 0]);
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
        assert!(serde_json::from_value::<Budget>(json!({ "k": 1, "by": "flops" })).is_err());
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
    }
}
