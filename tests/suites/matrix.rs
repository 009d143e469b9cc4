//! Random recipes over all keys, and what must hold of every one of them: most faults sit where two
//! features meet, and each feature has its own tests alone.
//!
//! `DYNALORA_MATRIX` is the number of recipes, `DYNALORA_MATRIX_SEED` the seed of the first (the others follow
//! it by one), `DYNALORA_MATRIX_KEEP=1` shows all failures rather than the first, `DYNALORA_MATRIX_QUICK=1` does not
//! shrink them, `DYNALORA_MATRIX_ONLY=Cache` holds one invariant alone, `DYNALORA_MATRIX_VERBOSE=1` tells of each.
//! A failure is shrunk: keys are dropped as long as it stays, and what is left is printed as a recipe.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dynalora_tests::drawn::{Choice, Drawn, HOME, adapter, contents, difference, inputs, records};
use dynalora_tests::ranks::{WITHIN, on_ranks, unlike_within};
use dynalora_tests::{Golden, dynalora, module_paths, said};
use serde_json::Value;
use tempfile::TempDir;

/// What must hold of a recipe's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Invariant {
    /// The cache of the frozen prefix changes nothing.
    Cache,
    /// Nor does running layers once more rather than keeping all of them.
    Checkpointed,
    /// The number of threads changes nothing.
    Threads,
    /// Plugins in processes of their own choose the same.
    Isolated,
    /// Killed at any moment and resumed, as often as it takes, it is the same run.
    Interrupted,
    /// As [`Interrupted`](Invariant::Interrupted), moved to another folder in between.
    Moved,
    /// Measuring changes nothing of what is trained: `uniform` draws and learns the same with a scorer.
    Measured,
    /// `k` micro-batches of `b` examples are one batch of `k·b`, the last ones of an epoch too.
    Accumulated,
    /// Two or three ranks come to what one process comes to.
    Ranks,
    /// The FLOPs recorded are those of the cost model, of which `plan` tells.
    Flops,
    /// A module that is inactive does not change.
    Inactive,
    /// What is exported evaluates to what was measured.
    Evaluated,
    /// A run that starts from what another has exported, and does not learn, is as good as that.
    GoneOn,
    /// A finished run that is resumed stays as it is, byte for byte.
    Finished,
}

const INVARIANTS: [Invariant; 14] = [
    Invariant::Cache,
    Invariant::Checkpointed,
    Invariant::Threads,
    Invariant::Isolated,
    Invariant::Interrupted,
    Invariant::Moved,
    Invariant::Measured,
    Invariant::Accumulated,
    Invariant::Ranks,
    Invariant::Flops,
    Invariant::Inactive,
    Invariant::Evaluated,
    Invariant::GoneOn,
    Invariant::Finished,
];

/// Invariants that are held of one recipe.
const OF_EACH: usize = 3;

/// What came of holding an invariant.
enum Outcome {
    Holds,
    /// The recipe does not reach it: it is refused, or has not what the invariant is about.
    Beside(String),
    Fails(String),
}

