//! What a task is judged by. Definitions follow scikit-learn and SciPy, except that a value they leave
//! undefined (a division of nothing by nothing) is 0 here, so that a model that always answers the
//! same scores no better than chance and can still be compared.

mod chunks;

use crate::error::{Error, Result};
pub use crate::recipe::Metric;
use crate::recipe::{Problem, TOP};

/// What a model answered beside what was right: slices of equal length, one item per example, or per word.
#[derive(Clone, Copy, Debug)]
pub enum Answers<'a> {
    /// Class indices, from 0.
    Classes {
        /// The model's.
        predicted: &'a [u32],
        /// The data's.
        expected: &'a [u32],
        /// How many classes the model would rather have answered than the data's.
        before: &'a [u32],
    },
    /// Tags of words, as class indices.
    Tags {
        /// The model's.
        predicted: &'a [u32],
        /// The data's.
        expected: &'a [u32],
        /// Of sentence `i` they are those from `offsets[i]` to before `offsets[i + 1]`.
        offsets: &'a [usize],
        /// What the classes are called.
        names: &'a [String],
    },
    /// Values of a regression.
    Values {
        /// The model's.
        predicted: &'a [f32],
        /// The data's.
        expected: &'a [f32],
    },
    /// Tokens that were predicted.
    Tokens {
        /// The sum of their losses, in nats.
        loss: f64,
        /// How many they are.
        count: usize,
    },
}

/// Refuses a metric that a problem, one of so many `classes`, does not have, before anything is trained or evaluated.
pub fn check(metrics: &[Metric], problem: Problem, classes: usize) -> Result<()> {
    for metric in metrics {
        if metric.problem() != problem {
            return Err(other_kind(*metric, problem));
        }
        if *metric == Metric::F1 && classes != 2 {
            return Err(Error::user(format!(
                "`data.metrics` names `f1`, which is for two classes, but there are {classes}"
            ))
            .help("name `macro_f1` or `accuracy` instead"));
        }
        if *metric == Metric::AccuracyTop5 && classes <= TOP {
            return Err(Error::user(format!(
                "`data.metrics` names `accuracy_top5`, which is for more than {TOP} classes, but there are {classes}"
            ))
            .help("name `accuracy` instead"));
        }
    }
    Ok(())
}

fn other_kind(metric: Metric, problem: Problem) -> Error {
    let needs = match metric.problem() {
        Problem::Classification => "a classification task",
        Problem::Regression => "a regression task",
        Problem::CausalLm => "causal language modelling",
        Problem::TokenClassification => "token classification",
    };
    Error::user(format!("the metric `{metric}` needs {needs}")).help(format!(
        "for {problem} there are: {}",
        Metric::names_for(problem)
    ))
}

/// Each of `metrics` over `answers`, in the order asked for.
///
/// An error for a metric of another kind of task, F1 of more than two classes, no examples at all
/// or lists of different length.
pub fn compute(metrics: &[Metric], answers: Answers<'_>) -> Result<Vec<(Metric, f64)>> {
    let (predicted, expected) = match answers {
        Answers::Classes {
            predicted,
            expected,
            ..
        }
        | Answers::Tags {
            predicted,
            expected,
            ..
        } => (predicted.len(), expected.len()),
        Answers::Values {
            predicted,
            expected,
        } => (predicted.len(), expected.len()),
        Answers::Tokens { count, .. } => (count, count),
    };
    if predicted != expected {
        return Err(Error::failure(format!(
            "{predicted} predictions for {expected} labels"
        )));
    }
    if expected == 0 {
        return Err(Error::user("there are no labelled examples to evaluate on")
            .help("check the validation file and `limit` in [data]"));
    }
    let chunks = match answers {
        Answers::Tags {
            predicted,
            expected,
            offsets,
            names,
        } => chunks::count(names, offsets, [predicted, expected]),
        _ => chunks::Counts::default(),
    };
    metrics
        .iter()
        .map(|&metric| Ok((metric, one(metric, answers, chunks)?)))
        .collect()
}

