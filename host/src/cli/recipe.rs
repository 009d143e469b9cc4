//! `dynalora recipe`

use std::path::PathBuf;

use clap::Subcommand;

use super::{Common, print, print_json};
use crate::error::{Error, Result};
use crate::recipe::{Format, Problem, Recipe, Task};
use crate::sweep;
use crate::train::say;

/// Arguments of `dynalora recipe`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a recipe to start from
    New(Box<New>),
    /// Say whether recipes are right, without reading model or data
    Check(Check),
    /// Print a recipe with every default written out
    Show(Show),
    /// Print the JSON Schema of recipes, for editors
    Schema(Schema),
}

#[derive(Debug, clap::Args)]
struct New {
    /// Where to write it
    file: PathBuf,
    /// The pretrained model: a Hub id or a folder
    #[arg(long, default_value = "sentence-transformers/all-MiniLM-L6-v2")]
    model: String,
    /// A GLUE task, read from the folder of --data
    #[arg(long, conflicts_with_all = ["train", "validation"])]
    task: Option<Task>,
    /// The folder of the task's files
    #[arg(long, value_name = "FOLDER", requires = "task")]
    data: Option<PathBuf>,
    /// A CSV, TSV, JSONL, Parquet or CoNLL file to learn from
    #[arg(long, value_name = "FILE", requires = "validation")]
    train: Option<PathBuf>,
    /// And one to evaluate on
    #[arg(long, value_name = "FILE", requires = "train")]
    validation: Option<PathBuf>,
    /// Their column of texts; by default `text`
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,
    /// Their column of second texts, where they hold pairs
    #[arg(long, value_name = "COLUMN")]
    text_pair: Option<String>,
    /// Their column of labels; by default `label`
    #[arg(long, value_name = "COLUMN")]
    label: Option<String>,
    /// Their column of lists of words, each of which gets a tag; by default `tokens`
    #[arg(long, value_name = "COLUMN")]
    tokens: Option<String>,
    /// Their column of lists of tags; by default `ner_tags`
    #[arg(long, value_name = "COLUMN")]
    tags: Option<String>,
    /// What scores modules
    #[arg(long, value_name = "PLUGIN", default_value = "activation")]
    scorer: String,
    /// What chooses among them
    #[arg(long, value_name = "PLUGIN", default_value = "top-k")]
    allocator: String,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
struct Check {
    /// The recipes, TOML files
    #[arg(required = true)]
    recipes: Vec<PathBuf>,
    /// Replace a value in each
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Show {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Replace a value
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Schema {
    /// That of sweeps instead
    #[arg(long)]
    sweep: bool,
}

/// Does what the subcommand says.
pub fn run(arguments: &Arguments, common: &Common) -> Result<()> {
    match &arguments.command {
        Command::New(new) => write(new, common),
        Command::Check(check) => {
            for path in &check.recipes {
                let recipe = Recipe::load(path, &check.set)?;
                for warning in recipe.warnings() {
                    tracing::warn!("{}: {warning}", path.display());
                }
                print(&format!("{}: right", path.display()))?;
            }
            Ok(())
        }
        Command::Show(show) => print(Recipe::load(&show.recipe, &show.set)?.to_toml()?.trim_end()),
        Command::Schema(Schema { sweep: false }) => print_json(&Recipe::schema()),
        Command::Schema(Schema { sweep: true }) => print_json(&sweep::File::schema()),
    }
}

/// Writes the recipe, once it is seen to be right.
fn write(new: &New, common: &Common) -> Result<()> {
    check_columns(new)?;
    let text = text(new)?;
    let (recipe, _) = Recipe::parse(&new.file, &text, &[])?;
    let mut options = std::fs::File::options();
    options
        .write(true)
        .truncate(true)
        .create(new.force)
        .create_new(!new.force);
    let written = options
        .open(&new.file)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    written.map_err(|error| {
        let help = match error.kind() {
            std::io::ErrorKind::AlreadyExists => "give another name, or --force to write over it",
            _ => "check that the folder is there and that you may write into it",
        };
        Error::user(format!("cannot write {}", new.file.display()))
            .because(error)
            .help(help)
    })?;
    if !common.quiet {
        let file = new.file.display();
        say(&format!(
            "{file} trains into {}. Next:\n  dynalora plan {file}\n  dynalora train {file}",
            recipe.output.display()
        ));
    }
    Ok(())
}

/// Refuses columns of no file, and those of texts beside those of words.
fn check_columns(new: &New) -> Result<()> {
    let texts = [
        ("--text", &new.text),
        ("--text-pair", &new.text_pair),
        ("--label", &new.label),
    ];
    let words = [("--tokens", &new.tokens), ("--tags", &new.tags)];
    for (flag, column) in texts.into_iter().chain(words) {
        if let (Some(column), None) = (column, &new.train) {
            return Err(Error::user(format!(
                "{flag} {column} names a column of --train, which is not given"
            ))
            .help(format!(
                "give --train and --validation, the files that have it; or leave {flag} out: the tasks have columns of their own"
            )));
        }
    }
    let given = |columns: &[(&'static str, &Option<String>)]| {
        let given = columns.iter().find(|(_, column)| column.is_some());
        given.map(|(flag, _)| *flag)
    };
    match (given(&texts), given(&words)) {
        (Some(text), Some(word)) => Err(Error::user(format!(
            "{text} is a column of texts, but {word} is one of words"
        ))
        .help("give --text and --label for texts that have a label each, or --tokens and --tags for words that have one")),
        (Some(text), None) if is_conll(new) => Err(Error::user(format!(
            "{text} is a column of texts, but --train is a file of words and their tags"
        ))
        .help("leave it out: the first column is the word, the last one its tag")),
        (None, Some(word)) if is_conll(new) => Err(Error::user(format!(
            "{word} names a column, but those of --train have no names"
        ))
        .help("leave it out: the first column is the word, the last one its tag")),
        _ => Ok(()),
    }
}

/// Whether the training file has a word and its tag a line.
fn is_conll(new: &New) -> bool {
    let format = new.train.as_ref().and_then(|path| Format::of(path).ok());
    format == Some(Format::Conll)
}

fn text(new: &New) -> Result<String> {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    // Paths of a recipe are relative to it, those of the command line to where it is given.
    let path = |path: &PathBuf| {
        let whole = std::path::absolute(path).map_err(|error| {
            Error::user(format!("{} is no path", path.display())).because(error)
        })?;
        Ok(quoted(&whole.display().to_string()))
    };
    let data = match (new.task, &new.train, &new.validation) {
        (Some(task), ..) => {
            let dir = match &new.data {
                Some(dir) => format!("dir = {}\n", path(dir)?),
                None if task == Task::MinimalPairs => String::new(),
                None => {
                    return Err(Error::user(format!("--task {task} needs --data, the folder of its files"))
                        .help("`minimal-pairs` is part of the program and needs none"));
                }
            };
            format!("task = \"{task}\"\n{dir}")
        }
        (None, Some(train), Some(validation))
            if is_conll(new) || new.tokens.is_some() || new.tags.is_some() =>
        {
            let columns = match is_conll(new) {
                true => String::new(),
                false => format!(
                    "\n[data.columns]\ntokens = {}\ntags = {}\n",
                    quoted(new.tokens.as_deref().unwrap_or("tokens")),
                    quoted(new.tags.as_deref().unwrap_or("ner_tags"))
                ),
            };
            format!(
                "problem = \"{}\"\ntrain = {}\nvalidation = {}\n{columns}",
                Problem::TokenClassification,
                path(train)?,
                path(validation)?
            )
        }
        (None, Some(train), Some(validation)) => {
            let pair = match &new.text_pair {
                Some(column) => format!("text_pair = {}\n", quoted(column)),
                None => String::new(),
            };
            format!(
                "train = {}\nvalidation = {}\n\n[data.columns]\ntext = {}\n{pair}label = {}\n",
                path(train)?,
                path(validation)?,
                quoted(new.text.as_deref().unwrap_or("text")),
                quoted(new.label.as_deref().unwrap_or("label"))
            )
        }
        _ => "# A small task that is part of the program: name your own files with `train` and `validation`.\n\
              task = \"minimal-pairs\"\n"
            .to_owned(),
    };
    let name = new.file.file_stem().unwrap_or_default().to_string_lossy();
    let output = quoted(&format!("runs/{name}"));
    let (model, scorer, allocator) = (
        quoted(&new.model),
        quoted(&new.scorer),
        quoted(&new.allocator),
    );
    // What needs a parameter that nobody can guess says so when the recipe is planned.
    let k = match new.allocator.as_str() {
        "top-k" | "multinomial" | "discounted" | "uniform" => {
            "# A count of modules, or a share of them.\nk = \"50%\"\n"
        }
        _ => "# Its parameters: dynalora plugins info NAME.\n",
    };
    Ok(format!(
        "# Every key: docs/recipe.md, or `dynalora recipe show` for all defaults.\n\
         seed = 42\noutput = {output}\n\n\
         [model]\nname = {model}\nmax_length = 128\n\n\
         [data]\n{data}\n\
         [adapter]\nkind = \"lora\"\nrank = 8\nalpha = 16\ntargets = \"all-linear\"\n\n\
         # Which modules train: chosen anew every so many steps. `{{ kind = \"never\" }}` is plain LoRA.\n\
         [allocation]\nschedule = {{ kind = \"periodic\", every = 50 }}\ninitial = \"random\"\n\n\
         [scorer]\nplugin = {scorer}\n\n\
         [allocator]\nplugin = {allocator}\n{k}\n\
         [train]\nepochs = 3\nbatch_size = 32\nlearning_rate = 1e-3\n\n\
         [evaluation]\nevery = \"epoch\"\n"
    ))
}
