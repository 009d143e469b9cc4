//! The scorer `fisher`: how much the answers that the model gives hang on a module's adapter.
//!
//! The empirical Fisher information of the adapter's parameters θ, its trace, as a mean over examples e (Kirkpatrick
//! et al. 2017, section 2.1, for a diagonal; Sung et al. 2021, FISH Mask, equation 5, with the labels of the data):
//!
//! ```text
//! yᵢ = mean over e of Σ_θ (∂L_e/∂θ)²
//! ```
//!
//! Unlike the squared norm of a step's gradient (`gradient`), in which the examples' gradients may cancel, it does
//! not vanish where the loss is at its lowest. It grows with the number of an adapter's parameters; `per_parameter =
//! true` divides by it.
//!
//! Examples are those of the steps measured: of each ten steps one, drawn by the run's seed, while all modules are
//! active, and the probing steps before each reallocation, in which inactive modules have gradients too. So modules
//! are compared over the same steps. Without probing each is compared over the steps in which it was active.

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Accumulated, ModuleInfo, Needs, Observation, Plugin, Reduce, Result, Sampled, ScoreRequest,
    Scorer, Signal, Start, Upcoming, Wants, Window, export_plugin,
};

/// Parameters of `fisher`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields, default)]
pub struct Parameters {
    /// Over which steps it goes.
    window: Window,
    /// Whether it is divided by the number of the adapter's parameters.
    per_parameter: bool,
    /// Of each so many steps one is measured, drawn by the run's seed, and every probing step besides; 1 measures
    /// all.
    #[schemars(range(min = 1))]
    one_in: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            window: Window::default(),
            per_parameter: false,
            one_in: Sampled::ONE_IN,
        }
    }
}

/// The plugin.
pub struct Fisher {
    /// What each module's value is divided by.
    divisors: Vec<f64>,
    total: Accumulated,
    sampled: Sampled,
    /// Whether inactive modules are probed.
    probes: bool,
}

impl Plugin for Fisher {
    type Parameters = Parameters;

    const NAME: &'static str = "fisher";
    const DESCRIPTION: &'static str =
        "Goes by the empirical Fisher information of each module's adapter, per example.";
    const REFERENCE: &'static str =
        "Sung et al. 2021, FISH Mask, equation 5; Kirkpatrick et al. 2017, section 2.1";
    const FORMULA: &'static str = "yᵢ = mean over e of Σ_θ (∂L_e/∂θ)²";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let divisor = |module: &ModuleInfo| match parameters.per_parameter {
            true => module.parameters.max(1) as f64,
            false => 1.0,
        };
        Ok(Fisher {
            divisors: modules.iter().map(divisor).collect(),
            total: Accumulated::new(parameters.window, Reduce::Mean, modules.len())?,
            sampled: Sampled::new(parameters.one_in, parameters.window)?,
            probes: true,
        })
    }
}

impl Scorer for Fisher {
    fn needs(&self) -> Needs {
        Needs::signals([Signal::FISHER])
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.sampled.start(start);
        self.probes = start.probe_steps > 0;
        Ok(match self.probes {
            true => Vec::new(),
            false => vec![
                "allocation.probe_steps is 0: an inactive module has no gradient, so that each module is scored over \
                 the steps in which it is active, and one that never was gets 0"
                    .to_owned(),
            ],
        })
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        let shared = !self.probes || !upcoming.some_inactive;
        let sampled = shared && self.sampled.takes(upcoming, self.total.last());
        Wants::all_if(upcoming.probing || sampled)
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let some_inactive = observation.active.contains(&false);
        if self.probes && some_inactive && !observation.probing {
            return Ok(());
        }
        let values = observation.signal(&Signal::FISHER)?.iter();
        let examples = observation.examples.max(1) as f64;
        let values = values.zip(&self.divisors);
        let values = values.map(|(value, divisor)| Some(f64::from((*value)?) / divisor / examples));
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

export_plugin!(scorer Fisher);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{Measured, conformance, testing};

    /// One step of so many examples in which these were active.
    fn seen(step: u64, examples: u64, active: &[bool], values: &[Option<f32>]) -> Observation {
        let mut observation = Observation::default();
        (observation.step, observation.examples) = (step, examples);
        observation.active = active.to_vec();
        observation.signals = vec![Measured {
            signal: Signal::FISHER,
            values: values.to_vec(),
        }];
        observation
    }

    #[test]
    fn it_is_a_mean_over_examples_whatever_the_steps_sizes() {
        let mut scorer = testing::scorer::<Fisher>("{}", 2).unwrap();
        scorer
            .observe(&seen(1, 32, &[true; 2], &[Some(64.0), Some(16.0)]))
            .unwrap();
        scorer
            .observe(&seen(2, 4, &[true; 2], &[Some(24.0), Some(2.0)]))
            .unwrap();
        assert_eq!(
            scorer.scores(&testing::score_request(2)).unwrap(),
            [4.0, 0.5]
        );
    }

    #[test]
    fn per_parameter_a_module_does_not_score_by_its_size() {
        let steps = [[Some(8.0); 5]];
        let scores = testing::score::<Fisher>(r#"{"per_parameter": true}"#, &steps).unwrap();
        for module in [3, 4] {
            assert_eq!(
                scores[module],
                8.0 / testing::modules(5)[module].parameters as f64
            );
        }
    }

    #[test]
    fn modules_are_compared_over_the_same_steps() {
        let mut start = testing::start();
        start.probe_steps = 1;
        let mut scorer = testing::scorer::<Fisher>(r#"{"one_in": 1}"#, 2).unwrap();
        assert_eq!(scorer.start(&start).unwrap(), [""; 0]);
        let upcoming = |step: u64, probing: bool| {
            let mut upcoming = Upcoming::default();
            (upcoming.step, upcoming.probing) = (step, probing);
            upcoming.some_inactive = true;
            upcoming
        };
        scorer
            .observe(&seen(1, 1, &[true; 2], &[Some(4.0), Some(2.0)]))
            .unwrap();
        scorer.reallocated(&[true, false]).unwrap();
        // Only what trains would be measured, and its late, small values would count against it.
        assert_eq!(scorer.wants(&upcoming(2, false)), Wants::NOTHING);
        scorer
            .observe(&seen(2, 1, &[true, false], &[Some(0.0), None]))
            .unwrap();
        assert_eq!(scorer.wants(&upcoming(3, true)), Wants::ALL);
        let mut probe = seen(3, 1, &[true, false], &[Some(2.0), Some(4.0)]);
        probe.probing = true;
        scorer.observe(&probe).unwrap();
        assert_eq!(
            scorer.scores(&testing::score_request(2)).unwrap(),
            [3.0, 3.0]
        );
        // Without probing there are no such steps.
        start.probe_steps = 0;
        let mut scorer = testing::scorer::<Fisher>(r#"{"one_in": 1}"#, 2).unwrap();
        assert!(
            scorer
                .start(&start)
                .unwrap()
                .concat()
                .contains("probe_steps")
        );
        scorer
            .observe(&seen(2, 1, &[true, false], &[Some(1.0), None]))
            .unwrap();
        assert_eq!(
            scorer.scores(&testing::score_request(2)).unwrap(),
            [1.0, 0.0]
        );
    }

    #[test]
    fn conforms() {
        conformance::scorer::<Fisher>().assert();
    }
}
