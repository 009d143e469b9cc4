//! Means, spreads and paired differences.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::statistics::Statistics;

/// How sure an interval is.
pub const CONFIDENCE: f64 = 0.95;

/// Mean and sample standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Number of values.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation with n − 1; none of a single value.
    pub sd: Option<f64>,
}

impl Spread {
    /// Of `values`; none if there are none.
    pub fn of(values: &[f64]) -> Option<Spread> {
        (!values.is_empty()).then(|| Spread {
            count: values.len(),
            mean: values.mean(),
            sd: (values.len() > 1).then(|| values.std_dev()),
        })
    }
}

/// Differences between runs of the same seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// Of the differences.
    pub difference: Spread,
    /// The two-sided interval of their mean by Student's t with n − 1 degrees of freedom, at 95 %; none of a
    /// single pair.
    pub interval: Option<[f64; 2]>,
}

impl Paired {
    /// Of `pairs` of a value and the baseline's; none if there are none.
    pub fn of(pairs: &[(f64, f64)]) -> Option<Paired> {
        let differences: Vec<f64> = pairs.iter().map(|(value, base)| value - base).collect();
        let difference = Spread::of(&differences)?;
        let interval = difference.sd.and_then(|sd| {
            let pairs = difference.count as f64;
            let t = StudentsT::new(0.0, 1.0, pairs - 1.0).ok()?;
            let half = t.inverse_cdf(0.5 + CONFIDENCE / 2.0) * sd / pairs.sqrt();
            Some([difference.mean - half, difference.mean + half])
        });
        Some(Paired {
            difference,
            interval,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-6 * expected.abs(),
            "{found}, not {expected}"
        );
    }

    #[test]
    fn mean_and_sample_deviation() {
        // NIST's StRD "Numacc1", certified: mean 10000002, sample deviation 1.
        let spread = Spread::of(&[10_000_001.0, 10_000_003.0, 10_000_002.0]).unwrap();
        assert_eq!((spread.count, spread.mean), (3, 10_000_002.0));
        close(spread.sd.unwrap(), 1.0);
        assert_eq!(Spread::of(&[2.5]).unwrap().sd, None);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn the_paired_interval_is_that_of_the_textbook() {
        // Student's own sleep data (1908): ten patients, two drugs; R's t.test(paired = TRUE) gives a mean
        // difference of 1.58 and the interval 0.7001142..2.4598858.
        let first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0];
        let second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4];
        let pairs: Vec<(f64, f64)> = second.into_iter().zip(first).collect();
        let paired = Paired::of(&pairs).unwrap();
        close(paired.difference.mean, 1.58);
        close(paired.difference.sd.unwrap(), 1.229_995_483_5);
        let [low, high] = paired.interval.unwrap();
        close(low, 0.700_114_2);
        close(high, 2.459_885_8);
        // A table's quantile: t of 2 degrees of freedom at 97.5 % is 4.302653.
        let [low, high] = Paired::of(&[(1.0, 0.0), (2.0, 0.0), (3.0, 0.0)])
            .unwrap()
            .interval
            .unwrap();
        close((high - low) / 2.0, 4.302_652_7 / 3f64.sqrt());
        assert_eq!(Paired::of(&[(1.0, 0.5)]).unwrap().interval, None);
    }
}
