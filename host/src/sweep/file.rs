//! The sweep file: which recipes, with what changed, for which seeds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use super::launch::{HqConfig, SlurmConfig, Wrong};
use super::points::{Choices, RandomConfig, Settings};
use super::seeds::Seeds;
use crate::error::{Error, Result};
use crate::recipe::Document;
use crate::report::Figure;

/// Runs to compare: arms, or recipes, with every point of a grid or of a random search, each with every seed.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// The folder of the runs, relative to the current directory. Each lies in `ARM-sSEED` in it.
    pub output: PathBuf,
    /// The seeds of every arm: a list, or first and last as in "0..9".
    pub seeds: Seeds,
    /// The recipe of arms that name none, relative to the sweep file.
    #[serde(default)]
    pub recipe: Option<PathBuf>,
    /// Recipes that are an arm each, called by their names without `.toml`: paths relative to the sweep file, whose last
    /// part may have `*` and `?`.
    #[serde(default)]
    pub recipes: Vec<String>,
    /// Arms by name.
    #[serde(default)]
    pub arm: Vec<ArmConfig>,
    /// The arm that the others are compared with in the end; by default plain LoRA, if there is one such arm.
    #[serde(default)]
    pub baseline: Option<String>,
    /// The metric that is compared in the end; by default the one that picks the runs' best checkpoints.
    #[serde(default)]
    pub metric: Option<String>,
    /// The columns of the table in the end, as `dynalora report --columns` takes them; by default all.
    #[serde(default)]
    pub columns: Vec<Figure>,
    /// What is set in every run: a recipe's dotted keys, in quotes, with their values.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub set: Settings,
    /// Keys with lists of values: every arm is trained with each combination of them.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Vec<serde_json::Value>>")]
    pub grid: Settings,
    /// Keys with values or ranges that are drawn at random, in place of a grid.
    #[serde(default)]
    pub random: Option<RandomConfig>,
    /// What is asked of Slurm for each run, by `--launcher slurm`.
    #[serde(default)]
    pub slurm: SlurmConfig,
    /// What is asked of HyperQueue for each run, by `--launcher hq`.
    #[serde(default)]
    pub hq: HqConfig,
}

/// One arm: a recipe and what is changed in it.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ArmConfig {
    /// What its runs are called.
    pub name: String,
    /// Its recipe, relative to the sweep file; by default the sweep's.
    #[serde(default)]
    pub recipe: Option<PathBuf>,
    /// What is set in it, after what is set in every run.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub set: Settings,
}

/// A sweep file, read.
#[derive(Clone, Debug)]
pub struct File {
    /// Where it lies.
    pub path: PathBuf,
    /// What it says.
    pub sweep: Sweep,
    /// Where it says it.
    pub document: Document,
}

impl File {
    /// Reads the sweep at `path`. An error, with its line, if it says what cannot be.
    pub fn load(path: &Path) -> Result<File> {
        File::load_with(path, &[])
    }

    /// As [`load`](Self::load), with each of `sets` (`table.key=value`) applied in order.
    pub fn load_with(path: &Path, sets: &[String]) -> Result<File> {
        File::parse(path, &Document::text("sweep", path)?, sets)
    }

    /// As [`load_with`](Self::load_with), of a text that is taken as if it lay at `path`.
    pub fn parse(path: &Path, text: &str, sets: &[String]) -> Result<File> {
        let (sweep, document): (Sweep, _) = Document::read("sweep", path, text, sets, &[])?;
        let file = File {
            path: path.to_owned(),
            sweep,
            document,
        };
        file.validate()?;
        Ok(file)
    }

