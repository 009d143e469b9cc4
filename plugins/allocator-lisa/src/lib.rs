//! The allocator `lisa`: all modules of γ layers drawn anew, and what lies outside the layers always.
//!
//! LISA (Pan et al. 2024, algorithm 1): every K steps γ of the N_L layers are drawn and all others frozen, with
//! the embedding and the head always trained:
//!
//! ```text
//! P(l | drawn so far: D) = w_l / Σ_{m∉D} w_m        w = 1 (the paper), or the layer's share of the scores
//! ```
//!
//! Here: K is the schedule's `every`, the task's head always trains whatever an allocator says, and embeddings stay frozen
//! unless they carry adapters. Modules outside the layers, such as a pooler or a table of embeddings, stand where LISA's
//! head and embeddings stand: they are always active and count for no layer (`outside = false`: never active).
//!
//! Under `unit = "layer"` a layer is one of what is chosen; under `unit = "module"` it is the modules of one layer
//! index, and the choice is the same. A layer's score is the sum of its modules'. The paper's importance sampling
//! stops at equal weights; by scores is an extension.

use std::collections::BTreeMap;

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, Count, ModuleInfo, Needs, Plugin, Random, Result,
    draw_without_replacement, export_plugin,
};

/// Parameters of `lisa`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
pub struct Parameters {
    /// γ, how many layers are drawn: a count, or a share such as "25%".
    gamma: Count,
    /// What they are drawn by.
    #[serde(default)]
    weights: Weights,
    /// Whether modules outside the layers are always active, or never.
    #[serde(default = "yes")]
    outside: bool,
}

fn yes() -> bool {
    true
}

/// What layers are drawn by.
#[derive(Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", rename_all = "snake_case")]
pub enum Weights {
    /// Equal chances, as in the paper; nothing is measured.
    #[default]
    Uniform,
    /// In proportion to the sum of a layer's scores.
    Score,
}

/// The plugin.
pub struct Lisa {
    gamma: usize,
    weights: Weights,
    /// The modules of each layer.
    layers: Vec<Vec<usize>>,
    /// Those that are always active.
    always: Vec<usize>,
}

impl Plugin for Lisa {
    type Parameters = Parameters;

    const NAME: &'static str = "lisa";
    const DESCRIPTION: &'static str =
        "Draws all modules of so many layers anew; what lies outside the layers always trains.";
    const REFERENCE: &'static str = "Pan et al. 2024, LISA, algorithm 1";
    const FORMULA: &'static str = "P(l | drawn so far: D) = w_l / Σ_{m∉D} w_m        w = 1 (the paper), or the layer's share of the scores";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let (mut layers, mut outside) = (BTreeMap::<u32, Vec<usize>>::new(), Vec::new());
        for (index, module) in modules.iter().enumerate() {
            match module.layer {
                Some(layer) => layers.entry(layer).or_default().push(index),
                None => outside.push(index),
            }
        }
        let layers: Vec<_> = layers.into_values().collect();
        if layers.is_empty() {
            return Err("it draws layers, but none of the modules is in one".into());
        }
        let gamma = parameters.gamma.resolve(layers.len());
        Ok(Lisa {
            gamma: gamma
                .map_err(|error| format!("parameter `gamma`, which counts layers: {error}"))?,
            weights: parameters.weights,
            layers,
            always: if parameters.outside {
                outside
            } else {
                Vec::new()
            },
        })
    }
}

impl Allocator for Lisa {
    fn needs(&self) -> Needs {
        match self.weights {
            Weights::Uniform => Needs::default().without_scores(),
            Weights::Score => Needs::default(),
        }
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        // By the largest, so that a sum of huge scores stays a number.
        let largest = request
            .scores
            .iter()
            .copied()
            .fold(f64::MIN_POSITIVE, f64::max);
        let weight = |layer: &Vec<usize>| match self.weights {
            Weights::Uniform => 1.0,
            Weights::Score => layer
                .iter()
                .map(|module| request.scores[*module] / largest)
                .sum(),
        };
        let weights: Vec<f64> = self.layers.iter().map(weight).collect();
        let drawn = draw_without_replacement(&weights, self.gamma, &mut Random::new(request.seed));
        let drawn = drawn.into_iter().flat_map(|layer| &self.layers[layer]);
        Ok(Allocation::of(
            drawn.chain(&self.always).copied(),
            request.modules.len(),
        ))
    }
}

