//! What a choice of modules costs: the host's own model of its steps, as data.
//!
//! Operations stand in forward order, each with the values it reads and writes. From the bottom to the top it
//! follows which values depend on something that trains: only above the lowest active module is there a gradient,
//! and only there is anything kept for it. The host counts a run's floating-point operations by the same walk.

use std::ops::{Bound, RangeBounds};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How much there is to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sizes {
    /// Sequences.
    pub sequences: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Pairs of tokens of one sequence, which is what attention works on.
    pub pairs: u64,
}

impl Sizes {
    /// Adds the sequences between consecutive `offsets`, which never fall.
    pub fn add(&mut self, offsets: &[usize]) {
        for ends in offsets.windows(2) {
            self.add_sequence((ends[1] - ends[0]) as u64);
        }
    }

    /// Adds one sequence of so many tokens.
    pub fn add_sequence(&mut self, length: u64) {
        self.sequences += 1;
        self.tokens += length;
        self.pairs += length * length;
    }
}

/// An amount that grows with what there is to compute on: operations, or bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Amount {
    /// Of each batch, whatever is in it.
    #[serde(skip_serializing_if = "is_default")]
    pub once: u64,
    /// Of each sequence.
    #[serde(skip_serializing_if = "is_default")]
    pub per_sequence: u64,
    /// Of each token.
    #[serde(skip_serializing_if = "is_default")]
    pub per_token: u64,
    /// Of each pair of tokens of one sequence.
    #[serde(skip_serializing_if = "is_default")]
    pub per_pair: u64,
}

impl Amount {
    /// So much of each batch.
    pub fn once(amount: u64) -> Self {
        Amount {
            once: amount,
            ..Amount::default()
        }
    }

    /// So much of each sequence.
    pub fn per_sequence(amount: u64) -> Self {
        Amount {
            per_sequence: amount,
            ..Amount::default()
        }
    }

    /// So much of each token.
    pub fn per_token(amount: u64) -> Self {
        Amount {
            per_token: amount,
            ..Amount::default()
        }
    }

    /// So much of each pair of tokens of one sequence.
    pub fn per_pair(amount: u64) -> Self {
        Amount {
            per_pair: amount,
            ..Amount::default()
        }
    }

    /// The amount in so many `batches`, of such sizes together.
    pub fn at(self, sizes: Sizes, batches: u64) -> u64 {
        [
            (self.once, batches),
            (self.per_sequence, sizes.sequences),
            (self.per_token, sizes.tokens),
            (self.per_pair, sizes.pairs),
        ]
        .into_iter()
        .fold(0, |sum: u64, (each, count)| {
            sum.saturating_add(each.saturating_mul(count))
        })
    }
}

impl std::ops::Add for Amount {
    type Output = Amount;

    fn add(self, other: Amount) -> Amount {
        Amount {
            once: self.once.saturating_add(other.once),
            per_sequence: self.per_sequence.saturating_add(other.per_sequence),
            per_token: self.per_token.saturating_add(other.per_token),
            per_pair: self.per_pair.saturating_add(other.per_pair),
        }
    }
}

/// One operation of the forward pass, with what comes of it on the way back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Operation {
    /// Index of the transformer layer it belongs to; none behind all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// The values it reads, by number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reads: Vec<u32>,
    /// The value it writes; none where nothing reads it, as of what is only measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes: Option<u32>,
    /// Floating-point operations forward, those of its [`modules`](Self::modules) aside.
    #[serde(skip_serializing_if = "is_default")]
    pub forward: Amount,
    /// Those backward where the gradient of something that it reads is wanted; of its modules aside.
    #[serde(skip_serializing_if = "is_default")]
    pub backward: Amount,
    /// Those that are done once more on the way back where a gradient passes, as under gradient checkpointing.
    #[serde(skip_serializing_if = "is_default")]
    pub again: Amount,
    /// The values, by number, that are kept for the backward pass where a gradient passes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keeps: Vec<u32>,
    /// Bytes that are kept there beside whole values.
    #[serde(skip_serializing_if = "is_default")]
    pub saved: Amount,
    /// Bytes of its frozen weights, where a host lays them out a second time once the gradient of what it reads is
    /// wanted. dynalora reads one layout both ways, and says none.
    #[serde(skip_serializing_if = "is_default")]
    pub weights: u64,
    /// The modules in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<SidePath>,
}

