//! What a task of an engine does: one of a list of runs, from the recipe that was written when it was submitted.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What differs between engines.
pub(super) struct Parts {
    /// Sets `job` and `task`, by what the engine calls both, and `threads`, the cores that it lends.
    pub head: &'static str,
    /// What is done when the run's folder is known.
    pub begun: &'static str,
    /// What is done by a task that was told to stop, before it leaves a word.
    pub told: &'static str,
}

/// What a script is of.
pub(super) struct Body<'a> {
    /// The sweep's folder, absolute.
    pub folder: &'a Path,
    pub program: &'a Path,
    pub plugin_dirs: &'a [PathBuf],
    /// The runs' names in order.
    pub names: Vec<&'a str>,
}

/// What the program reads of its environment: a task has it as its sweep had, whatever its engine hands on.
const VARIABLES: [&str; 9] = [
    "DYNALORA_CACHE",
    "DYNALORA_PLUGIN_PATH",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
];

/// The whole text.
pub(super) fn script(parts: &Parts, body: &Body) -> Result<String> {
    let quote = |path: &Path| {
        let text = path.to_str().ok_or_else(|| {
            Error::user(format!("the path {} is not UTF-8", path.display()))
                .help("move it to a folder whose name is plain text")
        })?;
        quoted(text)
    };
    let (folder, program) = (quote(body.folder)?, quote(body.program)?);
    let mut dirs = String::new();
    for dir in body.plugin_dirs {
        dirs += &format!(
            " --plugin-dir {}",
            quote(&std::path::absolute(dir).unwrap_or(dir.clone()))?
        );
    }
    let mut variables = String::new();
    for name in VARIABLES {
        if let Ok(value) = std::env::var(name) {
            variables += &format!("export {name}={}\n", quoted(&value)?);
        }
    }
    let names = body.names.iter().map(|name| quoted(name));
    let names = names.collect::<Result<Vec<_>>>()?.join("\n");
    let Parts { head, begun, told } = parts;
    Ok(format!(
        r#"#!/bin/bash
# One run of a sweep a task, by its number in this list. Written by `dynalora sweep`.
names=(
{names}
)
{head}
folder={folder}
name=${{names[$task]}}
run=$folder/$name
own=$folder/.sweep/$name
exec 2>>"$own.log"{begun}
{variables}
# Told to stop, the run ends its step and saves. Whether the signal came to this shell alone or to all of the task, the run
# may be told again: SIGUSR1 never ends it at once.
told='' train=''
stop() {{ told=yes; [ -z "$train" ] || kill -USR1 "$train" 2>/dev/null; }}
trap stop INT TERM USR1

saved() {{ ls "$run/checkpoints" 2>/dev/null; }}
before=$(saved)
# Where its machine was lost, the last try may be saving yet.
[ ! -e "$run/.lock" ] || flock --shared --timeout 120 "$run/.lock" true
rm -f "$own.exit"
options=()
[ -e "$run/recipe.toml" ] && options+=(--resume)
grep -q '^threads = ' "$own.toml" || options+=(--set "threads=$threads")
{program} train "$own.toml"{dirs} "${{options[@]}}" >/dev/null &
train=$!
[ -z "$told" ] || stop
while :; do
    wait "$train"
    code=$?
    # A signal ends the waiting, not the run.
    [ "$code" -gt 128 ] && kill -0 "$train" 2>/dev/null || break
done
if [ -n "$told" ] && [ "$code" -ne 0 ]; then
    {told}
fi
# The last word, by which the sweep knows how it ended.
echo "$job $code" >"$own.exit.part" && mv -f "$own.exit.part" "$own.exit"
exit "$code"
"#
    ))
}

fn quoted(text: &str) -> Result<String> {
    let quoted = shlex::try_quote(text).map_err(|error| {
        Error::user(format!("{text:?} cannot be written for a shell")).because(error)
    })?;
    Ok(quoted.into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{hq, slurm};
    use super::*;

    /// What bash itself finds wrong with it, whatever the names.
    #[test]
    fn the_script_is_one() {
        let (folder, dirs) = (Path::new("/tmp/a 'b'"), [PathBuf::from("/p q")]);
        let body = Body {
            folder,
            program: Path::new("/bin/dynalora"),
            plugin_dirs: &dirs,
            names: vec!["lora-s1", "rank=8+é-s1"],
        };
        for parts in [&slurm::PARTS, &hq::PARTS] {
            let text = script(parts, &body).unwrap();
            let checked = std::process::Command::new("bash")
                .arg("-n")
                .arg("-c")
                .arg(&text)
                .output();
            let checked = checked.expect("bash");
            assert!(
                checked.status.success(),
                "{}:\n{text}",
                String::from_utf8_lossy(&checked.stderr)
            );
        }
    }
}
