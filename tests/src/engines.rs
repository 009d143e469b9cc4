//! Engines that run a sweep's runs, the real ones: a Slurm of three nodes and a HyperQueue of some workers on this machine, each
//! in a folder of its own and gone with its value.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::skip;

/// Slurm's daemons, with the nodes `n1`, `n2` and `n3` of one core and one GPU each, in the partition `low` and in `high`, whose
/// jobs preempt those of `low`.
pub struct Slurm {
    folder: TempDir,
    daemons: Vec<(String, Child)>,
}

impl Slurm {
    /// Starts it, unless it is [skipped](skip).
    pub fn start() -> Option<Slurm> {
        for program in ["munged", "slurmctld", "slurmd", "sbatch", "setpriv"] {
            if let Err(error) = Command::new(program).arg("--help").output() {
                return skip(
                    "slurm",
                    format_args!("{program} cannot be started: {error}"),
                );
            }
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut slurm = Slurm {
            folder,
            daemons: Vec::new(),
        };
        slurm.munge();
        let conf = slurm.path("slurm.conf");
        std::fs::write(&conf, slurm.conf()).expect("a temporary file");
        let gpus = "Name=gpu File=/dev/null\n";
        std::fs::write(slurm.path("gres.conf"), gpus).expect("a temporary file");
        slurm.daemon("slurmctld", "slurmctld", &["-D", "-i", "-c"]);
        for node in NODES {
            slurm.daemon(node, "slurmd", &["-D", "-c", "-N", node]);
        }
        let idle = || slurm.said("sinfo", &["-h", "-p", "low", "-t", "idle", "-o", "%D"]);
        wait("three idle nodes", 30, || idle().trim() == "3");
        Some(slurm)
    }

    /// Where its commands find it.
    pub fn conf_path(&self) -> PathBuf {
        self.path("slurm.conf")
    }

    /// Runs one of its commands, and returns what that printed.
    pub fn said(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program, arguments).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs one of its commands, which must succeed.
    pub fn ok(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program, arguments).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// One of its commands.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("SLURM_CONF", self.conf_path());
        command
    }

    /// Its tasks at work: their job's and their own number, and their nodes.
    pub fn running(&self) -> Vec<(String, String)> {
        let listed = self.said("squeue", &["-h", "-r", "-t", "running", "-o", "%i %N"]);
        let lines = listed.lines().filter_map(|line| line.split_once(' '));
        lines
            .map(|(task, node)| (task.to_owned(), node.to_owned()))
            .collect()
    }

    /// A node is gone: its daemon and all that it ran, at once.
    pub fn lose(&mut self, node: &str) {
        let at = self.daemons.iter().position(|(name, _)| name == node);
        let (_, mut daemon) = self.daemons.remove(at.expect("a node"));
        daemon.kill().expect("it can be killed");
        daemon.wait().expect("it ends");
        let of_node = format!("SLURMD_NODENAME={node}");
        let tasks = self.processes(&of_node);
        // Who would tell of their end first.
        for parent in tasks.iter().filter_map(|task| parent(*task)) {
            if std::fs::read_to_string(format!("/proc/{parent}/cmdline"))
                .is_ok_and(|line| line.starts_with("slurmstepd"))
            {
                kill(parent);
            }
        }
        tasks.into_iter().for_each(kill);
        let down = [
            "update",
            &format!("nodename={node}"),
            "state=down",
            "reason=gone",
        ];
        self.ok("scontrol", &down);
    }

