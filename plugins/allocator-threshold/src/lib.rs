//! The allocator `threshold`: as many of the best modules as it takes to hold a share of the score.
//!
//! Dynamic Low-Rank Module Allocation, section 3.2: with the modules ordered by falling score,
//!
//! ```text
//! S = {1, …, m}        m = min { m ≥ 1 : Σ_{i≤m} ŷᵢ ≥ p }        ŷᵢ = yᵢ / Σⱼ yⱼ
//! ```
//!
//! Equal scores are taken in module order. Where every score is zero all shares are equal.

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, ModuleInfo, Plugin, Result, export_plugin,
};

/// Parameters of `threshold`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
pub struct Parameters {
    /// The share of the whole score that the active modules hold together: above 0, up to 1.
    #[schemars(extend("exclusiveMinimum" = 0.0, "maximum" = 1.0), example = 0.5)]
    p: f64,
}

/// The plugin.
pub struct Threshold {
    p: f64,
}

impl Plugin for Threshold {
    type Parameters = Parameters;

    const NAME: &'static str = "threshold";
    const DESCRIPTION: &'static str =
        "Activates the smallest set of best modules that holds a share p of the whole score.";
    const REFERENCE: &'static str = "Dynamic Low-Rank Module Allocation, section 3.2, threshold";

    fn new(Parameters { p }: Parameters, _: &[ModuleInfo]) -> Result<Self> {
        if !(p > 0.0 && p <= 1.0) {
            return Err(format!("parameter `p`: found {p}, expected above 0 and up to 1").into());
        }
        Ok(Threshold { p })
    }
}

impl Allocator for Threshold {
    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let shares = request.normalised_scores();
        let mut order: Vec<usize> = (0..shares.len()).collect();
        // A stable sort: ties stay in module order.
        order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
        // The whole is summed in the same order as the parts, so that p = 1 stops at the last module
        // with any score; the allowance keeps rounding from adding one module to an exact share.
        let whole: f64 = order.iter().map(|&module| shares[module]).sum();
        let enough = self.p * whole * (1.0 - 1e-12 * f64::from(self.p < 1.0));
        let mut sum = 0.0;
        let best = order.into_iter().take_while(|&module| {
            let more = sum < enough;
            sum += shares[module];
            more
        });
        Ok(Allocation::of(best, shares.len()))
    }
}

export_plugin!(allocator Threshold);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{conformance, testing};

    fn chosen(p: f64, scores: &[f64]) -> Vec<bool> {
        let parameters = format!(r#"{{"p": {p}}}"#);
        testing::allocate::<Threshold>(&parameters, scores, |_| {})
            .unwrap()
            .active
    }

    #[test]
    fn takes_the_smallest_set_that_reaches_p() {
        let scores = [1.0, 5.0, 1.0, 3.0];
        assert_eq!(chosen(0.5, &scores), [false, true, false, false]);
        assert_eq!(chosen(0.51, &scores), [false, true, false, true]);
        assert_eq!(chosen(0.85, &scores), [true, true, false, true]);
        assert_eq!(chosen(1e-9, &scores), [false, true, false, false]);
    }

    #[test]
    fn all_of_the_score_is_all_modules_that_have_any() {
        assert_eq!(
            chosen(1.0, &[0.1, 0.0, 0.7, 0.3]),
            [true, false, true, true]
        );
        let many: Vec<f64> = (0..1000).map(|i| f64::from(i) * 0.1).collect();
        assert_eq!(chosen(1.0, &many).iter().filter(|on| **on).count(), 999);
    }

    #[test]
    fn exact_shares_of_equal_scores_are_exact_counts() {
        for (p, count) in [(0.07, 7), (0.29, 29), (0.57, 57), (0.3, 30), (0.301, 31)] {
            assert_eq!(
                chosen(p, &[0.0; 100]).iter().filter(|on| **on).count(),
                count,
                "{p}"
            );
        }
    }

    #[test]
    fn conforms() {
        conformance::allocator::<Threshold>().assert();
    }
}
