//! A command, its pipes, and one line each way.

use std::collections::{BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dynalora_plugin_api::abi::host::Carrier;
use dynalora_plugin_api::abi::text;
use dynalora_plugin_api::message::Fields;
use dynalora_plugin_api::message::json::{Answer, read_answer, write_call};
use dynalora_plugin_api::{Error, Result};

use super::Parameters;

/// The longest answer taken, in bytes.
const LONGEST_LINE: u64 = 256 << 20;
/// How many of its last lines on standard error an error repeats.
const LAST_WORDS: usize = 5;
/// How long it may take to end once its standard input is closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// A command that answers calls.
pub struct Child {
    /// The command, for messages.
    name: String,
    process: std::process::Child,
    timeout: Duration,
    /// Lines for its standard input. Written by a thread of their own: a command that does not read would hold up
    /// whoever writes.
    calls: Option<Sender<String>>,
    /// Lines from its standard output, until it ends.
    answers: Receiver<std::result::Result<String, String>>,
    /// The last lines of its standard error, which are passed on as well.
    words: Arc<Mutex<VecDeque<String>>>,
    listening: Option<JoinHandle<()>>,
    /// Calls that it does not know.
    unknown: BTreeSet<String>,
    /// Why it is asked nothing more.
    failed: Option<Error>,
}

impl Child {
    /// Starts the command.
    pub fn start(parameters: &Parameters) -> Result<Self> {
        let Parameters {
            command,
            timeout_seconds,
            cwd,
            env,
            ..
        } = parameters;
        let Some((program, arguments)) = command.split_first().filter(|(p, _)| !p.is_empty())
        else {
            return Err(
                "parameter `command` is empty: give a program and its arguments, such as \
                        [\"python3\", \"my_scorer.py\"]"
                    .into(),
            );
        };
        let timeout = Some(*timeout_seconds)
            .filter(|seconds| *seconds > 0.0)
            .and_then(|seconds| Duration::try_from_secs_f64(seconds.min(1e9)).ok())
            .ok_or_else(|| {
                format!("parameter `timeout_seconds`: found {timeout_seconds}, expected above 0")
            })?;
        let name = format!("`{}`", text::line(&command.join(" "), 200));
        let mut starts = Command::new(program);
        starts.args(arguments).envs(env);
        starts
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(cwd) = cwd {
            if !std::path::Path::new(cwd).is_dir() {
                return Err(format!("parameter `cwd`: there is no folder {cwd}").into());
            }
            starts.current_dir(cwd);
        }
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut starts, 0);
        let mut process = starts
            .spawn()
            .map_err(|error| format!("parameter `command`: {name} cannot be started: {error}"))?;
        let words = Arc::new(Mutex::new(VecDeque::new()));
        let calls = process.stdin.take().map(writer);
        let listening = process
            .stderr
            .take()
            .map(|errors| listener(errors, words.clone()));
        let (sender, answers) = channel();
        if let Some(output) = process.stdout.take() {
            reader(output, sender);
        }
        Ok(Child {
            name,
            process,
            timeout,
            calls,
            answers,
            words,
            listening,
            unknown: BTreeSet::new(),
            failed: None,
        })
    }

    /// The command, as errors show it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn ask(&mut self, name: &str, fields: &Fields<'_>) -> Result<Answer> {
        // One that has ended takes no line, and says why below.
        if let Some(calls) = &self.calls {
            let _ = calls.send(write_call(name, fields));
        }
        let line = match self.answers.recv_timeout(self.timeout) {
            Ok(Ok(line)) => line,
            Ok(Err(why)) => return Err(format!("{}: `{name}`: {why}", self.name).into()),
            Err(RecvTimeoutError::Timeout) => {
                self.kill();
                let (seconds, words) = (self.timeout.as_secs_f64(), self.last_words());
                return Err(format!(
                    "{} did not answer `{name}` within {seconds} s and was killed{words}: give a longer \
                     `timeout_seconds` if it needs more",
                    self.name
                )
                .into());
            }
            Err(RecvTimeoutError::Disconnected) => {
                let (end, words) = (how(self.ended()), self.last_words());
                return Err(
                    format!("{} {end} before it had answered `{name}`{words}", self.name).into(),
                );
            }
        };
        read_answer(&line).map_err(|error| {
            format!(
                "{} answered `{name}` with \"{}\": {error} (standard output is for answers; print to standard error)",
                self.name,
                text::line(&line, 200)
            )
            .into()
        })
    }

    /// Waits until it has ended, and kills it if it takes too long.
    fn ended(&mut self) -> Option<ExitStatus> {
        let begun = Instant::now();
        while begun.elapsed() < FAREWELL {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        None
    }

    /// Kills it and whatever it has started.
    fn kill(&mut self) {
        #[cfg(unix)]
        if let Ok(group) = i32::try_from(self.process.id()) {
            // SAFETY: a system call. The group is the child's own, whose number no other can have before `wait` below.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// The last that it wrote to standard error.
    fn last_words(&mut self) -> String {
        // What it wrote before it ended is read soon after; a child of its own may hold the pipe for ever.
        let begun = Instant::now();
        while let Some(thread) = &self.listening
            && !thread.is_finished()
            && begun.elapsed() < FAREWELL
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        match words.is_empty() {
            true => String::new(),
            false => {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                format!("; its last words were: {}", words.join(" / "))
            }
        }
    }
}

/// How a command came to its end.
fn how(status: Option<ExitStatus>) -> String {
    let Some(status) = status else {
        return "closed its standard output".to_owned();
    };
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("was ended by signal {signal}");
    }
    match status.code() {
        Some(code) => format!("ended with exit code {code}"),
        None => format!("ended ({status})"),
    }
}

/// Writes lines to `input` until there are no more, and closes it then.
fn writer(mut input: impl Write + Send + 'static) -> Sender<String> {
    let (sender, lines) = channel::<String>();
    std::thread::spawn(move || {
        for line in lines {
            // A command that has ended is found out where its answer is waited for.
            if input
                .write_all(line.as_bytes())
                .and_then(|()| input.flush())
                .is_err()
            {
                break;
            }
        }
    });
    sender
}

/// Sends the lines of `output` on until it ends.
fn reader(output: impl Read + Send + 'static, lines: Sender<std::result::Result<String, String>>) {
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        loop {
            let mut line = Vec::new();
            let read = output
                .by_ref()
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut line);
            let line = match read {
                Ok(0) => break,
                Ok(_) if line.len() as u64 == LONGEST_LINE => {
                    Err(format!("its answer is longer than {LONGEST_LINE} bytes"))
                }
                Ok(_) => String::from_utf8(line).map_err(|_| "its answer is not UTF-8".to_owned()),
                Err(error) => Err(format!("its answer cannot be read: {error}")),
            };
            let last = line.is_err();
            if lines.send(line).is_err() || last {
                break;
            }
        }
    });
}

