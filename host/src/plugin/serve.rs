//! A plugin for the process that asks: lines of calls in, lines of answers out. Runs in a child of the program, which
//! has given up what a plugin has no use for.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use dynalora_plugin_api::abi::host::{Carrier, InProcess};
use dynalora_plugin_api::message::json::{Answer, read_call, write_answer};
use dynalora_plugin_api::message::typed::from_json;
use dynalora_plugin_api::message::{Fields, Value};
use dynalora_plugin_api::{Kind, ModuleInfo};

use super::library::Candidate;
use super::{guard, jail};

/// Answers calls until there are no more. An error is one of the pipes, which nobody is left to hear.
pub fn serve(path: &Path, memory_mib: u64) -> io::Result<()> {
    guard::leave_no_core();
    deaf_to_signals();
    let mut calls = BufReader::with_capacity(1 << 16, take_stdin()?);
    let mut answers = guard::stdout();
    let lacks = jail::enter(memory_mib);
    end_with_the_reader(calls.get_ref());

    let mut line = String::new();
    let mut next = |answers: &mut dyn Write,
                    answer: Option<&Answer>|
     -> io::Result<Option<(String, Fields<'static>)>> {
        if let Some(answer) = answer {
            answers.write_all(write_answer(answer).as_bytes())?;
            answers.flush()?;
        }
        line.clear();
        match calls.read_line(&mut line)? {
            0 => Ok(None),
            _ => read_call(&line)
                .map(Some)
                .map_err(|error| io::Error::other(error.to_string())),
        }
    };
    let Some((_, fields)) = next(&mut answers, None)? else {
        return Ok(());
    };
    let mut plugin = match make(path, &fields) {
        Ok(plugin) => plugin,
        Err(why) => return next(&mut answers, Some(&Answer::Refused(why))).map(drop),
    };
    let mut answer = Fields::new();
    if !lacks.is_empty() {
        answer.put("lacks", Value::Text(lacks.join("; ").into()));
    }
    let mut answer = Answer::Fields(answer);
    while let Some((name, fields)) = next(&mut answers, Some(&answer))? {
        answer = match plugin.call(&name, &fields) {
            Ok(Some(fields)) => Answer::Fields(fields),
            Ok(None) => Answer::Unknown,
            Err(why) => Answer::Refused(why.to_string()),
        };
    }
    Ok(())
}

/// Loads the library and makes its plugin.
fn make(path: &Path, fields: &Fields<'_>) -> Result<InProcess, String> {
    let plain = |error: dynalora_plugin_api::Error| error.to_string();
    let kind = match fields.text("kind").map_err(plain)? {
        Some("scorer") => Kind::Scorer,
        _ => Kind::Allocator,
    };
    let modules: Vec<ModuleInfo> = from_json("modules", fields).map_err(plain)?;
    let parameters = fields.text("parameters").map_err(plain)?.unwrap_or("{}");
    let library = Candidate::open(path).and_then(|candidate| candidate.load_here());
    let library = library.map_err(|error| error.to_string())?;
    // An exit() of the plugin's is its process's end and needs no sentence: who asked says what became of it.
    guard::announce_exit();
    InProcess::new(library.table, kind, parameters, &modules).map_err(plain)
}

/// Standard input under another number, for a plugin may read what is called so.
fn take_stdin() -> io::Result<File> {
    let nothing = File::open("/dev/null")?;
    // SAFETY: duplicates descriptors of this process onto others of its own; the one that comes back is nobody's yet.
    unsafe {
        let taken = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3);
        if taken < 0 || libc::dup2(nothing.as_raw_fd(), 0) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(taken).into())
    }
}

/// Signals that ask a whole group or service to stop are the trainer's: it has yet to save, for which it asks for the
/// plugin's state.
fn deaf_to_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1] {
        // SAFETY: has a signal ignored; no other thread is there yet.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Ends this process when the one that calls is gone, whatever the plugin is doing.
fn end_with_the_reader(calls: &File) {
    let fd = calls.as_raw_fd();
    std::thread::spawn(move || {
        loop {
            let mut hung_up = libc::pollfd {
                fd,
                events: 0,
                revents: 0,
            };
            // SAFETY: one structure, which lives until the call returns.
            if unsafe { libc::poll(&raw mut hung_up, 1, -1) } > 0 {
                // SAFETY: ends the process at once. Nothing of it is worth keeping.
                unsafe { libc::_exit(0) };
            }
        }
    });
}
