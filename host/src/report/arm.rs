//! Arms: runs of one recipe, with the same data, model and plugins, that differ in nothing but the seed and the folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use super::{Figure, Paired, Reading, Spread};
use crate::error::{Error, Result};
use crate::recipe::{AdapterKind, Initial, PluginConfig, Recipe, Schedule};

/// How arms are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Naming {
    /// By what their recipes differ in, such as `allocator=top-k k=50%`
    #[default]
    Recipe,
    /// By the folder their runs lie in, or by what the names of the runs' folders begin with
    Folder,
}

/// Runs of one recipe.
#[derive(Clone, Debug, Serialize)]
pub struct Arm {
    /// What sets it apart.
    pub name: String,
    /// One for each seed.
    pub runs: Vec<Reading>,
    /// Each figure over the runs that count, those that collapsed among them.
    pub figures: BTreeMap<Figure, Spread>,
    /// The seeds of those that ended with the loss of a constant answer.
    pub collapsed: Vec<u64>,
    /// The metric, at its best and at the end, over the others; empty where none collapsed.
    pub without_collapsed: BTreeMap<Figure, Spread>,
    /// How many seeds an interval takes in which this arm has a part.
    pub seeds_needed: usize,
    /// The comparison; none for the baseline itself, or without one.
    pub against_baseline: Option<Against>,
    /// What its recipe says, key by key, without seed, folder and what has no effect.
    #[serde(skip)]
    settings: Settings,
    /// What makes runs one arm: the settings, and the digests of what was read in the place of its paths.
    #[serde(skip)]
    key: Settings,
}

/// An arm beside the baseline.
#[derive(Clone, Debug, Serialize)]
pub struct Against {
    /// The seeds that both have.
    pub seeds: Vec<u64>,
    /// The metric at its best.
    pub metric: Option<Paired>,
    /// The metric at the end.
    #[serde(rename = "final")]
    pub last: Option<Paired>,
    /// Mean time of a step, as a multiple of the baseline's.
    pub step_time: Option<f64>,
    /// How many seeds the intervals take: see [`seeds_needed`].
    pub seeds_needed: usize,
    /// Whether they rest on fewer.
    pub too_few_seeds: bool,
    /// The same over the seeds of which neither run collapsed; none where none did.
    pub without_collapsed: Option<Without>,
}

/// The comparison over the seeds of which neither run collapsed.
#[derive(Clone, Debug, Serialize)]
pub struct Without {
    /// These seeds.
    pub seeds: Vec<u64>,
    /// The metric at its best.
    pub metric: Option<Paired>,
    /// The metric at the end.
    #[serde(rename = "final")]
    pub last: Option<Paired>,
    /// Whether these are fewer than the intervals take.
    pub too_few_seeds: bool,
}

/// Seeds that an interval takes where an arm draws its modules by chance: the draw is then a part of the noise, and a
/// large one. In eleven draws of four modules, kept, Pearson's correlation was between 0.44 and 0.80; the first three
/// were within 0.04 of each other (docs/finding.md).
pub const SEEDS_OF_DRAWS: usize = 10;
/// Where nothing but fresh weights and the order of the data differ. Of five runs the standard deviation is known
/// within 0.6 to 2.9 times itself, of three within 0.5 to 6.3 times.
pub const SEEDS: usize = 5;

/// How many seeds an interval takes in which runs of this recipe have a part.
///
/// An allocator that is not known to choose by scores alone may draw.
pub fn seeds_needed(recipe: &Recipe) -> usize {
    const CHOOSE: [&str; 5] = ["top-k", "threshold", "rank-budget", "drop", "grow"];
    let allocation = &recipe.allocation;
    let chooses = |allocator: &PluginConfig| match allocator.plugin.as_str() {
        // One block after the other, but for one of its orders.
        "cyclic" => allocator.parameters_json()["order"] != "random",
        plugin => CHOOSE.contains(&plugin),
    };
    let draws = allocation.initial == Initial::Random
        || allocation.is_dynamic() && !recipe.allocator.iter().all(chooses);
    match draws {
        true => SEEDS_OF_DRAWS,
        false => SEEDS,
    }
}

type Settings = BTreeMap<String, String>;

/// What a collapse shows in.
const METRICS: [Figure; 2] = [Figure::Metric, Figure::Final];

