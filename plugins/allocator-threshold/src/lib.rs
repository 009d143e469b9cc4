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
    const FORMULA: &'static str =
        "S = {1, …, m}        m = min { m ≥ 1 : Σ_{i≤m} ŷᵢ ≥ p }        ŷᵢ = yᵢ / Σⱼ yⱼ";

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
        let order = request.ranking();
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
    use proptest::prelude::*;

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

    /// A score of any size, with many that are equal.
    fn score() -> impl Strategy<Value = f64> {
        prop_oneof![
            0.0..1.0_f64,
            prop::sample::select(vec![0.0, -0.0, 0.5, 1.0, 5e-324, f64::MAX]),
            (1..1_u64 << 52).prop_map(f64::from_bits),
            (0.5..=1.0_f64).prop_map(|share| share * f64::MAX),
        ]
    }

    fn scores() -> impl Strategy<Value = Vec<f64>> {
        let scores = |sizes| prop::collection::vec(score(), sizes);
        let of_one_size = |sizes, score: fn(f64) -> f64| {
            prop::collection::vec((0.0..1.0_f64).prop_map(score), sizes)
        };
        prop_oneof![
            8 => scores(1..=12),
            2 => of_one_size(1..=300, |share| share),
            2 => of_one_size(1..=300, |share| share * 1e-310),
            1 => of_one_size(9_000..=10_000, |share| share),
            1 => (score(), 1..=10_000_usize).prop_map(|(score, n)| vec![score; n]),
        ]
    }

    proptest! {
        #[test]
        fn the_set_reaches_p_and_none_smaller_does(scores in scores(), p in 1e-6..=1.0_f64) {
            let active = chosen(p, &scores);
            let (on, off): (Vec<usize>, Vec<usize>) =
                (0..scores.len()).partition(|&module| active[module]);
            prop_assert!(!on.is_empty());

            // Scaled by a power of two, so that the test's own sums neither overflow nor lose digits.
            let largest = scores.iter().copied().fold(0.0, f64::max);
            let scale = 2_f64.powi(if largest > 1.0 { -600 } else { 600 });
            let size = |module: usize| if largest == 0.0 { 1.0 } else { scores[module] * scale };
            let sum = |modules: &[usize]| modules.iter().map(|&module| size(module)).sum::<f64>();
            let (some, all) = (sum(&on), sum(&on) + sum(&off));
            prop_assert!(some >= p * all * (1.0 - 1e-9), "{some} of {all} is not {p}");
            let smallest = on.iter().map(|&module| size(module)).fold(f64::INFINITY, f64::min);
            let fewer = some - smallest;
            prop_assert!(on.len() == 1 || fewer < p * all * (1.0 + 1e-9), "{fewer} of {all} is {p}");
            prop_assert!(on.len() == 1 || smallest > 0.0, "a module without any score is chosen");

            // They are the first by score, and among equals by place.
            let place = |module: usize| (scores[module], std::cmp::Reverse(module));
            let before = |a: &usize, b: &usize| place(*a).partial_cmp(&place(*b)).unwrap();
            let (last, first) = (on.into_iter().min_by(before), off.into_iter().max_by(before));
            if let (Some(last), Some(first)) = (last, first) {
                prop_assert!(place(last) > place(first), "{last} is chosen, {first} is not");
            }
        }

        /// In whole numbers and with p a fraction of 64 nothing rounds, so that the size is exact.
        #[test]
        fn whole_numbers_give_the_exact_size(scores in prop::collection::vec(0..20_u64, 1..60), p in 1..=64_u64) {
            let mut falling = scores.clone();
            falling.sort_unstable_by(|a, b| b.cmp(a));
            if falling[0] == 0 {
                falling.fill(1);
            }
            let all: u64 = falling.iter().sum();
            let reaches = |count: &usize| falling[..*count].iter().sum::<u64>() * 64 >= p * all;
            let fewest = (1..=falling.len()).find(reaches).unwrap();
            let scores: Vec<f64> = scores.into_iter().map(|score| score as f64).collect();
            let active = chosen(p as f64 / 64.0, &scores);
            prop_assert_eq!(active.iter().filter(|on| **on).count(), fewest);
        }
    }

    #[test]
    fn conforms() {
        conformance::allocator::<Threshold>().assert();
    }
}
