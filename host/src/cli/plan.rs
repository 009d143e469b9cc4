//! `dynalora plan`

use std::path::PathBuf;

use dynalora_plugin_api::ModuleInfo;
use serde::Serialize;

use super::{Common, print, print_json, table};
use crate::error::Result;
use crate::model::{EncoderConfig, Pretrained, fetch, head_parameters};
use crate::recipe::{BatchLimit, OptimizerState, Recipe};
use crate::train::{count, size};

/// Arguments of `dynalora plan`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Replace a value of the recipe
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Active modules to plan for, the upper ones; all by default
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
    head_parameters: u64,
    base_parameters: u64,
    active_modules: usize,
    active_parameters: u64,
    lowest_active_layer: Option<u32>,
    forward_flops: u64,
    backward_flops: u64,
    tokens: usize,
    memory: Memory,
}

#[derive(Debug, Serialize)]
struct Memory {
    weights: u64,
    adapters: u64,
    gradients: u64,
    optimizer: u64,
    activations: u64,
    total: u64,
}

/// Reads recipe and model, not the data, and prints the plan.
pub fn run(arguments: &Arguments, _: &Common) -> Result<()> {
    let recipe = Recipe::load(&arguments.recipe, &arguments.set)?;
    let folder = fetch::resolve(&recipe.model.name, &recipe.model.revision)?;
    let pretrained = Pretrained::open(&folder, &recipe.model)?;
    let plan = plan(&recipe, &pretrained, arguments)?;
    if arguments.json {
        return print_json(&plan);
    }
    let mut modules = table(&["module", "in", "out", "rank", "parameters", "MFLOP/token"]);
    for module in &plan.modules {
        modules.add_row([
            module.path.clone(),
            module.in_features.to_string(),
            module.out_features.to_string(),
            module.rank.to_string(),
            module.parameters.to_string(),
            format!("{:.2}", module.forward_flops as f64 / 1e6),
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
                "{} parameters in {} modules",
                count(plan.adapter_parameters),
                plan.modules.len()
            ),
        ),
        (
            "head",
            format!("{} parameters", count(plan.head_parameters)),
        ),
        (
            "active",
            format!(
                "{} modules, {} parameters",
                plan.active_modules,
                count(plan.active_parameters)
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
            "memory, estimated",
            format!(
                "{} = weights {} + adapters {} + gradients {} + optimiser {} + activations of {} tokens {}",
                size(memory.total),
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
    print(&format!("{}\n\n{}", modules.trim_fmt(), totals.trim_fmt()))
}

fn plan(recipe: &Recipe, pretrained: &Pretrained, arguments: &Arguments) -> Result<Plan> {
    let config = &pretrained.config;
    let modules = pretrained.modules(&recipe.adapter.targets, recipe.adapter.rank as u32)?;
    let linears = pretrained.linears();
    let active_modules = arguments
        .active
        .unwrap_or(modules.len())
        .clamp(1, modules.len());
    let active = &modules[modules.len() - active_modules..];
    let sum = |modules: &[ModuleInfo]| modules.iter().map(|module| module.parameters).sum::<u64>();
    let lowest = active.iter().filter_map(|module| module.layer).min();

    let outputs = 2;
    let pooler = linears.iter().any(|linear| linear.layer.is_none());
    let head_parameters = head_parameters(config, pooler, outputs);
    let tokens = arguments
        .tokens
        .unwrap_or(match recipe.train.batch_limit() {
            BatchLimit::Tokens(tokens) => tokens,
            BatchLimit::Examples(examples) => {
                examples * recipe.model.max_length.min(config.max_length())
            }
        });
    let length = recipe.model.max_length.min(config.max_length());
    let adapted: u64 = modules.iter().map(|module| 2 * module.parameters).sum();
    let frozen: u64 = linears
        .iter()
        .map(|linear| 2 * (linear.inputs * linear.outputs) as u64)
        .sum();
    let forward_flops = frozen + adapted + config.attention_flops(length);
    // Backward runs through every layer from the top down to the lowest active one.
    let through = |layer: Option<u32>| layer.is_none() || (lowest.is_some() && layer >= lowest);
    let layers_through = lowest.map_or(0, |lowest| config.layers as u64 - u64::from(lowest));
    let backward_flops = linears
        .iter()
        .filter(|linear| through(linear.layer))
        .map(|linear| 2 * (linear.inputs * linear.outputs) as u64)
        .sum::<u64>()
        + active
            .iter()
            .map(|module| 4 * module.parameters)
            .sum::<u64>()
        + 2 * config.attention_flops(length) * layers_through / config.layers as u64;

    let trainable = sum(active) + head_parameters;
    let kept = match recipe.allocation.optimizer_state {
        OptimizerState::Reset => trainable,
        OptimizerState::Global | OptimizerState::Local => sum(&modules) + head_parameters,
    };
    let activations = tokens as u64 * 4 * activation_floats(config, lowest);
    let base_parameters = pretrained.weights.parameters();
    let mut memory = Memory {
        weights: 4 * base_parameters,
        adapters: 4 * (sum(&modules) + head_parameters),
        gradients: 4 * trainable,
        optimizer: 8 * kept,
        activations,
        total: 0,
    };
    memory.total =
        memory.weights + memory.adapters + memory.gradients + memory.optimizer + memory.activations;
    Ok(Plan {
        adapter_parameters: sum(&modules),
        head_parameters,
        base_parameters,
        active_modules,
        active_parameters: sum(active),
        lowest_active_layer: lowest,
        forward_flops,
        backward_flops,
        tokens,
        memory,
        modules,
    })
}

/// Values of one token that are alive at the peak: what the kernels keep for the backward pass of each
/// layer from the lowest active one up (q, k, v, the layer's input, two norms' sums, the attention's output,
/// and the feed-forward's input and inner values), and the widest working set of one layer.
fn activation_floats(config: &EncoderConfig, lowest: Option<u32>) -> u64 {
    let (hidden, inner) = (config.hidden as u64, config.intermediate as u64);
    let layers = lowest.map_or(0, |lowest| config.layers as u64 - u64::from(lowest));
    layers * (8 * hidden + inner) + 2 * inner + 4 * hidden
}
