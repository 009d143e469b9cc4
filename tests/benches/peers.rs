//! What `tests/peers` measures of the library itself. `cargo bench --bench peers -- NAME THREADS` prints
//! one line of JSON; without a name, of everything.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dynalora::allocation::{Controller, Named, Settings, TrialsMade, Units};
use dynalora::plugin::{PluginPath, load_allocator, load_scorer};
use dynalora::recipe::{Schedule, Unit};
use dynalora_plugin_api::{Measured, Observation, testing};
use gemm::Parallelism;
use serde_json::{Value, json};

/// The program's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    // Cargo passes `--bench` as well.
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"));
    let name = arguments.next();
    let threads = arguments
        .next()
        .and_then(|threads| threads.parse().ok())
        .unwrap_or_else(rayon::current_num_threads);
    let wanted = |bench: &str| name.as_deref().is_none_or(|name| name == bench);
    if wanted("reallocation") {
        println!("{}", reallocation(1000, 30));
    }
    if wanted("gemm") {
        println!("{}", gemm_peak(threads, Duration::from_secs(1)));
    }
}

/// A shipped plugin's library, beside the program; this one lies in `deps` beneath.
fn built(name: &str) -> String {
    let own = std::env::current_exe().expect("a program knows its own path");
    let folder = own
        .ancestors()
        .nth(2)
        .map(PathBuf::from)
        .unwrap_or_default();
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let library = folder.join(format!("{prefix}dynalora_{name}{suffix}"));
    library.display().to_string()
}

/// Milliseconds of each of `count` reallocations over `modules` modules by the built plugins `activation`
/// and `top-k`: what the scorer takes in of the step, its scores, the choice, the checks, the ledger.
fn reallocation(modules: usize, count: u64) -> Value {
    let path = PluginPath::new(&[], &[]).expect("no folder to be missing");
    let units = Units::new(Unit::Module, testing::modules(modules));
    let scorer = load_scorer(
        &path,
        &built("scorer_activation"),
        &json!({}),
        None,
        units.modules(),
        |own| own,
    )
    .expect("the built scorer");
    let allocator = load_allocator(
        &path,
        &built("allocator_top_k"),
        &json!({ "k": "50%" }),
        None,
        units.infos(),
        |own| own,
    )
    .expect("the built allocator");
    let settings = Settings {
        costs: None,
        initial_ranks: None,
        schedule: Schedule::Periodic { every: 1 },
        initial_budget: None,
        first_choice: None,
        learning_rate: 1e-3,
        probe_steps: 0,
        prunable: true,
        seed: 42,
        total_steps: count + 1,
    };
    let scorer = Named {
        name: scorer.manifest.name,
        plugin: scorer.plugin,
    };
    let allocator = Named {
        name: allocator.manifest.name,
        plugin: allocator.plugin,
    };
    let mut controller =
        Controller::new(settings, units, Some(scorer), Some(allocator)).expect("valid settings");
    let milliseconds: Vec<f64> = (1..=count)
        .map(|step| {
            // Other values at every step, so that the choice changes.
            let values: Vec<_> = (0..modules as u64)
                .map(|module| Some((((module + 1) * (step * step + 7)) % 1009) as f32))
                .collect();
            let started = Instant::now();
            let measuring = controller.upcoming(step);
            let mut observation = Observation::default();
            (observation.step, observation.tokens) = (step, 2048);
            observation.active = controller.active().to_vec();
            let signals = measuring.wanted.signals.iter().map(|signal| Measured {
                signal: signal.name(),
                values: values.clone(),
            });
            observation.signals = signals.collect();
            controller
                .after_step(&measuring, &observation)
                .expect("it takes the step in");
            assert!(controller.is_due(), "step {step} did not reallocate");
            controller
                .reallocate(&TrialsMade::default())
                .expect("it reallocates");
            let elapsed = started.elapsed();
            elapsed.as_secs_f64() * 1e3
        })
        .collect();
    json!({ "modules": modules, "milliseconds": milliseconds })
}

/// The best FLOPs per second of large f32 products on reused buffers, trying each size for `time`.
fn gemm_peak(threads: usize, time: Duration) -> Value {
    let best = [(2048, 384, 1536), (1024, 1024, 1024), (2048, 2048, 2048)]
        .into_iter()
        .map(|(m, k, n)| product(m, k, n, threads, time))
        .fold(0.0, f64::max);
    json!({ "flops_per_s": best })
}

fn product(m: usize, k: usize, n: usize, threads: usize, time: Duration) -> f64 {
    let (a, b) = (vec![0.5_f32; m * k], vec![0.25_f32; k * n]);
    let mut out = vec![0.0_f32; m * n];
    let (mut best, started) = (0.0_f64, Instant::now());
    while started.elapsed() < time {
        let begun = Instant::now();
        // SAFETY: row-major matrices of these sizes, each as long as its buffer.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                out.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.as_ptr(),
                1,
                k as isize,
                b.as_ptr(),
                1,
                n as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::Rayon(threads),
            );
        }
        black_box(&out);
        best = best.max((2 * m * k * n) as f64 / begun.elapsed().as_secs_f64());
    }
    best
}
