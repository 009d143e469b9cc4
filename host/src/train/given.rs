//! The adapter that training starts from, where the recipe names one.

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use dynalora_plugin_api::ModuleInfo;

use crate::adapter::{Adapted, Adapters, Config};
use crate::data::{Data, LEARNT_FILE, Learnt, guess_classes};
use crate::error::{Error, Result};
use crate::export::{self, Peft};
use crate::kernel::Kernels;
use crate::model::{Head, ModelFolder, Pretrained};
use crate::recipe::{AdapterConfig, Recipe};
use crate::run::{self, Provenance};

/// An adapter that has been trained before, on a model.
pub struct Given {
    peft: Peft,
    /// Whether its head is taken too.
    head: bool,
    /// Whether the recipe says what its classes are.
    told: bool,
}

impl Given {
    /// Opens what `adapter.from` names: an adapter of the recipe's modules, sizes and scales on this model. The model is
    /// as it was.
    pub fn open(
        recipe: &Recipe,
        (model, pretrained): (&ModelFolder, Pretrained),
        adapted: &Adapted,
    ) -> Result<(Pretrained, Option<Self>)> {
        let Some(from) = &recipe.adapter.from else {
            return Ok((pretrained, None));
        };
        if from.starts_with(&recipe.output) {
            return Err(Error::user(format!(
                "adapter.from is {}, in the folder of the run that starts from it",
                from.display()
            ))
            .help("name another `output`"));
        }
        let run = from.join("adapter");
        let folder = match run.is_dir() && !from.join(export::CONFIG).is_file() {
            true => &run,
            false => from,
        };
        let peft = export::read(folder, &pretrained.config)?;
        agree(&recipe.adapter, &peft, &pretrained, adapted)?;
        check_base(recipe, &peft, model)?;
        let frozen = pretrained.frozen_pooler();
        let fitted = peft.fit(pretrained)?;
        let head = recipe.adapter.from_head.unwrap_or(true);
        if head && fitted.frozen_pooler() != frozen && !recipe.data.predicts_tokens() {
            return Err(Error::user(format!(
                "the adapter {} has {} pooler, but the recipe's model.train_pooler is {}",
                folder.display(),
                if frozen { "a trained" } else { "no" },
                !frozen
            ))
            .help(format!(
                "set model.train_pooler = {frozen}, or adapter.from_head = false for a head that starts anew"
            )));
        }
        let told = recipe.data.task.is_some() || recipe.data.labels.is_some();
        let given = Given { peft, head, told };
        Ok((fitted.freeze_pooler(frozen)?, Some(given)))
    }

    /// Refuses a head that was trained on something else than this data; where nobody says what on, so much is said.
    pub fn check_head(&self, data: &Data) -> Result<()> {
        let folder = self.peft.folder();
        if !self.head {
            return Ok(());
        }
        let Some(learnt) = Learnt::read(folder)? else {
            if !self.told && data.problem.has_classes() {
                guess_classes(folder, &data.labels);
            }
            return Ok(());
        };
        let shown = |problem, labels: &[String]| match labels {
            [] => format!("{problem}"),
            labels => format!("{problem} with the classes {}", labels.join(", ")),
        };
        let theirs = shown(learnt.problem, &learnt.labels);
        let ours = shown(data.problem, &data.labels);
        if theirs == ours {
            return Ok(());
        }
        Err(Error::user(format!(
            "the adapter {} was trained for {theirs} (its {LEARNT_FILE}), but the data is for {ours}",
            folder.display()
        ))
        .help("set adapter.from_head = false: the head then starts anew; or name the classes in its order, `data.labels`"))
    }

    /// Says where the adapter was trained on what another tokenizer made of texts.
    pub fn warn_of_another_tokenizer(&self, data: &Data) -> Result<()> {
        let folder = self.peft.folder();
        let learnt = Learnt::read(folder)?.and_then(|learnt| learnt.tokenizer);
        if let (Some(theirs), Some(ours)) = (learnt, &data.tokenizer)
            && theirs != *ours
        {
            tracing::warn!(
                "adapter.from: {} was trained with another tokenizer than the model's here, or with another \
                 tokenizer_config.json beside it: tokens of one number may not be the same",
                folder.display()
            );
        }
        Ok(())
    }

    /// The adapters that a run starts with, `fresh` with the values that are given.
    pub fn adapters<B: Kernels>(
        &self,
        fresh: Adapters<B>,
        device: &B::Device,
    ) -> Result<Adapters<B>> {
        let values = self.peft.adapters(fresh.modules.clone(), device)?;
        Ok(fresh.with_values_of(values))
    }

    /// The head that it starts with, if it is given.
    pub fn head<B: Kernels>(
        &self,
        head: &Head<B>,
        device: &B::Device,
    ) -> Result<Option<Vec<Tensor<B, 2>>>> {
        let values = self.head.then(|| self.peft.head(head, device));
        values.transpose()
    }

    /// Its two files.
    pub fn files(&self) -> [PathBuf; 2] {
        self.peft.files()
    }
}

