//! HyperQueue: `hq submit` submits an array, `hq job info` tells of its tasks.

use std::collections::BTreeMap;
use std::process::Command;

use schemars::JsonSchema;
use serde::Deserialize;

use super::record::{Job, Submission};
use super::script::Parts;
use super::{Batch, Seen, Setting, Wrong, ask, given, refused_of};
use crate::error::{Error, Result};

/// What is asked of HyperQueue for each run. Values are `hq submit`'s own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HqConfig {
    /// `--cpus`, which are the threads of recipes that set none.
    pub cpus: Option<Setting>,
    /// `--resource gpus/nvidia=`: how many, or a part of one: 0.5.
    pub gpus: Option<Setting>,
    /// `--time-limit`, of one run: "2h".
    pub time: Option<Setting>,
    /// Other arguments of `hq submit`.
    pub args: Vec<String>,
}

/// What the sweep itself says to `hq submit`.
const OWN: &[&str] = &[
    "--array",
    "--name",
    "--stdout",
    "--stderr",
    "--cwd",
    "--output-mode",
    "--wait",
    "--progress",
    "--from-json",
    "--each-line",
    "--stream",
    "--directives",
];

pub(super) const PARTS: Parts = Parts {
    head: r#"job=$HQ_JOB_ID task=$HQ_TASK_ID
IFS=, read -ra cpus <<<"$HQ_CPUS"
threads=${#cpus[@]}"#,
    begun: "",
    // It knows itself what is next: the worker ends, and another starts the task again; or it was cancelled.
    told: r#"exit "$code""#,
};

impl HqConfig {
    /// What cannot be in it.
    pub(in crate::sweep) fn wrong(&self) -> Option<Wrong> {
        refused_of("hq submit", &self.args, OWN)
    }
}

/// The command that submits.
pub(super) fn command(config: &HqConfig, batch: &Batch) -> Command {
    let mut command = Command::new("hq");
    command
        .args(["submit", "--output-mode=json"])
        .arg(format!("--name={}", batch.name))
        .arg(format!("--array=0-{}", batch.runs - 1))
        .args(["--stdout=none", "--stderr=none"]);
    given(&mut command, "cpus", &config.cpus);
    if let Some(gpus) = &config.gpus {
        command.arg(format!("--resource=gpus/nvidia={}", gpus.0));
    }
    given(&mut command, "time-limit", &config.time);
    command
        .args(&config.args)
        .args(["--", "bash"])
        .arg(&batch.script);
    command
}

/// What `hq submit` printed.
#[derive(Deserialize)]
struct Submitted {
    id: u64,
}

#[derive(Deserialize)]
struct Listed {
    id: u64,
    name: String,
}

#[derive(Deserialize)]
struct Details {
    info: Listed,
    tasks: Vec<Task>,
}

#[derive(Deserialize)]
struct Task {
    id: u32,
    state: String,
    #[serde(default)]
    worker: Option<u64>,
    #[serde(default)]
    error: Option<String>,
}

fn read<'a, T: Deserialize<'a>>(printed: &'a str) -> Result<T> {
    serde_json::from_str(printed)
        .map_err(|error| Error::failure(format!("hq printed {printed:?}")).because(error))
}

fn job(id: u64) -> Job {
    Job {
        id: id.to_string(),
        cluster: None,
    }
}

/// The job that `hq submit` printed.
pub(super) fn submitted(printed: &str) -> Result<Job> {
    Ok(job(read::<Submitted>(printed)?.id))
}

/// The job of this name, if there is one.
pub(super) fn find(name: &str) -> Result<Option<Job>> {
    Ok(list()?
        .into_iter()
        .find(|job| job.name == name)
        .map(|listed| job(listed.id)))
}

fn list() -> Result<Vec<Listed>> {
    read(&ask(Command::new("hq").args([
        "job",
        "list",
        "--all",
        "--output-mode=json",
    ]))?)
}

/// What HyperQueue knows of the tasks of these submissions, by job and number.
pub(super) fn look(submissions: &[&Submission]) -> Result<BTreeMap<(Job, u32), Seen>> {
    // A server that was started anew begins again with 1: a job is ours by its name.
    let there = list()?;
    let ours = |submission: &&&Submission| {
        let known = there.iter().find(|listed| listed.name == submission.name);
        submission.job.is_some() && known.map(|listed| job(listed.id)) == submission.job
    };
    let ids: Vec<String> = submissions
        .iter()
        .filter(ours)
        .filter_map(|submission| Some(submission.job.as_ref()?.id.clone()))
        .collect();
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let printed =
        ask(Command::new("hq").args(["job", "info", &ids.join(","), "--output-mode=json"]))?;
    let details: Vec<Details> = read(&printed)?;
    Ok(tasks(details))
}

fn tasks(details: Vec<Details>) -> BTreeMap<(Job, u32), Seen> {
    let all = details.into_iter().flat_map(|details| {
        let of = job(details.info.id);
        details
            .tasks
            .into_iter()
            .map(move |task| ((of.clone(), task.id), seen(task)))
    });
    all.collect()
}

fn seen(task: Task) -> Seen {
    match task.state.as_str() {
        "waiting" => Seen::Waiting("for a worker".to_owned()),
        "running" => {
            let worker = task
                .worker
                .map_or(String::new(), |worker| format!("worker {worker}"));
            Seen::Running(worker)
        }
        "canceled" | "aborted" => Seen::Ended {
            how: "was cancelled".to_owned(),
            may: false,
            lags: false,
        },
        "finished" => Seen::Ended {
            how: "ended, and has left no word".to_owned(),
            may: true,
            lags: true,
        },
        _ => Seen::Ended {
            how: format!(
                "was ended by HyperQueue: {}",
                task.error.unwrap_or(task.state)
            ),
            may: true,
            lags: true,
        },
    }
}

/// How what is queued is cancelled.
pub(super) fn cancel(jobs: &[&Job]) -> String {
    let ids: Vec<&str> = jobs.iter().map(|job| job.id.as_str()).collect();
    format!("hq job cancel {}", ids.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hyperqueue_prints_is_read() {
        assert_eq!(submitted("{\n  \"id\": 3\n}\n").unwrap(), job(3));
        assert!(submitted("{\"error\": \"no server\"}").is_err());
        let printed = r#"[{"info": {"id": 3, "name": "n", "task_count": 3}, "finished_at": null, "tasks": [
            {"id": 0, "state": "running", "worker": 2, "cwd": "/"},
            {"id": 1, "state": "failed", "error": "Time limit reached"},
            {"id": 2, "state": "canceled"}]}]"#;
        let tasks = tasks(read(printed).unwrap());
        assert_eq!(tasks[&(job(3), 0)], Seen::Running("worker 2".to_owned()));
        assert!(
            matches!(&tasks[&(job(3), 1)], Seen::Ended { how, may: true, .. } if how.contains("Time limit"))
        );
        assert!(matches!(
            tasks[&(job(3), 2)],
            Seen::Ended { may: false, .. }
        ));
    }
}
