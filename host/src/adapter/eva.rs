//! EVA: A starts from the directions in which what its module reads varies most, B from zero (Paischer et al. 2024).

use faer::MatRef;

use super::pissa::{nearly, whole};
use crate::error::{Error, Result};

/// How often the subspace is iterated where a decomposition is not whole, as in PEFT.
const ITERATIONS: usize = 4;

/// The principal components of rows that come part by part (Ross et al. 2008), as PEFT's `IncrementalPCA` finds them: of the
/// centred rows together with the components so far, by a subspace of twice as many directions.
#[derive(Clone, Debug)]
pub struct Components {
    count: usize,
    width: usize,
    /// Rows taken in.
    rows: u64,
    mean: Vec<f64>,
    /// Σ(x − mean)² of all of them.
    variation: f64,
    singular_values: Vec<f32>,
    /// `[count, width]`, row by row.
    vectors: Vec<f32>,
    /// The cosine of each with what it was before; none before there are two to compare.
    cosines: Vec<f32>,
    /// Rows that are fewer than components, until others join them.
    waiting: Vec<f32>,
}

impl Components {
    /// So many components of rows of this `width`, which is no smaller.
    pub fn new(count: usize, width: usize) -> Self {
        Components {
            count,
            width,
            rows: 0,
            mean: vec![0.0; width],
            variation: 0.0,
            singular_values: Vec::new(),
            vectors: Vec::new(),
            cosines: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether there have been rows enough for them.
    pub fn are_found(&self) -> bool {
        self.rows > 0
    }

    /// Takes in `rows`, row by row. What is drawn goes by the seed and the name of `drawn`.
    pub fn add(&mut self, rows: &[f32], drawn: (u64, &str)) -> Result<()> {
        self.waiting.extend_from_slice(rows);
        if self.waiting.len() < self.count * self.width {
            return Ok(());
        }
        let mut rows = std::mem::take(&mut self.waiting);
        let (before, count) = (self.rows as f64, (rows.len() / self.width) as f64);
        let all = before + count;
        let mut mean = vec![0.0; self.width];
        for row in rows.chunks_exact(self.width) {
            for (mean, x) in mean.iter_mut().zip(row) {
                *mean += f64::from(*x) / count;
            }
        }
        let mut variation = 0.0;
        for row in rows.chunks_exact_mut(self.width) {
            for (x, mean) in row.iter_mut().zip(&mean) {
                let centred = f64::from(*x) - mean;
                variation += centred * centred;
                *x = centred as f32;
            }
        }
        let mut stacked = Vec::new();
        if self.are_found() {
            let vectors = self.vectors.chunks_exact(self.width);
            for (sigma, vector) in self.singular_values.iter().zip(vectors) {
                stacked.extend(vector.iter().map(|x| sigma * x));
            }
            stacked.append(&mut rows);
            // One row more, by which the two means are apart.
            let apart = self.mean.iter().zip(&mean).map(|(old, new)| old - new);
            let weight = before / all * count;
            stacked.extend(apart.clone().map(|x| (weight.sqrt() * x) as f32));
            variation += self.variation + weight * apart.map(|x| x * x).sum::<f64>();
        } else {
            stacked = rows;
        }
        for (old, new) in self.mean.iter_mut().zip(&mean) {
            *old = (before * *old + count * new) / all;
        }
        (self.rows, self.variation) = (all as u64, variation);
        self.decompose(&stacked, drawn)
    }

    /// Puts the components of these rows in the place of those that were.
    fn decompose(&mut self, rows: &[f32], drawn: (u64, &str)) -> Result<()> {
        let height = rows.len() / self.width;
        let matrix = MatRef::from_row_major_slice(rows, height, self.width);
        let (least, directions) = (height.min(self.width), 2 * self.count);
        let found = match directions < least {
            true => nearly(matrix, directions, ITERATIONS, drawn),
            false => whole(matrix),
        };
        let found = found
            .ok()
            .filter(|(_, sigma, _)| sigma.iter().all(|it| it.is_finite()));
        let Some((_, sigma, v)) = found else {
            return Err(Error::failure(format!(
                "the singular values of what {} reads were not found",
                drawn.1
            ))
            .help("the base model's hidden states may not be finite: check its weights"));
        };
        let before = std::mem::take(&mut self.vectors);
        for k in 0..self.count {
            let vector: Vec<f32> = (0..self.width).map(|i| v[(i, k)]).collect();
            // The entry that is furthest from zero is positive, so that the same vector is found twice.
            let furthest =
                vector
                    .iter()
                    .copied()
                    .fold(0.0, |most: f32, x| match x.abs() > most.abs() {
                        true => x,
                        false => most,
                    });
            self.vectors
                .extend(vector.iter().map(|x| x * furthest.signum()));
        }
        let pairs = before
            .chunks_exact(self.width)
            .zip(self.vectors.chunks_exact(self.width));
        self.cosines = pairs
            .map(|(old, new)| dot(old, new) / (dot(old, old) * dot(new, new)).sqrt())
            .collect();
        self.singular_values = sigma[..self.count].to_vec();
        Ok(())
    }

    /// Whether the first so many components were nearly the same when rows were taken in last: with a cosine of `tau`.
    pub fn have_converged(&self, count: usize, tau: f64) -> bool {
        let mut cosines = (0..count).map(|k| self.cosines.get(k));
        cosines.all(|cosine| cosine.is_some_and(|cosine| f64::from(*cosine) >= tau))
    }

    /// How much of the rows' variance each explains, the largest first.
    pub fn explained(&self) -> Vec<f64> {
        let squares = self
            .singular_values
            .iter()
            .map(|sigma| f64::from(sigma * sigma));
        // Rows that are all the same have none.
        let variation = self.variation.max(f64::MIN_POSITIVE);
        squares.map(|square| square / variation).collect()
    }

    /// A of so many rows: the first components, each divided by the root of its singular value where they are to be
    /// `whitened`.
    pub fn start(&self, rows: usize, whitened: bool) -> Vec<f32> {
        let vectors = self
            .vectors
            .chunks_exact(self.width)
            .zip(&self.singular_values);
        let rows = vectors.take(rows).flat_map(|(vector, sigma)| {
            let divisor = if whitened { sigma.sqrt() } else { 1.0 };
            vector.iter().map(move |x| x / divisor)
        });
        rows.collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Gives `budget` ranks to those components of all modules that explain most of the variance of what their module reads.
/// `explained` has the components' shares by group of modules that read the same, and `group_of` each module's group, of
/// which the first gets the most.
pub fn distribute(explained: &[Vec<f64>], group_of: &[usize], budget: usize) -> Vec<u32> {
    let first = |group: usize| {
        group_of
            .iter()
            .position(|it| *it == group)
            .expect("a module of it")
    };
    let leads = |module: &usize| first(group_of[*module]) == *module;
    let (leaders, mut others): (Vec<usize>, Vec<usize>) = (0..group_of.len()).partition(leads);
    others.sort_by_key(|module| first(group_of[*module]));
    let order = leaders.iter().chain(&others).copied();
    let mut all: Vec<(usize, f64)> = order
        .flat_map(|module| {
            explained[group_of[module]]
                .iter()
                .map(move |share| (module, *share))
        })
        .collect();
    all.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let mut ranks = vec![0; group_of.len()];
    for (module, _) in all.into_iter().take(budget) {
        ranks[module] += 1;
    }
    for module in others {
        let leader = first(group_of[module]);
        if ranks[leader] < ranks[module] {
            ranks.swap(leader, module);
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows around `centre` that vary by 4, 2 and 1 along three axes, and hardly along the others.
    fn rows(count: usize, centre: f32, from: usize) -> Vec<f32> {
        let wave = |n: usize, k: usize| ((n * (2 * k + 3) + k) as f32 * 0.7).sin();
        let by = |k: usize| [4.0, 2.0, 1.0, 0.05, 0.05, 0.05, 0.05, 0.05][k];
        let rows =
            (from..from + count).flat_map(|n| (0..8).map(move |k| centre + by(k) * wave(n, k)));
        rows.collect()
    }

    #[test]
    fn parts_have_the_components_of_the_whole() {
        let (one, two) = (rows(40, 3.0, 0), rows(60, -2.0, 40));
        // Seven of eight are nearly all that there is.
        let mut parts = Components::new(7, 8);
        for part in [&one, &two] {
            parts.add(part, (1, "query")).unwrap();
        }
        let mut whole = Components::new(7, 8);
        whole.add(&[one, two].concat(), (1, "query")).unwrap();
        assert!((parts.variation - whole.variation).abs() < 1e-6 * whole.variation);
        for (a, b) in parts.explained().iter().zip(whole.explained()).take(4) {
            assert!((a - b).abs() < 1e-4, "{a}, not {b}");
        }
        for (a, b) in parts.vectors.iter().zip(&whole.vectors).take(4 * 8) {
            assert!((a - b).abs() < 1e-2, "{a}, not {b}");
        }
        let sum: f64 = whole.explained().iter().sum();
        assert!((0.99..=1.0 + 1e-6).contains(&sum), "{sum}");
    }

    #[test]
    fn a_subspace_finds_what_the_whole_has() {
        let rows = rows(100, 0.0, 0);
        let [mut nearly, mut exact] = [3, 4].map(|count| Components::new(count, 8));
        for components in [&mut nearly, &mut exact] {
            components.add(&rows, (1, "query")).unwrap();
        }
        for (a, b) in nearly.vectors.iter().zip(&exact.vectors) {
            assert!((a - b).abs() < 1e-4, "{a}, not {b}");
        }
        let length = |row: &[f32]| dot(row, row);
        let whitened = nearly.start(2, true);
        for (k, row) in whitened.chunks_exact(8).enumerate() {
            assert!((length(row) * nearly.singular_values[k] - 1.0).abs() < 1e-4);
        }
        assert_eq!(nearly.start(2, false), nearly.vectors[..16]);
    }

    #[test]
    fn they_have_converged_when_new_rows_change_nothing() {
        let mut components = Components::new(3, 8);
        assert!(components.have_converged(0, 0.99) && !components.have_converged(1, 0.0));
        // Fewer rows than components wait for others.
        components.add(&rows(2, 0.0, 0), (1, "query")).unwrap();
        assert!(!components.are_found());
        components.add(&rows(98, 0.0, 2), (1, "query")).unwrap();
        assert!(components.are_found() && components.rows == 100);
        assert!(!components.have_converged(1, 0.0));
        components.add(&rows(100, 0.0, 100), (1, "query")).unwrap();
        assert!(components.have_converged(3, 0.99));
        assert!(!components.have_converged(4, 0.0));
    }

    #[test]
    fn ranks_go_where_they_explain_most() {
        // Modules 0, 1 and 3 read the same.
        let explained = [vec![0.5, 0.3, 0.01], vec![0.4, 0.2, 0.1]];
        let of = |budget| distribute(&explained, &[0, 0, 1, 0], budget);
        assert_eq!(of(1), [1, 0, 0, 0]);
        assert_eq!(of(3), [1, 1, 0, 1]);
        assert_eq!(of(4), [1, 1, 1, 1]);
        assert_eq!(of(9), [2, 2, 3, 2]);
        assert_eq!(of(10), [3, 2, 3, 2]);
        assert_eq!(of(12), [3, 3, 3, 3]);
    }
}
