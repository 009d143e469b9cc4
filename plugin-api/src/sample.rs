//! Randomness for allocators: the same seed draws the same modules on every machine and, as far as
//! the API's version stays, in every release.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of random numbers, a function of its seed alone.
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The stream of `seed`, such as [`AllocationRequest::seed`](crate::AllocationRequest::seed).
    pub fn new(seed: u64) -> Self {
        // The key is written out here rather than through `seed_from_u64`, whose expansion is the
        // rand crates' to change.
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Random(ChaCha8Rng::from_seed(key))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number drawn uniformly from the 2⁵³ evenly spaced ones in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// `count` different positions of `weights`, in the order drawn: each draw takes one of the positions
/// left with a probability in proportion to its weight. Positions of weight zero (and any that is
/// negative or not finite) come after all others, with equal chances.
///
/// Exact successive sampling in O((n + count) log n); `count` beyond the length draws everything.
pub fn draw_without_replacement(weights: &[f64], count: usize, random: &mut Random) -> Vec<usize> {
    draw(weights.len(), count, random, |left| relative(weights, left))
}

/// [`draw_without_replacement`] with weights given by their natural logarithms, for weights that no number
/// could hold: `exp` of a quotient's logarithm may be beyond the largest or below the smallest. A weight of
/// zero is minus infinity; one that is not a number, or is infinite, counts as zero.
pub fn draw_by_logarithms(logarithms: &[f64], count: usize, random: &mut Random) -> Vec<usize> {
    draw(logarithms.len(), count, random, |left| {
        let weight = |index: &usize| Some(logarithms[*index]).filter(|weight| weight.is_finite());
        let largest = left
            .iter()
            .filter_map(weight)
            .fold(f64::NEG_INFINITY, f64::max);
        if largest == f64::NEG_INFINITY {
            return vec![1.0; left.len()];
        }
        let share = |index| weight(index).map_or(0.0, |weight| (weight - largest).exp());
        left.iter().map(share).collect()
    })
}

/// Draws `count` of `all` positions; `relative` gives the weights of those left, the largest of them 1.
fn draw(
    all: usize,
    count: usize,
    random: &mut Random,
    relative: impl Fn(&[usize]) -> Vec<f64>,
) -> Vec<usize> {
    let mut left: Vec<usize> = (0..all).collect();
    let mut drawn = Vec::with_capacity(count.min(all));
    while drawn.len() < count && !left.is_empty() {
        // One round draws until the weights in the tree are used up. Weights too small to be seen
        // beside the round's largest wait for the next round; the last round has only zeros.
        let mut tree = Tree::new(&relative(&left));
        while drawn.len() < count
            && let Some(leaf) = tree.take(random.uniform())
        {
            drawn.push(left[leaf]);
            left[leaf] = usize::MAX;
        }
        left.retain(|index| *index != usize::MAX);
    }
    drawn
}

/// The weights at `positions`, the largest scaled to 1, so that their sum neither overflows nor
/// vanishes; all 1 where none is positive.
fn relative(weights: &[f64], positions: &[usize]) -> Vec<f64> {
    let weight = |index: &usize| Some(weights[*index]).filter(|w| w.is_finite() && *w > 0.0);
    let largest = positions.iter().filter_map(weight).fold(0.0, f64::max);
    if largest == 0.0 {
        return vec![1.0; positions.len()];
    }
    positions
        .iter()
        .map(|index| weight(index).unwrap_or(0.0) / largest)
        .collect()
}

/// A binary tree of partial sums over the weights: node `i` is the sum of `2i` and `2i + 1`, the
/// leaves fill the upper half. A sum is always made anew from its two children, so that taking
/// leaves out leaves no rounding error behind.
struct Tree {
    sums: Vec<f64>,
    leaves: usize,
}

impl Tree {
    fn new(weights: &[f64]) -> Self {
        let leaves = weights.len().next_power_of_two();
        let mut sums = vec![0.0; 2 * leaves];
        sums[leaves..leaves + weights.len()].copy_from_slice(weights);
        for node in (1..leaves).rev() {
            sums[node] = sums[2 * node] + sums[2 * node + 1];
        }
        Tree { sums, leaves }
    }

    /// Takes out the leaf in which the share `at` (from [0, 1)) of the total falls; none where the
    /// total is zero.
    fn take(&mut self, at: f64) -> Option<usize> {
        if self.sums[1] <= 0.0 {
            return None;
        }
        let mut rest = at * self.sums[1];
        let mut node = 1;
        while node < self.leaves {
            let (left, right) = (self.sums[2 * node], self.sums[2 * node + 1]);
            // Rounding may put `rest` at or past the end: never walk into an empty half.
            if rest < left || right <= 0.0 {
                node *= 2;
            } else {
                rest -= left;
                node = 2 * node + 1;
            }
        }
        let leaf = node - self.leaves;
        self.sums[node] = 0.0;
        while node > 1 {
            node /= 2;
            self.sums[node] = self.sums[2 * node] + self.sums[2 * node + 1];
        }
        Some(leaf)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::testing::ChiSquare;

    /// The exact probability of every ordered draw of `count` out of `weights`.
    fn enumerate(weights: &[f64], count: usize) -> HashMap<Vec<usize>, f64> {
        let mut draws = HashMap::from([(Vec::new(), 1.0)]);
        for _ in 0..count {
            let mut longer = HashMap::new();
            for (draw, chance) in draws {
                let left: Vec<usize> = (0..weights.len()).filter(|i| !draw.contains(i)).collect();
                let total: f64 = left.iter().map(|&i| weights[i]).sum();
                for i in left {
                    let next = [draw.as_slice(), &[i]].concat();
                    longer.insert(next, chance * weights[i] / total);
                }
            }
            draws = longer;
        }
        draws
    }

    #[test]
    fn draws_follow_the_exact_distribution_of_successive_sampling() {
        let trials = 100_000;
        for (weights, count) in [
            (vec![0.5, 0.3, 0.15, 0.05], 2),
            (vec![1e-3, 1.0, 2.0, 3.0, 4.0], 1),
            (vec![1.0, 1.0, 1.0, 1.0, 1.0], 3),
            (vec![3e300, 2e300, 1e300, 2e300], 3),
        ] {
            let exact = enumerate(&weights, count);
            let mut seen: HashMap<Vec<usize>, u64> = HashMap::new();
            for seed in 0..trials {
                let draw = draw_without_replacement(&weights, count, &mut Random::new(seed));
                *seen.entry(draw).or_default() += 1;
            }
            assert!(seen.keys().all(|draw| exact.contains_key(draw)));
            let counts = exact.iter().map(|(draw, chance)| {
                (seen.get(draw).copied().unwrap_or(0), chance * trials as f64)
            });
            ChiSquare::new(counts).assert_fits();
        }
    }

    #[test]
    fn zero_weights_come_last_and_evenly() {
        let weights = [0.0, 2.0, 0.0, f64::NAN, 1.0];
        let mut third = [0; 5];
        for seed in 0..3000 {
            let draw = draw_without_replacement(&weights, 3, &mut Random::new(seed));
            assert!(draw[..2].contains(&1) && draw[..2].contains(&4), "{draw:?}");
            third[draw[2]] += 1;
        }
        assert!(
            [0, 2, 3].iter().all(|&i| (900..1100).contains(&third[i])),
            "{third:?}"
        );
    }

    #[test]
    fn extremes_are_drawn_once_each() {
        let weights = [f64::MAX, 5e-324, 0.0, 1.0, f64::MAX];
        for seed in 0..50 {
            let mut draw = draw_without_replacement(&weights, 9, &mut Random::new(seed));
            assert!(draw[0] == 0 || draw[0] == 4, "{draw:?}");
            assert_eq!(draw[2..], [3, 1, 2]);
            draw.sort_unstable();
            assert_eq!(draw, [0, 1, 2, 3, 4]);
        }
        assert!(draw_without_replacement(&[], 3, &mut Random::new(0)).is_empty());
    }

    #[test]
    fn logarithms_draw_what_their_weights_would() {
        let weights: [f64; 6] = [0.5, 0.3, 0.0, 3e300, 2e-300, 1e-300];
        let logarithms = weights.map(f64::ln);
        for seed in 0..2000 {
            assert_eq!(
                draw_by_logarithms(&logarithms, 6, &mut Random::new(seed)),
                draw_without_replacement(&weights, 6, &mut Random::new(seed))
            );
        }
        // Weights of e^±5000 in the proportions of 1 to 3, and none.
        let three = 3_f64.ln();
        let logarithms = [
            5000.0,
            5000.0 + three,
            f64::NEG_INFINITY,
            -5000.0,
            -5000.0 + three,
            f64::NAN,
        ];
        let mut first = [0; 6];
        let mut third = [0; 6];
        for seed in 0..4000 {
            let draw = draw_by_logarithms(&logarithms, 9, &mut Random::new(seed));
            first[draw[0]] += 1;
            third[draw[2]] += 1;
            assert!(draw[4..].contains(&2) && draw[4..].contains(&5), "{draw:?}");
        }
        for (drawn, at) in [(first, 0), (third, 3)] {
            assert!((900..1100).contains(&drawn[at]), "{drawn:?}");
            assert_eq!(drawn[at] + drawn[at + 1], 4000, "{drawn:?}");
        }
    }

    /// ChaCha8 with a key of zeros starts with these bytes (the eSTREAM test vector, 256-bit key,
    /// set 1 with IV 0 has 3e 00 ef 2f 89 5f 40 d6).
    #[test]
    fn the_stream_is_chacha8_as_published() {
        let first = Random::new(0).bits();
        assert_eq!(
            first.to_le_bytes(),
            [0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6]
        );
        let uniform = Random::new(0).uniform();
        assert!((0.0..1.0).contains(&uniform));
        assert_ne!(Random::new(0).bits(), Random::new(1).bits());
    }
}
