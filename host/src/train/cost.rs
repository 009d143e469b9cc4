//! What a step costs: the plugin API's [`CostModel`] of a model with its modules.
//!
//! The same model counts the operations that a run records, is shown by `dynalora plan`, and is what plugins are
//! sent. Operations of a head that runs once per sequence are left out, and so is the gradient of a head's own weights.

use dynalora_plugin_api::{Amount, CostModel, ModuleInfo, Operation, SidePath};
pub use dynalora_plugin_api::{Cost, Sizes};

use crate::adapter::{Config, LinearInfo};
use crate::data::{Encoded, EpochPlan};
use crate::model::Architecture;
use crate::model::architecture::{Order, Reads, Rotary};
use crate::recipe::{Problem, TrainConfig};

/// Bytes of a value.
const BYTES: u64 = 4;

/// For which tokens the last layer is run, of which only one token of each sequence is read.
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

/// What a head counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// Over one token of each sequence: nothing.
    Sequence,
    /// The frozen one that predicts tokens. It counts for every token, and so does the last layer.
    Language,
    /// One that gives words one of so many classes, and trains. It counts for every token, though it runs only for those
    /// that stand for a word; and so does the last layer, which runs for all.
    Words(usize),
}

impl HeadKind {
    /// That of a problem, with so many logits.
    pub fn of(problem: Problem, outputs: usize) -> Self {
        match problem {
            Problem::Classification | Problem::Regression => HeadKind::Sequence,
            Problem::CausalLm => HeadKind::Language,
            Problem::TokenClassification => HeadKind::Words(outputs),
        }
    }
}

/// A model with its modules.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Sizes.
    pub config: &'a Architecture,
    /// All tables of embeddings and linears in forward order.
    pub linears: &'a [LinearInfo],
    /// Those that carry an adapter.
    pub modules: &'a [ModuleInfo],
    /// Their method.
    pub adapter: &'a Config,
    /// The head on top.
    pub head: HeadKind,
    /// Whether only what goes into a layer is kept, and the layer run once more on the way back: all but the last.
    pub checkpointing: bool,
}

/// What steps of a run compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// In all of these steps together.
    pub sizes: Sizes,
    /// Batches in them.
    pub batches: u64,
    /// How many they are.
    pub steps: u64,
}

impl Steps {
    /// Those of an epoch over `data`.
    pub fn of(data: &Encoded, train: &TrainConfig, seed: u64) -> Self {
        let mut sizes = Sizes::default();
        sizes.add(&data.offsets);
        let batches = EpochPlan::new(data, train, seed, 0).batches().len();
        Steps {
            sizes,
            batches: batches as u64,
            steps: batches.div_ceil(train.gradient_accumulation) as u64,
        }
    }

    /// One of `accumulation` batches of so many `tokens`, in sequences of `length` tokens.
    pub fn longest(tokens: usize, length: usize, accumulation: usize) -> Self {
        let (tokens, length) = (tokens as u64, length.max(1) as u64);
        let batches = accumulation as u64;
        Steps {
            sizes: Sizes {
                sequences: batches * tokens.div_ceil(length),
                tokens: batches * tokens,
                pairs: batches * tokens * length,
            },
            batches,
            steps: 1,
        }
    }
}

