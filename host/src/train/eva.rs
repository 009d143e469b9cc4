//! What pairs start from under `init_lora_weights = "eva"`: the inputs of their modules over the batches of the first
//! steps, by the model as it was published (Paischer et al. 2024).

use std::time::Instant;

use burn::tensor::Tensor;
use dynalora_plugin_api::{ModuleInfo, Sizes};
use rayon::prelude::*;

use super::order::Steps;
use super::ranks::Ranks;
use super::trainee::{Trainee, read, upload};
use crate::adapter::{Adapted, Adapters, Components, Pass, distribute};
use crate::data::{Batch, Data, Label};
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::model::{Model, Pretrained, whole_numbers};
use crate::recipe::{EvaConfig, Recipe};
use crate::run::EvaRecord;

/// What is seen of a run before its first step.
pub struct Seen<'a> {
    /// Its recipe.
    pub recipe: &'a Recipe,
    /// Its base model.
    pub pretrained: &'a Pretrained,
    /// Its data.
    pub data: &'a Data,
    /// The modules with the ranks that the recipe gives them.
    pub adapted: &'a Adapted,
}

/// What is wanted of the modules' inputs.
pub struct Asked {
    /// The recipe's `[adapter.eva]`.
    pub eva: EvaConfig,
    /// What is drawn goes by this.
    pub seed: u64,
    /// The rank with which each module starts by the recipe.
    pub ranks: Vec<u32>,
}

/// What was found.
pub struct Found {
    /// For the run's records.
    pub record: EvaRecord,
    /// A of each module that has a rank, row by row, empty where it starts otherwise; none of a run that goes on, which
    /// has them in its checkpoint.
    pub vectors: Option<Vec<Vec<f32>>>,
    /// What was run for it.
    pub sizes: Sizes,
}

impl Found {
    /// What is known of it in a run that goes on.
    pub fn known(record: EvaRecord) -> Self {
        Found {
            record,
            vectors: None,
            sizes: Sizes::default(),
        }
    }

    /// What the first of the `ranks` finds, or knows.
    pub fn told(ranks: &Ranks, find: impl FnOnce() -> Result<Self>) -> Result<Self> {
        if ranks.count() == 1 {
            return find();
        }
        // As bits: through decimals, a last one might be lost.
        let bits = |rows: Vec<Vec<f32>>| {
            rows.into_iter()
                .map(|row| row.into_iter().map(f32::to_bits).collect())
        };
        let (record, vectors, sizes) = ranks.told(|| {
            let found = find()?;
            let vectors: Option<Vec<Vec<u32>>> = found.vectors.map(|rows| bits(rows).collect());
            Ok((found.record, vectors, found.sizes))
        })?;
        let floats = |row: Vec<u32>| row.into_iter().map(f32::from_bits).collect();
        Ok(Found {
            record,
            vectors: vectors.map(|rows| rows.into_iter().map(floats).collect()),
            sizes,
        })
    }

    /// Refuses what was found of other modules than these, or cannot have been.
    pub fn check(&self, adapted: &Adapted) -> Result<()> {
        let modules = &adapted.modules;
        let EvaRecord {
            modules: named,
            ranks,
            ..
        } = &self.record;
        let same = named.iter().eq(modules.iter().map(|module| &module.path));
        // Tables of embeddings have the recipe's, whatever they read.
        let layers = modules.iter().zip(&adapted.configs).zip(ranks);
        let layers = layers.filter(|((_, own), _)| !own.is_embedding());
        let mut own = layers.map(|((module, _), rank)| (module, rank));
        let possible = ranks.len() == modules.len()
            && ranks.iter().any(|rank| *rank > 0)
            && own.all(|(module, rank)| u64::from(*rank) <= module.in_features);
        match same && possible {
            true => Ok(()),
            false => Err(Error::user(
                "the run's allocations.jsonl tells by EVA of other modules than the recipe adapts",
            )
            .help("restore the file or the model from a copy, or start the run anew by --force")),
        }
    }
}

