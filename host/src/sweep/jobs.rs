//! Runs as processes, some at a time.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::plan::Planned;
use super::tally::{End, Tally, exit, log_of, make_folder};
use crate::error::{Error, Result};
use crate::file::cannot_write;
use crate::run::Run;
use crate::train::Stop;

/// How they are run.
#[derive(Clone, Debug)]
pub struct Jobs {
    /// So many at a time.
    pub at_a_time: usize,
    /// How often one is tried again that failed by no mistake of the user's.
    pub retries: u32,
    /// Folders with plugins.
    pub plugin_dirs: Vec<PathBuf>,
    /// Nothing is said.
    pub quiet: bool,
}

/// What there is of a run before it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    New,
    /// It goes on.
    Begun,
    /// All of it.
    Finished,
}

/// What became of a run.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It was finished before.
    Skipped,
    /// It is finished.
    Finished,
    /// It is not: how it ended, and its last words.
    Failed {
        /// With an exit code, or by a signal, …
        how: String,
        /// … this one, if it was one.
        code: Option<i32>,
        /// The end of its log.
        said: String,
    },
    /// It was not started, or was stopped, since a signal came.
    Stopped,
}

impl Outcome {
    /// Whether the run is finished, now or before.
    pub fn is_finished(&self) -> bool {
        matches!(self, Outcome::Finished | Outcome::Skipped)
    }
}

/// What there is of `run`. An error where its folder holds something else, or a run of another recipe.
pub fn state(run: &Planned) -> Result<State> {
    let folder = &run.resolved.output;
    if !folder.exists() || Run::is_cut_short(folder)? {
        return Ok(State::New);
    }
    if !folder.join("recipe.toml").is_file() {
        Run::check_free(folder, false)?;
        return Ok(State::New);
    }
    let there = Run::open(folder)?;
    there
        .check_recipe(&run.resolved.to_toml()?)
        .map_err(|error| {
            error.help(format!(
                "this is `{}`: another `output` for the sweep keeps what is there; or remove {}",
                run.arm,
                folder.display()
            ))
        })?;
    Ok(match there.finished() {
        Some(_) => State::Finished,
        None => State::Begun,
    })
}

/// The command that trains `run`.
pub fn command(program: &Path, run: &Planned, state: &State, jobs: &Jobs) -> Command {
    let mut command = Command::new(program);
    command.arg("train").arg(&run.recipe);
    for dir in &jobs.plugin_dirs {
        command.arg("--plugin-dir").arg(dir);
    }
    for set in &run.sets {
        command.arg("--set").arg(set);
    }
    // As many processes as there are share the cores.
    if run.resolved.threads.is_none() && jobs.at_a_time > 1 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / jobs.at_a_time).max(1);
        command.arg("--set").arg(format!("threads={threads}"));
    }
    if matches!(state, State::Begun) {
        command.arg("--resume");
    }
    command
}

/// Trains `runs`, which are in these states, and says of each what became of it. A signal stops them all, each after its
/// step and saved, and is the error.
pub fn train(runs: &[Planned], states: Vec<State>, jobs: &Jobs) -> Result<Vec<Outcome>> {
    let stop = Stop::listen()?;
    let program = std::env::current_exe()
        .map_err(|error| Error::failure("the program cannot find itself").because(error))?;
    let mut sweep = Sweep::new(runs, states, jobs, program);
    let mut asked = None;
    while sweep.goes_on() {
        if let (None, Some(signal)) = (asked, stop.signal()) {
            asked = Some(signal);
            sweep.stop(signal.0);
        }
        sweep.reap()?;
        if asked.is_none() {
            sweep.fill()?;
        }
        sweep.draw();
        std::thread::sleep(Duration::from_millis(50));
    }
    sweep.tally.board.end();
    if let Some(signal) = asked {
        return Err(Error::interrupted(
            signal.0,
            format!(
                "stopped by {signal}: {} of {} runs are finished",
                sweep.tally.finished(),
                runs.len()
            ),
        )
        .help("the same command goes on: those that had begun were saved"));
    }
    Ok(sweep.tally.outcomes)
}

struct Sweep<'a> {
    jobs: &'a Jobs,
    program: PathBuf,
    /// Which are yet to be started, with what there is of them and how often they were.
    waiting: VecDeque<(usize, State, u32)>,
    running: Vec<Running>,
    tally: Tally<'a>,
}

