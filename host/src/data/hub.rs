//! Data sets of the Hugging Face Hub: which files belong to which split.
//!
//! As `datasets` finds them: by `configs` in the YAML of the README, else by the names of files and folders
//! (`data_files.py`), else, as the Hub has converted them, on its branch `refs/convert/parquet`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use globset::GlobBuilder;
use serde::Deserialize;
use serde_json::Value;

use super::task::{Part, whole_export};
use crate::error::{Error, Result};
use crate::hub::{self, Hub, Kind, Repository};
use crate::recipe::{DataConfig, Format};
use crate::yaml;

/// The files of each split that is read, in order: training, validation, test.
pub type Files = [Vec<PathBuf>; 3];

/// Where the Hub puts the Parquet files that it makes of data sets in other formats.
const CONVERTED: &str = "refs/convert/parquet";
const README: &str = "README.md";
/// The configuration of a data set that names none.
const DEFAULT: &str = "default";

/// Fetches those `parts` that `config` reads of the data set `id`.
pub fn fetch(config: &DataConfig, id: &str, parts: &[Part]) -> Result<Files> {
    if !hub::is_id(id) {
        return Err(
            Error::user(format!("data.hub = \"{id}\" is no name of a data set"))
                .help("give it as its page on the Hub is called: \"owner/name\""),
        );
    }
    Asked { config, id, parts }.fetch(&Hub::from_environment()?)
}

/// What is asked for.
struct Asked<'a> {
    config: &'a DataConfig,
    id: &'a str,
    parts: &'a [Part],
}

impl Asked<'_> {
    fn fetch(&self, hub: &Hub) -> Result<Files> {
        let Asked { config, id, .. } = self;
        let repository = hub.repository(Kind::Dataset, id, config.revision())?;
        let listed = repository.listed()?;
        let (repository, listing) = listed.ok_or_else(|| repository.no_such_revision())?;
        let configs = match listing.iter().any(|file| file == README) {
            true => self.readme(&repository)?,
            false => Vec::new(),
        };
        let chosen = Chosen {
            id,
            config: config.config.as_deref(),
            listing: &listing,
        };
        let splits = chosen.splits(&configs)?;
        match splits.values().flatten().find(|file| !is_read(file)) {
            None if !splits.is_empty() => self.picked(&repository, &splits),
            other => {
                let found = match other {
                    Some(file) => format!("{file} is of a format that is not read"),
                    None => match &config.config {
                        Some(name) => format!(
                            "neither does its README speak of a configuration `{name}`, nor is there a folder with data of \
                             that name"
                        ),
                        None => "it has no files of data".to_owned(),
                    },
                };
                self.converted(hub, &found)
            }
        }
    }

    /// The configurations in the README.
    fn readme(&self, repository: &Repository<'_>) -> Result<Vec<Config>> {
        let path = repository.get(README)?;
        let text = std::fs::read(&path)
            .map_err(|error| Error::failure(format!("cannot read {}: {error}", path.display())))?;
        configs_of(&String::from_utf8_lossy(&text)).map_err(|why| {
            Error::user(format!("the data set {}: {README}: {why}", self.id)).help(
                "its YAML is not as `datasets` takes it: give the files of a copy as data.train",
            )
        })
    }

    /// The same of the Hub's own conversion, which follows the newest commit.
    fn converted(&self, hub: &Hub, found: &str) -> Result<Files> {
        let Asked { config, id, .. } = self;
        let unread = |why: String| {
            Error::user(format!("the data set {id}: {found}; {why}"))
            .help("Parquet, CSV, TSV and JSON lines are read: convert the data, or give files of your own as data.train")
        };
        if config.revision.is_some() {
            let revision = config.revision();
            return Err(unread(format!(
                "and what the Hub has converted is not of the revision \"{revision}\""
            )));
        }
        let repository = hub.repository(Kind::Dataset, id, CONVERTED)?;
        let (repository, listing) = repository
            .listed()?
            .ok_or_else(|| unread(format!("and there is no branch {CONVERTED}")))?;
        tracing::warn!(
            "the data set {id}: {found}: what the Hub has made of it is read ({CONVERTED})"
        );
        // `config/split/0000.parquet`, of large ones the first part: `config/partial-split/0000.parquet`.
        let mut configs: BTreeMap<&str, Splits> = BTreeMap::new();
        for file in &listing {
            if let [name, split, _] = file.split('/').collect::<Vec<_>>()[..]
                && file.ends_with(".parquet")
            {
                let splits = configs.entry(name).or_default();
                splits
                    .entry(split.to_owned())
                    .or_default()
                    .push(file.clone());
            }
        }
        let names: Vec<&str> = configs.keys().copied().collect();
        let name = match (config.config.as_deref(), names.as_slice()) {
            (Some(name), _) => name,
            (None, [only]) => only,
            (None, _) if names.contains(&DEFAULT) => DEFAULT,
            (None, _) => return Err(several(id, &names)),
        };
        let splits = configs
            .get(name)
            .ok_or_else(|| no_config(id, name, &names))?;
        for (part, split, _) in self.wanted() {
            let partial = format!("partial-{split}");
            if splits.contains_key(&partial) {
                return Err(unread(format!(
                    "and the Hub has converted only a part of its {} split, as {partial}",
                    part.name()
                )));
            }
        }
        self.picked(&repository, splits)
    }

    /// Which split is read as what, and whether the recipe names it.
    fn wanted(&self) -> [(Part, String, bool); 3] {
        let config = self.config;
        let named = |part: Part, given: &Option<PathBuf>| {
            let name = given
                .as_ref()
                .map(|name| name.to_string_lossy().into_owned());
            let is_named = name.is_some();
            (
                part,
                name.unwrap_or_else(|| part.name().to_owned()),
                is_named,
            )
        };
        [
            named(Part::Train, &config.train),
            named(Part::Validation, &config.validation),
            named(Part::Test, &config.test),
        ]
    }

    /// Fetches the files of those splits that the recipe reads.
    fn picked(&self, repository: &Repository<'_>, splits: &Splits) -> Result<Files> {
        let Asked { id, parts, .. } = self;
        let mut files = Files::default();
        for (to, (part, split, named)) in files.iter_mut().zip(self.wanted()) {
            if !parts.contains(&part) {
                continue;
            }
            let Some(names) = splits.get(&split) else {
                if named || part == Part::Train {
                    let there: Vec<&str> = splits.keys().map(String::as_str).collect();
                    return Err(Error::user(format!(
                        "the data set {id} has no split `{split}` to read as data.{}",
                        part.name()
                    ))
                    .help(format!("its splits: {}", there.join(", "))));
                }
                continue;
            };
            for name in names {
                to.push(repository.get(name)?);
            }
            whole_export(to)?;
        }
        Ok(files)
    }
}