export_plugin!(allocator Lisa);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::conformance;
    use dynalora_plugin_api::testing::{self, Distribution, Tally};

    /// Six modules a layer: what 20,000 reallocations choose of so many layers, once it has been seen that
    /// they are whole.
    fn tally(parameters: &str, layers: usize, change: impl Fn(&mut [f64])) -> Tally {
        let mut scores = vec![0.0; 6 * layers];
        change(&mut scores);
        let drawn = testing::tally::<Lisa>(parameters, &testing::request(&scores), 0..20_000);
        let mut by_layer = Tally::new();
        for (active, count) in drawn.unwrap() {
            assert!(
                active
                    .chunks(6)
                    .all(|layer| layer.iter().all(|module| *module == layer[0]))
            );
            let layers = active.chunks(6).map(|layer| layer[0]).collect();
            *by_layer.entry(layers).or_default() += count;
        }
        by_layer
    }

    #[test]
    fn layers_are_drawn_whole_and_with_equal_chances() {
        // The scores must not matter.
        let drawn = tally(r#"{"gamma": 2}"#, 5, |scores| scores[7] = 1e9);
        Distribution::successive(&[1.0; 5], 2)
            .test(&drawn)
            .assert_fits();
        Distribution::successive(&[1.0, 1.3, 1.0, 1.0, 1.0], 2)
            .test(&drawn)
            .assert_differs();
        let drawn = tally(r#"{"gamma": "25%"}"#, 6, |_| {});
        Distribution::successive(&[1.0; 6], 2)
            .test(&drawn)
            .assert_fits();
    }

    #[test]
    fn by_score_a_layer_weighs_what_its_modules_do() {
        let drawn = tally(r#"{"gamma": 2, "weights": "score"}"#, 4, |scores| {
            (scores[0], scores[3], scores[8], scores[20]) = (1.0, 1.0, 3.0, 1.0);
        });
        Distribution::successive(&[2.0, 3.0, 0.0, 1.0], 2)
            .test(&drawn)
            .assert_fits();
        // Sums that no number could hold.
        let drawn = tally(r#"{"gamma": 1, "weights": "score"}"#, 2, |scores| {
            scores[..4].fill(f64::MAX);
            scores[6..8].fill(f64::MAX);
        });
        Distribution::successive(&[2.0, 1.0], 1)
            .test(&drawn)
            .assert_fits();
    }

    #[test]
    fn what_is_outside_the_layers_is_always_or_never_active() {
        let mut request = testing::request(&[0.0; 13]);
        request.modules[12].layer = None;
        for (parameters, active) in [
            (r#"{"gamma": 1}"#, true),
            (r#"{"gamma": 1, "outside": false}"#, false),
        ] {
            for (chosen, _) in testing::tally::<Lisa>(parameters, &request, 0..20).unwrap() {
                assert_eq!(chosen[12], active);
                assert_eq!(chosen[..12].iter().filter(|active| **active).count(), 6);
            }
        }
        for module in &mut request.modules {
            module.layer = None;
        }
        let error = testing::tally::<Lisa>(r#"{"gamma": 1}"#, &request, 0..1).unwrap_err();
        assert!(
            error.to_string().contains("none of the modules is in one"),
            "{error}"
        );
    }

    #[test]
    fn more_layers_than_there_are_is_refused() {
        let error = testing::allocate::<Lisa>(r#"{"gamma": 3}"#, &[0.0; 12], |_| {}).unwrap_err();
        assert!(error.to_string().contains("`gamma`"), "{error}");
    }

    #[test]
    fn reads_scores_only_by_score() {
        let needs = |parameters| testing::allocator::<Lisa>(parameters, 6).unwrap().needs();
        assert!(!needs(r#"{"gamma": 1}"#).scores);
        assert!(needs(r#"{"gamma": 1, "weights": "score"}"#).scores);
    }

    #[test]
    fn conforms() {
        conformance::allocator::<Lisa>().assert();
    }
}
