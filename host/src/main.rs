//! The `dynalora` program.

use std::process::ExitCode;

/// Freed memory is kept for the next step: under glibc a large tensor is mapped and unmapped each time,
/// which halves the speed of matrix products.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match dynalora::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            eprintln!("{:?}", miette::Report::new(error));
            ExitCode::from(code)
        }
    }
}
