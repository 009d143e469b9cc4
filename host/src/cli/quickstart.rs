//! `dynalora quickstart`

use std::path::PathBuf;

use super::train::{How, train};
use super::{Common, print, print_json, table};
use crate::error::{Error, Result};
use crate::model::fetch;
use crate::number::{count, duration, size};
use crate::recipe::Recipe;
use crate::run::Summary;
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
    /// Print both closing accounts as JSON
    #[arg(long)]
    json: bool,
}

/// Fetches the model, trains plain LoRA and a dynamic allocation on the same data, and compares them.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    make_room(arguments)?;
    let model = fetch::quickstart_model()?;
    let mut sets = vec![format!(
        "model.name={}",
        quoted(&model.dir.display().to_string())
    )];
    if let Some(steps) = arguments.steps {
        sets.push(format!("train.steps={steps}"));
    }
    sets.extend(arguments.set.iter().cloned());
    let arms = [
        (
            "plain LoRA",
            "lora",
            "allocation.schedule={ kind = \"never\" }",
        ),
        ("dynamic allocation", "dynamic", ""),
    ];
    let mut summaries = Vec::new();
    for (name, folder, change) in arms {
        let output = arguments.output.join(folder);
        let mut sets = sets.clone();
        sets.push(format!("output={}", quoted(&output.display().to_string())));
        if !change.is_empty() {
            sets.push(change.to_owned());
        }
        if !common.quiet {
            say(&format!("\n{name}"));
        }
        let path = PathBuf::from("configs/quickstart.toml");
        let (mut recipe, _) = Recipe::parse(&path, RECIPE, &sets)?;
        if !recipe.allocation.is_dynamic() {
            (recipe.scorer, recipe.allocator) = (None, None);
        }
        summaries.push((name, output, train(recipe, How::New, common)?));
    }
    if arguments.json {
        let arms: serde_json::Map<_, _> = summaries
            .iter()
            .map(|(name, _, summary)| ((*name).to_owned(), serde_json::json!(summary)))
            .collect();
        return print_json(&arms);
    }
    print(&comparison(&summaries))
}

fn make_room(arguments: &Arguments) -> Result<()> {
    let cannot =
        |error| Error::user(format!("cannot remove {}", arguments.output.display())).because(error);
    for folder in ["lora", "dynamic"].map(|folder| arguments.output.join(folder)) {
        if !folder.join("recipe.toml").is_file() {
            continue;
        }
        if !arguments.force {
            return Err(
                Error::user(format!("{} holds an earlier quickstart", folder.display()))
                    .help("give --force to replace it, or another folder with --output"),
            );
        }
        std::fs::remove_dir_all(&folder).map_err(cannot)?;
    }
    Ok(())
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn comparison(summaries: &[(&str, PathBuf, Summary)]) -> String {
    let mut header = vec![""];
    header.extend(summaries.iter().map(|(name, _, _)| *name));
    let mut table = table(&header);
    let mut row = |name: &str, value: &dyn Fn(&Summary) -> String| {
        let mut cells = vec![name.to_owned()];
        cells.extend(summaries.iter().map(|(_, _, summary)| value(summary)));
        table.add_row(cells);
    };
    let metric = summaries
        .iter()
        .find_map(|(_, _, summary)| summary.best.as_ref().map(|best| best.metric.clone()))
        .unwrap_or_default();
    row(&format!("best {metric}"), &|summary| {
        summary
            .best
            .as_ref()
            .map_or("none".to_owned(), |best| format!("{:.4}", best.value))
    });
    row("active adapter parameters, mean", &|summary| {
        count(summary.active_parameters_mean.round() as u64)
    });
    row("active adapter parameters, peak", &|summary| {
        count(summary.active_parameters_peak)
    });
    row("head parameters", &|summary| count(summary.head_parameters));
    row("reallocations", &|summary| {
        summary.reallocations.to_string()
    });
    row("seconds", &|summary| format!("{:.1}", summary.seconds));
    row("tokens/s", &|summary| {
        format!("{:.0}", summary.tokens as f64 / summary.seconds.max(1e-9))
    });
    let total: f64 = summaries
        .iter()
        .map(|(_, _, summary)| summary.seconds)
        .sum();
    let memory = summaries
        .last()
        .and_then(|(_, _, summary)| summary.peak_memory);
    let mut text = format!(
        "\n{}\n\nboth runs: {}, peak memory {}\n",
        table.trim_fmt(),
        duration(total),
        memory.map_or("unknown".to_owned(), size)
    );
    for (name, output, _) in summaries {
        text.push_str(&format!("{name}: {}\n", output.display()));
    }
    text
}