/// Files of a repository by the names of splits.
type Splits = BTreeMap<String, Vec<String>>;

/// A configuration in a README: what is called a subset on the Hub's pages.
#[derive(Debug, Deserialize)]
struct Config {
    config_name: String,
    #[serde(default)]
    data_files: Option<Value>,
    #[serde(default)]
    data_dir: Option<String>,
    #[serde(default)]
    default: bool,
}

/// The configurations in a README's YAML.
fn configs_of(readme: &str) -> Result<Vec<Config>, String> {
    #[derive(Deserialize)]
    struct Card {
        #[serde(default)]
        configs: Option<Vec<Config>>,
    }
    let mut lines = readme.lines();
    if lines.next() != Some("---") {
        return Ok(Vec::new());
    }
    let yaml: Vec<&str> = lines.clone().take_while(|line| *line != "---").collect();
    if yaml.len() == lines.count() {
        return Ok(Vec::new());
    }
    let yaml = yaml::read(&yaml.join("\n"))?;
    let card: Option<Card> = serde_json::from_value(yaml).map_err(|error| error.to_string())?;
    Ok(card.and_then(|card| card.configs).unwrap_or_default())
}

/// What is asked of a data set.
struct Chosen<'a> {
    id: &'a str,
    /// The configuration's name.
    config: Option<&'a str>,
    listing: &'a [String],
}

