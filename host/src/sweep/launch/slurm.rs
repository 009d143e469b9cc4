//! Slurm: `sbatch` submits an array, `squeue` tells of its tasks. Nothing asks its database, which not every cluster has, and
//! nothing is read as JSON, which older ones do not write.

use std::collections::BTreeMap;
use std::process::Command;

use schemars::JsonSchema;
use serde::Deserialize;

use super::record::Job;
use super::script::Parts;
use super::{Batch, Seen, Setting, Wrong, ask, given, refused_of};
use crate::error::{Error, Result};

/// What is asked of Slurm for each run. Values are `sbatch`'s own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SlurmConfig {
    /// `--partition`.
    pub partition: Option<Setting>,
    /// `--account`.
    pub account: Option<Setting>,
    /// `--qos`.
    pub qos: Option<Setting>,
    /// `--time`, of one run: "2:00:00", or minutes. A run that takes longer is saved, queued again and goes on.
    pub time: Option<Setting>,
    /// `--cpus-per-task`, which are the threads of recipes that set none.
    pub cpus: Option<Setting>,
    /// `--mem`: "16G", or megabytes.
    pub mem: Option<Setting>,
    /// `--gpus-per-task`: 1, or "a100:1".
    pub gpus: Option<Setting>,
    /// `--gres`, for clusters that have GPUs by it: "gpu:1".
    pub gres: Option<Setting>,
    /// `--signal`: when a run is told to stop before its time is up, "B:USR1@60" by default. It has to be enough for a step and
    /// a checkpoint.
    pub signal: Option<Setting>,
    /// Whether a run that is preempted, whose node dies or whose time is up is queued again, which is the default.
    pub requeue: Option<bool>,
    /// Other arguments of `sbatch`.
    pub args: Vec<String>,
}

/// What the sweep itself says to `sbatch`, and keys of `[slurm]` say.
const OWN: &[&str] = &[
    "-a",
    "--array",
    "-J",
    "--job-name",
    "-o",
    "--output",
    "-e",
    "--error",
    "--open-mode",
    "-W",
    "--wait",
    "--wrap",
    "--parsable",
    "-n",
    "--ntasks",
    "--requeue",
    "--no-requeue",
    "--signal",
    "--test-only",
];

/// How long before its end a run is told, where the sweep says nothing.
const SIGNAL: &str = "B:USR1@60";

pub(super) const PARTS: Parts = Parts {
    head: r#"job=$SLURM_ARRAY_JOB_ID task=$SLURM_ARRAY_TASK_ID
threads=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}"#,
    // What Slurm itself says of a task, mostly nothing.
    begun: r#"
out=$folder/.sweep/slurm-${job}_$task.out
trap '[ -s "$out" ] || rm -f "$out"' EXIT"#,
    // Of what Slurm itself ends it knows what is next: it was preempted, or cancelled. What it has only warned, it is asked to
    // start again, unless nothing was saved in the time that there was.
    told: r#"state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
    [ "$state" = RUNNING ] || exit "$code"
    if [ "$(saved)" = "$before" ]; then
        echo "the time was up before anything new was saved: give it more" >&2
    elif scontrol requeue "$SLURM_JOB_ID"; then
        exec sleep 60
    fi"#,
};

impl SlurmConfig {
    /// What cannot be in it.
    pub(in crate::sweep) fn wrong(&self) -> Option<Wrong> {
        if let Some(signal) = &self.signal
            && !is_signal(&signal.0)
        {
            return Some(Wrong {
                key: "signal",
                message: format!("`signal` is \"{}\"", signal.0),
                help: "the task's own shell is told, which tells the run: \"B:USR1@60\" or \"B:TERM@60\", with the seconds before the end",
            });
        }
        refused_of("sbatch", &self.args, OWN)
    }
}

/// Whether it is one that the script handles: `[R]B:USR1@SECONDS`, or TERM.
fn is_signal(text: &str) -> bool {
    let text = text.strip_prefix('R').unwrap_or(text);
    let Some((signal, seconds)) = text
        .strip_prefix("B:")
        .and_then(|rest| rest.split_once('@'))
    else {
        return false;
    };
    let signal = signal.strip_prefix("SIG").unwrap_or(signal);
    ["USR1", "TERM"].contains(&signal) && seconds.parse::<u16>().is_ok()
}

