//! MLflow's file store, as `mlflow.store.tracking.file_store` reads it: a folder for each experiment and in it one for
//! each run, with a file for each parameter, tag and metric.
//!
//! What a run has recorded is written anew whenever it is opened, so that a step that is made again is there once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::record::MetricRecord;
use super::{Run, folder};
use crate::error::{Error, Result};
use crate::file::{cannot_write, sha256, write_atomically};
use crate::yaml;

/// The variable that says where runs are tracked.
const TRACKING: &str = "MLFLOW_TRACKING_URI";
/// The variable that says which experiment they belong to.
const EXPERIMENT: &str = "MLFLOW_EXPERIMENT_NAME";
/// The longest parameter that MLflow takes, in characters.
const LONGEST: usize = 6000;

/// `RunStatus`, as it is stored.
const RUNNING: u8 = 1;
const FINISHED: u8 = 3;
const KILLED: u8 = 5;

/// A run's `meta.yaml`. It is written as JSON, which is YAML too.
#[derive(Debug, Serialize)]
struct Meta {
    artifact_uri: PathBuf,
    end_time: Option<u64>,
    entry_point_name: &'static str,
    experiment_id: String,
    lifecycle_stage: &'static str,
    run_id: String,
    run_name: String,
    source_name: &'static str,
    source_type: u8,
    source_version: String,
    start_time: u64,
    status: u8,
    tags: [(); 0],
    user_id: String,
}

/// A run in the store.
#[derive(Debug)]
pub(super) struct Tracked {
    folder: PathBuf,
    meta: Meta,
    metrics: BTreeMap<String, File>,
    /// Seconds of training up to the last record.
    seconds: f64,
}

/// The store that a run's numbers go to: where the environment says, else beside the run, for all that lie there.
pub(super) fn store(run: &Run) -> Result<PathBuf> {
    let Some(uri) = std::env::var(TRACKING).ok().filter(|uri| !uri.is_empty()) else {
        let run = std::path::absolute(run.dir()).map_err(|error| cannot_write(run.dir(), error))?;
        return Ok(run.parent().unwrap_or(&run).join("mlruns"));
    };
    match uri.split_once(':') {
        None => Ok(PathBuf::from(uri)),
        Some(("file", path)) => {
            let path = path.strip_prefix("//").unwrap_or(path);
            let path = percent_decode_str(path.strip_prefix("localhost").unwrap_or(path));
            Ok(PathBuf::from(path.decode_utf8_lossy().into_owned()))
        }
        Some(_) => Err(Error::user(format!(
            "{TRACKING} is {uri}, but runs are written into a folder of files alone"
        ))
        .help(
            "unset it, or give a folder; `mlflow migrate-filestore` moves what was written into a database. Or leave \
             \"mlflow\" out of train.report_to",
        )),
    }
}

impl Tracked {
    /// Puts the run into the `store`, in place of what it had there. `recipe` is its text.
    pub fn open(store: &Path, run: &Run, recipe: &str) -> Result<Self> {
        let dir = fs::canonicalize(run.dir()).map_err(|error| cannot_write(run.dir(), error))?;
        let name = |path: Option<&Path>| {
            let name = path.and_then(Path::file_name).unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let experiment = std::env::var(EXPERIMENT).ok();
        let experiment = experiment.filter(|name| !name.is_empty());
        let experiment = experiment.unwrap_or_else(|| name(dir.parent()));
        let experiment_id = experiment_in(store, &experiment)?;
        // The same whenever the run goes on.
        let run_id = sha256(dir.as_os_str().as_encoded_bytes())[..32].to_owned();
        let folder = store.join(&experiment_id).join(&run_id);
        folder::remove(&folder)?;
        let provenance = run.provenance()?.unwrap_or_default();
        let sitting = provenance.sittings.first();
        let program = sitting.map(|sitting| &sitting.program);
        let commit = program.and_then(|program| program.commit.clone());
        let user = std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned());
        let artifacts = std::path::absolute(folder.join("artifacts"));
        let tracked = Tracked {
            meta: Meta {
                artifact_uri: artifacts.map_err(|error| cannot_write(&folder, error))?,
                end_time: None,
                entry_point_name: "",
                experiment_id,
                lifecycle_stage: "active",
                run_id,
                run_name: name(Some(&dir)),
                source_name: "",
                source_type: 4,
                source_version: commit.clone().unwrap_or_default(),
                start_time: sitting.map_or_else(now, |sitting| 1000 * sitting.started),
                status: RUNNING,
                tags: [],
                user_id: user.clone(),
            },
            folder,
            metrics: BTreeMap::new(),
            seconds: 0.0,
        };
        for (key, value) in parameters(recipe) {
            tracked.write(&format!("params/{key}"), &value)?;
        }
        let tags = [
            ("runName", Some(tracked.meta.run_name.clone())),
            ("user", Some(user)),
            ("source.name", Some("dynalora train".to_owned())),
            ("source.type", Some("LOCAL".to_owned())),
            ("source.git.commit", commit),
        ];
        for (tag, value) in tags {
            if let Some(value) = value {
                tracked.write(&format!("tags/mlflow.{tag}"), &value)?;
            }
        }
        tracked.write("tags/dynalora.run", &dir.to_string_lossy())?;
        // Not called recipe.toml, which is what makes a folder a run.
        tracked.write("artifacts/resolved-recipe.toml", recipe)?;
        tracked.save()?;
        Ok(tracked)
    }