impl Shape<'_> {
    /// What choices of its modules cost in such `steps`, with so many values in the head. What measurements cost
    /// beside is not in it: it does not depend on the choice.
    pub fn costs(self, steps: Steps, head_parameters: u64) -> CostModel {
        let mut costs = self.model(LastLayer::AsRead { outputs: false });
        costs.head_parameters = head_parameters;
        costs.sizes = steps.sizes;
        costs.batches = steps.batches;
        costs.steps = steps.steps;
        costs
    }

    /// The operations, forward and backward, and what the CPU's kernels keep between the two.
    pub fn model(self, last: LastLayer) -> CostModel {
        let mut builder = Builder {
            shape: self,
            costs: CostModel::default(),
            angles: [None; 2],
        };
        builder.turn();
        let costs = &mut builder.costs;
        costs.parameters = self
            .modules
            .iter()
            .map(|module| module.parameters)
            .collect();
        costs.gradient_bytes = BYTES;
        costs.moment_bytes = 2 * BYTES;
        let of_all = matches!(self.config.head.reads, Reads::Mean { .. });
        let last = match self.head {
            HeadKind::Language | HeadKind::Words(_) => LastLayer::Whole,
            HeadKind::Sequence if of_all => LastLayer::Whole,
            HeadKind::Sequence => last,
        };
        let per_layer = self.config.block.linears().count();
        let (tables, linears) = self.linears.split_at(self.config.tables().count());
        let (layers, rest) = linears.split_at(per_layer * self.config.layers);
        let mut x = builder.embeddings(tables);
        if let Some(patches) = self.config.patches() {
            // Run with the first layer, or kept with what that gives.
            let mut projection = Builder::operation(Some(0), &[], x);
            let values = self.config.hidden * patches.values() * patches.count();
            projection.forward = Amount::per_sequence(2 * values as u64);
            builder.costs.operations.push(projection);
        }
        for (index, layer) in layers.chunks(per_layer).enumerate() {
            let layer = builder.parts(layer);
            let (from, first) = (x, builder.costs.operations.len());
            x = match last {
                LastLayer::AsRead { outputs } if index + 1 == self.config.layers => {
                    builder.last_layer(index as u32, layer, x, outputs)
                }
                _ => builder.layer(index as u32, layer, x),
            };
            if self.checkpointing && index + 1 < self.config.layers {
                builder.run_twice(index as u32, from, first);
            }
        }
        let rows: Rows = match last {
            LastLayer::AsRead { .. } => Amount::per_sequence,
            LastLayer::Whole => Amount::per_token,
        };
        if self.config.final_norm.is_some() {
            x = builder.norm(None, x, rows);
        }
        for pooler in rest {
            x = builder.linear(None, x, &[pooler], Amount::per_sequence);
        }
        match self.head {
            HeadKind::Sequence => {}
            HeadKind::Language => {
                let head = LinearInfo {
                    path: String::new(),
                    layer: None,
                    inputs: self.config.hidden,
                    outputs: self.config.vocabulary(),
                    bias: false,
                    is_embedding: false,
                };
                builder.linear(None, x, &[&head], Amount::per_token);
            }
            HeadKind::Words(classes) => {
                if self.config.head.dense.is_some() {
                    let y = builder.value(Amount::per_token, self.config.hidden);
                    let mut dense = Builder::operation(None, &[x], y);
                    dense.forward = Amount::per_token(2 * (self.config.hidden.pow(2)) as u64);
                    dense.backward = dense.forward;
                    dense.keeps = vec![x];
                    builder.costs.operations.push(dense);
                    x = y;
                }
                let logits = builder.value(Amount::per_token, classes);
                let mut head = Builder::operation(None, &[x], logits);
                head.forward = Amount::per_token(2 * (self.config.hidden * classes) as u64);
                head.backward = head.forward;
                head.keeps = vec![x];
                builder.costs.operations.push(head);
            }
        }
        builder.costs
    }
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
    shape.model(last).at(active, sizes, skipped as u32..)
}

/// The operations of running the first `depth` layers forward, for all tokens.
pub fn prefix(shape: Shape<'_>, sizes: Sizes, depth: usize) -> u64 {
    let whole = shape.model(LastLayer::Whole);
    whole.at(&[], sizes, ..depth as u32).forward
}

