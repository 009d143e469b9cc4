//! A trained adapter with the model it belongs to, opened for use.

use std::path::{Path, PathBuf};

use crate::data::words::{self, Sentence};
use crate::data::{self, Encoded, Encoder, Example, Learnt, Limits, Places, Template, image};
use crate::error::{Error, Result};
use crate::export::{self, Peft};
use crate::kernel::Kernels;
use crate::metrics::{self, Metric};
use crate::model::{Model, ModelFolder, Pretrained, fetch};
use crate::recipe::{Problem, Recipe};
use crate::run::{self, Provenance, Run};
use crate::train::trainee::Trainee;

/// Keys of a recipe that an answer can depend on once an adapter is trained.
const ANSWERS: &[&str] = &[
    "device",
    "threads",
    "evaluation.batch_tokens",
    "model.name",
    "model.revision",
    "model.max_length",
    "model.precision",
    "model.train_pooler",
];
/// Keys that decide what is scored.
const SCORED: &[&str] = &[
    "data.task",
    "data.dir",
    "data.hub",
    "data.config",
    "data.revision",
    "data.validation",
    "data.test",
    "data.format",
    "data.delimiter",
    "data.header",
    "data.quote",
    "data.columns",
    "data.metrics",
    "data.limit",
];
/// Keys that say what the classes are, for an adapter that does not say it itself.
const CLASSES: &[&str] = &["data.labels", "data.problem", "data.train"];

/// What an adapter is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Scoring data.
    Evaluate,
    /// Labelling texts, going on with them, or merging, which read no data.
    Predict,
}

/// A run or an adapter folder, opened but not yet on a device.
pub struct Trained {
    /// The run's recipe, or the one given for an adapter.
    pub recipe: Recipe,
    /// What the answers depend on beside the weights.
    pub learnt: Learnt,
    /// The base model's folder.
    pub folder: ModelFolder,
    pretrained: Pretrained,
    adapter: Peft,
}

impl Trained {
    /// Opens `target`: a run's folder, whose own recipe counts unless `recipe` names another; or a PEFT
    /// adapter's folder, whose recipe is that of the run it lies in unless `recipe` names one. Of `sets`, only
    /// keys are taken that act on the `purpose`.
    pub fn open(
        target: &Path,
        recipe: Option<&Path>,
        sets: &[String],
        purpose: Purpose,
    ) -> Result<Self> {
        let is_adapter = target.join("adapter_config.json").is_file();
        let adapter_dir = if is_adapter {
            target.to_owned()
        } else {
            let run = Run::open(target)?;
            if !run.adapter_dir().is_dir() {
                return Err(Error::user(format!(
                    "the run {} has no adapter yet",
                    target.display()
                ))
                .help("train it to its end: dynalora train RECIPE --resume"));
            }
            run.adapter_dir()
        };
        let recipe_path: PathBuf = match recipe {
            Some(recipe) => recipe.to_owned(),
            None => {
                let run = adapter_dir.parent().map(|dir| dir.join("recipe.toml"));
                run.filter(|path| path.is_file()).ok_or_else(|| {
                    Error::user(format!(
                        "the adapter {} does not lie in a run, so that its model and data are not known",
                        target.display()
                    ))
                    .help("name a recipe with the same model and data: --recipe RECIPE")
                })?
            }
        };
        let told = Learnt::read(&adapter_dir)?;
        check_sets(sets, purpose, told.is_some())?;
        let (mut recipe, document) = Recipe::load_with_document(&recipe_path, sets)?;
        let learnt = match told {
            Some(learnt) => {
                learnt.agree(&recipe.data, &adapter_dir)?;
                if !document.has("model.max_length") && learnt.images.is_none() {
                    recipe.model.max_length = Some(learnt.max_length);
                }
                learnt
            }
            None => Learnt::from_recipe(&recipe, &adapter_dir)?,
        };
        let folder = fetch::resolve(&recipe.model.name, &recipe.model.revision)?;
        let pretrained = Pretrained::open_for(&folder, &recipe.model, learnt.problem)?;
        let adapter = export::read(&adapter_dir, &pretrained.config)?;
        let pretrained = adapter.fit(pretrained)?;
        let known = run::provenance_of(&adapter_dir)?;
        if let Some(provenance) = known.filter(Provenance::knows_weights)
            && let Some(what) = provenance.other_weights(&folder.weights)?
        {
            tracing::warn!(
                "{} was trained on other weights than those of model.name = \"{}\": {what}",
                adapter_dir.display(),
                recipe.model.name
            );
        }
        Ok(Trained {
            recipe,
            learnt,
            folder,
            pretrained,
            adapter,
        })
    }

