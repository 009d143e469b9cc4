//! `dynalora plan`

use std::path::PathBuf;

use dynalora_plugin_api::{Cost, CostModel, ModuleInfo};
use serde::Serialize;

use super::{Common, print, print_json, table};
use crate::adapter::{Adapted, Config, parameters_at, row_values};
use crate::allocation::{Units, initial_units};
use crate::data::{self, Problem, labels_of};
use crate::error::{Error, Result};
use crate::model::{Architecture, HeadStart, ModelFolder, Pretrained, fetch, head_parameters};
use crate::number::{count, size};
use crate::recipe::{AdapterKind, Device, OptimizerState, Recipe, Unit};
use crate::train::cost::{HeadKind, LastLayer, Shape, Sizes, Steps, cost, kept_by_a_layer};
use crate::train::{Given, check, costs, longest_step, memory};

/// Arguments of `dynalora plan`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Replace a value of the recipe
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Active modules to plan for, the upper ones; layers where the recipe's unit is the layer. By default
    /// those that the run starts with
    #[arg(long, value_name = "COUNT")]
    active: Option<usize>,
    /// Tokens of one batch; by default as many as the recipe's batch can have
    #[arg(long)]
    tokens: Option<usize>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

/// What a run would train, and what it would cost. FLOPs are of one token; memory is in bytes.
#[derive(Debug, Serialize)]
struct Plan {
    modules: Vec<ModuleInfo>,
    adapter_parameters: u64,
    /// Values of VeRA's frozen projections; 0 for LoRA.
    projection_values: u64,
    /// Values of what PiSSA's pairs start from; 0 for others.
    start_values: u64,
    /// Whether EVA will move the modules' ranks, which here are those of the recipe: it has to see data for that.
    ranks_move: bool,
    head_parameters: u64,
    base_parameters: u64,
    problem: Problem,
    /// Names of the classes; none for a regression.
    labels: Vec<String>,
    outputs: usize,
    /// Which of the modules are active.
    active: Vec<bool>,
    active_modules: usize,
    active_parameters: u64,
    lowest_active_layer: Option<u32>,
    forward_flops: u64,
    backward_flops: u64,
    /// What the active modules cost above none, as a share of what all would: what `by = "flops"` goes by.
    share_of_flops: f64,
    /// The same of the bytes that depend on the choice: what `by = "memory"` goes by.
    share_of_memory: f64,
    tokens: usize,
    memory: Memory,
    checkpointing: Checkpointing,
}

/// What `train.gradient_checkpointing` comes to.
#[derive(Debug, Serialize)]
struct Checkpointing {
    /// Whether it is on.
    on: bool,
    /// Bytes of activations without it.
    without: u64,
    /// Bytes of activations with it.
    with: u64,
    /// Operations with it, as a share of those without.
    operations: f64,
}

#[derive(Debug, Serialize)]
struct Memory {
    /// What the program takes of the host's memory before the rest, tokenizer and plugins included; 0 where the rest is
    /// a GPU's, or the system does not tell.
    process: u64,
    weights: u64,
    adapters: u64,
    gradients: u64,
    optimizer: u64,
    activations: u64,
    total: u64,
}

