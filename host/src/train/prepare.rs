//! From a recipe to everything a run needs before it meets a device.

use std::path::PathBuf;

use dynalora_plugin_api::{Budget, CostModel, ModuleInfo};

use super::cost::{HeadKind, Shape, Steps};
use super::eva::{Found, Seen};
use super::given::Given;
use super::ranks::Ranks;
use crate::adapter::{Adapted, Config};
use crate::allocation::{Controller, Named, Settings, Units};
use crate::data::{self, Data};
use crate::error::{Error, Result};
use crate::model::{ModelFolder, Pretrained, fetch, head_parameters};
use crate::plugin::{self, PluginPath};
use crate::recipe::{AdapterKind, BatchLimit, Length, Recipe};

/// A run before its first step, not yet on a device.
pub struct Prepared {
    /// The recipe.
    pub recipe: Recipe,
    /// Which modules are active, and who decides about it.
    pub controller: Controller,
    /// Optimiser steps of the whole run.
    pub total_steps: u64,
    /// What the run only reads.
    pub rest: Rest,
}

/// The read-only part.
pub struct Rest {
    /// The base model.
    pub pretrained: Pretrained,
    /// The data, tokenised.
    pub data: Data,
    /// The adapted modules in forward order.
    pub modules: Vec<ModuleInfo>,
    /// Method and sizes of each.
    pub configs: Vec<Config>,
    /// What the pairs start from, where that is what their modules read.
    pub eva: Option<Found>,
    /// Where the base model lies.
    pub folder: ModelFolder,
    /// The adapter that training starts from, if there is one.
    pub given: Option<Given>,
    /// The libraries of the plugins that decide.
    pub plugins: Vec<plugin::Found>,
}