/// The command that submits.
pub(super) fn command(config: &SlurmConfig, batch: &Batch) -> Command {
    let mut command = Command::new("sbatch");
    let limit = batch
        .limit
        .map_or(String::new(), |limit| format!("%{limit}"));
    let requeue = match config.requeue {
        Some(false) => "--no-requeue",
        _ => "--requeue",
    };
    // A `%` begins what Slurm fills in.
    let folder = batch.folder.display().to_string().replace('%', "%%");
    command
        .arg("--parsable")
        .arg(format!("--job-name={}", batch.name))
        .arg(format!("--array=0-{}{limit}", batch.runs - 1))
        .arg(format!("--output={folder}/slurm-%A_%a.out"))
        .args(["--open-mode=append", requeue, "--ntasks=1"]);
    let signal = config.signal.as_ref().map_or(SIGNAL, |signal| &signal.0);
    command.arg(format!("--signal={signal}"));
    for (flag, value) in [
        ("partition", &config.partition),
        ("account", &config.account),
        ("qos", &config.qos),
        ("time", &config.time),
        ("cpus-per-task", &config.cpus),
        ("mem", &config.mem),
        ("gpus-per-task", &config.gpus),
        ("gres", &config.gres),
    ] {
        given(&mut command, flag, value);
    }
    command.args(&config.args).arg(&batch.script);
    command
}

/// How many tasks an array may have.
pub(super) fn most() -> usize {
    let mut command = Command::new("scontrol");
    let config = ask(command.args(["show", "config"])).unwrap_or_default();
    let line = config
        .lines()
        .find_map(|line| line.strip_prefix("MaxArraySize"));
    let most = line.and_then(|line| line.split('=').nth(1)?.trim().parse().ok());
    most.unwrap_or(1000).clamp(1, 1000)
}

/// The job that `sbatch --parsable` printed: its number, and its cluster where there are several.
pub(super) fn submitted(printed: &str) -> Result<Job> {
    let line = printed.lines().last().unwrap_or_default().trim();
    let (id, cluster) = match line.split_once(';') {
        Some((id, cluster)) => (id, Some(cluster.to_owned())),
        None => (line, None),
    };
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::failure(format!(
            "sbatch printed {printed:?} instead of the number of a job"
        )));
    }
    Ok(Job {
        id: id.to_owned(),
        cluster,
    })
}

/// The job of this name, if there is one.
pub(super) fn find(name: &str) -> Result<Option<Job>> {
    let mut command = queue(None);
    let found = ask(command.arg(format!("--name={name}")).arg("--format=%F"))?;
    let id = found.lines().map(str::trim).find(|line| !line.is_empty());
    Ok(id.map(|id| Job {
        id: id.to_owned(),
        cluster: None,
    }))
}

/// What Slurm knows of the user's tasks, by job and number.
pub(super) fn look(jobs: &[&Job]) -> Result<BTreeMap<(Job, u32), Seen>> {
    let mut clusters: Vec<Option<&String>> = jobs.iter().map(|job| job.cluster.as_ref()).collect();
    clusters.sort();
    clusters.dedup();
    let mut all = BTreeMap::new();
    for cluster in clusters {
        // All of the user's: that one of them is forgotten is not an error then.
        let mut command = queue(cluster);
        let listed = ask(command.args(["--array", "--format=%F|%K|%T|%N|%r"]))?;
        all.extend(listed.lines().filter_map(|line| seen(line, cluster)));
    }
    Ok(all)
}

fn queue(cluster: Option<&String>) -> Command {
    let mut command = Command::new("squeue");
    command.args(["--noheader", "--states=all"]);
    #[cfg(unix)]
    // SAFETY: a system call that takes nothing and cannot fail.
    command.arg(format!("--user={}", unsafe { libc::getuid() }));
    if let Some(cluster) = cluster {
        command.arg(format!("--clusters={cluster}"));
    }
    command
}