/// Reads recipe, model and tokenizer, makes the plugins, reads of the data at most the names of the classes, and prints the
/// plan. All of the data only where the run's first choice depends on what its steps cost.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let recipe = Recipe::load(&arguments.recipe, &arguments.set)?;
    let folder = fetch::resolve(&recipe.model.name, &recipe.model.revision)?;
    let pretrained = Pretrained::open_for(&folder, &recipe.model, recipe.data.problem())?;
    let adapted = pretrained.adapted(&recipe.adapter)?;
    let (pretrained, _) = Given::open(&recipe, (&folder, pretrained), &adapted)?;
    let held_back = check(&recipe, &pretrained, &adapted, &common.plugin_dir)?;
    let base = (&folder, &pretrained);
    let plan = plan(&recipe, base, adapted, held_back, arguments)?;
    for warning in HeadStart::of(&pretrained, plan.outputs).warnings {
        tracing::warn!("{warning}");
    }
    if arguments.json {
        return print_json(&plan);
    }
    let mut modules = table(&[
        "module",
        "in",
        "out",
        "rank",
        "parameters",
        "MFLOP/token",
        "active",
    ]);
    for (module, active) in plan.modules.iter().zip(&plan.active) {
        modules.add_row([
            module.path.clone(),
            module.in_features.to_string(),
            module.out_features.to_string(),
            module.rank.to_string(),
            module.parameters.to_string(),
            format!("{:.2}", module.forward_flops as f64 / 1e6),
            if *active { "yes" } else { "no" }.to_owned(),
        ]);
    }
    let memory = &plan.memory;
    let mut totals = table(&["", ""]);
    let rows = [
        (
            "base model",
            format!("{} parameters, frozen", count(plan.base_parameters)),
        ),
        (
            "adapters",
            format!(
                "{} parameters in {} modules{}{}",
                count(plan.adapter_parameters),
                plan.modules.len(),
                match [plan.projection_values, plan.start_values] {
                    [0, 0] => String::new(),
                    [0, values] =>
                        format!(", {} frozen values that they start from", count(values)),
                    [values, _] => format!(", {} frozen values shared by all", count(values)),
                },
                match plan.ranks_move {
                    true => "; EVA will move ranks between them, which only the data can tell",
                    false => "",
                }
            ),
        ),
        (
            "head",
            format!(
                "{} parameters, {}",
                count(plan.head_parameters),
                match plan.problem {
                    Problem::Regression => "one value".to_owned(),
                    Problem::CausalLm => "the next token".to_owned(),
                    Problem::Classification => format!("{} classes", plan.outputs),
                    Problem::TokenClassification => format!("{} tags of words", plan.outputs),
                }
            ),
        ),
        (
            "active",
            format!(
                "{} of {} modules {}, {} parameters, {}",
                plan.active_modules,
                plan.modules.len(),
                match arguments.active {
                    Some(_) => "at the top",
                    None => "at first",
                },
                count(plan.active_parameters),
                match plan.lowest_active_layer {
                    Some(layer) => format!("down to layer {layer}"),
                    None => "none in a layer".to_owned(),
                }
            ),
        ),
        (
            "FLOPs per token",
            format!(
                "forward {:.1} M, backward {:.1} M",
                plan.forward_flops as f64 / 1e6,
                plan.backward_flops as f64 / 1e6
            ),
        ),
        (
            "of what all modules cost",
            format!(
                "{:.1} % by flops, {:.1} % by memory, above none",
                100.0 * plan.share_of_flops,
                100.0 * plan.share_of_memory
            ),
        ),
        (
            "memory, estimated",
            format!(
                "{} = {}weights {} + adapters {} + gradients {} + optimiser {} + activations of {} tokens {}",
                size(memory.total),
                match memory.process {
                    0 => String::new(),
                    bytes => format!("program {} + ", size(bytes)),
                },
                size(memory.weights),
                size(memory.adapters),
                size(memory.gradients),
                size(memory.optimizer),
                plan.tokens,
                size(memory.activations)
            ),
        ),
    ];
    for (name, value) in rows {
        totals.add_row([name.to_owned(), value]);
    }
    let checkpointing = &plan.checkpointing;
    totals.add_row([
        "gradient checkpointing".to_owned(),
        format!(
            "{}: activations {} with it, {} without, at {:.2} times the operations",
            if checkpointing.on { "on" } else { "off" },
            size(checkpointing.with),
            size(checkpointing.without),
            checkpointing.operations
        ),
    ]);
    print(&format!("{}\n\n{}", modules.trim_fmt(), totals.trim_fmt()))
}

