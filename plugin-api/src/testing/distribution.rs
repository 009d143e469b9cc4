//! Whether an allocator draws what it should: exact probabilities, and the chi-square test against them.

use std::collections::BTreeMap;
use std::fmt;

/// How often each set of active modules came up.
pub type Tally = BTreeMap<Vec<bool>, u64>;

/// The exact probability of every set of modules that successive draws can choose.
///
/// The set is what a test should look at: sets are drawn independently of each other, one for each
/// seed, which is what chi-square asks for. How often each *module* was chosen is not enough, since the
/// modules of one draw depend on each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution(BTreeMap<Vec<bool>, f64>);

impl Distribution {
    /// Of `count` draws without replacement, each in proportion to `weights` among those left, as
    /// [`draw_without_replacement`](crate::draw_without_replacement) makes them.
    ///
    /// # Panics
    /// With more than 20 weights: there would be too many sets.
    pub fn successive(weights: &[f64], count: usize) -> Self {
        Self::successive_while(weights, |drawn, _| drawn.len() < count)
    }

    /// The same, with draws until `goes_on(drawn, next)` says no to the next module drawn, which is
    /// then left out. The answer may depend on which modules have been drawn, not on their order.
    ///
    /// # Panics
    /// With more than 20 weights: there would be too many sets.
    pub fn successive_while(weights: &[f64], goes_on: impl Fn(&[usize], usize) -> bool) -> Self {
        let modules = weights.len();
        assert!(
            modules <= 20,
            "{modules} weights have too many sets to list"
        );
        // A set is a number with one bit per module. The chance to have drawn exactly this set at some
        // point is the sum over its last module, and so on: over all orders. A set comes after its
        // subsets, whose numbers are smaller.
        let mut reached = vec![0.0; 1 << modules];
        reached[0] = 1.0;
        let mut sets = BTreeMap::new();
        for set in 0..reached.len() {
            let chance = reached[set];
            if chance == 0.0 {
                continue;
            }
            let (drawn, left): (Vec<usize>, Vec<usize>) =
                (0..modules).partition(|module| set & (1 << module) != 0);
            let mut stays = if left.is_empty() { chance } else { 0.0 };
            for (next, share) in left.iter().zip(shares(weights, &left)) {
                if goes_on(&drawn, *next) {
                    reached[set | (1 << next)] += chance * share;
                } else {
                    stays += chance * share;
                }
            }
            if stays > 0.0 {
                let active = (0..modules).map(|module| set & (1 << module) != 0);
                sets.insert(active.collect(), stays);
            }
        }
        Distribution(sets)
    }

    /// The chance that exactly these modules are chosen.
    pub fn chance(&self, active: &[bool]) -> f64 {
        self.0.get(active).copied().unwrap_or(0.0)
    }

    /// The chance of each module to be among those chosen.
    pub fn inclusion(&self) -> Vec<f64> {
        let modules = self.0.keys().next().map_or(0, Vec::len);
        let chance = |module: usize| {
            let sets = self.0.iter().filter(|(active, _)| active[module]);
            sets.map(|(_, chance)| chance).sum()
        };
        (0..modules).map(chance).collect()
    }

    /// Compares what was drawn with what should be. A set that cannot come up makes the statistic
    /// infinite.
    pub fn test(&self, drawn: &Tally) -> ChiSquare {
        let draws: u64 = drawn.values().sum();
        let possible = self.0.iter().map(|(active, chance)| {
            let observed = drawn.get(active).copied().unwrap_or(0);
            (observed, draws as f64 * chance)
        });
        let impossible = drawn
            .iter()
            .filter(|(active, _)| !self.0.contains_key(*active));
        ChiSquare::new(possible.chain(impossible.map(|(_, observed)| (*observed, 0.0))))
    }
}

