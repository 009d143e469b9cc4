//! Runs on CUDA where there is no device: a library of the tests' own stands in for the driver (`tests/cuda-driver`), so
//! that everything up to the device is what it would be. burn writes the kernels, NVIDIA's run-time compiler compiles
//! them, for an A100 and for an H100, and every call of the driver is checked and counted. What a kernel computes is
//! tested on other devices (`gpu`).
//!
//! The compiler is not ours to ship: `.ci/run` fetches NVIDIA's packages for Python.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use dynalora_tests::pictures::write_stripes;
use dynalora_tests::{Scene, built, contains, fixture, flat, said, skip};
use safetensors::SafeTensors;
use serde::Deserialize;

/// The folder that has `include` and `lib` of a toolkit.
const TOOLKIT: &str = "DYNALORA_CUDA_TOOLKIT";

/// Set for the long form.
const LONG: &str = "DYNALORA_CUDA_LONG";

/// What the stand-in wrote of a process.
#[derive(Deserialize)]
struct Report {
    launches: BTreeMap<String, u64>,
    uploads: BTreeMap<usize, u64>,
    shapes: u64,
    reads: u64,
    waits: u64,
    live: u64,
    allocations: u64,
    events: u64,
    modules: u64,
    compiled: u64,
    cached: u64,
    tf32: u64,
    architectures: Vec<String>,
    refused: Vec<String>,
    faults: Vec<String>,
    compile_seconds: f64,
}

impl Report {
    /// What went wrong, if anything did.
    fn wrong(&self) -> Option<String> {
        let mut wrong = [&self.refused[..], &self.faults].concat();
        if self.modules != self.compiled {
            let (modules, compiled) = (self.modules, self.compiled);
            wrong.push(format!(
                "{modules} kernels were loaded, {compiled} compiled"
            ));
        }
        // One is pending at most, of what is freed once the device is done with it.
        if self.events > 2 {
            wrong.push(format!("{} events were never destroyed", self.events));
        }
        (!wrong.is_empty()).then(|| wrong.join("\n"))
    }
}

/// A scene whose runs are on a device that is stood in for.
struct Bench {
    scene: Scene,
    architecture: &'static str,
    toolkit: PathBuf,
}

impl Bench {
    /// A bench, unless there is no compiler.
    fn new(architecture: &'static str) -> Option<Bench> {
        let toolkit = toolkit()?;
        let scene = Scene::new();
        std::fs::create_dir_all(scene.path("lib")).expect("a temporary folder");
        std::fs::create_dir_all(scene.path("ptx")).expect("a temporary folder");
        let driver = built().join("libdynalora_cuda_driver.so");
        for name in ["libcuda.so", "libcuda.so.1", "libnvrtc.so"] {
            std::os::unix::fs::symlink(&driver, scene.path("lib").join(name)).expect("a link");
        }
        // Texts of one length, as in `gpu`, so that most kernels are met in the first run.
        scene.write_long_texts(4);
        write_stripes(&scene.path("stripes/train"), 8, 0);
        write_stripes(&scene.path("stripes/validation"), 2, 1000);
        Some(Bench {
            scene,
            architecture,
            toolkit,
        })
    }

    /// The program, in an environment that has the device.
    fn command(&self, arguments: &[&str], report: &Path) -> Command {
        let mut command = self.scene.command(arguments);
        command
            .env("LD_LIBRARY_PATH", self.scene.path("lib"))
            .env("CUDA_PATH", &self.toolkit)
            .env("DYNALORA_CUDA_COMPILER", compiler(&self.toolkit))
            .env("DYNALORA_CUDA_DEVICE", self.architecture)
            .env("DYNALORA_CUDA_CACHE", self.scene.path("ptx"))
            .env("DYNALORA_CUDA_REPORT", report);
        command
    }