impl Arm {
    /// The runs that count.
    pub fn counted(&self, unfinished: bool) -> impl Iterator<Item = &Reading> {
        self.runs
            .iter()
            .filter(move |run| run.finished || unfinished)
    }

    pub(super) fn sum_up(&mut self, unfinished: bool) {
        let mut values: BTreeMap<Figure, Vec<f64>> = BTreeMap::new();
        for run in self.counted(unfinished) {
            for (figure, value) in &run.figures {
                values.entry(*figure).or_default().push(*value);
            }
        }
        let spreads = values
            .iter()
            .map(|(figure, values)| (*figure, Spread::of(values)));
        self.figures = spreads
            .filter_map(|(figure, spread)| Some((figure, spread?)))
            .collect();
        let collapsed = self
            .counted(unfinished)
            .filter(|run| run.collapse.is_some());
        self.collapsed = collapsed.map(|run| run.seed).collect();
        if !self.collapsed.is_empty() {
            let others = |figure: &Figure| {
                let others = self
                    .counted(unfinished)
                    .filter(|run| run.collapse.is_none());
                let values = others.filter_map(|run| run.figures.get(figure).copied());
                Some((*figure, Spread::of(&values.collect::<Vec<_>>())?))
            };
            self.without_collapsed = METRICS.iter().filter_map(others).collect();
        }
    }

    /// Two runs of one seed are one observation, not two.
    pub(super) fn refuse_repeated_seeds(&self) -> Result<()> {
        for (at, run) in self.runs.iter().enumerate() {
            let same = self.runs[..at].iter().find(|other| other.seed == run.seed);
            if let Some(other) = same {
                return Err(Error::user(format!(
                    "{} and {} are the same recipe with the same seed, {}",
                    other.path.display(),
                    run.path.display(),
                    run.seed
                ))
                .help("give one of them: the same seed twice is one observation"));
            }
        }
        Ok(())
    }

    pub(super) fn against(&self, baseline: &Arm, unfinished: bool) -> Against {
        let pairs: Vec<(&Reading, &Reading)> = (self.counted(unfinished))
            .filter_map(|run| {
                let mut others = baseline.counted(unfinished);
                Some((run, others.find(|other| other.seed == run.seed)?))
            })
            .collect();
        type Pairs<'a> = [(&'a Reading, &'a Reading)];
        let paired = |pairs: &Pairs<'_>, figure: Figure| {
            let values = pairs.iter().filter_map(|(run, other)| {
                Some((*run.figures.get(&figure)?, *other.figures.get(&figure)?))
            });
            Paired::of(&values.collect::<Vec<_>>())
        };
        let seeds = |pairs: &Pairs<'_>| pairs.iter().map(|(run, _)| run.seed).collect();
        let mut learnt = pairs.clone();
        learnt.retain(|(run, other)| run.collapse.is_none() && other.collapse.is_none());
        let seeds_needed = self.seeds_needed.max(baseline.seeds_needed);
        let step = |arm: &Arm| Some(arm.figures.get(&Figure::StepSeconds)?.mean);
        Against {
            seeds: seeds(&pairs),
            metric: paired(&pairs, Figure::Metric),
            last: paired(&pairs, Figure::Final),
            seeds_needed,
            too_few_seeds: pairs.len() < seeds_needed,
            without_collapsed: (learnt.len() < pairs.len()).then(|| Without {
                seeds: seeds(&learnt),
                metric: paired(&learnt, Figure::Metric),
                last: paired(&learnt, Figure::Final),
                too_few_seeds: learnt.len() < seeds_needed,
            }),
            step_time: step(self).zip(step(baseline)).map(|(own, base)| own / base),
        }
    }

    /// What its recipe says, key by key, as text; what has no effect is left out.
    pub(super) fn settings(&self) -> impl Iterator<Item = (&String, &String)> {
        self.settings.iter()
    }

    /// What its recipe says of a key.
    pub(super) fn setting(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    /// `LoRA`, `DoRA` or `VeRA` for an arm whose modules are all active throughout.
    fn plain(&self) -> Option<&'static str> {
        let recipe = &self.runs.first()?.recipe;
        let name = match recipe.adapter.kind {
            AdapterKind::Lora if recipe.adapter.use_dora() => "DoRA",
            AdapterKind::Lora => "LoRA",
            AdapterKind::Vera => "VeRA",
        };
        allocates_nothing(recipe).then_some(name)
    }
}