/// A module's side path: two products, by A and by B.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SidePath {
    /// Position of the module whose activity counts.
    pub module: u32,
    /// Floating-point operations forward, which an inactive module has too.
    #[serde(skip_serializing_if = "is_default")]
    pub forward: Amount,
    /// Backward through B, to the value between the two products: where the gradient of A, or of what the
    /// operation reads, is wanted.
    #[serde(skip_serializing_if = "is_default")]
    pub between: Amount,
    /// Backward through A, where the gradient of what the operation reads is wanted.
    #[serde(skip_serializing_if = "is_default")]
    pub input: Amount,
    /// A's own gradient, where the module is active and A trains.
    #[serde(skip_serializing_if = "is_default")]
    pub a: Amount,
    /// B's own gradient, where the module is active.
    #[serde(skip_serializing_if = "is_default")]
    pub b: Amount,
    /// Whether A has a gradient where the module is active: LoRA's has, VeRA's has not.
    #[serde(skip_serializing_if = "is_default")]
    pub trains_a: bool,
    /// The values, by number, that are kept where A has a gradient: what it is the product with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keeps: Vec<u32>,
    /// Bytes that are kept where a gradient passes the operation, whether or not this module is active.
    #[serde(skip_serializing_if = "is_default")]
    pub saved: Amount,
}

/// What one optimiser step costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Cost {
    /// Floating-point operations of the forward pass, a multiplication and an addition being two.
    pub forward: u64,
    /// Those of the backward pass.
    pub backward: u64,
    /// Bytes of activations that are kept from the forward pass for the backward one.
    pub activations: u64,
    /// Bytes of frozen weights that a host lays out a second time, for the gradients of what their layers read.
    pub weights: u64,
    /// Bytes of the gradients of what trains.
    pub gradients: u64,
    /// Bytes of Adam's two moments of what trains. Moments kept of modules that are inactive
    /// (`optimizer_state = "global"` or `"local"`) are not among them: they do not depend on the choice.
    pub moments: u64,
}

impl Cost {
    /// Floating-point operations, forward and backward.
    pub fn flops(&self) -> u64 {
        self.forward.saturating_add(self.backward)
    }

    /// Bytes of the optimiser: gradients and moments.
    pub fn optimizer(&self) -> u64 {
        self.gradients.saturating_add(self.moments)
    }

    /// Bytes that depend on the choice: activations, weights laid out again, gradients and moments.
    pub fn memory(&self) -> u64 {
        self.activations
            .saturating_add(self.weights)
            .saturating_add(self.optimizer())
    }
}

/// The steps of a run, by which any choice of modules can be asked what it costs.
///
/// It crosses by names: what a host does not send is zero or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CostModel {
    /// Trainable values of each module, in forward order: the order of every mask. Under `unit = "layer"` a
    /// module is a whole layer, here as everywhere.
    pub parameters: Vec<u64>,
    /// Values that train whatever is active: the head's.
    pub head_parameters: u64,
    /// Bytes of the gradient of one value.
    pub gradient_bytes: u64,
    /// Bytes of the optimiser's state of one value.
    pub moment_bytes: u64,
    /// Bytes of each value that operations read and write.
    pub values: Vec<Amount>,
    /// The operations in forward order.
    pub operations: Vec<Operation>,
    /// What there is to compute on in `steps` steps together: those of an epoch, of which [`cost`](Self::cost) is
    /// the mean.
    pub sizes: Sizes,
    /// Batches in them, each with a forward and a backward pass of its own.
    pub batches: u64,
    /// Optimiser steps in them: fewer than batches where gradients are accumulated.
    pub steps: u64,
}

impl CostModel {
    /// What a step costs with these modules active: operations of the mean step, bytes of the mean batch. A module
    /// that `active` says nothing of is inactive.
    ///
    /// It takes one walk over the operations, and never falls where a further module becomes active.
    pub fn cost(&self, active: &[bool]) -> Cost {
        let (batches, steps) = (self.batches.max(1), self.steps.max(1));
        let all = self.walk(
            active,
            self.sizes,
            batches,
            (Bound::Unbounded, Bound::Unbounded),
        );
        Cost {
            forward: all.forward / steps,
            backward: all.backward / steps,
            activations: all.activations.div_ceil(batches),
            ..all
        }
    }