    /// Trains a recipe with `--set`s, as far as it goes; the account of it.
    fn run(&self, recipe: &str, sets: &[&str], environment: &[(&str, &str)]) -> (Output, Report) {
        let recipe =
            format!("seed = 3\nthreads = 2\noutput = \"run\"\ndevice = \"cuda\"\n{recipe}");
        self.scene.write("recipe.toml", &recipe);
        let mut arguments = vec!["train", "recipe.toml", "--quiet", "--force"];
        for set in sets {
            arguments.extend(["--set", set]);
        }
        let report = self.scene.path("report.json");
        let mut command = self.command(&arguments, &report);
        command.envs(environment.iter().copied());
        let output = command.output().expect("the program starts");
        let text = std::fs::read(&report)
            .unwrap_or_else(|error| panic!("no account: {error}\n{}", said(&output)));
        (output, serde_json::from_slice(&text).expect("JSON"))
    }

    /// Trains a recipe with `--set`s, which must go well in every respect.
    #[track_caller]
    fn trains(&self, name: &str, recipe: &str, sets: &[&str]) -> Report {
        let started = Instant::now();
        let (output, report) = self.run(recipe, sets, &[]);
        assert!(output.status.success(), "{name}: {}", said(&output));
        if let Some(wrong) = report.wrong() {
            panic!("{name}: {wrong}");
        }
        let architecture = match self.architecture {
            "sm_90" => "sm_90a",
            other => other,
        };
        assert_eq!(report.architectures, [architecture], "{name}");
        eprintln!(
            "{name}, {architecture}: {} kernels, {} of them new, compiled in {:.1} s; {} launches; {:.1} s in all",
            report.compiled,
            report.compiled - report.cached,
            report.compile_seconds,
            report.launches.values().sum::<u64>(),
            started.elapsed().as_secs_f64(),
        );
        report
    }
}

/// The toolkit: where the environment says, or where one is installed.
fn toolkit() -> Option<PathBuf> {
    let named = std::env::var_os(TOOLKIT).map(PathBuf::from);
    let installed = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from);
    let mut places = named.into_iter().chain(installed);
    let found = places
        .find(|place| compiler(place).exists() && place.join("include/cuda_runtime.h").exists());
    if found.is_none() {
        let why = format!("{TOOLKIT} names no folder with CUDA's run-time compiler and headers");
        return skip("nvrtc", why);
    }
    found
}

/// Its run-time compiler.
fn compiler(toolkit: &Path) -> PathBuf {
    let folders = ["lib", "lib64"].map(|folder| toolkit.join(folder));
    let names = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"];
    let all = folders
        .iter()
        .flat_map(|folder| names.map(|name| folder.join(name)));
    let found = all.into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| toolkit.join("lib/libnvrtc.so"))
}

/// A recipe for a model of words or of images.
fn recipe(model: &Path, data: &str) -> String {
    format!(
        r#"
[model]
name = "{}"

[data]
{data}

[adapter]
rank = 4
targets = "all-linear"

[train]
steps = 3
batch_size = 4
log_every = 1

[evaluation]
batch_tokens = 64
"#,
        model.display()
    )
}

const TEXTS: &str = r#"train = "train.csv"
validation = "dev.csv"
columns = { text = "sentence" }"#;

const ANSWERS: &str = r#"problem = "causal-lm"
train = "train.csv"
validation = "dev.csv"
columns = { text = "prompt", response = "sentence" }"#;

const IMAGES: &str = "format = \"images\"\ndir = \"stripes\"";

/// A scorer that asks for every signal there is, and makes nothing of them.
const CURIOUS: &str = r#"
while read -r line; do
    case $line in
        *'"call":"needs"'*) echo '{"ok":true,"needs":{"signals":["activation_l1","activation_l2","delta_l2","gradient_l1","gradient_l2","weight_l2","input_l2","output_gradient_l2","gradient_dot_weight","gradient_dot_weight_abs","fisher","update_l2"]}}' ;;
        *'"call":"scores"'*) echo '{"ok":true,"scores":[1,2,3,4,5,6,7,8,9,10,11,12,13]}' ;;
        *'"call":"make"'* | *'"call":"observe"'*) echo '{"ok":true}' ;;
        *) echo '{"unknown":true}' ;;
    esac
