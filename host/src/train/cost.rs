//! Floating-point operations, forward and backward, with some of the modules active.

use std::collections::HashMap;

use dynalora_plugin_api::ModuleInfo;

use crate::adapter::LinearInfo;
use crate::model::EncoderConfig;

/// Operations, a multiplication and an addition being two. The head is left out: it runs once per sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Of the forward pass.
    pub forward: u64,
    /// Of the backward pass.
    pub backward: u64,
}

/// How much there is to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Sequences.
    pub sequences: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Pairs of tokens of one sequence, which is what attention works on.
    pub pairs: u64,
}

impl Sizes {
    /// Adds the sequences between consecutive `offsets`.
    pub fn add(&mut self, offsets: &[usize]) {
        for length in offsets.windows(2).map(|ends| (ends[1] - ends[0]) as u64) {
            self.sequences += 1;
            self.tokens += length;
            self.pairs += length * length;
        }
    }
}

/// For which tokens the last layer is run, of which only the first token of each sequence is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastLayer {
    /// For all of them.
    Whole,
    /// For those that are read; beside the graph, forward, for all where a scorer measures the `outputs` of
    /// its modules.
    AsRead {
        /// Whether one does.
        outputs: bool,
    },
}

/// A model with its modules.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Sizes.
    pub config: &'a EncoderConfig,
    /// All linears in forward order.
    pub linears: &'a [LinearInfo],
    /// Those that carry an adapter.
    pub modules: &'a [ModuleInfo],
    /// Whether an active module's A has a gradient, as LoRA's has.
    pub trains_a: bool,
}

/// The cost of a pass over sequences of such `sizes` without the first `skipped` layers. `active` tells which
/// modules train.
///
/// The backward pass goes from the head down to the first active module and computes what is asked of it
/// there: below that module, and beside it where nothing that trains has passed yet, there is no gradient.
pub fn cost(
    shape: Shape<'_>,
    active: &[bool],
    sizes: Sizes,
    skipped: usize,
    last: LastLayer,
) -> Cost {
    let mut walk = Walk::new(shape, active, sizes);
    let (layers, rest) = shape.linears.as_chunks::<6>();
    // Whether the hidden state depends on anything that trains.
    let mut wanted = false;
    for (index, layer) in layers.iter().enumerate().skip(skipped) {
        let last = match index + 1 == layers.len() {
            true => last,
            false => LastLayer::Whole,
        };
        wanted = walk.layer(layer, wanted, last);
    }
    for pooler in rest {
        wanted = walk.linear(pooler, wanted, sizes.sequences);
    }
    walk.cost
}

/// The operations of running the first `depth` layers forward, for all tokens.
pub fn prefix(shape: Shape<'_>, sizes: Sizes, depth: usize) -> u64 {
    let mut walk = Walk::new(shape, &vec![false; shape.modules.len()], sizes);
    let (layers, _) = shape.linears.as_chunks::<6>();
    for layer in layers.iter().take(depth) {
        walk.layer(layer, false, LastLayer::Whole);
    }
    walk.cost.forward
}

struct Walk<'a> {
    trains_a: bool,
    /// Rank of each module's side path, and whether it trains.
    pairs: HashMap<&'a str, (u64, bool)>,
    sizes: Sizes,
    /// Of attention, for one query and one key.
    attention: u64,
    cost: Cost,
}

impl<'a> Walk<'a> {
    fn new(shape: Shape<'a>, active: &[bool], sizes: Sizes) -> Self {
        let modules = shape.modules.iter().zip(active);
        Walk {
            trains_a: shape.trains_a,
            pairs: modules
                .map(|(module, active)| (module.path.as_str(), (u64::from(module.rank), *active)))
                .collect(),
            sizes,
            attention: shape.config.attention_flops(1) / shape.config.layers as u64,
            cost: Cost::default(),
        }
    }

    /// Passes a layer; `wanted` says whether its input's gradient is. The answer says so of its output's.
    fn layer(&mut self, layer: &[LinearInfo; 6], wanted: bool, last: LastLayer) -> bool {
        let [query, key, value, projection, up, down] = layer;
        let is_module = |linear: &&LinearInfo| self.pairs.contains_key(linear.path.as_str());
        let sizes = self.sizes;
        // Queries, and the rows of all that follows the attention. One query a sequence meets each of its
        // tokens once.
        let (rows, met) = match last {
            LastLayer::Whole => (sizes.tokens, sizes.pairs),
            LastLayer::AsRead { .. } => (sizes.sequences, sizes.tokens),
        };
        if last == (LastLayer::AsRead { outputs: true }) {
            let backward = self.cost.backward;
            let of_rest = [projection, up, down].iter().any(is_module);
            if of_rest || is_module(&query) {
                self.linear(query, false, sizes.tokens);
            }
            if of_rest {
                self.cost.forward += self.attention * sizes.pairs;
                for linear in [projection, up, down] {
                    self.linear(linear, false, sizes.tokens);
                }
            }
            self.cost.backward = backward;
        }
        let attended = [
            self.linear(query, wanted, rows),
            self.linear(key, wanted, sizes.tokens),
            self.linear(value, wanted, sizes.tokens),
        ];
        let attended = attended.contains(&true);
        let attention = self.attention * met;
        self.cost.forward += attention;
        // The gradients of queries, keys, values and weights, for the two products of the forward pass.
        self.cost.backward += if attended { 2 * attention } else { 0 };
        let between = self.linear(projection, attended, rows) || wanted;
        let inner = self.linear(up, between, rows);
        self.linear(down, inner, rows) || between
    }

