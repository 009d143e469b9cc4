//! The scorer `activation`: how much comes out of a module.
//!
//! Dynamic Low-Rank Module Allocation, section 3.2, and, with `target = "delta"`, LoRA-drop (Zhou et
//! al. 2024, equation 3), over the steps t of the window that were measured and the real tokens of each:
//!
//! ```text
//! output:  yᵢ = mean_t ‖(Wᵢ + ΔWᵢ) x_t‖
//! delta:   yᵢ = mean_t ‖ΔWᵢ x_t‖²
//! ```
//!
//! The papers add up over every step, which is `reduce = "sum"` with `one_in = 1`; where all modules are measured in
//! the same steps the mean ranks them alike.
//!
//! A norm grows with a module's width: `norm = "rms"`, the l2 norm over the square root of `out_features`,
//! does not.

use dynalora_plugin_api::schemars::{self, JsonSchema};
use dynalora_plugin_api::serde::Deserialize;
use dynalora_plugin_api::{
    Accumulated, ModuleInfo, Needs, Norm, Observation, Plugin, Reduce, Result, Sampled,
    ScoreRequest, Scorer, Signal, Start, Upcoming, Wants, Window, export_plugin,
};

/// Parameters of `activation`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields, default)]
pub struct Parameters {
    /// The norm that is measured.
    norm: Norm,
    /// What is measured.
    target: Target,
    /// Over which steps it goes.
    window: Window,
    /// What becomes of a module's measurements there: their mean, or their sum.
    reduce: Reduce,
    /// Of each so many steps one is measured, drawn by the run's seed; 1 measures all. There is always one before the
    /// first reallocation, and with `window = "period"` in each period.
    #[schemars(range(min = 1))]
    one_in: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            norm: Norm::default(),
            target: Target::default(),
            window: Window::default(),
            reduce: Reduce::default(),
            one_in: Sampled::ONE_IN,
        }
    }
}

/// What comes out of a module.
#[derive(Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", rename_all = "snake_case")]
pub enum Target {
    /// The whole output `(W + ΔW)x`, by its norm.
    #[default]
    Output,
    /// The adapter's share `ΔW·x`, by its squared l2 norm, as in LoRA-drop.
    Delta,
}

/// The plugin.
pub struct Activation {
    signal: Signal,
    squared: bool,
    /// What each module's value is divided by.
    divisors: Vec<f64>,
    total: Accumulated,
    sampled: Sampled,
}

impl Plugin for Activation {
    type Parameters = Parameters;

    const NAME: &'static str = "activation";
    const DESCRIPTION: &'static str = "Goes by the norm of each module's output, or the squared norm of its adapter's share of it.";
    const REFERENCE: &'static str = "Dynamic Low-Rank Module Allocation, section 3.2; target = \"delta\": LoRA-drop, Zhou et al. 2024, eq. 3";
    const FORMULA: &'static str =
        "output:  yᵢ = mean_t ‖(Wᵢ + ΔWᵢ) x_t‖\ndelta:   yᵢ = mean_t ‖ΔWᵢ x_t‖²";

    fn new(parameters: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let signal = match (parameters.target, parameters.norm) {
            (Target::Output, Norm::L1) => Signal::ACTIVATION_L1,
            (Target::Output, Norm::L2 | Norm::Rms) => Signal::ACTIVATION_L2,
            (Target::Delta, Norm::L2) => Signal::DELTA_L2,
            (Target::Delta, Norm::L1 | Norm::Rms) => {
                return Err("parameter `norm`: target = \"delta\" is measured in l2 only".into());
            }
        };
        Ok(Activation {
            signal,
            squared: parameters.target == Target::Delta,
            divisors: (modules.iter())
                .map(|module| parameters.norm.divisor(module.out_features))
                .collect(),
            total: Accumulated::new(parameters.window, parameters.reduce, modules.len())?,
            sampled: Sampled::new(parameters.one_in, parameters.window)?,
        })
    }
}

impl Scorer for Activation {
    fn needs(&self) -> Needs {
        Needs::signals([self.signal.clone()])
    }

    fn start(&mut self, start: &Start) -> Result<Vec<String>> {
        self.sampled.start(start);
        Ok(Vec::new())
    }

    fn wants(&self, upcoming: &Upcoming) -> Wants {
        Wants::all_if(self.sampled.takes(upcoming, self.total.last()))
    }