/// Finds what the modules of a run start from.
pub fn of_run<B: Kernels>(seen: &Seen<'_>, device: &B::Device) -> Result<Found> {
    let began = Instant::now();
    let (recipe, modules) = (seen.recipe, seen.adapted.modules.clone());
    let Some(eva) = recipe.adapter.eva() else {
        return Err(Error::failure("the recipe does not ask for EVA"));
    };
    let model = Model::<B>::load(seen.pretrained, &modules, seen.data.outputs(), device)?;
    let ranks = modules.iter().map(|module| module.rank).collect();
    let asked = Asked {
        eva,
        seed: recipe.seed,
        ranks: seen.adapted.initial_ranks.clone().unwrap_or(ranks),
    };
    let trainee = Trainee {
        adapters: Adapters::new(
            (&recipe.adapter).into(),
            modules,
            seen.adapted.configs.clone(),
            recipe.seed,
            device,
        ),
        // What it answers is nowhere read.
        head: (model.head.tensors().iter())
            .map(|tensor| match tensor.shape[..] {
                [rows, columns] => Tensor::zeros([rows, columns], device),
                _ => Tensor::zeros([1, tensor.shape[0]], device),
            })
            .collect(),
        model,
    };
    let per_epoch = seen.data.steps_per_epoch(&recipe.train, recipe.seed);
    let steps = Steps::new(seen.data, recipe, per_epoch, u64::MAX, 0);
    let found = find(&asked, &trainee, steps.flatten(), device)?;
    let record = &found.record;
    let without = record.ranks.iter().filter(|rank| **rank == 0).count();
    tracing::info!(
        "the pairs of {} modules start from what these read in {} batches ({} examples), found in {:.1} s{}",
        record.ranks.len() - without,
        record.batches,
        record.examples,
        began.elapsed().as_secs_f64(),
        match (eva.redistributes(), record.ranks.iter().max()) {
            (true, Some(most)) =>
                format!("; their ranks go up to {most}, and {without} modules have none"),
            _ => String::new(),
        }
    );
    Ok(found)
}

/// Modules that read the same.
struct Group {
    /// The first of them has the largest rank.
    modules: Vec<usize>,
    name: String,
    components: Components,
}

