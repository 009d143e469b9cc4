//! The scorer `sensitivity`: how much the loss would change without a module's adapter, to first order.
//!
//! AdaLoRA (Zhang et al. 2023, equations 8 to 11), of whole modules in place of single entries. With θ the adapter's
//! parameters and g the loss's gradient by them, over the steps that were measured:
//!
//! ```text
//! I = Σ |θ · g|        Ī ← β₁ Ī + (1 − β₁) I        Ū ← β₂ Ū + (1 − β₂) |I − Ī|        y = Ī · Ū
//! ```
//!
//! Where AdaLoRA smooths each entry and then takes means, here the sum over the module is smoothed. Both averages
//! start from zero and are divided by what they hold of their weights, 1 − βⁿ after n measurements: a module that was
//! measured less often (it is inactive, and the host probes a few steps) does not lose by that. Among modules
//! measured equally often it is one factor for all.
//!
//! The sum grows with the number of an adapter's parameters; `per_parameter = true` divides by it.
//!
//! An adapter that has never trained has B = 0, and with it no sensitivity: begin with `initial = "all"`, or the first
//! choice is the last.

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::{Deserialize, Serialize};
use dynalora_plugin_api::{
    ModuleInfo, Needs, Observation, Plugin, Result, ScoreRequest, Scorer, Signal, Smoothing,
    export_plugin, load_state, save_state,
};

/// Parameters of `sensitivity`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields, default)]
pub struct Parameters {
    /// Decay of the average sensitivity.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    beta1: f64,
    /// Decay of the average uncertainty.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    beta2: f64,
    /// Whether the sum over a module is divided by the number of its adapter's parameters.
    per_parameter: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            beta1: 0.85,
            beta2: 0.85,
            per_parameter: false,
        }
    }
}

/// The plugin.
pub struct Sensitivity {
    signal: Signal,
    smoothing: Smoothing,
    /// What each module's value is divided by.
    divisors: Vec<f64>,
    averages: Vec<Averages>,
}

/// What is kept of a module.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
struct Averages {
    /// `Ī`.
    sensitivity: f64,
    /// `Ū`.
    uncertainty: f64,
    /// Steps measured.
    count: u64,
}

impl Plugin for Sensitivity {
    type Parameters = Parameters;

    const NAME: &'static str = "sensitivity";
    const DESCRIPTION: &'static str =
        "Goes by each adapter's smoothed sensitivity times its uncertainty, as AdaLoRA does.";
    const REFERENCE: &'static str = "Zhang et al. 2023, AdaLoRA, equations 8 to 11";
    const FORMULA: &'static str = "I = Σ |θ · g|        Ī ← β₁ Ī + (1 − β₁) I        Ū ← β₂ Ū + (1 − β₂) |I − Ī|        y = Ī · Ū";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let Parameters {
            beta1,
            beta2,
            per_parameter,
        } = parameters;
        let divisor = |module: &ModuleInfo| match per_parameter {
            true => module.parameters.max(1) as f64,
            false => 1.0,
        };
        Ok(Sensitivity {
            signal: Signal::GRADIENT_DOT_WEIGHT_ABS,
            smoothing: Smoothing::new(beta1, beta2)?,
            divisors: modules.iter().map(divisor).collect(),
            averages: vec![Averages::default(); modules.len()],
        })
    }
}

impl Scorer for Sensitivity {
    fn needs(&self) -> Needs {
        Needs::signals([self.signal.clone()])
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let values = observation.signal(&self.signal)?;
        if values.len() != self.averages.len() {
            return Err(format!(
                "{} values were measured for {} modules",
                values.len(),
                self.averages.len()
            )
            .into());
        }
        let modules = self.averages.iter_mut().zip(&self.divisors).zip(values);
        for (module, ((averages, divisor), value)) in modules.enumerate() {
            let Some(value) = value else { continue };
            let Averages {
                sensitivity,
                uncertainty,
                count,
            } = averages;
            let added = self
                .smoothing
                .add(sensitivity, uncertainty, f64::from(*value) / divisor);
            added.map_err(|error| format!("module {module}: {error}"))?;
            *count += 1;
        }
        Ok(())
    }

