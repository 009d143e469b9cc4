//! Describing a plugin in a child of this program, so that a library whose first code crashes, hangs, prints or
//! exits does that there.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dynalora_plugin_api::Manifest;
use dynalora_plugin_api::abi::text;

use crate::error::Error;

/// How long a library has to describe itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// The arguments before the library's path: a subcommand of the command line that calls `plugin::describe_here`.
pub const ARGUMENTS: [&str; 2] = ["plugins", "__describe"];

static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Says that this program has the subcommand. Where nobody has said so (in a program that uses this crate as a
/// library) plugins are described in the process itself.
pub fn by_this_program() {
    PROGRAM.get_or_init(|| {
        // On Linux the link names the very file that runs, even if it has been replaced since.
        let link = PathBuf::from("/proc/self/exe");
        if cfg!(target_os = "linux") && link.exists() {
            return Some(link);
        }
        std::env::current_exe().ok()
    });
}

/// Says that `program` has it, which is another than this one, as it is for a test.
pub fn by_program(program: PathBuf) {
    PROGRAM.get_or_init(|| Some(program));
}

/// The program that has the subcommand, where there is one.
pub fn program() -> Option<&'static Path> {
    PROGRAM.get()?.as_deref()
}

/// Why a library in a child does not describe itself.
pub enum Fault {
    /// It was refused there.
    Refused(Error),
    /// It ended the child, or kept it waiting.
    Ended(String),
}

/// What a child answers: the manifest of each plugin, or message and help of an error.
pub type Answer = Result<Vec<Manifest>, [String; 2]>;

/// What the library at `path` says of itself in a child, or why it does not; none where no child can be had.
pub fn describe(path: &Path) -> Option<Result<Vec<Manifest>, Fault>> {
    let mut command = Command::new(program()?);
    command
        .args(ARGUMENTS)
        .arg(path)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    match command.spawn() {
        Ok(child) => Some(ask(child)),
        Err(error) => {
            tracing::debug!("no child to describe {} in: {error}", path.display());
            None
        }
    }
}

fn ask(mut child: Child) -> Result<Vec<Manifest>, Fault> {
    let (answer, said) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let status = wait(&mut child);
    // A grandchild may hold the pipes open, which are then not waited for.
    let (answer, said) = (answer(), said());
    let status = status.map_err(Fault::Ended)?;
    if !status.success() {
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        let last = last.map_or(String::new(), |last| {
            format!(" ({})", text::line(last.trim(), 300))
        });
        let ended = format!("loading it ends a process: {}{last}", ending(status));
        return Err(Fault::Ended(ended));
    }
    match serde_json::from_str::<Answer>(answer.trim()) {
        Ok(Ok(manifests)) => Ok(manifests),
        Ok(Err([message, help])) => Err(Fault::Refused(Error::user(message).help(help))),
        Err(_) => Err(Fault::Ended(
            "loading it ends a process before it has described itself".to_owned(),
        )),
    }
}

/// Reads what comes, up to a limit; the function returned gives what has come so far.
fn reader(from: Option<impl Read + Send + 'static>) -> impl FnOnce() -> String {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            // What is read before an error counts; what is beyond the limit is read too, so that nobody waits.
            let _ = from.by_ref().take(16 << 20).read_to_end(&mut bytes);
            let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
            let _ = std::io::copy(&mut from, &mut std::io::sink());
        }
    });
    move || {
        receiver
            .recv_timeout(Duration::from_secs(1))
            .unwrap_or_default()
    }
}

fn wait(child: &mut Child) -> Result<ExitStatus, String> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if started.elapsed() < PATIENCE => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            outcome => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(match outcome {
                    Err(error) => format!("its description cannot be waited for: {error}"),
                    _ => format!("loading it takes more than {} seconds", PATIENCE.as_secs()),
                });
            }
        }
    }
}

/// How a process ended, in words.
pub fn ending(status: ExitStatus) -> String {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        if let Some(signal) = status.signal() {
            let name = match signal {
                libc::SIGSEGV => " (SIGSEGV)",
                libc::SIGBUS => " (SIGBUS)",
                libc::SIGABRT => " (SIGABRT)",
                libc::SIGILL => " (SIGILL)",
                libc::SIGFPE => " (SIGFPE)",
                libc::SIGKILL => " (SIGKILL)",
                _ => "",
            };
            return format!("killed by signal {signal}{name}");
        }
    }
    match status.code() {
        Some(code) => format!("exit code {code}"),
        None => "it ended".to_owned(),
    }
}
