//! The allocator `top-k`: the k modules with the largest scores.
//!
//! Dynamic Low-Rank Module Allocation, section 3.2: the active set is
//!
//! ```text
//! S = argmax over S, |S| = k, of Σ_{i∈S} ŷᵢ        ŷᵢ = yᵢ / Σⱼ yⱼ
//! ```
//!
//! Equal scores are taken in module order, from the input on. With a share `by` something else than
//! modules the best are taken up to the first that would exceed it.

use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, Budget, Limit, ModuleInfo, Plugin, Result, Start,
    export_plugin,
};

/// The plugin.
pub struct TopK {
    limit: Limit,
}

impl Plugin for TopK {
    type Parameters = Budget;

    const NAME: &'static str = "top-k";
    const DESCRIPTION: &'static str = "Activates the k modules with the largest scores.";
    const REFERENCE: &'static str = "Dynamic Low-Rank Module Allocation, section 3.2, top-k";
    const FORMULA: &'static str =
        "S = argmax over S, |S| = k, of Σ_{i∈S} ŷᵢ        ŷᵢ = yᵢ / Σⱼ yⱼ";

    fn new(budget: Budget, modules: &[ModuleInfo]) -> Result<Self> {
        Ok(TopK {
            limit: budget.resolve(modules)?,
        })
    }
}

impl Allocator for TopK {
    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.limit.start(start)?;
        Ok(Vec::new())
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let best = self.limit.take(request.ranking())?;
        Ok(Allocation::of(best, request.scores.len()))
    }
}

export_plugin!(allocator TopK);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{conformance, testing};
    use proptest::prelude::*;

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
    fn a_share_of_the_parameters_is_filled_in_order_of_rank() {
        // Query, key, value and output have 1,024 parameters each, up and down 2,560: 9,216 in all.
        let scores = [0.1, 0.6, 0.2, 0.5, 0.3, 0.9];
        let half = r#"{"k": "50%", "by": "parameters"}"#;
        let active = |parameters| {
            let allocation = testing::allocate::<TopK>(parameters, &scores, |_| {});
            allocation.unwrap().active
        };
        // 2,560 + 1,024 + 1,024 is exactly half.
        assert_eq!(active(half), [false, true, false, true, false, true]);
        // `up`, third in rank, is next but too large for 60%, and nothing is taken past it.
        let more = r#"{"k": "60%", "by": "parameters"}"#;
        assert_eq!(active(more), active(half));
        let count = testing::allocate::<TopK>(r#"{"k": 3, "by": "parameters"}"#, &scores, |_| {});
        assert!(count.unwrap_err().to_string().contains("takes a share"));
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
        prop_oneof![
            8 => scores(1..=12),
            2 => scores(13..=600),
            1 => scores(9_000..=10_000),
            1 => (score(), 1..=10_000_usize).prop_map(|(score, n)| vec![score; n]),
        ]
    }

    proptest! {
        #[test]
        fn every_module_chosen_comes_before_every_other(scores in scores(), at in 0.0..1.0_f64) {
            let k = 1 + (at * scores.len() as f64) as usize;
            let active = chosen(&k.to_string(), &scores);
            // By score, and among equals by place: the last of those chosen, the first of the others.
            let place = |module: usize| (scores[module], std::cmp::Reverse(module));
            let before = |a: &usize, b: &usize| place(*a).partial_cmp(&place(*b)).unwrap();
            let (on, off): (Vec<usize>, Vec<usize>) =
                (0..scores.len()).partition(|&module| active[module]);
            prop_assert_eq!(on.len(), k);
            let (last, first) = (on.into_iter().min_by(before), off.into_iter().max_by(before));
            if let (Some(last), Some(first)) = (last, first) {
                prop_assert!(place(last) > place(first), "{last} is chosen, {first} is not");
            }
        }
    }

    #[test]
    fn conforms() {
        conformance::allocator::<TopK>().assert();
    }
}
