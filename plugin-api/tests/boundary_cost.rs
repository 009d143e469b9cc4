//! What a step costs at the boundary, in process.

use std::time::{Duration, Instant};

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Accumulated, Measured, ModuleInfo, Needs, Observation, Plugin, Reduce, Result, ScoreRequest,
    Scorer, Signal, Upcoming, Window, testing,
};

const MODULES: usize = 200;
const SIGNALS: usize = 10;

#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
struct Parameters {}

/// Reads all of ten signals at every step.
struct Ten(Vec<Accumulated>);

impl Plugin for Ten {
    type Parameters = Parameters;
    const NAME: &'static str = "ten";
    const DESCRIPTION: &'static str = "Adds up ten signals.";
    const REFERENCE: &'static str = "none";

    fn new(_: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let new = |_| Accumulated::new(Window::Run, Reduce::Mean, modules.len());
        Ok(Ten((0..SIGNALS).map(new).collect::<Result<_>>()?))
    }
}

impl Scorer for Ten {
    fn needs(&self) -> Needs {
        Needs::signals(Signal::ALL[..SIGNALS].iter().cloned())
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        for (total, signal) in self.0.iter_mut().zip(Signal::ALL) {
            let values = observation.signal(signal)?.iter();
            total.add(
                observation.step,
                values.map(|value| value.map(|value| f64::from(value.abs()))),
            )?;
        }
        Ok(())
    }

    fn scores(&mut self, _: &ScoreRequest) -> Result<Vec<f64>> {
        let mut sums = vec![0.0; MODULES];
        for total in &self.0 {
            for (sum, score) in sums.iter_mut().zip(total.scores()) {
                *sum += score;
            }
        }
        Ok(sums)
    }
}

#[test]
fn a_step_of_two_hundred_modules_and_ten_signals_costs_twenty_microseconds_at_most() {
    if cfg!(debug_assertions) {
        eprintln!("skipped: only an optimised build says anything about speed");
        return;
    }
    let mut scorer = testing::scorer::<Ten>("{}", MODULES).unwrap();
    let mut observation = Observation::default();
    observation.active = vec![true; MODULES];
    observation.signals = Signal::ALL[..SIGNALS]
        .iter()
        .map(|signal| Measured {
            signal: signal.clone(),
            values: (0..MODULES)
                .map(|module| (module % 7 != 0).then_some(module as f32))
                .collect(),
        })
        .collect();
    let mut step = 0;
    let mut best = Duration::MAX;
    // The best of many rounds: a busy machine slows the test down and does not fail it.
    for _ in 0..200 {
        const STEPS: u32 = 20;
        let started = Instant::now();
        for _ in 0..STEPS {
            step += 1;
            let mut upcoming = Upcoming::default();
            upcoming.step = step;
            assert!(scorer.wants(&upcoming).signals);
            observation.step = step;
            scorer.observe(&observation).unwrap();
        }
        best = best.min(started.elapsed() / STEPS);
    }
    println!("{best:?} a step");
    assert!(scorer.scores(&testing::score_request(MODULES)).unwrap()[1] > 0.0);
    assert!(best < Duration::from_micros(20), "{best:?}");
}
