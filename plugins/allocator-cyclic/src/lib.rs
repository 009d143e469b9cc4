//! The allocator `cyclic`: block after block, whatever the scores.
//!
//! BAdam (Luo et al. 2024, algorithm 1): the modules are cut into D blocks, and in each round every block is active
//! once, between two reallocations. With n the number of the reallocation, from 0:
//!
//! ```text
//! active = π_q(n mod D)        q = ⌊n / D⌋        π_q: the order of the round
//! ```
//!
//! `descending` is from the output on, as in the authors' program, `ascending` from the input on, `random` a new
//! permutation in each round. A block is k modules that follow one another in forward order, the last block what is
//! left. With `unit = "layer"` and k = 1 a block is a layer, as in the paper.
//!
//! The two fixed orders are the deterministic control for whatever chooses by scores: every module is active equally
//! often. BAdam drops the optimiser's state of a block that it leaves: `optimizer_state = "reset"`.

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Allocation, AllocationRequest, Allocator, Count, ModuleInfo, Needs, Plugin, Random, Result,
    Start, draw_without_replacement, export_plugin,
};

/// Parameters of `cyclic`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields, default)]
pub struct Parameters {
    /// How many modules are a block: a count, or a share such as "50%".
    #[schemars(extend("default" = 1))]
    k: Count,
    /// The order of the blocks.
    order: Order,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            k: Count::Exactly(1),
            order: Order::Descending,
        }
    }
}

/// The order of the blocks.
#[derive(Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", rename_all = "snake_case")]
pub enum Order {
    /// From the input on.
    Ascending,
    /// From the output on.
    #[default]
    Descending,
    /// A new permutation in each round, by the run's seed.
    Random,
}

/// The plugin.
pub struct Cyclic {
    k: usize,
    blocks: usize,
    order: Order,
    /// The run's, for permutations.
    seed: u64,
}

impl Plugin for Cyclic {
    type Parameters = Parameters;

    const NAME: &'static str = "cyclic";
    const DESCRIPTION: &'static str =
        "Activates block after block of k modules, in a fixed order or a new one in each round.";
    const REFERENCE: &'static str = "Luo et al. 2024, BAdam, algorithm 1";
    const FORMULA: &'static str =
        "active = π_q(n mod D)        q = ⌊n / D⌋        π_q: the order of the round";

    fn new(Parameters { k, order }: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let k = k.resolve(modules.len())?;
        Ok(Cyclic {
            k,
            blocks: modules.len().div_ceil(k),
            order,
            seed: 0,
        })
    }
}

impl Cyclic {
    /// `π_q(n mod D)`.
    fn block(&self, reallocation: u64) -> usize {
        let blocks = self.blocks as u64;
        let (round, place) = (reallocation / blocks, (reallocation % blocks) as usize);
        match self.order {
            Order::Ascending => place,
            Order::Descending => self.blocks - 1 - place,
            Order::Random => {
                let mut random = Random::new(self.seed ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                draw_without_replacement(&vec![1.0; self.blocks], self.blocks, &mut random)[place]
            }
        }
    }
}

impl Allocator for Cyclic {
    fn needs(&self) -> Needs {
        Needs::default().without_scores()
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.seed = start.seed;
        let blocks = self.blocks as u64;
        let turns = start.reallocations + u64::from(start.first_choice);
        Ok(match start.reallocations > 0 && turns < blocks {
            true => vec![format!(
                "not all modules will have a turn: there are {blocks} blocks of {} and {turns} choices; \
                 reallocate more often, or give a larger `k`",
                self.k
            )],
            false => Vec::new(),
        })
    }

    fn allocate(&mut self, request: &AllocationRequest) -> Result<Allocation> {
        let (first, modules) = (
            self.block(request.reallocation) * self.k,
            request.modules.len(),
        );
        Ok(Allocation::of(
            first..(first + self.k).min(modules),
            modules,
        ))
    }
}

export_plugin!(allocator Cyclic);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::conformance;
    use dynalora_plugin_api::testing::{self, ChiSquare};
    use std::collections::BTreeMap;

    /// Which of so many modules are active after each of `count` reallocations of a run with this seed.
    fn chosen(parameters: &str, modules: usize, count: u64, seed: u64) -> Vec<Vec<usize>> {
        let mut allocator = testing::allocator::<Cyclic>(parameters, modules).unwrap();
        let mut start = testing::start();
        start.seed = seed;
        allocator.start(&start).unwrap();
        let active = |reallocation| {
            let mut request = testing::request(&vec![0.0; modules]);
            request.reallocation = reallocation;
            let active = allocator.allocate(&request).unwrap().active;
            (0..modules).filter(|module| active[*module]).collect()
        };
        (0..count).map(active).collect()
    }

    #[test]
    fn blocks_come_one_after_the_other() {
        assert_eq!(
            chosen(r#"{"k": 2, "order": "ascending"}"#, 5, 4, 0),
            [vec![0, 1], vec![2, 3], vec![4], vec![0, 1]]
        );
        assert_eq!(
            chosen(r#"{"k": "40%"}"#, 5, 4, 0),
            [vec![4], vec![2, 3], vec![0, 1], vec![4]]
        );
        assert_eq!(chosen("{}", 3, 3, 0), [[2], [1], [0]]);
        assert_eq!(chosen(r#"{"k": "100%"}"#, 3, 2, 0), [[0, 1, 2], [0, 1, 2]]);
    }

    #[test]
    fn every_round_is_a_permutation_drawn_anew() {
        let (mut drawn, rounds, seeds) = (BTreeMap::new(), 4, 6000);
        for seed in 0..seeds {
            let blocks = chosen(r#"{"order": "random"}"#, 4, 4 * rounds, seed).concat();
            for round in blocks.chunks(4) {
                *drawn.entry(round.to_vec()).or_insert(0) += 1;
            }
        }
        assert!(
            drawn
                .keys()
                .all(|round| (0..4).all(|block| round.contains(&block)))
        );
        let expected = (rounds * seeds) as f64 / 24.0;
        ChiSquare::new(drawn.values().map(|count| (*count, expected))).assert_fits();
        assert_eq!(drawn.len(), 24);
        // By the run's seed and the round alone: a resumed run goes on with the same.
        let blocks = |seed| chosen(r#"{"order": "random"}"#, 12, 36, seed);
        assert_eq!(blocks(7), blocks(7));
        assert_ne!(blocks(7), blocks(8));
    }

    #[test]
    fn a_run_too_short_for_a_round_is_warned_of() {
        let warnings = |modules| {
            let mut allocator = testing::allocator::<Cyclic>("{}", modules).unwrap();
            allocator.start(&Start::periodic(1000, 50)).unwrap()
        };
        assert!(warnings(19).is_empty());
        let warned = warnings(20).concat();
        assert!(
            warned.contains("20 blocks") && warned.contains("19 choices"),
            "{warned}"
        );
    }

    #[test]
    fn conforms() {
        conformance::allocator::<Cyclic>().assert();
    }
}