/// Bytes that one layer with all of its modules active keeps for its way back, of sequences of such `sizes`, beside its
/// input: what gradient checkpointing, which keeps that, needs for a moment.
pub fn kept_by_a_layer(shape: Shape<'_>, sizes: Sizes) -> u64 {
    let whole = Shape {
        checkpointing: false,
        ..shape
    };
    let active = vec![true; shape.modules.len()];
    let model = whole.model(LastLayer::Whole);
    let kept = (0..shape.config.layers as u32).map(|layer| {
        let own = || {
            let operations = model.operations.iter();
            operations.filter(move |operation| operation.layer == Some(layer))
        };
        let keeps = |value| {
            own().any(|operation| {
                let beside = operation.modules.iter().flat_map(|path| &path.keeps);
                operation
                    .keeps
                    .iter()
                    .chain(beside)
                    .any(|kept| *kept == value)
            })
        };
        let input = own().next().and_then(|first| first.reads.first().copied());
        let input = input.filter(|input| keeps(*input));
        let input = input.map_or(0, |input| model.values[input as usize].at(sizes, 1));
        model.at(&active, sizes, layer..=layer).activations - input
    });
    kept.max().unwrap_or(0)
}

/// The models that a run's steps are counted by.
pub struct Costs {
    whole: CostModel,
    read: CostModel,
    measured: CostModel,
}

impl Costs {
    /// Of this model.
    pub fn of(shape: Shape<'_>) -> Self {
        let read = |outputs| shape.model(LastLayer::AsRead { outputs });
        Costs {
            whole: shape.model(LastLayer::Whole),
            read: read(false),
            measured: read(true),
        }
    }

    /// The operations of a step: `tracked` modules have gradients, `outputs` says whether any output is measured,
    /// and the first `depth` layers were run for the sequences `computed` alone.
    pub fn step(
        &self,
        tracked: &[bool],
        sizes: Sizes,
        outputs: bool,
        depth: usize,
        computed: Sizes,
    ) -> u64 {
        let model = match outputs {
            true => &self.measured,
            false => &self.read,
        };
        let depth = depth as u32;
        let prefix = self.whole.at(&[], computed, ..depth);
        model.at(tracked, sizes, depth..).flops() + prefix.forward
    }

    /// The operations of the examples' own gradients of the adapters of `tracked` modules, whose squares are measured:
    /// once more those of the gradients of the whole batch.
    pub fn fisher(&self, tracked: &[bool], sizes: Sizes) -> u64 {
        let operations = self.read.operations.iter();
        let paths = operations.flat_map(|operation| &operation.modules);
        let paths = paths.filter(|path| tracked[path.module as usize]);
        paths
            .map(|path| (path.between + path.a + path.b).at(sizes, 1))
            .sum()
    }
}

/// What these linear layers give, side by side.
fn columns(linears: &[&LinearInfo]) -> usize {
    linears.iter().map(|linear| linear.outputs).sum()
}

/// How an amount of each row grows: with the tokens, or with the sequences.
type Rows = fn(u64) -> Amount;

struct Builder<'a> {
    shape: Shape<'a>,
    costs: CostModel,
    /// By how much heads are turned: in most layers, and where attention is local.
    angles: [Option<u32>; 2],
}

