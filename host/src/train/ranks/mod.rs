//! One run trained by several processes: the ranks of MPI's world. Each runs its share of every batch, and what their steps
//! are made of is summed over them, so that all hold the same parameters and the same masks. The first of them alone asks
//! plugins and writes the run.
//!
//! What a rank does depends on nothing that the others do not know: what each measures of itself (a clock, a signal, a file)
//! is [said](Ranks::told) by the first, or rides in the next [sum](Ranks::sum). So all come to the same calls in the same order.

mod carrier;
#[cfg_attr(feature = "mpi", path = "mpi.rs")]
#[cfg_attr(not(feature = "mpi"), path = "none.rs")]
mod group;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::stop::{Signal, Stop};
use crate::error::{Error, Result};
use crate::run::Reduction;
use group::Group;

/// How launchers say how many processes they have started: Open MPI's, those that speak PMI (MPICH's, Intel's), and Slurm's.
const LAUNCHERS: [(&str, &str); 3] = [
    ("OMPI_COMM_WORLD_SIZE", "mpirun"),
    ("PMI_SIZE", "mpiexec"),
    ("SLURM_STEP_NUM_TASKS", "srun"),
];

/// How long others are waited for by one that was told to end: launchers kill a second after they have said so.
const GRACE: Duration = Duration::from_millis(250);

/// The processes that train one run, as one of them sees them.
#[derive(Clone, Default)]
pub struct Ranks(Option<Arc<Joined>>);

struct Joined {
    group: Group,
    stop: Stop,
    /// Whether the others were waited for in vain, or MPI has failed.
    gave_up: AtomicBool,
    /// The signal that one of them has got, by its number, as all know since the last sum.
    asked: AtomicUsize,
    /// What the last sum came to here.
    digest: AtomicU32,
    /// Nanoseconds spent in sums, and bytes summed.
    spent: [AtomicU64; 2],
}

/// The launcher and how many processes it has started with this one; none where it is one, or nobody says.
pub fn launched() -> Option<(&'static str, usize)> {
    let said = LAUNCHERS.iter().find_map(|(variable, launcher)| {
        let count = std::env::var(variable).ok()?.trim().parse().ok()?;
        Some((*launcher, count))
    });
    said.filter(|(_, count)| *count > 1)
}

impl Ranks {
    /// One process.
    pub fn alone() -> Self {
        Ranks(None)
    }

    /// Joins the other processes that were started with this one, if there are any.
    pub fn join() -> Result<Self> {
        let Some((launcher, count)) = launched() else {
            return Ok(Ranks::alone());
        };
        let stop = Stop::listen()?;
        let group = Group::join(launcher, count)?;
        if group.count() != count {
            return Err(Error::user(format!(
                "{launcher} has started {count} processes, but MPI knows of {}: each would train the whole run",
                group.count()
            ))
            .help(
                "start them with the launcher of the MPI that this program was built with; under Slurm, with the plugin \
                 that this MPI knows, such as `srun --mpi=pmix` (`srun --mpi=list` lists them)",
            ));
        }
        Ok(Ranks(Some(Arc::new(Joined {
            group,
            stop,
            gave_up: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            digest: AtomicU32::new(0),
            spent: Default::default(),
        }))))
    }

