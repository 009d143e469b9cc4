//! For a plugin's own unit tests: calls into it as the host makes them, through the boundary, with
//! its panic guard, but without a library.

mod distribution;

use std::ops::Range;

use serde_json::Value;

pub use distribution::{ChiSquare, Distribution, Tally};

use crate::abi::host::{RemoteAllocator, RemoteScorer};
use crate::abi::plugin::{AllocatorSide, ScorerSide, table};
use crate::{
    Allocation, AllocationRequest, Allocator, Amount, CostModel, LedgerEntry, Measured, Member,
    ModuleInfo, Needs, Observation, Operation, Plugin, Result, ScoreRequest, Scorer, SidePath,
    Sizes, Start,
};

/// `r_max` of all [`modules`].
pub const RANK: u32 = 8;

/// So many modules, six to a layer, of plausible and not all equal sizes.
pub fn modules(count: usize) -> Vec<ModuleInfo> {
    const ROLES: [&str; 6] = ["query", "key", "value", "output", "up", "down"];
    (0..count)
        .map(|index| {
            let (layer, role) = (index / ROLES.len(), ROLES[index % ROLES.len()]);
            let (inputs, outputs) = match role {
                "up" => (64, 256),
                "down" => (256, 64),
                _ => (64, 64),
            };
            let (rank, parameters) = (RANK, u64::from(RANK) * (inputs + outputs));
            ModuleInfo {
                path: format!("encoder.layer.{layer}.{role}"),
                layer: u32::try_from(layer).ok(),
                role: role.to_owned(),
                in_features: inputs,
                out_features: outputs,
                rank,
                parameters,
                forward_flops: 2 * (inputs * outputs + parameters),
                backward_flops: 2 * (inputs * outputs + 2 * parameters),
                members: Vec::new(),
            }
        })
        .collect()
}

/// So many layers of six [`modules`] each, as an allocator meets them under `unit = "layer"`.
pub fn layers(count: usize) -> Vec<ModuleInfo> {
    let modules = modules(6 * count);
    let merge = |(layer, own): (usize, &[ModuleInfo])| {
        let sum = |field: fn(&ModuleInfo) -> u64| own.iter().map(field).sum();
        ModuleInfo {
            path: format!("encoder.layer.{layer}"),
            layer: u32::try_from(layer).ok(),
            role: "layer".to_owned(),
            in_features: sum(|module| module.in_features),
            out_features: sum(|module| module.out_features),
            rank: RANK,
            parameters: sum(|module| module.parameters),
            forward_flops: sum(|module| module.forward_flops),
            backward_flops: sum(|module| module.backward_flops),
            members: (own.iter())
                .map(|module| Member::new(module.path.clone(), module.rank))
                .collect(),
        }
    };
    modules.chunks(6).enumerate().map(merge).collect()
}

/// A request over [`modules`] with these scores: the first reallocation of a run in which every
/// module is active and none has been updated.
pub fn request(scores: &[f64]) -> AllocationRequest {
    request_over(&modules(scores.len()), scores)
}

/// The same over these modules, or layers.
pub fn request_over(modules: &[ModuleInfo], scores: &[f64]) -> AllocationRequest {
    let modules = modules.to_vec();
    AllocationRequest {
        scores: scores.to_vec(),
        ledger: vec![LedgerEntry::default(); modules.len()],
        active: vec![true; modules.len()],
        ranks: modules.iter().map(|module| module.rank).collect(),
        modules,
        step: 100,
        total_steps: 1000,
        reallocation: 0,
        seed: 1,
        trials: None,
    }
}

/// What a scorer of so many [`modules`] is told at the reallocation of that [`request`].
pub fn score_request(count: usize) -> ScoreRequest {
    let request = request(&vec![0.0; count]);
    ScoreRequest {
        step: request.step,
        total_steps: request.total_steps,
        reallocation: request.reallocation,
        seed: request.seed,
        active: request.active,
        ranks: request.ranks,
        ledger: request.ledger,
        trials: None,
    }
}

/// The run that [`request`]s come from: 1,000 steps with a reallocation after every fiftieth.
pub fn start() -> Start {
    Start::periodic(1000, 50)
}

/// That run over these modules, and what they cost.
pub fn start_of(modules: &[ModuleInfo]) -> Start {
    Start {
        costs: Some(costs(modules)),
        ..start()
    }
}