fn allocates_nothing(recipe: &Recipe) -> bool {
    let allocation = &recipe.allocation;
    matches!(allocation.schedule, Schedule::Never {}) && allocation.initial == Initial::All
}

/// Which arm is the baseline.
pub fn baseline(arms: &[Arm], wanted: Option<&str>) -> Result<Option<usize>> {
    let Some(wanted) = wanted else {
        let mut plain = (0..arms.len()).filter(|at| arms[*at].plain() == Some("LoRA"));
        let first = plain.next().filter(|_| plain.next().is_none());
        return Ok(first.filter(|_| arms.len() > 1));
    };
    if let Some(exact) = arms.iter().position(|arm| arm.name == wanted) {
        return Ok(Some(exact));
    }
    let mut parts = (0..arms.len()).filter(|at| arms[*at].name.contains(wanted));
    match (parts.next(), parts.next()) {
        (Some(one), None) => Ok(Some(one)),
        (found, _) => {
            let names: Vec<String> = arms.iter().map(|arm| format!("`{}`", arm.name)).collect();
            let many = match found {
                Some(_) => "fits several arms",
                None => "is no arm",
            };
            Err(Error::user(format!("--baseline \"{wanted}\" {many}"))
                .help(format!("the arms are {}", names.join(", "))))
        }
    }
}

/// Puts runs of one recipe together and names the arms, by `known` where that is given.
pub fn group(
    readings: Vec<Reading>,
    naming: Naming,
    known: Option<&BTreeMap<PathBuf, String>>,
) -> Result<Vec<Arm>> {
    let mut arms: Vec<Arm> = Vec::new();
    for reading in readings {
        let settings = settings(&reading.recipe)?;
        let key = key(&settings, &reading);
        match arms.iter_mut().find(|arm| arm.key == key) {
            Some(arm) => arm.runs.push(reading),
            None => arms.push(Arm {
                name: String::new(),
                figures: BTreeMap::new(),
                collapsed: Vec::new(),
                without_collapsed: BTreeMap::new(),
                seeds_needed: seeds_needed(&reading.recipe),
                runs: vec![reading],
                against_baseline: None,
                settings,
                key,
            }),
        }
    }
    tell_inputs_apart(&mut arms);
    let names = match (known, naming) {
        (Some(known), _) => by_name(&arms, known)?,
        // Nothing differs.
        (None, Naming::Recipe) if arms.len() > 1 => by_recipe(&arms),
        _ => by_folder(&arms),
    };
    if let Some(twice) = repeated(&names) {
        return Err(Error::user(format!(
            "two arms, whose recipes or inputs differ, would both be called `{twice}` by their folders"
        ))
        .help("leave `--names folder` out to name them by what they differ in"));
    }
    for (arm, name) in arms.iter_mut().zip(names) {
        arm.name = name;
    }
    Ok(arms)
}

fn repeated(names: &[String]) -> Option<&String> {
    let mut seen = BTreeSet::new();
    names.iter().find(|name| !seen.insert(*name))
}

/// Keys that name what a run reads, which counts by its content where that is known.
const PLACES: [&str; 11] = [
    "adapter.from",
    "data.dir",
    "data.hub",
    "data.config",
    "data.revision",
    "data.train",
    "data.validation",
    "data.test",
    "model.name",
    "model.revision",
    "plugin_dirs",
];

/// What the digests of a run's inputs are called among the settings.
const INPUT: &str = "sha256.";

fn key(settings: &Settings, reading: &Reading) -> Settings {
    let mut key = settings.clone();
    let Some(inputs) = &reading.inputs else {
        // Never one arm with runs of which more is known.
        return key;
    };
    let is_path = |value: &String| value.contains(['/', '\\']);
    key.retain(|name, value| {
        let plugin = name.ends_with(".plugin") && is_path(value);
        !PLACES.contains(&name.as_str()) && !plugin
    });
    let inputs = inputs.iter();
    key.extend(inputs.map(|(name, digest)| (format!("{INPUT}{name}"), digest.clone())));
    key
}