    fn observe(&mut self, observation: &Observation) -> Result<()> {
        let values = observation.signal(&self.signal)?.iter();
        let squared = self.squared;
        let values = values.zip(&self.divisors).map(|(value, divisor)| {
            let value = f64::from((*value)?) / divisor;
            Some(if squared { value * value } else { value })
        });
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

export_plugin!(scorer Activation);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{Measured, conformance, testing};

    fn scores(parameters: &str, steps: &[[Option<f32>; 2]]) -> Vec<f64> {
        testing::score::<Activation>(parameters, steps).unwrap()
    }

    const STEPS: [[Option<f32>; 2]; 2] = [[Some(1.0), Some(3.0)], [Some(2.0), Some(0.5)]];

    #[test]
    fn outputs_count_by_norm_and_deltas_by_squared_norm() {
        assert_eq!(scores("{}", &STEPS), [1.5, 1.75]);
        assert_eq!(scores(r#"{"norm": "l1"}"#, &STEPS), [1.5, 1.75]);
        assert_eq!(scores(r#"{"target": "delta"}"#, &STEPS), [2.5, 4.625]);
        let sum = |target| {
            let parameters = format!(r#"{{"target": "{target}", "reduce": "sum"}}"#);
            scores(&parameters, &STEPS)
        };
        assert_eq!(sum("output"), [3.0, 3.5]);
        assert_eq!(sum("delta"), [5.0, 9.25]);
        assert_eq!(scores(r#"{"window": {"ema": 0.5}}"#, &STEPS), [1.5, 1.75]);
    }

    #[test]
    fn rms_does_not_grow_with_the_width() {
        // The fourth module is as wide as the third, the fifth four times as wide.
        let modules = testing::modules(5);
        let width = |module: usize| modules[module].out_features as f64;
        assert_eq!((width(2), 4.0 * width(3)), (width(3), width(4)));
        let step = [[Some(8.0); 5]];
        let scores = testing::score::<Activation>(r#"{"norm": "rms"}"#, &step).unwrap();
        assert_eq!(scores[3], 8.0 / width(3).sqrt());
        assert_eq!(scores[3], 2.0 * scores[4]);
    }

    #[test]
    fn one_step_of_each_block_is_measured() {
        let wanted = |parameters| {
            let mut scorer = testing::scorer::<Activation>(parameters, 2).unwrap();
            scorer.start(&testing::start()).unwrap();
            let mut wanted = Vec::new();
            for step in 1..=50 {
                let mut upcoming = Upcoming::default();
                upcoming.step = step;
                upcoming.next_reallocation = Some(50);
                if scorer.wants(&upcoming) != Wants::NOTHING {
                    wanted.push(step);
                    let mut observation = Observation::default();
                    observation.step = step;
                    let values = vec![Some(1.0); 2];
                    let signal = scorer.needs().signals.remove(0);
                    observation.signals = vec![Measured { signal, values }];
                    scorer.observe(&observation).unwrap();
                }
            }
            wanted
        };
        let blocks = |steps: Vec<u64>| steps.iter().map(|step| (step - 1) / 10).collect::<Vec<_>>();
        assert_eq!(blocks(wanted("{}")), [0, 1, 2, 3, 4]);
        assert_eq!(wanted(r#"{"one_in": 1}"#).len(), 50);
        let none = testing::scorer::<Activation>(r#"{"one_in": 0}"#, 2);
        assert!(none.err().unwrap().to_string().contains("one_in"));
    }

    #[test]
    fn asks_for_the_signal_it_reads() {
        let signal = |parameters| testing::needs::<Activation>(parameters).unwrap().signals;
        assert_eq!(signal("{}"), [Signal::ACTIVATION_L2]);
        assert_eq!(signal(r#"{"norm": "l1"}"#), [Signal::ACTIVATION_L1]);
        assert_eq!(signal(r#"{"norm": "rms"}"#), [Signal::ACTIVATION_L2]);
        assert_eq!(signal(r#"{"target": "delta"}"#), [Signal::DELTA_L2]);
        assert!(testing::needs::<Activation>(r#"{"target": "delta", "norm": "l1"}"#).is_err());
    }

    #[test]
    fn conforms() {
        conformance::scorer::<Activation>().assert();
    }
}