    /// What a step costs with all modules active.
    pub fn all(&self) -> Cost {
        self.cost(&vec![true; self.parameters.len()])
    }

    /// What a step costs with none: what every choice costs.
    pub fn none(&self) -> Cost {
        self.cost(&[])
    }

    /// What a step of one batch of such `sizes` costs with these modules active, of whose layers only these are run:
    /// `..`, or `2..` where the output of the first two is known. What belongs to no layer stands behind them all.
    pub fn at(&self, active: &[bool], sizes: Sizes, layers: impl RangeBounds<u32>) -> Cost {
        let bounds = (layers.start_bound().cloned(), layers.end_bound().cloned());
        self.walk(active, sizes, 1, bounds)
    }

    fn walk(
        &self,
        active: &[bool],
        sizes: Sizes,
        batches: u64,
        layers: (Bound<u32>, Bound<u32>),
    ) -> Cost {
        let mut walk = Walk {
            // Whether a value depends on something that trains, and whether it is kept.
            tracked: vec![false; self.values.len()],
            kept: vec![false; self.values.len()],
            saved: 0,
            cost: Cost::default(),
        };
        let amount = |amount: Amount| amount.at(sizes, batches);
        for operation in &self.operations {
            if layers.contains(&operation.layer.unwrap_or(u32::MAX)) {
                walk.pass(operation, active, &amount);
            }
        }
        let values = walk.kept.iter().zip(&self.values);
        let kept = values.filter(|(kept, _)| **kept);
        let trained = self.parameters.iter().zip(active).filter(|(_, on)| **on);
        let trained = trained.fold(self.head_parameters, |sum, (values, _)| {
            sum.saturating_add(*values)
        });
        Cost {
            activations: kept.fold(walk.saved, |sum, (_, value)| {
                sum.saturating_add(amount(*value))
            }),
            gradients: trained.saturating_mul(self.gradient_bytes),
            moments: trained.saturating_mul(self.moment_bytes),
            ..walk.cost
        }
    }

    /// The same with modules taken together: module i becomes part of number `unit_of[i]`.
    pub fn grouped(&self, unit_of: &[usize]) -> CostModel {
        let mut grouped = self.clone();
        let units = unit_of.iter().max().map_or(0, |last| last + 1);
        grouped.parameters = vec![0; units];
        for (values, unit) in self.parameters.iter().zip(unit_of) {
            grouped.parameters[*unit] += values;
        }
        let operations = grouped.operations.iter_mut();
        for path in operations.flat_map(|operation| &mut operation.modules) {
            if let Some(unit) = unit_of.get(path.module as usize) {
                path.module = *unit as u32;
            }
        }
        grouped
    }

    /// The same where modules use the pair of another: what they have in common trains, and has moments, once.
    /// `shared[i]` is the module whose pair module i uses, as in [`Allocation::shared`](crate::Allocation::shared).
    pub fn sharing(&self, shared: &[usize]) -> CostModel {
        let mut sharing = self.clone();
        for (module, values) in sharing.parameters.iter_mut().enumerate() {
            if shared.get(module).is_some_and(|owner| *owner != module) {
                *values = 0;
            }
        }
        sharing
    }

    /// Refuses a model of another number of modules, or one that speaks of what is not there.
    pub fn check(&self, modules: usize) -> Result<()> {
        let refuse = |what: String| Err(Error::from(format!("the cost model {what}")));
        if self.parameters.len() != modules {
            let found = self.parameters.len();
            return refuse(format!("is of {found} modules, not of {modules}"));
        }
        let values = self.values.len() as u64;
        for (at, operation) in self.operations.iter().enumerate() {
            let of_modules = operation.modules.iter().flat_map(|path| &path.keeps);
            let all = operation.reads.iter().chain(&operation.writes);
            let all = all.chain(&operation.keeps).chain(of_modules);
            if let Some(value) = all.copied().find(|value| u64::from(*value) >= values) {
                return refuse(format!("has value {value} of {values} in operation {at}"));
            }
            let mut paths = operation.modules.iter();
            if let Some(path) = paths.find(|path| path.module as usize >= modules) {
                let module = path.module;
                return refuse(format!(
                    "has module {module} of {modules} in operation {at}"
                ));
            }
        }
        Ok(())
    }
}

