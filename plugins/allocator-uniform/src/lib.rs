//! The allocator `uniform`: k modules drawn with equal chances, whatever their scores.
//!
//! The control of Dynamic Low-Rank Module Allocation, section 3.2, that every claim is measured against:
//!
//! ```text
//! P(i | drawn so far: D) = 1 / (n − |D|)
//! ```
//!
//! Without a `[scorer]` nothing is measured for it. With a share `by` something else than modules drawing
//! goes on up to the first that would exceed it.

use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, Budget, Limit, ModuleInfo, Needs, Plugin, Random,
    Result, Start, draw_without_replacement, export_plugin,
};

/// The plugin.
pub struct Uniform {
    limit: Limit,
}

impl Plugin for Uniform {
    type Parameters = Budget;

    const NAME: &'static str = "uniform";
    const DESCRIPTION: &'static str =
        "Draws k modules without replacement, all with equal chances: the control.";
    const REFERENCE: &'static str = "Dynamic Low-Rank Module Allocation, section 3.2, uniform";
    const FORMULA: &'static str = "P(i | drawn so far: D) = 1 / (n − |D|)";

    fn new(budget: Budget, modules: &[ModuleInfo]) -> Result<Self> {
        Ok(Uniform {
            limit: budget.resolve(modules)?,
        })
    }
}

impl Allocator for Uniform {
    fn needs(&self) -> Needs {
        Needs::default().without_scores()
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.limit.start(start)?;
        Ok(Vec::new())
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let modules = request.modules.len();
        let weights = vec![1.0; modules];
        let order = draw_without_replacement(&weights, modules, &mut Random::new(request.seed));
        Ok(Allocation::of(self.limit.take(order)?, modules))
    }
}

export_plugin!(allocator Uniform);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::conformance;
    use dynalora_plugin_api::testing::{self, Distribution, Tally};

    /// What 100,000 reallocations choose.
    fn tally(parameters: &str, scores: &[f64]) -> Tally {
        testing::tally::<Uniform>(parameters, &testing::request(scores), 0..100_000).unwrap()
    }

    #[test]
    fn sets_of_one_size_are_equally_likely() {
        // The scores must not matter.
        let scores = [f64::MAX, 0.0, 1.0, 5e-324, 7.0, 1e-9, 3.0, 2.0];
        for (modules, k) in [(3, 1), (4, 2), (6, 3), (8, 4), (8, 7)] {
            let exact = Distribution::successive(&vec![1.0; modules], k);
            let drawn = tally(&format!(r#"{{"k": {k}}}"#), &scores[..modules]);
            let test = exact.test(&drawn);
            println!("{k} of {modules}: {test}");
            test.assert_fits();
        }
    }

    #[test]
    fn the_test_can_fail() {
        let drawn = tally(r#"{"k": "50%"}"#, &[1.0; 6]);
        let wrong = Distribution::successive(&[1.0, 1.0, 1.0, 1.0, 1.0, 1.05], 3);
        wrong.test(&drawn).assert_differs();
    }

    #[test]
    fn a_share_of_the_parameters_is_filled_in_order_of_the_draw() {
        // Query, key, value and output have 1,024 parameters each, up and down 2,560: 9,216 in all.
        let sizes = [1024, 1024, 1024, 1024, 2560, 2560];
        let exact = Distribution::successive_while(&[1.0; 6], |drawn, next| {
            drawn.is_empty() || drawn.iter().map(|i| sizes[*i]).sum::<u32>() + sizes[next] <= 4608
        });
        let drawn = tally(r#"{"k": "50%", "by": "parameters"}"#, &[1.0; 6]);
        exact.test(&drawn).assert_fits();
    }

    #[test]
    fn conforms() {
        conformance::allocator::<Uniform>().assert();
    }
}