/// A line of `squeue`; none if it is not of a task.
fn seen(line: &str, cluster: Option<&String>) -> Option<((Job, u32), Seen)> {
    let parts: Vec<&str> = line.trim().splitn(5, '|').collect();
    let [job, task, state, node, reason] = parts[..] else {
        return None;
    };
    let job = Job {
        id: job.to_owned(),
        cluster: cluster.cloned(),
    };
    let seen = match state {
        "COMPLETED" | "FAILED" => Seen::Ended {
            how: "ended, and has left no word".to_owned(),
            may: true,
            lags: true,
        },
        "CANCELLED" => Seen::Ended {
            how: "was cancelled".to_owned(),
            may: false,
            lags: false,
        },
        "TIMEOUT" | "NODE_FAIL" | "OUT_OF_MEMORY" | "BOOT_FAIL" | "DEADLINE" | "PREEMPTED"
        | "REVOKED" => Seen::Ended {
            how: format!("was ended by Slurm ({state})"),
            may: true,
            lags: false,
        },
        "PENDING" | "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "SPECIAL_EXIT" => {
            Seen::Waiting(reason.trim_matches(['(', ')']).to_owned())
        }
        // Any other of a task that has begun and not ended.
        _ => Seen::Running(node.to_owned()),
    };
    Some(((job, task.parse().ok()?), seen))
}

/// How what is queued is cancelled.
pub(super) fn cancel(jobs: &[&Job]) -> String {
    let mut words = vec!["scancel".to_owned()];
    if let Some(cluster) = jobs.iter().find_map(|job| job.cluster.as_ref()) {
        words.push(format!("--clusters={cluster}"));
    }
    words.extend(jobs.iter().map(|job| job.id.clone()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_slurm_prints_is_read() {
        let job = |id: &str, cluster: Option<&str>| Job {
            id: id.to_owned(),
            cluster: cluster.map(str::to_owned),
        };
        assert_eq!(submitted("12\n").unwrap(), job("12", None));
        assert_eq!(submitted("12;west\n").unwrap(), job("12", Some("west")));
        assert!(submitted("").is_err() && submitted("Submitted batch job 12").is_err());

        let one = |line: &str| seen(line, None);
        let task = (job("7", None), 3);
        assert_eq!(
            one("7|3|PENDING||Nodes required for job are DOWN, DRAINED or reserved"),
            Some((
                task.clone(),
                Seen::Waiting("Nodes required for job are DOWN, DRAINED or reserved".to_owned())
            ))
        );
        for state in [
            "RUNNING",
            "COMPLETING",
            "CONFIGURING",
            "SUSPENDED",
            "ANYTHING_NEW",
        ] {
            let line = format!("7|3|{state}|n1|None");
            assert_eq!(
                one(&line),
                Some((task.clone(), Seen::Running("n1".to_owned())))
            );
        }
        for (state, again) in [("CANCELLED", false), ("TIMEOUT", true), ("FAILED", true)] {
            let line = format!("7|3|{state}|n1|None");
            assert!(matches!(one(&line), Some((_, Seen::Ended { may, .. })) if may == again));
        }
        // Jobs that are no arrays, and the heading of a cluster.
        assert_eq!(one("4|N/A|PENDING||Resources"), None);
        assert_eq!(one("CLUSTER: west"), None);
    }

    #[test]
    fn only_signals_that_reach_the_shell_are_taken() {
        for right in ["B:USR1@60", "B:TERM@120", "RB:SIGUSR1@30"] {
            assert!(is_signal(right), "{right}");
        }
        for wrong in ["USR1@60", "B:USR2@60", "B:USR1", "B:KILL@60", ""] {
            assert!(!is_signal(wrong), "{wrong}");
        }
        let config = |args: &[&str]| SlurmConfig {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..SlurmConfig::default()
        };
        assert!(
            config(&["--constraint", "a100", "--exclude=n1"])
                .wrong()
                .is_none()
        );
        for own in ["--array=0-3", "-J", "--signal=B:USR1@5", "-otext"] {
            assert!(config(&[own]).wrong().is_some(), "{own}");
        }
    }
}