    /// Passes a linear layer with so many rows; `wanted` says whether its input's gradient is. The answer
    /// says so of its output's.
    fn linear(&mut self, linear: &LinearInfo, wanted: bool, rows: u64) -> bool {
        let (inputs, outputs) = (linear.inputs as u64, linear.outputs as u64);
        let frozen = 2 * inputs * outputs;
        let (rank, active) = self
            .pairs
            .get(linear.path.as_str())
            .copied()
            .unwrap_or_default();
        let (a, b) = (2 * rank * inputs, 2 * rank * outputs);
        self.cost.forward += rows * (frozen + a + b);
        let of_a = active && self.trains_a;
        let mut backward = 0;
        if wanted || of_a {
            // The gradient between the two halves of the pair.
            backward += b;
        }
        if active {
            backward += b;
        }
        if of_a {
            backward += a;
        }
        if wanted {
            backward += frozen + a;
        }
        self.cost.backward += rows * backward;
        wanted || active
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ModelFolder, Pretrained};
    use crate::recipe::{AdapterConfig, ModelConfig};

    /// The tiny BERT of the fixtures: 2 layers, hidden 32, intermediate 64, and a frozen pooler.
    fn tiny() -> Pretrained {
        let folder =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-bert");
        let recipe: ModelConfig = toml::from_str("name = \"tiny-bert\"").expect("a model");
        Pretrained::open(&ModelFolder::local(&folder).expect("a fixture"), &recipe)
            .expect("the fixture is a whole model")
    }

    #[test]
    fn the_last_layer_and_what_lies_below_the_lowest_active_module_are_spared() {
        let model = tiny();
        let adapter: AdapterConfig = toml::from_str("rank = 4").expect("an adapter");
        let modules = model.modules(&adapter).expect("modules");
        let linears = model.linears();
        let shape = Shape {
            config: &model.config,
            linears: &linears,
            modules: &modules,
            trains_a: true,
        };
        // Two sequences of 3 and 5 tokens.
        let mut sizes = Sizes::default();
        sizes.add(&[0, 3, 8]);
        assert_eq!((sizes.sequences, sizes.tokens, sizes.pairs), (2, 8, 34));

        let square = 2 * 32 * 32;
        let wide = 2 * 32 * 64;
        let pair = 2 * 4 * (32 + 32);
        let attention = 4 * 32;
        let upper = [false, false, true, true];
        let read = LastLayer::AsRead { outputs: false };
        let layer = 8 * (4 * square + 2 * wide + 2 * pair) + 34 * attention;
        assert_eq!(prefix(shape, sizes, 1), layer);

        // Keys and values of all tokens, the rest of the first of each sequence; the pooler.
        let last = cost(shape, &upper, sizes, 1, read);
        let queries = 2 * (square + pair);
        let others = 8 * (2 * square + pair);
        let rest = 2 * (square + 2 * wide);
        let forward = queries + others + 8 * attention + rest + 2 * square;
        assert_eq!(last.forward, forward);
        // Nothing is wanted below: of query and value their pairs' own gradients, and those between the
        // halves; from the attention up as much as forward, attention itself twice.
        let half = pair / 2;
        let pairs = (2 + 8) * (pair + half);
        assert_eq!(last.backward, pairs + 2 * 8 * attention + rest + 2 * square);
        let whole = cost(shape, &upper, sizes, 0, read);
        assert_eq!(whole.forward, layer + last.forward);
        assert_eq!(whole.backward, last.backward);

        // A scorer that measures the queries needs all of them, and nothing on the way back.
        let measured = LastLayer::AsRead { outputs: true };
        let seen = cost(shape, &upper, sizes, 1, measured);
        assert_eq!(seen.forward, forward + 8 * (square + pair));
        assert_eq!(seen.backward, last.backward);
        let all = cost(shape, &upper, sizes, 1, LastLayer::Whole);
        assert_eq!(all.forward, layer + 2 * square);
        let frozen = cost(shape, &[false; 4], sizes, 0, read);
        assert_eq!((frozen.forward, frozen.backward), (whole.forward, 0));
    }
}