/// The chance of each of the modules `left` to be drawn next: weights that are not positive and
/// finite come last, with equal chances.
fn shares(weights: &[f64], left: &[usize]) -> Vec<f64> {
    let weight = |module: &usize| Some(weights[*module]).filter(|w| w.is_finite() && *w > 0.0);
    let largest = left.iter().filter_map(weight).fold(0.0, f64::max);
    if largest == 0.0 {
        return vec![1.0 / left.len() as f64; left.len()];
    }
    let scaled = left
        .iter()
        .map(|module| weight(module).unwrap_or(0.0) / largest);
    let scaled: Vec<f64> = scaled.collect();
    let sum: f64 = scaled.iter().sum();
    scaled.iter().map(|weight| weight / sum).collect()
}

/// Pearson's chi-square of counts against the expected ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChiSquare {
    /// Σ (observed − expected)² / expected.
    pub statistic: f64,
    /// Categories less one.
    pub degrees_of_freedom: u64,
    /// The chance of a statistic at least this large if the expectation is right.
    pub p: f64,
}

impl ChiSquare {
    /// Of pairs of an observed and an expected count. Categories that are expected less than five times
    /// are taken together, since the statistic follows chi-square only where more is expected.
    ///
    /// # Panics
    /// With fewer than two categories left: such a test could not fail.
    pub fn new(counts: impl IntoIterator<Item = (u64, f64)>) -> Self {
        let (mut rare, mut categories) = (Vec::new(), Vec::new());
        for (observed, expected) in counts {
            let observed = observed as f64;
            if expected == 0.0 && observed > 0.0 {
                categories.push((f64::INFINITY, 1.0));
            } else if expected < 5.0 {
                rare.push((observed, expected));
            } else {
                categories.push((observed, expected));
            }
        }
        categories.sort_by(|a, b| b.1.total_cmp(&a.1));
        let sum = |counts: &[(f64, f64)]| {
            let add = |a: (f64, f64), b: &(f64, f64)| (a.0 + b.0, a.1 + b.1);
            counts.iter().fold((0.0, 0.0), add)
        };
        let mut rest = sum(&rare);
        if rest.1 > 0.0 && rest.1 < 5.0 {
            rest = sum(&[rest, categories.pop().unwrap_or_default()]);
        }
        categories.extend(Some(rest).filter(|(_, expected)| *expected > 0.0));
        assert!(
            categories.len() >= 2,
            "one category is left, so nothing could be found wrong: draw more often"
        );
        let square = |(observed, expected): &(f64, f64)| (observed - expected).powi(2) / expected;
        let statistic: f64 = categories.iter().map(square).sum();
        let degrees_of_freedom = categories.len() as u64 - 1;
        ChiSquare {
            statistic,
            degrees_of_freedom,
            p: upper_tail(statistic, degrees_of_freedom),
        }
    }

    /// # Panics
    /// With a statistic that a right sampler exceeds less than once in 10,000 times. Seeds are fixed, so a
    /// test passes or fails the same way every time.
    pub fn assert_fits(&self) {
        assert!(self.p >= 1e-4, "not the distribution expected: {self}");
    }

    /// # Panics
    /// With a statistic that a right sampler exceeds more often than once in a million times. For
    /// the test of a test: a sampler known to be wrong has to be found out.
    pub fn assert_differs(&self) {
        assert!(self.p < 1e-6, "the difference is not seen: {self}");
    }
}

/// The chance that chi-square exceeds `statistic`. For whole degrees of freedom ν the tail is a finite
/// sum (Abramowitz & Stegun, 26.4.4 and 26.4.5): with h = statistic / 2,
///
/// ```text
/// ν even:             Σ e⁻ʰ hʲ / Γ(j + 1)   over j = 0, 1, …, ν/2 − 1
/// ν odd:   erfc(√h) + Σ e⁻ʰ hʲ / Γ(j + 1)   over j = ½, 3/2, …, ν/2 − 1
/// ```
fn upper_tail(statistic: f64, degrees_of_freedom: u64) -> f64 {
    let half = statistic / 2.0;
    if half == 0.0 || half.is_infinite() {
        return if half == 0.0 { 1.0 } else { 0.0 };
    }
    let odd = degrees_of_freedom % 2 == 1;
    let (mut power, mut tail) = match odd {
        true => (0.5, libm::erfc(half.sqrt())),
        false => (0.0, 0.0),
    };
    // By logarithms, since e⁻ʰ alone would vanish for large h.
    let mut term = power * half.ln() - half - libm::lgamma(power + 1.0);
    for _ in 0..degrees_of_freedom / 2 {
        tail += term.exp();
        power += 1.0;
        term += (half / power).ln();
    }
    tail
}