done
"#;

/// Every kind of step there is, compiled for a device; of the long form all of it for each of them.
fn every_kernel(bench: &Bench, whole: bool) {
    bench.scene.write("curious.sh", CURIOUS);
    let length = "model.max_length=16";
    let often = "allocation.schedule={ kind = \"periodic\", every = 1 }";
    let bert = recipe(&fixture("tiny-bert"), TEXTS);
    // Every signal, dropout, pruned components.
    let ranks = [
        length,
        often,
        "scorer={ plugin = \"process\", command = [\"sh\", \"curious.sh\"] }",
        "allocator={ plugin = \"rank-budget\", target_r = 2 }",
        "model.hidden_dropout=0.3",
        "model.attention_dropout=0.3",
        "adapter.dropout=0.3",
        "train.weight_decay=0.01",
    ];
    let signals = bench.trains("every signal", &bert, &ranks);
    assert!(signals.compiled > 250, "{} kernels", signals.compiled);
    // Products of f32 on tensor cores are tf32: what `model.precision = "tf32"` is for, and what "f32" warns of.
    assert!(signals.tf32 > 0, "docs/devices.md says that there are some");
    eprintln!("{} of the kernels round to tf32", signals.tf32);
    if !whole {
        return;
    }
    let gradient = [
        "scorer.plugin=gradient",
        "allocator={ plugin = \"top-k\", k = \"50%\" }",
    ];
    let plain = [&[length, often][..], &gradient].concat();
    bench.trains("gradient", &bert, &plain);
    let vera = [
        length,
        often,
        "adapter={ kind = \"vera\", rank = 8, targets = \"all-linear\" }",
        "scorer={ plugin = \"activation\", target = \"delta\" }",
        "allocator={ plugin = \"threshold\", p = 0.8 }",
    ];
    bench.trains("vera", &bert, &vera);
    let llama = recipe(&fixture("tiny-llama"), ANSWERS);
    bench.trains("decoder", &llama, &plain);
    for (precision, warns) in [("f32", true), ("tf32", false)] {
        let set = format!("model.precision={precision}");
        let sets = [&plain[..], &["train.steps=1", &set]].concat();
        let (output, _) = bench.run(&bert, &sets, &[("RUST_LOG", "warn")]);
        assert!(output.status.success(), "{}", said(&output));
        let warned = flat(&said(&output)).contains(&flat("tensor cores"));
        assert_eq!(warned, warns, "{precision}: {}", said(&output));
    }
    for precision in ["bf16", "f16"] {
        let set = format!("model.precision={precision}");
        let in_half = [&plain[..], &[&set]].concat();
        bench.trains(precision, &bert, &in_half);
        // Its head is one more weight. A precision takes as long to compile as all before it.
        if std::env::var_os(LONG).is_some() {
            bench.trains(precision, &llama, &in_half);
        }
    }
    let activation = [
        "scorer.plugin=activation",
        "allocator={ plugin = \"top-k\", k = \"50%\" }",
    ];
    let vit = recipe(&fixture("tiny-vit"), IMAGES);
    bench.trains("images", &vit, &[&[often][..], &activation].concat());
}

#[test]
fn every_kernel_of_a_step_compiles_for_an_a100() {
    let Some(bench) = Bench::new("sm_80") else {
        return;
    };
    every_kernel(&bench, true);
    spoilt(&bench);
    counted(&bench);
}

/// A kernel takes four times as long to compile as for an A100: in the short form those of one run, which has most.
#[test]
fn every_kernel_of_a_step_compiles_for_an_h100() {
    let Some(bench) = Bench::new("sm_90") else {
        return;
    };
    every_kernel(&bench, std::env::var_os(LONG).is_some());
}

