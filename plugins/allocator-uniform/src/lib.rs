//! The allocator `uniform`: k modules drawn with equal chances, whatever their scores.
//!
//! The control of Dynamic Low-Rank Module Allocation, section 3.2, that every claim is measured against:
//!
//! ```text
//! P(i | drawn so far: D) = 1 / (n − |D|)
//! ```

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, Count, ModuleInfo, Plugin, Random, Result,
    draw_without_replacement, export_plugin,
};

/// Parameters of `uniform`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
pub struct Parameters {
    /// How many modules to activate: a count, or a share such as "50%".
    k: Count,
}

/// The plugin.
pub struct Uniform {
    k: usize,
}

impl Plugin for Uniform {
    type Parameters = Parameters;

    const NAME: &'static str = "uniform";
    const DESCRIPTION: &'static str =
        "Draws k modules without replacement, all with equal chances: the control.";
    const REFERENCE: &'static str = "Dynamic Low-Rank Module Allocation, section 3.2, uniform";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        Ok(Uniform {
            k: parameters.k.resolve(modules.len())?,
        })
    }
}

impl Allocator for Uniform {
    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let weights = vec![1.0; request.scores.len()];
        let drawn = draw_without_replacement(&weights, self.k, &mut Random::new(request.seed));
        Ok(Allocation::of(drawn, weights.len()))
    }
}

export_plugin!(allocator Uniform);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{conformance, testing};

    /// How often each module is chosen in 10,000 reallocations.
    fn times_chosen(parameters: &str, scores: &[f64]) -> Vec<u32> {
        let mut times = vec![0; scores.len()];
        for seed in 0..10_000 {
            let allocation = testing::allocate::<Uniform>(parameters, scores, |request| {
                request.seed = seed;
            });
            for (times, active) in times.iter_mut().zip(allocation.unwrap().active) {
                *times += u32::from(active);
            }
        }
        times
    }

    #[test]
    fn every_module_has_the_same_chance() {
        let times = times_chosen(r#"{"k": "50%"}"#, &[100.0, 0.0, 1.0, 1e-9]);
        let near = |times: u32, chance: f64| (f64::from(times) / 10_000.0 - chance).abs() < 0.015;
        assert!(times.iter().all(|&times| near(times, 0.5)), "{times:?}");
    }

    #[test]
    fn conforms() {
        conformance::allocator::<Uniform>().assert();
    }
}
