//! Mutated files of every kind that comes from outside: nothing panics, aborts, hangs or takes memory beyond
//! its size. The cases run in a process of their own, which a wild one may end.
//!
//! `DYNALORA_MUTATIONS` is the number of cases of each kind (of the checkpoint, which takes a process each, one in
//! forty), `DYNALORA_MUTATIONS_FROM` the first; `DYNALORA_MUTATIONS_ONLY=Config` names one kind. A case is a function
//! of its kind and number; `DYNALORA_MUTATIONS_SAVE=folder` keeps those that fail.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dynalora_tests::entries::{ENTRIES, Entry, mutate};

/// A case may take so many times its file's bytes,
const FACTOR: usize = 64;
/// and so much beside, whatever its size: the model that an adapter is laid beside, a tokenizer's tables.
const BESIDE: usize = 96 << 20;
/// No case comes near it; an allocation beyond it fails, which ends the process.
const CAP: usize = 2 << 30;
/// A case takes milliseconds.
const SLOWEST: Duration = Duration::from_secs(20);

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting.
struct Counting;

// SAFETY: every call goes to the system's allocator, or fails as an allocation may.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW
            .fetch_add(layout.size(), Ordering::Relaxed)
            .saturating_add(layout.size());
        if now > CAP {
            NOW.fetch_sub(layout.size(), Ordering::Relaxed);
            return std::ptr::null_mut();
        }
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: what `alloc` gave.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The file in which a worker says at which case it is.
const CASE: &str = "DYNALORA_MUTATIONS_CASE";
/// Which cases a worker takes: kind, first and last.
const WORK: &str = "DYNALORA_MUTATIONS_WORK";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

#[test]
fn mutated_files_are_taken_or_refused() {
    let (count, from) = (
        number("DYNALORA_MUTATIONS", 1500),
        number("DYNALORA_MUTATIONS_FROM", 0),
    );
    let only = std::env::var("DYNALORA_MUTATIONS_ONLY").unwrap_or_default();
    dynalora_tests::built();
    let mut failures = Vec::new();
    for entry in ENTRIES {
        if !only.is_empty() && format!("{entry:?}") != only {
            continue;
        }
        let count = if entry == Entry::Checkpoint {
            count.div_ceil(40)
        } else {
            count
        };
        let (mut next, end, started) = (from, from + count, Instant::now());
        let (mut taken, mut worst) = (0, 0);
        while next < end {
            let ended = work(entry, next, end);
            for line in ended.said.lines() {
                if let Some(wrong) = line.strip_prefix("WRONG ") {
                    failures.push(wrong.to_owned());
                } else if let Some(numbers) = line.strip_prefix("DONE ") {
                    let mut numbers = numbers.split(' ').map(|n| n.parse::<u64>().unwrap_or(0));
                    next = numbers.next().unwrap_or(0) + 1;
                    taken += numbers.next().unwrap_or(0);
                    worst = worst.max(numbers.next().unwrap_or(0));
                }
            }
            if next < end {
                let case = ended
                    .case
                    .unwrap_or_else(|| panic!("{entry:?}, before any case: {}", ended.how));
                failures.push(format!("{entry:?} {case}: {}", ended.how));
                next = case + 1;
            }
        }
        println!(
            "{entry:?}: {count} cases in {:.1} s, {taken} taken, {:.1} MiB at most",
            started.elapsed().as_secs_f64(),
            worst as f64 / 1048576.0
        );
    }
    assert!(
        failures.is_empty(),
        "{} cases are neither taken nor refused:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

struct WorkerEnd {
    said: String,
    how: String,
    /// The last case that was begun.
    case: Option<u64>,
}

fn work(entry: Entry, from: u64, to: u64) -> WorkerEnd {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let case = folder.path().join("case");
    let mut child = Command::new(std::env::current_exe().expect("a test knows its own path"))
        .args([
            "--exact",
            "worker",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(WORK, format!("{entry:?} {from} {to}"))
        .env(CASE, &case)
        .env("RUST_BACKTRACE", "0")
        .env("DYNALORA_CACHE", folder.path().join("cache"))
        .env("RAYON_NUM_THREADS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a worker starts");
    let mut said = child.stdout.take().expect("its output");
    let mut errors = child.stderr.take().expect("its errors");
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut errors, &mut text).expect("errors");
        String::from_utf8_lossy(&text).into_owned()
    });
    let (send, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let reader = std::io::BufReader::new(&mut said);
        for line in std::io::BufRead::lines(reader).map_while(Result::ok) {
            let _ = send.send(line);
        }
    });
    let mut text = String::new();
    let slow = loop {
        match lines.recv_timeout(SLOWEST + Duration::from_secs(20)) {
            Ok(line) => text.push_str(&(line + "\n")),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break false,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                child.kill().expect("it can be killed");
                break true;
            }
        }
    };
    let status = child.wait().expect("it ends");
    let errors = errors.join().expect("errors");
    let last: Vec<&str> = errors.lines().rev().take(6).collect();
    let how = if slow {
        "hangs".to_owned()
    } else {
        format!(
            "ends the process ({status}): {}",
            last.into_iter().rev().collect::<Vec<_>>().join(" | ")
        )
    };
    let case = std::fs::read_to_string(case).unwrap_or_default();
    let case = case.parse().ok();
    WorkerEnd {
        said: text,
        how,
        case,
    }
}

