//! Runs as tasks of an engine that was there before: Slurm or HyperQueue. It decides which run goes where and starts those again
//! whose machine died; a sweep submits, follows and collects.
//!
//! What a sweep submits is an array of tasks that all run one [`script`]. What was submitted is [recorded](record) beside the
//! runs, so that a sweep that is started again follows what is there.

mod hq;
mod record;
mod script;
mod slurm;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
pub use hq::HqConfig;
use record::{Job, Record, Submission};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
pub use slurm::SlurmConfig;

use super::jobs::{Jobs, Outcome, State};
use super::plan::Planned;
use super::tally::{self, End, Tally};
use crate::error::{Error, Result};
use crate::file::{sha256, write_atomically};
use crate::run::{Run, check_recipe};
use crate::train::Stop;

/// What runs the runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Launcher {
    /// This machine, --jobs of them at a time
    Local,
    /// Slurm, as an array of tasks
    Slurm,
    /// HyperQueue, as an array of tasks
    Hq,
}

/// An engine with what is asked of it for each run.
#[derive(Clone, Debug)]
pub enum Engine {
    /// Slurm.
    Slurm(SlurmConfig),
    /// HyperQueue.
    Hq(HqConfig),
}

/// How a sweep is launched.
#[derive(Clone, Debug)]
pub struct Launch {
    /// By what.
    pub engine: Engine,
    /// What the sweep is called.
    pub name: String,
    /// So many runs at a time, if not as many as there is room for.
    pub limit: Option<usize>,
}

/// A value that is handed to an engine as it is: text, or a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting(String);

/// What an engine's table of a sweep cannot say.
pub(in crate::sweep) struct Wrong {
    pub key: &'static str,
    pub message: String,
    pub help: &'static str,
}

/// What is submitted.
struct Batch {
    name: String,
    script: PathBuf,
    /// The sweep's folder.
    folder: PathBuf,
    runs: usize,
    limit: Option<usize>,
}

/// What an engine knows of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// Not started, or to be started again; why.
    Waiting(String),
    /// At work; where.
    Running(String),
    /// It has ended.
    Ended {
        how: String,
        /// Whether another try could help.
        may: bool,
        /// Whether its last word may be on its way yet.
        lags: bool,
    },
}

impl Engine {
    fn launcher(&self) -> Launcher {
        match self {
            Engine::Slurm(_) => Launcher::Slurm,
            Engine::Hq(_) => Launcher::Hq,
        }
    }

    fn parts(&self) -> &'static script::Parts {
        match self {
            Engine::Slurm(_) => &slurm::PARTS,
            Engine::Hq(_) => &hq::PARTS,
        }
    }

    fn command(&self, batch: &Batch) -> Command {
        match self {
            Engine::Slurm(config) => slurm::command(config, batch),
            Engine::Hq(config) => hq::command(config, batch),
        }
    }

    /// How many tasks an array may have.
    fn most(&self) -> usize {
        match self {
            Engine::Slurm(_) => slurm::most(),
            Engine::Hq(_) => 1000,
        }
    }

    fn submit(&self, batch: &Batch) -> Result<Job> {
        let printed = ask(&mut self.command(batch))?;
        match self {
            Engine::Slurm(_) => slurm::submitted(&printed),
            Engine::Hq(_) => hq::submitted(&printed),
        }
    }

    /// The job that was submitted under this name, if it was.
    fn find(&self, name: &str) -> Result<Option<Job>> {
        match self {
            Engine::Slurm(_) => slurm::find(name),
            Engine::Hq(_) => hq::find(name),
        }
    }

    fn look(&self, record: &Record) -> Result<BTreeMap<(Job, u32), Seen>> {
        match self {
            Engine::Slurm(_) => slurm::look(&record.jobs()),
            Engine::Hq(_) => hq::look(&record.submissions.iter().collect::<Vec<_>>()),
        }
    }
}

impl Launcher {
    /// What it is called.
    fn name(self) -> &'static str {
        match self {
            Launcher::Local => "this machine",
            Launcher::Slurm => "Slurm",
            Launcher::Hq => "HyperQueue",
        }
    }

    fn flag(self) -> String {
        let value = self.to_possible_value();
        value.map_or(String::new(), |value| value.get_name().to_owned())
    }

    fn cancel(self, jobs: &[&Job]) -> String {
        match self {
            Launcher::Hq => hq::cancel(jobs),
            Launcher::Local | Launcher::Slurm => slurm::cancel(jobs),
        }
    }
}

