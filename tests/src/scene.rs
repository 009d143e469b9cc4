//! A temporary folder with a tiny model, a small task and a recipe: what most suites start from.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{dynalora, fixture};

/// The folder, and how the program is run in it.
pub struct Scene {
    folder: TempDir,
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Scene {
    /// A fresh folder with `train.csv`, `dev.csv` and `recipe.toml`.
    pub fn new() -> Self {
        let scene = Scene {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        let sentences = std::fs::read_to_string(fixture("sentences.txt")).expect("a fixture");
        // The label is what the text says: whether it has a comma.
        let rows = |lines: &[&str]| {
            let mut text = "id,sentence,label\n".to_owned();
            for (id, line) in lines.iter().enumerate() {
                let label = if line.contains(',') { "comma" } else { "none" };
                text.push_str(&format!("{id},\"{}\",{label}\n", line.replace('"', "\"\"")));
            }
            text
        };
        let lines: Vec<&str> = sentences.lines().collect();
        scene.write("train.csv", &rows(&lines[..48]));
        scene.write("dev.csv", &rows(&lines[48..]));
        scene.write("recipe.toml", &scene.recipe_text());
        scene
    }

    /// Writes `train.csv` and `dev.csv` anew, with 16 and so many texts of which the fixtures' tokenizers make at least 16
    /// tokens, a label and a prompt each: under `max_length` 16 they are of one length.
    pub fn write_long_texts(&self, evaluated: usize) {
        let sentences = std::fs::read_to_string(fixture("sentences.txt")).expect("a fixture");
        let long = sentences.lines().filter(|line| line.len() > 60);
        let rows = long.map(|line| {
            let label = if line.contains(',') { "comma" } else { "none" };
            format!("\"{}\",{label},Say:\n", line.replace('"', "\"\""))
        });
        let rows: Vec<String> = rows.collect();
        let table = |rows: &[String]| format!("sentence,label,prompt\n{}", rows.concat());
        self.write("train.csv", &table(&rows[..16]));
        self.write("dev.csv", &table(&rows[16..16 + evaluated]));
    }

    /// The recipe as it was at first.
    pub fn recipe_text(&self) -> String {
        format!(
            r#"seed = 3
output = "{output}"
device = "cpu"
threads = 2

[model]
name = "{model}"
max_length = 64

[data]
train = "train.csv"
validation = "dev.csv"
[data.columns]
text = "sentence"

[adapter]
rank = 4
targets = ["query", "value", "dense"]

[allocation]
schedule = {{ kind = "periodic", every = 4 }}

[scorer]
plugin = "activation"

[allocator]
plugin = "top-k"
k = "50%"

[train]
steps = 12
batch_size = 8
learning_rate = 5e-3
log_every = 1

[checkpoint]
every = 4
"#,
            output = self.path("run").display(),
            model = fixture("tiny-bert").display(),
        )
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file in the folder.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("a temporary file");
    }

    /// Replaces a part of the recipe, which must be there.
    pub fn edit(&self, from: &str, to: &str) {
        let recipe = self.recipe_text();
        assert!(recipe.contains(from), "{from:?} is not in the recipe");
        self.write("recipe.toml", &recipe.replace(from, to));
    }

    /// The program with these arguments, its cache in the folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = dynalora();
        command.args(arguments).current_dir(self.folder.path());
        command
            .env("DYNALORA_CACHE", self.path("cache"))
            .env("HF_HUB_OFFLINE", "1");
        command
    }

    /// Runs the program.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments)
            .output()
            .expect("the program starts")
    }

    /// Runs the program, which must succeed, and returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} failed:\n{said}");
        String::from_utf8(output.stdout).expect("UTF-8 output")
    }

    /// Trains the recipe with `--set`s into the run `name` and returns its folder.
    pub fn train(&self, name: &str, sets: &[&str]) -> PathBuf {
        let output = self.path(name);
        let set = format!("output={}", output.display());
        let mut arguments = vec!["train", "recipe.toml", "--quiet", "--set", &set];
        for set in sets {
            arguments.extend(["--set", set]);
        }
        self.ok(&arguments);
        output
    }

    /// Trains the recipe with `--set`s twice, the second time killed after its first checkpoint and
    /// resumed: adapter, metrics and allocations must come out the same, bit for bit.
    pub fn assert_resumes(&self, name: &str, sets: &[&str]) {
        let (whole, killed) = (format!("whole-{name}"), format!("killed-{name}"));
        self.train(&whole, sets);
        let output = format!("output={}", self.path(&killed).display());
        let mut arguments = vec!["train", "recipe.toml", "--quiet", "--set", &output];
        for set in sets {
            arguments.extend(["--set", set]);
        }
        let mut child = self
            .command(&arguments)
            .spawn()
            .expect("the program starts");
        let pointers = self.path(&killed).join("checkpoints/pointers.json");
        let started = Instant::now();
        while !pointers.exists() {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "no checkpoint within a minute"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        assert!(
            !self.path(&killed).join("summary.json").exists(),
            "it ended before it was killed"
        );

        arguments.push("--resume");
        self.ok(&arguments);
        let adapter = |run: &str| {
            let path = self.path(run).join("adapter/adapter_model.safetensors");
            std::fs::read(path).expect("an adapter")
        };
        assert!(adapter(&whole) == adapter(&killed), "{name}");
        let without_time = |run: &str, file: &str| {
            let mut records = self.records(run, file);
            for record in &mut records {
                let fields = record.as_object_mut().expect("objects");
                fields.remove("seconds");
                fields.remove("peak_memory");
            }
            records
        };
        for file in ["metrics.jsonl", "allocations.jsonl"] {
            assert_eq!(
                without_time(&whole, file),
                without_time(&killed, file),
                "{name}: {file}"
            );
        }
    }

    /// The records of a JSON-lines file of a run.
    pub fn records(&self, run: &str, file: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.path(run).join(file)).expect("a run's file");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON lines"))
            .collect()
    }
}

/// The paths of all modules, from the first record of `allocations.jsonl`.
pub fn module_paths(first: &serde_json::Value) -> Vec<&str> {
    let modules = first["modules"].as_array().expect("paths");
    modules.iter().filter_map(|path| path.as_str()).collect()
}
