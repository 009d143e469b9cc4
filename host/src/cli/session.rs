//! From the recipe's device to code that is generic over the backend.

use burn_flex::Flex;
use clap::builder::RangedU64ValueParser;

use super::Common;
use crate::device::{self, Chosen};
use crate::error::{Error, Result};
use crate::kernel::Kernels;
use crate::recipe::{MOST_THREADS, Precision, Recipe};
use crate::run::{Checkpoint, Summary, Writer};
use crate::train::eva::{self, Found, Seen};
use crate::train::ranks::Ranks;
use crate::train::{self, Display, Prepared, Verbosity};

/// Reads a number of threads from the command line.
pub fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=MOST_THREADS as u64)
}

/// Sets the number of threads of the whole process; the first call counts.
pub fn use_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else {
        // What rayon would take by itself, and try to start.
        let variable = std::env::var("RAYON_NUM_THREADS").unwrap_or_default();
        if variable
            .parse()
            .is_ok_and(|threads: usize| threads > MOST_THREADS)
        {
            return Err(Error::user(format!(
                "RAYON_NUM_THREADS is {variable}, more than {MOST_THREADS}"
            ))
            .help("unset it, or set threads in the recipe"));
        }
        return Ok(());
    };
    let set = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global();
    if set.is_err() && rayon::current_num_threads() != threads {
        return Err(Error::failure(format!(
            "the process already runs on {} threads and cannot change to {threads}",
            rayon::current_num_threads()
        )));
    }
    Ok(())
}

/// [`use_threads`] of one of several ranks: by default each takes its part of the cores of its machine.
pub fn use_threads_of(ranks: &Ranks, threads: Option<usize>) -> Result<()> {
    let said = threads.is_some() || std::env::var_os("RAYON_NUM_THREADS").is_some();
    use_threads(threads.or_else(|| ranks.threads().filter(|_| !said)))
}

/// Runs `work` on one of the pool's own threads.
fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// A device settled on, and how much is shown.
pub struct Session {
    device: Chosen,
    name: String,
    verbosity: Verbosity,
}

/// Something to do on whichever backend the device has.
pub trait OnDevice: Send {
    /// What comes out of it.
    type Output: Send;
    /// Does it.
    fn run<B: Kernels>(self, device: &B::Device) -> Result<Self::Output>;
}

/// Whether the device computes in a precision.
struct Check<'a>(Precision, &'a Session);

impl OnDevice for Check<'_> {
    type Output = ();
    fn run<B: Kernels>(self, device: &B::Device) -> Result<()> {
        let Check(wanted, session) = self;
        device::check_precision::<B>(wanted, &session.device, &session.name, device)
    }
}

impl Session {
    /// Settles on a device and says which and why. One that cannot compute in the recipe's precision is refused.
    pub fn start(recipe: &Recipe, common: &Common) -> Result<Self> {
        let (device, why) = device::choose(recipe.device)?;
        let verbosity = if common.quiet {
            Verbosity::Quiet
        } else {
            Verbosity::Normal
        };
        if verbosity == Verbosity::Normal {
            train::say(&format!("device: {why}"));
        }
        let name = match &device {
            Chosen::Cpu => "cpu".to_owned(),
            Chosen::Cuda(index) => format!("cuda:{index}"),
            Chosen::Wgpu(adapter) => adapter.device.clone(),
        };
        let session = Session {
            device,
            name,
            verbosity,
        };
        session.on_device(Check(recipe.model.precision, &session))?;
        Ok(session)
    }

    /// The device's name: `cpu`, `cuda:0`, `vulkan:0`.
    pub fn device_name(&self) -> &str {
        &self.name
    }

    /// Does `task` on the device's backend.
    pub fn on_device<T: OnDevice>(&self, task: T) -> Result<T::Output> {
        match &self.device {
            // Inside the pool, so that its threads hand work to each other instead of waking up for each operation.
            Chosen::Cpu => in_pool(|| task.run::<Flex>(&burn_flex::FlexDevice)),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(index) => task.run::<burn_cuda::Cuda>(&burn_cuda::CudaDevice::new(*index)),
            #[cfg(not(feature = "cuda"))]
            Chosen::Cuda(_) => Err(Error::failure("a CUDA device without the `cuda` feature")),
            #[cfg(feature = "wgpu")]
            Chosen::Wgpu(adapter) => {
                let opened = device::open(adapter).map_err(|error| {
                    Error::failure(format!("{} does not start: {error}", adapter.device))
                })?;
                task.run::<burn_wgpu::Wgpu>(&opened)
            }
            #[cfg(not(feature = "wgpu"))]
            Chosen::Wgpu(_) => Err(Error::failure("an adapter without the `wgpu` feature")),
        }
    }

    /// Finds on the device what the pairs of a run start from, by EVA.
    pub fn find(&self, seen: &Seen<'_>) -> Result<Found> {
        struct Find<'a>(&'a Seen<'a>);
        impl OnDevice for Find<'_> {
            type Output = Found;
            fn run<B: Kernels>(self, device: &B::Device) -> Result<Found> {
                eva::of_run::<B>(self.0, device)
            }
        }
        self.on_device(Find(seen))
    }

    /// Trains on the device.
    pub fn train(
        &self,
        ranks: &Ranks,
        prepared: Prepared,
        writer: Writer,
        from: Option<Checkpoint>,
    ) -> Result<Summary> {
        struct Train<'a> {
            ranks: &'a Ranks,
            prepared: Prepared,
            writer: Writer,
            from: Option<Checkpoint>,
            session: &'a Session,
        }
        impl OnDevice for Train<'_> {
            type Output = Summary;
            fn run<B: Kernels>(self, device: &B::Device) -> Result<Summary> {
                let Train {
                    ranks,
                    prepared,
                    writer,
                    from,
                    session,
                } = self;
                let mut display = Display::new(session.verbosity);
                let (name, display) = (&session.name, &mut display);
                train::train::<B>(ranks, prepared, writer, from, name, device, display)
            }
        }
        self.on_device(Train {
            ranks,
            prepared,
            writer,
            from,
            session: self,
        })
    }
}