impl Chosen<'_> {
    /// The files of each split.
    fn splits(&self, configs: &[Config]) -> Result<Splits> {
        if configs.is_empty() {
            return self.conventional();
        }
        let names: Vec<&str> = configs
            .iter()
            .map(|config| config.config_name.as_str())
            .collect();
        let found = match self.config {
            Some(name) => {
                let found = configs.iter().find(|config| config.config_name == name);
                found.ok_or_else(|| no_config(self.id, name, &names))?
            }
            None => {
                let is_default = |config: &&Config| {
                    configs.len() == 1 || config.config_name == DEFAULT || config.default
                };
                let mut defaults = configs.iter().filter(is_default);
                match (defaults.next(), defaults.next()) {
                    (Some(only), None) => only,
                    _ => return Err(several(self.id, &names)),
                }
            }
        };
        let base = found.data_dir.as_deref().unwrap_or_default();
        let base = base.trim_start_matches("./").trim_end_matches('/');
        let Some(files) = &found.data_files else {
            return self.by_names(base);
        };
        let patterns = patterns(files).ok_or_else(|| {
            Error::user(format!(
                "the data set {}: {README}: the data_files of {} are neither patterns nor splits with their patterns",
                self.id, found.config_name
            ))
            .help("give the files of a copy as data.train")
        })?;
        let mut splits = Splits::new();
        for (split, patterns) in patterns {
            for pattern in patterns {
                let matched = self.matching(base, &pattern)?;
                if matched.is_empty() {
                    return Err(Error::user(format!(
                        "the data set {}: {README} names {pattern} for the split {split}, and there is no such file",
                        self.id
                    ))
                    .help("tell its authors; or give files of a copy as data.train"));
                }
                splits.entry(split.clone()).or_default().extend(matched);
            }
        }
        Ok(splits)
    }

    /// Without a word in the README: files and folders that are called as splits are, in the folder that is called as
    /// the configuration is.
    fn conventional(&self) -> Result<Splits> {
        let Some(name) = self.config.filter(|name| *name != DEFAULT) else {
            let splits = self.by_names("")?;
            // `datasets` would put all of them together.
            for (split, files) in &splits {
                let folder =
                    |file: &String| file.rsplit_once('/').map(|(folder, _)| folder.to_owned());
                let mut folders: Vec<String> = files.iter().filter_map(folder).collect();
                folders.sort();
                folders.dedup();
                let configs: Vec<&str> = folders
                    .iter()
                    .filter_map(|folder| folder.split('/').next())
                    .collect();
                if folders.len() > 1 && !configs.windows(2).all(|pair| pair[0] == pair[1]) {
                    tracing::debug!("the split {split} is in {}", folders.join(", "));
                    return Err(several(self.id, &configs));
                }
            }
            return Ok(splits);
        };
        self.by_names(name)
    }

    /// As `get_data_patterns` of `datasets`: the first of its kinds of patterns that matches anything below `base`.
    fn by_names(&self, base: &str) -> Result<Splits> {
        let number = "[0-9][0-9][0-9][0-9][0-9]";
        let mut splits = Splits::new();
        for file in self.matching(base, &format!("data/*-{number}-of-{number}*.*"))? {
            let name = file.rsplit('/').next().unwrap_or_default();
            // `split-00000-of-00001.parquet`.
            let split = name
                .rsplit_once("-of-")
                .and_then(|(start, _)| start.rsplit_once('-'));
            if let Some((split, _)) = split {
                splits.entry(split.to_owned()).or_default().push(file);
            }
        }
        if !splits.is_empty() {
            return Ok(splits);
        }
        for kind in [FOLDERS, FILES] {
            for (split, words) in KEYWORDS {
                let mut found = Vec::new();
                for (word, pattern) in words
                    .iter()
                    .flat_map(|word| kind.iter().map(move |p| (word, p)))
                {
                    let pattern = pattern.replace("{}", word).replace('@', "[-._ 0-9]");
                    found.extend(self.matching(base, &pattern)?);
                }
                found.sort();
                found.dedup();
                if !found.is_empty() {
                    splits.insert(split.to_owned(), found);
                }
            }
            if !splits.is_empty() {
                return Ok(splits);
            }
        }
        let all = self.matching(base, "**")?;
        if !all.is_empty() {
            splits.insert("train".to_owned(), all);
        }
        Ok(splits)
    }

    /// The files of data below `base` that a pattern means, in the order of their names. `*` stops at a slash, `**`
    /// does not; what is hidden, or in a folder that begins with two underscores, has to be asked for by that.
    fn matching(&self, base: &str, pattern: &str) -> Result<Vec<String>> {
        let pattern = match base {
            "" => pattern.trim_start_matches("./").to_owned(),
            base => format!("{base}/{}", pattern.trim_start_matches("./")),
        };
        let glob = GlobBuilder::new(&pattern).literal_separator(true).build();
        let glob = glob.map_err(|error| {
            Error::user(format!(
                "the data set {}: the pattern {pattern}: {error}",
                self.id
            ))
            .help("tell its authors; or give files of a copy as data.train")
        })?;
        let glob = glob.compile_matcher();
        let hidden = |path: &str| {
            let parts = path.split('/');
            parts
                .filter(|part| part.starts_with('.') && part.len() > 1)
                .count()
        };
        let special = |path: &str| {
            let folders = path.rsplit_once('/').map_or("", |(folders, _)| folders);
            folders
                .split('/')
                .filter(|part| part.starts_with("__"))
                .count()
        };
        let (asked_hidden, asked_special) = (hidden(&pattern), special(&pattern));
        let files = self.listing.iter().filter(|file| {
            let name = file.rsplit('/').next().unwrap_or_default();
            glob.is_match(file.as_str())
                && is_data(name)
                && hidden(file) == asked_hidden
                && special(file) == asked_special
        });
        let mut files: Vec<String> = files.cloned().collect();
        files.sort();
        Ok(files)
    }
}

