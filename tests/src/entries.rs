//! Where bytes from outside come in, one function for each kind of file, and mutations of good ones: shared by
//! the mutations that CI runs and by the targets of cargo-fuzz.
//!
//! Whatever the bytes are, an entry takes them or refuses them by an error; it neither panics nor hangs, nor
//! asks for more memory than a small factor of their size.

use std::path::Path;

use burn_flex::{Flex, FlexDevice};
use dynalora::data::{DataConfig, Example, read, tokenize, words};
use dynalora::export;
use dynalora::model::{Model, ModelFolder, Pretrained};
use dynalora::recipe::{Column, Columns, Problem, Recipe};
use dynalora::sweep;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::drawn::Choice;
use crate::{dynalora, fixture, model_folder};

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// `recipe.toml`.
    Recipe,
    /// A sweep.
    Sweep,
    /// A model's `config.json`.
    Config,
    /// A model's `model.safetensors`.
    Weights,
    /// A model's `pytorch_model.bin`.
    Torch,
    /// A model in a GGUF file, with nothing but a tokenizer beside it.
    Gguf,
    /// A model's `tokenizer.json`.
    Tokenizer,
    /// A table of comma-separated values.
    Csv,
    /// A table of tab-separated values.
    Tsv,
    /// A table of JSON lines.
    Jsonl,
    /// A table in Parquet.
    Parquet,
    /// Sentences in words, in CoNLL's columns.
    Conll,
    /// Sentences in words, as lists in JSON lines.
    WordLists,
    /// Sentences in words, as lists in Parquet.
    WordTable,
    /// An adapter's `adapter_config.json`.
    AdapterConfig,
    /// An adapter's `adapter_model.safetensors`.
    AdapterWeights,
    /// A checkpoint's `progress.json`, by the program itself.
    Checkpoint,
}

/// All kinds.
pub const ENTRIES: [Entry; 17] = [
    Entry::Recipe,
    Entry::Sweep,
    Entry::Config,
    Entry::Weights,
    Entry::Torch,
    Entry::Gguf,
    Entry::Tokenizer,
    Entry::Csv,
    Entry::Tsv,
    Entry::Jsonl,
    Entry::Parquet,
    Entry::Conll,
    Entry::WordLists,
    Entry::WordTable,
    Entry::AdapterConfig,
    Entry::AdapterWeights,
    Entry::Checkpoint,
];