fn one(metric: Metric, answers: Answers<'_>, chunks: chunks::Counts) -> Result<f64> {
    match (metric, answers) {
        (
            Metric::Accuracy,
            Answers::Classes {
                predicted,
                expected,
                ..
            },
        ) => Ok(accuracy(predicted, expected)),
        (Metric::AccuracyTop5, Answers::Classes { before, .. }) => {
            let right = before.iter().filter(|before| (**before as usize) < TOP);
            Ok(ratio(right.count() as f64, before.len() as f64))
        }
        (Metric::OverallF1, Answers::Tags { .. }) => Ok(chunks.f1()),
        (Metric::OverallPrecision, Answers::Tags { .. }) => Ok(chunks.precision()),
        (Metric::OverallRecall, Answers::Tags { .. }) => Ok(chunks.recall()),
        (
            Metric::OverallAccuracy,
            Answers::Tags {
                predicted,
                expected,
                ..
            },
        ) => Ok(accuracy(predicted, expected)),
        (
            Metric::F1,
            Answers::Classes {
                predicted,
                expected,
                ..
            },
        ) => match predicted.iter().chain(expected).max() {
            Some(&class) if class > 1 => Err(Error::user(format!(
                "the metric `f1` is for two classes, but there is a class {class}"
            ))
            .help("name `macro_f1` or `accuracy` instead")),
            _ => Ok(f1(predicted, expected)),
        },
        (
            Metric::MacroF1,
            Answers::Classes {
                predicted,
                expected,
                ..
            },
        ) => Ok(macro_f1(predicted, expected)),
        (
            Metric::Matthews,
            Answers::Classes {
                predicted,
                expected,
                ..
            },
        ) => Ok(matthews(predicted, expected)),
        (
            Metric::Pearson,
            Answers::Values {
                predicted,
                expected,
            },
        ) => Ok(pearson(&wide(predicted), &wide(expected))),
        (
            Metric::Spearman,
            Answers::Values {
                predicted,
                expected,
            },
        ) => Ok(spearman(&wide(predicted), &wide(expected))),
        (Metric::Perplexity, Answers::Tokens { loss, count }) => Ok((loss / count as f64).exp()),
        (metric, Answers::Classes { .. }) => Err(other_kind(metric, Problem::Classification)),
        (metric, Answers::Tags { .. }) => Err(other_kind(metric, Problem::TokenClassification)),
        (metric, Answers::Values { .. }) => Err(other_kind(metric, Problem::Regression)),
        (metric, Answers::Tokens { .. }) => Err(other_kind(metric, Problem::CausalLm)),
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// The share of positions where both agree; 0 for empty lists.
pub fn accuracy(predicted: &[u32], expected: &[u32]) -> f64 {
    let right = predicted
        .iter()
        .zip(expected)
        .filter(|(p, e)| p == e)
        .count();
    ratio(right as f64, expected.len() as f64)
}

/// F1 of class 1: `2·tp / (2·tp + fp + fn)`; 0 where class 1 is neither predicted nor expected.
pub fn f1(predicted: &[u32], expected: &[u32]) -> f64 {
    f1_of(1, predicted, expected)
}

/// The unweighted mean of F1 over every class that is predicted or expected.
pub fn macro_f1(predicted: &[u32], expected: &[u32]) -> f64 {
    let classes: std::collections::BTreeSet<u32> =
        predicted.iter().chain(expected).copied().collect();
    let sum: f64 = classes
        .iter()
        .map(|&class| f1_of(class, predicted, expected))
        .sum();
    ratio(sum, classes.len() as f64)
}

fn f1_of(class: u32, predicted: &[u32], expected: &[u32]) -> f64 {
    let count = |list: &[u32]| list.iter().filter(|c| **c == class).count();
    let hits = predicted
        .iter()
        .zip(expected)
        .filter(|(p, e)| **p == class && **e == class)
        .count();
    ratio(
        2.0 * hits as f64,
        (count(predicted) + count(expected)) as f64,
    )
}

/// Matthews correlation (Gorodkin's `R_K` beyond two classes), as scikit-learn computes it:
/// `(c·s - Σ pₖtₖ) / √((s² - Σ pₖ²)(s² - Σ tₖ²))` with `s` examples, `c` of them right, and `pₖ`, `tₖ`
/// times class k predicted and expected; 0 where either list knows only one class.
pub fn matthews(predicted: &[u32], expected: &[u32]) -> f64 {
    let mut times = std::collections::BTreeMap::<u32, (f64, f64)>::new();
    for (p, e) in predicted.iter().zip(expected) {
        times.entry(*p).or_default().0 += 1.0;
        times.entry(*e).or_default().1 += 1.0;
    }
    let right = predicted
        .iter()
        .zip(expected)
        .filter(|(p, e)| p == e)
        .count() as f64;
    let all = expected.len() as f64;
    let sum = |term: fn(&(f64, f64)) -> f64| times.values().map(term).sum::<f64>();
    let spread = |squares: f64| (all * all - squares).sqrt();
    let covariance = right * all - sum(|(p, t)| p * t);
    ratio(
        covariance,
        spread(sum(|(p, _)| p * p)) * spread(sum(|(_, t)| t * t)),
    )
}

/// Pearson's correlation; 0 where either list is constant (SciPy: undefined), NaN where a value is
/// not finite.
pub fn pearson(x: &[f64], y: &[f64]) -> f64 {
    if x.iter().chain(y).any(|value| !value.is_finite()) {
        return f64::NAN;
    }
    // Asked of the values, not of the variance, which rounding may leave just above zero.
    let constant = |values: &[f64]| values.windows(2).all(|pair| pair[0] == pair[1]);
    if constant(x) || constant(y) {
        return 0.0;
    }
    let centred = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values
            .iter()
            .map(|value| value - mean)
            .collect::<Vec<f64>>()
    };
    let (x, y) = (centred(x), centred(y));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    ratio(dot(&x, &y), dot(&x, &x).sqrt() * dot(&y, &y).sqrt()).clamp(-1.0, 1.0)
}

/// Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    if x.iter().chain(y).any(|value| value.is_nan()) {
        return f64::NAN;
    }
    pearson(&ranks(x), &ranks(y))
}