/// Trains `runs`, which are in these states, as tasks of the engine, and says of each what became of it. A signal ends the
/// following, and is the error; what is submitted goes on.
pub fn launch(
    launch: &Launch,
    runs: &[Planned],
    states: Vec<State>,
    jobs: &Jobs,
) -> Result<Vec<Outcome>> {
    let Some(first) = runs.first() else {
        return Ok(Vec::new());
    };
    let stop = Stop::listen()?;
    let folder = tally::make_folder(first)?;
    let _lock = record::lock(&folder)?;
    let mut follower = Follower::new(launch, runs, states, jobs, folder)?;
    while follower.goes_on() {
        follower.submit()?;
        follower.look();
        if let Some(signal) = follower.pause(&stop) {
            return Err(follower.leave(signal.0, &signal.to_string()));
        }
    }
    follower.close()
}

/// What would be submitted: the command, and the script that it names.
pub fn preview(
    launch: &Launch,
    runs: &[Planned],
    states: Vec<State>,
    jobs: &Jobs,
) -> Result<Vec<(Command, String)>> {
    let Some(first) = runs.first() else {
        return Ok(Vec::new());
    };
    let mut follower = Follower::new(launch, runs, states, jobs, tally::folder(first))?;
    let waiting = std::mem::take(&mut follower.waiting);
    let chunks = waiting.chunks(launch.engine.most());
    chunks
        .map(|chunk| {
            let batch = follower.batch(chunk.len());
            Ok((launch.engine.command(&batch), follower.script(chunk)?))
        })
        .collect()
}

/// Refuses to train here what an engine was given to train and may be training.
pub fn check_not_launched(runs: &[Planned], states: &[State]) -> Result<()> {
    let Some(first) = runs.first() else {
        return Ok(());
    };
    let folder = tally::folder(first);
    let record = Record::load(&folder, Launcher::Local)?;
    let mut left = runs
        .iter()
        .zip(states)
        .filter(|(_, state)| **state != State::Finished);
    match left.any(|(run, _)| record.find(&run.name).is_some()) {
        false => Ok(()),
        true => Err(elsewhere(&record, &folder)),
    }
}

fn elsewhere(record: &Record, folder: &Path) -> Error {
    let (by, jobs) = (record.launcher, record.jobs());
    let ids: Vec<&str> = jobs.iter().map(|job| job.id.as_str()).collect();
    Error::user(format!(
        "runs of this sweep were given to {} (job {})",
        by.name(),
        ids.join(", ")
    ))
    .help(format!(
        "--launcher {} follows them; to train them elsewhere cancel them first, by `{}`, and remove {}",
        by.flag(),
        by.cancel(&jobs),
        record::path(folder).display()
    ))
}

/// A sweep that follows what it has submitted.
struct Follower<'a> {
    launch: &'a Launch,
    jobs: &'a Jobs,
    folder: PathBuf,
    tally: Tally<'a>,
    record: Record,
    /// Runs that are to be submitted.
    waiting: Vec<usize>,
    /// Those that are, and have not ended.
    tasks: Vec<Task>,
    /// When something was seen to change last: a queue that stands still is asked less often.
    changed: Instant,
    /// What was said of the queue last, so that it is said once.
    told: String,
}

/// A run that is submitted.
#[derive(Clone, Debug)]
struct Task {
    nth: usize,
    /// Its job, and its number in it.
    at: (Job, u32),
    /// When the engine was last known to have it, if it was.
    alive: Option<Instant>,
    began: Option<Instant>,
    node: String,
    why: String,
}

/// A file that another machine wrote may be seen so much later than the engine says that its writer has ended.
const LAG: Duration = Duration::from_secs(30);

impl<'a> Follower<'a> {
    fn new(
        launch: &'a Launch,
        runs: &'a [Planned],
        states: Vec<State>,
        jobs: &'a Jobs,
        folder: PathBuf,
    ) -> Result<Self> {
        let by = launch.engine.launcher();
        let mut record = Record::load(&folder, by)?;
        if record.launcher != by {
            return Err(elsewhere(&record, &folder));
        }
        recover(&mut record, &launch.engine)?;
        let (tally, left) = Tally::new(runs, states, (jobs.retries, jobs.quiet));
        let (mut waiting, mut tasks) = (Vec::new(), Vec::new());
        for (nth, _) in left {
            let run = &runs[nth];
            let found = record.find(&run.name).and_then(|(at, task)| {
                let job = record.submissions[at].job.clone();
                Some((job?, task))
            });
            let Some(at) = found else {
                waiting.push(nth);
                continue;
            };
            check_submitted(run, &record)?;
            tasks.push(Task::new(nth, at, None));
        }
        let follower = Follower {
            launch,
            jobs,
            folder,
            tally,
            record,
            waiting,
            tasks,
            changed: Instant::now(),
            told: String::new(),
        };
        if !follower.tasks.is_empty() {
            follower.tally.board.note(&format!(
                "{} runs are in {} already: they are followed",
                follower.tasks.len(),
                follower.jobs_in_words()
            ));
        }
        Ok(follower)
    }