/// What one step asks of the driver.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    /// Launches.
    launches: f64,
    /// Copies to the device of what the trainer sends.
    uploads: f64,
    /// Copies to the device that cubecl makes for launches, of the shapes of their tensors.
    shapes: f64,
    /// Copies to the host.
    reads: f64,
    /// How often the host waits for the device: for a read, and where cubecl waits before it reuses what the shapes
    /// were copied from, once in 64 copies.
    waits: f64,
}

/// By the difference of two runs, of which nothing else differs, to the last call.
fn step(bench: &Bench, name: &str, model: &Path, sets: &[&str]) -> Step {
    const STEPS: [u64; 2] = [8, 12];
    let recipe = recipe(model, TEXTS);
    let run = |steps: u64| {
        let steps = format!("train.steps={steps}");
        let fixed = [
            &*steps,
            "model.max_length=16",
            "model.hidden_dropout=0",
            "model.attention_dropout=0",
            "evaluation.every=\"never\"",
            "checkpoint.every=\"never\"",
        ];
        bench.trains(name, &recipe, &[&fixed[..], sets].concat())
    };
    let [mut short, long] = STEPS.map(run);
    // What was not met before was tuned in the first.
    if short.modules != long.modules {
        short = run(STEPS[0]);
    }
    let per_step = |count: fn(&Report) -> u64| {
        (count(&long) as f64 - count(&short) as f64) / (STEPS[1] - STEPS[0]) as f64
    };
    assert_eq!(short.live, long.live, "{name}: memory on the device");
    assert_eq!(short.allocations, long.allocations, "{name}");
    assert_eq!(short.events, long.events, "{name}");
    let step = Step {
        launches: per_step(|report| report.launches.values().sum()),
        uploads: per_step(|report| report.uploads.values().sum()),
        shapes: per_step(|report| report.shapes),
        reads: per_step(|report| report.reads),
        waits: per_step(|report| report.waits),
    };
    eprintln!("{name}: {step:?}");
    step
}

/// What a step asks of the driver is no more than it was when this was written.
fn counted(bench: &Bench) {
    let model = |layers: usize| {
        let folder = bench.scene.path(&format!("bert-{layers}"));
        with_layers(&fixture("tiny-bert"), &folder, layers);
        folder
    };
    let [two, four] = [2, 4].map(model);
    // Six modules a layer, and two.
    let all = "adapter.targets=[\"glob:encoder.layer.**\"]";
    let few = "adapter.targets=[\"query\", \"value\"]";
    let never = "allocation.schedule={ kind = \"never\" }";
    let scored = "allocation.schedule={ kind = \"periodic\", every = 4 }";
    let scorer = [
        "scorer.plugin=activation",
        "allocator={ plugin = \"top-k\", k = \"100%\" }",
    ];
    let of_two = step(bench, "two layers", &two, &[all, never]);
    let of_four = step(bench, "four layers", &four, &[all, never]);
    let of_few = step(bench, "two modules a layer", &two, &[few, never]);
    let unlogged = [all, never, "train.log_every=100"];
    let unlogged = step(bench, "not logged", &two, &unlogged);
    let measured = [&[all, scored][..], &scorer].concat();
    let measured = step(bench, "scored", &two, &measured);
    for (step, launches) in [
        (of_two, 420.0),
        (of_four, 800.0),
        (of_few, 300.0),
        (unlogged, 420.0),
        (measured, 520.0),
    ] {
        // As many as there were when this was written, and a tenth, for another kernel may be tuned to be the fastest.
        assert!(step.launches <= launches, "{step:?}, at most {launches}");
        // Tokens, their types and positions, the first of each sequence, and labels, at once.
        assert_eq!(step.uploads, 1.0, "{step:?}");
        // Loss, norms and all that plugins ask for come back together.
        assert_eq!(step.reads, 1.0, "{step:?}");
        // Nothing else is waited for, but that cubecl frees what it copied from, of 64 copies at a time.
        let copies = step.uploads + step.shapes;
        let waits = step.reads + copies / 64.0 + 1.0;
        assert!(step.waits <= waits, "{step:?}, at most {waits} waits");
    }
    let a_layer = (of_four.launches - of_two.launches) / 2.0;
    assert!(a_layer <= 190.0, "{a_layer} launches a layer");
    let a_module = (of_two.launches - of_few.launches) / 8.0;
    assert!(a_module <= 16.0, "{a_module} launches a module");
}

