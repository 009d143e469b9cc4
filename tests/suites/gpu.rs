//! The trainer on a GPU, held against the CPU: by Vulkan, on its software driver (Debian's mesa-vulkan-drivers) where
//! there is one. Every operation that the CPU does by hand is done by burn's composition of it there.
//!
//! A process compiles its kernels anew, which takes half a minute on that driver, and tunes those of a shape that was not
//! met before, which takes longer. So the runs of a model share one shape, texts of 16 tokens, 4 of them in a batch, and
//! one folder for what was tuned, and all but the first go at the same time.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dynalora_tests::{Golden, Scene, contains, fixture, said, skip};
use serde_json::Value;

/// A scene with texts of one length, and the name of the device to test.
struct Bench {
    scene: Scene,
    device: String,
}

impl Bench {
    /// A bench for a model, unless there is no adapter, or the tests are [skipped](skip).
    fn new(model: &str, recipe: &str) -> Option<Bench> {
        let scene = Scene::new();
        let device = device(&scene)?;
        scene.write_long_texts(8);
        let mut text =
            format!("seed = 3\nthreads = 2\noutput = \"unused\"\ndevice = \"cpu\"\n{recipe}");
        text = text.replace("MODEL", &fixture(model).display().to_string());
        scene.write("recipe.toml", &text);
        Some(Bench { scene, device })
    }

    /// The program, its compiled kernels kept in the scene.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.scene.command(arguments);
        command.env("MESA_SHADER_CACHE_DIR", self.scene.path("mesa"));
        command
    }

    /// The arguments that train the recipe with `--set`s into the run `name`.
    fn arguments(&self, name: &str, device: &str, sets: &[&str]) -> Vec<String> {
        let output = format!("output={}", self.scene.path(name).display());
        let device = format!("device={device}");
        let mut arguments = vec![
            "train".to_owned(),
            "recipe.toml".to_owned(),
            "--quiet".to_owned(),
        ];
        for set in [&*output, &*device].iter().chain(sets) {
            arguments.extend(["--set".to_owned(), (*set).to_owned()]);
        }
        arguments
    }

    fn start(&self, arguments: &[String]) -> Child {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = self.command(&arguments);
        command.stderr(Stdio::piped()).stdout(Stdio::null());
        command.spawn().expect("the program starts")
    }

    /// Lets it end, which must be well.
    #[track_caller]
    fn ends(&self, child: Child, code: i32) {
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
    }

    /// Trains on both devices, and compares the runs `cpu-NAME` and `gpu-NAME`.
    fn both(&self, name: &str, sets: &[&str], within: &Within) {
        self.row(name, sets, within, |arguments| {
            let child = self.start(arguments);
            self.ends(child, 0);
        });
    }

    /// The same, with `train` to do the GPU's part.
    fn row(&self, name: &str, sets: &[&str], within: &Within, train: impl FnOnce(&[String])) {
        let started = Instant::now();
        let cpu = self.start(&self.arguments(&format!("cpu-{name}"), "cpu", sets));
        self.ends(cpu, 0);
        let on_cpu = started.elapsed().as_secs_f64();
        train(&self.arguments(&format!("gpu-{name}"), &self.device, sets));
        let on_gpu = started.elapsed().as_secs_f64() - on_cpu;
        eprintln!(
            "{name}: {on_cpu:.1} s on the CPU, {on_gpu:.1} s on {}",
            self.device
        );
        self.compare(name, within);
    }

    /// Everything that two runs recorded and exported.
    fn compare(&self, name: &str, within: &Within) {
        let runs = ["cpu", "gpu"].map(|device| format!("{device}-{name}"));
        for file in ["metrics.jsonl", "allocations.jsonl", "signals.jsonl"] {
            let [cpu, gpu] = runs.each_ref().map(|run| self.scene.path(run).join(file));
            assert_eq!(cpu.exists(), gpu.exists(), "{name}: {file}");
            if !cpu.exists() {
                continue;
            }
            let [cpu, gpu] = runs.each_ref().map(|run| self.scene.records(run, file));
            assert_eq!(cpu.len(), gpu.len(), "{name}: records of {file}");
            for (line, (cpu, gpu)) in cpu.iter().zip(&gpu).enumerate() {
                let within = if cpu["step"] == 1 { &FIRST } else { within };
                same(&format!("{name}: {file}:{}", line + 1), cpu, gpu, within);
            }
        }
        let summary = std::fs::read(self.scene.path(&runs[1]).join("summary.json"));
        let summary: Value = serde_json::from_slice(&summary.expect("a summary")).expect("JSON");
        assert_eq!(summary["device"], *self.device, "{name}");
        let [cpu, gpu] = runs.map(|run| {
            let adapter = self.scene.path(&run).join("adapter");
            Golden::open(&adapter.join("adapter_model.safetensors"))
        });
        assert_eq!(cpu.names(), gpu.names(), "{name}");
        for tensor in cpu.names() {
            assert_eq!(cpu.shape(&tensor), gpu.shape(&tensor), "{name}: {tensor}");
            let (cpu, gpu) = (cpu.floats(&tensor), gpu.floats(&tensor));
            let norm = |values: &mut dyn Iterator<Item = f32>| {
                let squares = values.map(|value| f64::from(value).powi(2));
                squares.sum::<f64>().sqrt()
            };
            let size = norm(&mut cpu.iter().copied());
            let off = norm(&mut cpu.iter().zip(&gpu).map(|(cpu, gpu)| cpu - gpu));
            // Not `>`: what is not a number is off.
            assert!(
                off <= within.weights * size,
                "{name}: {tensor}, of norm {size}, is off by {off}"
            );
        }
    }
}