    fn goes_on(&self) -> bool {
        !(self.waiting.is_empty() && self.tasks.is_empty())
    }

    /// "Slurm job 12, 13"
    fn jobs_in_words(&self) -> String {
        let jobs = self.record.jobs().into_iter();
        let ids: Vec<&str> = jobs.map(|job| job.id.as_str()).collect();
        format!("{} job {}", self.record.launcher.name(), ids.join(", "))
    }

    fn batch(&self, runs: usize) -> Batch {
        // As nothing else is called.
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let seed = format!("{} {} {:?}", self.folder.display(), std::process::id(), now);
        let name = format!("{}-{}", self.launch.name, &sha256(seed.as_bytes())[..8]);
        Batch {
            script: self.folder.join(format!("{name}.sh")),
            folder: self.folder.clone(),
            name,
            runs,
            limit: self.launch.limit,
        }
    }

    fn script(&self, nths: &[usize]) -> Result<String> {
        let program = std::env::current_exe()
            .map_err(|error| Error::failure("the program cannot find itself").because(error))?;
        let body = script::Body {
            folder: self.folder.parent().unwrap_or(Path::new("")),
            program: &program,
            plugin_dirs: &self.jobs.plugin_dirs,
            names: nths
                .iter()
                .map(|nth| self.tally.runs[*nth].name.as_str())
                .collect(),
        };
        script::script(self.launch.engine.parts(), &body)
    }