    /// Ours, of those whose environment has this.
    fn processes(&self, with: &str) -> Vec<u32> {
        let conf = format!("SLURM_CONF={}", self.conf_path().display());
        let has = |environment: &[u8], entry: &str| {
            environment
                .split(|byte| *byte == 0)
                .any(|own| own == entry.as_bytes())
        };
        let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers
            .filter(|number: &u32| *number != std::process::id())
            .filter(|number| {
                let environment = std::fs::read(format!("/proc/{number}/environ"));
                environment
                    .is_ok_and(|own| has(&own, &conf) && (with.is_empty() || has(&own, with)))
            })
            .collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn munge(&mut self) {
        let key = self.path("munge.key");
        let bytes: Vec<u8> = (0..1024u32).map(|n| (n * 37 % 251) as u8).collect();
        std::fs::write(&key, bytes).expect("a temporary file");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("modes");
        }
        let mut arguments = vec!["--foreground".to_owned(), "--force".to_owned()];
        for (flag, file) in [
            ("key-file", "munge.key"),
            ("socket", "munge.sock"),
            ("pid-file", "munge.pid"),
            ("log-file", "munge.log"),
            ("seed-file", "munge.seed"),
        ] {
            arguments.push(format!("--{flag}={}", self.path(file).display()));
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.daemon("munged", "munged", &arguments);
        wait("munge's socket", 10, || self.path("munge.sock").exists());
    }

    fn conf(&self) -> String {
        let folder = self.folder.path().display();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
        let host = host
            .trim()
            .split('.')
            .next()
            .unwrap_or("localhost")
            .to_owned();
        let user = Command::new("id").arg("-un").output().expect("id");
        let user = String::from_utf8_lossy(&user.stdout).trim().to_owned();
        let ports = free_ports::<4>();
        let nodes: String = (NODES.iter().zip(&ports[1..]))
            .map(|(node, port)| {
                format!("NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=1000 Gres=gpu:1\n")
            })
            .collect();
        format!(
            "ClusterName=test\n\
             SlurmctldHost={host}(127.0.0.1)\n\
             SlurmctldPort={port}\n\
             AuthType=auth/munge\n\
             CryptoType=crypto/munge\n\
             AuthInfo=socket={folder}/munge.sock,cred_expire=5\n\
             SlurmUser={user}\n\
             SlurmdUser={user}\n\
             StateSaveLocation={folder}/state\n\
             SlurmdSpoolDir={folder}/spool-%n\n\
             SlurmctldPidFile={folder}/slurmctld.pid\n\
             SlurmdPidFile={folder}/slurmd-%n.pid\n\
             SlurmctldLogFile={folder}/slurmctld.log\n\
             SlurmdLogFile={folder}/slurmd-%n.log\n\
             ProctrackType=proctrack/linuxproc\n\
             TaskPlugin=task/none\n\
             JobAcctGatherType=jobacct_gather/none\n\
             AccountingStorageType=accounting_storage/none\n\
             MpiDefault=none\n\
             MailProg=/bin/true\n\
             SelectType=select/cons_tres\n\
             SelectTypeParameters=CR_CPU\n\
             SchedulerParameters=bf_interval=1,sched_interval=1\n\
             PreemptType=preempt/partition_prio\n\
             PreemptMode=REQUEUE\n\
             KillWait=20\n\
             GresTypes=gpu\n\
             {nodes}\
             PartitionName=low Nodes=n[1-3] Default=YES PriorityTier=1 State=UP\n\
             PartitionName=high Nodes=n[1-3] PriorityTier=10 PreemptMode=OFF State=UP\n",
            port = ports[0],
        )
    }

    fn daemon(&mut self, name: &str, program: &str, arguments: &[&str]) {
        let log = std::fs::File::create(self.path(&format!("{name}.out"))).expect("a log");
        let mut command = until_we_end(program);
        command.args(arguments).env("SLURM_CONF", self.conf_path());
        let errors = log.try_clone().expect("a log");
        let started = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn();
        self.daemons
            .push((name.to_owned(), started.expect("it starts")));
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("slurmctld.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "slurmctld's last words:\n{}",
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
        for (_, daemon) in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // What the nodes ran, and who watched it.
        self.processes("").into_iter().for_each(kill);
    }
}

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// HyperQueue's server, and workers of one core each.
pub struct Hq {
    folder: TempDir,
    server: Child,
    workers: Vec<Child>,
}

impl Hq {
    /// Starts it with so many workers, unless it is [skipped](skip).
    pub fn start(workers: usize) -> Option<Hq> {
        if let Err(error) = Command::new("hq").arg("--version").output() {
            return skip("hq", format_args!("hq cannot be started: {error}"));
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let server = process(&folder, &["server", "start"]);
        let mut hq = Hq {
            folder,
            server,
            workers: Vec::new(),
        };
        wait("a server", 20, || {
            let asked = hq.command(&["server", "info"]).output();
            asked.is_ok_and(|asked| asked.status.success())
        });
        for _ in 0..workers {
            hq.add_worker();
        }
        Some(hq)
    }

    /// Where its commands find it.
    pub fn server_dir(&self) -> PathBuf {
        self.folder.path().join("server")
    }

    /// One of its commands.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("hq");
        command
            .args(arguments)
            .env("HQ_SERVER_DIR", self.server_dir());
        command
    }

    /// One worker more.
    pub fn add_worker(&mut self) {
        let worker = process(&self.folder, &["worker", "start", "--cpus=1"]);
        self.workers.push(worker);
    }

    /// The first worker is gone at once.
    pub fn lose_worker(&mut self) {
        let mut worker = self.workers.remove(0);
        worker.kill().expect("it can be killed");
        worker.wait().expect("it ends");
    }
}

fn process(folder: &TempDir, arguments: &[&str]) -> Child {
    let mut command = until_we_end("hq");
    command
        .args(arguments)
        .env("HQ_SERVER_DIR", folder.path().join("server"));
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    quiet.spawn().expect("hq starts")
}

impl Drop for Hq {
    fn drop(&mut self) {
        for process in self.workers.iter_mut().chain([&mut self.server]) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A program that is killed with the thread that starts it, should that end without its `Drop`.
fn until_we_end(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

fn free_ports<const N: usize>() -> [u16; N] {
    // All at once, so that they differ.
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|socket| socket.local_addr().expect("its address").port())
}

/// Waits until it is so.
pub fn wait(what: &str, seconds: u64, mut so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(
            since.elapsed() < Duration::from_secs(seconds),
            "no {what} within {seconds} seconds"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn parent(process: u32) -> Option<u32> {
    let line = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = line.rsplit_once(") ")?;
    fields.split(' ').nth(1)?.parse().ok()
}

fn kill(process: u32) {
    let _ = Command::new("kill")
        .arg("-KILL")
        .arg(process.to_string())
        .stderr(Stdio::null())
        .status();
}