impl Builder<'_> {
    /// A new value of so many features a row.
    fn value(&mut self, rows: Rows, features: usize) -> u32 {
        self.costs.values.push(rows(BYTES * features as u64));
        self.costs.values.len() as u32 - 1
    }

    /// Makes the cosines and sines by which heads are turned, which all layers of a kind share.
    fn turn(&mut self) {
        let attention = &self.shape.config.block.attention;
        let angles = |rotary: &Rotary| 2 * rotary.frequencies.len();
        let everywhere = attention.rotary.as_ref().map(angles);
        let near = attention.local.as_ref();
        let near = near.and_then(|local| local.rotary.as_ref()).map(angles);
        let [everywhere, near] = [everywhere, near]
            .map(|features| features.map(|features| self.value(Amount::per_token, features)));
        self.angles = [everywhere, near.or(everywhere)];
    }

    /// The heads of queries and keys normalised, and turned by the angles of all tokens.
    fn placed(&mut self, index: u32, x: u32, columns: usize) -> u32 {
        let values = self.shape.config.block.attention.shape.pair_width();
        let x = self.head_norms(index, x, [columns - values, values], Amount::per_token);
        let attention = &self.shape.config.block.attention;
        let local = attention.local_in(index as usize).is_some();
        let Some(angles) = self.angles[usize::from(local)] else {
            return x;
        };
        let y = self.value(Amount::per_token, columns);
        let mut turn = Self::operation(Some(index), &[x], y);
        turn.keeps = vec![angles];
        self.costs.operations.push(turn);
        y
    }

    /// An operation that reads these values and writes one, and counts for nothing yet.
    fn operation(layer: Option<u32>, reads: &[u32], writes: u32) -> Operation {
        let mut operation = Operation::default();
        operation.layer = layer;
        operation.reads = reads.to_vec();
        operation.writes = Some(writes);
        operation
    }

    /// Linear layers that read `x` side by side, of which so many rows are run: what they write.
    fn linear(&mut self, layer: Option<u32>, x: u32, linears: &[&LinearInfo], rows: Rows) -> u32 {
        let y = self.value(rows, columns(linears));
        let mut operation = Self::operation(layer, &[x], y);
        for linear in linears {
            let frozen = (linear.inputs * linear.outputs) as u64;
            operation.forward = operation.forward + rows(2 * frozen);
            operation.backward = operation.backward + rows(2 * frozen);
            operation.modules.extend(self.side_path(linear, x, rows));
        }
        let modules: Vec<u32> = operation.modules.iter().map(|path| path.module).collect();
        self.costs.operations.push(operation);
        match modules.is_empty()
            || !(self.shape.adapter.use_dora() || self.shape.adapter.trains_bias())
        {
            true => y,
            false => self.per_column(layer, y, linears, rows),
        }
    }

    /// What DoRA and biases that train make of the values `x` that linear layers have written side by side.
    fn per_column(
        &mut self,
        layer: Option<u32>,
        x: u32,
        linears: &[&LinearInfo],
        rows: Rows,
    ) -> u32 {
        let adapter = self.shape.adapter;
        let y = self.value(rows, columns(linears));
        let mut operation = Self::operation(layer, &[x], y);
        for linear in linears {
            let module = self.module(linear);
            let Some(module) = module.filter(|_| adapter.use_dora() || linear.bias) else {
                continue;
            };
            let mut path = SidePath::default();
            path.module = module as u32;
            // The gradient of m is the product with them.
            path.trains_a = adapter.use_dora();
            if adapter.use_dora() {
                path.keeps = vec![x];
                // The norms, anew after each update, for which A goes through the layer.
                let rank = adapter.pairs() * self.shape.modules[module].rank;
                let frozen = (linear.inputs * linear.outputs) as u64;
                path.b = Amount::once(2 * u64::from(rank) * frozen);
            }
            operation.modules.push(path);
        }
        self.costs.operations.push(operation);
        y
    }

    /// The hidden states that tokens start with. Rows are looked up, which counts for nothing; beside tables that are
    /// modules there are products with B, and A's gradient is a sum.
    fn embeddings(&mut self, tables: &[LinearInfo]) -> u32 {
        let hidden = self.shape.config.hidden;
        let mut x = self.value(Amount::per_token, hidden);
        let paths = tables.iter().filter_map(|table| self.table(table));
        let paths: Vec<SidePath> = paths.collect();
        if paths.is_empty() {
            return x;
        }
        // Run with the first layer, or kept with what that gives.
        let mut looked = Self::operation(Some(0), &[], x);
        looked.modules = paths;
        self.costs.operations.push(looked);
        if self.shape.adapter.use_dora() {
            x = self.multiplied_tables(tables, x);
        }
        match self.shape.config.embeddings.norm() {
            Some(_) => self.norm(Some(0), x, Amount::per_token),
            None => x,
        }
    }

    /// The side path of a table of embeddings, if it is a module.
    fn table(&self, table: &LinearInfo) -> Option<SidePath> {
        let module = self.module(table)?;
        let rank = u64::from(self.shape.modules[module].rank);
        let product = Amount::per_token(2 * rank * table.outputs as u64);
        let mut path = SidePath::default();
        path.module = module as u32;
        (path.forward, path.between, path.b) = (product, product, product);
        path.trains_a = true;
        // The rows of A, and which they are.
        path.saved = Amount::per_token(BYTES * rank + 8);
        Some(path)
    }

    /// What DoRA makes of what is looked up in tables.
    fn multiplied_tables(&mut self, tables: &[LinearInfo], x: u32) -> u32 {
        let hidden = self.shape.config.hidden;
        let y = self.value(Amount::per_token, hidden);
        let mut operation = Self::operation(Some(0), &[x], y);
        for table in tables {
            let Some(module) = self.module(table) else {
                continue;
            };
            let mut path = SidePath::default();
            path.module = module as u32;
            path.trains_a = true;
            path.saved = Amount::per_token(BYTES * hidden as u64);
            // The norms, anew after each update, for which A goes through the table.
            let rank = u64::from(self.shape.modules[module].rank);
            path.b = Amount::once(2 * rank * (table.inputs * table.outputs) as u64);
            operation.modules.push(path);
        }
        self.costs.operations.push(operation);
        y
    }

    /// Which module a layer is.
    fn module(&self, linear: &LinearInfo) -> Option<usize> {
        let mut modules = self.shape.modules.iter();
        modules.position(|module| module.path == linear.path)
    }

    /// The side path of a linear layer, if it is a module.
    fn side_path(&self, linear: &LinearInfo, x: u32, rows: Rows) -> Option<SidePath> {
        let module = self.module(linear)?;
        let adapter = self.shape.adapter;
        let pairs = u64::from(adapter.pairs());
        let rank = pairs * u64::from(self.shape.modules[module].rank);
        let [a, b] = [linear.inputs, linear.outputs].map(|width| rows(2 * rank * width as u64));
        let mut path = SidePath::default();
        path.module = module as u32;
        path.forward = a + b;
        path.between = b;
        path.input = a;
        path.b = b;
        path.trains_a = adapter.trains_a();
        // x·Aᵀ, whether or not it is this module that trains.
        path.saved = rows(BYTES * rank);
        // Where DoRA drops out.
        let again = (adapter.products() - 1) * 2 * (linear.inputs * linear.outputs) as u64;
        path.forward = path.forward + rows(again);
        path.input = path.input + rows(again);
        if adapter.trains_a() {
            path.a = a;
            path.keeps = vec![x];
            if pairs > 1 {
                // PiSSA's A, B and what is between them and their start.
                let widths = (linear.inputs + linear.outputs) as u64;
                path.saved = path.saved + Amount::once(BYTES * rank * widths);
            }
        } else {
            // VeRA's Λ_b·B·Λ_d.
            path.saved = path.saved + Amount::once(BYTES * rank * linear.outputs as u64);
        }
        Some(path)
    }

    /// The linear layers of a transformer layer by what they are.
    fn parts<'l>(&self, layer: &'l [LinearInfo]) -> LayerParts<'l> {
        let block = &self.shape.config.block;
        let (projections, rest) = layer.split_at(block.attention.projections.len());
        let (output, rest) = rest.split_at(1);
        let (inner, down) = rest.split_at(block.feed_forward.inner.len());
        LayerParts {
            projections,
            output: &output[0],
            inner,
            down: &down[0],
        }
    }

    /// Makes the operations from number `first` on, a layer's, keep nothing but what goes into it, `x`, and lets them be
    /// done once more. What they keep for a moment meanwhile, [`kept_by_a_layer`], is not in it.
    fn run_twice(&mut self, layer: u32, x: u32, first: usize) {
        let mut again = Operation::default();
        (again.layer, again.reads, again.keeps) = (Some(layer), vec![x], vec![x]);
        for operation in &mut self.costs.operations[first..] {
            again.again = again.again + operation.forward;
            (operation.keeps, operation.saved) = (Vec::new(), Amount::default());
            for path in &mut operation.modules {
                again.again = again.again + path.forward;
                (path.keeps, path.saved) = (Vec::new(), Amount::default());
                let mut part = SidePath::default();
                part.module = path.module;
                again.modules.push(part);
            }
        }
        self.costs.operations.insert(first, again);
    }

    /// A layer in which every token's query meets the keys.
    fn layer(&mut self, index: u32, layer: LayerParts<'_>, x: u32) -> u32 {
        let read = self.read(index, x);
        let projections: Vec<&LinearInfo> = layer.projections.iter().collect();
        let joint = self.linear(Some(index), read, &projections, Amount::per_token);
        let joint = self.placed(index, joint, columns(&projections));
        let met = self.attention();
        self.finish(index, layer, &[joint], x, Amount::per_token, met)
    }

    /// The last one, of which one token of each sequence is read: its query meets each token once. Where
    /// `outputs` are measured, its other linears run for all tokens beside the graph.
    fn last_layer(&mut self, index: u32, layer: LayerParts<'_>, x: u32, outputs: bool) -> u32 {
        let read = self.read(index, x);
        let (query, pairs) = match layer.projections {
            [query, pairs @ ..] if !pairs.is_empty() => (Some(query), pairs),
            joint => (None, joint),
        };
        let of_all: Vec<&LinearInfo> = pairs.iter().collect();
        let pairs = self.linear(Some(index), read, &of_all, Amount::per_token);
        let pairs = self.placed(index, pairs, columns(&of_all));
        if outputs {
            self.measured(index, query, layer);
        }
        let picked = self.picked(index, x);
        let queries = query.map(|query| {
            // Without a norm in between the attention reads the picked tokens themselves.
            let read = match read == x {
                true => picked,
                false => self.picked(index, read),
            };
            let queries = self.linear(Some(index), read, &[query], Amount::per_sequence);
            self.head_norms(index, queries, [query.outputs, 0], Amount::per_sequence)
        });
        let projected: Vec<u32> = queries.into_iter().chain([pairs]).collect();
        let mut met = Amount::per_token(4 * self.attention_width());
        if self.shape.config.block.attention.relative.is_some() {
            // Every key meets the positions that there are between it and the query.
            met = met + Amount::per_pair(2 * self.attention_width());
        }
        self.finish(index, layer, &projected, picked, Amount::per_sequence, met)
    }

    /// One token of each sequence of `x`.
    fn picked(&mut self, index: u32, x: u32) -> u32 {
        let picked = self.value(Amount::per_sequence, self.shape.config.hidden);
        let select = Self::operation(Some(index), &[x], picked);
        self.costs.operations.push(select);
        picked
    }

    /// What the attention reads of a layer's input.
    fn read(&mut self, index: u32, x: u32) -> u32 {
        let block = &self.shape.config.block;
        match block.order {
            Order::PreNorm if !(block.first_bare && index == 0) => {
                self.norm(Some(index), x, Amount::per_token)
            }
            _ => x,
        }
    }

    /// What a sublayer gives, as it is added to the residual.
    fn given(&mut self, layer: Option<u32>, x: u32, rows: Rows) -> u32 {
        match self.shape.config.block.output_norms {
            Some(_) => self.norm(layer, x, rows),
            None => x,
        }
    }

    /// The norms of the heads in so many columns, which keep what they read; others pass.
    fn head_norms(&mut self, index: u32, x: u32, [normed, others]: [usize; 2], rows: Rows) -> u32 {
        if self.shape.config.block.attention.head_norms.is_none() {
            return x;
        }
        let y = self.value(rows, normed + others);
        let mut norm = Self::operation(Some(index), &[x], y);
        norm.saved = rows(BYTES * normed as u64);
        self.costs.operations.push(norm);
        y
    }

    /// What is run forward for all tokens, so that its outputs can be measured.
    fn measured(&mut self, index: u32, query: Option<&LinearInfo>, layer: LayerParts<'_>) {
        let forward = |linear: &LinearInfo| {
            let path = self.side_path(linear, 0, Amount::per_token);
            let frozen = Amount::per_token(2 * (linear.inputs * linear.outputs) as u64);
            let side = path.as_ref().map_or(Amount::default(), |path| path.forward);
            (frozen + side, path.is_some())
        };
        let rest = [layer.output, layer.down].into_iter().chain(layer.inner);
        let of_rest: Vec<_> = rest.map(forward).collect();
        let of_query = query.map(forward);
        let mut operation = Operation::default();
        operation.layer = Some(index);
        if of_rest.iter().any(|(_, is_module)| *is_module) {
            let all = of_rest.iter().chain(&of_query).map(|(forward, _)| *forward);
            operation.forward = all.fold(self.attention(), |sum, more| sum + more);
        } else if let Some((forward, true)) = of_query {
            operation.forward = forward;
        }
        self.costs.operations.push(operation);
    }

    /// From what the attention reads to the layer's output, of which each row's input is `residual`. What there
    /// are rows of, and what their queries cost where they meet keys.
    fn finish(
        &mut self,
        index: u32,
        parts: LayerParts<'_>,
        projected: &[u32],
        residual: u32,
        rows: Rows,
        met: Amount,
    ) -> u32 {
        let layer = Some(index);
        let order = self.shape.config.block.order;
        let attended = self.value(rows, parts.output.inputs);
        let mut attention = Self::operation(layer, projected, attended);
        attention.forward = met;
        // The gradients of queries, keys, values and weights, for the two products of the forward pass.
        attention.backward = met + met;
        if let Some(relative) = &self.shape.config.block.attention.relative {
            // Each position's key and query, of which nothing goes further back.
            let (rows, width) = (relative.table.entries as u64, self.attention_width());
            let products = 4 * rows * width * self.shape.config.hidden as u64;
            attention.forward = attention.forward + Amount::once(products);
            attention.saved = Amount::once(BYTES * rows * 2 * width);
        }
        attention.keeps = projected.to_vec();
        self.costs.operations.push(attention);
        let x = self.linear(layer, attended, &[parts.output], rows);
        let (x, read) = match order {
            Order::PostNorm => {
                let x = self.add_norm(layer, x, residual, rows);
                (x, x)
            }
            Order::PreNorm => {
                let x = self.given(layer, x, rows);
                let x = self.sum(layer, x, residual, rows);
                (x, self.norm(layer, x, rows))
            }
        };
        let inner: Vec<&LinearInfo> = parts.inner.iter().collect();
        let inner = self.linear(layer, read, &inner, rows);
        let activated = self.value(rows, parts.down.inputs);
        let mut activation = Self::operation(layer, &[inner], activated);
        activation.keeps = vec![inner];
        self.costs.operations.push(activation);
        let down = self.linear(layer, activated, &[parts.down], rows);
        match order {
            Order::PostNorm => self.add_norm(layer, down, x, rows),
            Order::PreNorm => {
                let down = self.given(layer, down, rows);
                self.sum(layer, down, x, rows)
            }
        }
    }

    /// The normalised sum of two values, which is kept before it is normalised.
    fn add_norm(&mut self, layer: Option<u32>, x: u32, residual: u32, rows: Rows) -> u32 {
        let hidden = self.shape.config.hidden;
        let y = self.value(rows, hidden);
        let mut norm = Self::operation(layer, &[x, residual], y);
        norm.saved = rows(BYTES * hidden as u64);
        self.costs.operations.push(norm);
        y
    }

    /// A value normalised, which is kept as it was.
    fn norm(&mut self, layer: Option<u32>, x: u32, rows: Rows) -> u32 {
        let y = self.value(rows, self.shape.config.hidden);
        let mut norm = Self::operation(layer, &[x], y);
        norm.keeps = vec![x];
        self.costs.operations.push(norm);
        y
    }

    /// The sum of two values.
    fn sum(&mut self, layer: Option<u32>, x: u32, residual: u32, rows: Rows) -> u32 {
        let y = self.value(rows, self.shape.config.hidden);
        let sum = Self::operation(layer, &[x, residual], y);
        self.costs.operations.push(sum);
        y
    }

    /// Features of a token's queries.
    fn attention_width(&self) -> u64 {
        self.shape.config.block.attention.shape.query_width() as u64
    }

    /// Operations of attention (`QKᵀ` and `PV`): every query meets every key, or those up to its own.
    fn attention(&self) -> Amount {
        // With relative positions, of which there are about two for each token, both sides meet them too.
        let width = match self.shape.config.block.attention.relative {
            Some(_) => 3 * self.attention_width(),
            None => self.attention_width(),
        };
        match self.shape.config.block.attention.shape.causal {
            false => Amount::per_pair(4 * width),
            // Of n² pairs, (n² + n) / 2.
            true => Amount::per_pair(2 * width) + Amount::per_token(2 * width),
        }
    }
}