/// How far apart the devices may be, as a share of a value.
struct Within {
    /// Losses, norms of gradients, metrics, scores and signals.
    records: f64,
    /// Exported tensors, by the norm of the difference.
    weights: f64,
}

/// Of a run of a few dozen steps, which let the last bits grow: a loss that has become small is off by the most.
const CLOSE: Within = Within {
    records: 1e-2,
    weights: 5e-3,
};

/// Of the first step, before anything was updated: a norm of gradients was seen off by 2.5e-4 on Mesa's software driver,
/// whose exponentials and error functions are its own.
const FIRST: Within = Within {
    records: 2e-3,
    weights: 0.0,
};

/// Keys of records that say how long something took, or where.
const APART: [&str; 2] = ["seconds", "peak_memory"];

/// A signal whose terms have either sign, and what they come to without it: what rounding leaves is a share of that.
const CANCELS: (&str, &str) = ("gradient_dot_weight", "gradient_dot_weight_abs");

/// Two records alike: numbers within a tolerance, everything else, masks and ranks among it, the very same.
fn same(place: &str, cpu: &Value, gpu: &Value, within: &Within) {
    match (cpu, gpu) {
        (Value::Object(cpu), Value::Object(gpu)) => {
            let keys = |object: &serde_json::Map<String, Value>| {
                object.keys().cloned().collect::<Vec<_>>()
            };
            assert_eq!(keys(cpu), keys(gpu), "{place}");
            for (key, value) in cpu {
                let place = format!("{place}: {key}");
                if key == CANCELS.0 {
                    let sizes = cpu[CANCELS.1].as_array().expect("a list").iter();
                    for (module, size) in sizes.enumerate() {
                        let [cpu, gpu] = [&value[module], &gpu[key][module]].map(Value::as_f64);
                        let off = cpu.zip(gpu).map(|(cpu, gpu)| (cpu - gpu).abs());
                        assert_eq!(cpu.is_some(), gpu.is_some(), "{place}[{module}]");
                        let most = size.as_f64().map(|size| within.records * size + 1e-6);
                        assert!(off <= most, "{place}[{module}]: {cpu:?}, {gpu:?}");
                    }
                } else if !APART.contains(&key.as_str()) {
                    same(&place, value, &gpu[key], within);
                }
            }
        }
        (Value::Array(cpu), Value::Array(gpu)) => {
            assert_eq!(cpu.len(), gpu.len(), "{place}");
            for (index, (cpu, gpu)) in cpu.iter().zip(gpu).enumerate() {
                same(&format!("{place}[{index}]"), cpu, gpu, within);
            }
        }
        (Value::Number(cpu), Value::Number(gpu)) => {
            let [cpu, gpu] = [cpu, gpu].map(|number| number.as_f64().expect("a number"));
            // Below this a sum is what rounding left of it.
            let off = (cpu - gpu).abs() - 1e-6;
            assert!(
                off <= within.records * cpu.abs(),
                "{place}: {cpu} on the CPU, {gpu} on the GPU"
            );
        }
        _ => assert_eq!(cpu, gpu, "{place}"),
    }
}

