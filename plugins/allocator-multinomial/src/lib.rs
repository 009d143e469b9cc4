//! The allocator `multinomial`: k modules drawn in proportion to their scores.
//!
//! Dynamic Low-Rank Module Allocation, section 3.2: k draws without replacement, the next one being
//!
//! ```text
//! P(i | drawn so far: D) = ŷᵢ / Σ_{j∉D} ŷⱼ        ŷᵢ = yᵢ / Σⱼ yⱼ
//! ```

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, Count, ModuleInfo, Plugin, Random, Result,
    draw_without_replacement, export_plugin,
};

/// Parameters of `multinomial`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
pub struct Parameters {
    /// How many modules to activate: a count, or a share such as "50%".
    k: Count,
}

/// The plugin.
pub struct Multinomial {
    k: usize,
}

impl Plugin for Multinomial {
    type Parameters = Parameters;

    const NAME: &'static str = "multinomial";
    const DESCRIPTION: &'static str =
        "Draws k modules without replacement, each in proportion to its score.";
    const REFERENCE: &'static str = "Dynamic Low-Rank Module Allocation, section 3.2, multinomial";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        Ok(Multinomial {
            k: parameters.k.resolve(modules.len())?,
        })
    }
}

impl Allocator for Multinomial {
    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let weights = request.normalised_scores();
        let drawn = draw_without_replacement(&weights, self.k, &mut Random::new(request.seed));
        Ok(Allocation::of(drawn, weights.len()))
    }
}

export_plugin!(allocator Multinomial);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{conformance, testing};

    /// How often each module is chosen in 10,000 reallocations.
    fn times_chosen(parameters: &str, scores: &[f64]) -> Vec<u32> {
        let mut times = vec![0; scores.len()];
        for seed in 0..10_000 {
            let allocation = testing::allocate::<Multinomial>(parameters, scores, |request| {
                request.seed = seed;
            });
            for (times, active) in times.iter_mut().zip(allocation.unwrap().active) {
                *times += u32::from(active);
            }
        }
        times
    }

    #[test]
    fn one_draw_follows_the_scores() {
        let times = times_chosen(r#"{"k": 1}"#, &[5.0, 0.0, 2.0, 3.0]);
        let near = |times: u32, chance: f64| (f64::from(times) / 10_000.0 - chance).abs() < 0.015;
        assert!(
            near(times[0], 0.5) && near(times[2], 0.2) && near(times[3], 0.3),
            "{times:?}"
        );
        assert_eq!(times[1], 0);
    }

    #[test]
    fn the_second_draw_is_in_proportion_to_what_is_left() {
        // Module 1 first (1/4), or after 0 (1/2 · 1/2), or after 2 (1/4 · 1/3): 7/12.
        let times = times_chosen(r#"{"k": 2}"#, &[2.0, 1.0, 1.0]);
        let near = |times: u32, chance: f64| (f64::from(times) / 10_000.0 - chance).abs() < 0.015;
        assert!(
            near(times[0], 5.0 / 6.0) && near(times[1], 7.0 / 12.0),
            "{times:?}"
        );
    }

    #[test]
    fn conforms() {
        conformance::allocator::<Multinomial>().assert();
    }
}
