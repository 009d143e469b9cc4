//! `dynalora recipe new`

use std::path::{Path, PathBuf};

use crate::cli::Common;
use crate::error::{Error, Result};
use crate::recipe::{Format, Problem, Recipe, Task};
use crate::train::say;

/// Arguments of `dynalora recipe new`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where to write it
    file: PathBuf,
    /// The pretrained model: a Hub id or a folder
    #[arg(long, default_value = "sentence-transformers/all-MiniLM-L6-v2")]
    model: String,
    /// A GLUE task, read from the folder of --data
    #[arg(long, conflicts_with_all = ["hub", "images", "train", "validation"])]
    task: Option<Task>,
    /// The folder of the task's files
    #[arg(long, value_name = "FOLDER", requires = "task")]
    data: Option<PathBuf>,
    /// A data set of the Hub, whose splits --train and --validation name; by default `train` and `validation`
    #[arg(long, value_name = "OWNER/NAME")]
    hub: Option<String>,
    /// Which of its configurations
    #[arg(long, value_name = "NAME", requires = "hub")]
    config: Option<String>,
    /// A folder of images, in a folder of each split and each class, or in Parquet files; --model has to read images
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["hub", "train", "validation"], requires = "model")]
    images: Option<PathBuf>,
    /// A CSV, TSV, JSONL, Parquet, CoNLL or text file to learn from
    #[arg(long, value_name = "FILE")]
    train: Option<PathBuf>,
    /// And one to evaluate on
    #[arg(long, value_name = "FILE")]
    validation: Option<PathBuf>,
    /// What is predicted; by default what the columns are for, or a class
    #[arg(long)]
    problem: Option<Problem>,
    /// Their column of texts, or of prompts; by default `text`
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
    /// Their column of what answers the text of a row, token by token
    #[arg(long, value_name = "COLUMN")]
    response: Option<String>,
    /// Their column of conversations, of which the answers are predicted
    #[arg(long, value_name = "COLUMN")]
    messages: Option<String>,
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

/// What a row of the data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// One or two texts with a label.
    Texts,
    /// A list of words and one of their tags.
    Words,
    /// A word and its tag, without names of columns.
    Conll,
    /// A text that is learnt to be written.
    Documents,
    /// A prompt and what answers it.
    Prompts,
    /// A list of messages.
    Conversations,
    /// An image with a label.
    Images,
}

impl Rows {
    /// As a sentence about data begins.
    fn name(self) -> &'static str {
        match self {
            Rows::Texts => "texts with labels have",
            Rows::Words => "words with tags have",
            Rows::Conll => "a CoNLL file has no names of columns, only positions, and",
            Rows::Documents => "texts to be continued have",
            Rows::Prompts => "prompts with responses have",
            Rows::Conversations => "conversations have",
            Rows::Images => "folders of images have no columns, and",
        }
    }

    /// The problems that have such rows, the first of them where none is named.
    fn problems(self) -> &'static [Problem] {
        match self {
            Rows::Texts => &[Problem::Classification, Problem::Regression],
            Rows::Words | Rows::Conll => &[Problem::TokenClassification],
            Rows::Documents | Rows::Prompts | Rows::Conversations => &[Problem::CausalLm],
            Rows::Images => &[Problem::Classification],
        }
    }

    /// Their columns, with the name that each has by default; those without one may be left out.
    fn columns(self) -> &'static [(&'static str, Option<&'static str>)] {
        match self {
            Rows::Texts => &[
                ("text", Some("text")),
                ("text_pair", None),
                ("label", Some("label")),
            ],
            Rows::Words => &[("tokens", Some("tokens")), ("tags", Some("ner_tags"))],
            Rows::Conll | Rows::Images => &[],
            Rows::Documents => &[("text", Some("text"))],
            Rows::Prompts => &[("text", Some("text")), ("response", Some("response"))],
            Rows::Conversations => &[("messages", Some("messages"))],
        }
    }
}