/// The device to test: software where there is some, for that is the same everywhere.
fn device(scene: &Scene) -> Option<String> {
    let devices = scene.ok(&["devices", "--json"]);
    let devices: Value = serde_json::from_str(&devices).expect("JSON");
    let adapters = devices["wgpu"]["adapters"].as_array().expect("a list");
    let software = adapters
        .iter()
        .find(|adapter| adapter["kind"] == "software");
    match software.or(adapters.first()) {
        Some(adapter) => Some(adapter["device"].as_str().expect("a name").to_owned()),
        None => skip("gpu", devices["wgpu"]["missing"][0]["what"].to_string()),
    }
}

/// Waits for a file that a run writes, which compiles first.
fn wait_for(run: &mut Child, file: &Path) {
    while !file.exists() {
        let ended = run.try_wait().expect("it can be asked");
        assert!(ended.is_none(), "it ended without {}", file.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A scorer that asks for every signal there is, and makes nothing of them.
fn curious(scene: &Scene) {
    let script = r#"
        while read -r line; do
            case $line in
                *'"call":"needs"'*) echo '{"ok":true,"needs":{"signals":["activation_l1","activation_l2","delta_l2","gradient_l1","gradient_l2","weight_l2","input_l2","output_gradient_l2","gradient_dot_weight","gradient_dot_weight_abs","fisher","update_l2"]}}' ;;
                *'"call":"scores"'*) echo "{\"ok\":true,\"scores\":[$(seq -s, "$modules")]}" ;;
                *'"call":"make"'*)
                    modules=$(printf %s "$line" | grep -o '"path":' | wc -l)
                    echo '{"ok":true}' ;;
                *'"call":"observe"'*) echo '{"ok":true}' ;;
                *) echo '{"unknown":true}' ;;
            esac
        done
    "#;
    scene.write("curious.sh", script);
}

const BERT: &str = r#"
[model]
name = "MODEL"
max_length = 16
hidden_dropout = 0.0
attention_dropout = 0.0
classifier_dropout = 0.0

[data]
train = "train.csv"
validation = "dev.csv"
[data.columns]
text = "sentence"

[adapter]
rank = 4
targets = "all-linear"

[train]
steps = 8
batch_size = 4
learning_rate = 5e-2
epsilon = 1e-3
log_every = 1

[evaluation]
every = 4
batch_tokens = 64

[checkpoint]
every = 2
"#;

#[test]
fn an_encoder_trains_as_on_the_cpu() {
    let Some(bench) = Bench::new("tiny-bert", BERT) else {
        return;
    };
    // Killed, and resumed: steps, reallocations and evaluations are those of the CPU's whole run.
    let activation = [
        "train.steps=24",
        "allocation.schedule={ kind = \"periodic\", every = 4 }",
        "scorer.plugin=activation",
        "allocator.plugin=top-k",
        "allocator.k=\"50%\"",
    ];
    bench.row("activation", &activation, &CLOSE, |arguments| {
        let mut child = bench.start(arguments);
        wait_for(
            &mut child,
            &bench.scene.path("gpu-activation/checkpoints/pointers.json"),
        );
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        let whole = bench.scene.path("gpu-activation/summary.json");
        assert!(!whole.exists(), "it ended before it was killed");
        let resumed = [arguments, &["--resume".to_owned()]].concat();
        bench.ends(bench.start(&resumed), 0);
    });
    let gradient = [
        "allocation.schedule={ kind = \"periodic\", every = 4 }",
        "scorer.plugin=gradient",
        "allocator.plugin=multinomial",
        "allocator.k=\"50%\"",
    ];
    // Components are pruned, and every signal is measured at every step.
    curious(&bench.scene);
    let ranks = [
        "allocation.schedule={ kind = \"periodic\", every = 2 }",
        "scorer={ plugin = \"process\", command = [\"sh\", \"curious.sh\"] }",
        "allocator={ plugin = \"rank-budget\", target_r = 2 }",
        "train.log_signals=true",
    ];
    let vera = [
        "adapter={ kind = \"vera\", rank = 8, targets = \"all-linear\" }",
        "allocation.schedule={ kind = \"periodic\", every = 4 }",
        "scorer={ plugin = \"activation\", target = \"delta\" }",
        "allocator={ plugin = \"threshold\", p = 0.8 }",
    ];
    // Every signal of DoRA and of biases that train.
    let dora = [
        "adapter={ rank = 4, targets = \"all-linear\", use_dora = true, bias = \"lora_only\" }",
        "allocation.schedule={ kind = \"periodic\", every = 2 }",
        "scorer={ plugin = \"process\", command = [\"sh\", \"curious.sh\"] }",
        "allocator={ plugin = \"top-k\", k = \"50%\" }",
        "train.log_signals=true",
    ];
    // The same masks.
    let dropout = [
        "train.learning_rate=1e-2",
        "model.hidden_dropout=0.3",
        "model.attention_dropout=0.3",
        "model.classifier_dropout=0.3",
        "adapter.dropout=0.3",
    ];
    std::thread::scope(|scope| {
        scope.spawn(|| bench.both("gradient", &gradient, &CLOSE));
        scope.spawn(|| bench.both("dora", &dora, &CLOSE));
        scope.spawn(|| bench.both("ranks", &ranks, &CLOSE));
        scope.spawn(|| bench.both("vera", &vera, &CLOSE));
        scope.spawn(|| bench.both("dropout", &dropout, &CLOSE));
        scope.spawn(|| half(&bench));
    });
}

