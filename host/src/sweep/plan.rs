//! From a sweep file to its runs.

use std::path::{Path, PathBuf};

use globset::Glob;

use super::file::{File, Sweep};
use super::points::{Point, Settings, at_random, of_grid, points_of_grid};
use super::seeds::{MOST_RUNS, Seeds};
use crate::error::{Error, Result};
use crate::file::plain_name;
use crate::recipe::Recipe;

/// One run of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Its arm, with the point of the grid.
    pub arm: String,
    /// Its seed.
    pub seed: u64,
    /// Its recipe, …
    pub recipe: PathBuf,
    /// … what is set in it, as `--set` takes it, …
    pub sets: Vec<String>,
    /// … and what comes of both.
    pub resolved: Recipe,
    /// Its folder's own name: `ARM-sSEED`.
    pub name: String,
}

/// What the command line says beside the file.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// These arms alone, if there are any.
    pub arms: Vec<String>,
    /// These seeds instead of the file's.
    pub seeds: Option<Seeds>,
    /// Set in every run, after all else.
    pub sets: Vec<String>,
    /// The folder instead of the file's.
    pub output: Option<PathBuf>,
}

/// Refuses to set in every run what a sweep gives each of its own.
fn check_sets(sets: &[String]) -> Result<()> {
    for set in sets {
        let key = set.split('=').next().unwrap_or(set).trim();
        let flag = match key {
            "output" => "--output",
            "seed" => "--seeds",
            _ => continue,
        };
        return Err(Error::user(format!(
            "--set {key} cannot act: each run has its own {key}"
        ))
        .help(format!(
            "give {flag}, or the sweep's own `{}`",
            flag.trim_start_matches('-')
        )));
    }
    Ok(())
}

/// The runs, seed by seed, so that what is there when a sweep is stopped compares. An error if one of the recipes is not
/// right.
pub fn runs(file: &File, asked: &Asked) -> Result<Vec<Planned>> {
    check_sets(&asked.sets)?;
    let all = arms(file)?;
    let arms = chosen(file, &all, &asked.arms)?;
    let seeds = asked.seeds.as_ref().unwrap_or(&file.sweep.seeds);
    check_count(file, arms.len(), seeds.list().len())?;
    let points = match &file.sweep.random {
        Some(random) => at_random(random),
        None => of_grid(&file.sweep.grid),
    };
    if let Some(baseline) = &file.sweep.baseline {
        check_baseline(file, baseline, &all, &points)?;
    }
    let output = asked.output.as_ref().unwrap_or(&file.sweep.output);
    let mut runs: Vec<Planned> = Vec::new();
    for &seed in seeds.list() {
        for arm in &arms {
            for point in &points {
                let run = planned(file, arm, point, seed, (output, &asked.sets))?;
                if runs.iter().any(|other| other.name == run.name) {
                    return Err(Error::user(format!(
                        "two runs of {} would lie in {}",
                        file.path.display(),
                        output.join(&run.name).display()
                    ))
                    .help("give arms, and values of the grid, names that are apart as names of folders too"));
                }
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

/// A name, a recipe and what is set in it.
struct Arm {
    name: String,
    recipe: PathBuf,
    set: Settings,
}

/// All of the file, those by recipe first. Where there is none by name, the sweep's recipe is one without.
fn arms(file: &File) -> Result<Vec<Arm>> {
    let Sweep {
        recipe,
        recipes,
        arm,
        ..
    } = &file.sweep;
    let mut arms = Vec::new();
    for pattern in recipes {
        for recipe in matching(file, pattern)? {
            let name = recipe.file_stem().unwrap_or_default();
            arms.push(Arm {
                name: name.to_string_lossy().into_owned(),
                recipe,
                set: Settings::new(),
            });
        }
    }
    for arm in arm {
        let recipe = arm.recipe.as_ref().or(recipe.as_ref());
        arms.push(Arm {
            name: arm.name.clone(),
            recipe: file.beside(recipe.map_or(Path::new(""), PathBuf::as_path)),
            set: arm.set.clone(),
        });
    }
    if let (true, Some(recipe)) = (arms.is_empty(), recipe) {
        arms.push(Arm {
            name: String::new(),
            recipe: file.beside(recipe),
            set: Settings::new(),
        });
    }
    for (at, arm) in arms.iter().enumerate() {
        if arms[..at].iter().any(|other| other.name == arm.name) {
            return Err(file
                .document
                .error(
                    "recipes",
                    format!("two arms are called `{}`", arm.name),
                    "here",
                )
                .help("an arm of `recipes` is called by its file: give the [[arm]] another name"));
        }
    }
    Ok(arms)
}

/// The recipes that a pattern names, in order.
fn matching(file: &File, pattern: &str) -> Result<Vec<PathBuf>> {
    let refuse = |message: String, help: &str| {
        let error = file.document.error("recipes", message, "this list");
        Err(error.help(help))
    };
    let whole = file.beside(Path::new(pattern));
    let folder = whole.parent().unwrap_or(Path::new(""));
    let last = whole.file_name().unwrap_or_default().to_string_lossy();
    let glob = match Glob::new(&last) {
        Ok(glob) => glob.compile_matcher(),
        Err(error) => {
            return refuse(
                format!("\"{pattern}\": {error}"),
                "give a path, or one whose last part has `*`",
            );
        }
    };
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let entries =
        std::fs::read_dir(folder).map_err(|error| crate::file::cannot_read(folder, error))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| crate::file::cannot_read(folder, error))?;
        if glob.is_match(Path::new(&entry.file_name())) {
            found.push(entry.path());
        }
    }
    found.sort();
    match found.is_empty() {
        true => refuse(
            format!(
                "\"{pattern}\": there is no such recipe in {}",
                folder.display()
            ),
            "paths are relative to the sweep file",
        ),
        false => Ok(found),
    }
}

/// Those that are asked for by name; all where none is.
fn chosen<'a>(file: &File, arms: &'a [Arm], names: &[String]) -> Result<Vec<&'a Arm>> {
    if let Some(unknown) = names
        .iter()
        .find(|name| arms.iter().all(|arm| arm.name != **name))
    {
        let known: Vec<String> = arms.iter().map(|arm| arm.name.clone()).collect();
        let near = crate::recipe::nearest(unknown, &known);
        let near = near.map_or(String::new(), |near| format!("did you mean `{near}`? "));
        return Err(
            Error::user(format!("{} has no arm `{unknown}`", file.path.display()))
                .help(format!("{near}The arms are {}", known.join(", "))),
        );
    }
    let wanted = |arm: &&Arm| names.is_empty() || names.contains(&arm.name);
    Ok(arms.iter().filter(wanted).collect())
}