impl Entry {
    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        ENTRIES
            .into_iter()
            .find(|entry| format!("{entry:?}") == name)
    }

    /// Whether its bytes are a text.
    pub fn is_text(self) -> bool {
        !matches!(
            self,
            Entry::Weights
                | Entry::Torch
                | Entry::Gguf
                | Entry::Parquet
                | Entry::WordTable
                | Entry::AdapterWeights
        )
    }

    /// Good files of this kind, small ones. A checkpoint's are in the run in `folder`.
    pub fn seeds(self, folder: &Path) -> Vec<Vec<u8>> {
        let file = |path: &Path| {
            std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let fixtures = |paths: &[&str]| paths.iter().map(|path| file(&fixture(path))).collect();
        let trained = "golden/query-value/trained";
        match self {
            Entry::Recipe => {
                let configs = crate::package().join("../configs");
                let recipes = ["quickstart.toml", "cola.toml", "rank-budget.toml", "custom-csv.toml"];
                let mut seeds: Vec<_> = recipes.iter().map(|name| file(&configs.join(name))).collect();
                for seed in 0..12 {
                    let drawn = crate::drawn::Drawn::draw(&mut Choice::new(seed), Path::new("/inputs"));
                    seeds.push(drawn.recipe(Path::new("/run")).into_bytes());
                }
                seeds
            }
            Entry::Sweep => {
                let folder = crate::package().join("../configs/sweeps");
                let sweep = String::from_utf8(file(&folder.join("finding.toml"))).expect("UTF-8");
                // Beside the recipe that [`prepare`](Self::prepare) lays there.
                let sweep = sweep.replace("../paper/stsb-dynalora-minilm", "recipe");
                let sweep = sweep.replace("../paper/stsb-lora-minilm", "recipe");
                vec![sweep.into_bytes(), SWEEP.as_bytes().to_vec()]
            }
            Entry::Config => fixtures(&["tiny-bert/config.json", "tiny-roberta/config.json", "tiny-distilbert/config.json", "tiny-llama/config.json"]),
            Entry::Weights => fixtures(&["tiny-bert/model.safetensors", "tiny-bert-f16/model.safetensors"]),
            Entry::Torch => fixtures(&["formats/bin/pytorch_model.bin"]),
            Entry::Gguf => fixtures(&["formats/llama/llama.gguf", "formats/gpt2/gpt2.gguf"]),
            Entry::Tokenizer => fixtures(&["tiny-bert/tokenizer.json", "tiny-roberta/tokenizer.json"]),
            Entry::Csv => vec![
                b"id,sentence,label\n1,\"a, b\",yes\n2,c,no\n3,\"d\"\"e\",yes\n".to_vec(),
                "sentence,label\nGr\u{f6}\u{df}e,1\n\"two\nlines\",2\n".into(),
                b"\xef\xbb\xbfsentence,label\r\na b c,yes\r\nd e,no\r\n".to_vec(),
            ],
            Entry::Tsv => vec![
                b"sentence\tlabel\na b\tyes\nc \"d\tno\n".to_vec(),
                b"sentence\tother\tlabel\na b\tx\tyes\nc\ty\tno\n".to_vec(),
            ],
            Entry::Jsonl => vec![
                b"{\"sentence\": \"a b\", \"label\": 1}\n{\"sentence\": \"c\", \"label\": 0}\n".to_vec(),
                b"{\"sentence\": \"a\\u00e9\\n\", \"label\": \"yes\", \"more\": [1, {\"x\": null}]}\n\n{\"label\": \"no\", \"sentence\": \"b\"}\n".to_vec(),
            ],
            Entry::Parquet => vec![table(2), table(40)],
            Entry::Conll => vec![
                b"-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n".to_vec(),
                "a\tB-x\r\n b c \tI-x\r\n\r\n\u{e9}\tO\r\n".into(),
            ],
            Entry::WordLists => vec![
                b"{\"tokens\": [\"EU\", \"rejects\"], \"ner_tags\": [\"B-ORG\", \"O\"]}\n{\"ner_tags\": [\"O\"], \"tokens\": [\"a\\u00e9\"]}\n".to_vec(),
            ],
            Entry::WordTable => vec![word_table(&WORDS, true)],
            Entry::AdapterConfig => fixtures(&[
                &format!("tiny-bert/{trained}/adapter_config.json"),
                "tiny-bert/golden/rank-pattern/adapter_config.json",
                "tiny-bert/golden/adalora/adapter/adapter_config.json",
                "tiny-bert/golden/vera/trained/adapter_config.json",
            ]),
            Entry::AdapterWeights => fixtures(&[&format!("tiny-bert/{trained}/adapter_model.safetensors")]),
            Entry::Checkpoint => vec![file(&progress(folder))],
        }
    }

    /// Prepares `folder` for [`take`](Self::take).
    pub fn prepare(self, folder: &Path) {
        let copy = |from: &str, to: &str| {
            std::fs::copy(fixture(from), folder.join(to)).expect("a fixture is copied");
        };
        match self {
            Entry::Config | Entry::Weights => {
                for file in ["config.json", "model.safetensors", "tokenizer.json"] {
                    copy(&format!("tiny-bert/{file}"), file);
                }
            }
            Entry::Torch => {
                for file in ["config.json", "tokenizer.json"] {
                    copy(&format!("tiny-bert/{file}"), file);
                }
            }
            Entry::Gguf => copy("formats/llama/tokenizer.json", "tokenizer.json"),
            Entry::Sweep => {
                let recipe = crate::package().join("../configs/quickstart.toml");
                std::fs::copy(recipe, folder.join("recipe.toml")).expect("a recipe is copied");
            }
            Entry::AdapterConfig => copy(
                "tiny-bert/golden/query-value/trained/adapter_model.safetensors",
                "adapter_model.safetensors",
            ),
            Entry::AdapterWeights => copy(
                "tiny-bert/golden/query-value/trained/adapter_config.json",
                "adapter_config.json",
            ),
            Entry::Checkpoint => {
                crate::drawn::inputs(folder);
                let recipe = format!(
                    "output = {:?}\ndevice = \"cpu\"\n[model]\nname = {:?}\nmax_length = 16\n[data]\ntrain = {:?}\nproblem = \"classification\"\n[data.columns]\ntext = \"sentence\"\n[allocation]\nschedule = {{ kind = \"periodic\", every = 2 }}\n[scorer]\nplugin = \"activation\"\n[allocator]\nplugin = \"discounted\"\nk = 2\n[train]\nsteps = 3\nbatch_size = 4\n",
                    folder.join("run").display().to_string(),
                    fixture("tiny-bert").display().to_string(),
                    folder.join("comma-train.csv").display().to_string(),
                );
                std::fs::write(folder.join("recipe.toml"), recipe).expect("a temporary file");
                let (code, said) = train(folder, false);
                assert_eq!(code, Some(0), "{said}");
            }
            _ => {}
        }
    }

    /// Gives `bytes` to the program as a file of this kind in `folder`; whether it was taken, or what was said.
    pub fn take(self, folder: &Path, bytes: &[u8]) -> Result<(), String> {
        let write = |name: &str| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).expect("a temporary file");
            path
        };
        let said = |error: dynalora::error::Error| match self {
            // What a user would see points into the file, which has to be put together, too.
            Entry::Recipe | Entry::Sweep => format!("{:?}", miette::Report::new(error)),
            _ => error.to_string(),
        };
        let device = &FlexDevice;
        match self {
            Entry::Recipe => {
                let Ok(text) = std::str::from_utf8(bytes) else {
                    return Recipe::load(&write("recipe.toml"), &[])
                        .map(drop)
                        .map_err(said);
                };
                let (recipe, _) =
                    Recipe::parse(&folder.join("recipe.toml"), text, &[]).map_err(said)?;
                // What is taken can be written and read back the same.
                let again = recipe.to_toml().map_err(said)?;
                let (again, _) =
                    Recipe::parse(&folder.join("again.toml"), &again, &[]).map_err(said)?;
                assert_eq!(recipe, again, "written out, the recipe is another");
                Ok(())
            }
            Entry::Sweep => {
                let file = sweep::File::load(&write("sweep.toml")).map_err(said)?;
                sweep::runs(&file, &sweep::Asked::default())
                    .map(drop)
                    .map_err(said)
            }
            Entry::Config | Entry::Weights | Entry::Torch | Entry::Gguf => {
                write(match self {
                    Entry::Config => "config.json",
                    Entry::Torch => "pytorch_model.bin",
                    Entry::Gguf => "model.gguf",
                    _ => "model.safetensors",
                });
                let text = match self {
                    Entry::Gguf => format!("{RECIPE}[adapter]\ntargets = 'all-linear'\n"),
                    _ => RECIPE.to_owned(),
                };
                let recipe = Recipe::parse(Path::new("r"), &text, &[]).map_err(said)?.0;
                let model = ModelFolder::local(folder).map_err(said)?;
                let pretrained = Pretrained::open(&model, &recipe.model).map_err(said)?;
                let modules = pretrained.adapted(&recipe.adapter).map_err(said)?.modules;
                Model::<Flex>::load(&pretrained, &modules, 2, device)
                    .map(drop)
                    .map_err(said)
            }
            Entry::Tokenizer => {
                let examples: Vec<Example> = ["Hello, world!", "", "\u{1f600} na\u{ef}ve \u{4f60}"]
                    .map(|text| Example {
                        text: text.to_owned(),
                        text_pair: None,
                        label: None,
                    })
                    .into();
                tokenize(&write("tokenizer.json"), &examples, 16)
                    .map(drop)
                    .map_err(said)
            }
            Entry::Csv | Entry::Tsv | Entry::Jsonl | Entry::Parquet => {
                let config = DataConfig {
                    train: Some(write(&format!(
                        "train.{}",
                        format!("{self:?}").to_lowercase()
                    ))),
                    columns: Some(Columns {
                        text: Some(Column::Name("sentence".to_owned())),
                        messages: None,
                        image: None,
                        text_pair: None,
                        response: None,
                        label: Column::Name("label".to_owned()),
                        tokens: None,
                        tags: None,
                    }),
                    problem: Some(Problem::Classification),
                    ..DataConfig::default()
                };
                read(&config).map(drop).map_err(said)
            }
            Entry::Conll | Entry::WordLists | Entry::WordTable => {
                let extension = match self {
                    Entry::Conll => "conll",
                    Entry::WordLists => "jsonl",
                    _ => "parquet",
                };
                let config = DataConfig {
                    train: Some(write(&format!("train.{extension}"))),
                    problem: Some(Problem::TokenClassification),
                    ..DataConfig::default()
                };
                words::read(&config).map(drop).map_err(said)
            }
            Entry::AdapterConfig | Entry::AdapterWeights => {
                write(match self {
                    Entry::AdapterConfig => "adapter_config.json",
                    _ => "adapter_model.safetensors",
                });
                BARE.with(|(pretrained, model)| {
                    let adapter = export::read(folder, &pretrained.config).map_err(said)?;
                    let modules = adapter.modules(&pretrained.linears()).map_err(said)?;
                    adapter.head::<Flex>(&model.head, device).map_err(said)?;
                    adapter
                        .adapters::<Flex>(modules, device)
                        .map(drop)
                        .map_err(said)
                })
            }
            Entry::Checkpoint => {
                std::fs::write(progress(folder), bytes).expect("a temporary file");
                let (code, said) = train(folder, true);
                match code {
                    Some(0) => Ok(()),
                    Some(1 | 2) => Err(said),
                    // A panic or a signal.
                    code => panic!("the program ended with {code:?}: {said}"),
                }
            }
        }
    }
}

