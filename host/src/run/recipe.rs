//! Whether a recipe is the one that a run was started with.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// Keys that have no say in what is learnt: another place, another number of threads (which is warned of where the
/// run's provenance is known), another rhythm of saving, what else is written, what a plugin may take and what is done about its faults.
const FREE: [&str; 14] = [
    "output",
    "device",
    "threads",
    "plugin_dirs",
    "train.report_to",
    "checkpoint.keep",
    "checkpoint.minutes",
    "allocation.on_plugin_fault",
    "scorer.isolation",
    "scorer.isolation.timeout_seconds",
    "scorer.isolation.memory_mib",
    "allocator.isolation",
    "allocator.isolation.timeout_seconds",
    "allocator.isolation.memory_mib",
];

/// Keys that name files and folders, whose content counts where it is known.
const PLACES: [&str; 12] = [
    "adapter.from",
    "data.dir",
    "data.hub",
    "data.config",
    "data.revision",
    "data.train",
    "data.validation",
    "data.test",
    "model.name",
    "model.revision",
    "scorer.plugin",
    "allocator.plugin",
];

/// Keys that a start fills in from the data, if the recipe leaves them out.
const FILLED: [&str; 2] = ["data.labels", "data.problem"];

type Settings = BTreeMap<String, String>;

/// A recipe key by key, as text.
fn settings(text: &str) -> Result<Settings, toml::de::Error> {
    fn flatten(key: &str, value: &toml::Value, settings: &mut Settings) {
        let Some(table) = value.as_table() else {
            settings.insert(key.to_owned(), value.to_string());
            return;
        };
        for (inner, value) in table {
            let dot = if key.is_empty() { "" } else { "." };
            flatten(&format!("{key}{dot}{inner}"), value, settings);
        }
    }
    let table: toml::Table = toml::from_str(text)?;
    let mut settings = Settings::new();
    flatten("", &toml::Value::Table(table), &mut settings);
    Ok(settings)
}

/// Refuses `now` if it says another thing than `own`, the text of the recipe at `path`. Where the digests of the
/// inputs are known, these decide, not their places.
pub(super) fn check(path: &Path, own: &str, now: &str, inputs_known: bool) -> Result<()> {
    // One of an older version gets the defaults of keys it did not have.
    let filled = Recipe::parse(path, own, &[]).and_then(|(recipe, _)| recipe.to_toml());
    let own = filled.as_deref().unwrap_or(own);
    let unreadable = |error: toml::de::Error| {
        Error::user(format!("{} is damaged", path.display()))
            .because(error)
            .help("restore the file from a copy, or start the run anew by --force")
    };
    let (then, now) = (
        settings(own).map_err(unreadable)?,
        settings(now).map_err(unreadable)?,
    );
    let mut keys: Vec<&String> = then.keys().chain(now.keys()).collect();
    keys.sort();
    keys.dedup();
    let is_path = |value: Option<&String>| value.is_some_and(|value| value.contains(['/', '\\']));
    let differs = |key: &&&String| {
        let (then, now) = (then.get(**key), now.get(**key));
        let is = |keys: &[&str]| keys.contains(&key.as_str());
        let a_place = is(&PLACES) && inputs_known && (is_path(then) || is_path(now));
        // A run of an earlier version has nothing of it to compare.
        let filled = is(&FILLED) && (then.is_none() || now.is_none());
        then != now && !is(&FREE) && !a_place && !filled
    };
    let all: Vec<String> = (keys.iter().filter(differs))
        .map(|key| {
            let shown = |value: Option<&String>| match value {
                Some(value) => format!("`{key} = {value}`"),
                None => format!("no `{key}`"),
            };
            format!("{}, not {}", shown(then.get(*key)), shown(now.get(*key)))
        })
        .collect();
    if all.is_empty() {
        return Ok(());
    }
    let (shown, more) = all.split_at(all.len().min(4));
    let more = match more.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    Err(Error::user(format!(
        "{}: the run was started with {}{more}",
        path.display(),
        shown.join("; ")
    ))
    .help(
        "resume with the recipe the run was started with; or train this one into another `output` (--set output=…), \
         or in the run's place by --force",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(own: &str, now: &str, inputs_known: bool) -> String {
        let checked = check(Path::new("recipe.toml"), own, now, inputs_known);
        checked.map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn what_decides_the_outcome_must_be_the_same() {
        let own = "seed = 1\nthreads = 2\noutput = \"a\"\n[data]\ntrain = \"/a/t.csv\"\n";
        assert_eq!(said(own, own, false), "");
        let elsewhere = own.replace("\"a\"", "\"b\"").replace("= 2", "= 4");
        assert_eq!(said(own, &elsewhere, false), "");
        let moved = own.replace("/a/", "/b/");
        assert_eq!(said(own, &moved, true), "");
        assert!(said(own, &moved, false).contains("`data.train = \"/a/t.csv\"`, not"));
        let other = own.replace("= 1", "= 3") + "limit = 5\n";
        let found = said(own, &other, true);
        assert!(
            found.contains("`seed = 1`, not `seed = 3`")
                && found.contains("no `data.limit`, not `data.limit = 5`"),
            "{found}"
        );
        let filled = format!("{own}labels = [\"a\"]\n");
        assert_eq!(said(&filled, own, false), "");
        // A run of an earlier version has none to compare.
        assert_eq!(said(own, &filled, false), "");
        let renamed = filled.replace("\"a\"]", "\"b\"]");
        assert!(said(&filled, &renamed, false).contains("data.labels"));
        assert!(said("seed = ", own, false).contains("is damaged"));
    }
}
