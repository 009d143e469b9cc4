//! Packed batches, and the order of an epoch.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::encode::expected;
use super::image::Images;
use super::{Encoded, Label, Words};
use crate::model::NextTokens;
use crate::recipe::{BatchLimit, Order, TrainConfig};

/// Examples end to end, without padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Vocabulary indices; none of images.
    pub ids: Vec<u32>,
    /// Token types; none of images.
    pub type_ids: Vec<u32>,
    /// The images, where the examples are such.
    pub images: Option<Images>,
    /// Position of each token in its example, from 0.
    pub positions: Vec<u32>,
    /// `offsets[i]..offsets[i + 1]` are the tokens of the batch's example `i`.
    pub offsets: Vec<usize>,
    /// Labels, where the data has any.
    pub labels: Vec<Label>,
    /// The words that are given a class each, where the examples are sentences in words.
    pub words: Option<Words>,
    /// Which examples these are.
    pub indices: Vec<usize>,
}

impl Encoded {
    /// The examples at `indices`, packed.
    pub fn batch(&self, indices: &[usize]) -> Batch {
        let tokens = indices.iter().map(|index| self.length(*index)).sum();
        let mut batch = Batch::of(indices.to_vec(), tokens);
        batch.images = self.images.as_ref().map(|images| images.select(indices));
        batch.words = self.words.as_ref().map(|words| words.select(indices));
        for index in indices {
            batch.push(
                self.offsets[*index]..self.offsets[index + 1],
                &self.ids,
                &self.type_ids,
            );
        }
        if !self.labels.is_empty() {
            batch.labels = indices.iter().map(|index| self.labels[*index]).collect();
        }
        batch
    }
}

impl Batch {
    /// A batch of these examples, none of which is in it yet, with room for `tokens`.
    fn of(indices: Vec<usize>, tokens: usize) -> Self {
        Batch {
            ids: Vec::with_capacity(tokens),
            type_ids: Vec::with_capacity(tokens),
            images: None,
            positions: Vec::with_capacity(tokens),
            offsets: vec![0],
            labels: Vec::new(),
            words: None,
            indices,
        }
    }

    /// Adds the tokens of the next example, those of all that lie in `range`; images have no ids.
    fn push(&mut self, range: Range<usize>, ids: &[u32], type_ids: &[u32]) {
        self.positions.extend(0..range.len() as u32);
        self.offsets.push(self.positions.len());
        self.ids.extend(ids.get(range.clone()).unwrap_or_default());
        self.type_ids
            .extend(type_ids.get(range).unwrap_or_default());
    }

    /// How many tokens it has.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// How much the batch weighs in its step: as many as it has examples, tokens that are predicted, or words that are
    /// given a class.
    pub fn weight(&self) -> usize {
        self.weight_of(0..self.labels.len())
    }

    /// How much the examples at these positions weigh.
    pub fn weight_of(&self, positions: Range<usize>) -> usize {
        let examples = self.offsets.windows(2).zip(&self.labels);
        let examples = examples.skip(positions.start).take(positions.len());
        let weights = examples.map(|(range, label)| match label {
            Label::Tokens(from) => range[1] - range[0] - *from as usize,
            Label::Words(count) => *count as usize,
            Label::Class(_) | Label::Value(_) => 1,
        });
        weights.sum()
    }

    /// The tokens that are predicted; none where the examples have other labels.
    pub fn next_tokens(&self) -> Option<NextTokens> {
        let mut tokens = NextTokens::default();
        for (range, label) in self.offsets.windows(2).zip(&self.labels) {
            let Label::Tokens(from) = *label else {
                return None;
            };
            let predicted = range[0] + from as usize..range[1];
            tokens.rows.extend(predicted.clone().map(|at| at - 1));
            tokens.ids.extend(&self.ids[predicted]);
        }
        (!self.labels.is_empty()).then_some(tokens)
    }