/// Arms whose recipes are the same are told apart by the inputs that differ: `train-sha256=0f2e…`.
fn tell_inputs_apart(arms: &mut [Arm]) {
    let digests = |arm: &Arm| -> Settings {
        let own = arm.key.iter().filter(|(name, _)| name.starts_with(INPUT));
        let short = |digests: &String| {
            let parts = digests.split(" then ");
            let parts = parts.map(|digest| digest.get(..12).unwrap_or(digest));
            parts.collect::<Vec<_>>().join("-")
        };
        own.map(|(name, digest)| {
            let name = name.trim_start_matches(INPUT);
            (format!("{name}-sha256"), short(digest))
        })
        .collect()
    };
    let all: Vec<(Settings, Settings)> = arms
        .iter()
        .map(|arm| (arm.settings.clone(), digests(arm)))
        .collect();
    for (at, arm) in arms.iter_mut().enumerate() {
        let (settings, own) = &all[at];
        for (other, (other_settings, others)) in all.iter().enumerate() {
            if other == at || other_settings != settings {
                continue;
            }
            if own.is_empty() || others.is_empty() {
                let known = if own.is_empty() { "unknown" } else { "known" };
                arm.settings
                    .insert("provenance".to_owned(), known.to_owned());
                continue;
            }
            for name in own.keys().chain(others.keys()) {
                if own.get(name) != others.get(name) {
                    let digest = own.get(name).map_or("none", String::as_str);
                    arm.settings.insert(name.clone(), digest.to_owned());
                }
            }
        }
    }
}

/// A recipe key by key, as text.
fn settings(recipe: &Recipe) -> Result<Settings> {
    let value = toml::Value::try_from(recipe)
        .map_err(|error| Error::failure("a recipe cannot be written").because(error))?;
    let mut settings = Settings::new();
    flatten("", &value, &mut settings);
    // Where a run reports to makes it no other.
    settings.retain(|key, _| !["seed", "output", "train.report_to"].contains(&key.as_str()));
    if allocates_nothing(recipe) {
        // Nobody is asked and nothing goes inactive.
        settings.retain(|key, _| {
            let table = key.split('.').next();
            !matches!(table, Some("allocation" | "allocator" | "scorer"))
        });
    }
    Ok(settings)
}

