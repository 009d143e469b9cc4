//! A plugin in a child of this program: the carrier that writes calls to its pipe and reads answers from it, one line
//! each, for so long and no longer. Whatever becomes of the child is an error here.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use dynalora_plugin_api::abi::host::Carrier;
use dynalora_plugin_api::abi::text;
use dynalora_plugin_api::message::json::{Answer, read_answer, write_call};
use dynalora_plugin_api::message::typed::to_json;
use dynalora_plugin_api::message::{Fields, Value};
use dynalora_plugin_api::{Error, Kind, ModuleInfo, Result};

use super::{Fault, probe};

/// The arguments before the library's path: a subcommand of the command line that calls `plugin::serve_here`.
pub const ARGUMENTS: [&str; 2] = ["plugins", "__serve"];

/// The longest answer that is read, in bytes: the state of a plugin is the longest there is.
const LONGEST_ANSWER: usize = 16 << 20;

/// How much of what a child prints is passed on, in bytes.
const MOST_PRINTED: usize = 64 << 10;

/// What an isolated plugin may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Time for a call.
    pub timeout: Duration,
    /// Memory beside what the program itself takes, in MiB.
    pub memory_mib: u64,
}

/// A plugin in a child.
pub struct Isolated {
    child: Child,
    calls: Option<ChildStdin>,
    answers: ChildStdout,
    /// What has been read and not yet answered with.
    read: Vec<u8>,
    printed: Printed,
    limits: Limits,
    /// Why there is no child any more.
    ended: Option<Error>,
}

impl Isolated {
    /// Makes the plugin of this kind of the library at `path` in a child, over `modules`, with `parameters` as a JSON
    /// object.
    pub fn new(
        path: &Path,
        kind: Kind,
        parameters: &str,
        modules: &[ModuleInfo],
        limits: Limits,
    ) -> std::result::Result<Self, Fault> {
        let mut isolated = Isolated::spawn(path, limits).map_err(|error| {
            Fault::Ended(format!("no process to isolate it in: {error}").into())
        })?;
        let fields = to_json("modules", &modules).map_err(Fault::Refused)?;
        let fields = fields
            .with("count", Value::Int(modules.len() as u64))
            .with("kind", Value::Text(kind.to_string().into()))
            .with("parameters", Value::Json(parameters.to_owned().into()));
        match isolated.call("make", &fields) {
            Ok(answer) => {
                let lacks = answer.as_ref().map(|answer| answer.text("lacks"));
                if let Some(Ok(Some(lacks))) = lacks {
                    say_once(&text::line(lacks, 500));
                }
                Ok(isolated)
            }
            Err(error) if isolated.ended.is_some() => Err(Fault::Ended(error)),
            Err(error) => Err(Fault::Refused(error)),
        }
    }

    fn spawn(path: &Path, limits: Limits) -> io::Result<Self> {
        let program = probe::program().ok_or_else(|| {
            io::Error::other("isolation takes the program `dynalora` itself, which this is not")
        })?;
        let mut child = Command::new(program)
            .args(ARGUMENTS)
            .arg(path)
            .args(["--memory-mib", &limits.memory_mib.to_string()])
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C is for the trainer, which has yet to save, and ends the child by itself.
            .process_group(0)
            .spawn()?;
        let taken = || io::Error::other("its pipes are gone");
        let calls = child.stdin.take().ok_or_else(taken)?;
        let answers = child.stdout.take().ok_or_else(taken)?;
        let printed = Printed::of(child.stderr.take().ok_or_else(taken)?);
        // From here on it is ended when this is dropped.
        let isolated = Isolated {
            child,
            calls: Some(calls),
            answers,
            read: Vec::new(),
            printed,
            limits,
            ended: None,
        };
        if let Some(calls) = &isolated.calls {
            no_waiting(calls.as_fd())?;
        }
        no_waiting(isolated.answers.as_fd())?;
        Ok(isolated)
    }