const SWEEP: &str = "output = 'runs'\nrecipe = 'recipe.toml'\nseeds = '0..3'\n[[arm]]\nname = 'a'\nset = { threads = 2 }\n\
    [random]\ndraws = 3\n[random.keys]\n'train.learning_rate' = { from = 1e-4, to = 1e-2, scale = 'log' }\n\
    'adapter.rank' = [2, 4]\n";
const RECIPE: &str = "output = 'x'\n[model]\nname = 'x'\n[data]\ntask = 'minimal-pairs'\n";

thread_local! {
    /// What adapters are laid beside.
    static BARE: (Pretrained, Model<Flex>) = {
        let (recipe, _) = Recipe::parse(Path::new("r"), RECIPE, &[]).expect("a recipe");
        let folder = model_folder(&fixture("tiny-bert"));
        let pretrained = Pretrained::open(&folder, &recipe.model).expect("a fixture");
        let model = Model::load(&pretrained, &[], 2, &FlexDevice).expect("a fixture");
        (pretrained, model)
    };
}

/// The last checkpoint's progress.
fn progress(folder: &Path) -> std::path::PathBuf {
    folder.join("run/checkpoints/step-000003/progress.json")
}

fn train(folder: &Path, resume: bool) -> (Option<i32>, String) {
    let mut command = dynalora();
    command
        .args(["train", "recipe.toml", "--quiet"])
        .current_dir(folder);
    if resume {
        command.arg("--resume");
    }
    command
        .env("DYNALORA_CACHE", folder.join("cache"))
        .env("HF_HUB_OFFLINE", "1");
    let output = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// A table in Parquet with the columns `sentence` and `label`.
pub fn table(rows: usize) -> Vec<u8> {
    let schema = "message rows { REQUIRED BYTE_ARRAY sentence (UTF8); REQUIRED INT64 label; }";
    let schema = std::sync::Arc::new(parse_message_type(schema).expect("a schema"));
    let mut bytes = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut bytes, schema, Default::default()).expect("a writer");
    let mut group = writer.next_row_group().expect("a row group");
    let texts: Vec<ByteArray> = (0..rows)
        .map(|n| format!("text {n}").as_str().into())
        .collect();
    let labels: Vec<i64> = (0..rows).map(|n| n as i64 % 2).collect();
    let mut column = group.next_column().expect("no error").expect("a column");
    column
        .typed::<ByteArrayType>()
        .write_batch(&texts, None, None)
        .expect("written");
    column.close().expect("closed");
    let mut column = group.next_column().expect("no error").expect("a column");
    column
        .typed::<Int64Type>()
        .write_batch(&labels, None, None)
        .expect("written");
    column.close().expect("closed");
    group.close().expect("closed");
    writer.close().expect("closed");
    bytes
}