/// The rank of each value from 1; equal values get the mean of the ranks they take up.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0.0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let many = equal.len() as f64;
        for &index in equal {
            ranks[index] = before + (many + 1.0) / 2.0;
        }
        before += many;
    }
    ranks
}

/// `part / whole`, and 0 for nothing of nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(actual: f64, expected: f64) {
        assert!(
            (actual - expected).abs() < 1e-12,
            "{actual} is not {expected}"
        );
    }

    /// tp 3, fp 1, fn 2, tn 4.
    const PREDICTED: [u32; 10] = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0];
    const EXPECTED: [u32; 10] = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0];

    #[test]
    fn two_classes() {
        close(accuracy(&PREDICTED, &EXPECTED), 0.7);
        close(f1(&PREDICTED, &EXPECTED), 6.0 / 9.0);
        close(
            macro_f1(&PREDICTED, &EXPECTED),
            (6.0 / 9.0 + 8.0 / 11.0) / 2.0,
        );
        // (tp·tn - fp·fn) / √((tp+fp)(tp+fn)(tn+fp)(tn+fn))
        close(
            matthews(&PREDICTED, &EXPECTED),
            (3.0 * 4.0 - 2.0) / (4.0_f64 * 5.0 * 5.0 * 6.0).sqrt(),
        );
        close(matthews(&EXPECTED, &EXPECTED), 1.0);
        close(matthews(&EXPECTED.map(|class| 1 - class), &EXPECTED), -1.0);
    }

    #[test]
    fn three_classes() {
        let expected = [0, 0, 1, 1, 2, 2];
        let predicted = [0, 1, 1, 1, 2, 0];
        // c = 4, s = 6, p = (2, 3, 1), t = (2, 2, 2): (24 - 12) / √((36 - 14)(36 - 12)).
        close(
            matthews(&predicted, &expected),
            12.0 / (22.0_f64 * 24.0).sqrt(),
        );
        close(
            macro_f1(&predicted, &expected),
            (2.0 / 4.0 + 4.0 / 5.0 + 2.0 / 3.0) / 3.0,
        );
    }

    #[test]
    fn a_model_that_always_answers_the_same_gets_nothing() {
        assert_eq!(matthews(&[1; 10], &EXPECTED), 0.0);
        assert_eq!(matthews(&EXPECTED, &[0; 10]), 0.0);
        assert_eq!(f1(&[0; 10], &[0; 10]), 0.0);
        assert_eq!(pearson(&[0.1; 3], &[1.0, 2.0, 3.0]), 0.0);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[0.3; 3]), 0.0);
        assert_eq!(pearson(&[1.0], &[1.0]), 0.0);
    }

    #[test]
    fn correlations() {
        // Centred: (-1, 0, 1) and (-1, 1, 0): 1 / 2.
        close(pearson(&[1.0, 2.0, 3.0], &[5.0, 7.0, 6.0]), 0.5);
        close(pearson(&[1.0, 2.0, 3.0], &[-2.0, -4.0, -6.0]), -1.0);
        // No ties: 1 - 6 Σd² / (n(n² - 1)) with d = (0, 1, 1, 0).
        close(
            spearman(&[1.0, 10.0, 100.0, 1000.0], &[1.0, 3.0, 2.0, 4.0]),
            0.8,
        );
        // Ties: ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): 4.5 / √(4.5 · 5).
        close(
            spearman(&[1.0, 2.0, 2.0, 3.0], &[1.0, 2.0, 3.0, 4.0]),
            4.5 / (4.5_f64 * 5.0).sqrt(),
        );
        assert_eq!(
            ranks(&[3.0, -0.0, 0.0, 3.0, 3.0]),
            [4.0, 1.5, 1.5, 4.0, 4.0]
        );
    }

    #[test]
    fn not_a_number_stays_one() {
        assert!(pearson(&[1.0, f64::NAN], &[1.0, 2.0]).is_nan());
        assert!(pearson(&[1.0, f64::INFINITY], &[1.0, 2.0]).is_nan());
        assert!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]).is_nan());
        close(spearman(&[1.0, f64::INFINITY], &[1.0, 2.0]), 1.0);
    }

    #[test]
    fn computes_what_is_asked_for_in_order() {
        let answers = Answers::Classes {
            predicted: &PREDICTED,
            expected: &EXPECTED,
            before: &[0, 0, 0, 1, 1, 1, 0, 0, 0, 0],
        };
        let values = compute(&[Metric::F1, Metric::Accuracy], answers).unwrap();
        assert_eq!(
            values.iter().map(|(metric, _)| *metric).collect::<Vec<_>>(),
            [Metric::F1, Metric::Accuracy]
        );
        close(values[1].1, 0.7);
        let answers = Answers::Values {
            predicted: &[0.0, 1.0],
            expected: &[2.0, 5.0],
        };
        close(compute(&[Metric::Pearson], answers).unwrap()[0].1, 1.0);
    }

    #[test]
    fn the_right_class_is_looked_for_among_the_first_five() {
        let answers = Answers::Classes {
            predicted: &[0, 1, 2, 3],
            expected: &[0, 2, 0, 1],
            before: &[0, 4, 5, 1],
        };
        let metrics = [Metric::AccuracyTop5, Metric::Accuracy];
        let values = compute(&metrics, answers).unwrap();
        assert_eq!(values, [(metrics[0], 0.75), (metrics[1], 0.25)]);
    }

    #[test]
    fn refuses_what_cannot_be_computed() {
        let classes = |predicted, expected| Answers::Classes {
            predicted,
            expected,
            before: &[],
        };
        let values = Answers::Values {
            predicted: &[1.0],
            expected: &[1.0],
        };
        for (metric, answers, wanted) in [
            (
                Metric::F1,
                classes(&[0, 2], &[0, 1]),
                "two classes, but there is a class 2",
            ),
            (
                Metric::Pearson,
                classes(&[0], &[0]),
                "needs a regression task",
            ),
            (Metric::Accuracy, values, "needs a classification task"),
            (
                Metric::OverallF1,
                classes(&[0], &[0]),
                "needs token classification",
            ),
            (Metric::Accuracy, classes(&[], &[]), "no labelled examples"),
            (
                Metric::Accuracy,
                classes(&[0], &[0, 1]),
                "1 predictions for 2 labels",
            ),
        ] {
            let error = compute(&[metric], answers).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn a_metric_must_fit_the_classes_before_anything_is_trained() {
        let classification = Problem::Classification;
        assert!(check(&[Metric::F1], classification, 2).is_ok());
        assert!(check(&[Metric::MacroF1], classification, 3).is_ok());
        assert!(check(&[Metric::Perplexity], Problem::CausalLm, 0).is_ok());
        assert!(check(&[Metric::AccuracyTop5], classification, 6).is_ok());
        assert!(check(&[Metric::OverallRecall], Problem::TokenClassification, 9).is_ok());
        for (metric, problem, classes) in [
            (Metric::F1, classification, 3),
            (Metric::AccuracyTop5, classification, 5),
            (Metric::OverallF1, classification, 5),
            (Metric::Accuracy, Problem::TokenClassification, 5),
            (Metric::Pearson, classification, 2),
            (Metric::Accuracy, Problem::Regression, 0),
            (Metric::Perplexity, classification, 2),
            (Metric::Spearman, Problem::CausalLm, 0),
        ] {
            let error = check(&[metric], problem, classes).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(metric.name()), "{error}");
        }
    }

    #[test]
    fn the_recipes_names_are_the_metrics_names() {
        for metric in [
            Metric::Accuracy,
            Metric::AccuracyTop5,
            Metric::F1,
            Metric::MacroF1,
            Metric::Matthews,
            Metric::Pearson,
            Metric::Spearman,
            Metric::Perplexity,
            Metric::OverallF1,
            Metric::OverallPrecision,
            Metric::OverallRecall,
            Metric::OverallAccuracy,
        ] {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        }
    }
}
