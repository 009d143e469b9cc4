//! The allocator `discounted`: k modules drawn in proportion to score per update received.
//!
//! Dynamic Low-Rank Module Allocation, section 3.2: k draws without replacement, the next one being,
//! with c the gradient updates a module has received,
//!
//! ```text
//! P(i | drawn so far: D) = wᵢ / Σ_{j∉D} wⱼ        wᵢ = ŷᵢ / (cᵢ + ε)        ŷᵢ = yᵢ / Σⱼ yⱼ
//! ```
//!
//! With a share `by` something else than modules drawing goes on up to the first that would exceed it.

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, Budget, By, Count, LedgerEntry, Limit, ModuleInfo,
    Plugin, Random, Result, Start, draw_by_logarithms, export_plugin,
};

/// Parameters of `discounted`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
pub struct Parameters {
    /// How many modules to activate: a count, or a share such as "50%".
    k: Count,
    /// What a share is a share of: "modules"; "parameters", the adapters' trainable ones; "flops" or "memory",
    /// what a step with all modules active takes above one with none. But for "modules" they are taken, in
    /// the order drawn, up to the first that would exceed the share.
    #[serde(default)]
    by: By,
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
    limit: Limit,
    epsilon: f64,
}

impl Plugin for Discounted {
    type Parameters = Parameters;

    const NAME: &'static str = "discounted";
    const DESCRIPTION: &'static str =
        "Draws k modules without replacement, each in proportion to its score per update received.";
    const REFERENCE: &'static str = "Dynamic Low-Rank Module Allocation, section 3.2, discounted";
    const FORMULA: &'static str =
        "P(i | drawn so far: D) = wᵢ / Σ_{j∉D} wⱼ        wᵢ = ŷᵢ / (cᵢ + ε)        ŷᵢ = yᵢ / Σⱼ yⱼ";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let Parameters { k, by, epsilon } = parameters;
        if !(epsilon > 0.0 && epsilon.is_finite()) {
            return Err(format!("parameter `epsilon`: found {epsilon}, expected above 0").into());
        }
        Ok(Discounted {
            limit: Budget { k, by }.resolve(modules)?,
            epsilon,
        })
    }
}

impl Allocator for Discounted {
    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.limit.start(start)?;
        Ok(Vec::new())
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        // By logarithms: a tiny ε, or a tiny score beside a huge one, has quotients that are no numbers. ŷ is y
        // but for a factor that all have in common.
        let even = request.scores.iter().all(|score| *score <= 0.0);
        let weight = |(score, entry): (&f64, &LedgerEntry)| {
            let score = if even { 1.0 } else { *score };
            score.ln() - (entry.steps_active as f64 + self.epsilon).ln()
        };
        let weights: Vec<f64> = request
            .scores
            .iter()
            .zip(&request.ledger)
            .map(weight)
            .collect();
        let modules = weights.len();
        let order = draw_by_logarithms(&weights, modules, &mut Random::new(request.seed));
        Ok(Allocation::of(self.limit.take(order)?, modules))
    }
}