    fn scores(&mut self, _: &ScoreRequest) -> Result<Vec<f64>> {
        let score = |module: &Averages| {
            // With `1 − βⁿ` in place of 1: what the average holds of the weights.
            let whole = |average: f64, beta: f64| average / (1.0 - beta.powf(module.count as f64));
            match module.count {
                0 => 0.0,
                _ => {
                    whole(module.sensitivity, self.smoothing.beta1)
                        * whole(module.uncertainty, self.smoothing.beta2)
                }
            }
        };
        Ok(self.averages.iter().map(score).collect())
    }

    fn save(&self) -> Result<Vec<u8>> {
        save_state(&self.averages)
    }

    fn load(&mut self, state: &[u8]) -> Result<()> {
        let averages: Vec<Averages> = load_state(state)?;
        if averages.len() != self.averages.len() {
            return Err(format!(
                "the saved state is of {} modules, but the model has {}",
                averages.len(),
                self.averages.len()
            )
            .into());
        }
        self.averages = averages;
        Ok(())
    }
}

export_plugin!(scorer Sensitivity);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{conformance, testing};

    fn scores(parameters: &str, steps: &[Vec<Option<f32>>]) -> Vec<f64> {
        testing::score::<Sensitivity>(parameters, steps).unwrap()
    }

    /// Ī and Ū as PEFT's `RankAllocator.update_ipt` has them, of a tensor with one entry.
    fn adalora(values: &[f64], beta1: f64, beta2: f64) -> f64 {
        let (mut mean, mut uncertainty) = (0.0, 0.0);
        for value in values {
            mean = beta1 * mean + (1.0 - beta1) * value;
            uncertainty = beta2 * uncertainty + (1.0 - beta2) * f64::abs(value - mean);
        }
        mean * uncertainty
    }

    #[test]
    fn measured_equally_often_modules_have_adaloras_scores_but_for_one_factor() {
        let values = [
            [4.0, 1.0, 0.5],
            [1.0, 3.0, 0.5],
            [2.0, 2.0, 0.5],
            [7.0, 0.0, 0.5],
        ];
        let steps: Vec<Vec<_>> = values.iter().map(|step| step.map(Some).to_vec()).collect();
        let scores = scores(r#"{"beta1": 0.8, "beta2": 0.6}"#, &steps);
        let factor = (1.0 - 0.8_f64.powi(4)) * (1.0 - 0.6_f64.powi(4));
        for module in 0..3 {
            let values = values.map(|step| f64::from(step[module]));
            let expected = adalora(&values, 0.8, 0.6) / factor;
            assert!(
                (scores[module] - expected).abs() < 1e-12 * expected,
                "{scores:?}"
            );
        }
        // By hand, at β₁ = 0.5 and β₂ = 0: 4 and then 1 give Ī = 2, 1.5, Ū = 0.5 and y = 1.5 / 0.75 · 0.5.
        let steps = [vec![Some(4.0)], vec![Some(1.0)]];
        assert_eq!(
            self::scores(r#"{"beta1": 0.5, "beta2": 0.0}"#, &steps),
            [1.0]
        );
    }

    #[test]
    fn a_module_measured_less_often_does_not_lose_by_it() {
        // Both are worth 2 at every step that is measured, the first at ten steps and the second at one: the first has
        // its whole sensitivity, and so has the second, whose uncertainty is larger.
        let mut steps = vec![vec![Some(2.0), None]; 9];
        steps.push(vec![Some(2.0); 2]);
        let scores = scores("{}", &steps);
        assert!(scores[1] > scores[0] && scores[0] > 0.0, "{scores:?}");
        assert_eq!(self::scores("{}", &[vec![None, None]]), [0.0, 0.0]);
    }

    #[test]
    fn per_parameter_a_module_does_not_score_by_its_size() {
        let parameters = |module: usize| testing::modules(5)[module].parameters as f64;
        let steps = [vec![Some(8.0); 5]];
        let (sum, mean) = (
            scores("{}", &steps),
            scores(r#"{"per_parameter": true}"#, &steps),
        );
        for module in [0, 4] {
            // A score is of second degree in what is measured.
            let expected = sum[module] / parameters(module).powi(2);
            assert!((mean[module] / expected - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn asks_for_the_signal_it_reads() {
        let needs = testing::needs::<Sensitivity>("{}").unwrap();
        assert_eq!(needs.signals, [Signal::GRADIENT_DOT_WEIGHT_ABS]);
    }

    #[test]
    fn conforms() {
        conformance::scorer::<Sensitivity>().assert();
    }
}