    /// Submits what waits.
    fn submit(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.waiting);
        for chunk in waiting.chunks(self.launch.engine.most()) {
            let batch = self.batch(chunk.len());
            for nth in chunk {
                let run = &self.tally.runs[*nth];
                let file = |kind| self.folder.join(format!("{}.{kind}", run.name));
                // The recipe as it is now: the task may start when the file it came from says something else.
                write_atomically(&file("toml"), run.resolved.to_toml()?.as_bytes())?;
                let _ = std::fs::remove_file(file("exit"));
            }
            write_atomically(&batch.script, self.script(chunk)?.as_bytes())?;
            let names = chunk.iter().map(|nth| self.tally.runs[*nth].name.clone());
            self.record.submissions.push(Submission {
                name: batch.name.clone(),
                job: None,
                runs: (0..).zip(names).collect(),
            });
            self.record.save(&self.folder)?;
            let submitted = self.launch.engine.submit(&batch);
            let job = match submitted {
                Ok(job) => job,
                Err(error) => {
                    self.record.submissions.pop();
                    self.record.save(&self.folder)?;
                    return Err(match self.record.submissions.is_empty() {
                        true => error,
                        false => error.and_help(
                            "what was submitted before goes on: the same command follows it",
                        ),
                    });
                }
            };
            if let Some(submission) = self.record.submissions.last_mut() {
                submission.job = Some(job.clone());
            }
            self.record.save(&self.folder)?;
            self.tally.board.note(&format!(
                "{} submitted as {} job {}: {}",
                runs_in_words(chunk.len()),
                self.record.launcher.name(),
                job.id,
                batch.script.display()
            ));
            let now = Some(Instant::now());
            let tasks = (0..).zip(chunk);
            self.tasks
                .extend(tasks.map(|(task, nth)| Task::new(*nth, (job.clone(), task), now)));
        }
        self.changed = Instant::now();
        Ok(())
    }

    /// Asks the engine, and takes in those that have ended.
    fn look(&mut self) {
        let known = match self.launch.engine.look(&self.record) {
            Ok(known) => known,
            // It may be restarted: it is asked again.
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                return self.tell(format!(
                    "{error}{}; asking again",
                    cause.unwrap_or_default()
                ));
            }
        };
        let mut left = Vec::new();
        for mut task in std::mem::take(&mut self.tasks) {
            let seen = known.get(&task.at);
            let before = (task.node.clone(), task.why.clone());
            match self.end_of(&mut task, seen) {
                None => {
                    if (&task.node, &task.why) != (&before.0, &before.1) {
                        self.changed = Instant::now();
                    }
                    left.push(task);
                }
                Some(end) => {
                    self.changed = Instant::now();
                    let nth = end.nth;
                    if self.tally.ended(end).is_some() {
                        self.waiting.push(nth);
                    }
                }
            }
        }
        self.tasks = left;
        let waiting = self.tasks.iter();
        let waiting = waiting.filter(|task| !["", "None"].contains(&task.why.as_str()));
        let mut reasons: Vec<&str> = waiting.map(|task| task.why.as_str()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        if !reasons.is_empty() {
            self.tell(format!("waiting: {}", reasons.join("; ")));
        }
    }

    /// Says something of the queue, once.
    fn tell(&mut self, what: String) {
        if self.told != what {
            self.tally.board.note(&what);
            self.told = what;
        }
    }

    /// How the task ended, if it has.
    fn end_of(&self, task: &mut Task, seen: Option<&Seen>) -> Option<End> {
        let run = &self.tally.runs[task.nth];
        if let Some(Seen::Waiting(why)) = seen {
            if task.began.take().is_some() {
                let by = self.record.launcher.name();
                let what = format!(
                    "{} was ended on {}: {by} starts it again",
                    run.name, task.node
                );
                self.tally.board.note(&what);
            }
            task.alive = Some(Instant::now());
            (task.node, task.why) = (String::new(), why.clone());
            return None;
        }
        task.why = String::new();
        let end = |code: Option<i32>, how: String, well, may| {
            let began = task.began.or(task.alive).unwrap_or(self.changed);
            Some(End {
                nth: task.nth,
                tries: self.record.tries(&run.name),
                took: began.elapsed(),
                code,
                well,
                may,
                how,
                said: self.said(run, &task.at),
            })
        };
        if let Some(code) = self.word(run, &task.at.0) {
            return end(Some(code), tally::exit(code), code == 0, true);
        }
        let gone = Seen::Ended {
            how: format!(
                "is gone from {}, and has left no word",
                self.record.launcher.name()
            ),
            may: true,
            lags: true,
        };
        match seen.unwrap_or(&gone) {
            Seen::Waiting(_) => None,
            Seen::Running(node) => {
                let now = Instant::now();
                (task.alive, task.node) = (Some(now), node.clone());
                task.began.get_or_insert(now);
                None
            }
            Seen::Ended { how, may, lags } => {
                let output = &run.resolved.output;
                let finished = Run::open(output).is_ok_and(|run| run.finished().is_some());
                if !finished && *lags && task.alive.is_some_and(|alive| alive.elapsed() < LAG) {
                    return None;
                }
                end(None, how.clone(), finished, *may)
            }
        }
    }

    /// The exit code that a task of `job` left for `run`.
    fn word(&self, run: &Planned, job: &Job) -> Option<i32> {
        let word = std::fs::read_to_string(self.folder.join(format!("{}.exit", run.name))).ok()?;
        let (by, code) = word.trim().split_once(' ')?;
        (by == job.id).then(|| code.parse().ok())?
    }

    /// What was said by the run, and by the engine about it.
    fn said(&self, run: &Planned, (job, task): &(Job, u32)) -> String {
        let own = std::fs::read_to_string(tally::log_of(run)).unwrap_or_default();
        let slurm = self.folder.join(format!("slurm-{}_{task}.out", job.id));
        own + &std::fs::read_to_string(slurm).unwrap_or_default()
    }

    /// Waits until the engine is to be asked again. The signal that came meanwhile, if one did.
    fn pause(&mut self, stop: &Stop) -> Option<crate::train::Signal> {
        let quiet = self.changed.elapsed() / 10;
        let until = Instant::now() + quiet.clamp(Duration::from_secs(1), Duration::from_secs(15));
        while self.goes_on() && Instant::now() < until {
            if let Some(signal) = stop.signal() {
                return Some(signal);
            }
            self.draw();
            std::thread::sleep(Duration::from_millis(100));
            if !self.waiting.is_empty() {
                return None;
            }
        }
        stop.signal()
    }

    /// As many as a terminal has room for.
    fn draw(&mut self) {
        let running = self
            .tasks
            .iter()
            .filter_map(|task| Some((task, task.began?)));
        let running: Vec<_> = running
            .map(|(task, began)| (task.nth, &self.tally.runs[task.nth], began))
            .collect();
        let shown = &running[..running.len().min(16)];
        let others = format!(
            "{} at work, {} wait",
            running.len(),
            self.tasks.len() - running.len()
        );
        self.tally.board.draw(shown, &others);
    }

    /// The error of a sweep that was told to stop: nothing is asked of the engine.
    fn leave(mut self, signal: i32, name: &str) -> Error {
        self.tally.board.end();
        let by = self.record.launcher;
        Error::interrupted(
            signal,
            format!(
                "stopped by {name}: {} of {} runs are finished, and {} goes on without this sweep",
                self.tally.finished(),
                self.tally.runs.len(),
                self.jobs_in_words()
            ),
        )
        .help(format!(
            "the same command follows it again; `{}` cancels what is left of it",
            by.cancel(&self.record.jobs())
        ))
    }

    /// Nothing is left to follow.
    fn close(mut self) -> Result<Vec<Outcome>> {
        self.tally.board.end();
        let names: Vec<&str> = self
            .tally
            .runs
            .iter()
            .map(|run| run.name.as_str())
            .collect();
        self.record.forget(&names);
        self.record.save(&self.folder)?;
        Ok(self.tally.outcomes)
    }
}

