//! The allocator `top-k`: the k modules with the largest scores.
//!
//! Dynamic Low-Rank Module Allocation, section 3.2: the active set is
//!
//! ```text
//! S = argmax over S, |S| = k, of Σ_{i∈S} ŷᵢ        ŷᵢ = yᵢ / Σⱼ yⱼ
//! ```
//!
//! Equal scores are taken in module order, from the input on.

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, Count, ModuleInfo, Plugin, Result, export_plugin,
};

/// Parameters of `top-k`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
pub struct Parameters {
    /// How many modules to activate: a count, or a share such as "50%".
    k: Count,
}

/// The plugin.
pub struct TopK {
    k: usize,
}

impl Plugin for TopK {
    type Parameters = Parameters;

    const NAME: &'static str = "top-k";
    const DESCRIPTION: &'static str = "Activates the k modules with the largest scores.";
    const REFERENCE: &'static str = "Dynamic Low-Rank Module Allocation, section 3.2, top-k";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        Ok(TopK {
            k: parameters.k.resolve(modules.len())?,
        })
    }
}

impl Allocator for TopK {
    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let scores = &request.scores;
        let mut order: Vec<usize> = (0..scores.len()).collect();
        // A stable sort: ties stay in module order.
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        Ok(Allocation::of(order.into_iter().take(self.k), scores.len()))
    }
}

export_plugin!(allocator TopK);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{conformance, testing};

    fn chosen(k: &str, scores: &[f64]) -> Vec<bool> {
        testing::allocate::<TopK>(&format!(r#"{{"k": {k}}}"#), scores, |_| {})
            .unwrap()
            .active
    }

    #[test]
    fn takes_the_largest() {
        assert_eq!(
            chosen("2", &[0.1, 0.9, 0.3, 0.5]),
            [false, true, false, true]
        );
        assert_eq!(
            chosen("\"75%\"", &[0.1, 0.9, 0.3, 0.5]),
            [false, true, true, true]
        );
    }

    #[test]
    fn ties_and_zeros_go_by_module_order() {
        assert_eq!(
            chosen("2", &[1.0, 2.0, 1.0, 1.0]),
            [true, true, false, false]
        );
        assert_eq!(chosen("2", &[0.0; 4]), [true, true, false, false]);
    }

    #[test]
    fn more_than_there_are_is_refused() {
        assert!(testing::allocate::<TopK>(r#"{"k": 5}"#, &[1.0; 4], |_| {}).is_err());
    }

    #[test]
    fn conforms() {
        conformance::allocator::<TopK>().assert();
    }
}
