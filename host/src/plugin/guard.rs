//! What keeps a plugin in the same process from speaking or ending in the program's name.
//!
//! A program that calls [`begin`] has standard output to itself ([`stdout`]): whatever else writes there goes to
//! standard error. And an `exit()` that it has not announced ([`announce_exit`]) becomes exit code 1 with a
//! sentence. What ends a process at once (`abort`, `_exit`, a segmentation fault) cannot be held back within it.

use std::io::{self, IsTerminal, Write};
#[cfg(unix)]
use std::sync::{
    Mutex, Once, OnceLock,
    atomic::{AtomicBool, Ordering},
};

#[cfg(unix)]
static STDOUT: OnceLock<std::fs::File> = OnceLock::new();

/// Guards the program from now on. To be called before any library is loaded.
pub fn begin() {
    keep_stdout();
    #[cfg(unix)]
    GUARDED.store(true, Ordering::SeqCst);
}

/// Keeps standard output for [`stdout`], and points what writes to descriptor 1 at standard error; elsewhere
/// than on Unix it does nothing.
fn keep_stdout() {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        let _ = io::stdout().flush();
        // Where no descriptor is free, or the second call comes, things are left as they are.
        if STDOUT.get().is_none()
            && let Ok(kept) = io::stdout().as_fd().try_clone_to_owned()
            && STDOUT.set(kept.into()).is_ok()
        {
            // SAFETY: duplicates one of this process's own descriptors onto another.
            unsafe { libc::dup2(2, 1) };
        }
    }
}

/// The program's own standard output.
pub fn stdout() -> Box<dyn Write> {
    #[cfg(unix)]
    if let Some(kept) = STDOUT.get() {
        return Box::new(kept);
    }
    Box::new(io::stdout())
}

/// Whether the program's own standard output is a terminal.
pub fn stdout_is_terminal() -> bool {
    #[cfg(unix)]
    if let Some(kept) = STDOUT.get() {
        return kept.is_terminal();
    }
    io::stdout().is_terminal()
}

#[cfg(unix)]
static GUARDED: AtomicBool = AtomicBool::new(false);
#[cfg(unix)]
static ANNOUNCED: AtomicBool = AtomicBool::new(false);
#[cfg(unix)]
static LOADED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Says that the program itself is about to end, by returning from `main` or by `std::process::exit`: what its
/// exit code says is then so.
pub fn announce_exit() {
    #[cfg(unix)]
    ANNOUNCED.store(true, Ordering::SeqCst);
}

/// In a guarded program an `exit()` that nobody announced is a plugin's from now on: `name` is loaded.
pub fn expect_no_exit(name: &str) {
    #[cfg(unix)]
    if GUARDED.load(Ordering::SeqCst) {
        static REGISTERED: Once = Once::new();
        if let Ok(mut loaded) = LOADED.lock() {
            loaded.push(name.to_owned());
        }
        REGISTERED.call_once(|| {
            // SAFETY: `at_exit` is a function without arguments that does not unwind.
            unsafe { libc::atexit(at_exit) };
            #[cfg(target_os = "linux")]
            at_quick_exit(at_exit);
        });
    }
    #[cfg(not(unix))]
    let _ = name;
}

#[cfg(target_os = "linux")]
unsafe extern "C" {
    safe fn at_quick_exit(handler: extern "C" fn()) -> libc::c_int;
}

#[cfg(unix)]
extern "C" fn at_exit() {
    if ANNOUNCED.load(Ordering::SeqCst) {
        return;
    }
    let loaded = LOADED
        .try_lock()
        .map_or(String::new(), |loaded| loaded.join(", "));
    let message = format!(
        "Error: the program was ended by exit() before it had finished: by a plugin (loaded: {loaded}). \
         Nothing further was saved; a run goes on from its last checkpoint with --resume, once the plugin is mended.\n"
    );
    // SAFETY: writes bytes of a living string, and ends the process. Nothing is flushed or destroyed on the way:
    // who called exit() may hold any lock.
    unsafe {
        libc::write(2, message.as_ptr().cast(), message.len());
        libc::_exit(1);
    }
}

/// Leaves no core file when this process crashes: for a child whose crash is an answer.
pub fn leave_no_core() {
    #[cfg(unix)]
    {
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: reads a structure that lives until the call returns.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
    }
}
