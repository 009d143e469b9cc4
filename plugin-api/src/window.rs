//! What most scorers share: one number per module out of what was measured over a stretch of steps.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Result, load_state, save_state};

/// Which norm of a signal a scorer reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// The sum of absolute values.
    L1,
    /// The square root of the sum of squares.
    #[default]
    L2,
    /// The l2 norm over the square root of how many values a module has: its outputs for one token, or its
    /// adapter's parameters. Modules of different sizes compare by it.
    Rms,
}

impl Norm {
    /// What the norm of a module with so many `values` is divided by.
    pub fn divisor(self, values: u64) -> f64 {
        match self {
            Norm::L1 | Norm::L2 => 1.0,
            Norm::Rms => (values.max(1) as f64).sqrt(),
        }
    }
}

/// Over which steps a scorer goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// Every measurement since the run began.
    #[default]
    Run,
    /// Those since the last reallocation.
    Period,
    /// An exponential moving average with this β, which decays by the steps that pass and not by those that are
    /// measured: `s ← β^Δ·s + (1 − β^Δ)·v`, Δ steps after the module's measurement before. It starts at the
    /// first value measured.
    Ema(#[schemars(range(min = 0.0, max = 1.0), example = 0.9)] f64),
}

/// What becomes of a module's measurements in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reduce {
    /// Their mean: modules that were measured in unequally many steps compare.
    #[default]
    Mean,
    /// Their sum: a module that was measured in half as many steps has half the score, all else being equal.
    Sum,
}

/// The measurements of each module in a window, and the number that they come to.
///
/// - `run` and `period`: the mean of the values measured, `Σ v / n`, or with [`Reduce::Sum`] their sum.
/// - `ema`: `s ← β^Δ·s + (1 − β^Δ)·v`, where Δ is the number of steps since the module was measured before. A module
///   measured in every step has the usual average; one measured at every tenth weighs what it saw last as if it had
///   seen it ten times (Eckner 2014, Algorithms for unevenly spaced time series, the average by the next point).
#[derive(Clone, Debug, PartialEq)]
pub struct Accumulated {
    window: Window,
    reduce: Reduce,
    state: State,
}

/// What [`Accumulated`] keeps in a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    /// The step of the last measurement of any module in the window; none before it.
    last: Option<u64>,
    /// None for a module not measured yet.
    modules: Vec<Option<Total>>,
}

/// What is kept of one module.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Total {
    /// The sum of the values, or their moving average.
    value: f64,
    /// Their number.
    count: u64,
    /// The step of the last.
    last: u64,
}

impl Accumulated {
    /// Nothing measured yet of so many `modules`; an error for a β outside 0..1, and for the sum of an average.
    pub fn new(window: Window, reduce: Reduce, modules: usize) -> Result<Self> {
        if let Window::Ema(beta) = window {
            if !(0.0..1.0).contains(&beta) {
                return Err(format!(
                    "parameter `window`: ema is {beta}, but must be at least 0 and less than 1"
                )
                .into());
            }
            if reduce == Reduce::Sum {
                return Err(
                    "parameter `reduce`: window = { ema = … } is an average already: leave `reduce` out, or \
                     choose window = \"run\" or \"period\""
                        .into(),
                );
            }
        }
        Ok(Accumulated {
            window,
            reduce,
            state: State {
                last: None,
                modules: vec![None; modules],
            },
        })
    }

    /// Takes in the values measured at `step`, one per module, none of them negative. A module that was not
    /// measured stays as it was. Several passes of one step (a calibration's, at step 0) count as so many steps.
    pub fn add(
        &mut self,
        step: u64,
        values: impl ExactSizeIterator<Item = Option<f64>>,
    ) -> Result<()> {
        let modules = &mut self.state.modules;
        if values.len() != modules.len() {
            return Err(format!(
                "{} values were measured for {} modules",
                values.len(),
                modules.len()
            )
            .into());
        }
        if let Some(last) = self.state.last
            && step < last
        {
            return Err(format!("step {step} was measured after step {last}").into());
        }
        for (module, (total, value)) in modules.iter_mut().zip(values).enumerate() {
            let Some(value) = value else { continue };
            if !value.is_finite() || value < 0.0 {
                return Err(format!("module {module}: the value measured is {value}").into());
            }
            let first = Total {
                value,
                count: 1,
                last: step,
            };
            *total = Some(total.map_or(first, |total| Total {
                value: match self.window {
                    Window::Ema(beta) => {
                        let kept = beta.powf((step - total.last).max(1) as f64);
                        kept * total.value + (1.0 - kept) * value
                    }
                    Window::Run | Window::Period => total.value + value,
                },
                count: total.count + 1,
                last: step,
            }));
        }
        self.state.last = Some(step);
        Ok(())
    }

    /// One score per module. A module of which nothing has been measured has none to show, and gets 0: the least
    /// there is. [`measured`](Self::measured) tells it from one that was measured as 0.
    pub fn scores(&self) -> Vec<f64> {
        let score = |total: &Total| match (self.window, self.reduce) {
            (Window::Run | Window::Period, Reduce::Mean) => total.value / total.count as f64,
            _ => total.value,
        };
        let modules = self.state.modules.iter();
        modules
            .map(|total| total.as_ref().map_or(0.0, score))
            .collect()
    }

    /// In how many steps each module was measured.
    pub fn measured(&self) -> Vec<u64> {
        let modules = self.state.modules.iter();
        modules
            .map(|total| total.map_or(0, |total| total.count))
            .collect()
    }

    /// The step of the last measurement in the window; none before the first. What [`Sampled`](crate::Sampled)
    /// asks for.
    pub fn last(&self) -> Option<u64> {
        self.state.last
    }