    /// The tokens whose words are given a class, by where they lie in the batch; none where the examples are no sentences
    /// in words.
    pub fn word_rows(&self) -> Option<Vec<usize>> {
        let words = self.words.as_ref()?;
        let examples = words.offsets.windows(2).zip(&self.offsets);
        let rows = examples.flat_map(|(range, first)| {
            let tokens = words.tokens[range[0]..range[1]].iter();
            tokens.map(move |token| first + *token as usize)
        });
        Some(rows.collect())
    }

    /// What each answer is to be: the labels, or those of all words.
    pub fn expected(&self) -> Vec<Label> {
        expected(&self.labels, self.words.as_ref())
    }

    /// The consecutive examples that are those of `rank`, of so many: each rank has about as many tokens, and some have
    /// none where there are few examples.
    pub fn of_rank(&self, rank: usize, ranks: usize) -> Range<usize> {
        let tokens = self.tokens().max(1);
        // By where its middle lies.
        let owner = |range: &[usize]| (range[0] + range[1]) * ranks / (2 * tokens);
        let owners = self.offsets.windows(2).map(owner);
        let before = owners.clone().filter(|owner| *owner < rank).count();
        let own = owners.filter(|owner| *owner == rank).count();
        before..before + own
    }

    /// The examples at consecutive positions of the batch, with their labels.
    pub fn section(&self, positions: Range<usize>) -> Batch {
        let all: Vec<usize> = positions.clone().collect();
        let mut section = self.part(&all);
        section.words = self.words.as_ref().map(|words| words.select(&all));
        section.labels = self.labels.get(positions).unwrap_or_default().to_vec();
        section
    }

    /// The examples at these positions of the batch, without their labels.
    pub fn part(&self, positions: &[usize]) -> Batch {
        let indices = positions.iter().map(|at| self.indices[*at]).collect();
        let mut part = Batch::of(indices, self.tokens());
        part.images = self.images.as_ref().map(|images| images.select(positions));
        for at in positions {
            part.push(
                self.offsets[*at]..self.offsets[at + 1],
                &self.ids,
                &self.type_ids,
            );
        }
        part
    }
}

/// The batches of one epoch, a function of the data, the recipe, the seed and the epoch alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochPlan {
    batches: Vec<Vec<usize>>,
}

/// Batches that are sorted by length together under `length-grouped`, as in Transformers'
/// `LengthGroupedSampler`.
const MEGABATCH: usize = 50;

impl EpochPlan {
    /// Plans epoch `epoch` (from 0). Every epoch has the same number of batches: under a token budget the
    /// batches are formed once for the whole run, and only their order changes.
    pub fn new(data: &Encoded, train: &TrainConfig, seed: u64, epoch: u64) -> Self {
        let forming = match train.batch_limit() {
            BatchLimit::Examples(_) => epoch,
            BatchLimit::Tokens(_) => 0,
        };
        let mut random = stream(seed, 2 * forming);
        let mut order: Vec<usize> = (0..data.len()).collect();
        if train.order != Order::Sequential {
            shuffle(&mut order, &mut random);
        }
        if train.order == Order::LengthGrouped {
            let about = match train.batch_limit() {
                BatchLimit::Examples(examples) => examples,
                // As many examples as fit on average.
                BatchLimit::Tokens(tokens) => {
                    (tokens * data.len()).div_ceil(data.tokens().max(1)).max(1)
                }
            };
            for mega in order.chunks_mut(MEGABATCH * about) {
                // Stable, so that equal lengths stay shuffled.
                mega.sort_by_key(|index| std::cmp::Reverse(data.length(*index)));
            }
        }
        let mut batches = match train.batch_limit() {
            BatchLimit::Examples(examples) => {
                order.chunks(examples).map(<[usize]>::to_vec).collect()
            }
            BatchLimit::Tokens(tokens) => by_tokens(data, &order, tokens),
        };
        let reorder = match train.order {
            Order::Sequential => false,
            Order::LengthGrouped => true,
            Order::Shuffle => matches!(train.batch_limit(), BatchLimit::Tokens(_)),
        };
        if reorder {
            shuffle(&mut batches, &mut stream(seed, 2 * epoch + 1));
        }
        EpochPlan { batches }
    }