/// The linear layers of a transformer layer.
#[derive(Clone, Copy)]
struct LayerParts<'a> {
    projections: &'a [LinearInfo],
    output: &'a LinearInfo,
    inner: &'a [LinearInfo],
    down: &'a LinearInfo,
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
    fn a_decoder_that_predicts_tokens_runs_all_layers_and_its_head_for_all_of_them() {
        let folder =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny-llama");
        let recipe: ModelConfig = toml::from_str("name = \"tiny-llama\"").expect("a model");
        let folder = ModelFolder::local(&folder).expect("a fixture");
        let model = Pretrained::open(&folder, &recipe).expect("a whole model");
        let adapter = "rank = 4\ntargets = [\"v_proj\"]";
        let adapter: AdapterConfig = toml::from_str(adapter).expect("an adapter");
        let modules = model.adapted(&adapter).expect("modules").modules;
        let linears = model.linears();
        let lora = Config::from(&adapter);
        let shape = |head| Shape {
            config: &model.config,
            linears: &linears,
            modules: &modules,
            adapter: &lora,
            head,
            checkpointing: false,
        };
        let mut sizes = Sizes::default();
        sizes.add(&[0, 3, 8]);
        // Heads of 8, six of queries and two of keys and values; 48 features, 72 inside, 320 tokens.
        let pair = 2 * 4 * (48 + 16);
        let weights = 2 * (48 * 48 + 2 * 48 * 16 + 48 * 48 + 3 * 48 * 72);
        // Of 3² + 5² pairs 6 + 15 are seen.
        let attention = 4 * 48 * (6 + 15);
        let layer = 8 * (weights + pair) + attention;
        let head = 8 * 2 * 48 * 320;
        let read = LastLayer::AsRead { outputs: false };
        let upper = [false, true];
        let found = cost(shape(HeadKind::Language), &upper, sizes, 0, read);
        assert_eq!(found.forward, 2 * layer + head);
        // From the head down to the upper layer's values: what lies beside and below them has no gradient.
        let above = 8 * 2 * (48 * 48 + 3 * 48 * 72);
        let own = 8 * (pair + 2 * 4 * 16);
        assert_eq!(found.backward, head + above + 2 * attention + own);
        // A head that gives tokens one of five classes.
        let found = cost(shape(HeadKind::Words(5)), &upper, sizes, 0, read);
        let of_words = 8 * 2 * 48 * 5;
        assert_eq!(found.forward, 2 * layer + of_words);
        assert_eq!(found.backward, of_words + above + 2 * attention + own);
        // Under a sequence's head the last layer runs for one token of each.
        let found = cost(shape(HeadKind::Sequence), &upper, sizes, 1, read);
        let one = 2 * 2 * (48 * 48 + 48 * 48 + 3 * 48 * 72);
        let of_all = 8 * (2 * 2 * 48 * 16 + pair);
        assert_eq!(found.forward, of_all + one + 4 * 48 * 8);
    }

    #[test]
    fn the_last_layer_and_what_lies_below_the_lowest_active_module_are_spared() {
        let model = tiny();
        let adapter: AdapterConfig = toml::from_str("rank = 4").expect("an adapter");
        let modules = model.adapted(&adapter).expect("modules").modules;
        let linears = model.linears();
        let lora = Config::from(&adapter);
        let shape = Shape {
            config: &model.config,
            linears: &linears,
            modules: &modules,
            adapter: &lora,
            head: HeadKind::Sequence,
            checkpointing: false,
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
        assert_eq!(Costs::of(shape).fisher(&upper, sizes), pairs);
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