/// Refuses an adapter of a run whose model had other weights. Of another, which says no more than a name, it is said
/// where that is not the recipe's.
fn check_base(recipe: &Recipe, peft: &Peft, model: &ModelFolder) -> Result<()> {
    let (folder, ours) = (peft.folder().display(), &recipe.model);
    let known = run::provenance_of(peft.folder())?;
    if let Some(provenance) = known.filter(Provenance::knows_weights) {
        let Some(what) = provenance.other_weights(&model.weights)? else {
            return Ok(());
        };
        return Err(Error::user(format!(
            "adapter.from: {folder} was trained on other weights than those of model.name = \"{}\": {what}",
            ours.name
        ))
        .help(format!(
            "give model.name the folder it was trained on ({}); where these are the same weights in other files, copy \
             the adapter's folder out of its run and name the copy, which is taken by its word",
            peft.base().unwrap_or("which it does not name")
        )));
    }
    let Some(theirs) = peft.base() else {
        return Ok(());
    };
    let path = |name: &str| Path::new(name).canonicalize().ok();
    let same = theirs == ours.name || path(theirs).is_some_and(|it| path(&ours.name) == Some(it));
    let learnt = Learnt::read(peft.folder())?.map(|learnt| learnt.revision);
    let revision = learnt.or(peft.revision().map(str::to_owned));
    let other = revision.filter(|revision| *revision != ours.revision);
    if !same || other.is_some() {
        let of = |name: &str, revision: Option<&str>| match revision {
            Some(revision) => format!("{name} (revision {revision})"),
            None => name.to_owned(),
        };
        let here = other.is_some().then_some(ours.revision.as_str());
        tracing::warn!(
            "adapter.from: {folder} says that it was trained on {}, and the recipe's model is {}: whether these are the \
             same weights is not known, and on others it starts somewhere else",
            of(theirs, other.as_deref()),
            of(&ours.name, here)
        );
    }
    Ok(())
}

/// Refuses an adapter that is not what the recipe names.
fn agree(
    recipe: &AdapterConfig,
    peft: &Peft,
    pretrained: &Pretrained,
    adapted: &Adapted,
) -> Result<()> {
    let folder = peft.folder().display();
    let refuse = |what: String, help: String| {
        Err(Error::user(format!("adapter.from: {folder} {what}")).help(help))
    };
    let shared = Config::from(recipe);
    match (peft.config(), &shared) {
        (Config::Lora(_), Config::Lora(_)) => {}
        (Config::Vera(theirs), Config::Vera(ours)) => {
            let key = theirs.projection_prng_key;
            if key != ours.projection_prng_key {
                return refuse(
                    format!("has the projections of another key, {key}"),
                    format!("set adapter.projection_prng_key = {key}"),
                );
            }
        }
        (theirs, _) => {
            let (theirs, ours) = match theirs {
                Config::Lora(_) => ("lora", "vera"),
                Config::Vera(_) => ("vera", "lora"),
            };
            return refuse(
                format!("is of the kind \"{theirs}\", and the recipe of \"{ours}\""),
                format!("set adapter.kind = \"{theirs}\""),
            );
        }
    }
    let theirs = peft.modules(&pretrained.linears())?;
    let has = |modules: &[ModuleInfo], path: &str| modules.iter().any(|module| module.path == path);
    let targets = || match peft.targets() {
        Some(targets) => format!("set adapter.targets = {targets:?}"),
        None => "name its modules in adapter.targets".to_owned(),
    };
    let lacking = adapted.modules.iter().find(|it| !has(&theirs, &it.path));
    if let Some(module) = lacking {
        let what = format!("has no {}, which is a target of the recipe's", module.path);
        return refuse(what, targets());
    }
    let more = theirs.iter().find(|it| !has(&adapted.modules, &it.path));
    if let Some(module) = more {
        let what = format!("has {}, which is no target of the recipe's", module.path);
        return refuse(what, targets());
    }
    for (module, ours) in adapted.modules.iter().zip(&adapted.configs) {
        let theirs = peft.config_of(&module.path);
        let kinds = [
            ("use_dora", theirs.use_dora(), ours.use_dora()),
            ("bias", theirs.trains_bias(), ours.trains_bias()),
        ];
        if let Some((key, theirs, _)) = kinds.iter().find(|(_, theirs, ours)| theirs != ours) {
            let value = match (*key, *theirs) {
                ("bias", true) => "\"lora_only\"",
                ("bias", false) => "\"none\"",
                (_, true) => "true",
                (_, false) => "false",
            };
            return refuse(
                format!("has another adapter.{key} at {}", module.path),
                format!("set adapter.{key} = {value}"),
            );
        }
        let same = (theirs.scale() - ours.scale()).abs() <= 1e-6 * ours.scale();
        if theirs.rank() == ours.rank() && same {
            continue;
        }
        return refuse(
            format!(
                "has rank {} and scale {} at {}, where the recipe has {} and {}",
                theirs.rank(),
                theirs.scale(),
                module.path,
                ours.rank(),
                ours.scale()
            ),
            "set adapter.rank and adapter.alpha, or rank_pattern, alpha_pattern and use_rslora, as the adapter has them: \
             the scale is alpha / rank"
                .to_owned(),
        );
    }
    Ok(())
}