    /// Which of them this is, from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |joined| joined.group.rank())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.as_ref().map_or(1, |joined| joined.group.count())
    }

    /// Whether this is the one that asks plugins and writes the run.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// With how many threads this rank computes by default: its part of the cores that it may use, which others on its
    /// machine may use as well. None leaves it to a process that is alone.
    pub fn threads(&self) -> Option<usize> {
        let joined = self.0.as_ref()?;
        Some((joined.group.cores() as usize).max(1))
    }

    /// What the first rank says. An error there is nobody else's: it ends all.
    pub fn told<T: Serialize + DeserializeOwned>(
        &self,
        say: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(joined) = &self.0 else {
            return say();
        };
        if self.leads() {
            let value = say()?;
            let bytes = serde_json::to_vec(&value).map_err(unreadable)?;
            // Who gives up knows what it says.
            return joined.broadcast(bytes).map(|_| value);
        }
        let bytes = joined.broadcast(Vec::new())?;
        let bytes = bytes.ok_or_else(|| joined.in_vain())?;
        serde_json::from_slice(&bytes).map_err(unreadable)
    }

    /// Makes `values`, of which each rank has as many, their sums over the ranks: the same bits on all of them.
    pub fn sum(&self, values: &mut Vec<f32>) -> Result<()> {
        let Some(joined) = &self.0 else {
            return Ok(());
        };
        let began = Instant::now();
        let (len, count) = (values.len(), self.count() as f32);
        let signal = joined.stop.signal();
        values.extend(Signal::all().map(|it| f32::from(u8::from(signal == Some(it)))));
        // So small that their sums over very many ranks are exact.
        let digest = joined.digest.load(Relaxed);
        let digest = [digest & 0xfff, (digest >> 12) & 0xfff].map(|part| part as f32);
        values.extend(digest);
        let bytes = size_of_val(&values[..]) as u64;
        let sums = joined.group.sum(std::mem::take(values), joined.gives_up());
        let Some(mut sums) = sums.inspect_err(|_| joined.gave_up.store(true, Relaxed))? else {
            joined.gave_up.store(true, Relaxed);
            return Err(joined.in_vain());
        };
        let mut riding = sums.split_off(len).into_iter();
        for signal in Signal::all() {
            if riding.next().is_some_and(|asked| asked > 0.0) {
                joined.asked.store(signal.0 as usize, Relaxed);
            }
        }
        if !riding.eq(digest.map(|part| part * count)) {
            return Err(Error::failure(format!(
                "rank {} was given another sum than other ranks: they would no longer train the same model",
                self.rank()
            ))
            .help("choose an algorithm of your MPI's allreduce that gives all ranks the same, and --resume"));
        }
        joined.digest.store(digest_of(&sums), Relaxed);
        *values = sums;
        let spent = [began.elapsed().as_nanos() as u64, bytes];
        for (sum, more) in joined.spent.iter().zip(spent) {
            sum.fetch_add(more, Relaxed);
        }
        Ok(())
    }

    /// The totals of these numbers over the ranks.
    pub fn total<const N: usize>(&self, numbers: [u64; N]) -> Result<[u64; N]> {
        if self.count() == 1 {
            return Ok(numbers);
        }
        // Byte by byte: sums of those are exact.
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
        let mut bytes: Vec<f32> = bytes.map(f32::from).collect();
        self.sum(&mut bytes)?;
        let mut sums = bytes.chunks(size_of::<u64>());
        Ok(numbers.map(|_| {
            let bytes = sums.next().unwrap_or_default().iter().rev();
            bytes.fold(0u64, |sum, byte| (sum << 8).wrapping_add(*byte as u64))
        }))
    }

    /// The lists of all ranks, of which each rank has as many, each end to end in the order of the ranks.
    pub fn end_to_end(&self, lists: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        let (rank, count) = (self.rank(), self.count());
        let mut lens = vec![0.0; lists.len() * count];
        for (list, lens) in lists.iter().zip(lens.chunks_mut(count)) {
            lens[rank] = list.len() as f32;
        }
        self.sum(&mut lens)?;
        let mut all = Vec::new();
        for (list, lens) in lists.iter().zip(lens.chunks(count)) {
            let lens: Vec<usize> = lens.iter().map(|len| *len as usize).collect();
            let mut whole = vec![0.0; lens.iter().sum()];
            let first = lens[..rank].iter().sum();
            whole[first..first + list.len()].copy_from_slice(list);
            self.sum(&mut whole)?;
            all.push(whole);
        }
        Ok(all)
    }

    /// The signal that asks the run to stop: where there are several ranks, the one that all of them know of.
    pub fn asked(&self, stop: &Stop) -> Option<Signal> {
        match &self.0 {
            None => stop.signal(),
            Some(joined) => match joined.asked.load(Relaxed) {
                0 => None,
                number => Some(Signal(number as i32)),
            },
        }
    }

    /// Whether the other ranks can no longer be waited for: they were in vain, or MPI has failed.
    pub fn is_cut_off(&self) -> bool {
        let joined = self.0.as_ref();
        joined.is_some_and(|joined| joined.gave_up.load(Relaxed))
    }

    /// The signal after which the other ranks were waited for in vain: one of them has died, or hangs.
    pub fn gave_up(&self) -> Option<Signal> {
        let joined = self.0.as_ref()?;
        let signal = joined.stop.signal();
        signal.filter(|_| joined.gave_up.load(Relaxed))
    }

    /// What reducing has taken in this process; none of one that is alone.
    pub fn reduction(&self) -> Option<Reduction> {
        let joined = self.0.as_ref()?;
        let [nanoseconds, bytes] = joined.spent.each_ref().map(|it| it.load(Relaxed));
        Some(Reduction {
            ranks: self.count(),
            seconds: nanoseconds as f64 / 1e9,
            bytes,
        })
    }

    /// Whether a signal comes within `time`.
    pub fn is_ended_within(&self, time: Duration) -> bool {
        let began = Instant::now();
        let asked = || self.0.as_ref().and_then(|joined| joined.stop.signal());
        while asked().is_none() && began.elapsed() < time {
            std::thread::sleep(Duration::from_millis(5));
        }
        asked().is_some()
    }

    /// Leaves the others in order, once all do.
    pub fn leave(&self) {
        if let Some(joined) = &self.0 {
            joined.group.leave();
        }
    }

    /// Ends all ranks, this one included, with an exit code.
    pub fn abort(&self, code: u8) {
        if let Some(joined) = &self.0 {
            joined.group.abort(code);
        }
    }
}