/// Finds what the modules of `trainee` start from, which reads at most so many of these `batches` as is asked, and fewer
/// where all components have converged before. Tables of embeddings, the first of the modules, start as they do without
/// EVA and keep their ranks, as in PEFT.
pub fn find<B: Kernels>(
    asked: &Asked,
    trainee: &Trainee<B>,
    batches: impl Iterator<Item = Batch>,
    device: &B::Device,
) -> Result<Found> {
    let all = &trainee.adapters.modules;
    let is_table = |module: &usize| trainee.adapters.own(*module).is_embedding();
    let tables = (0..all.len()).take_while(is_table).count();
    let (modules, own_ranks) = (&all[tables..], &asked.ranks[tables..]);
    let counts = counts(asked, modules, own_ranks);
    let budget: u32 = own_ranks.iter().sum();
    let mut ranks: Vec<u32> = counts.iter().map(|count| *count as u32).collect();
    let mut record = EvaRecord {
        modules: all.iter().map(|module| module.path.clone()).collect(),
        ..EvaRecord::default()
    };
    let (mut groups, mut group_of) = (Vec::<Group>::new(), Vec::new());
    let mut sizes = Sizes::default();
    let has_converged = |group: &Group, ranks: &[u32]| {
        let needed = ranks[group.modules[0]] as usize;
        group.components.have_converged(needed, asked.eva.tau)
    };
    for batch in batches.take(asked.eva.max_batches as usize) {
        let converged: Vec<bool> = groups.iter().map(|it| has_converged(it, &ranks)).collect();
        if !groups.is_empty() && !converged.contains(&false) {
            break;
        }
        record.batches += 1;
        record.examples += batch.indices.len() as u64;
        record.tokens += batch.tokens() as u64;
        sizes.add(&batch.offsets);
        let mut inputs = inputs(trainee, &batch, asked.eva.use_label_mask, device);
        let read_by = inputs.iter_mut().flat_map(|(read_by, _)| read_by);
        read_by.for_each(|module| *module -= tables);
        if groups.is_empty() {
            (groups, group_of) = grouped(inputs, modules, &counts, asked.seed)?;
        } else {
            let mut rows = vec![None; groups.len()];
            for (read_by, x) in inputs {
                let group = group_of[read_by[0]];
                // Those that run apart have read it twice.
                if !converged[group] && rows[group].is_none() {
                    rows[group] = Some(read(x)?);
                }
            }
            let with_rows = groups.par_iter_mut().zip(rows);
            with_rows.try_for_each(|(group, rows)| match rows {
                Some(rows) => group.components.add(&rows, (asked.seed, &group.name)),
                None => Ok(()),
            })?;
        }
        if groups.iter().all(|group| group.components.are_found()) {
            let explained: Vec<Vec<f64>> =
                groups.iter().map(|it| it.components.explained()).collect();
            ranks = match asked.eva.redistributes() {
                true => distribute(&explained, &group_of, budget as usize),
                false => own_ranks.to_vec(),
            };
        }
    }
    if let Some(group) = groups.iter().find(|group| !group.components.are_found()) {
        return Err(Error::user(format!(
            "{} read fewer than {} tokens in {} batches, of which so many components are to be found",
            group.name,
            group.components.count(),
            record.batches
        ))
        .help("raise `adapter.eva.max_batches` or the size of batches, or lower `adapter.rank`, `adapter.r_max` or `adapter.eva.rho`"));
    }
    let converged: Vec<bool> = groups.iter().map(|it| has_converged(it, &ranks)).collect();
    warn_of_others(&groups, &converged, asked);
    let of = |module: usize| &groups[group_of[module]].components;
    let explained = (0..modules.len()).map(|module| of(module).explained());
    let of_tables = std::iter::repeat_n(Vec::new(), tables);
    record.explained_variance = of_tables.chain(explained).collect();
    let converged = group_of.iter().map(|group| converged[*group]);
    let of_all = std::iter::repeat_n(true, tables).chain(converged);
    record.converged = of_all.collect();
    let mut vectors = vec![Vec::new(); tables];
    for (module, rank) in ranks.iter().enumerate() {
        // Where they can grow, the components that they grow by are there from the start.
        let rows = match asked.eva.redistributes() {
            true => *rank,
            false => modules[module].rank,
        };
        let start = of(module).start(rows as usize, asked.eva.whiten);
        if start.iter().any(|x| !x.is_finite()) {
            return Err(Error::user(format!(
                "what {} reads does not vary in {rows} directions, and `adapter.eva.whiten` divides by how much it does",
                modules[module].path
            ))
            .help("lower `adapter.rank`, or set `adapter.eva.whiten = false`"));
        }
        if rows > 0 {
            vectors.push(start);
        }
    }
    record.ranks = [&asked.ranks[..tables], &ranks].concat();
    Ok(Found {
        record,
        vectors: Some(vectors),
        sizes,
    })
}

/// How many components are looked for in what each module reads.
fn counts(asked: &Asked, modules: &[ModuleInfo], ranks: &[u32]) -> Vec<usize> {
    let own = modules.iter().zip(ranks);
    own.map(|(module, rank)| match asked.eva.redistributes() {
        true => asked.eva.most(*rank),
        false => module.rank as usize,
    })
    .collect()
}