#[test]
fn random_recipes_keep_what_is_promised() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect(name))
    };
    let (count, seed) = (
        number("DYNALORA_MATRIX", 240),
        number("DYNALORA_MATRIX_SEED", 1),
    );
    let (keep, quick) = (
        number("DYNALORA_MATRIX_KEEP", 0) == 1,
        number("DYNALORA_MATRIX_QUICK", 0) == 1,
    );
    let only = std::env::var("DYNALORA_MATRIX_ONLY").unwrap_or_default();
    let place = Place::new();
    let next = AtomicU64::new(seed);
    let started = Instant::now();
    let worker = || {
        let (mut failures, mut held, mut beside) = (Vec::new(), 0_u64, Vec::new());
        loop {
            let seed_here = next.fetch_add(1, Ordering::Relaxed);
            if seed_here >= seed + count || (!keep && !failures.is_empty()) {
                return (failures, held, beside);
            }
            let mut choice = Choice::new(seed_here);
            let drawn = Drawn::draw(&mut choice, place.folder.path());
            for _ in 0..OF_EACH {
                let invariant = choice.of(&INVARIANTS);
                if !only.is_empty() && format!("{invariant:?}") != only {
                    continue;
                }
                match place.hold(&drawn, invariant, seed_here) {
                    Outcome::Holds => held += 1,
                    Outcome::Beside(why) => {
                        beside.push(format!("{invariant:?}, seed {seed_here}: {why}"))
                    }
                    Outcome::Fails(why) if quick => {
                        failures.push(format!("seed {seed_here}, {invariant:?}: {why}"))
                    }
                    Outcome::Fails(_) => {
                        failures.push(place.shrink(&drawn, invariant, seed_here));
                        break;
                    }
                }
            }
        }
    };
    let (mut failures, mut held, mut beside) = (Vec::new(), 0, Vec::new());
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism()
            .map_or(2, usize::from)
            .clamp(1, 8);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            let (failed, holds, not) = worker.join().expect("a worker");
            failures.extend(failed);
            held += holds;
            beside.extend(not);
        }
    });
    println!(
        "{count} recipes from seed {seed}: {held} invariants held, {} not reached, {} failures, {:.0} s",
        beside.len(),
        failures.len(),
        started.elapsed().as_secs_f64()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    // Recipes that are refused test nothing.
    assert!(
        !only.is_empty() || held > beside.len() as u64,
        "most of what was drawn was not reached:\n{}",
        beside.join("\n")
    );
}

struct Place {
    folder: TempDir,
    names: AtomicU64,
}

/// A folder for one holding of an invariant, gone when it is over.
struct Runs<'a> {
    place: &'a Place,
    folder: TempDir,
    drawn: Drawn,
}

/// How the program ended.
struct Ended {
    code: Option<i32>,
    said: String,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        inputs(folder.path());
        dynalora_tests::built();
        Place {
            folder,
            names: AtomicU64::new(0),
        }
    }

    fn hold(&self, drawn: &Drawn, invariant: Invariant, seed: u64) -> Outcome {
        let name = format!("runs-{}", self.names.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::Builder::new()
            .prefix(&name)
            .tempdir_in(self.folder.path())
            .expect("a temporary folder");
        let began = Instant::now();
        let runs = Runs {
            place: self,
            folder,
            drawn: drawn.clone(),
        };
        let outcome = match runs.hold(invariant, seed) {
            Ok(()) => Outcome::Holds,
            Err(outcome) => outcome,
        };
        if std::env::var_os("DYNALORA_MATRIX_VERBOSE").is_some() {
            let (came, why) = match &outcome {
                Outcome::Holds => ("holds", ""),
                Outcome::Beside(why) => ("not reached", why.as_str()),
                Outcome::Fails(why) => ("FAILS", why.as_str()),
            };
            let seconds = began.elapsed().as_secs_f64();
            println!("seed {seed}, {invariant:?} {came} after {seconds:.1} s {why}");
        }
        outcome
    }

    /// The smallest recipe that is found to fail as this one does, with the seed, as text.
    fn shrink(&self, drawn: &Drawn, invariant: Invariant, seed: u64) -> String {
        // What a kill meets is chance: a recipe that holds may have been lucky.
        let tries = match invariant {
            Invariant::Interrupted | Invariant::Moved => 4,
            _ => 1,
        };
        let fails = |drawn: &Drawn| {
            (0..tries).find_map(|n| match self.hold(drawn, invariant, seed + n) {
                Outcome::Fails(why) => Some(why),
                _ => None,
            })
        };
        let Some(mut why) = fails(drawn) else {
            return format!("seed {seed}, {invariant:?}: failed once, and not again");
        };
        let mut smallest = drawn.clone();
        loop {
            let keys: Vec<String> = smallest.0.keys().cloned().collect();
            let tables = [
                "scorer",
                "adapter",
                "evaluation",
                "checkpoint",
                "allocator",
                "allocation",
            ];
            let candidates = tables.map(str::to_owned).into_iter().chain(keys);
            let before = smallest.0.len();
            for key in candidates {
                // Dropout where there was none would be another fault.
                if drawn.has_no_dropout() && key.ends_with("_dropout") {
                    continue;
                }
                let mut smaller = smallest.clone();
                smaller.drop(&key);
                if smaller.0.len() < smallest.0.len()
                    && let Some(now) = fails(&smaller)
                {
                    (smallest, why) = (smaller, now);
                }
            }
            if smallest.0.len() == before {
                break;
            }
        }
        format!(
            "seed {seed} (DYNALORA_MATRIX=1 DYNALORA_MATRIX_SEED={seed}), {invariant:?} does not hold:\n{why}\n--- shrunk recipe:\n{}---",
            smallest.recipe(Path::new("run"))
        )
    }
}