impl Arguments {
    /// The columns that have a flag, by their names in a recipe.
    fn columns(&self) -> [(&'static str, &Option<String>); 7] {
        [
            ("text", &self.text),
            ("text_pair", &self.text_pair),
            ("label", &self.label),
            ("tokens", &self.tokens),
            ("tags", &self.tags),
            ("response", &self.response),
            ("messages", &self.messages),
        ]
    }

    /// How the training file is written, by its name; none of a split of the Hub's.
    fn format(&self) -> Option<Format> {
        let file = self.train.as_ref().filter(|_| self.hub.is_none());
        file.and_then(|path| Format::of(path).ok())
    }

    /// What a row is, by what is said of it.
    fn rows(&self) -> Rows {
        let format = self.format();
        let (words, problem) = (self.tokens.is_some() || self.tags.is_some(), self.problem);
        if self.images.is_some() {
            Rows::Images
        } else if format == Some(Format::Conll) {
            Rows::Conll
        } else if words || problem == Some(Problem::TokenClassification) {
            Rows::Words
        } else if self.messages.is_some() {
            Rows::Conversations
        } else if self.response.is_some() {
            Rows::Prompts
        } else if problem == Some(Problem::CausalLm) || format == Some(Format::Txt) {
            Rows::Documents
        } else {
            Rows::Texts
        }
    }
}

/// Writes the recipe, once it is seen to be right.
pub fn write(new: &Arguments, common: &Common) -> Result<()> {
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

/// A string as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Paths of a recipe are relative to it, those of the command line to where it is given.
fn absolute(path: &Path) -> Result<String> {
    let whole = std::path::absolute(path)
        .map_err(|error| Error::user(format!("{} is no path", path.display())).because(error))?;
    Ok(quoted(&whole.display().to_string()))
}

/// The flag of a column.
fn flag(column: &str) -> String {
    format!("--{}", column.replace('_', "-"))
}

/// The keys of `[data]`.
fn data(new: &Arguments) -> Result<String> {
    let own = new.hub.is_some() || new.images.is_some() || new.train.is_some();
    if let (false, Some((column, Some(name)))) = (
        own,
        new.columns().into_iter().find(|(_, name)| name.is_some()),
    ) {
        let flag = flag(column);
        return Err(Error::user(format!(
            "{flag} {name} names a column of --train, which is not given"
        ))
        .help(format!(
            "give --train and --validation, the files that have it, or --hub; or leave {flag} out: the tasks have columns of their own"
        )));
    }
    if let Some(task) = new.task {
        let dir = match &new.data {
            Some(dir) => format!("dir = {}\n", absolute(dir)?),
            None if task == Task::MinimalPairs => String::new(),
            None => {
                return Err(Error::user(format!(
                    "--task {task} needs --data, the folder of its files"
                ))
                .help("`minimal-pairs` is part of the program and needs none"));
            }
        };
        return Ok(format!("task = \"{task}\"\n{dir}"));
    }
    if !own && new.validation.is_none() {
        return Ok(
            "# A small task that is part of the program: name your own files with `train` and `validation`.\n\
             task = \"minimal-pairs\"\n"
                .to_owned(),
        );
    }
    let rows = new.rows();
    Ok(format!(
        "{}{}{}",
        problem(new, rows)?,
        source(new)?,
        columns(new, rows)?
    ))
}

/// What is predicted, where the data does not say it.
fn problem(new: &Arguments, rows: Rows) -> Result<String> {
    let problems = rows.problems();
    match new.problem {
        Some(problem) if !problems.contains(&problem) => Err(Error::user(format!(
            "--problem {problem} is none of these rows: {} `problem = \"{}\"`",
            rows.name(),
            problems[0]
        ))
        .help("leave --problem out, or name the columns that it has: dynalora recipe new --help")),
        Some(problem) => Ok(format!("problem = \"{problem}\"\n")),
        None if matches!(rows, Rows::Texts | Rows::Images) => Ok(String::new()),
        None => Ok(format!("problem = \"{}\"\n", problems[0])),
    }
}

/// Where the rows are.
fn source(new: &Arguments) -> Result<String> {
    let mut text = String::new();
    let mut key = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
    if let Some(dir) = &new.images {
        key("format", quoted("images"));
        key("dir", absolute(dir)?);
        return Ok(text);
    }
    let splits = [("train", &new.train), ("validation", &new.validation)];
    if let Some(hub) = &new.hub {
        key("hub", quoted(hub));
        if let Some(config) = &new.config {
            key("config", quoted(config));
        }
        for (split, name) in splits {
            if let Some(name) = name {
                key(split, quoted(&name.display().to_string()));
            }
        }
        return Ok(text);
    }
    for (split, path) in splits {
        let Some(path) = path else {
            return Err(Error::user(format!("--{split} is not given"))
                .help("give --train and --validation, a file each"));
        };
        key(split, absolute(path)?);
    }
    Ok(text)
}

/// Which columns hold what.
fn columns(new: &Arguments, rows: Rows) -> Result<String> {
    let known = rows.columns();
    for (column, name) in new.columns() {
        if let (Some(name), false) = (name, known.iter().any(|(known, _)| *known == column)) {
            let flags: Vec<String> = known.iter().map(|(known, _)| flag(known)).collect();
            let help = match flags.is_empty() {
                true => "leave it out".to_owned(),
                false => format!("their columns are those of {}", flags.join(", ")),
            };
            return Err(Error::user(format!(
                "{} {name} is not for these rows: {} no such column",
                flag(column),
                rows.name(),
            ))
            .help(help));
        }
    }
    let given = |column: &str| {
        let mut columns = new.columns().into_iter();
        columns.find_map(|(name, value)| value.clone().filter(|_| name == column))
    };
    // A file of plain text is a document.
    let plain = new.format() == Some(Format::Txt);
    if known.is_empty() || (plain && new.text.is_none()) {
        return Ok(String::new());
    }
    let mut text = "\n[data.columns]\n".to_owned();
    for (column, default) in known {
        if let Some(name) = given(column).or(default.map(str::to_owned)) {
            text.push_str(&format!("{column} = {}\n", quoted(&name)));
        }
    }
    Ok(text)
}

fn text(new: &Arguments) -> Result<String> {
    let data = data(new)?;
    let name = new.file.file_stem().unwrap_or_default().to_string_lossy();
    let output = quoted(&format!("runs/{name}"));
    let (model, scorer, allocator) = (
        quoted(&new.model),
        quoted(&new.scorer),
        quoted(&new.allocator),
    );
    // An image's length is its model's.
    let length = match new.images {
        Some(_) => "",
        None => "max_length = 128\n",
    };
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
         [model]\nname = {model}\n{length}\n\
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