/// Writes the good files to the folder that `DYNALORA_MUTATIONS_SEEDS` names: cargo-fuzz's first corpus.
#[test]
#[ignore = "writes the corpus of cargo-fuzz where it is told to"]
fn seeds() {
    let Some(corpus) = std::env::var_os("DYNALORA_MUTATIONS_SEEDS") else {
        return;
    };
    let corpus = dynalora_tests::package().join("..").join(corpus);
    for entry in ENTRIES {
        let place = tempfile::tempdir().expect("a temporary folder");
        entry.prepare(place.path());
        // `AdapterConfig` is the target `adapter_config`.
        let mut name = String::new();
        for c in format!("{entry:?}").chars() {
            if c.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.extend(c.to_lowercase());
        }
        let folder = corpus.join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        for (n, seed) in entry.seeds(place.path()).iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{n}")), seed).expect("a seed");
        }
    }
}

/// Takes the cases that the environment names, in a process that may end at any of them.
#[test]
#[ignore = "run by the test above, in a process of its own"]
fn worker() {
    let Ok(work) = std::env::var(WORK) else {
        return;
    };
    let words: Vec<&str> = work.split(' ').collect();
    let entry = Entry::named(words[0]).expect("a kind");
    let [from, to] = [words[1], words[2]].map(|word| word.parse::<u64>().expect("a number"));
    // Memory, so that a million small files are no work for a disk.
    let shm = Path::new("/dev/shm");
    let folder = if shm.is_dir() {
        tempfile::tempdir_in(shm)
    } else {
        tempfile::tempdir()
    };
    let folder = folder.expect("a temporary folder");
    entry.prepare(folder.path());
    let seeds = entry.seeds(folder.path());
    let said = entry.take(folder.path(), &seeds[0]);
    assert!(said.is_ok(), "{entry:?}: a good file is refused: {said:?}");
    std::panic::set_hook(Box::new(|_| {}));
    let here = std::env::var(CASE).expect("where to say which case it is");
    let every = if entry == Entry::Checkpoint { 1 } else { 250 };
    let (mut taken, mut worst, mut told) = (0, 0, Instant::now());
    for case in from..to {
        let bytes = mutate(&seeds, entry.is_text(), case);
        let before = NOW.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let began = Instant::now();
        if case > from && (case % every == 0 || told.elapsed() > Duration::from_secs(1)) {
            println!("DONE {} {taken} {worst}", case - 1);
            (taken, told) = (0, Instant::now());
        }
        // Whatever ends the process, the parent knows which one it was.
        std::fs::write(&here, format!("{case}")).expect("a temporary file");
        let result = std::panic::catch_unwind(|| entry.take(folder.path(), &bytes));
        let used = PEAK.load(Ordering::Relaxed).saturating_sub(before);
        let wrong = match &result {
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text
                    .or(panic.downcast_ref::<&str>().copied())
                    .unwrap_or("?");
                Some(format!("panics: {}", text.replace('\n', " | ")))
            }
            Ok(_) if used > BESIDE + FACTOR * bytes.len() => Some(format!(
                "takes {} MiB for {} bytes",
                used >> 20,
                bytes.len()
            )),
            Ok(_) if began.elapsed() > SLOWEST => {
                Some(format!("takes {:.0} s", began.elapsed().as_secs_f64()))
            }
            Ok(_) => None,
        };
        taken += u64::from(matches!(result, Ok(Ok(()))));
        worst = worst.max(used);
        if let Some(wrong) = wrong {
            println!("WRONG {entry:?} {case}: {wrong}");
            if let Some(folder) = std::env::var_os("DYNALORA_MUTATIONS_SAVE") {
                let file = Path::new(&folder).join(format!("{entry:?}-{case}"));
                std::fs::write(file, &bytes).expect("a file to save to");
            }
        }
    }
    println!("DONE {} {taken} {worst}", to - 1);
}