/// What the modules read of a batch, without gradients: of the tokens whose answers are learnt where they are `masked`, else
/// of all. With it the modules that read it, in the order in which they run.
fn inputs<B: Kernels>(
    trainee: &Trainee<B>,
    batch: &Batch,
    masked: bool,
    device: &B::Device,
) -> Vec<(Vec<usize>, Tensor<B, 2>)> {
    let model = &trainee.model;
    let mut pass = Pass::reading(&trainee.adapters, &trainee.head);
    let input = upload::<B>(batch, device);
    let x = model.base.prefix(&input, 0, &mut pass);
    match batch.labels.first() {
        // No module is in these heads.
        Some(Label::Tokens(_) | Label::Words(_)) => {
            drop(model.base.all(x, 0, &input.sequences, &mut pass));
        }
        _ => drop(model.forward_from(x, 0, &input.sequences, &mut pass)),
    }
    let learnt = masked.then(|| learnt(batch)).flatten();
    let chosen = |x: Tensor<B, 2>| match &learnt {
        Some(rows) => x.select(0, whole_numbers(rows.iter().copied(), device)),
        None => x,
    };
    let read = pass.raw_inputs.into_iter();
    read.map(|(modules, x)| (modules, chosen(x))).collect()
}

/// The tokens of a batch that have an answer of their own, by where they lie in it; none where examples have one.
fn learnt(batch: &Batch) -> Option<Vec<usize>> {
    if let Some(words) = batch.word_rows() {
        return Some(words);
    }
    let mut rows = Vec::new();
    for (range, label) in batch.offsets.windows(2).zip(&batch.labels) {
        let Label::Tokens(from) = label else {
            return None;
        };
        rows.extend(range[0] + *from as usize..range[1]);
    }
    (!batch.labels.is_empty()).then_some(rows)
}

/// The groups of modules that read the same, in the order of the first of each, with that taken in; and the group of
/// each module.
fn grouped<B: Kernels>(
    inputs: Vec<(Vec<usize>, Tensor<B, 2>)>,
    modules: &[ModuleInfo],
    counts: &[usize],
    seed: u64,
) -> Result<(Vec<Group>, Vec<usize>)> {
    let mut found: Vec<(Vec<usize>, Vec<f32>)> = Vec::new();
    for (read_by, x) in inputs {
        let values = read(x)?;
        match found.iter_mut().find(|(_, others)| *others == values) {
            Some((others, _)) => others.extend(read_by),
            None => found.push((read_by, values)),
        }
    }
    for (read_by, _) in &mut found {
        read_by.sort_unstable();
        read_by.dedup();
    }
    found.sort_by_key(|(read_by, _)| read_by[0]);
    let mut group_of = vec![None; modules.len()];
    for (group, (read_by, _)) in found.iter().enumerate() {
        for module in read_by {
            group_of[*module] = Some(group);
        }
    }
    let group_of = group_of.into_iter().zip(modules).map(|(group, module)| {
        group.ok_or_else(|| Error::failure(format!("{} has read nothing", module.path)))
    });
    let group_of = group_of.collect::<Result<_>>()?;
    let groups = found.into_par_iter().map(|(read_by, values)| {
        let count = read_by
            .iter()
            .map(|module| counts[*module])
            .max()
            .unwrap_or(0);
        let first = &modules[read_by[0]];
        let mut components = Components::new(count, first.in_features as usize);
        components.add(&values, (seed, &first.path))?;
        Ok(Group {
            name: first.path.clone(),
            modules: read_by,
            components,
        })
    });
    Ok((groups.collect::<Result<_>>()?, group_of))
}

fn warn_of_others(groups: &[Group], converged: &[bool], asked: &Asked) {
    let mut others = groups
        .iter()
        .zip(converged)
        .filter(|(_, converged)| !**converged);
    if let Some((first, _)) = others.next() {
        tracing::warn!(
            "what {} modules start from was still moving after {} batches, by more than `adapter.eva.tau` = {} allows, such \
             as {}: it is taken as it is; raise `adapter.eva.max_batches` or the size of batches",
            first.modules.len() + others.map(|(group, _)| group.modules.len()).sum::<usize>(),
            asked.eva.max_batches,
            asked.eva.tau,
            first.name
        );
    }
}