fn plan(
    recipe: &Recipe,
    (folder, pretrained): (&ModelFolder, &Pretrained),
    Adapted {
        modules,
        configs,
        initial_ranks,
    }: Adapted,
    held_back: u64,
    arguments: &Arguments,
) -> Result<Plan> {
    // Before data is read, of which a run keeps more than a plan.
    let process = process(recipe, (folder, pretrained))?;
    let config = &pretrained.config;
    let adapter = Config::from(&recipe.adapter);
    let linears = pretrained.linears();
    let (labels, problem) = labels_of(&recipe.data)?;
    let outputs = problem.outputs(&labels);
    let steps = steps(recipe, (folder, pretrained), held_back, arguments)?;
    let model = costs(recipe, pretrained, &modules, steps, outputs);
    let active = active(recipe, &modules, &model, arguments.active)?;
    let chosen = || {
        let pairs = modules.iter().zip(&active);
        pairs.filter_map(|(module, active)| active.then_some(module))
    };
    // A table of embeddings stands below all layers.
    let layers = modules.iter().zip(&configs).zip(&active);
    let layers = layers.filter(|(_, active)| **active);
    let layers = layers.filter_map(|((module, own), _)| match own.is_embedding() {
        true => Some(0),
        false => module.layer,
    });
    let lowest = layers.min();

    let head_parameters = head_parameters(config, pretrained.frozen_pooler(), outputs);
    let length = recipe.model.longest().min(config.max_length);
    let tokens = arguments.tokens.unwrap_or_else(|| {
        let longest = longest_step(recipe, pretrained);
        (longest.sizes.tokens / longest.batches) as usize
    });
    let step = Steps::longest(tokens, length, 1);
    let batch = costs(recipe, pretrained, &modules, step, outputs).cost(&active);
    // The longest sequence. The last layer is counted for all tokens, so that modules of every layer compare;
    // steps spare all but the first token's queries, projection and feed-forward there.
    let mut longest = Sizes::default();
    longest.add(&[0, length]);
    let shape = Shape {
        config,
        linears: &linears,
        modules: &modules,
        adapter: &adapter,
        head: HeadKind::of(problem, outputs),
        checkpointing: recipe.train.gradient_checkpointing,
    };
    let checkpointing = checkpointing(shape, step, &active);
    let cost = cost(shape, &active, longest, 0, LastLayer::Whole);

    let adapter_parameters = modules.iter().map(|module| module.parameters).sum::<u64>();
    let initial = initial_ranks.unwrap_or_else(|| modules.iter().map(|it| it.rank).collect());
    let trained = |(module, initial): (&ModuleInfo, &u32)| parameters_at(module, *initial);
    let of_active = modules.iter().zip(&initial).zip(&active);
    let of_active = of_active.filter(|(_, active)| **active);
    let active_parameters = of_active.map(|(module, _)| trained(module)).sum::<u64>();
    let trainable = active_parameters + head_parameters;
    // A module that was never active, or whose state is dropped, has none.
    let kept = match recipe.allocation.optimizer_state {
        OptimizerState::Global | OptimizerState::Local if recipe.allocation.is_dynamic() => {
            adapter_parameters + head_parameters
        }
        _ => trainable,
    };
    let base_parameters = pretrained.weights.parameters();
    let frozen_values = adapter.frozen_values(&modules);
    let (projection_values, start_values) = match recipe.adapter.kind {
        AdapterKind::Vera => (frozen_values, 0),
        AdapterKind::Lora => (0, frozen_values),
    };
    let mut memory = Memory {
        process,
        weights: pretrained.bytes(recipe.data.predicts_tokens(), on_cpu(recipe))?,
        adapters: 4
            * (adapter_parameters
                + frozen_values
                + row_values(&adapter, &modules)
                + head_parameters),
        gradients: batch.gradients,
        optimizer: 8 * kept,
        activations: match checkpointing.on {
            true => checkpointing.with,
            false => checkpointing.without,
        } + working_set(config, tokens as u64),
        total: 0,
    };
    memory.total = memory.process
        + memory.weights
        + memory.adapters
        + memory.gradients
        + memory.optimizer
        + memory.activations;
    let share = |of: fn(&Cost) -> u64| {
        let none = of(&model.none());
        let above = |cost: Cost| (of(&cost) - none) as f64;
        above(model.cost(&active)) / above(model.all()).max(1.0)
    };
    Ok(Plan {
        adapter_parameters,
        projection_values,
        start_values,
        ranks_move: recipe.adapter.eva().is_some_and(|eva| eva.redistributes()),
        head_parameters,
        base_parameters,
        problem,
        labels,
        outputs,
        active_modules: chosen().count(),
        active_parameters,
        lowest_active_layer: lowest,
        forward_flops: cost.forward / length as u64,
        backward_flops: cost.backward / length as u64,
        share_of_flops: share(Cost::flops),
        share_of_memory: share(Cost::memory),
        tokens,
        memory,
        active,
        modules,
        checkpointing,
    })
}