    /// What scores are asked for: the recipe's, else the adapter's own.
    pub fn metrics(&self) -> Result<Vec<Metric>> {
        let metrics = match &self.recipe.data.metrics {
            Some(metrics) => metrics.clone(),
            None => self.learnt.metrics.clone(),
        };
        metrics::check(&metrics, self.learnt.problem, self.learnt.labels.len())?;
        Ok(metrics)
    }

    /// Whether it answers images, not texts.
    pub fn reads_images(&self) -> bool {
        self.recipe.data.is_images()
    }

    /// The labelled splits of the recipe's data that `name` means, as the model reads them. No other data is read.
    pub fn load_split(&self, name: &str) -> Result<Vec<(String, Encoded)>> {
        if self.reads_images() {
            let reader = self.images()?;
            return image::load_split(&self.recipe.data, &reader, &self.learnt, name);
        }
        let limits = Limits::of(&self.pretrained.config)?;
        if self.learnt.problem == Problem::TokenClassification {
            let encoder = self.encoder()?;
            return words::load_split(&self.recipe.data, &encoder, &limits, &self.learnt, name);
        }
        let template = self.recipe.data.is_chat().then(|| self.chat_template());
        let (encoder, template) = (self.encoder()?, template.transpose()?);
        let written = (&encoder, template.as_ref());
        data::load_split(&self.recipe, written, &limits, &self.learnt, name)
    }

    /// The chat template, which must be that of the training where that was on conversations.
    pub fn chat_template(&self) -> Result<Template> {
        let template = Template::open(&self.folder.dir)?;
        let learnt = self.learnt.chat_template.as_ref();
        self.same(learnt, template.identity(), || {
            let path = template.path().display();
            (
                format!("{path}: the chat template is not what the adapter was trained with"),
                "chat_template",
            )
        })?;
        Ok(template)
    }

    /// What the model makes of images, which must be what it was in training.
    pub fn images(&self) -> Result<image::Reader> {
        let reader = image::Reader::open(&self.folder, &self.pretrained.config)?;
        let file = &self.folder.preprocessor;
        self.same(
            self.learnt.images.as_ref(),
            &reader.processor.identity(),
            || {
                (
                    format!(
                        "{} is not what the adapter was trained with",
                        file.display()
                    ),
                    "images",
                )
            },
        )?;
        Ok(reader)
    }

