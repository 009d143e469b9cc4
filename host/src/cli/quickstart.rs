//! `dynalora quickstart`

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Common, print, print_json, table};
use crate::error::{Error, Result};
use crate::file::cannot_write;
use crate::model::fetch;
use crate::number::{count, size};
use crate::recipe::Recipe;
use crate::report::{Figure, Reading};
use crate::run::{Run, Summary};
use crate::sweep::{Jobs, Outcome, Planned, State, state, train};
use crate::train::say;

/// The recipe, part of the program.
const RECIPE: &str = include_str!("../../../configs/quickstart.toml");

/// Arguments of `dynalora quickstart`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where the two runs go
    #[arg(long, default_value = "runs/quickstart")]
    output: PathBuf,
    /// Train for so many steps instead of the recipe's length
    #[arg(long)]
    steps: Option<u64>,
    /// Replace a value of the recipe
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Replace what an earlier quickstart left in the output folder
    #[arg(long)]
    force: bool,
    /// Print both closing accounts, and what was saved, as JSON
    #[arg(long)]
    json: bool,
}

/// What the two runs are called, of themselves and of their folders, and what each sets in the recipe.
const ARMS: [(&str, &str, &str); 2] = [
    (
        "plain LoRA",
        "lora",
        "allocation={ schedule = { kind = \"never\" } }",
    ),
    ("dynamic allocation", "dynamic", ""),
];

/// Fetches the model, trains plain LoRA and a dynamic allocation on the same data, each in a process of its own, so that
/// each has its own peak memory, and compares them.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    let model = fetch::quickstart_model()?;
    let runs = planned(arguments, &model.dir)?;
    if arguments.force {
        make_room(&runs)?;
    }
    // One that was interrupted goes on, and what is finished is not trained again.
    let states = runs.iter().map(state).collect::<Result<Vec<State>>>();
    let states = states.map_err(|error| {
        error.and_help(
            "--force replaces what an earlier quickstart left, --output names another folder",
        )
    })?;
    write_recipes(&runs)?;
    if !common.quiet {
        say("plain LoRA, then a dynamic allocation, on the same texts");
    }
    let jobs = Jobs {
        at_a_time: 1,
        retries: 0,
        plugin_dirs: common.plugin_dir.clone(),
        quiet: common.quiet,
    };
    let outcomes = train(&runs, states, &jobs)?;
    for (run, outcome) in runs.iter().zip(outcomes) {
        if let Outcome::Failed { how, code, said } = outcome {
            let what = format!("the run {} {how}:\n{said}", run.name);
            return Err(match code {
                Some(2) => Error::user(what),
                _ => Error::failure(what),
            });
        }
    }
    let [lora, dynamic] = [read(&runs[0])?, read(&runs[1])?];
    let saved = Saved::new(&lora, &dynamic)?;
    if arguments.json {
        let arms: serde_json::Map<_, _> = ARMS
            .iter()
            .zip([&lora, &dynamic])
            .map(|((name, ..), arm)| ((*name).to_owned(), json!(arm.summary)))
            .collect();
        return print_json(&json!({ "runs": arms, "saved": saved }));
    }
    print(&comparison(&lora, &dynamic))?;
    print(&format!("\n{}\n", saved.line()))?;
    print(&next(&arguments.output)?)
}

/// Both runs.
fn planned(arguments: &Arguments, model: &Path) -> Result<Vec<Planned>> {
    let output = &arguments.output;
    let mut runs = Vec::new();
    for (_, name, change) in ARMS {
        let mut sets = vec![format!("model.name={}", quoted(model))];
        if let Some(steps) = arguments.steps {
            sets.push(format!("train.steps={steps}"));
        }
        sets.extend(arguments.set.iter().cloned());
        sets.push(format!("output={}", quoted(&output.join(name))));
        if !change.is_empty() {
            sets.push(change.to_owned());
        }
        let (mut resolved, _) = Recipe::parse(Path::new("configs/quickstart.toml"), RECIPE, &sets)?;
        if !resolved.allocation.is_dynamic() {
            (resolved.scorer, resolved.allocator) = (None, None);
        }
        let recipe = output.join(format!("{name}.toml"));
        runs.push(Planned {
            arm: name.to_owned(),
            seed: resolved.seed,
            recipe,
            sets: Vec::new(),
            resolved,
            name: name.to_owned(),
        });
    }
    Ok(runs)
}