/// Refuses more runs than anybody trains, before there is a list of them.
fn check_count(file: &File, arms: usize, seeds: usize) -> Result<()> {
    let points = match &file.sweep.random {
        Some(random) => random.draws as usize,
        None => points_of_grid(&file.sweep.grid),
    };
    let count = arms.saturating_mul(points).saturating_mul(seeds);
    if count <= MOST_RUNS {
        return Ok(());
    }
    Err(Error::user(format!(
        "{} has {count} runs, more than {MOST_RUNS}: arms {arms}, points {points}, seeds {seeds}",
        file.path.display()
    ))
    .help("give fewer values, draws or seeds; or train a part at a time, with --arms or --seeds"))
}

/// Refuses a baseline that is no arm of the whole sweep.
fn check_baseline(file: &File, baseline: &str, arms: &[Arm], points: &[Point]) -> Result<()> {
    let names: Vec<String> = arms
        .iter()
        .flat_map(|arm| points.iter().map(|point| name_of(arm, point)))
        .collect();
    if file.sweep.random.is_some() || names.iter().any(|name| name.contains(baseline)) {
        return Ok(());
    }
    Err(file
        .document
        .error(
            "baseline",
            format!("there is no arm `{baseline}`"),
            "no arm",
        )
        .help(format!("the arms are {}", names.join(", "))))
}

/// What an arm is called at a point: `uniform every=10`.
fn name_of(arm: &Arm, point: &Point) -> String {
    let parts = [arm.name.as_str(), point.name.as_str()];
    let named: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    match named.is_empty() {
        true => arm
            .recipe
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        false => named.join(" "),
    }
}

fn planned(
    file: &File,
    arm: &Arm,
    point: &Point,
    seed: u64,
    (output, more): (&Path, &[String]),
) -> Result<Planned> {
    let name = name_of(arm, point);
    let folder = match plain_name(&name) {
        plain if plain.is_empty() => format!("run-s{seed}"),
        plain => format!("{plain}-s{seed}"),
    };
    let mut sets: Vec<String> = [&file.sweep.set, &arm.set, &point.set]
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    sets.extend(more.iter().cloned());
    sets.push(format!("seed={seed}"));
    let path = output.join(&folder).display().to_string();
    sets.push(format!("output={}", toml::Value::String(path)));
    let resolved = Recipe::load(&arm.recipe, &sets).map_err(|error| {
        error.and_help(format!(
            "this is `{name}` of {}, from {}",
            file.path.display(),
            arm.recipe.display()
        ))
    })?;
    Ok(Planned {
        arm: name,
        seed,
        recipe: arm.recipe.clone(),
        sets,
        resolved,
        name: folder,
    })
}