/// `auto` is taken for the CPU: what it will be is not known before the run.
fn on_cpu(recipe: &Recipe) -> bool {
    matches!(recipe.device, Device::Auto | Device::Cpu)
}

/// What a run takes of the host's memory before its weights: as much as this process, which has opened the same plugins,
/// and opens the tokenizer for that.
fn process(recipe: &Recipe, (folder, pretrained): (&ModelFolder, &Pretrained)) -> Result<u64> {
    if !on_cpu(recipe) {
        return Ok(0);
    }
    let longest = recipe.model.longest().min(pretrained.config.max_length);
    let tokenizer = match recipe.data.is_images() {
        true => None,
        false => Some(data::Encoder::open(&folder.tokenizer, longest)?),
    };
    let taken = memory().unwrap_or(0);
    drop(tokenizer);
    Ok(taken)
}

/// What of a step's activations is kept with and without gradient checkpointing, and what it costs.
fn checkpointing(shape: Shape<'_>, step: Steps, active: &[bool]) -> Checkpointing {
    let cost = |checkpointing| {
        let shape = Shape {
            checkpointing,
            ..shape
        };
        shape.costs(step, 0).cost(active)
    };
    let (without, with) = (cost(false), cost(true));
    Checkpointing {
        on: shape.checkpointing,
        without: without.activations,
        with: with.activations + kept_by_a_layer(shape, step.sizes),
        operations: with.flops() as f64 / without.flops().max(1) as f64,
    }
}

/// What its steps compute on: as much as they can, unless the run's first choice is one by costs, which go by the
/// data.
fn steps(
    recipe: &Recipe,
    (folder, pretrained): (&ModelFolder, &Pretrained),
    held_back: u64,
    arguments: &Arguments,
) -> Result<Steps> {
    let budget = recipe
        .allocation
        .initial_budget(recipe.allocator.as_ref())?;
    if arguments.active.is_some() || !budget.is_some_and(|budget| budget.by.is_cost()) {
        return Ok(longest_step(recipe, pretrained));
    }
    let mut data = data::load(recipe, folder, &pretrained.config)?;
    data.hold_back(held_back, recipe.seed)?;
    Ok(Steps::of(&data.train, &recipe.train, recipe.seed))
}

/// Which modules to plan for: the `upper` units, or those that the run starts with.
fn active(
    recipe: &Recipe,
    modules: &[ModuleInfo],
    costs: &CostModel,
    upper: Option<usize>,
) -> Result<Vec<bool>> {
    let allocation = &recipe.allocation;
    let units = Units::new(allocation.unit, modules.to_vec());
    let count = units.infos().len();
    let Some(upper) = upper else {
        let drawn = allocation.initial_budget(recipe.allocator.as_ref())?;
        let drawn = initial_units(drawn, &units, Some(costs), recipe.seed)?;
        return Ok(units.expand(&drawn));
    };
    if !(1..=count).contains(&upper) {
        let what = match allocation.unit {
            Unit::Module => "modules",
            Unit::Layer => "layers (a module outside the layers counts as one)",
        };
        return Err(Error::user(format!(
            "--active {upper} cannot be planned for: the recipe adapts {count} {what}"
        ))
        .help(format!(
            "give a number from 1 to {count}, or widen `targets` in [adapter]"
        )));
    }
    let chosen: Vec<bool> = (0..count).map(|unit| unit >= count - upper).collect();
    Ok(units.expand(&chosen))
}

/// Bytes of the widest working set of one layer, beside what is kept for the way back.
fn working_set(config: &Architecture, tokens: u64) -> u64 {
    4 * tokens * (2 * config.block.intermediate() + 4 * config.hidden) as u64
}