    /// Writes a line and reads one.
    fn exchange(&mut self, name: &str, line: &str) -> Result<Vec<u8>> {
        let deadline = Instant::now() + self.limits.timeout;
        let late = || {
            Error::from(format!(
                "it has not answered `{name}` within {} seconds (`isolation.timeout_seconds`)",
                self.limits.timeout.as_secs_f64()
            ))
        };
        let mut rest = line.as_bytes();
        while let (false, Some(calls)) = (rest.is_empty(), &mut self.calls) {
            match calls.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !ready(calls.as_fd(), libc::POLLOUT, deadline) {
                        return Err(late());
                    }
                }
                // It reads no more, and has ended most likely: what it left is read first.
                Err(_) => break,
            }
        }
        let mut searched = 0;
        loop {
            if let Some(end) = self.read[searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.read.drain(..=searched + end).collect();
                // One line in, one out: what else comes is nobody's answer.
                return match self.read.is_empty() {
                    true => Ok(line),
                    false => Err(format!("it answers `{name}` with more than one line").into()),
                };
            }
            searched = self.read.len();
            if searched > LONGEST_ANSWER {
                return Err(format!(
                    "its answer to `{name}` is of more than {} MiB, which is the most there may be",
                    LONGEST_ANSWER >> 20
                )
                .into());
            }
            let mut piece = [0; 64 << 10];
            match self.answers.read(&mut piece) {
                Ok(0) => return Err(self.gone(name)),
                Ok(count) => self.read.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !ready(self.answers.as_fd(), libc::POLLIN, deadline) {
                        return Err(late());
                    }
                }
                Err(error) => return Err(format!("its pipe cannot be read: {error}").into()),
            }
        }
    }

    /// How a child ended that answers no more.
    fn gone(&mut self, name: &str) -> Error {
        let status = patiently(&mut self.child, Duration::from_secs(1));
        let how = match status {
            Some(status) => format!("it ended its process: {}", probe::ending(status)),
            None => "it closed its pipe".to_owned(),
        };
        format!(
            "{how}, instead of answering `{name}`{}",
            self.printed.last()
        )
        .into()
    }

    /// Ends the child, for this reason.
    fn end(&mut self, why: Error) -> Error {
        self.kill();
        self.ended = Some(why.clone());
        why
    }

    fn kill(&mut self) {
        self.calls = None;
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        if let Ok(group) = i32::try_from(self.child.id()) {
            // SAFETY: sends a signal to the group of a child that has not been waited for, which nobody else has.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Carrier for Isolated {
    fn call(&mut self, name: &str, fields: &Fields<'_>) -> Result<Option<Fields<'static>>> {
        if let Some(why) = &self.ended {
            return Err(why.clone());
        }
        let line = match self.exchange(name, &write_call(name, fields)) {
            Ok(line) => line,
            Err(why) => return Err(self.end(why)),
        };
        let answer = std::str::from_utf8(&line)
            .map_err(|_| Error::from("the line is not UTF-8"))
            .and_then(read_answer);
        match answer {
            Ok(Answer::Fields(fields)) => Ok(Some(fields)),
            Ok(Answer::Unknown) => Ok(None),
            Ok(Answer::Refused(why)) => Err(text::shown(&why, text::LONGEST).into()),
            Err(error) => {
                let why = format!("what it answers to `{name}` cannot be read: {error}");
                Err(self.end(text::shown(&why, text::LONGEST).into()))
            }
        }
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        // Its end of the story: it ends when its pipe does.
        self.calls = None;
        patiently(&mut self.child, Duration::from_millis(200));
        self.kill();
    }
}

fn say_once(lacks: &str) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        tracing::warn!("an isolated plugin is not kept from everything here: {lacks}")
    });
}

/// How a child ended, if it does so in time.
fn patiently(child: &mut Child, patience: Duration) -> Option<std::process::ExitStatus> {
    let (started, mut pause) = (Instant::now(), Duration::from_micros(100));
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if started.elapsed() < patience => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(10));
            }
            _ => return None,
        }
    }
}

/// Has a pipe answer at once where it would be waited for.
fn no_waiting(pipe: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: reads and sets the flags of a descriptor that is open.
    let set = unsafe {
        let flags = libc::fcntl(pipe.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    match set {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits until a pipe is ready, or has ended; false where the deadline comes first.
fn ready(pipe: BorrowedFd<'_>, events: libc::c_short, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let mut waited_for = libc::pollfd {
            fd: pipe.as_raw_fd(),
            events,
            revents: 0,
        };
        // Rounded up, so that the last millisecond is no busy loop.
        let milliseconds = left.as_millis().min(60_000) as libc::c_int + 1;
        // SAFETY: one structure, which lives until the call returns.
        if unsafe { libc::poll(&raw mut waited_for, 1, milliseconds) } > 0 {
            return true;
        }
    }
}

/// What a child prints, passed on to standard error so far as anyone reads it.
struct Printed {
    last: Arc<Mutex<String>>,
    over: Receiver<()>,
}

impl Printed {
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let last = Arc::new(Mutex::new(String::new()));
        let (sender, over) = channel();
        let kept = Arc::clone(&last);
        std::thread::spawn(move || {
            let (mut passed, mut piece) = (0, [0; 4096]);
            while let Ok(count @ 1..) = pipe.read(&mut piece) {
                let printed = String::from_utf8_lossy(&piece[..count]);
                if passed < MOST_PRINTED {
                    passed += count;
                    eprint!("{}", text::shown(&printed, piece.len()));
                    if passed >= MOST_PRINTED {
                        eprintln!("\n(what else an isolated plugin prints is left out)");
                    }
                }
                let line = printed.lines().rev().find(|line| !line.trim().is_empty());
                if let (Some(line), Ok(mut kept)) = (line, kept.lock()) {
                    *kept = text::line(line.trim(), 300);
                }
            }
            drop(sender);
        });
        Printed { last, over }
    }

    /// The last line, for a sentence about the end of a child.
    fn last(&self) -> String {
        // Until the pipe is at its end, which somebody may hold open.
        let _ = self.over.recv_timeout(Duration::from_millis(500));
        match self.last.lock() {
            Ok(last) if !last.is_empty() => format!(" ({last})"),
            _ => String::new(),
        }
    }
}