    /// Batches of the epoch.
    pub fn batches(&self) -> &[Vec<usize>] {
        &self.batches
    }

    /// The micro-batches of optimiser step `step` of the epoch, from 0; the last may have fewer than others.
    pub fn step(&self, step: usize, accumulation: usize) -> &[Vec<usize>] {
        let first = (step * accumulation).min(self.batches.len());
        &self.batches[first..self.batches.len().min(first + accumulation)]
    }
}

/// All examples, longest first, in batches of at most `tokens` tokens, or one example where it is longer.
pub fn evaluation_batches(data: &Encoded, tokens: usize) -> impl Iterator<Item = Batch> + '_ {
    let mut order: Vec<usize> = (0..data.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(data.length(*index)));
    by_tokens(data, &order, tokens)
        .into_iter()
        .map(|indices| data.batch(&indices))
}

fn by_tokens(data: &Encoded, order: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for &index in order {
        let length = data.length(index);
        match batches.last_mut() {
            Some(batch) if tokens + length <= budget => {
                batch.push(index);
                tokens += length;
            }
            _ => {
                batches.push(vec![index]);
                tokens = length;
            }
        }
    }
    batches
}

/// `count` of `all` examples, drawn by `seed`, in their order, after the others, in theirs.
pub fn parted(all: usize, count: usize, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let drawn = drawn(all, count, seed);
    let mut held = drawn.iter().copied().peekable();
    let kept = (0..all).filter(|index| held.next_if_eq(index).is_none());
    (kept.collect(), drawn)
}

/// `count` of `all` examples, drawn by `seed`, in their order.
pub fn drawn(all: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..all).collect();
    // A stream that no epoch has: those go up from 0.
    shuffle(&mut order, &mut stream(seed, u64::MAX));
    order.truncate(count);
    order.sort_unstable();
    order
}

fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    random
}