impl Runs<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the recipe of the run `name`.
    fn write(&self, name: &str, drawn: &Drawn) -> PathBuf {
        let file = self.path(&format!("{name}.toml"));
        std::fs::write(&file, drawn.recipe(&self.path(name))).expect("a temporary file");
        file
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = dynalora();
        command.args(arguments).current_dir(self.folder.path());
        command.env("DYNALORA_CACHE", self.place.folder.path().join("cache"));
        command.env("HF_HOME", self.place.folder.path().join(HOME));
        command.env("HF_HUB_OFFLINE", "1").env("NO_COLOR", "1");
        command
    }

    fn call(&self, arguments: &[&str]) -> (Ended, Vec<u8>) {
        let output = self
            .command(arguments)
            .output()
            .expect("the program starts");
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let code = output.status.code();
        (Ended { code, said }, output.stdout)
    }

    /// Trains a recipe as the run `name`; one that is refused is beside the point.
    fn train(&self, name: &str, drawn: &Drawn) -> Result<PathBuf, Outcome> {
        let file = self.write(name, drawn);
        let (ended, _) = self.call(&["train", &file.display().to_string(), "--quiet"]);
        match ended.code {
            Some(0) => Ok(self.path(name)),
            Some(2) => Err(Outcome::Beside(ended.said)),
            code => Err(Outcome::Fails(format!(
                "{name} ends with {code:?}: {}",
                ended.said
            ))),
        }
    }

    /// As [`train`](Self::train), of a recipe whose like has been trained: it may not be refused.
    fn again(&self, name: &str, drawn: &Drawn) -> Result<PathBuf, Outcome> {
        self.train(name, drawn).map_err(|outcome| match outcome {
            Outcome::Beside(why) => Outcome::Fails(format!("{name} is refused: {why}")),
            other => other,
        })
    }

    fn same(&self, a: &Path, b: &Path, strip: &[&str]) -> Result<(), Outcome> {
        match difference(a, b, strip) {
            none if none.is_empty() => Ok(()),
            difference => Err(Outcome::Fails(difference)),
        }
    }

    fn hold(&self, invariant: Invariant, seed: u64) -> Result<(), Outcome> {
        let drawn = &self.drawn;
        let beside = |why: &str| Err(Outcome::Beside(why.to_owned()));
        match invariant {
            Invariant::Cache => {
                let (mut on, mut off) = (drawn.clone(), drawn.clone());
                on.without_dropout()
                    .set("train.cache_frozen_prefix", "true");
                off.without_dropout().drop("train.cache_frozen_prefix");
                off.drop("train.cache_memory_mib");
                // Long enough to meet the same examples twice.
                for arm in [&mut on, &mut off] {
                    if arm.get("train.steps").is_some() {
                        arm.set("train.steps", 28);
                    }
                }
                let off = self.train("off", &off)?;
                let on = self.again("on", &on)?;
                self.same(&off, &on, &["flops"])
            }
            Invariant::Checkpointed => {
                let (mut on, mut off) = (drawn.clone(), drawn.clone());
                on.set("train.gradient_checkpointing", "true");
                off.drop("train.gradient_checkpointing");
                // What is chosen by its cost may be another choice, as the costs are others.
                for arm in [&mut on, &mut off] {
                    arm.drop("allocator.by");
                }
                let off = self.train("off", &off)?;
                let on = self.again("on", &on)?;
                self.same(&off, &on, &["flops"])
            }
            Invariant::Threads => {
                let arm = |threads: u64| drawn.clone().set("threads", threads).clone();
                let one = self.train("one", &arm(1))?;
                let more = self.again("more", &arm(2 + seed % 2))?;
                self.same(&one, &more, &[])
            }
            Invariant::Isolated => {
                let (mut here, mut apart) = (drawn.clone(), drawn.clone());
                let mut plugins = 0;
                for table in ["scorer", "allocator"] {
                    here.drop(&format!("{table}.isolation"));
                    if drawn.get(&format!("{table}.plugin")).is_some() {
                        apart.set(&format!("{table}.isolation"), "\"process\"");
                        plugins += 1;
                    }
                }
                if plugins == 0 {
                    return beside("no plugin");
                }
                let here = self.train("here", &here)?;
                let apart = self.again("apart", &apart)?;
                self.same(&here, &apart, &[])
            }
            Invariant::Interrupted | Invariant::Moved => {
                let began = Instant::now();
                let whole = self.train("whole", drawn)?;
                let took = began.elapsed();
                let torn = self.interrupt(drawn, took, seed, invariant == Invariant::Moved)?;
                // What is counted is what was run, and a run that goes on fills its cache anew.
                let cached = drawn.get("train.cache_frozen_prefix").is_some();
                self.same(&whole, &torn, if cached { &["flops"] } else { &[] })
            }
            Invariant::Measured => {
                if drawn.get("scorer.plugin").is_none() || drawn.get("allocator.k").is_none() {
                    return beside("no scorer beside a `k`");
                }
                if drawn.get("scorer.plugin") == Some("\"trial\"") {
                    return beside("a scorer that holds examples back");
                }
                let mut with = drawn.clone();
                with.set("allocator.plugin", "\"uniform\"")
                    .drop("allocator.epsilon")
                    .drop("allocator.order");
                let mut without = with.clone();
                without.drop("scorer");
                let with = self.train("with", &with)?;
                let without = self.again("without", &without)?;
                self.same(&with, &without, &["flops", "scores"])
            }
            Invariant::Accumulated => self.accumulated(),
            Invariant::Ranks => self.on_ranks(2 + (seed % 2) as usize),
            Invariant::Flops => self.flops(),
            Invariant::Inactive => self.inactive(),
            Invariant::Evaluated => {
                let run = self.train("run", drawn)?;
                let evaluations: Vec<Value> = records(&run, "metrics.jsonl", &[])
                    .into_iter()
                    .filter(|record| record["kind"] == "evaluation")
                    .collect();
                let summary = std::fs::read_to_string(run.join("summary.json")).unwrap_or_default();
                let summary: Value = serde_json::from_str(&summary).unwrap_or_default();
                let best = &summary["best"]["step"];
                let Some(measured) = evaluations.iter().find(|record| record["step"] == *best)
                else {
                    return match evaluations.is_empty() {
                        true => beside("nothing was evaluated"),
                        false => Err(Outcome::Fails(format!(
                            "no evaluation of the best step {best}"
                        ))),
                    };
                };
                let (ended, said) = self.call(&["evaluate", "run", "--json"]);
                let scores: Value = serde_json::from_slice(&said).unwrap_or_default();
                for key in ["loss", "metrics", "examples"] {
                    if scores[0][key] != measured[key] {
                        return Err(Outcome::Fails(format!(
                            "evaluate: {key} is {}, measured was {}\n{}",
                            scores[0][key], measured[key], ended.said
                        )));
                    }
                }
                Ok(())
            }
            Invariant::GoneOn => {
                let allocator = drawn.get("allocator.plugin").unwrap_or_default();
                let others = ["rank-budget", "grow", "drop"];
                if others.iter().any(|other| allocator.contains(other)) {
                    return beside("what is exported has other ranks or scales");
                }
                let starts = ["adapter.r_max", "adapter.init_lora_weights"];
                if starts.iter().any(|key| drawn.get(key).is_some()) {
                    return beside("it names how adapters start");
                }
                let run = self.train("run", drawn)?;
                let mut on = drawn.clone();
                for key in [
                    "adapter.d_initial",
                    "allocation",
                    "scorer",
                    "allocator",
                    "train.epochs",
                    "train.warmup",
                    "train.head_learning_rate",
                ] {
                    on.drop(key);
                }
                on.set("adapter.from", format!("{:?}", run.display().to_string()))
                    .set("allocation.schedule", "{ kind = \"never\" }")
                    .set("train.steps", 1)
                    .set("train.learning_rate", "1e-12")
                    .set("evaluation.every", 1);
                self.again("on", &on)?;
                let loss = |run: &str| {
                    let (_, said) = self.call(&["evaluate", run, "--json"]);
                    let scores: Value = serde_json::from_slice(&said).unwrap_or_default();
                    scores[0]["loss"].as_f64()
                };
                match (loss("run"), loss("on")) {
                    (None, _) => beside("there is nothing to evaluate it on"),
                    (Some(run), Some(on)) if (run - on).abs() <= 1e-5 * run.abs() => Ok(()),
                    (run, on) => Err(Outcome::Fails(format!("the loss is {on:?}, not {run:?}"))),
                }
            }
            Invariant::Finished => {
                let run = self.train("run", drawn)?;
                let before = contents(&run);
                let (ended, _) = self.call(&["train", "run.toml", "--quiet", "--resume"]);
                if ended.code != Some(0) {
                    return Err(Outcome::Fails(format!(
                        "resumed, it ends with {:?}: {}",
                        ended.code, ended.said
                    )));
                }
                let after = contents(&run);
                let paths = before.keys().chain(after.keys());
                for path in paths {
                    if before.get(path) != after.get(path) {
                        return Err(Outcome::Fails(format!("{} has changed", path.display())));
                    }
                }
                Ok(())
            }
        }
    }

    /// Trains a recipe in as many pieces as a few kills make, `took` being what it takes whole.
    fn interrupt(
        &self,
        drawn: &Drawn,
        took: Duration,
        seed: u64,
        moved: bool,
    ) -> Result<PathBuf, Outcome> {
        let mut choice = Choice::new(seed ^ 0x6b69_6c6c);
        let mut name = "torn-0".to_owned();
        for piece in 1.. {
            let file = self.write(&name, drawn).display().to_string();
            let mut arguments = vec!["train", &file, "--quiet"];
            if self.path(&name).join("recipe.toml").exists() {
                arguments.push("--resume");
            }
            let kill = piece <= 4;
            let mut command = self.command(&arguments);
            command.stdout(std::process::Stdio::null());
            command.stderr(std::process::Stdio::piped());
            let mut child = command.spawn().expect("the program starts");
            if kill {
                // A little beyond the end, so that the end is met too.
                std::thread::sleep(took.mul_f64(choice.uniform() * 1.1));
                child.kill().expect("it can be killed");
            }
            let output = child.wait_with_output().expect("it ends");
            let code = output.status.code();
            if code == Some(0) {
                return Ok(self.path(&name));
            }
            if !kill || code.is_some() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(Outcome::Fails(format!(
                    "piece {piece} ({arguments:?}) ends with {code:?}: {said}"
                )));
            }
            if moved && self.path(&name).join("recipe.toml").exists() {
                let next = format!("torn-{piece}");
                std::fs::rename(self.path(&name), self.path(&next)).expect("it can be moved");
                name = next;
            }
        }
        unreachable!("the last piece is not killed")
    }

    fn accumulated(&self) -> Result<(), Outcome> {
        let mut parts = self.drawn.clone();
        let (size, times) = (parts.number("train.batch_size", 5), 3);
        parts
            .without_dropout()
            .drop("train.tokens_per_batch")
            .drop("train.cache_frozen_prefix");
        parts.drop("train.cache_memory_mib");
        if parts.get("train.order") == Some("\"length-grouped\"") {
            parts.drop("train.order");
        }
        // Nothing moves, so that only the sums are compared, and not what a step makes of their last bits.
        parts
            .set("train.learning_rate", "0.0")
            .drop("train.head_learning_rate");
        parts.drop("train.max_grad_norm").set("train.log_every", 1);
        // Gradients of a larger batch are smaller, and are rounded elsewhere.
        parts.drop("model.precision");
        // Whatever is chosen by scores may turn on the last bit.
        parts.drop("scorer").drop("allocator").drop("allocation");
        // EVA reads micro-batches, one after the other.
        parts.without_eva();
        parts
            .set("train.batch_size", size)
            .set("train.gradient_accumulation", times);
        let mut once = parts.clone();
        once.set("train.batch_size", size * times)
            .drop("train.gradient_accumulation");
        let parts = records(&self.train("parts", &parts)?, "metrics.jsonl", &[]);
        let once = records(&self.again("once", &once)?, "metrics.jsonl", &[]);
        if parts.len() != once.len() {
            return Err(Outcome::Fails(format!(
                "{} records and {}",
                parts.len(),
                once.len()
            )));
        }
        for (parts, once) in parts
            .iter()
            .zip(&once)
            .filter(|(record, _)| record["kind"] == "step")
        {
            for key in ["loss", "grad_norm"] {
                let [a, b] = [parts, once].map(|record| record[key].as_f64().unwrap_or(f64::NAN));
                let far = (a - b).abs() > 1e-5 * a.abs().max(b.abs()) + 1e-7;
                if far || a.is_nan() != b.is_nan() {
                    return Err(Outcome::Fails(format!(
                        "{key} of step {}: {a} in parts, {b} at once",
                        parts["step"]
                    )));
                }
            }
        }
        Ok(())
    }

    /// The same recipe on so many ranks, but for a learning rate at which last bits stay last bits.
    fn on_ranks(&self, count: usize) -> Result<(), Outcome> {
        let Some(mut command) = on_ranks(count) else {
            return Err(Outcome::Beside("there is no MPI".to_owned()));
        };
        let mut drawn = self.drawn.clone();
        if drawn.get("scorer.plugin") == Some("\"trial\"") {
            let why = "its scores are differences of losses, of which last bits are the first";
            return Err(Outcome::Beside(why.to_owned()));
        }
        // In half precision what lies at the edge of a rounding falls to either side: nothing moves there, and gradients
        // are alike as far as that lets them.
        let (rate, within) = match drawn.get("model.precision") {
            Some("\"bf16\"") => ("0.0", 1e-3),
            _ => ("1e-5", WITHIN),
        };
        drawn.set("threads", 1).set("train.learning_rate", rate);
        drawn.drop("train.head_learning_rate");
        let one = self.train("one", &drawn)?;
        let file = self.write("several", &drawn);
        command.current_dir(self.folder.path());
        for (name, value) in self.command(&[]).get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        let output = command.args(["train", "--quiet"]).arg(&file).output();
        let output = output.expect("mpirun starts");
        if !output.status.success() {
            return Err(Outcome::Fails(said(&output)));
        }
        // What one rank has kept of the frozen layers, another has to run.
        let strip: &[&str] = match drawn.get("train.cache_frozen_prefix") {
            Some("true") => &["flops"],
            _ => &[],
        };
        match unlike_within(within, &one, &self.path("several"), strip) {
            none if none.is_empty() => Ok(()),
            unlike => Err(Outcome::Fails(format!("on {count} ranks: {unlike}"))),
        }
    }

    fn flops(&self) -> Result<(), Outcome> {
        use dynalora::train::cost::{HeadKind, LastLayer, Shape, Sizes, cost};
        let mut drawn = self.drawn.clone();
        // Every text is cut at the same length, so that tokens tell of sequences.
        drawn.set("train.log_every", 1);
        let length = match drawn.get("data.format") {
            // As many as an image has.
            Some("\"images\"") => {
                let name = drawn.get("model.name").expect("a model").trim_matches('"');
                let folder = dynalora_tests::model_folder(Path::new(name));
                let config: dynalora::recipe::ModelConfig =
                    toml::from_str("name = \"it\"").expect("a model");
                let model = dynalora::model::Pretrained::open(&folder, &config);
                model.expect("a model").config.max_length
            }
            _ => {
                drawn.set("model.max_length", 8);
                8
            }
        };
        drawn
            .drop("train.cache_frozen_prefix")
            .drop("train.cache_memory_mib");
        if let Some("\"rank-budget\"" | "\"grow\"") = drawn.get("allocator.plugin") {
            return Err(Outcome::Beside("ranks that change".to_owned()));
        }
        // What trials, calibration and the examples' own gradients take has tests of its own.
        if let Some("\"trial\"" | "\"fisher\"") = drawn.get("scorer.plugin") {
            return Err(Outcome::Beside("a scorer that computes".to_owned()));
        }
        if drawn.get("data.problem") == Some("\"causal-lm\"") {
            return Err(Outcome::Beside("documents of all lengths".to_owned()));
        }
        drawn.drop("allocation.calibration_steps");
        // And so has what is run before the first step.
        drawn.without_eva();
        let run = self.train("run", &drawn)?;
        let recipe =
            dynalora::recipe::Recipe::load(&run.join("recipe.toml"), &[]).expect("a run's recipe");
        let folder = dynalora_tests::model_folder(Path::new(&recipe.model.name));
        let (problem, model) = (recipe.data.problem(), &recipe.model);
        let pretrained = dynalora::model::Pretrained::open_for(&folder, model, problem);
        let pretrained = pretrained.expect("a model");
        let classes = recipe.data.labels.as_deref().unwrap_or_default();
        let modules = pretrained
            .adapted(&recipe.adapter)
            .expect("modules")
            .modules;
        let linears = pretrained.linears();
        let adapter = dynalora::adapter::Config::from(&recipe.adapter);
        let shape = Shape {
            config: &pretrained.config,
            linears: &linears,
            modules: &modules,
            adapter: &adapter,
            head: HeadKind::of(problem, problem.outputs(classes)),
            checkpointing: recipe.train.gradient_checkpointing,
        };
        let allocations = records(&run, "allocations.jsonl", &[]);
        let masks: Vec<(u64, Vec<bool>)> = allocations
            .iter()
            .map(|record| (record["step"].as_u64().unwrap_or(0), mask(record)))
            .collect();
        // What `plan` says of the mask that the run starts with.
        let (ended, said) = self.call(&["plan", "run.toml", "--json"]);
        let plan: Value = serde_json::from_slice(&said).unwrap_or_default();
        let mut longest = Sizes::default();
        longest.add(&[0, length]);
        let whole = cost(shape, &masks[0].1, longest, 0, LastLayer::Whole);
        for (key, flops) in [
            ("forward_flops", whole.forward),
            ("backward_flops", whole.backward),
        ] {
            if plan[key].as_u64() != Some(flops / length as u64) {
                return Err(Outcome::Fails(format!(
                    "plan's {key} is {}, the cost model's {}\n{}",
                    plan[key],
                    flops / length as u64,
                    ended.said
                )));
            }
        }
        let (mut flops, mut tokens) = (0, 0);
        for record in records(&run, "metrics.jsonl", &[]) {
            if record["kind"] != "step" {
                continue;
            }
            let number = |key: &str| record[key].as_u64().unwrap_or(0);
            let (step, here, seen) = (
                number("step"),
                number("flops") - flops,
                number("tokens") - tokens,
            );
            (flops, tokens) = (number("flops"), number("tokens"));
            if seen % length as u64 != 0 {
                return Err(Outcome::Beside("texts shorter than that".to_owned()));
            }
            let mut sizes = Sizes::default();
            for _ in 0..seen / length as u64 {
                sizes.add(&[0, length]);
            }
            let active = &masks
                .iter()
                .rev()
                .find(|(from, _)| *from < step)
                .expect("an initial choice")
                .1;
            let probed = vec![true; active.len()];
            let mut may = Vec::new();
            for tracked in [active, &probed] {
                for outputs in [false, true] {
                    let cost = cost(shape, tracked, sizes, 0, LastLayer::AsRead { outputs });
                    may.push(cost.forward + cost.backward);
                }
            }
            // Measured or not, probed or not: nothing else may cost.
            let allowed = if masks.len() == 1 && drawn.get("scorer.plugin").is_none() {
                &may[..1]
            } else {
                &may[..]
            };
            if !allowed.contains(&here) {
                return Err(Outcome::Fails(format!(
                    "step {step} is said to have taken {here} FLOPs; by the cost model it is one of {allowed:?}"
                )));
            }
        }
        Ok(())
    }

    fn inactive(&self) -> Result<(), Outcome> {
        let mut long = self.drawn.clone();
        if long.get("allocator.k").is_none() && long.get("allocator.p").is_none() {
            return Err(Outcome::Beside("nothing is ever inactive".to_owned()));
        }
        // With a constant rate, a shorter run is the beginning of a longer one, if neither ends at an earlier best.
        let (middle, end) = (5, 11);
        for key in ["train.epochs", "evaluation"] {
            long.drop(key);
        }
        long.set("train.lr_schedule", "\"constant\"")
            .set("train.warmup", 1);
        long.set("evaluation.every", "\"never\"")
            .set("train.steps", end);
        long.set(
            "allocation.schedule",
            "{ kind = \"at\", steps = [2, 5, 8] }",
        );
        let mut short = long.clone();
        short.set("train.steps", middle);
        // The short run ends before the choice after step 5, but the one after step 2 is the same: which needs
        // the measured steps to be the same, and those before its end are.
        let short = self.train("short", &short)?;
        let long = self.again("long", &long)?;
        let allocations = records(&long, "allocations.jsonl", &[]);
        let paths = module_paths(&allocations[0]);
        let from = allocations
            .iter()
            .rposition(|record| record["step"].as_u64() <= Some(middle))
            .unwrap_or(0);
        let open = |run: &Path| Golden::open(&run.join("adapter/adapter_model.safetensors"));
        let (before, after) = (open(&short), open(&long));
        for (n, path) in paths.iter().enumerate() {
            if allocations[from..].iter().any(|record| mask(record)[n]) {
                continue;
            }
            for name in before
                .names()
                .iter()
                .filter(|name| name.contains(&format!("{path}.")))
            {
                let [a, b] = [&before, &after].map(|adapter| adapter.floats(name));
                if a.iter()
                    .map(|x| x.to_bits())
                    .ne(b.iter().map(|x| x.to_bits()))
                {
                    return Err(Outcome::Fails(format!(
                        "{name} has changed after step {middle}, where its module was inactive"
                    )));
                }
            }
        }
        assert!(!adapter(&long).is_empty());
        Ok(())
    }
}

fn mask(record: &Value) -> Vec<bool> {
    let active = record["active"].as_array().map_or(&[][..], Vec::as_slice);
    active
        .iter()
        .map(|active| active == &Value::Bool(true))
        .collect()
}