    /// Adds the numbers of a record, by their names.
    pub fn scalars(
        &mut self,
        record: &MetricRecord,
        step: u64,
        scalars: &[(String, f64)],
    ) -> Result<()> {
        if let MetricRecord::Step(record) = record {
            self.seconds = record.seconds;
        }
        let time = self.meta.start_time + (1000.0 * self.seconds) as u64;
        for (name, value) in scalars {
            let path = self.folder.join("metrics").join(name);
            let cannot = |error| cannot_write(&path, error);
            if !self.metrics.contains_key(name) {
                make_folder_of(&path)?;
                let file = File::options().append(true).create(true).open(&path);
                self.metrics.insert(name.clone(), file.map_err(cannot)?);
            }
            let line = format!("{time} {value} {step}\n");
            let file = self.metrics.get_mut(name);
            file.map_or(Ok(()), |file| file.write_all(line.as_bytes()))
                .map_err(cannot)?;
        }
        Ok(())
    }

    /// Says that the run has made its last step.
    pub fn finish(&mut self) -> Result<()> {
        self.end(FINISHED)
    }

    fn end(&mut self, status: u8) -> Result<()> {
        self.meta.status = status;
        self.meta.end_time = Some(now());
        self.save()
    }

    fn save(&self) -> Result<()> {
        let path = self.folder.join("meta.yaml");
        let text = serde_json::to_vec_pretty(&self.meta);
        write_atomically(
            &path,
            &text.map_err(|error| cannot_write(&path, error.into()))?,
        )
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        make_folder_of(&path)?;
        fs::write(&path, text).map_err(|error| cannot_write(&path, error))
    }
}

impl Drop for Tracked {
    /// A run that ends before its last step; one that nobody can say it of stays as running.
    fn drop(&mut self) {
        if self.meta.status == RUNNING {
            let _ = self.end(KILLED);
        }
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}

fn make_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|error| cannot_write(folder, error))
}

/// The number of the experiment of this name, which is made if there is none.
fn experiment_in(store: &Path, name: &str) -> Result<String> {
    for entry in fs::read_dir(store).into_iter().flatten().flatten() {
        // Another's that cannot be read is not the one.
        let meta = fs::read_to_string(entry.path().join("meta.yaml")).unwrap_or_default();
        let meta = yaml::read(&meta).unwrap_or_default();
        if meta["name"] == name && meta["lifecycle_stage"] == "active" {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    // The same for every process that makes it at the same time.
    let id = u64::from_str_radix(&sha256(name.as_bytes())[..14], 16).unwrap_or_default();
    let id = id.to_string();
    let folder = store.join(&id);
    let folder = std::path::absolute(&folder).map_err(|error| cannot_write(&folder, error))?;
    let meta = serde_json::json!({
        "artifact_location": folder,
        "creation_time": now(),
        "experiment_id": id,
        "last_update_time": now(),
        "lifecycle_stage": "active",
        "name": name,
    });
    let path = folder.join("meta.yaml");
    make_folder_of(&path)?;
    let made = File::options().write(true).create_new(true).open(&path);
    match made.and_then(|mut file| file.write_all(format!("{meta:#}").as_bytes())) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(cannot_write(&path, error))
        }
        _ => Ok(id),
    }
}

/// A recipe key by key. Tables whose keys MLflow has no names for are one value, and what it finds too long is left to
/// the artifact.
fn parameters(recipe: &str) -> Vec<(String, String)> {
    fn flatten(key: &str, value: &toml::Value, all: &mut Vec<(String, String)>) {
        let plain = |key: &String| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            key.chars().all(plain)
        };
        match value {
            toml::Value::Table(table) if table.keys().all(plain) => {
                for (inner, value) in table {
                    let dot = if key.is_empty() { "" } else { "." };
                    flatten(&format!("{key}{dot}{inner}"), value, all);
                }
            }
            toml::Value::String(text) => all.push((key.to_owned(), text.clone())),
            value => all.push((key.to_owned(), value.to_string())),
        }
    }
    let mut all = Vec::new();
    if let Ok(table) = recipe.parse::<toml::Table>() {
        flatten("", &table.into(), &mut all);
    }
    all.retain(|(_, value)| value.chars().count() <= LONGEST);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_names_that_mlflow_takes() {
        let long = "x".repeat(LONGEST + 1);
        let recipe = format!(
            "seed = 3\nlong = \"{long}\"\n[adapter]\nrank = 8\ntargets = [\"query\"]\n[adapter.rank_pattern]\n\"layer.*\" = 4\n"
        );
        let found = parameters(&recipe);
        let found: Vec<(&str, &str)> = found.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        assert_eq!(
            found,
            [
                ("adapter.rank", "8"),
                ("adapter.rank_pattern", "{ \"layer.*\" = 4 }"),
                ("adapter.targets", "[\"query\"]"),
                ("seed", "3"),
            ]
        );
    }

    #[test]
    fn an_experiment_is_found_by_its_name() {
        let store = tempfile::tempdir().expect("a temporary folder");
        let of_mlflow = store.path().join("17");
        fs::create_dir(&of_mlflow).expect("a folder");
        let meta = "artifact_location: file:///x/17\nlifecycle_stage: active\nname: tried\n";
        fs::write(of_mlflow.join("meta.yaml"), meta).expect("a file");
        let find = |name| experiment_in(store.path(), name).expect("a store");
        assert_eq!(find("tried"), "17");
        let made = find("new");
        assert_ne!(made, "17");
        assert_eq!(find("new"), made);
    }
}
