//! The scorer `gradient`: how much the loss pulls at a module's adapter.
//!
//! Dynamic Low-Rank Module Allocation, section 3.2, over the steps t of the window that were measured:
//!
//! ```text
//! yᵢ = mean_t ‖∂L_t/∂(Aᵢ, Bᵢ)‖
//! ```
//!
//! A norm grows with the number of an adapter's parameters: `norm = "rms"`, the l2 norm over the square root of
//! their number, does not.
//!
//! An inactive module has a gradient only where the host probes, and steps differ by more than modules do: early steps
//! pull harder, and so do hard batches. By default all modules are compared over the same steps, those in which every
//! module has a gradient: while all are active, and in the probing steps before each reallocation. That is fair, and
//! costs nothing but those steps; `steps = "own"` takes the mean of each module over all steps in which it had a
//! gradient, and `steps = "own"`, `reduce = "sum"` and no probing are the paper's own code.

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Accumulated, ModuleInfo, Needs, Norm, Observation, Plugin, Reduce, Result, Sampled,
    ScoreRequest, Scorer, Signal, Start, Upcoming, Wants, Window, export_plugin,
};

/// Parameters of `gradient`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields, default)]
pub struct Parameters {
    /// The norm that is measured.
    norm: Norm,
    /// Over which steps it goes.
    window: Window,
    /// What becomes of a module's measurements there: their mean, or their sum.
    reduce: Reduce,
    /// Which steps count.
    steps: Steps,
    /// Of each so many steps one is measured, drawn by the run's seed, and every probing step besides. 1, the default,
    /// measures all: the gradients of what trains are there anyway.
    #[schemars(range(min = 1))]
    one_in: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            norm: Norm::default(),
            window: Window::default(),
            reduce: Reduce::default(),
            steps: Steps::default(),
            one_in: 1,
        }
    }
}

/// Which steps count.
#[derive(Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", rename_all = "snake_case")]
pub enum Steps {
    /// Those in which every module has a gradient: while all are active, and where the host probes. Without probing
    /// (`allocation.probe_steps = 0`) the same as `own`.
    #[default]
    Shared,
    /// Of each module those in which it has one.
    Own,
}

/// The plugin.
pub struct Gradient {
    signal: Signal,
    /// What each module's value is divided by.
    divisors: Vec<f64>,
    total: Accumulated,
    sampled: Sampled,
    steps: Steps,
}

impl Plugin for Gradient {
    type Parameters = Parameters;

    const NAME: &'static str = "gradient";
    const DESCRIPTION: &'static str = "Goes by the norm of the gradient of each module's adapter.";
    const REFERENCE: &'static str = "Dynamic Low-Rank Module Allocation, section 3.2";
    const FORMULA: &'static str = "yᵢ = mean_t ‖∂L_t/∂(Aᵢ, Bᵢ)‖";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let signal = match parameters.norm {
            Norm::L1 => Signal::GRADIENT_L1,
            Norm::L2 | Norm::Rms => Signal::GRADIENT_L2,
        };
        Ok(Gradient {
            signal,
            divisors: (modules.iter())
                .map(|module| parameters.norm.divisor(module.parameters))
                .collect(),
            total: Accumulated::new(parameters.window, parameters.reduce, modules.len())?,
            sampled: Sampled::new(parameters.one_in, parameters.window)?,
            steps: parameters.steps,
        })
    }
}

impl Scorer for Gradient {
    fn needs(&self) -> Needs {
        Needs::signals([self.signal.clone()])
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.sampled.start(start);
        let mut warnings = Vec::new();
        if self.steps == Steps::Shared && start.probe_steps == 0 {
            self.steps = Steps::Own;
            warnings.push(
                "allocation.probe_steps is 0: an inactive module has no gradient, so that each module is scored over \
                 the steps in which it is active, and one that never was gets 0"
                    .to_owned(),
            );
        }
        Ok(warnings)
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        let shared = self.steps == Steps::Own || !upcoming.some_inactive;
        let sampled = shared && self.sampled.takes(upcoming, self.total.last());
        Wants::all_if(upcoming.probing || sampled)
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let some_inactive = observation.active.contains(&false);
        if self.steps == Steps::Shared && some_inactive && !observation.probing {
            return Ok(());
        }
        let values = observation.signal(&self.signal)?.iter();
        let values = values.zip(&self.divisors);
        let values = values.map(|(value, divisor)| Some(f64::from((*value)?) / divisor));
        self.total.add(observation.step, values)
    }

    fn scores(&mut self, _: &ScoreRequest) -> Result<Vec<f64>> {
        Ok(self.total.scores())
    }

    fn reallocated(&mut self, _: &[bool]) -> Result<()> {
        self.total.reallocated();
        Ok(())
    }

    fn save(&self) -> Result<Vec<u8>> {
        self.total.save()
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        self.total.load(state)
    }
}