export_plugin!(allocator Discounted);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::conformance;
    use dynalora_plugin_api::testing::{self, Distribution, Tally};

    /// What 100,000 reallocations choose after these updates.
    fn tally(parameters: &str, scores: &[f64], updates: &[u64]) -> Tally {
        let mut request = testing::request(scores);
        for (entry, updates) in request.ledger.iter_mut().zip(updates) {
            entry.steps_active = *updates;
            // Not what the score is divided by.
            entry.times_chosen = 7;
        }
        testing::tally::<Discounted>(parameters, &request, 0..100_000).unwrap()
    }

    /// y / (c + ε), which is ŷ / (c + ε) but for a factor that all have in common.
    fn weights(scores: &[f64], updates: &[u64], epsilon: f64) -> Vec<f64> {
        let weight = |(score, updates): (&f64, &u64)| score / (*updates as f64 + epsilon);
        scores.iter().zip(updates).map(weight).collect()
    }

    #[test]
    fn sets_are_drawn_as_often_as_they_should() {
        let scores = [6.0, 2.0, 2.0, 1.0, 4.0, 3.0];
        for (k, epsilon, updates) in [
            (1, 1e-8, [30, 10, 5, 20, 40, 10]),
            (2, 1e-8, [30, 10, 5, 20, 40, 10]),
            (3, 1.0, [0, 1, 2, 3, 4, 5]),
            (4, 1e-8, [100_000, 100, 1, 50, 50, 1_000_000]),
            (3, 0.5, [0, 0, 0, 0, 0, 0]),
            (5, 1000.0, [0, 50, 1000, 7, 3000, 20]),
            // The three without an update come first, a fourth is drawn by score per update.
            (4, 1e-8, [0, 10, 0, 20, 0, 10]),
            (2, 1e-8, [0, 10, 0, 20, 0, 10]),
        ] {
            let exact = Distribution::successive(&weights(&scores, &updates, epsilon), k);
            let parameters = format!(r#"{{"k": {k}, "epsilon": {epsilon}}}"#);
            let test = exact.test(&tally(&parameters, &scores, &updates));
            println!("{k} after {updates:?}, epsilon {epsilon}: {test}");
            test.assert_fits();
        }
    }

    #[test]
    fn a_tiny_epsilon_draws_as_any_other() {
        // Those without an update come first, in proportion to their scores; then the others, by score per
        // update. So it is with ε = 1e-12 too, but for one draw in some 10¹².
        let (scores, updates) = ([6.0, 2.0, 0.5, 1.0, 4.0, 3.0], [0, 10, 0, 20, 0, 10]);
        let exact = |k| Distribution::successive(&weights(&scores, &updates, 1e-12), k);
        for epsilon in ["1e-300", "1e-310", "5e-324", "2.2250738585072014e-308"] {
            for k in [2, 4, 5] {
                let parameters = format!(r#"{{"k": {k}, "epsilon": {epsilon}}}"#);
                exact(k)
                    .test(&tally(&parameters, &scores, &updates))
                    .assert_fits();
            }
        }
        // And huge, where updates hardly count.
        let exact = Distribution::successive(&scores, 3);
        exact
            .test(&tally(r#"{"k": 3, "epsilon": 1e308}"#, &scores, &updates))
            .assert_fits();
    }

    #[test]
    fn scores_of_any_size_keep_their_proportions() {
        let updates = [3, 1, 2, 0];
        for scores in [
            [f64::MAX, f64::MAX / 2.0, f64::MAX / 4.0, 0.0],
            [4e-320, 2e-320, 1e-320, 0.0],
        ] {
            let exact = Distribution::successive(&[4.0 / 3.0, 2.0, 0.5, 0.0], 2);
            exact
                .test(&tally(r#"{"k": 2}"#, &scores, &updates))
                .assert_fits();
        }
        // The second and the third are nothing beside the first, but not beside each other.
        let drawn = tally(
            r#"{"k": 2}"#,
            &[f64::MAX, 1e-300, 3e-300, 0.0],
            &[1, 1, 1, 0],
        );
        let exact = Distribution::successive(&[1e30, 1.0, 3.0, 0.0], 2);
        exact.test(&drawn).assert_fits();
    }

    #[test]
    fn the_test_can_fail() {
        let (scores, updates) = ([6.0, 2.0, 2.0, 1.0], [30, 10, 5, 20]);
        let drawn = tally(r#"{"k": 2}"#, &scores, &updates);
        let right = Distribution::successive(&weights(&scores, &updates, 1e-8), 2);
        right.test(&drawn).assert_fits();
        // Undiscounted, with another ε, and after one update more of the third.
        for wrong in [
            scores.to_vec(),
            weights(&scores, &updates, 1.0),
            weights(&scores, &[30, 10, 6, 20], 1e-8),
        ] {
            Distribution::successive(&wrong, 2)
                .test(&drawn)
                .assert_differs();
        }
    }

    #[test]
    fn a_module_without_updates_comes_first() {
        let drawn = tally(r#"{"k": 1}"#, &[1.0, 0.01, 0.0], &[1, 0, 0]);
        // Expected once in 10 million times: the score of the first at c = 1 against 0.01 / 1e-8.
        assert!(drawn[&vec![false, true, false]] >= 99_999, "{drawn:?}");
    }

    #[test]
    fn a_share_of_the_parameters_is_filled_in_order_of_the_draw() {
        // Query, key, value and output have 1,024 parameters each, up and down 2,560: 9,216 in all.
        let sizes = [1024, 1024, 1024, 1024, 2560, 2560];
        let (scores, updates) = ([6.0, 2.0, 2.0, 1.0, 4.0, 3.0], [30, 10, 5, 20, 40, 10]);
        let exact =
            Distribution::successive_while(&weights(&scores, &updates, 1e-8), |drawn, next| {
                drawn.is_empty()
                    || drawn.iter().map(|i| sizes[*i]).sum::<u32>() + sizes[next] <= 4608
            });
        let drawn = tally(r#"{"k": "50%", "by": "parameters"}"#, &scores, &updates);
        exact.test(&drawn).assert_fits();
    }

    #[test]
    fn conforms() {
        conformance::allocator::<Discounted>().assert();
    }
}