impl Joined {
    /// Whether waiting is over: some time after a signal that a second one, or a kill, follows.
    fn gives_up(&self) -> impl FnMut() -> bool {
        let mut since = None;
        move || {
            let ends = self
                .stop
                .signal()
                .is_some_and(|signal| !signal.is_patient());
            let told = ends.then(|| *since.get_or_insert_with(Instant::now));
            let already = self.gave_up.load(Relaxed);
            told.is_some_and(|told: Instant| already || told.elapsed() >= GRACE)
        }
    }

    /// What the first rank sends; none where it was waited for in vain.
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Option<Vec<u8>>> {
        const FIRST: usize = 512;
        const LEN: usize = size_of::<u64>();
        let mut first = vec![0; FIRST];
        first[..LEN].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        let here = bytes.len().min(FIRST - LEN);
        first[LEN..LEN + here].copy_from_slice(&bytes[..here]);
        let rest = bytes[here..].to_vec();
        let Some(first) = self.send(first)? else {
            return Ok(None);
        };
        let len = first[..LEN]
            .iter()
            .rev()
            .fold(0, |len, byte| len << 8 | usize::from(*byte));
        let here = len.min(FIRST - LEN);
        let mut whole = first[LEN..LEN + here].to_vec();
        if len > here {
            let rest = match rest.is_empty() {
                true => vec![0; len - here],
                false => rest,
            };
            let Some(rest) = self.send(rest)? else {
                return Ok(None);
            };
            whole.extend(rest);
        }
        Ok(Some(whole))
    }

    fn send(&self, bytes: Vec<u8>) -> Result<Option<Vec<u8>>> {
        let sent = self.group.broadcast(bytes, self.gives_up());
        let sent = sent.inspect_err(|_| self.gave_up.store(true, Relaxed))?;
        if sent.is_none() {
            self.gave_up.store(true, Relaxed);
        }
        Ok(sent)
    }

    fn in_vain(&self) -> Error {
        let signal = self.stop.signal().map_or(0, |signal| signal.0);
        Error::interrupted(
            signal,
            format!(
                "stopped by {} while waiting for other ranks, of which one has ended or hangs",
                Signal(signal)
            ),
        )
    }
}

/// A digest of a sum: what is no number counts as the same, for which one it is may differ.
fn digest_of(values: &[f32]) -> u32 {
    let bits = values.iter().map(|value| match value.is_nan() {
        true => 1,
        false => value.to_bits(),
    });
    let mixed = bits.fold(0u32, |digest, bits| {
        (digest.rotate_left(5) ^ bits).wrapping_mul(0x9e37_79b9)
    });
    mixed >> 8
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::failure("what the first rank says cannot be written or read").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_alone_has_nobody_to_ask() {
        let ranks = Ranks::alone();
        assert_eq!((ranks.rank(), ranks.count(), ranks.leads()), (0, 1, true));
        assert_eq!(ranks.told(|| Ok(7)).expect("its own"), 7);
        let mut values = vec![1.5, f32::NAN];
        ranks.sum(&mut values).expect("nothing to do");
        assert_eq!((values[0], values.len()), (1.5, 2));
        assert!(ranks.reduction().is_none() && ranks.threads().is_none());
    }

    #[test]
    fn digests_tell_sums_apart() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32).sin()).collect();
        let digest = digest_of(&values);
        let mut other = values.clone();
        other[500] = f32::from_bits(other[500].to_bits() ^ 1);
        assert_ne!(digest, digest_of(&other));
        assert_eq!(digest_of(&[f32::NAN]), digest_of(&[-f32::NAN]));
        assert!(digest < 1 << 24);
    }
}
