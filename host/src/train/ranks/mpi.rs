//! The world of the system's MPI. Nothing waits without an end: a rank that was told to stop must be able to save, although
//! another that it waits for has died.

use std::ffi::{c_char, c_int, c_void};
use std::time::{Duration, Instant};

use ::mpi::Threading;
use ::mpi::environment::initialize_with_threading;
use ::mpi::ffi;

use crate::error::{Error, Result};

/// For so long it is asked without a pause whether a call has come to its end, which few take longer for.
const WITHOUT_PAUSE: Duration = Duration::from_millis(20);
/// How long a pause is.
const PAUSE: Duration = Duration::from_micros(200);
/// The CPUs that are told apart.
const MOST_CPUS: usize = 1024;

/// All ranks.
pub struct Group {
    rank: usize,
    count: usize,
    cores: f64,
}

impl Group {
    /// Starts MPI, of which `launcher` has started `count` ranks.
    pub fn join(launcher: &str, count: usize) -> Result<Self> {
        // One call at a time, from whichever thread trains.
        let Some((universe, given)) = initialize_with_threading(Threading::Serialized) else {
            return Err(Error::failure("MPI was started before"));
        };
        // It would end MPI when it is dropped, which only a run that has gone well may do.
        std::mem::forget(universe);
        if given < Threading::Serialized {
            return Err(Error::user(format!(
                "{launcher} has started {count} processes, but this MPI can be called by the thread alone that starts it"
            ))
            .help("build the program with an MPI that gives MPI_THREAD_SERIALIZED, as Open MPI and MPICH do"));
        }
        let (mut rank, mut known) = (0, 0);
        // SAFETY: MPI runs, its constants are set, and the two numbers live until the calls return.
        unsafe {
            let world = ffi::RSMPI_COMM_WORLD;
            check(ffi::MPI_Comm_set_errhandler(
                world,
                ffi::RSMPI_ERRORS_RETURN,
            ))?;
            check(ffi::MPI_Comm_rank(world, &raw mut rank))?;
            check(ffi::MPI_Comm_size(world, &raw mut known))?;
        }
        Ok(Group {
            rank: rank as usize,
            count: known as usize,
            cores: cores()?,
        })
    }

    /// Which of them this is.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// This rank's part of the cores that it may use.
    pub fn cores(&self) -> f64 {
        self.cores
    }

    /// The sums of `values` over all ranks; none where it `gives_up` before they are there.
    pub fn sum(
        &self,
        values: Vec<f32>,
        gives_up: impl FnMut() -> bool,
    ) -> Result<Option<Vec<f32>>> {
        let mut sums = vec![0.0f32; values.len()];
        let (from, to) = (values.as_ptr().cast(), sums.as_mut_ptr().cast());
        let len = length(values.len())?;
        // SAFETY: two buffers of this length, which live until the call has ended: `ended` says so, or they are leaked.
        let started = |request: *mut ffi::MPI_Request| unsafe {
            ffi::MPI_Iallreduce(
                from,
                to,
                len,
                ffi::RSMPI_FLOAT,
                ffi::RSMPI_SUM,
                ffi::RSMPI_COMM_WORLD,
                request,
            )
        };
        match ended(started, gives_up) {
            Ok(true) => Ok(Some(sums)),
            other => {
                std::mem::forget((values, sums));
                other.map(|_| None)
            }
        }
    }

    /// The `bytes` of the first rank, of which each gives as many; none where it `gives_up` before they are there.
    pub fn broadcast(
        &self,
        mut bytes: Vec<u8>,
        gives_up: impl FnMut() -> bool,
    ) -> Result<Option<Vec<u8>>> {
        let buffer: *mut c_void = bytes.as_mut_ptr().cast();
        let len = length(bytes.len())?;
        // SAFETY: a buffer of this length, which lives until the call has ended: `ended` says so, or it is leaked.
        let started = |request: *mut ffi::MPI_Request| unsafe {
            let world = ffi::RSMPI_COMM_WORLD;
            ffi::MPI_Ibcast(buffer, len, ffi::RSMPI_UINT8_T, 0, world, request)
        };
        match ended(started, gives_up) {
            Ok(true) => Ok(Some(bytes)),
            other => {
                std::mem::forget(bytes);
                other.map(|_| None)
            }
        }
    }