export_plugin!(scorer Gradient);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{Measured, conformance, testing};

    fn scores(parameters: &str, steps: &[[Option<f32>; 2]]) -> Vec<f64> {
        testing::score::<Gradient>(parameters, steps).unwrap()
    }

    #[test]
    fn a_step_without_a_gradient_leaves_the_score_as_it_was() {
        let steps = [[Some(1.0), Some(3.0)], [None, Some(0.5)], [Some(2.0), None]];
        assert_eq!(scores("{}", &steps), [1.5, 1.75]);
        assert_eq!(scores(r#"{"reduce": "sum"}"#, &steps), [3.0, 3.5]);
        // Two steps after the first: a quarter of what was is left.
        assert_eq!(scores(r#"{"window": {"ema": 0.5}}"#, &steps), [1.75, 1.75]);
        assert_eq!(scores("{}", &[[None, None]]), [0.0, 0.0]);
    }

    /// The scores after these steps of a run that probes in every fifth, with which of the modules are active.
    fn shared(parameters: &str, steps: &[([bool; 2], [Option<f32>; 2])]) -> (Vec<f64>, Vec<u64>) {
        let mut scorer = testing::scorer::<Gradient>(parameters, 2).unwrap();
        assert_eq!(scorer.start(&testing::start()).unwrap(), [""; 0]);
        let mut told = Vec::new();
        for (step, (active, values)) in (1..).zip(steps) {
            let mut upcoming = Upcoming::default();
            upcoming.step = step;
            upcoming.some_inactive = active.contains(&false);
            upcoming.probing = step % 5 == 0;
            if scorer.wants(&upcoming) == Wants::NOTHING {
                continue;
            }
            told.push(step);
            let mut observation = Observation::default();
            observation.step = step;
            observation.active = active.to_vec();
            observation.probing = upcoming.probing && active.contains(&false);
            observation.signals = vec![Measured {
                signal: Signal::GRADIENT_L2,
                values: values.to_vec(),
            }];
            scorer.observe(&observation).unwrap();
        }
        let scores = scorer.scores(&testing::score_request(2)).unwrap();
        (scores, told)
    }

    #[test]
    fn modules_are_compared_over_the_same_steps() {
        let (all, one) = ([true, true], [true, false]);
        let steps = [
            (all, [Some(8.0), Some(4.0)]),
            (one, [Some(6.0), None]),
            (one, [Some(5.0), None]),
            (one, [Some(5.0), None]),
            // The batch is an easy one, for both.
            (one, [Some(2.0), Some(1.0)]),
        ];
        // Twice the other's gradient, wherever both have one.
        assert_eq!(shared("{}", &steps), (vec![5.0, 2.5], vec![1, 5]));
        let sum = r#"{"reduce": "sum"}"#;
        assert_eq!(shared(sum, &steps).0, [10.0, 5.0]);
        let own = r#"{"steps": "own"}"#;
        assert_eq!(shared(own, &steps).0, [26.0 / 5.0, 2.5]);
        let own = r#"{"steps": "own", "reduce": "sum"}"#;
        assert_eq!(shared(own, &steps).0, [26.0, 5.0]);
    }

    #[test]
    fn without_probing_a_module_is_scored_over_its_own_steps() {
        let mut start = testing::start();
        start.probe_steps = 0;
        let mut scorer = testing::scorer::<Gradient>("{}", 2).unwrap();
        let warnings = scorer.start(&start).unwrap();
        assert!(warnings[0].contains("probe_steps is 0"), "{warnings:?}");
        scorer.reallocated(&[true, false]).unwrap();
        let mut upcoming = Upcoming::default();
        (upcoming.step, upcoming.some_inactive) = (3, true);
        assert_eq!(scorer.wants(&upcoming), Wants::ALL);
    }

    #[test]
    fn rms_does_not_grow_with_the_number_of_parameters() {
        let modules = testing::modules(5);
        let parameters = |module: usize| modules[module].parameters as f64;
        assert!(parameters(3) < parameters(4));
        let scores = testing::score::<Gradient>(r#"{"norm": "rms"}"#, &[[Some(8.0); 5]]).unwrap();
        for module in [3, 4] {
            assert_eq!(scores[module], 8.0 / parameters(module).sqrt());
        }
    }

    #[test]
    fn asks_for_the_signal_it_reads() {
        let signal = |parameters| testing::needs::<Gradient>(parameters).unwrap().signals;
        assert_eq!(signal("{}"), [Signal::GRADIENT_L2]);
        assert_eq!(signal(r#"{"norm": "l1"}"#), [Signal::GRADIENT_L1]);
        assert_eq!(signal(r#"{"norm": "rms"}"#), [Signal::GRADIENT_L2]);
    }

    #[test]
    fn conforms() {
        conformance::scorer::<Gradient>().assert();
    }
}