/// Removes the runs of an earlier quickstart.
fn make_room(runs: &[Planned]) -> Result<()> {
    for folder in runs.iter().map(|run| &run.resolved.output) {
        if folder.join("recipe.toml").is_file() {
            std::fs::remove_dir_all(folder).map_err(|error| {
                Error::user(format!("cannot remove {}", folder.display())).because(error)
            })?;
        }
    }
    Ok(())
}

/// Writes the recipes, beside the folders of their runs.
fn write_recipes(runs: &[Planned]) -> Result<()> {
    for run in runs {
        let folder = run.recipe.parent().unwrap_or(Path::new("."));
        let text = run.resolved.to_toml()?;
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&run.recipe, text))
            .map_err(|error| cannot_write(&run.recipe, error))?;
    }
    Ok(())
}

/// A path as a TOML string.
fn quoted(path: &Path) -> String {
    toml::Value::String(path.display().to_string()).to_string()
}

/// One of the two, by its records.
struct Arm {
    folder: PathBuf,
    summary: Summary,
    reading: Reading,
}

fn read(run: &Planned) -> Result<Arm> {
    let folder = run.resolved.output.clone();
    let summary = Run::open(&folder)?.finished();
    let summary = summary
        .ok_or_else(|| Error::failure(format!("{} has no closing account", folder.display())))?;
    let reading = Reading::open(&folder, None)?;
    Ok(Arm {
        folder,
        summary,
        reading,
    })
}

impl Arm {
    fn figure(&self, figure: Figure) -> Option<f64> {
        self.reading.figures.get(&figure).copied()
    }
}

/// What the dynamic allocation saved, and what that cost, as shares of plain LoRA's.
#[derive(serde::Serialize)]
struct Saved {
    /// Of the process's peak memory, where the system tells.
    peak_memory: Option<f64>,
    /// Of a step's time.
    step_seconds: f64,
    /// Of the encoder's operations in training.
    flops: f64,
    /// Their best metric less plain LoRA's.
    difference: f64,
    /// The metric's name.
    metric: String,
    /// The figures that the shares are of: plain LoRA's, then its own.
    #[serde(skip)]
    of: [[Option<f64>; 2]; 3],
    #[serde(skip)]
    metrics: [f64; 2],
}

impl Saved {
    fn new(lora: &Arm, dynamic: &Arm) -> Result<Self> {
        let both = |figure| [lora.figure(figure), dynamic.figure(figure)];
        let share = |of: [Option<f64>; 2]| Some(1.0 - of[1]? / of[0].filter(|of| *of > 0.0)?);
        let missing = |what: &str| Error::failure(format!("the runs' records have no {what}"));
        let of = [
            both(Figure::PeakMemory),
            both(Figure::StepSeconds),
            both(Figure::Flops),
        ];
        let [Some(one), Some(other)] = both(Figure::Metric) else {
            return Err(missing(&lora.reading.metric));
        };
        Ok(Saved {
            peak_memory: share(of[0]),
            step_seconds: share(of[1]).ok_or_else(|| missing("times"))?,
            flops: share(of[2]).ok_or_else(|| missing("operations"))?,
            difference: other - one,
            metric: lora.reading.metric.clone(),
            of,
            metrics: [one, other],
        })
    }

