//! AdaLoRA's importance: averages of sensitivity and of its uncertainty (Zhang et al. 2023, equations 9 to 11).

use serde::{Deserialize, Serialize};

use crate::{ModuleInfo, Result};

/// The decays of both averages.
///
/// ```text
/// Ī ← β₁ Ī + (1 − β₁) I        Ū ← β₂ Ū + (1 − β₂) |I − Ī|        s = Ī · Ū
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Smoothing {
    /// `β₁`, of the average sensitivity.
    pub beta1: f64,
    /// `β₂`, of the average uncertainty.
    pub beta2: f64,
}

impl Smoothing {
    /// An error, for parameters called `beta1` and `beta2`, if one of them is no decay.
    pub fn new(beta1: f64, beta2: f64) -> Result<Self> {
        for (name, beta) in [("beta1", beta1), ("beta2", beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(format!(
                    "parameter `{name}` is {beta}, but must be at least 0 and less than 1"
                )
                .into());
            }
        }
        Ok(Smoothing { beta1, beta2 })
    }

    /// Adds a value `I` to `Ī` and `Ū`. An error if it is no sensitivity: not finite, or negative.
    pub fn add(&self, mean: &mut f64, uncertainty: &mut f64, value: f64) -> Result<()> {
        if !value.is_finite() || value < 0.0 {
            return Err(format!("the sensitivity measured is {value}").into());
        }
        *mean = self.beta1 * *mean + (1.0 - self.beta1) * value;
        *uncertainty = self.beta2 * *uncertainty + (1.0 - self.beta2) * (value - *mean).abs();
        Ok(())
    }
}

/// Both averages of every component, by module.
///
/// Where AdaLoRA smooths each entry of A and B and then takes means, here the means are smoothed: one number per
/// component crosses to the plugin ([`Observation::components`](crate::Observation::components)).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComponentImportance {
    /// `Ī`, `r_max` values of each module.
    pub sensitivity: Vec<Vec<f64>>,
    /// `Ū`, as many.
    pub uncertainty: Vec<Vec<f64>>,
}

impl ComponentImportance {
    /// Nothing measured yet of the components of these modules, `r_max` each.
    pub fn new(modules: &[ModuleInfo]) -> Self {
        let zeros = modules.iter().map(|module| vec![0.0; module.rank as usize]);
        let zeros: Vec<Vec<f64>> = zeros.collect();
        ComponentImportance {
            sensitivity: zeros.clone(),
            uncertainty: zeros,
        }
    }

    /// Adds what was measured in a step: of each module all its components, or none where it had no gradient. Those that
    /// are not `there` are left as they are. An error if these are other modules or ranks.
    pub fn observe(
        &mut self,
        smoothing: &Smoothing,
        components: &[Vec<f32>],
        there: Option<&[Vec<bool>]>,
    ) -> Result<()> {
        let (measured, modules) = (components.len(), self.sensitivity.len());
        if measured != modules {
            return Err(
                format!("components of {measured} modules were measured, not {modules}").into(),
            );
        }
        for (module, measured) in components.iter().enumerate() {
            let means = &mut self.sensitivity[module];
            if measured.is_empty() {
                continue;
            }
            if measured.len() != means.len() {
                return Err(format!(
                    "module {module}: {} components were measured, not {}",
                    measured.len(),
                    means.len()
                )
                .into());
            }
            let averages = means.iter_mut().zip(&mut self.uncertainty[module]);
            for (index, ((mean, uncertainty), value)) in averages.zip(measured).enumerate() {
                if there.is_some_and(|there| !there[module][index]) {
                    continue;
                }
                let added = smoothing.add(mean, uncertainty, f64::from(*value));
                added.map_err(|error| format!("module {module}: {error}"))?;
            }
        }
        Ok(())
    }

    /// `Ī · Ū` of a component.
    pub fn score(&self, module: usize, component: usize) -> f64 {
        self.sensitivity[module][component] * self.uncertainty[module][component]
    }

    /// Forgets a component.
    pub fn forget(&mut self, module: usize, component: usize) {
        self.sensitivity[module][component] = 0.0;
        self.uncertainty[module][component] = 0.0;
    }

    /// How many components each module has.
    pub fn ranks(&self) -> impl ExactSizeIterator<Item = usize> {
        self.sensitivity.iter().map(Vec::len)
    }

    /// Whether this is of as many modules with as many components, as a saved state has to be.
    pub fn fits(&self, ranks: impl ExactSizeIterator<Item = usize> + Clone) -> bool {
        let fits = |lists: &Vec<Vec<f64>>| {
            lists.len() == ranks.len() && lists.iter().map(Vec::len).eq(ranks.clone())
        };
        fits(&self.sensitivity) && fits(&self.uncertainty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn averages_are_those_of_the_paper() {
        let smoothing = Smoothing::new(0.5, 0.0).unwrap();
        let (mut mean, mut uncertainty) = (0.0, 0.0);
        for value in [4.0, 1.0] {
            smoothing.add(&mut mean, &mut uncertainty, value).unwrap();
        }
        assert_eq!((mean, uncertainty), (1.5, 0.5));
        for (beta1, beta2, name) in [
            (1.0, 0.5, "beta1"),
            (0.5, -0.1, "beta2"),
            (f64::NAN, 0.5, "beta1"),
        ] {
            let error = Smoothing::new(beta1, beta2).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn components_of_modules_without_gradient_and_those_that_are_not_there_stay() {
        let modules = testing::modules(2);
        let mut importance = ComponentImportance::new(&modules);
        let smoothing = Smoothing::new(0.5, 0.5).unwrap();
        let rank = modules[0].rank as usize;
        let mut there = vec![vec![true; rank]; 2];
        there[0][1] = false;
        importance
            .observe(&smoothing, &[vec![2.0; rank], Vec::new()], Some(&there))
            .unwrap();
        assert_eq!(importance.score(0, 0), 0.5);
        assert_eq!((importance.score(0, 1), importance.score(1, 0)), (0.0, 0.0));
        importance.forget(0, 0);
        assert_eq!(importance.score(0, 0), 0.0);
        let wrong = |components: &[Vec<f32>]| {
            let mut importance = importance.clone();
            importance
                .observe(&smoothing, components, None)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            wrong(&[vec![1.0; rank]]),
            "components of 1 modules were measured, not 2"
        );
        assert!(wrong(&[vec![1.0], Vec::new()]).contains("module 0: 1 components"));
        assert_eq!(
            wrong(&[Vec::new(), vec![-1.0; rank]]),
            "module 1: the sensitivity measured is -1"
        );
        assert!(importance.fits([rank, rank].into_iter()) && !importance.fits([rank].into_iter()));
    }
}