fn flatten(key: &str, value: &toml::Value, settings: &mut Settings) {
    let shown = match value {
        toml::Value::Table(table) => {
            for (inner, value) in table {
                let dot = if key.is_empty() { "" } else { "." };
                flatten(&format!("{key}{dot}{inner}"), value, settings);
            }
            return;
        }
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    settings.insert(key.to_owned(), shown);
}

/// Names by the keys whose values differ among the arms that have them, after `LoRA` or `VeRA` for an arm that
/// allocates nothing; an arm that differs in nothing else is named by its allocator. Where that does not tell
/// all arms apart, a missing key counts as a value too, and all is written in full.
fn by_recipe(arms: &[Arm]) -> Vec<String> {
    let names = differences(arms, false);
    match repeated(&names).is_some() || names.contains(&String::new()) {
        true => differences(arms, true),
        false => names,
    }
}

fn differences(arms: &[Arm], in_full: bool) -> Vec<String> {
    let all: BTreeSet<&String> = arms.iter().flat_map(|arm| arm.settings.keys()).collect();
    let mut keys: Vec<&String> = (all.iter().copied())
        .filter(|key| {
            let values: BTreeSet<_> = arms.iter().map(|arm| arm.settings.get(*key)).collect();
            values
                .iter()
                .filter(|value| in_full || value.is_some())
                .count()
                > 1
        })
        .collect();
    let allocator = all.iter().filter(|key| key.starts_with("allocator."));
    let mut allocator: Vec<&String> = allocator.copied().collect();
    // A plugin's name comes before its parameters, a schedule's kind before its steps.
    for keys in [&mut keys, &mut allocator] {
        keys.sort_by_key(|key| {
            let (table, last) = key.rsplit_once('.').unwrap_or(("", key));
            (table, title(key) == **key, last)
        });
    }
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let short = |key: &str| {
        let whole = title(key);
        let mut others = keys.iter().filter(|other| **other != key);
        match in_full || others.any(|other| last(title(other)) == last(whole)) {
            true => whole.to_owned(),
            false => last(whole),
        }
    };
    let name = |arm: &Arm| {
        let plain = arm.plain().map(str::to_owned);
        let own = || arm.settings.keys().filter(|key| keys.contains(key));
        let chosen = match plain.is_none() && own().next().is_none() {
            true => &allocator,
            false => &keys,
        };
        let parts = chosen.iter().filter_map(|key| {
            let value = match arm.settings.get(*key) {
                Some(value) if in_full => value.as_str(),
                // Of a path the end is enough.
                Some(value) => value.rsplit('/').next().unwrap_or(value),
                None if in_full => "none",
                None => return None,
            };
            Some(format!("{}={value}", short(key)))
        });
        plain.into_iter().chain(parts).collect::<Vec<_>>().join(" ")
    };
    arms.iter().map(name).collect()
}

/// A key as it is shown: `allocator.plugin` is the allocator.
fn title(key: &str) -> &str {
    let table = key.strip_suffix(".plugin").or(key.strip_suffix(".kind"));
    table.unwrap_or(key)
}

/// Names by folders: the one that holds all runs of the arm and no others, or what the names of the runs'
/// own begin with, without the seed.
/// The names that the runs' folders are known by. An error where the runs of one name are no arm.
fn by_name(arms: &[Arm], known: &BTreeMap<PathBuf, String>) -> Result<Vec<String>> {
    let name = |arm: &Arm| {
        let first = &arm.runs[0].path;
        let named = known.get(first).cloned();
        named.unwrap_or_else(|| first.display().to_string())
    };
    let names: Vec<String> = arms.iter().map(name).collect();
    let Some(twice) = repeated(&names) else {
        return Ok(names);
    };
    let mut those = arms.iter().zip(&names).filter(|(_, name)| *name == twice);
    let (Some((one, _)), Some((other, _))) = (those.next(), those.next()) else {
        return Ok(names);
    };
    let differ = |key: &&String| one.key.get(*key) != other.key.get(*key);
    let mut keys: Vec<&String> = one
        .key
        .keys()
        .chain(other.key.keys())
        .filter(differ)
        .collect();
    keys.sort();
    keys.dedup();
    let keys: Vec<&str> = keys
        .into_iter()
        .map(|key| key.trim_start_matches(INPUT))
        .collect();
    Err(Error::user(format!(
        "the runs of `{twice}` are not one arm: {} and {} differ in {}",
        one.runs[0].path.display(),
        other.runs[0].path.display(),
        keys.join(", ")
    ))
    .help("data, a model, a plugin or a recipe has changed between them: train all of them anew, into another folder"))
}

fn by_folder(arms: &[Arm]) -> Vec<String> {
    let parents = |arm: &Arm| -> BTreeSet<_> {
        let outputs = arm.runs.iter().map(|run| std::path::absolute(&run.path));
        outputs
            .filter_map(|path| Some(path.ok()?.parent()?.to_owned()))
            .collect()
    };
    let last = |path: &Path| {
        let name = path.file_name().unwrap_or(path.as_os_str());
        name.to_string_lossy().into_owned()
    };
    let name = |(at, arm): (usize, &Arm)| {
        let own = parents(arm);
        let others = arms.iter().enumerate().filter(|(other, _)| *other != at);
        let shared = others
            .flat_map(|(_, arm)| parents(arm))
            .any(|p| own.contains(&p));
        if let (Some(parent), 1, false) = (own.first(), own.len(), shared || arm.runs.len() == 1) {
            return last(parent);
        }
        let names: Vec<String> = arm.runs.iter().map(|run| last(&run.path)).collect();
        let common = names.iter().fold(names[0].as_str(), |common, name| {
            let same = common.char_indices().zip(name.chars());
            let differs = same.into_iter().find(|((_, a), b)| a != b);
            let end = differs.map_or(common.len().min(name.len()), |((at, _), _)| at);
            &common[..end]
        });
        let separator = |c: char| c.is_ascii_digit() || "-_.=".contains(c);
        let common = common.trim_end_matches(separator);
        let seedless = ["-seed", "_seed", ".seed", "-s", "_s", ".s"]
            .iter()
            .find_map(|end| common.strip_suffix(end))
            .unwrap_or(common);
        match seedless.is_empty() {
            true => names[0].clone(),
            false => seedless.to_owned(),
        }
    };
    arms.iter().enumerate().map(name).collect()
}
