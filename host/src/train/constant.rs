//! The best answer that does not look at its input: what it is, and what it loses.

use crate::data::Label;

/// What is best answered to an input of which nothing is known, by the labels of the training data: their mean, or
/// every class by its frequency. A model that has learnt anything of its inputs loses less.
#[derive(Clone, Debug, PartialEq)]
pub enum Constant {
    /// Of values, under the squared error.
    Mean {
        /// The values' mean.
        mean: f64,
        /// Their variance, which is what it loses.
        variance: f64,
    },
    /// Of classes, under the cross-entropy.
    Frequencies {
        /// The logarithm of each class's frequency; of a class that no example has, of that of half a one.
        logarithms: Vec<f64>,
        /// The entropy of the frequencies in nats, which is what they lose.
        entropy: f64,
    },
}

impl Constant {
    /// Of the training data's `labels`, for a head of `outputs` logits; none where there are no labels, or of both
    /// kinds.
    pub fn of(labels: &[Label], outputs: usize) -> Option<Constant> {
        let count = labels.len() as f64;
        if let Some(values) = Label::values(labels) {
            let values = || values.iter().map(|value| f64::from(*value));
            let mean = values().sum::<f64>() / count;
            let squares: f64 = values().map(|value| (value - mean) * (value - mean)).sum();
            let variance = squares / count;
            return Some(Constant::Mean { mean, variance });
        }
        let mut counts = vec![0u64; outputs];
        for class in Label::classes(labels)? {
            *counts.get_mut(class as usize)? += 1;
        }
        let frequency = |seen: &u64| (*seen as f64).max(0.5) / count;
        let logarithms: Vec<f64> = counts.iter().map(|seen| frequency(seen).ln()).collect();
        let shares = counts.iter().zip(&logarithms);
        let entropy = -shares
            .map(|(seen, logarithm)| *seen as f64 / count * logarithm)
            .sum::<f64>();
        Some(Constant::Frequencies {
            logarithms,
            entropy,
        })
    }

    /// What it loses on average over the training data: the labels' variance or entropy.
    pub fn loss(&self) -> f64 {
        match self {
            Constant::Mean { variance, .. } => *variance,
            Constant::Frequencies { entropy, .. } => *entropy,
        }
    }

    /// What it loses on these examples in all.
    pub fn loss_on(&self, labels: &[Label]) -> f64 {
        let of = |label: &Label| match (self, label) {
            (Constant::Mean { mean, .. }, Label::Value(value)) => {
                (f64::from(*value) - mean).powi(2)
            }
            (Constant::Frequencies { logarithms, .. }, Label::Class(class)) => {
                -logarithms.get(*class as usize).copied().unwrap_or(0.0)
            }
            _ => 0.0,
        };
        labels.iter().map(of).sum()
    }

    /// The logits that say it: the mean, or the frequencies' logarithms about their own mean, which is where a
    /// softmax without a preference stands.
    pub fn logits(&self) -> Vec<f32> {
        match self {
            Constant::Mean { mean, .. } => vec![*mean as f32],
            Constant::Frequencies { logarithms, .. } => {
                let middle = logarithms.iter().sum::<f64>() / logarithms.len() as f64;
                let about = logarithms.iter().map(|logarithm| logarithm - middle);
                about.map(|logit| logit as f32).collect()
            }
        }
    }

    /// The mean, where answering 0 loses more than twice as much.
    pub fn far_mean(&self) -> Option<f64> {
        match self {
            Constant::Mean { mean, variance } if mean * mean > *variance => Some(*mean),
            _ => None,
        }
    }

    /// What it says, in words.
    pub fn answer(&self) -> String {
        match self {
            Constant::Mean { mean, .. } => {
                format!("answering their mean, {mean:.4}, to everything")
            }
            Constant::Frequencies { .. } => "answering their frequencies to everything".to_owned(),
        }
    }

    /// What [`loss`](Self::loss) is called.
    pub fn name(&self) -> &'static str {
        match self {
            Constant::Mean { .. } => "variance",
            Constant::Frequencies { .. } => "entropy",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
    }

    #[test]
    fn of_values_it_is_the_mean_and_loses_the_variance() {
        let labels = [1.0, 2.0, 3.0, 6.0].map(Label::Value);
        let constant = Constant::of(&labels, 1).unwrap();
        assert_eq!(constant.logits(), [3.0]);
        // (4 + 1 + 0 + 9) / 4
        close(constant.loss(), 3.5);
        close(constant.loss_on(&labels), 4.0 * 3.5);
        close(constant.loss_on(&labels[3..]), 9.0);
        assert_eq!(constant.far_mean(), Some(3.0));
        let near = [-1.0, 2.0].map(Label::Value);
        assert_eq!(Constant::of(&near, 1).unwrap().far_mean(), None);
    }

    #[test]
    fn of_classes_it_is_their_frequencies_and_loses_the_entropy() {
        let labels = [0, 1, 1, 1].map(Label::Class);
        let constant = Constant::of(&labels, 2).unwrap();
        // A coin of 1/4: 0.5623351446188083 nats.
        close(constant.loss(), 0.562_335_144_618_808_3);
        close(constant.loss_on(&labels), 4.0 * constant.loss());
        close(constant.loss_on(&labels[..1]), 4f64.ln());
        let logits = constant.logits();
        // softmax([−a, a]) has the ratio exp(2a) = 3.
        assert!((logits[1] - 0.5 * 3f32.ln()).abs() < 1e-6 && logits[0] == -logits[1]);
    }

    #[test]
    fn a_class_without_an_example_is_unlikely_and_not_impossible() {
        let labels = [0, 1].map(Label::Class);
        let constant = Constant::of(&labels, 3).unwrap();
        close(constant.loss(), 2f64.ln());
        assert!(constant.logits().iter().all(|logit| logit.is_finite()));
    }

    #[test]
    fn without_labels_of_one_kind_there_is_none() {
        assert_eq!(Constant::of(&[], 2), None);
        assert_eq!(Constant::of(&[Label::Class(0), Label::Value(1.0)], 2), None);
        assert_eq!(Constant::of(&[Label::Class(2)], 2), None);
    }
}