/// The names that files and folders of a split may have.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Folders with a split's word for `{}`, and files, with something between words for `@`.
const FOLDERS: &[&str] = &["**/{}/**", "**/{}@*/**", "**/*@{}/**", "**/*@{}@*/**"];
const FILES: &[&str] = &["**/{}@*", "**/*@{}@*"];

/// Whether a file can be data: `datasets` passes over all others.
fn is_data(name: &str) -> bool {
    const AROUND: [&str; 6] = [
        README,
        "config.json",
        "dataset_info.json",
        "dataset_infos.json",
        "dummy_data.zip",
        "dataset_dict.json",
    ];
    const OTHERS: [&str; 10] = [
        "md", "py", "ipynb", "yaml", "yml", "toml", "cfg", "sh", "pdf", "lock",
    ];
    let extension = name
        .rsplit_once('.')
        .map(|(_, extension)| extension.to_lowercase());
    !AROUND.contains(&name)
        && extension.is_some_and(|extension| !OTHERS.contains(&extension.as_str()))
}

/// Whether a file of this name is read.
fn is_read(file: &str) -> bool {
    matches!(
        Format::of(file.as_ref()),
        Ok(Format::Parquet | Format::Csv | Format::Tsv | Format::Jsonl)
    )
}

/// Patterns by split, of what `data_files` may be: a pattern, several, or splits with theirs.
fn patterns(files: &Value) -> Option<Vec<(String, Vec<String>)>> {
    let texts = |value: &Value| -> Option<Vec<String>> {
        match value {
            Value::String(one) => Some(vec![one.clone()]),
            Value::Array(several) => {
                let texts = several.iter().map(|text| text.as_str().map(str::to_owned));
                texts.collect()
            }
            _ => None,
        }
    };
    if let Some(all) = texts(files) {
        return Some(vec![("train".to_owned(), all)]);
    }
    let splits = files.as_array()?.iter().map(|entry| {
        let split = entry.get("split")?.as_str()?.to_owned();
        Some((split, texts(entry.get("path")?)?))
    });
    splits.collect()
}

fn several(id: &str, names: &[&str]) -> Error {
    Error::user(format!(
        "the data set {id} has several configurations, and data.config names none"
    ))
    .help(format!("they are: {}", listed(names)))
}

fn no_config(id: &str, name: &str, names: &[&str]) -> Error {
    Error::user(format!("the data set {id} has no configuration `{name}`"))
        .help(format!("it has: {}", listed(names)))
}

fn listed(names: &[&str]) -> String {
    let mut names = names.to_vec();
    names.dedup();
    match names.len() {
        0 => "none".to_owned(),
        1..=40 => names.join(", "),
        more => format!("{} and {} more", names[..40].join(", "), more - 40),
    }
}

#[cfg(test)]
mod tests;