    /// In a sentence.
    fn line(&self) -> String {
        type Show = fn(f64) -> String;
        let rows: [(Option<f64>, [&str; 3], Show); 3] = [
            (
                self.peak_memory,
                ["less memory", "as much memory", "more memory"],
                |bytes| size(bytes as u64),
            ),
            (
                Some(self.step_seconds),
                [
                    "less time a step",
                    "as much time a step",
                    "more time a step",
                ],
                |seconds| format!("{seconds:.3} s"),
            ),
            (
                Some(self.flops),
                ["fewer operations", "as many operations", "more operations"],
                |flops| format!("{:.2} TFLOP", flops / 1e12),
            ),
        ];
        let mut parts = Vec::new();
        for ((share, [less, same, more], show), of) in rows.into_iter().zip(self.of) {
            let ([Some(lora), Some(own)], Some(share)) = (of, share) else {
                continue;
            };
            let percent = (100.0 * share).round();
            let change = match percent {
                0.0 => same.to_owned(),
                _ if percent > 0.0 => format!("{percent} % {less}"),
                _ => format!("{} % {more}", -percent),
            };
            parts.push(format!("{change} ({} for {})", show(own), show(lora)));
        }
        format!(
            "dynamic allocation took {}, and reached {} {:.3} where plain LoRA reached {:.3} ({:+.3})",
            parts.join(", "),
            self.metric,
            self.metrics[1],
            self.metrics[0],
            self.difference
        )
    }
}

fn comparison(lora: &Arm, dynamic: &Arm) -> String {
    let arms = [lora, dynamic];
    let header = ["", ARMS[0].0, ARMS[1].0];
    let mut table = table(&header);
    let mut row = |name: &str, value: &dyn Fn(&Arm) -> String| {
        let mut cells = vec![name.to_owned()];
        cells.extend(arms.iter().map(|arm| value(arm)));
        table.add_row(cells);
    };
    let shown = |arm: &Arm, figure: Figure, show: &dyn Fn(f64) -> String| {
        arm.figure(figure).map_or("unknown".to_owned(), show)
    };
    row(&format!("best {}", lora.reading.metric), &|arm| {
        shown(arm, Figure::Metric, &|it| format!("{it:.4}"))
    });
    row("active adapter parameters, mean", &|arm| {
        count(arm.summary.active_parameters_mean.round() as u64)
    });
    row("active adapter parameters, peak", &|arm| {
        count(arm.summary.active_parameters_peak)
    });
    row("head parameters", &|arm| count(arm.summary.head_parameters));
    row("reallocations", &|arm| {
        arm.summary.reallocations.to_string()
    });
    row("peak memory of the process", &|arm| {
        shown(arm, Figure::PeakMemory, &|it| size(it as u64))
    });
    row("seconds a step", &|arm| {
        shown(arm, Figure::StepSeconds, &|it| format!("{it:.3}"))
    });
    row("TFLOP in training", &|arm| {
        shown(arm, Figure::Flops, &|it| format!("{:.2}", it / 1e12))
    });
    row("seconds", &|arm| format!("{:.1}", arm.summary.seconds));
    row("run", &|arm| arm.folder.display().to_string());
    format!("\n{}", table.trim_fmt())
}

/// What to do next.
fn next(output: &Path) -> Result<String> {
    let path = |name: &str| output.join(name).display().to_string();
    let commands = [
        (
            "curves, which layers trained when, and what it cost",
            vec![
                "report".to_owned(),
                path("lora"),
                path("dynamic"),
                "--output".to_owned(),
                path("report.html"),
            ],
        ),
        (
            "what it has learnt",
            vec![
                "predict".to_owned(),
                path("dynamic"),
                "The boys that saw the girl often laughs.".to_owned(),
            ],
        ),
        (
            "the control: as many layers, drawn with equal chances",
            vec![
                "train".to_owned(),
                path("dynamic.toml"),
                "--set".to_owned(),
                "allocator.plugin=uniform".to_owned(),
                "--set".to_owned(),
                format!("output={}", path("uniform")),
            ],
        ),
    ];
    let mut text = "what to try next".to_owned();
    for (what, words) in commands {
        let words = std::iter::once("dynalora").chain(words.iter().map(String::as_str));
        let line = shlex::try_join(words).map_err(|error| {
            Error::failure("a command cannot be written for a shell").because(error)
        })?;
        text.push_str(&format!("\n  {line}\n      {what}"));
    }
    Ok(text)
}