/// Fisher and Yates' shuffle, here so that a library's new version never changes a run's order.
fn shuffle<T>(items: &mut [T], random: &mut ChaCha8Rng) {
    for last in (1..items.len()).rev() {
        // The upper half of a 128-bit product is uniform on 0..=last but for a bias below 2⁻³².
        let other = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
        items.swap(last, other as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(lengths: &[usize]) -> Encoded {
        let mut data = Encoded {
            offsets: vec![0],
            ..Encoded::default()
        };
        for (index, length) in lengths.iter().enumerate() {
            data.ids.extend((0..*length).map(|_| index as u32));
            data.offsets.push(data.ids.len());
        }
        data.type_ids = vec![0; data.ids.len()];
        data
    }

    fn recipe(order: Order, examples: Option<usize>, tokens: Option<usize>) -> TrainConfig {
        TrainConfig {
            order,
            batch_size: examples,
            tokens_per_batch: tokens,
            ..TrainConfig::default()
        }
    }

    fn lengths() -> Vec<usize> {
        (0..103).map(|i| 3 + (i * 7) % 23).collect()
    }

    #[test]
    fn what_is_held_back_is_drawn_by_seed_and_gone_from_the_rest() {
        let (kept, held) = parted(100, 10, 3);
        assert_eq!((kept.len(), held.len()), (90, 10));
        let mut all = [kept.clone(), held.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert!(kept.is_sorted() && held.is_sorted());
        assert_eq!(parted(100, 10, 3).1, held);
        assert_ne!(parted(100, 10, 4).1, held);
    }

    #[test]
    fn an_epoch_has_every_example_once_in_an_order_of_its_own() {
        let data = data(&lengths());
        for order in [Order::Shuffle, Order::LengthGrouped, Order::Sequential] {
            for train in [recipe(order, Some(8), None), recipe(order, None, Some(64))] {
                let plan = |epoch| EpochPlan::new(&data, &train, 7, epoch);
                for epoch in 0..3 {
                    let mut all: Vec<usize> = plan(epoch).batches.concat();
                    all.sort_unstable();
                    assert_eq!(all, (0..103).collect::<Vec<_>>());
                    assert!(plan(epoch).batches.iter().all(|batch| !batch.is_empty()));
                    assert_eq!(plan(epoch).batches.len(), plan(0).batches.len());
                }
                assert_eq!(plan(1), plan(1));
                assert_eq!(plan(0) == plan(1), order == Order::Sequential);
                assert_eq!(
                    plan(0) == EpochPlan::new(&data, &train, 8, 0),
                    order == Order::Sequential
                );
            }
        }
    }

    #[test]
    fn a_token_budget_is_kept_and_grouping_brings_lengths_together() {
        let data = data(&lengths());
        let spread = |order| {
            let plan = EpochPlan::new(&data, &recipe(order, None, Some(64)), 7, 0);
            let mut sum = 0;
            for batch in &plan.batches {
                let lengths: Vec<usize> = batch.iter().map(|index| data.length(*index)).collect();
                assert!(lengths.iter().sum::<usize>() <= 64);
                sum += lengths.iter().max().expect("not empty")
                    - lengths.iter().min().expect("not empty");
            }
            sum
        };
        assert!(spread(Order::LengthGrouped) * 4 < spread(Order::Shuffle));
    }

    #[test]
    fn evaluation_goes_from_long_to_short_and_keeps_track() {
        let data = data(&[3, 70, 5, 9]);
        let batches: Vec<Batch> = evaluation_batches(&data, 16).collect();
        let indices: Vec<_> = batches.iter().map(|batch| batch.indices.clone()).collect();
        assert_eq!(indices, [vec![1], vec![3, 2], vec![0]]);
        assert_eq!(batches[1].offsets, [0, 9, 14]);
        assert_eq!(batches[1].positions[9..], [0, 1, 2, 3, 4]);
        assert_eq!(batches[1].ids[..10], [3, 3, 3, 3, 3, 3, 3, 3, 3, 2]);
        assert_eq!(batches[1].part(&[1]), data.batch(&[2]));
        assert_eq!(batches[1].part(&[0, 1]), batches[1]);
    }

    #[test]
    fn ranks_share_a_batch_by_its_tokens() {
        let mut data = data(&[3, 70, 5, 9, 4, 20, 41, 8]);
        data.labels = (0..8).map(Label::Class).collect();
        let batch = data.batch(&[0, 1, 2, 3, 4, 5, 6, 7]);
        for ranks in [1, 2, 3, 4, 16] {
            let shares: Vec<_> = (0..ranks).map(|rank| batch.of_rank(rank, ranks)).collect();
            let mut all = Vec::new();
            for share in &shares {
                let section = batch.section(share.clone());
                assert!(section.tokens() <= 160 / ranks + 70, "{shares:?}");
                all.extend(section.indices.iter().copied().zip(section.labels));
            }
            // Each once, in their order.
            let whole = batch.indices.iter().copied().zip(batch.labels.clone());
            assert_eq!(all, whole.collect::<Vec<_>>(), "{shares:?}");
        }
        assert_eq!(batch.section(0..8), batch);
        let [first, second] = [0, 1].map(|rank| batch.section(batch.of_rank(rank, 2)).tokens());
        assert!(first.abs_diff(second) <= 20, "{first} and {second}");
    }

    #[test]
    fn micro_batches_make_steps() {
        let data = data(&[2; 10]);
        let plan = EpochPlan::new(&data, &recipe(Order::Shuffle, Some(2), None), 0, 0);
        assert_eq!(
            (0..9)
                .map(|step| plan.step(step, 2).len())
                .take_while(|batches| *batches > 0)
                .collect::<Vec<_>>(),
            [2, 2, 1]
        );
    }
}