/// A walk over the operations.
struct Walk {
    tracked: Vec<bool>,
    kept: Vec<bool>,
    /// Bytes kept beside values.
    saved: u64,
    cost: Cost,
}

impl Walk {
    fn pass(&mut self, operation: &Operation, active: &[bool], amount: &dyn Fn(Amount) -> u64) {
        let add = |sum: &mut u64, more: Amount| *sum = sum.saturating_add(amount(more));
        let is_active =
            |path: &SidePath| active.get(path.module as usize).copied().unwrap_or(false);
        let tracked = |value: &u32| self.tracked.get(*value as usize).copied().unwrap_or(false);
        // Whether the gradient of something that it reads is wanted, and whether one passes at all.
        let wanted = operation.reads.iter().any(tracked);
        let passes = wanted || operation.modules.iter().any(is_active);
        add(&mut self.cost.forward, operation.forward);
        if wanted {
            add(&mut self.cost.backward, operation.backward);
            self.cost.weights = self.cost.weights.saturating_add(operation.weights);
        }
        for path in &operation.modules {
            let active = is_active(path);
            let of_a = active && path.trains_a;
            add(&mut self.cost.forward, path.forward);
            for (due, work) in [
                (wanted || of_a, path.between),
                (wanted, path.input),
                (of_a, path.a),
                (active, path.b),
            ] {
                if due {
                    add(&mut self.cost.backward, work);
                }
            }
            if passes {
                add(&mut self.saved, path.saved);
            }
            if of_a {
                keep(&mut self.kept, &path.keeps);
            }
        }
        if passes {
            add(&mut self.cost.backward, operation.again);
            add(&mut self.saved, operation.saved);
            keep(&mut self.kept, &operation.keeps);
            if let Some(written) = operation.writes
                && let Some(tracked) = self.tracked.get_mut(written as usize)
            {
                *tracked = true;
            }
        }
    }
}

