//! Floating-point operations of one token, forward and backward, with some of the modules active.

use std::collections::HashMap;

use dynalora_plugin_api::ModuleInfo;

use crate::adapter::{Config, LinearInfo};
use crate::model::EncoderConfig;

/// Operations of one token. The head is left out: it runs once per sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Of the forward pass.
    pub forward: u64,
    /// Of the backward pass.
    pub backward: u64,
}

/// The cost of a token of a sequence of `length` tokens. `linears` are all of the model's in forward order,
/// `modules` those that carry an adapter (of the kind that `adapter` says), `active` which of these train.
///
/// The backward pass goes from the head down to the first active module and computes what is asked of it
/// there: below that module, and beside it where nothing that trains has passed yet, there is no gradient.
///
/// The last layer is counted for all tokens, as steps in which a scorer measures it run it; the others spare
/// all but the first token's queries, projection and feed-forward there.
pub fn cost(
    config: &EncoderConfig,
    linears: &[LinearInfo],
    adapter: &Config,
    modules: &[ModuleInfo],
    active: &[bool],
    length: usize,
) -> Cost {
    let modules = modules.iter().zip(active);
    let mut walk = Walk {
        trains_a: adapter.trains_a(),
        pairs: modules
            .map(|(module, active)| (module.path.as_str(), (u64::from(module.rank), *active)))
            .collect(),
        cost: Cost::default(),
    };
    let attention = config.attention_flops(length) / config.layers as u64;
    let (layers, rest) = linears.as_chunks::<6>();
    // Whether the hidden state depends on anything that trains.
    let mut wanted = false;
    for [query, key, value, projection, up, down] in layers {
        let attended = [query, key, value].map(|linear| walk.linear(linear, wanted));
        let attended = attended.contains(&true);
        walk.cost.forward += attention;
        // The gradients of queries, keys, values and weights, for the two products of the forward pass.
        walk.cost.backward += if attended { 2 * attention } else { 0 };
        wanted |= walk.linear(projection, attended);
        let inner = walk.linear(up, wanted);
        wanted |= walk.linear(down, inner);
    }
    let tokens = walk.cost;
    // The pooler meets one token of each sequence.
    for pooler in rest {
        wanted = walk.linear(pooler, wanted);
    }
    let share = |whole: u64, tokens: u64| tokens + (whole - tokens) / length as u64;
    Cost {
        forward: share(walk.cost.forward, tokens.forward),
        backward: share(walk.cost.backward, tokens.backward),
    }
}

struct Walk<'a> {
    /// Whether an active module's A has a gradient.
    trains_a: bool,
    /// Rank of each module's side path, and whether it trains.
    pairs: HashMap<&'a str, (u64, bool)>,
    cost: Cost,
}

impl Walk<'_> {
    /// Passes a linear layer; `wanted` says whether its input's gradient is. The answer says so of its output's.
    fn linear(&mut self, linear: &LinearInfo, wanted: bool) -> bool {
        let (inputs, outputs) = (linear.inputs as u64, linear.outputs as u64);
        let frozen = 2 * inputs * outputs;
        let (rank, active) = self
            .pairs
            .get(linear.path.as_str())
            .copied()
            .unwrap_or_default();
        let (a, b) = (2 * rank * inputs, 2 * rank * outputs);
        self.cost.forward += frozen + a + b;
        let of_a = active && self.trains_a;
        if wanted || of_a {
            // The gradient between the two halves of the pair.
            self.cost.backward += b;
        }
        if active {
            self.cost.backward += b;
        }
        if of_a {
            self.cost.backward += a;
        }
        if wanted {
            self.cost.backward += frozen + a;
        }
        wanted || active
    }
}
