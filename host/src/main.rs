//! The `dynalora` program.

use std::process::ExitCode;

/// Freed memory is kept for the next step: under glibc a large tensor is mapped and unmapped each time,
/// which halves the speed of matrix products.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// mimalloc's option for how long freed memory is kept before it is given back, in milliseconds. Its own
/// ten are less than a step, so that each step would have the same pages cleared by the kernel again. The crate
/// names the option that comes after it, not this one.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = libmimalloc_sys::mi_option_use_numa_nodes - 1;

fn main() -> ExitCode {
    // SAFETY: sets a number, before any other thread exists.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 5000) };
    let outcome = dynalora::cli::run();
    // From here on an exit is the program's own: a plugin's would have an exit code that says what is not so.
    dynalora::plugin::guard::announce_exit();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            dynalora::train::say(&format!("{:?}", miette::Report::new(error)));
            ExitCode::from(code)
        }
    }
}