/// What steps of 8 sequences of 16 tokens cost where each of these modules reads what the one before it writes.
pub fn costs(modules: &[ModuleInfo]) -> CostModel {
    let work = |(index, module): (u32, &ModuleInfo)| {
        let rank = u64::from(module.rank);
        let through_a = Amount::per_token(2 * rank * module.in_features);
        let through_b = Amount::per_token(2 * rank * module.out_features);
        let frozen = 2 * module.in_features * module.out_features;
        Operation {
            layer: module.layer,
            reads: vec![index],
            writes: Some(index + 1),
            forward: Amount::per_token(frozen),
            backward: Amount::per_token(frozen),
            weights: 2 * frozen,
            modules: vec![SidePath {
                module: index,
                forward: through_a + through_b,
                between: through_b,
                input: through_a,
                a: through_a,
                b: through_b,
                trains_a: true,
                keeps: vec![index],
                saved: Amount::per_token(4 * rank),
            }],
            ..Operation::default()
        }
    };
    let mut sizes = Sizes::default();
    (0..8).for_each(|_| sizes.add_sequence(16));
    let first = modules.first().map(|module| module.in_features);
    let widths = first
        .into_iter()
        .chain(modules.iter().map(|module| module.out_features));
    CostModel {
        parameters: modules.iter().map(|module| module.parameters).collect(),
        head_parameters: 100,
        gradient_bytes: 4,
        moment_bytes: 8,
        values: widths.map(|width| Amount::per_token(4 * width)).collect(),
        operations: (0..).zip(modules).map(work).collect(),
        sizes,
        batches: 1,
        steps: 1,
    }
}

/// The scorer made from `parameters` (a JSON object) over so many [`modules`].
pub fn scorer<S: Plugin + Scorer + 'static>(parameters: &str, count: usize) -> Result<impl Scorer> {
    RemoteScorer::in_process(table::<(ScorerSide<S>,)>(), parameters, &modules(count))
}

/// The allocator made from `parameters` (a JSON object) over so many [`modules`].
pub fn allocator<A: Plugin + Allocator + 'static>(
    parameters: &str,
    count: usize,
) -> Result<impl Allocator> {
    RemoteAllocator::in_process(table::<(AllocatorSide<A>,)>(), parameters, &modules(count))
}

/// What a scorer made from `parameters` asks the host to measure.
pub fn needs<S: Plugin + Scorer + 'static>(parameters: &str) -> Result<Needs> {
    Ok(scorer::<S>(parameters, 1)?.needs())
}

/// The scores after these steps, each of which gives every signal the scorer needs the same values,
/// one per module.
pub fn score<S: Plugin + Scorer + 'static>(
    parameters: &str,
    steps: &[impl AsRef<[Option<f32>]>],
) -> Result<Vec<f64>> {
    let count = steps.first().map_or(0, |step| step.as_ref().len());
    let mut scorer = scorer::<S>(parameters, count)?;
    let needs = scorer.needs();
    for (step, values) in (1..).zip(steps) {
        let values = values.as_ref();
        let measured = |signal: &crate::Signal| Measured {
            signal: signal.clone(),
            values: values.to_vec(),
        };
        scorer.observe(&Observation {
            step,
            tokens: 128,
            active: vec![true; count],
            signals: needs.signals.iter().map(measured).collect(),
            ..Observation::default()
        })?;
    }
    scorer.scores(&score_request(count))
}

/// A fresh allocator's answer to [`request`] with these scores, after `change` has been made to it.
pub fn allocate<A: Plugin + Allocator + 'static>(
    parameters: &str,
    scores: &[f64],
    change: impl FnOnce(&mut AllocationRequest),
) -> Result<Allocation> {
    let mut request = request(scores);
    change(&mut request);
    let mut allocator = allocator::<A>(parameters, scores.len())?;
    allocator.start(&start_of(&request.modules))?;
    allocator.allocate(&request)
}

/// The sets that one allocator, made from `parameters`, chooses for `request` with each of the seeds.
/// For one that keeps no state, whose answers depend on nothing but the request.
pub fn tally<A: Plugin + Allocator + 'static>(
    parameters: &str,
    request: &AllocationRequest,
    seeds: Range<u64>,
) -> Result<Tally> {
    let mut request = request.clone();
    let table = table::<(AllocatorSide<A>,)>();
    let mut allocator = RemoteAllocator::in_process(table, parameters, &request.modules)?;
    allocator.start(&start_of(&request.modules))?;
    let mut tally = Tally::new();
    for seed in seeds {
        request.seed = seed;
        *tally
            .entry(allocator.allocate(&request)?.active)
            .or_default() += 1;
    }
    Ok(tally)
}

/// Parameters as the boundary takes them.
pub(crate) fn text(parameters: &Value) -> String {
    parameters.to_string()
}