    /// Ends MPI, once all ranks do.
    pub fn leave(&self) {
        // SAFETY: it runs, and is not called any more.
        unsafe { ffi::MPI_Finalize() };
    }

    /// Ends all ranks.
    pub fn abort(&self, code: u8) {
        // SAFETY: it runs.
        unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code.into()) };
    }
}

/// Whether a call that was `started` comes to its end before it `gives_up`.
fn ended(
    started: impl FnOnce(*mut ffi::MPI_Request) -> c_int,
    mut gives_up: impl FnMut() -> bool,
) -> Result<bool> {
    // SAFETY: a constant of an MPI that runs.
    let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
    check(started(&raw mut request))?;
    let began = Instant::now();
    loop {
        let mut done = 0;
        // SAFETY: the request that was started, and a flag that lives until the call returns.
        check(unsafe { ffi::MPI_Test(&raw mut request, &raw mut done, ffi::RSMPI_STATUS_IGNORE) })?;
        if done != 0 {
            return Ok(true);
        }
        if gives_up() {
            return Ok(false);
        }
        // Others may need the core.
        match began.elapsed() < WITHOUT_PAUSE {
            true => std::thread::yield_now(),
            false => std::thread::sleep(PAUSE),
        }
    }
}

/// This rank's part of the cores that it may use: of one that others of its machine may use too, as much as each of them.
fn cores() -> Result<f64> {
    let own = cpus();
    let mut users = vec![0.0f32; MOST_CPUS];
    // SAFETY: two buffers of as many values, a communicator made here, and nobody else who calls MPI.
    unsafe {
        let mut node = ffi::RSMPI_COMM_NULL;
        let (world, shared) = (ffi::RSMPI_COMM_WORLD, ffi::RSMPI_COMM_TYPE_SHARED);
        check(ffi::MPI_Comm_split_type(
            world,
            shared,
            0,
            ffi::RSMPI_INFO_NULL,
            &raw mut node,
        ))?;
        check(ffi::MPI_Allreduce(
            own.as_ptr().cast(),
            users.as_mut_ptr().cast(),
            MOST_CPUS as c_int,
            ffi::RSMPI_FLOAT,
            ffi::RSMPI_SUM,
            node,
        ))?;
        check(ffi::MPI_Comm_free(&raw mut node))?;
    }
    let parts = own.iter().zip(&users).filter(|(own, _)| **own > 0.0);
    let part: f64 = parts.map(|(_, users)| 1.0 / f64::from(*users)).sum();
    // A container may allow less than all of their time.
    let all: f32 = own.iter().sum();
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(part * (allowed as f64 / f64::from(all.max(1.0))).min(1.0))
}

/// Which CPUs this process may run on, 1 each.
#[cfg(target_os = "linux")]
fn cpus() -> Vec<f32> {
    // SAFETY: a set of bits of which all are zero, and its size.
    let (set, known) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let known = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
        (set, known == 0)
    };
    if !known {
        return first_cpus();
    }
    // SAFETY: a set holds so many.
    let is_set = |cpu| unsafe { libc::CPU_ISSET(cpu, &set) };
    (0..MOST_CPUS)
        .map(|cpu| f32::from(u8::from(is_set(cpu))))
        .collect()
}

#[cfg(not(target_os = "linux"))]
fn cpus() -> Vec<f32> {
    first_cpus()
}

/// As many as there are, where it is not known which.
fn first_cpus() -> Vec<f32> {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    (0..MOST_CPUS)
        .map(|cpu| f32::from(u8::from(cpu < count)))
        .collect()
}

fn length(len: usize) -> Result<c_int> {
    c_int::try_from(len)
        .map_err(|_| Error::failure(format!("{len} values are more than one call of MPI takes")))
}

fn check(code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let mut text = [0 as c_char; 2048];
    let mut len = 0;
    // SAFETY: a buffer longer than any MPI's messages, and a number.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr(), &raw mut len) };
    let text = text.iter().take(len as usize).map(|byte| *byte as u8);
    let text: Vec<u8> = text.collect();
    Err(Error::failure(format!(
        "MPI has failed: {}",
        String::from_utf8_lossy(&text)
    ))
    .help(
        "one of the ranks may have ended; the latest checkpoint is whole: --resume goes on from it",
    ))
}