struct Running {
    nth: usize,
    tries: u32,
    child: Child,
    log: PathBuf,
    began: Instant,
}

impl<'a> Sweep<'a> {
    fn new(runs: &'a [Planned], states: Vec<State>, jobs: &'a Jobs, program: PathBuf) -> Self {
        let (tally, left) = Tally::new(runs, states, (jobs.retries, jobs.quiet));
        Sweep {
            jobs,
            program,
            waiting: left
                .into_iter()
                .map(|(nth, state)| (nth, state, 0))
                .collect(),
            running: Vec::new(),
            tally,
        }
    }

    fn goes_on(&self) -> bool {
        !(self.waiting.is_empty() && self.running.is_empty())
    }

    /// Starts as many as may run.
    fn fill(&mut self) -> Result<()> {
        while self.running.len() < self.jobs.at_a_time {
            let Some((nth, state, tries)) = self.waiting.pop_front() else {
                return Ok(());
            };
            let run = &self.tally.runs[nth];
            make_folder(run)?;
            let log = log_of(run);
            let file = std::fs::File::options()
                .append(true)
                .create(true)
                .open(&log);
            let file = file.map_err(|error| cannot_write(&log, error))?;
            let mut command = command(&self.program, run, &state, self.jobs);
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(file);
            apart(&mut command);
            let child = command.spawn().map_err(|error| {
                Error::failure(format!("{} cannot be started", self.program.display()))
                    .because(error)
            })?;
            self.running.push(Running {
                nth,
                tries: tries + 1,
                child,
                log,
                began: Instant::now(),
            });
        }
        Ok(())
    }

    /// Takes in those that have ended.
    fn reap(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.running.len() {
            let status = self.running[at].child.try_wait();
            match status
                .map_err(|error| Error::failure("a run cannot be waited for").because(error))?
            {
                None => at += 1,
                Some(status) => {
                    let ended = self.running.swap_remove(at);
                    self.ended(&ended, status);
                }
            }
        }
        Ok(())
    }

    fn ended(&mut self, ended: &Running, status: ExitStatus) {
        let by_signal = status.code().is_some_and(|code| code > 128);
        if by_signal && self.tally.board.stopping() {
            // It was told to stop, and is saved.
            self.tally.outcomes[ended.nth] = Outcome::Stopped;
            return;
        }
        let again = self.tally.ended(End {
            nth: ended.nth,
            tries: ended.tries,
            took: ended.began.elapsed(),
            code: status.code(),
            well: status.success(),
            may: true,
            how: match status.code() {
                Some(code) => exit(code),
                None => format!("was ended: {status}"),
            },
            said: std::fs::read_to_string(&ended.log).unwrap_or_default(),
        });
        if let Some(state) = again {
            self.waiting.push_back((ended.nth, state, ended.tries));
        }
    }

    /// Lets those that run end after their step, and starts no more.
    fn stop(&mut self, signal: i32) {
        self.tally.board.stop(self.running.len());
        for (nth, _, _) in self.waiting.drain(..) {
            self.tally.outcomes[nth] = Outcome::Stopped;
        }
        for running in &self.running {
            send(&running.child, signal);
        }
    }

    fn draw(&mut self) {
        let running = self.running.iter();
        let running: Vec<_> = running
            .map(|run| (run.nth, &self.tally.runs[run.nth], run.began))
            .collect();
        self.tally.board.draw(&running, "");
    }
}

/// A terminal's Ctrl-C is for the sweep, which tells its runs itself, once; and if the sweep is killed, they stop as if
/// they were told to.
#[cfg(unix)]
fn apart(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
    #[cfg(target_os = "linux")]
    // SAFETY: between fork and exec one system call is made, which allocates nothing.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        );
    }
}

#[cfg(not(unix))]
fn apart(_: &mut Command) {}

#[cfg(unix)]
fn send(child: &Child, signal: i32) {
    // SAFETY: a system call with two numbers; the child has not been waited for, so that its number is its own.
    unsafe { libc::kill(child.id() as i32, signal) };
}

#[cfg(not(unix))]
fn send(_: &Child, _: i32) {}