impl Prepared {
    /// Opens the model, reads the data and makes the plugins; `plugin_dirs` are the command line's. Where the recipe asks
    /// for EVA, `eva` runs the model and finds what pairs start from, or knows it, and modules have the ranks of that. Of
    /// several `ranks` the first asks the plugins.
    pub fn new(
        mut recipe: Recipe,
        plugin_dirs: &[PathBuf],
        ranks: &Ranks,
        eva: impl FnOnce(&Seen<'_>) -> Result<Found>,
    ) -> Result<Self> {
        let folder = fetch::resolve(&recipe.model.name, &recipe.model.revision)?;
        let pretrained = Pretrained::open_for(&folder, &recipe.model, recipe.data.problem())?;
        refuse_dropout_under_a_cache(&recipe, &pretrained)?;
        data::check_kind(&recipe.data, &pretrained.config)?;
        refuse_tokens_without_a_head(&recipe, &pretrained)?;
        let mut adapted = pretrained.adapted(&recipe.adapter)?;
        refuse_a_rate_of_no_embeddings(&recipe, &adapted)?;
        let (pretrained, given) = Given::open(&recipe, (&folder, pretrained), &adapted)?;
        // Before the data, which can take long: a misspelt plugin is found out at once.
        let mut plugins = Plugins::load(&recipe, &adapted, plugin_dirs, ranks)?;
        let mut data = data::load(&recipe, &folder, &pretrained.config)?;
        // What was learnt from the data is a part of what the run was.
        recipe.data.settle(&data.labels, data.problem);
        if let Some(given) = &given {
            given.check_head(&data)?;
            given.warn_of_another_tokenizer(&data)?;
        }
        let trains = data.train.labels.len() == data.train.len() && !data.train.is_empty();
        if !trains {
            return Err(Error::user("the training data has no labelled examples")
                .help("check `train` or `dir` in [data]"));
        }
        data.hold_back(plugins.held_back(), recipe.seed)?;
        let asked = recipe.adapter.eva();
        let found = asked.map(|_| {
            eva(&Seen {
                recipe: &recipe,
                pretrained: &pretrained,
                data: &data,
                adapted: &adapted,
            })
        });
        let found = found.transpose()?;
        if let (Some(found), true) = (&found, asked.is_some_and(|eva| eva.redistributes())) {
            found.check(&adapted)?;
            let prefix = pretrained.config.prefix;
            adapted = adapted.redistributed(&recipe.adapter, prefix, &found.record.ranks);
            // These are the modules that they choose among.
            plugins = Plugins::load(&recipe, &adapted, plugin_dirs, ranks)?;
        }
        let total_steps = match recipe.train.length() {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => epochs * data.steps_per_epoch(&recipe.train, recipe.seed),
        };
        let libraries = plugins.libraries();
        let steps = Steps::of(&data.train, &recipe.train, recipe.seed);
        let costs = costs(
            &recipe,
            &pretrained,
            &adapted.modules,
            steps,
            data.outputs(),
        );
        let controller = plugins.controller(&recipe, total_steps, costs)?;
        Ok(Prepared {
            recipe,
            controller,
            total_steps,
            rest: Rest {
                pretrained,
                data,
                modules: adapted.modules,
                configs: adapted.configs,
                eva: found,
                folder,
                given,
                plugins: libraries,
            },
        })
    }
}

/// What can be found wrong with a recipe before its data is read: as [`Prepared::new`] finds it. The answer is how many
/// training examples its plugins want held back.
pub fn check(
    recipe: &Recipe,
    pretrained: &Pretrained,
    adapted: &Adapted,
    plugin_dirs: &[PathBuf],
) -> Result<u64> {
    refuse_dropout_under_a_cache(recipe, pretrained)?;
    data::check_kind(&recipe.data, &pretrained.config)?;
    refuse_tokens_without_a_head(recipe, pretrained)?;
    refuse_a_rate_of_no_embeddings(recipe, adapted)?;
    let plugins = Plugins::load(recipe, adapted, plugin_dirs, &Ranks::alone())?;
    let held_back = plugins.held_back();
    match recipe.train.length() {
        Length::Steps(total) => {
            let steps = longest_step(recipe, pretrained);
            let outputs = match recipe.data.predicts_tokens() {
                true => 0,
                false => recipe.data.labels.as_ref().map_or(1, Vec::len),
            };
            let costs = costs(recipe, pretrained, &adapted.modules, steps, outputs);
            plugins.controller(recipe, total, costs)?;
        }
        // So many steps as there are batches, which only the data can tell.
        Length::Epochs(_) => {}
    }
    Ok(held_back)
}

/// What choices of modules cost in such steps, with so many logits.
pub fn costs(
    recipe: &Recipe,
    pretrained: &Pretrained,
    modules: &[ModuleInfo],
    steps: Steps,
    outputs: usize,
) -> CostModel {
    let adapter = Config::from(&recipe.adapter);
    let shape = Shape {
        config: &pretrained.config,
        linears: &pretrained.linears(),
        modules,
        adapter: &adapter,
        head: HeadKind::of(recipe.data.problem(), outputs),
        checkpointing: recipe.train.gradient_checkpointing,
    };
    let head = head_parameters(&pretrained.config, pretrained.frozen_pooler(), outputs);
    shape.costs(steps, head)
}

/// The largest step that the recipe allows, before its data is known: every text as long as texts can be.
pub fn longest_step(recipe: &Recipe, pretrained: &Pretrained) -> Steps {
    let length = recipe.model.longest().min(pretrained.config.max_length);
    let tokens = match recipe.train.batch_limit() {
        BatchLimit::Tokens(tokens) => tokens,
        BatchLimit::Examples(examples) => examples * length,
    };
    Steps::longest(tokens, length, recipe.train.gradient_accumulation)
}

fn refuse_tokens_without_a_head(recipe: &Recipe, pretrained: &Pretrained) -> Result<()> {
    match recipe.data.predicts_tokens() {
        true => pretrained.require_language_head(),
        false => Ok(()),
    }
}

/// A rate that nothing trains by.
fn refuse_a_rate_of_no_embeddings(recipe: &Recipe, adapted: &Adapted) -> Result<()> {
    let idle = !adapted.configs.iter().any(Config::is_embedding);
    match recipe.train.loraplus_lr_embedding.filter(|_| idle) {
        None => Ok(()),
        Some(rate) => Err(Error::user(format!(
            "train.loraplus_lr_embedding is {rate}, but none of the {} adapted modules is a table of embeddings",
            adapted.configs.len()
        ))
        .help("drop the key, or name a table in adapter.targets")),
    }
}

/// A cached prefix would repeat the first epoch's dropout for ever.
fn refuse_dropout_under_a_cache(recipe: &Recipe, pretrained: &Pretrained) -> Result<()> {
    if !recipe.train.cache_frozen_prefix {
        return Ok(());
    }
    let dropout = &pretrained.config.dropout;
    let dropouts = [
        (
            "model.hidden_dropout",
            dropout.embeddings.max(dropout.hidden),
        ),
        ("model.attention_dropout", dropout.attention),
        ("adapter.dropout", recipe.adapter.dropout as f32),
    ];
    match dropouts.iter().find(|(_, probability)| *probability > 0.0) {
        None => Ok(()),
        Some((key, probability)) => Err(Error::user(format!(
            "train.cache_frozen_prefix is true, but {key} is {probability}: kept outputs would have the \
             first epoch's dropout for ever"
        ))
        .help(format!(
            "set {key} = 0.0 (the model's own comes from its config.json), or leave cache_frozen_prefix out"
        ))),
    }
}

/// The plugins of a recipe, made for its modules.
struct Plugins {
    units: Units,
    scorer: Option<plugin::Loaded<dyn dynalora_plugin_api::Scorer>>,
    allocator: Option<plugin::Loaded<dyn dynalora_plugin_api::Allocator>>,
    initial: Option<Budget>,
    initial_ranks: Option<Vec<u32>>,
}

impl Plugins {
    /// Finds and makes them; the parameters of each are held against the modules that it is to choose among.
    fn load(
        recipe: &Recipe,
        adapted: &Adapted,
        plugin_dirs: &[PathBuf],
        ranks: &Ranks,
    ) -> Result<Self> {
        let allocation = &recipe.allocation;
        let units = Units::new(allocation.unit, adapted.modules.clone());
        let initial_ranks = adapted.initial_ranks.clone();
        let initial = allocation.initial_budget(recipe.allocator.as_ref())?;
        if !allocation.is_dynamic() {
            return Ok(Plugins {
                units,
                scorer: None,
                allocator: None,
                initial,
                initial_ranks,
            });
        }
        let path = PluginPath::new(plugin_dirs, &recipe.plugin_dirs)?;
        let scorer = recipe.scorer.as_ref().map(|scorer| {
            plugin::load_scorer(
                &path,
                &scorer.plugin,
                &scorer.parameters_json(),
                scorer.isolation.as_ref(),
                units.modules(),
                |own| ranks.carried(own),
            )
        });
        let allocator = recipe.allocator.as_ref().map(|allocator| {
            plugin::load_allocator(
                &path,
                &allocator.plugin,
                &allocator.parameters_json(),
                allocator.isolation.as_ref(),
                units.infos(),
                |own| ranks.carried(own),
            )
        });
        let (scorer, allocator) = (scorer.transpose()?, allocator.transpose()?);
        Ok(Plugins {
            units,
            scorer,
            allocator,
            initial,
            initial_ranks,
        })
    }