fn keep(kept: &mut [bool], values: &[u32]) {
    for value in values {
        if let Some(kept) = kept.get_mut(*value as usize) {
            *kept = true;
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{costs, modules};

    /// Two linear layers, one after the other, and a residual around the second: value 0 goes in; modules 0 and 1.
    fn two() -> CostModel {
        let linear = |module: u32, from: u32, to: u32| Operation {
            layer: Some(module),
            reads: vec![from],
            writes: Some(to),
            forward: Amount::per_token(100),
            backward: Amount::per_token(100),
            weights: 400,
            modules: vec![SidePath {
                module,
                forward: Amount::per_token(20),
                between: Amount::per_token(7),
                input: Amount::per_token(11),
                a: Amount::per_token(13),
                b: Amount::per_token(17),
                trains_a: true,
                keeps: vec![from],
                saved: Amount::per_token(2),
            }],
            ..Operation::default()
        };
        let sum = Operation {
            layer: Some(1),
            reads: vec![1, 2],
            writes: Some(3),
            saved: Amount::per_sequence(1000),
            ..Operation::default()
        };
        CostModel {
            parameters: vec![3, 4],
            head_parameters: 5,
            gradient_bytes: 4,
            moment_bytes: 8,
            values: [40, 50, 60, 70].map(Amount::per_token).to_vec(),
            operations: vec![linear(0, 0, 1), linear(1, 1, 2), sum],
            sizes: Sizes {
                sequences: 4,
                tokens: 30,
                pairs: 300,
            },
            batches: 3,
            steps: 1,
        }
    }

    #[test]
    fn a_gradient_is_where_something_below_trains() {
        let model = two();
        let none = model.none();
        assert_eq!((none.forward, none.backward), (2 * 120 * 30, 0));
        assert_eq!((none.activations, none.weights), (0, 0));
        assert_eq!((none.gradients, none.moments), (20, 40));

        // The upper: its own gradients, no way down.
        let upper = model.cost(&[false, true]);
        assert_eq!(upper.backward, (7 + 13 + 17) * 30);
        assert_eq!(upper.weights, 0);
        // Its input and x·Aᵀ of every token, the sum's of every sequence; of one batch of three.
        assert_eq!(upper.activations, ((50 + 2) * 30_u64 + 4000).div_ceil(3));
        assert_eq!((upper.gradients, upper.moments), (36, 72));

        // The lower: the upper's frozen weight and side path are on the way, its own gradients are not.
        let lower = model.cost(&[true]);
        assert_eq!(lower.backward, (7 + 13 + 17 + 100 + 7 + 11) * 30);
        assert_eq!(lower.weights, 400);
        assert_eq!(
            lower.activations,
            ((40 + 2 + 2) * 30_u64 + 4000).div_ceil(3)
        );

        let all = model.all();
        assert_eq!(all.backward, (2 * (7 + 13 + 17) + 100 + 11) * 30);
        assert_eq!(all.memory(), all.activations + 400 + 12 * 12);
        assert_eq!(all.flops(), all.forward + all.backward);
        assert_eq!(model.cost(&[true; 9]), all);
    }

    #[test]
    fn layers_that_are_not_run_cost_nothing() {
        let model = two();
        let sizes = Sizes {
            sequences: 1,
            tokens: 10,
            pairs: 100,
        };
        let upper = model.at(&[false, true], sizes, 1..);
        assert_eq!((upper.forward, upper.backward), (1200, 370));
        assert_eq!(model.at(&[], sizes, ..1).forward, 1200);
        assert_eq!(model.at(&[], sizes, ..).forward, 2400);
    }

    #[test]
    fn modules_taken_together_are_switched_together() {
        let (model, one) = (two(), two().grouped(&[0, 0]));
        assert_eq!(one.parameters, [7]);
        assert_eq!(one.all(), model.all());
        assert_eq!(one.none(), model.none());
        one.check(1).unwrap();
    }

    #[test]
    fn a_pair_that_two_use_trains_once() {
        let (own, shared) = (two().all(), two().sharing(&[0, 0]).all());
        assert_eq!((own.gradients, shared.gradients), (4 * 12, 4 * 8));
        assert_eq!((own.moments, shared.moments), (8 * 12, 8 * 8));
        assert_eq!(
            (own.flops(), own.activations),
            (shared.flops(), shared.activations)
        );
    }

    #[test]
    fn what_is_not_there_is_refused_and_costs_nothing() {
        let model = two();
        model.check(2).unwrap();
        assert!(model.check(3).unwrap_err().to_string().contains("not of 3"));
        let mut broken = model.clone();
        broken.operations[1].reads.push(4);
        let error = broken.check(2).unwrap_err().to_string();
        assert_eq!(error, "the cost model has value 4 of 4 in operation 1");
        assert_eq!(broken.all(), model.all());
        let mut broken = model.clone();
        broken.operations[0].modules[0].module = 2;
        assert!(broken.check(2).is_err());
        assert_eq!(
            broken.all(),
            model.cost(&[false, true, false]).max_of(&broken)
        );
    }

    impl Cost {
        /// Optimiser bytes are of the mask alone.
        fn max_of(self, broken: &CostModel) -> Cost {
            let all = broken.all();
            Cost {
                gradients: all.gradients,
                moments: all.moments,
                ..self
            }
        }
    }

    #[test]
    fn it_crosses_by_names() {
        let model = two();
        let text = serde_json::to_string(&model).unwrap();
        assert_eq!(serde_json::from_str::<CostModel>(&text).unwrap(), model);
        // A newer host may say more, an older one less.
        let less: CostModel =
            serde_json::from_str(r#"{"parameters": [1], "colour": "red"}"#).unwrap();
        assert_eq!(less.all(), Cost::default());
    }

    #[test]
    fn nothing_overflows() {
        let mut model = two();
        model.parameters = vec![u64::MAX; 2];
        model.sizes.tokens = u64::MAX;
        let all = model.all();
        assert_eq!((all.memory(), all.flops()), (u64::MAX, u64::MAX));
    }

    proptest! {
        #[test]
        fn a_further_module_never_costs_less(mask in prop::collection::vec(any::<bool>(), 1..30), at in 0..30_usize) {
            let model = costs(&modules(mask.len()));
            let mut more = mask.clone();
            more[at % mask.len()] = true;
            let (less, more) = (model.cost(&mask), model.cost(&more));
            for field in [|c: &Cost| c.forward, |c: &Cost| c.backward, |c: &Cost| c.activations, |c: &Cost| c.weights,
                |c: &Cost| c.optimizer()] {
                prop_assert!(field(&less) <= field(&more));
            }
            prop_assert!(more.memory() <= model.all().memory());
            prop_assert!(less.flops() >= model.none().flops());
        }
    }
}