/// Passes the lines of `errors` on to standard error, and keeps the last.
fn listener(
    errors: impl Read + Send + 'static,
    words: Arc<Mutex<VecDeque<String>>>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut errors = BufReader::new(errors);
        loop {
            let mut line = Vec::new();
            match errors.by_ref().take(1 << 16).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let _ = std::io::stderr().write_all(&line);
            let line = text::line(String::from_utf8_lossy(&line).trim_end(), 300);
            if !line.is_empty() {
                let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
                words.push_back(line);
                if words.len() > LAST_WORDS {
                    words.pop_front();
                }
            }
        }
    })
}

impl Carrier for Child {
    fn call(&mut self, name: &str, fields: &Fields<'_>) -> Result<Option<Fields<'static>>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.unknown.contains(name) {
            return Ok(None);
        }
        match self.ask(name, fields) {
            Ok(Answer::Fields(fields)) => Ok(Some(fields)),
            Ok(Answer::Unknown) => {
                self.unknown.insert(name.to_owned());
                Ok(None)
            }
            Ok(Answer::Refused(why)) => Err(text::shown(&why, text::LONGEST).into()),
            Err(error) => {
                // Whatever it says from here on may be the answer to something else.
                self.kill();
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Its standard input is at its end with this, which most take for theirs.
        self.calls = None;
        self.ended();
        self.kill();
    }
}
