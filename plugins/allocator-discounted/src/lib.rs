//! The allocator `discounted`: k modules drawn in proportion to score per update received.
//!
//! Dynamic Low-Rank Module Allocation, section 3.2: k draws without replacement, the next one being,
//! with c the gradient updates a module has received,
//!
//! ```text
//! P(i | drawn so far: D) = wᵢ / Σ_{j∉D} wⱼ        wᵢ = ŷᵢ / (cᵢ + ε)        ŷᵢ = yᵢ / Σⱼ yⱼ
//! ```

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, Count, ModuleInfo, Plugin, Random, Result,
    draw_without_replacement, export_plugin,
};

/// Parameters of `discounted`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
pub struct Parameters {
    /// How many modules to activate: a count, or a share such as "50%".
    k: Count,
    /// What is added to the updates received, above 0: the smaller, the more surely a module that has
    /// had no update comes before all that have.
    #[serde(default = "epsilon")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    epsilon: f64,
}

fn epsilon() -> f64 {
    1e-8
}

/// The plugin.
pub struct Discounted {
    k: usize,
    epsilon: f64,
}

impl Plugin for Discounted {
    type Parameters = Parameters;

    const NAME: &'static str = "discounted";
    const DESCRIPTION: &'static str =
        "Draws k modules without replacement, each in proportion to its score per update received.";
    const REFERENCE: &'static str = "Dynamic Low-Rank Module Allocation, section 3.2, discounted";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let Parameters { k, epsilon } = parameters;
        if !(epsilon > 0.0 && epsilon.is_finite()) {
            return Err(format!("parameter `epsilon`: found {epsilon}, expected above 0").into());
        }
        Ok(Discounted {
            k: k.resolve(modules.len())?,
            epsilon,
        })
    }
}

impl Allocator for Discounted {
    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let shares = request.normalised_scores();
        let weights: Vec<f64> = shares
            .iter()
            .zip(&request.ledger)
            .map(|(share, entry)| share / (entry.steps_active as f64 + self.epsilon))
            .collect();
        let drawn = draw_without_replacement(&weights, self.k, &mut Random::new(request.seed));
        Ok(Allocation::of(drawn, weights.len()))
    }
}

export_plugin!(allocator Discounted);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{conformance, testing};

    /// How often each module is chosen in 10,000 reallocations.
    fn times_chosen(parameters: &str, scores: &[f64], updates: &[u64]) -> Vec<u32> {
        let mut times = vec![0; scores.len()];
        for seed in 0..10_000 {
            let allocation = testing::allocate::<Discounted>(parameters, scores, |request| {
                request.seed = seed;
                for (entry, updates) in request.ledger.iter_mut().zip(updates) {
                    entry.steps_active = *updates;
                }
            });
            for (times, active) in times.iter_mut().zip(allocation.unwrap().active) {
                *times += u32::from(active);
            }
        }
        times
    }

    #[test]
    fn one_draw_follows_score_over_updates() {
        let times = times_chosen(r#"{"k": 1}"#, &[6.0, 2.0, 2.0], &[30, 10, 5]);
        let near = |times: u32, chance: f64| (f64::from(times) / 10_000.0 - chance).abs() < 0.015;
        // 6/30 : 2/10 : 2/5 = 1 : 1 : 2
        assert!(
            near(times[0], 0.25) && near(times[1], 0.25) && near(times[2], 0.5),
            "{times:?}"
        );
    }

    #[test]
    fn a_module_without_updates_comes_first() {
        let times = times_chosen(r#"{"k": 1}"#, &[1.0, 0.01, 0.0], &[1, 0, 0]);
        assert_eq!(times, [0, 10_000, 0]);
        let even = times_chosen(r#"{"k": 1, "epsilon": 1.0}"#, &[2.0, 1.0], &[1, 0]);
        assert!((4_850..5_150).contains(&even[0]), "{even:?}");
    }

    #[test]
    fn conforms() {
        conformance::allocator::<Discounted>().assert();
    }
}