impl fmt::Display for ChiSquare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "chi-square {:.2} on {} degrees of freedom, p = {:.2e}",
            self.statistic, self.degrees_of_freedom, self.p
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Random, draw_without_replacement};

    const DRAWS: u64 = 100_000;

    fn near(one: f64, other: f64) -> bool {
        (one - other).abs() <= 1e-12 * other.abs()
    }

    fn set(drawn: &[usize], modules: usize) -> Vec<bool> {
        (0..modules).map(|module| drawn.contains(&module)).collect()
    }

    /// The sets that a sampler draws with the seeds 0 to [`DRAWS`].
    fn tally(modules: usize, sampler: impl Fn(&mut Random) -> Vec<usize>) -> Tally {
        let mut tally = Tally::new();
        for seed in 0..DRAWS {
            let drawn = sampler(&mut Random::new(seed));
            *tally.entry(set(&drawn, modules)).or_default() += 1;
        }
        tally
    }

    /// Every ordered draw of `count`, by walking through them one after the other.
    fn walk(
        weights: &[f64],
        count: usize,
        drawn: &mut Vec<usize>,
        chance: f64,
        sets: &mut BTreeMap<Vec<bool>, f64>,
    ) {
        if drawn.len() == count {
            *sets.entry(set(drawn, weights.len())).or_default() += chance;
            return;
        }
        let left: Vec<usize> = (0..weights.len()).filter(|i| !drawn.contains(i)).collect();
        let total: f64 = left.iter().map(|&i| weights[i]).sum();
        for next in left {
            drawn.push(next);
            walk(weights, count, drawn, chance * weights[next] / total, sets);
            drawn.pop();
        }
    }

    #[test]
    fn sets_are_the_sum_over_every_order() {
        for weights in [
            vec![0.5, 0.3, 0.15, 0.05],
            vec![1.0; 6],
            vec![1e-6, 1.0, 2.0, 3.0, 1e6],
            vec![7.0, 1.0, 4.0, 4.0, 2.0, 0.5, 3.0],
        ] {
            for count in 1..=weights.len() {
                let mut sets = BTreeMap::new();
                walk(&weights, count, &mut Vec::new(), 1.0, &mut sets);
                let exact = Distribution::successive(&weights, count);
                assert_eq!(exact.0.len(), sets.len());
                for (active, chance) in sets {
                    assert!(near(exact.chance(&active), chance), "{active:?}");
                }
                assert!(near(exact.inclusion().iter().sum(), count as f64));
            }
        }
    }

    #[test]
    fn inclusion_follows_the_closed_forms() {
        // By hand: 0 first 1/2, else second after 1 or 2, 2 · 1/4 · 2/3.
        let three = Distribution::successive(&[2.0, 1.0, 1.0], 2).inclusion();
        assert!(
            near(three[0], 5.0 / 6.0) && near(three[1], 7.0 / 12.0) && near(three[2], 7.0 / 12.0)
        );
        let weights = [0.4, 0.1, 0.25, 0.05, 0.2];
        let one = Distribution::successive(&weights, 1).inclusion();
        let two = Distribution::successive(&weights, 2).inclusion();
        for (i, w) in weights.iter().enumerate() {
            assert!(near(one[i], *w));
            // p · (1 + Σ_{j≠i} q / (1 − q)): first, or second after any other.
            let others = weights.iter().enumerate().filter(|(j, _)| *j != i);
            let second: f64 = others.map(|(_, q)| q / (1.0 - q)).sum();
            assert!(near(two[i], w * (1.0 + second)));
        }
        for chance in Distribution::successive(&[3.0; 7], 3).inclusion() {
            assert!(near(chance, 3.0 / 7.0));
        }
    }

    #[test]
    fn extreme_weights_keep_their_proportions() {
        let huge = Distribution::successive(&[f64::MAX, f64::MAX / 2.0, f64::MAX / 2.0], 2);
        let small = Distribution::successive(&[2e-323, 1e-323, 1e-323], 2);
        for exact in [huge, small] {
            assert!(near(exact.inclusion()[0], 5.0 / 6.0), "{exact:?}");
        }
        // Zeros share what is left evenly.
        let zeros = Distribution::successive(&[0.0, 1.0, f64::NAN, -1.0], 2).inclusion();
        assert_eq!(zeros[1], 1.0);
        assert!([0, 2, 3].iter().all(|&i| near(zeros[i], 1.0 / 3.0)));
    }

    #[test]
    fn drawing_can_stop_early() {
        // Up to 3 of sizes 1, 2 and 3: 2 stops the draw after either of the others but is kept if
        // first, where 0 may still follow but 1 may not.
        let sizes = [1, 2, 3];
        let exact = Distribution::successive_while(&[1.0; 3], |drawn, next| {
            drawn.is_empty() || drawn.iter().map(|i| sizes[*i]).sum::<u32>() + sizes[next] <= 3
        });
        assert!(near(exact.chance(&[true, true, false]), 1.0 / 3.0));
        assert!(near(exact.chance(&[false, false, true]), 1.0 / 3.0));
        assert!(near(exact.chance(&[true, false, false]), 1.0 / 6.0));
        assert!(near(exact.chance(&[false, true, false]), 1.0 / 6.0));
        assert_eq!(exact.chance(&[true, false, true]), 0.0);
    }

    /// Critical values from the table in the NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.4.
    #[test]
    fn p_is_the_published_tables() {
        for (freedom, statistic, p) in [
            (1, 3.841, 0.05),
            (1, 10.828, 0.001),
            (3, 7.815, 0.05),
            (4, 13.277, 0.01),
            (5, 20.515, 0.001),
            (10, 29.588, 0.001),
            (50, 67.505, 0.05),
            (99, 123.225, 0.05),
            (100, 149.449, 0.001),
        ] {
            assert!((upper_tail(statistic, freedom) / p - 1.0).abs() < 2e-3);
            // One category is off by so much that the statistic is the one wanted.
            let even = (1_000_000, 1e6);
            let off = 1e6_f64;
            let observed = off + (statistic * off).sqrt();
            let test = ChiSquare::new(
                std::iter::repeat_n(even, freedom as usize).chain([(observed.round() as u64, off)]),
            );
            assert_eq!(test.degrees_of_freedom, freedom);
            assert!((test.statistic - statistic).abs() < 0.01, "{test}");
            assert!((test.p / p - 1.0).abs() < 0.01, "{test}, expected {p}");
        }
    }

    #[test]
    fn the_tail_is_one_at_zero_half_in_the_middle_and_never_lost() {
        assert_eq!(upper_tail(0.0, 3), 1.0);
        assert_eq!(upper_tail(f64::INFINITY, 3), 0.0);
        // The median of chi-square is near ν (1 − 2/9ν)³ (Wilson & Hilferty).
        for freedom in [7, 50, 1_001, 20_000] {
            let nu = freedom as f64;
            let median = nu * (1.0 - 2.0 / (9.0 * nu)).powi(3);
            let tail = upper_tail(median, freedom);
            assert!((tail - 0.5).abs() < 1e-3, "{freedom}: {tail}");
        }
    }

    #[test]
    fn rare_categories_are_taken_together() {
        let counts = [(50, 49.0), (40, 41.0), (4, 3.0), (2, 3.0), (4, 4.0)];
        let test = ChiSquare::new(counts);
        assert_eq!(test.degrees_of_freedom, 2);
        assert!(near(test.statistic, 1.0 / 49.0 + 1.0 / 41.0), "{test}");
        // One alone is too few, and joins the next larger.
        let test = ChiSquare::new([(50, 49.0), (40, 41.0), (14, 13.0), (2, 3.0)]);
        assert_eq!(test.degrees_of_freedom, 2);
        assert!(near(test.statistic, 1.0 / 49.0 + 1.0 / 41.0), "{test}");
    }

    #[test]
    fn what_cannot_come_up_is_wrong_once_it_does() {
        let exact = Distribution::successive(&[1.0, 1.0, 1.0], 1);
        let mut drawn = Tally::new();
        for (active, times) in [
            ([true, false, false], 34),
            ([false, true, false], 33),
            ([false, false, true], 33),
        ] {
            drawn.insert(active.to_vec(), times);
        }
        exact.test(&drawn).assert_fits();
        drawn.insert(vec![true, true, false], 1);
        assert_eq!(exact.test(&drawn).p, 0.0);
        exact.test(&drawn).assert_differs();
    }

    #[test]
    #[should_panic(expected = "one category is left")]
    fn a_test_that_cannot_fail_is_refused() {
        let certain = Distribution::successive(&[1.0, 2.0], 2);
        certain.test(&Tally::from([(vec![true, true], 1000)]));
    }

    const WEIGHTS: [f64; 5] = [5.0, 3.0, 1.0, 1.0, 0.5];

    #[test]
    fn the_sampler_fits() {
        let drawn = tally(5, |random| draw_without_replacement(&WEIGHTS, 3, random));
        Distribution::successive(&WEIGHTS, 3)
            .test(&drawn)
            .assert_fits();
    }

    #[test]
    fn wrong_samplers_are_found_out() {
        let exact = Distribution::successive(&WEIGHTS, 3);
        // Draws with replacement, all anew until none is twice: P(S) ∝ Π w, which is not successive
        // sampling, though each draw is in proportion.
        let rejecting = tally(5, |random| {
            loop {
                let one = |random: &mut Random| draw_without_replacement(&WEIGHTS, 1, random)[0];
                let drawn = [one(random), one(random), one(random)];
                if drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[0] != drawn[2] {
                    break drawn.to_vec();
                }
            }
        });
        exact.test(&rejecting).assert_differs();
        // One weight off by a tenth.
        let off = [5.0, 3.0, 1.1, 1.0, 0.5];
        let off = tally(5, |random| draw_without_replacement(&off, 3, random));
        exact.test(&off).assert_differs();
        // The largest weights, always.
        exact.test(&tally(5, |_| vec![0, 1, 2])).assert_differs();
        // One module too few.
        let few = tally(5, |random| draw_without_replacement(&WEIGHTS, 2, random));
        exact.test(&few).assert_differs();
    }

    /// Systematic sampling at the exact inclusion probabilities: every module is chosen as often as it
    /// should be, but in the wrong company.
    #[test]
    fn right_inclusion_in_the_wrong_sets_is_found_out() {
        let exact = Distribution::successive(&WEIGHTS, 3);
        let inclusion = exact.inclusion();
        let drawn = tally(5, |random| {
            let (start, mut before) = (random.uniform(), 0.0);
            let mut chosen = Vec::new();
            for (module, chance) in inclusion.iter().enumerate() {
                let points = (before + chance - start).ceil() - (before - start).ceil();
                chosen.extend((points > 0.0).then_some(module));
                before += chance;
            }
            chosen
        });
        for (module, chance) in inclusion.iter().enumerate() {
            let chosen = drawn.iter().filter(|(active, _)| active[module]);
            let times: u64 = chosen.map(|(_, times)| times).sum();
            assert!((times as f64 / DRAWS as f64 - chance).abs() < 0.01);
        }
        exact.test(&drawn).assert_differs();
    }
}