impl Task {
    fn new(nth: usize, at: (Job, u32), alive: Option<Instant>) -> Self {
        Task {
            nth,
            at,
            alive,
            began: None,
            node: String::new(),
            why: String::new(),
        }
    }
}

/// A sweep that was killed while it submitted does not know whether it has: the engine does.
fn recover(record: &mut Record, engine: &Engine) -> Result<()> {
    for submission in &mut record.submissions {
        if submission.job.is_none() {
            submission.job = engine.find(&submission.name)?;
        }
    }
    record
        .submissions
        .retain(|submission| submission.job.is_some());
    Ok(())
}

/// Refuses to follow a run that was submitted with another recipe than the sweep has for it now.
fn check_submitted(run: &Planned, record: &Record) -> Result<()> {
    let path = tally::folder(run).join(format!("{}.toml", run.name));
    let Some(own) = crate::file::read(&path)? else {
        return Ok(());
    };
    check_recipe(&path, &own, &run.resolved.to_toml()?).map_err(|error| {
        error.help(format!(
            "it is queued with that recipe: cancel it first, by `{}`, and remove {}; or give another `output`",
            record.launcher.cancel(&record.jobs()),
            record::path(&tally::folder(run)).display()
        ))
    })
}

fn runs_in_words(count: usize) -> String {
    match count {
        1 => "1 run is".to_owned(),
        count => format!("{count} runs are"),
    }
}

/// What a command of an engine prints. An error with what it said, if it fails.
fn ask(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| {
        Error::user(format!("`{program}` cannot be started"))
            .because(error)
            .help("it comes with the engine, and has to be on the PATH of the machine that a sweep is started on")
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = match said.trim() {
        // HyperQueue writes its errors as JSON, where it is asked for that.
        "" => String::from_utf8_lossy(&output.stdout),
        said => Cow::Borrowed(said),
    };
    Err(Error::user(format!("`{program}` refused: {}", said.trim())))
}

/// Adds a flag, if there is a value for it.
fn given(command: &mut Command, flag: &str, value: &Option<Setting>) {
    if let Some(value) = value {
        command.arg(format!("--{flag}={}", value.0));
    }
}

/// Refuses arguments that the sweep itself gives.
fn refused_of(program: &str, args: &[String], own: &[&str]) -> Option<Wrong> {
    let is_own = |arg: &&String| {
        own.iter().any(|own| match own.strip_prefix("--") {
            Some(_) => arg.split('=').next() == Some(own),
            // A short one's value may follow at once.
            None => arg.starts_with(own) && !arg.starts_with("--"),
        })
    };
    args.iter().find(is_own).map(|arg| Wrong {
        key: "args",
        message: format!("`{arg}` in `args` is for the sweep itself to say to {program}"),
        help: "leave it out; --jobs, `output` and the table's other keys say the rest",
    })
}

impl<'de> Deserialize<'de> for Setting {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a text in quotes, or a number")]
        enum Written {
            Whole(u64),
            Number(f64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Whole(number) => Ok(Setting(number.to_string())),
            Written::Number(number) => Ok(Setting(number.to_string())),
            Written::Text(text) if !text.trim().is_empty() => Ok(Setting(text)),
            Written::Text(_) => Err(serde::de::Error::custom("the text is empty")),
        }
    }
}

impl JsonSchema for Setting {
    fn schema_name() -> Cow<'static, str> {
        "Setting".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "number", "minimum": 0 },
            { "type": "string", "minLength": 1 },
        ] })
    }
}