/// Sentences, each a word with the index of its tag among `O`, `B-ORG` and `B-PER`.
const WORDS: [&[(&str, i64)]; 3] = [
    &[("EU", 1), ("rejects", 0), ("it", 0)],
    &[("Peter", 2)],
    &[("no", 0), ("EU", 1)],
];

/// Sentences in Parquet as `datasets` writes them; where they are `named`, with what the tags are called.
pub fn word_table(sentences: &[&[(&str, i64)]], named: bool) -> Vec<u8> {
    let list = |name: &str, element: &str| {
        format!("OPTIONAL GROUP {name} (LIST) {{ REPEATED GROUP list {{ OPTIONAL {element}; }} }}")
    };
    let schema = format!(
        "message rows {{ {} {} }}",
        list("tokens", "BYTE_ARRAY element (UTF8)"),
        list("ner_tags", "INT64 element")
    );
    let schema = std::sync::Arc::new(parse_message_type(&schema).expect("a schema"));
    let features = serde_json::json!({"info": {"features": {"ner_tags": {
        "_type": "List", "feature": {"_type": "ClassLabel", "names": ["O", "B-ORG", "B-PER"]}
    }}}});
    let pair = KeyValue::new("huggingface".to_owned(), features.to_string());
    let pairs = named.then(|| vec![pair]);
    let settings = WriterProperties::builder().set_key_value_metadata(pairs);
    let mut bytes = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut bytes, schema, settings.build().into()).expect("a writer");
    let mut group = writer.next_row_group().expect("a row group");
    let words = sentences.iter().copied().flatten();
    // Every element is there; a list's first has the level 0.
    let defined = vec![3; words.clone().count()];
    let firsts = sentences
        .iter()
        .flat_map(|words| (0..words.len()).map(|at| i16::from(at > 0)));
    let repeated: Vec<i16> = firsts.collect();
    let texts: Vec<ByteArray> = words.clone().map(|(word, _)| (*word).into()).collect();
    let tags: Vec<i64> = words.map(|(_, tag)| *tag).collect();
    let mut column = group.next_column().expect("no error").expect("a column");
    column
        .typed::<ByteArrayType>()
        .write_batch(&texts, Some(&defined), Some(&repeated))
        .expect("written");
    column.close().expect("closed");
    let mut column = group.next_column().expect("no error").expect("a column");
    column
        .typed::<Int64Type>()
        .write_batch(&tags, Some(&defined), Some(&repeated))
        .expect("written");
    column.close().expect("closed");
    group.close().expect("closed");
    writer.close().expect("closed");
    bytes
}