/// In f16 a run stays near the CPU's in f32; an adapter without it refuses by name.
fn half(bench: &Bench) {
    let started = Instant::now();
    let learn = "train.learning_rate=1e-3";
    bench.ends(
        bench.start(&bench.arguments("cpu-half", "cpu", &[learn])),
        0,
    );
    let sets = [learn, "model.precision=f16"];
    let arguments = bench.arguments("gpu-half", &bench.device, &sets);
    let output = bench.start(&arguments).wait_with_output();
    let output = output.expect("it ends");
    if output.status.code() == Some(2) {
        contains(&output, &["model.precision is \"f16\"", "cannot compute"]);
        return;
    }
    assert!(output.status.success(), "{}", said(&output));
    let steps = ["cpu-half", "gpu-half"].map(|run| {
        let records = bench.scene.records(run, "metrics.jsonl");
        let steps = records
            .into_iter()
            .filter(|record| record["kind"] == "step");
        steps.collect::<Vec<Value>>()
    });
    assert_eq!(steps[0].len(), 8);
    let mut furthest = 0f64;
    for (cpu, gpu) in steps[0].iter().zip(&steps[1]) {
        assert_eq!(gpu["skipped"].as_u64().unwrap_or(0), 0, "{gpu}");
        for key in ["loss", "grad_norm"] {
            let [cpu, gpu] = [cpu, gpu].map(|step| step[key].as_f64().expect("a number"));
            let off = (cpu - gpu).abs() / cpu;
            assert!(off < 3e-2, "{key}: {cpu} in f32, {gpu} in f16");
            furthest = furthest.max(off);
        }
    }
    assert!(furthest > 1e-6, "f16 is rounded");
    let progress = bench
        .scene
        .path("gpu-half/checkpoints/step-000008/progress.json");
    let progress = std::fs::read(progress).expect("a checkpoint");
    let progress: Value = serde_json::from_slice(&progress).expect("JSON");
    assert_eq!(progress["loss_scale"]["scale"], 65536.0);
    assert_eq!(progress["loss_scale"]["steps"], 8);
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("f16: off by {furthest:e} at most; {seconds:.1} s");
    overflowing(bench);
}

/// Gradients that f16 has no number for at first: steps are left out, which is said, until the loss is scaled by little
/// enough, and the run goes on.
fn overflowing(bench: &Bench) {
    for file in ["train.csv", "dev.csv"] {
        let table = std::fs::read_to_string(bench.scene.path(file)).expect("a table");
        let far = table
            .replace(",comma,", ",30000.5,")
            .replace(",none,", ",-20000.5,");
        bench.scene.write(&format!("far-{file}"), &far);
    }
    let sets = [
        "model.precision=f16",
        "train.learning_rate=1e-3",
        "train.steps=20",
        // One record, of which some steps had an update, whatever became of the last.
        "train.log_every=20",
        "data.problem=regression",
        "data.train=far-train.csv",
        "data.validation=far-dev.csv",
        "evaluation.every=\"never\"",
    ];
    let arguments = bench.arguments("gpu-far", &bench.device, &sets);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = bench.command(&arguments);
    // What is said of steps that are left out is a warning.
    let output = command.env("RUST_LOG", "warn").output();
    let output = output.expect("the program starts");
    assert!(output.status.success(), "{}", said(&output));
    contains(
        &output,
        &[
            "a gradient is not finite in f16",
            "the loss is scaled by 32768 now",
        ],
    );
    let records = bench.scene.records("gpu-far", "metrics.jsonl");
    let mut steps = records.iter().filter(|record| record["kind"] == "step");
    let last = steps.next_back().expect("twenty steps");
    let skipped = last["skipped"].as_u64().expect("a number");
    assert!((1..=16).contains(&skipped), "{last}");
    assert!(last["loss"].is_number(), "{last}");
    let progress = bench
        .scene
        .path("gpu-far/checkpoints/step-000020/progress.json");
    let progress = std::fs::read(progress).expect("a checkpoint");
    let progress: Value = serde_json::from_slice(&progress).expect("JSON");
    let scale = 65536.0 / f64::from(1u32 << skipped);
    assert_eq!(progress["loss_scale"]["scale"], scale);
}

