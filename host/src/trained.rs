//! A trained adapter with the model it belongs to, opened for use.

use std::path::{Path, PathBuf};

use crate::data::{Data, Problem, labels_of, load};
use crate::error::{Error, Result};
use crate::export::{self, Peft};
use crate::kernel::Kernels;
use crate::model::{Model, ModelFolder, Pretrained, fetch};
use crate::recipe::Recipe;
use crate::run::Run;
use crate::train::trainee::Trainee;

/// A run or an adapter folder, opened but not yet on a device.
pub struct Trained {
    /// The run's recipe, or the one given for an adapter.
    pub recipe: Recipe,
    /// The base model's folder.
    pub folder: ModelFolder,
    pretrained: Pretrained,
    adapter: Peft,
}

impl Trained {
    /// Opens `target`: a run's folder, whose own recipe counts unless `recipe` names another; or a PEFT
    /// adapter's folder, whose recipe is that of the run it lies in unless `recipe` names one.
    pub fn open(target: &Path, recipe: Option<&Path>, sets: &[String]) -> Result<Self> {
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
        let recipe = Recipe::load(&recipe_path, sets)?;
        let folder = fetch::resolve(&recipe.model.name, &recipe.model.revision)?;
        let pretrained = Pretrained::open(&folder, &recipe.model)?;
        let adapter = export::read(&adapter_dir, pretrained.config.family)?;
        let pretrained = adapter.fit(pretrained)?;
        Ok(Trained {
            recipe,
            folder,
            pretrained,
            adapter,
        })
    }

    /// The recipe's data, tokenised.
    pub fn load_data(&self) -> Result<Data> {
        load(
            &self.recipe,
            &self.folder,
            self.pretrained.config.max_length(),
        )
    }

    /// Names of the classes and the kind of problem, from the recipe where it tells, else from the data.
    pub fn labels(&self) -> Result<(Vec<String>, Problem)> {
        labels_of(&self.recipe.data)
    }

    /// The longest sequence the model and the recipe allow.
    pub fn max_length(&self) -> usize {
        self.recipe
            .model
            .max_length
            .min(self.pretrained.config.max_length())
    }

    /// Model, adapter and head on a device, with `outputs` logits.
    pub fn load<B: Kernels>(&self, outputs: usize, device: &B::Device) -> Result<Trainee<B>> {
        let modules = self.adapter.modules(&self.pretrained.linears())?;
        let model = Model::load(&self.pretrained, &modules, outputs, device)?;
        let head = self.adapter.head(&model.head, device)?;
        let adapters = self.adapter.adapters(modules, device)?;
        Ok(Trainee {
            model,
            adapters,
            head,
        })
    }
}
