//! The scorer `gradient`: how much the loss pulls at a module's adapter, added up over the steps.
//!
//! Dynamic Low-Rank Module Allocation, section 3.2, over the steps t of the window:
//!
//! ```text
//! yᵢ = Σ_t ‖∂L_t/∂(Aᵢ, Bᵢ)‖
//! ```
//!
//! A norm grows with the number of an adapter's parameters: `norm = "rms"`, the l2 norm over the square root of
//! their number, does not.
//!
//! A step that has no gradient of a module (it is inactive, and the host does not probe) leaves its
//! score as it was.

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Accumulated, ModuleInfo, Needs, Norm, Observation, Plugin, Result, ScoreRequest, Scorer,
    Signal, Window, export_plugin,
};

/// Parameters of `gradient`.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields, default)]
pub struct Parameters {
    /// The norm that is added up.
    norm: Norm,
    /// Over which steps it is added up.
    window: Window,
}

/// The plugin.
pub struct Gradient {
    signal: Signal,
    /// What each module's value is divided by.
    divisors: Vec<f64>,
    total: Accumulated,
}

impl Plugin for Gradient {
    type Parameters = Parameters;

    const NAME: &'static str = "gradient";
    const DESCRIPTION: &'static str = "Adds up the norm of the gradient of each module's adapter.";
    const REFERENCE: &'static str = "Dynamic Low-Rank Module Allocation, section 3.2";

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
            total: Accumulated::new(parameters.window, modules.len())?,
        })
    }
}

impl Scorer for Gradient {
    fn needs(&self) -> Needs {
        Needs::signals([self.signal.clone()])
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let values = observation.signal(&self.signal)?.iter();
        self.total.add(
            (values.zip(&self.divisors))
                .map(|(value, divisor)| Some(f64::from((*value)?) / divisor)),
        )
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
    use dynalora_plugin_api::{conformance, testing};

    fn scores(parameters: &str, steps: &[[Option<f32>; 2]]) -> Vec<f64> {
        testing::score::<Gradient>(parameters, steps).unwrap()
    }

    #[test]
    fn a_step_without_a_gradient_leaves_the_score_as_it_was() {
        let steps = [[Some(1.0), Some(3.0)], [None, Some(0.5)], [Some(2.0), None]];
        assert_eq!(scores("{}", &steps), [3.0, 3.5]);
        assert_eq!(scores(r#"{"window": {"ema": 0.5}}"#, &steps), [1.5, 1.75]);
        assert_eq!(scores("{}", &[[None, None]]), [0.0, 0.0]);
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
