//! The allocator `multinomial`: k modules drawn in proportion to their scores.
//!
//! Dynamic Low-Rank Module Allocation, section 3.2: k draws without replacement, the next one being
//!
//! ```text
//! P(i | drawn so far: D) = ŷᵢ / Σ_{j∉D} ŷⱼ        ŷᵢ = yᵢ / Σⱼ yⱼ
//! ```
//!
//! With a share `by` something else than modules drawing goes on up to the first that would exceed it.

use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, Budget, Limit, ModuleInfo, Plugin, Random, Result,
    Start, draw_without_replacement, export_plugin,
};

/// The plugin.
pub struct Multinomial {
    limit: Limit,
}

impl Plugin for Multinomial {
    type Parameters = Budget;

    const NAME: &'static str = "multinomial";
    const DESCRIPTION: &'static str =
        "Draws k modules without replacement, each in proportion to its score.";
    const REFERENCE: &'static str = "Dynamic Low-Rank Module Allocation, section 3.2, multinomial";
    const FORMULA: &'static str = "P(i | drawn so far: D) = ŷᵢ / Σ_{j∉D} ŷⱼ        ŷᵢ = yᵢ / Σⱼ yⱼ";

    fn new(budget: Budget, modules: &[ModuleInfo]) -> Result<Self> {
        Ok(Multinomial {
            limit: budget.resolve(modules)?,
        })
    }
}

impl Allocator for Multinomial {
    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.limit.start(start)?;
        Ok(Vec::new())
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        // The scores as they came: only their proportions count, and dividing all by their sum would make the
        // smallest zero beside the largest.
        let (weights, modules) = (&request.scores, request.modules.len());
        let order = draw_without_replacement(weights, modules, &mut Random::new(request.seed));
        Ok(Allocation::of(self.limit.take(order)?, modules))
    }
}

export_plugin!(allocator Multinomial);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::conformance;
    use dynalora_plugin_api::testing::{self, Distribution, Tally};

    /// What 100,000 reallocations choose.
    fn tally(parameters: &str, scores: &[f64]) -> Tally {
        testing::tally::<Multinomial>(parameters, &testing::request(scores), 0..100_000).unwrap()
    }

    #[test]
    fn sets_are_drawn_as_often_as_they_should() {
        for (scores, k) in [
            (vec![5.0, 0.0, 2.0, 3.0], 1),
            (vec![2.0, 1.0, 1.0], 2),
            (vec![0.5, 0.3, 0.15, 0.05], 2),
            (vec![8.0, 4.0, 2.0, 1.0, 0.5, 0.25], 3),
            (vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 4),
            (vec![3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0], 6),
            // Zeros are drawn last, with equal chances; all of them are like any other equals.
            (vec![0.0, 0.0, 1.0, 0.0, 2.0], 3),
            (vec![0.0; 6], 2),
            // Extremes: rare sets, and sizes whose sum neither overflows nor vanishes.
            (vec![1000.0, 1.0, 1.0, 0.1, 1.0], 2),
            (vec![1e12, 1e-12, 2e-12, 1e-12], 2),
            (vec![f64::MAX, f64::MAX / 2.0, f64::MAX / 4.0, f64::MAX], 2),
            (vec![1e-323, 2e-323, 5e-324, 1.5e-323], 2),
            // Beside the largest the others' shares are no numbers, but they keep their proportions.
            (vec![f64::MAX, 1e-310, 3e-310, 5e-324], 2),
        ] {
            let exact = Distribution::successive(&scores, k);
            let test = exact.test(&tally(&format!(r#"{{"k": {k}}}"#), &scores));
            println!("{scores:?}, {k}: {test}");
            test.assert_fits();
        }
    }

    #[test]
    fn the_test_can_fail() {
        let scores = [0.5, 0.3, 0.15, 0.05];
        let drawn = tally(r#"{"k": 2}"#, &scores);
        for wrong in [
            [0.25; 4],
            [0.25, 0.09, 0.0225, 0.0025],
            [0.52, 0.3, 0.15, 0.05],
        ] {
            Distribution::successive(&wrong, 2)
                .test(&drawn)
                .assert_differs();
        }
    }

    #[test]
    fn a_share_of_the_parameters_is_filled_in_order_of_the_draw() {
        // Query, key, value and output have 1,024 parameters each, up and down 2,560: 9,216 in all.
        let sizes = [1024, 1024, 1024, 1024, 2560, 2560];
        let scores = [1.0, 2.0, 3.0, 1.0, 4.0, 2.0];
        let exact = Distribution::successive_while(&scores, |drawn, next| {
            drawn.is_empty() || drawn.iter().map(|i| sizes[*i]).sum::<u32>() + sizes[next] <= 4608
        });
        let drawn = tally(r#"{"k": "50%", "by": "parameters"}"#, &scores);
        exact.test(&drawn).assert_fits();
        // Passing over what does not fit would never leave one of the large alone.
        assert!(drawn.contains_key(&vec![false, false, false, false, true, false]));
    }

    #[test]
    fn conforms() {
        conformance::allocator::<Multinomial>().assert();
    }
}