/// Writes a model with another number of layers, of the weights of those that there are.
fn with_layers(from: &Path, to: &Path, layers: usize) {
    std::fs::create_dir_all(to).expect("a temporary folder");
    for entry in std::fs::read_dir(from).expect("a fixture").flatten() {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    }
    let config = std::fs::read_to_string(from.join("config.json")).expect("a config");
    let there = "\"num_hidden_layers\": 2";
    assert!(config.contains(there), "two layers");
    let config = config.replace(there, &format!("\"num_hidden_layers\": {layers}"));
    std::fs::write(to.join("config.json"), config).expect("a temporary file");
    let bytes = std::fs::read(from.join("model.safetensors")).expect("weights");
    let weights = SafeTensors::deserialize(&bytes).expect("weights");
    let mut tensors = BTreeMap::new();
    for (name, view) in weights.tensors() {
        match name.split_once(".layer.") {
            None => {
                tensors.insert(name, view);
            }
            Some((before, after)) => {
                let (layer, part) = after.split_once('.').expect("a part of a layer");
                let layer: usize = layer.parse().expect("a number");
                for layer in (layer..layers).step_by(2) {
                    tensors.insert(format!("{before}.layer.{layer}.{part}"), view.clone());
                }
            }
        }
    }
    let path = to.join("model.safetensors");
    safetensors::serialize_to_file(&tensors, None, &path).expect("a temporary file");
}

/// A kernel that does not compile ends a run, and fails a test. One that is tried among others is passed over by burn, and
/// by nobody else.
fn spoilt(bench: &Bench) {
    let recipe = recipe(&fixture("tiny-bert"), TEXTS);
    let sets = [
        "model.max_length=16",
        "train.steps=1",
        "evaluation.every=\"never\"",
    ];
    let spoilt = [("DYNALORA_CUDA_SPOIL", "elemwise_fuse")];
    let (output, report) = bench.run(&recipe, &sets, &spoilt);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    contains(&output, &["the device has failed", "spoilt by the test"]);
    let wrong = report.wrong().expect("it is seen");
    assert!(wrong.contains("spoilt by the test"), "{wrong}");
}

#[test]
fn what_is_missing_of_the_toolkit_is_named() {
    let Some(bench) = Bench::new("sm_80") else {
        return;
    };
    let scene = &bench.scene;
    let devices = |command: &mut Command, parts: &[&str]| {
        let output = command.output().expect("the program starts");
        assert!(output.status.success(), "{}", said(&output));
        let listed = String::from_utf8(output.stdout).expect("UTF-8");
        for part in parts {
            let shown = flat(&listed).contains(&flat(part));
            assert!(shown, "{part:?} is missing:\n{listed}");
        }
    };
    let report = scene.path("devices.json");
    devices(
        &mut bench.command(&["devices"], &report),
        &[
            "cuda:0",
            "an A100, compute capability 8.0",
            "a driver for CUDA 13.0",
        ],
    );
    // The headers of one of NVIDIA's packages for Python, without those of another.
    let part = scene.path("part");
    std::fs::create_dir_all(part.join("include")).expect("a temporary folder");
    devices(
        bench.command(&["devices"], &report).env("CUDA_PATH", &part),
        &[
            "lack cuda_runtime.h",
            "nvidia-cuda-runtime",
            "lack crt/mma.h",
            "nvidia-cuda-crt",
        ],
    );
    scene.write("recipe.toml", &scene.recipe_text());
    let mut train = bench.command(&["train", "recipe.toml", "--set", "device=cuda"], &report);
    let output = train
        .env("CUDA_PATH", &part)
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    contains(
        &output,
        &["device = \"cuda:0\", but", "lack cuda_runtime.h"],
    );
}