    /// The JSON Schema of a sweep, for editors.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Sweep).to_value()
    }

    /// A path that the file names.
    pub fn beside(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    fn validate(&self) -> Result<()> {
        let sweep = &self.sweep;
        if sweep.seeds.list().is_empty() {
            return self.refuse(
                "seeds",
                "`seeds` names no seed".to_owned(),
                "empty",
                "give a list such as [0, 1, 2], or first and last as in \"0..9\"",
            );
        }
        if sweep.recipe.is_none() && sweep.recipes.is_empty() && sweep.arm.is_empty() {
            let error = Error::user(format!(
                "{}: there is nothing to train",
                self.path.display()
            ));
            return Err(error.help(
                "name a `recipe`, several in `recipes`, or [[arm]]s with a name and a recipe each",
            ));
        }
        self.check_arms()?;
        self.check_keys("set", &sweep.set)?;
        self.check_grid()?;
        self.check_table("slurm", sweep.slurm.wrong())?;
        self.check_table("hq", sweep.hq.wrong())?;
        match &sweep.random {
            Some(random) => self.check_random(random),
            None => Ok(()),
        }
    }

    fn check_arms(&self) -> Result<()> {
        let Sweep { recipe, arm, .. } = &self.sweep;
        for (number, own) in arm.iter().enumerate() {
            let ArmConfig { name, .. } = own;
            if own.recipe.is_none() && recipe.is_none() {
                return self.refuse(
                    &format!("arm[{number}].name"),
                    format!("the arm `{name}` has no recipe"),
                    "this arm",
                    "give it one, or one for all arms that have none: `recipe` at the top of the sweep",
                );
            }
            if arm[..number].iter().any(|other| other.name == *name) {
                return self.refuse(
                    &format!("arm[{number}].name"),
                    format!("two arms are called `{name}`"),
                    "the second",
                    "give each a name of its own",
                );
            }
            self.check_keys(&format!("arm[{number}].set"), &own.set)?;
        }
        Ok(())
    }

    fn check_grid(&self) -> Result<()> {
        self.check_keys("grid", &self.sweep.grid)?;
        for (key, values) in &self.sweep.grid {
            if values.as_array().is_none_or(Vec::is_empty) {
                return self.refuse(
                    &format!("grid.{key}"),
                    format!("`{key}` in [grid] is {values}"),
                    "expected a list of values",
                    "what all runs have belongs into [set]",
                );
            }
        }
        Ok(())
    }

    fn check_table(&self, table: &str, wrong: Option<Wrong>) -> Result<()> {
        match wrong {
            None => Ok(()),
            Some(Wrong { key, message, help }) => {
                self.refuse(&format!("{table}.{key}"), message, "here", help)
            }
        }
    }

    fn check_random(&self, random: &RandomConfig) -> Result<()> {
        if !self.sweep.grid.is_empty() {
            return self.refuse(
                "random",
                "[grid] and [random] are both given".to_owned(),
                "one of the two is too many",
                "make two sweeps of it",
            );
        }
        if random.draws == 0 || random.keys.is_empty() {
            return self.refuse(
                "random",
                "[random] draws nothing".to_owned(),
                "without `draws` or without `keys`",
                "give `draws`, how many, and [random.keys], what of: \"train.learning_rate\" = { from = 1e-4, to = 1e-2, scale = \"log\" }",
            );
        }
        self.check_keys("random.keys", &random.keys)?;
        for (key, values) in &random.keys {
            if let Err(why) = Choices::of(values) {
                return self.refuse(
                    &format!("random.keys.{key}"),
                    format!("`{key}` in [random.keys]: {why}"),
                    "nothing to draw from",
                    "give a list of values, or { from = 1e-4, to = 1e-2, scale = \"log\" }",
                );
            }
        }
        Ok(())
    }

    /// Refuses what a sweep sets itself, and keys whose dots were read as tables.
    fn check_keys(&self, table: &str, set: &Settings) -> Result<()> {
        for (key, value) in set {
            let place = format!("{table}.{key}");
            if key == "seed" || key == "output" {
                return Err(self
                    .document
                    .error(&place, format!("`{key}` is not for `{table}`"), "not here")
                    .help(format!(
                        "the sweep's own `{}` says it",
                        if key == "seed" { "seeds" } else { "output" }
                    )));
            }
            // Without quotes a dotted key is a table in a table, which would take the place of all that is in it.
            if value.is_table() && !self.document.is_inline(&place) {
                let inner = value.as_table().and_then(|inner| inner.keys().next());
                let inner = inner.map_or("KEY", String::as_str);
                return Err(self
                    .document
                    .error(&place, format!("`{key}` is a table of its own here"), "the dot is outside of quotes")
                    .help(format!("write the key in quotes, \"{key}.{inner}\" = …; or, in the place of the whole table, {key} = {{ {inner} = … }}")));
            }
        }
        Ok(())
    }

    /// An error that points at a key.
    fn refuse(&self, key: &str, message: String, label: &str, help: &str) -> Result<()> {
        Err(self.document.error(key, message, label).help(help))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn docs(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docs")
            .join(name)
    }

    /// `UPDATE_SCHEMA=1 cargo test` writes the file anew.
    #[test]
    fn the_committed_schema_is_the_sweeps() {
        let path = docs("sweep.schema.json");
        let schema = serde_json::to_string_pretty(&File::schema()).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(&path, &schema).unwrap();
        }
        let committed = std::fs::read_to_string(&path).expect("docs/sweep.schema.json is there");
        assert!(
            committed == schema,
            "docs/sweep.schema.json is stale: run the tests once with UPDATE_SCHEMA=1"
        );
    }

    /// The page's examples are sweeps, and it names every key.
    #[test]
    fn the_page_is_of_what_there_is() {
        let page = std::fs::read_to_string(docs("sweep.md")).expect("docs/sweep.md is there");
        let examples: Vec<&str> = page
            .split("```toml\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
            .collect();
        assert!(examples.len() >= 2);
        for example in examples {
            File::parse(Path::new("configs/sweeps/page.toml"), example, &[]).unwrap();
        }
        let schema = File::schema();
        let tables = [
            &schema["properties"],
            &schema["$defs"]["ArmConfig"]["properties"],
            &schema["$defs"]["RandomConfig"]["properties"],
            &schema["$defs"]["SlurmConfig"]["properties"],
            &schema["$defs"]["HqConfig"]["properties"],
        ];
        for table in tables {
            for key in table.as_object().expect("keys").keys() {
                assert!(
                    page.contains(&format!("`{key}`")),
                    "docs/sweep.md does not name `{key}`"
                );
            }
        }
    }
}