    /// How many training examples they want held back for trials.
    fn held_back(&self) -> u64 {
        let scorer = self.scorer.as_ref().map(|it| it.plugin.needs().held_back);
        let allocator = self
            .allocator
            .as_ref()
            .map(|it| it.plugin.needs().held_back);
        scorer.max(allocator).unwrap_or(0)
    }

    fn libraries(&self) -> Vec<plugin::Found> {
        let scorer = self.scorer.as_ref().map(|it| (&it.path, &it.manifest));
        let allocator = self.allocator.as_ref().map(|it| (&it.path, &it.manifest));
        let both = [scorer, allocator].into_iter().flatten();
        both.map(|(path, manifest)| plugin::Found {
            path: path.clone(),
            manifest: manifest.clone(),
        })
        .collect()
    }

    /// The controller of a run of so many steps, in which they have to be able to work.
    fn controller(self, recipe: &Recipe, total_steps: u64, costs: CostModel) -> Result<Controller> {
        let settings = Settings {
            schedule: recipe.allocation.schedule.clone(),
            initial_budget: self.initial,
            first_choice: recipe.allocation.first_choice(),
            learning_rate: recipe.train.learning_rate,
            probe_steps: recipe.allocation.probe_steps,
            prunable: recipe.adapter.kind == AdapterKind::Lora,
            initial_ranks: self.initial_ranks.clone(),
            seed: recipe.seed,
            total_steps,
            costs: Some(costs),
        };
        let libraries = self.libraries();
        let manifests = libraries.iter().map(|found| &found.manifest);
        let versions: Vec<String> = manifests.filter_map(plugin::versions).collect();
        let scorer = self.scorer.map(|scorer| {
            tracing::info!(
                "scorer {} from {}",
                scorer.manifest.name,
                scorer.path.display()
            );
            Named {
                name: scorer.manifest.name,
                plugin: scorer.plugin,
            }
        });
        let allocator = self.allocator.map(|allocator| {
            tracing::info!(
                "allocator {} from {}",
                allocator.manifest.name,
                allocator.path.display()
            );
            Named {
                name: allocator.manifest.name,
                plugin: allocator.plugin,
            }
        });
        let controller = Controller::new(settings, self.units, scorer, allocator);
        // Where it is refused, what a newer version asks for may be why.
        controller.map_err(|error| versions.into_iter().fold(error, Error::and_help))
    }
}
