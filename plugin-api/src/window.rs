//! What most scorers share: adding measurements up, module by module, over a stretch of steps.

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

/// Over which steps a scorer adds up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// Every step since the run began.
    #[default]
    Run,
    /// The steps since the last reallocation.
    Period,
    /// An exponential moving average of every step, `s ← βs + (1 − β)v` with this β; it starts at the
    /// first value measured.
    Ema(#[schemars(range(min = 0.0, max = 1.0), example = 0.9)] f64),
}

/// One running total per module.
#[derive(Clone, Debug, PartialEq)]
pub struct Accumulated {
    window: Window,
    /// None for a module not measured yet.
    totals: Vec<Option<f64>>,
}

impl Accumulated {
    /// Totals of zero for so many `modules`; an error for a β outside 0..1.
    pub fn new(window: Window, modules: usize) -> Result<Self> {
        if let Window::Ema(beta) = window
            && !(0.0..1.0).contains(&beta)
        {
            return Err(format!(
                "parameter `window`: ema is {beta}, but must be at least 0 and less than 1"
            )
            .into());
        }
        Ok(Accumulated {
            window,
            totals: vec![None; modules],
        })
    }

    /// Takes in one step's values, one per module, none of them negative. A module that was not
    /// measured keeps its total.
    pub fn add(&mut self, values: impl ExactSizeIterator<Item = Option<f64>>) -> Result<()> {
        if values.len() != self.totals.len() {
            return Err(format!(
                "{} values were measured for {} modules",
                values.len(),
                self.totals.len()
            )
            .into());
        }
        for (module, (total, value)) in self.totals.iter_mut().zip(values).enumerate() {
            let Some(value) = value else { continue };
            if !value.is_finite() || value < 0.0 {
                return Err(format!("module {module}: the value measured is {value}").into());
            }
            *total = Some(match (*total, self.window) {
                (None, _) => value,
                (Some(total), Window::Ema(beta)) => beta * total + (1.0 - beta) * value,
                (Some(total), Window::Run | Window::Period) => total + value,
            });
        }
        Ok(())
    }

    /// The totals, one per module; zero where nothing has been measured.
    pub fn scores(&self) -> Vec<f64> {
        self.totals
            .iter()
            .map(|total| total.unwrap_or(0.0))
            .collect()
    }

    /// Starts afresh if the window is [`Window::Period`].
    pub fn reallocated(&mut self) {
        if self.window == Window::Period {
            self.totals.fill(None);
        }
    }

    /// The totals as bytes.
    pub fn save(&self) -> Result<Vec<u8>> {
        save_state(&self.totals)
    }

    /// Takes back what [`save`](Self::save) gave; an error if it was for another number of modules.
    pub fn load(&mut self, state: &[u8]) -> Result<()> {
        let totals: Vec<Option<f64>> = load_state(state)?;
        if totals.len() != self.totals.len() {
            return Err(format!(
                "the saved state is of {} modules, but the model has {}",
                totals.len(),
                self.totals.len()
            )
            .into());
        }
        self.totals = totals;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn after(window: Window, steps: &[[Option<f64>; 2]]) -> Accumulated {
        let mut accumulated = Accumulated::new(window, 2).unwrap();
        for step in steps {
            accumulated.add(step.iter().copied()).unwrap();
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
        assert!(Accumulated::new(Window::Ema(1.0), 1).is_err());
        assert!(Accumulated::new(Window::Ema(-0.1), 1).is_err());
    }

    #[test]
    fn each_window_adds_up_its_own_way() {
        let steps = [[Some(4.0), None], [Some(2.0), Some(8.0)], [None, Some(1.0)]];
        assert_eq!(after(Window::Run, &steps).scores(), [6.0, 9.0]);
        assert_eq!(after(Window::Ema(0.5), &steps).scores(), [3.0, 4.5]);
        let mut period = after(Window::Period, &steps);
        assert_eq!(period.scores(), [6.0, 9.0]);
        period.reallocated();
        assert_eq!(period.scores(), [0.0, 0.0]);
        let mut run = after(Window::Run, &steps);
        run.reallocated();
        assert_eq!(run.scores(), [6.0, 9.0]);
    }

    #[test]
    fn state_comes_back_and_another_models_is_refused() {
        let old = after(Window::Run, &[[Some(0.1), None], [Some(0.2), None]]);
        let mut new = Accumulated::new(Window::Run, 2).unwrap();
        new.load(&old.save().unwrap()).unwrap();
        assert_eq!(new, old);
        let error = Accumulated::new(Window::Run, 3)
            .unwrap()
            .load(&old.save().unwrap());
        assert!(error.unwrap_err().to_string().contains("2 modules"));
    }

    #[test]
    fn bad_measurements_are_refused() {
        let mut one = Accumulated::new(Window::Run, 1).unwrap();
        assert!(one.add([Some(f64::NAN)].into_iter()).is_err());
        assert!(one.add([Some(-1.0)].into_iter()).is_err());
        assert!(one.add([Some(1.0), None].into_iter()).is_err());
    }
}