/// Parts of files that are odd.
const ODD: &[&str] = &[
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "-1",
    "0",
    "1e999",
    "NaN",
    "99999999999999999999",
    "4294967296",
    "1000000",
    "9223372036854775807",
    "0.1",
    "\u{0}",
    "\u{feff}",
    "\"",
    ",",
    "\t",
    "\n",
    "\\u0000",
    "\u{1f600}",
    "[[[[[[[[",
    "=",
    ":",
];

/// Case `number` of a kind: one of `seeds` with a few changes, a function of the number.
pub fn mutate(seeds: &[Vec<u8>], text: bool, number: u64) -> Vec<u8> {
    let mut choice = Choice::new(number ^ 0x6d75_7461_7465);
    let c = &mut choice;
    let mut bytes = c.of(seeds);
    // A file's header is where its bytes mean most: safetensors say how long it is, of GGUF and the pickle of torch.save
    // it is so much of small ones.
    let header = match bytes.first_chunk::<8>() {
        Some(_) if bytes.starts_with(b"GGUF") || bytes.starts_with(b"PK\x03\x04") => 8192,
        Some(length) if !text => usize::try_from(u64::from_le_bytes(*length))
            .unwrap_or(usize::MAX)
            .saturating_add(8),
        _ => usize::MAX,
    };
    // An archive's directory is at its end.
    let directory = if bytes.starts_with(b"PK\x03\x04") {
        4096
    } else {
        0
    };
    let changes = if c.once_in(2) { 1 } else { c.between(1, 4) };
    for _ in 0..changes {
        let mostly = if c.once_in(8) { usize::MAX } else { header };
        let end = bytes.len().min(mostly).max(1) as u64;
        let at = match directory {
            0 => c.between(0, end) as usize,
            size if c.once_in(3) => bytes.len().saturating_sub(c.between(0, size) as usize),
            _ => c.between(0, end) as usize,
        };
        let at = at.min(bytes.len());
        let some = (c.between(1, 24) as usize).min(bytes.len() - at);
        match c.between(0, 8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << c.between(0, 7),
            1 if at < bytes.len() => bytes[at] = c.between(0, 255) as u8,
            2 => drop(bytes.drain(at..at + some)),
            3 => {
                let again = bytes[at..at + some].to_vec();
                bytes.splice(at..at, again);
            }
            4 if c.once_in(4) => bytes.truncate(at),
            5 => drop(bytes.splice(at..at, c.of(ODD).bytes())),
            // A whole number or word in the place of another.
            6 | 7 => {
                let word =
                    |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
                let from = bytes[..at]
                    .iter()
                    .rposition(|byte| !word(byte))
                    .map_or(0, |n| n + 1);
                let to = bytes[at..]
                    .iter()
                    .position(|byte| !word(byte))
                    .map_or(bytes.len(), |n| at + n);
                if to - from < 64 {
                    bytes.splice(from..to, c.of(ODD).bytes());
                }
            }
            _ => {
                let other = c.of(seeds);
                let from = (c.between(0, other.len() as u64) as usize).min(other.len());
                let to = (from + some).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    bytes
}
