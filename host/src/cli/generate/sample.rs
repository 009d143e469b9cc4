//! Which token comes next, of the logits of all.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

/// How a token is drawn, in the order of Transformers: temperature, then top-k, then top-p (Holtzman et al. 2020).
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    temperature: f64,
    top_k: Option<usize>,
    top_p: Option<f64>,
}

impl Sampler {
    /// A sampler, or what is wrong with its numbers.
    pub fn new(temperature: f64, top_k: Option<usize>, top_p: Option<f64>) -> Result<Self> {
        let refuse = |what: String, help: &str| Err(Error::user(what).help(help));
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return refuse(
                format!("--temperature is {temperature}"),
                "give 0 for the likeliest token, or a number above it",
            );
        }
        if top_k == Some(0) {
            return refuse(
                "--top-k is 0: no token is left".to_owned(),
                "give at least 1",
            );
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return refuse(
                format!("--top-p is {p}"),
                "give a probability above 0, up to 1",
            );
        }
        if temperature == 0.0 && (top_k.is_some() || top_p.is_some()) {
            return refuse(
                "--top-k and --top-p mean nothing at --temperature 0, which takes the likeliest token".to_owned(),
                "set --temperature 1, or leave them out",
            );
        }
        Ok(Sampler {
            temperature,
            top_k,
            top_p,
        })
    }

    /// The draws of a text.
    pub fn start(self, seed: u64, text: u64) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(text);
        random
    }

    /// The next token. Of equal logits the first counts as the larger.
    pub fn next(self, logits: &[f32], random: &mut ChaCha8Rng) -> u32 {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        if self.temperature == 0.0 {
            return order[0] as u32;
        }
        order.truncate(self.top_k.unwrap_or(usize::MAX));
        let most = f64::from(logits[order[0]]);
        let weight = |token: &usize| ((f64::from(logits[*token]) - most) / self.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        if let Some(p) = self.top_p {
            let limit = p * weights.iter().sum::<f64>();
            let mut sum = 0.0;
            // The smallest set that has the probability, never empty.
            let kept = weights.iter().take_while(|weight| {
                let before = sum;
                sum += **weight;
                before < limit
            });
            let kept = kept.count().max(1);
            weights.truncate(kept);
        }
        let mut left = random.random_range(0.0..1.0) * weights.iter().sum::<f64>();
        for (token, weight) in order.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return *token as u32;
            }
        }
        order[weights.len() - 1] as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each of four tokens is drawn of 4,000, their probabilities being 0.5, 0.25, 0.15 and 0.1.
    fn drawn(temperature: f64, top_k: Option<usize>, top_p: Option<f64>) -> [f64; 4] {
        let logits = [0.25f32, 0.5, 0.1, 0.15].map(f32::ln);
        let sampler = Sampler::new(temperature, top_k, top_p).expect("valid");
        let mut random = sampler.start(3, 0);
        let mut counts = [0u32; 4];
        for _ in 0..4000 {
            counts[sampler.next(&logits, &mut random) as usize] += 1;
        }
        counts.map(|count| f64::from(count) / 4000.0)
    }

    fn close(found: [f64; 4], expected: [f64; 4]) {
        for (found, expected) in found.iter().zip(expected) {
            // Four standard deviations.
            let off = 4.0 * (expected * (1.0 - expected) / 4000.0f64).sqrt();
            assert!((found - expected).abs() <= off, "{found}, not {expected}");
        }
    }

    #[test]
    fn tokens_are_drawn_by_their_probabilities() {
        close(drawn(0.0, None, None), [0.0, 1.0, 0.0, 0.0]);
        close(drawn(1.0, None, None), [0.25, 0.5, 0.1, 0.15]);
        close(drawn(1.0, Some(2), None), [1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        // 0.5 and 0.25 are not yet 0.8.
        close(
            drawn(1.0, None, Some(0.8)),
            [0.25 / 0.9, 0.5 / 0.9, 0.0, 0.15 / 0.9],
        );
        close(
            drawn(1.0, None, Some(0.7)),
            [1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0],
        );
        close(drawn(1.0, None, Some(1e-9)), [0.0, 1.0, 0.0, 0.0]);
        // Squares.
        let sum = 0.0625 + 0.25 + 0.01 + 0.0225;
        close(
            drawn(0.5, None, None),
            [0.0625 / sum, 0.25 / sum, 0.01 / sum, 0.0225 / sum],
        );
    }

    #[test]
    fn numbers_that_mean_nothing_are_refused() {
        for (temperature, k, p, words) in [
            (-1.0, None, None, "--temperature is -1"),
            (f64::NAN, None, None, "--temperature"),
            (1.0, Some(0), None, "--top-k is 0"),
            (1.0, None, Some(0.0), "--top-p is 0"),
            (1.0, None, Some(1.5), "--top-p is 1.5"),
            (0.0, Some(3), None, "--temperature 0"),
        ] {
            let error = Sampler::new(temperature, k, p).expect_err(words);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