    /// Refuses another digest than what was `learnt`. `what` says what differs, and the key that holds it.
    fn same(
        &self,
        learnt: Option<&String>,
        found: &str,
        what: impl Fn() -> (String, &'static str),
    ) -> Result<()> {
        match learnt {
            Some(own) if own != found => {
                let (what, key) = what();
                Err(Error::user(what).help(format!(
                    "give model.name the folder it was trained on ({}); if the change is meant, take `{key}` out of the adapter's {}",
                    self.learnt.base_model,
                    data::LEARNT_FILE
                )))
            }
            _ => Ok(()),
        }
    }

    /// Texts, tokenised; `places` names them in errors.
    pub fn tokenize(&self, texts: &[Example], places: &Places) -> Result<Encoded> {
        let (encoder, limits) = (self.encoder()?, Limits::of(&self.pretrained.config)?);
        let encoded = data::encode(&encoder, texts, places)?;
        data::check(&encoded, &limits, &encoder)?;
        Ok(encoded)
    }

    /// Sentences in words, tokenised; `places` names them in errors.
    pub fn tokenize_words(&self, sentences: &[Sentence], places: &Places) -> Result<Encoded> {
        let (encoder, limits) = (self.encoder()?, Limits::of(&self.pretrained.config)?);
        let named = ("what is to be tagged", places);
        let encoded = words::encode(&encoder, sentences, &self.learnt.labels, named)?;
        data::check(&encoded, &limits, &encoder)?;
        Ok(encoded)
    }

    /// The most tokens of a text that the model has positions for.
    pub fn longest(&self) -> usize {
        self.pretrained.config.max_length
    }

    /// The tokenizer, which must be that of the training.
    pub fn encoder(&self) -> Result<Encoder> {
        let limits = Limits::of(&self.pretrained.config)?;
        let encoder = data::encoder(&self.recipe, &self.folder, &limits)?;
        let file = &self.folder.tokenizer;
        self.same(self.learnt.tokenizer.as_ref(), encoder.identity(), || {
            (
                format!(
                    "{} is not the tokenizer that the adapter was trained with, or tokenizer_config.json beside it has changed",
                    file.display()
                ),
                "tokenizer",
            )
        })?;
        Ok(encoder)
    }

    /// Writes the base model with the adapter merged into it, and its head, into an empty folder.
    pub fn merge(&self, to: &Path, device: &burn_flex::FlexDevice) -> Result<()> {
        let trainee = self.load::<burn_flex::Flex>(device)?;
        let base = (&self.folder, &self.pretrained);
        let heads = trainee.model.head.tensors().into_iter();
        let head: Vec<_> = heads.zip(trainee.head).collect();
        let learnt = (self.learnt.problem, &self.learnt.labels[..]);
        export::merge(to, base, &trainee.adapters, &head, learnt)
    }

    /// Model, adapter and head on a device.
    pub fn load<B: Kernels>(&self, device: &B::Device) -> Result<Trainee<B>> {
        let modules = self.adapter.modules(&self.pretrained.linears())?;
        let model = Model::load(&self.pretrained, &modules, self.learnt.outputs(), device)?;
        let head = self.adapter.head(&model.head, device)?;
        let mut adapters = self.adapter.adapters(modules, device)?;
        self.pretrained.put_on(&mut adapters, &model, device)?;
        Ok(Trainee {
            model,
            adapters,
            head,
        })
    }
}

/// Refuses the first `--set` whose key cannot act. `told` says that the adapter names its own classes.
fn check_sets(sets: &[String], purpose: Purpose, told: bool) -> Result<()> {
    let mut allowed = ANSWERS.to_vec();
    match (purpose, told) {
        (Purpose::Evaluate, true) => allowed.extend(SCORED),
        (Purpose::Evaluate, false) => allowed.extend(SCORED.iter().chain(CLASSES)),
        (Purpose::Predict, true) => {}
        // The classes may have to be read from the training data, as the table says.
        (Purpose::Predict, false) => {
            let split = |key: &&&str| {
                !matches!(
                    **key,
                    "data.validation" | "data.test" | "data.metrics" | "data.limit"
                )
            };
            allowed.extend(SCORED.iter().filter(split).chain(CLASSES));
        }
    }
    for set in sets {
        let key = set.split('=').next().unwrap_or(set);
        let parts = key
            .split('.')
            .map(|part| part.trim().trim_matches(['"', '\'']));
        let key = parts.collect::<Vec<_>>().join(".");
        let acts = allowed
            .iter()
            .any(|known| key == *known || key.starts_with(&format!("{known}.")));
        if acts {
            continue;
        }
        let (what, rest) = match purpose {
            Purpose::Evaluate => ("evaluation", "the adapter is trained"),
            Purpose::Predict => ("prediction", "the adapter is trained, and no data is read"),
        };
        return Err(
            Error::user(format!("--set {key} cannot act on {what}: {rest}")).help(format!(
                "leave it out; what can be set here: {}",
                allowed.join(", ")
            )),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_act_are_set() {
        let check = |set: &str, purpose, told| check_sets(&[set.to_owned()], purpose, told);
        for set in [
            "model.max_length=9",
            "threads=1",
            " evaluation . batch_tokens = 64",
        ] {
            assert!(check(set, Purpose::Evaluate, true).is_ok(), "{set}");
            assert!(check(set, Purpose::Predict, true).is_ok(), "{set}");
        }
        assert!(check("data.columns.text=a", Purpose::Evaluate, true).is_ok());
        assert!(check("data.labels=['a', 'b']", Purpose::Predict, false).is_ok());
        for (set, purpose, told) in [
            ("seed=1", Purpose::Evaluate, true),
            ("train.steps=9", Purpose::Evaluate, false),
            ("adapter.targets=['query']", Purpose::Evaluate, true),
            ("data.labels=['a', 'b']", Purpose::Evaluate, true),
            ("data.validation=a.csv", Purpose::Predict, true),
            ("model.hidden_dropout=0.3", Purpose::Evaluate, true),
            ("evaluation.every=3", Purpose::Evaluate, true),
            ("data={train='x'}", Purpose::Evaluate, true),
        ] {
            let error = check(set, purpose, told).expect_err(set);
            let key = set.split('=').next().expect("a key");
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
