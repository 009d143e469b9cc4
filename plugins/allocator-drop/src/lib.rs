//! The allocator `drop`: the most important modules keep adapters of their own, the others share one.
//!
//! LoRA-drop (Zhou et al. 2024, section 3): with the modules ordered by falling score,
//!
//! ```text
//! kept = {1, …, m}        m = min { m ≥ 1 : Σ_{i≤m} Iᵢ ≥ T }        Iᵢ = gᵢ / Σⱼ gⱼ        gᵢ = Σ_x ‖ΔWᵢ x‖²
//! ```
//!
//! and all others use one adapter in common. The g are the scores of `activation` with `target = "delta"`; any others
//! will do. A pair fits modules of one shape, so that there is one shared adapter for each shape of the others: that
//! of the most important among them, which then trains for all. Roles are told apart or not by `per`.
//!
//! The paper measures g in a short training on a part of the data and then trains what remains: `schedule = { kind =
//! "once", after = … }`. It does not say what the shared adapter starts from; that it goes on from the most important
//! module's is ours. `others = "drop"` leaves the shared adapter out: the others are inactive (the paper's ablation
//! without sharing).

use std::collections::BTreeMap;

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, ModuleInfo, Plugin, Result, Start, Unit,
    export_plugin,
};

/// Parameters of `drop`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields, default)]
pub struct Parameters {
    /// The share of the whole score that the modules with adapters of their own hold together: above 0, up to 1.
    #[schemars(extend("exclusiveMinimum" = 0.0, "maximum" = 1.0))]
    threshold: f64,
    /// Among which modules scores are compared and adapters shared.
    per: Per,
    /// What becomes of the others.
    others: Others,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            threshold: 0.9,
            per: Per::All,
            others: Others::Share,
        }
    }
}

/// Among which modules scores are compared and adapters shared.
#[derive(Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", rename_all = "snake_case")]
pub enum Per {
    /// All modules; those of one shape share.
    #[default]
    All,
    /// Those of one role, such as `query`, each role by itself.
    Role,
}

/// What becomes of the modules that keep no adapter of their own.
#[derive(Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", rename_all = "snake_case")]
pub enum Others {
    /// They use one adapter for each shape.
    #[default]
    Share,
    /// They are inactive.
    Drop,
}

/// The plugin.
pub struct Drop {
    parameters: Parameters,
    /// The modules whose scores are compared.
    groups: Vec<Vec<usize>>,
}

impl Plugin for Drop {
    type Parameters = Parameters;

    const NAME: &'static str = "drop";
    const DESCRIPTION: &'static str = "Leaves the most important modules their adapters and lets the others share one for each shape.";
    const REFERENCE: &'static str = "Zhou et al. 2024, LoRA-drop, section 3";
    const FORMULA: &'static str = "kept = {1, …, m}        m = min { m ≥ 1 : Σ_{i≤m} Iᵢ ≥ T }        Iᵢ = gᵢ / Σⱼ gⱼ        gᵢ = Σ_x ‖ΔWᵢ x‖²";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let threshold = parameters.threshold;
        if !(threshold > 0.0 && threshold <= 1.0) {
            return Err(format!(
                "parameter `threshold`: found {threshold}, expected above 0 and up to 1"
            )
            .into());
        }
        let mut groups = BTreeMap::<&str, Vec<usize>>::new();
        for (index, module) in modules.iter().enumerate() {
            let group = match parameters.per {
                Per::All => "",
                Per::Role => module.role.as_str(),
            };
            groups.entry(group).or_default().push(index);
        }
        Ok(Drop {
            groups: groups.into_values().collect(),
            parameters,
        })
    }
}

impl Drop {
    /// The modules of a group by falling score, and how many of them are kept.
    fn kept(&self, group: &[usize], scores: &[f64]) -> (Vec<usize>, usize) {
        let mut order = group.to_vec();
        // Adding zero makes the two zeros one, which a total order tells apart.
        order.sort_by(|a, b| (scores[*b] + 0.0).total_cmp(&(scores[*a] + 0.0)));
        // By the largest, so that a sum of huge scores stays a number; all equal where all are zero.
        let largest = scores[order[0]];
        let share = |module: &usize| match largest > 0.0 {
            true => scores[*module] / largest,
            false => 1.0,
        };
        let whole: f64 = order.iter().map(share).sum();
        let threshold = self.parameters.threshold;
        // The allowance keeps rounding from adding one module to an exact share.
        let enough = threshold * whole * (1.0 - 1e-12 * f64::from(threshold < 1.0));
        let mut sum = 0.0;
        let kept = order.iter().take_while(|module| {
            let more = sum < enough;
            sum += share(module);
            more
        });
        let kept = kept.count();
        (order, kept)
    }
}