const LLAMA: &str = r#"
[model]
name = "MODEL"
max_length = 16

[data]
problem = "causal-lm"
train = "train.csv"
validation = "dev.csv"
[data.columns]
text = "prompt"
response = "sentence"

[adapter]
rank = 4
targets = "all-linear"

[train]
steps = 8
batch_size = 4
learning_rate = 5e-2
epsilon = 1e-3
log_every = 1

[evaluation]
every = 4
batch_tokens = 64
"#;

#[test]
fn a_decoder_trains_as_on_the_cpu() {
    let Some(bench) = Bench::new("tiny-llama", LLAMA) else {
        return;
    };
    let sets = [
        "allocation.schedule={ kind = \"periodic\", every = 4 }",
        "scorer.plugin=gradient",
        "allocator.plugin=top-k",
        "allocator.k=\"50%\"",
    ];
    bench.both("llama", &sets, &CLOSE);
    // The exported adapter, read again, says on the GPU what it says on the CPU.
    let run = bench.scene.path("gpu-llama").display().to_string();
    let [cpu, gpu] = ["cpu", &bench.device].map(|device| {
        let set = format!("device={device}");
        let output = bench
            .command(&["evaluate", &run, "--json", "--set", &set])
            .output();
        let output = output.expect("the program starts");
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    });
    same("evaluate", &cpu, &gpu, &CLOSE);
}

#[test]
fn what_is_not_there_is_said_before_anything_starts() {
    let scene = Scene::new();
    let refused = |device: &str, environment: &[(&str, &str)], parts: &[&str]| {
        let set = format!("device={device}");
        let mut command = scene.command(&["train", "recipe.toml", "--set", &set]);
        let output = command.envs(environment.iter().copied()).output();
        let output = output.expect("the program starts");
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        contains(&output, parts);
        assert!(!scene.path("run").exists(), "{device}");
    };
    if device(&scene).is_none() {
        return;
    }
    let set = "device=vulkan";
    let bf16 = scene.run(&[
        "train",
        "recipe.toml",
        "--set",
        set,
        "--set",
        "model.precision=bf16",
    ]);
    assert_eq!(bf16.status.code(), Some(2), "{}", said(&bf16));
    contains(
        &bf16,
        &["model.precision", "\"f32\", \"f16\" where device is"],
    );
    // A loader that finds no driver.
    let none = [
        ("VK_DRIVER_FILES", "/nowhere.json"),
        ("VK_ICD_FILENAMES", "/nowhere.json"),
    ];
    for device in ["vulkan", "webgpu:0"] {
        let parts = ["device = \"", "but", "mesa-vulkan-drivers", "does without"];
        refused(device, &none, &parts);
    }
    refused(
        "vulkan:99",
        &[],
        &["device = \"vulkan:99\", but there", "dynalora devices"],
    );
    if !cfg!(target_vendor = "apple") {
        refused("metal", &[], &["only Apple's systems have Metal"]);
    }
    let devices = scene.ok(&["devices"]);
    assert!(
        devices.contains("vulkan:0") && devices.contains("Vulkan"),
        "{devices}"
    );
    // Software is never what `auto` takes.
    let auto = devices
        .lines()
        .find(|line| line.starts_with("device = \"auto\": "));
    let auto = auto.expect("a line on auto");
    if devices.matches("GPU by").count() == 0 && !auto.contains("CUDA device 0") {
        assert!(
            auto.contains("CPU (") && auto.contains("only taken by name"),
            "{auto}"
        );
    }
}
