//! The program as several processes that train one run, by the system's mpirun.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{built, skip};

/// How many values of losses and norms may differ by, of what they are.
pub const WITHIN: f64 = 1e-5;

/// The program on `count` ranks, ready for arguments; alone on one. None where there is no MPI, or tests are
/// [skipped](skip).
pub fn on_ranks(count: usize) -> Option<Command> {
    let program = built().join("dynalora");
    if count == 1 {
        return Some(Command::new(program));
    }
    if !cfg!(feature = "mpi") {
        return skip("mpi", "the program is built without its feature `mpi`");
    }
    if let Err(error) = Command::new("mpirun").arg("--version").output() {
        return skip("mpi", format_args!("mpirun cannot be started: {error}"));
    }
    let mut command = Command::new("mpirun");
    // More ranks than cores, by whoever runs tests, wherever these go.
    command.args([
        "--oversubscribe",
        "--allow-run-as-root",
        "--bind-to",
        "none",
    ]);
    command.args(["-n", &count.to_string()]).arg(program);
    Some(command)
}

/// What two runs of one recipe on other numbers of ranks do not have in common: nothing but the last digits of what is
/// computed, and time and memory. An empty text where there is nothing else.
pub fn unlike(a: &Path, b: &Path) -> String {
    unlike_within(WITHIN, a, b, &[])
}

/// The same, but for how much values may differ by, of what they are; `strip` is left out.
pub fn unlike_within(within: f64, a: &Path, b: &Path, strip: &[&str]) -> String {
    for file in ["allocations.jsonl", "metrics.jsonl"] {
        let [a, b] = [a, b].map(|run| crate::drawn::records(run, file, strip));
        if a.len() != b.len() {
            return format!("{file}: {} records and {}", a.len(), b.len());
        }
        for (line, (a, b)) in a.iter().zip(&b).enumerate() {
            if let Some(key) = unlike_values(within, a, b) {
                return format!("{file}, line {}, {key}:\n  {a}\n  {b}", line + 1);
            }
        }
    }
    String::new()
}

/// The first key of which the values are not alike.
fn unlike_values(within: f64, a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            if let Some(key) = a.keys().find(|key| !b.contains_key(*key)) {
                return Some(key.clone());
            }
            a.iter().find_map(|(key, a)| match b.get(key) {
                Some(b) => Some(format!("{key}.{}", unlike_values(within, a, b)?)),
                None => Some(key.clone()),
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let mut pairs = a.iter().zip(b).enumerate();
            pairs.find_map(|(at, (a, b))| Some(format!("{at}.{}", unlike_values(within, a, b)?)))
        }
        (Value::Number(a), Value::Number(b)) if !a.is_u64() || !b.is_u64() => {
            let (a, b) = (a.as_f64()?, b.as_f64()?);
            let near = (a - b).abs() <= within * a.abs().max(b.abs()).max(1e-3);
            (!near).then(|| format!("{a} and {b}"))
        }
        _ => (a != b).then(|| "differs".to_owned()),
    }
}