impl Allocator for Drop {
    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        match start.unit {
            Unit::Module => Ok(Vec::new()),
            _ => Err(
                "it shares adapters of single modules: set unit = \"module\" in [allocation]"
                    .into(),
            ),
        }
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let modules = &request.modules;
        let mut shared: Vec<usize> = (0..modules.len()).collect();
        let mut active = vec![false; modules.len()];
        for group in &self.groups {
            let (order, kept) = self.kept(group, &request.scores);
            let (kept, others) = order.split_at(kept);
            kept.iter().for_each(|module| active[*module] = true);
            if self.parameters.others == Others::Drop {
                continue;
            }
            // The first of a shape is the most important of it.
            let mut owners = BTreeMap::new();
            for &module in others {
                let ModuleInfo {
                    in_features,
                    out_features,
                    rank,
                    ..
                } = modules[module];
                shared[module] = *owners
                    .entry((in_features, out_features, rank))
                    .or_insert(module);
                active[module] = true;
            }
        }
        let mut allocation = Allocation::default();
        allocation.active = active;
        allocation.shared = (self.parameters.others == Others::Share).then_some(shared);
        Ok(allocation)
    }
}

export_plugin!(allocator Drop);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{conformance, testing};

    fn chosen(parameters: &str, scores: &[f64]) -> Allocation {
        testing::allocate::<Drop>(parameters, scores, |_| {}).unwrap()
    }

    #[test]
    fn the_most_important_keep_their_own_and_the_others_share_one_for_each_shape() {
        // Query, key, value and output are of one shape, up and down of another each.
        let scores = [5.0, 0.5, 3.0, 1.0, 0.25, 0.25, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1];
        // 5 and 3 are 8 of 10.6.
        let allocation = chosen(r#"{"threshold": 0.75}"#, &scores);
        assert_eq!(
            allocation.shared.unwrap(),
            // Module 3 is the most important of its shape that is left, modules 4 and 5 of theirs.
            [0, 3, 2, 3, 4, 5, 3, 3, 3, 3, 4, 5]
        );
        assert_eq!(allocation.active, [true; 12]);
        let allocation = chosen(r#"{"threshold": 0.75, "others": "drop"}"#, &scores);
        assert_eq!(allocation.shared, None);
        assert_eq!(allocation.active[..4], [true, false, true, false]);
        assert!(!allocation.active[4..].contains(&true));
    }

    #[test]
    fn a_share_met_exactly_takes_no_more_and_all_of_it_takes_all() {
        let kept = |threshold: f64, scores: &[f64]| {
            let parameters = format!(r#"{{"threshold": {threshold}, "others": "drop"}}"#);
            let active = chosen(&parameters, scores).active;
            active.iter().filter(|active| **active).count()
        };
        assert_eq!(kept(0.9, &[0.4, 0.3, 0.2, 0.1]), 3);
        assert_eq!(kept(0.91, &[0.4, 0.3, 0.2, 0.1]), 4);
        assert_eq!(kept(1.0, &[0.4, 0.3, 0.2, 0.0]), 3);
        assert_eq!(kept(1e-9, &[0.4, 0.3, 0.2, 0.1]), 1);
        assert_eq!(kept(0.5, &[0.0; 4]), 2);
        assert_eq!(kept(0.5, &[f64::MAX; 4]), 2);
    }

    #[test]
    fn roles_by_themselves_each_keep_some() {
        // Of the queries module 0, of the keys module 7, and so on; each of the others shares with none.
        let scores = [9.0, 0.1, 9.0, 0.1, 9.0, 0.1, 0.1, 9.0, 0.1, 9.0, 0.1, 9.0];
        let allocation = chosen(r#"{"per": "role", "others": "drop"}"#, &scores);
        let kept: Vec<bool> = scores.iter().map(|score| *score > 1.0).collect();
        assert_eq!(allocation.active, kept);
        let mut scores = [0.1; 18];
        scores[0] = 9.0;
        let shared = chosen(r#"{"per": "role"}"#, &scores).shared.unwrap();
        // Query 0 is kept, and queries 6 and 12 share; of the equal keys two of three are needed.
        assert_eq!([shared[0], shared[6], shared[12]], [0, 6, 6]);
        assert_eq!([shared[1], shared[7], shared[13]], [1, 7, 13]);
    }

    #[test]
    fn layers_are_refused() {
        let mut start = testing::start();
        start.unit = Unit::Layer;
        let mut allocator = testing::allocator::<Drop>("{}", 12).unwrap();
        let error = allocator.start(&start).unwrap_err().to_string();
        assert!(error.contains("unit = \"module\""), "{error}");
    }

    #[test]
    fn conforms() {
        conformance::allocator::<Drop>().assert();
    }
}