    /// Starts afresh if the window is [`Window::Period`].
    pub fn reallocated(&mut self) {
        if self.window == Window::Period {
            self.state.last = None;
            self.state.modules.fill(None);
        }
    }

    /// The measurements as bytes.
    pub fn save(&self) -> Result<Vec<u8>> {
        save_state(&self.state)
    }

    /// Takes back what [`save`](Self::save) gave; an error if it was for another number of modules.
    pub fn load(&mut self, state: &[u8]) -> Result<()> {
        let state: State = load_state(state)?;
        let (saved, own) = (state.modules.len(), self.state.modules.len());
        if saved != own {
            return Err(
                format!("the saved state is of {saved} modules, but the model has {own}").into(),
            );
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn after(window: Window, reduce: Reduce, steps: &[(u64, [Option<f64>; 2])]) -> Accumulated {
        let mut accumulated = Accumulated::new(window, reduce, 2).unwrap();
        for (step, values) in steps {
            accumulated.add(*step, values.iter().copied()).unwrap();
        }
        accumulated
    }

    #[test]
    fn windows_read_as_a_recipe_writes_them() {
        assert_eq!(from_value::<Window>(json!("run")).unwrap(), Window::Run);
        assert_eq!(
            from_value::<Window>(json!("period")).unwrap(),
            Window::Period
        );
        assert_eq!(
            from_value::<Window>(json!({"ema": 0.9})).unwrap(),
            Window::Ema(0.9)
        );
        assert!(from_value::<Window>(json!("ema")).is_err());
        assert_eq!(from_value::<Reduce>(json!("sum")).unwrap(), Reduce::Sum);
        let new = |window, reduce| Accumulated::new(window, reduce, 1);
        assert!(new(Window::Ema(1.0), Reduce::Mean).is_err());
        assert!(new(Window::Ema(-0.1), Reduce::Mean).is_err());
        assert!(new(Window::Ema(0.5), Reduce::Sum).is_err());
    }

    #[test]
    fn a_module_measured_in_fewer_steps_does_not_lose_by_counting() {
        let steps = [
            (1, [Some(4.0), None]),
            (2, [Some(2.0), Some(8.0)]),
            (3, [None, Some(1.0)]),
            (4, [Some(3.0), None]),
        ];
        let run = after(Window::Run, Reduce::Mean, &steps);
        assert_eq!(run.scores(), [3.0, 4.5]);
        assert_eq!(run.measured(), [3, 2]);
        assert_eq!(run.last(), Some(4));
        assert_eq!(after(Window::Run, Reduce::Sum, &steps).scores(), [9.0, 9.0]);
        let mut period = after(Window::Period, Reduce::Mean, &steps);
        assert_eq!(period.scores(), [3.0, 4.5]);
        period.reallocated();
        assert_eq!((period.scores(), period.last()), (vec![0.0, 0.0], None));
        let mut run = run;
        run.reallocated();
        assert_eq!(run.scores(), [3.0, 4.5]);
    }

    #[test]
    fn an_average_decays_by_the_steps_that_pass() {
        // β^Δ of a half, by Δ = 1 and 3: 1/2 and 1/8.
        let steps = [
            (1, [Some(4.0), Some(8.0)]),
            (2, [Some(2.0), None]),
            (4, [None, Some(16.0)]),
            (5, [Some(11.0), None]),
        ];
        let ema = after(Window::Ema(0.5), Reduce::Mean, &steps);
        let first = 3.0 / 8.0 + 11.0 * 7.0 / 8.0;
        let second = 8.0 / 8.0 + 16.0 * 7.0 / 8.0;
        assert_eq!(ema.scores(), [first, second]);
        // A value that stands still is the same however often it is looked at.
        for every in [1, 10] {
            let steps = (0..200).step_by(every).map(|step| {
                let value = if step < 100 { 0.0 } else { 1.0 };
                (step as u64, [Some(value), Some(1.0)])
            });
            let ema = after(Window::Ema(0.9), Reduce::Mean, &steps.collect::<Vec<_>>());
            let [rising, still] = ema.scores()[..] else {
                unreachable!("of two modules")
            };
            assert!((rising - (1.0 - 0.9f64.powi(100))).abs() < 1e-9, "{rising}");
            assert!((still - 1.0).abs() < 1e-12);
        }
        // Two passes before the first step weigh as two steps.
        let calibrated = [(0, [Some(4.0), None]), (0, [Some(2.0), None])];
        let ema = after(Window::Ema(0.5), Reduce::Mean, &calibrated);
        assert_eq!(ema.scores(), [3.0, 0.0]);
    }

    #[test]
    fn state_comes_back_and_another_models_is_refused() {
        let steps = [(3, [Some(0.1), None]), (7, [Some(0.2), None])];
        let new = |modules| Accumulated::new(Window::Run, Reduce::Mean, modules).unwrap();
        let old = after(Window::Run, Reduce::Mean, &steps);
        let mut back = new(2);
        back.load(&old.save().unwrap()).unwrap();
        assert_eq!(back, old);
        let error = new(3).load(&old.save().unwrap());
        assert!(error.unwrap_err().to_string().contains("2 modules"));
    }

    #[test]
    fn bad_measurements_are_refused() {
        let mut one = Accumulated::new(Window::Run, Reduce::Mean, 1).unwrap();
        assert!(one.add(1, [Some(f64::NAN)].into_iter()).is_err());
        assert!(one.add(1, [Some(-1.0)].into_iter()).is_err());
        assert!(one.add(1, [Some(1.0), None].into_iter()).is_err());
        one.add(2, [Some(1.0)].into_iter()).unwrap();
        assert!(one.add(1, [Some(1.0)].into_iter()).is_err());
    }
}
