//! An acceptability corpus that the program writes itself: seeded minimal pairs of English.
//!
//! A pair is one acceptable and one unacceptable sentence that differ in one point of grammar, in the
//! manner of BLiMP (Warstadt et al. 2020). The three splits share function words and templates but no
//! noun, verb, adjective or name, so that a model answers for the held-out ones by grammar and not by
//! memory; and each word stands about equally often in acceptable and unacceptable sentences, so that
//! no bag of words gives the label away.

mod grammar;
mod lexicon;

use std::collections::HashSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::error::{Error, Result};
use grammar::{PHENOMENA, Phenomenon, Writer, below};
use lexicon::Lexicon;

/// How many sentences each split gets. An odd number is rounded down: sentences come in pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Sentences to train on.
    pub train: usize,
    /// Sentences to choose the best checkpoint by.
    pub validation: usize,
    /// Sentences for the final number.
    pub test: usize,
}

/// The corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splits {
    /// Sentences to train on.
    pub train: Vec<Sentence>,
    /// Sentences to choose the best checkpoint by.
    pub validation: Vec<Sentence>,
    /// Sentences for the final number.
    pub test: Vec<Sentence>,
}

/// One labelled sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// The sentence, 3 to 14 words, with its capital and its full stop or question mark.
    pub text: String,
    /// Whether a native reader accepts it.
    pub acceptable: bool,
    /// What the pair is about, such as `wh_island`; one of [`phenomena`].
    pub phenomenon: &'static str,
    /// Number of the pair within its split, from 0; its other sentence has the same.
    pub pair: u32,
}

/// The names of all phenomena, in the order in which they are written.
pub fn phenomena() -> impl Iterator<Item = &'static str> {
    PHENOMENA.iter().map(|phenomenon| phenomenon.name)
}

/// Writes the corpus: a function of `seed` and `sizes` alone, on every machine.
///
/// Every split has the same number of pairs of each phenomenon, give or take one, no sentence twice,
/// and never the two sentences of a pair side by side (in a split of two or more pairs).
///
/// # Errors
/// A user error if a split is asked for more sentences than its words can make.
pub fn generate(seed: u64, sizes: Sizes) -> Result<Splits> {
    Ok(Splits {
        train: split("train", &lexicon::TRAIN, seed, 0, sizes.train)?,
        validation: split(
            "validation",
            &lexicon::VALIDATION,
            seed,
            1,
            sizes.validation,
        )?,
        test: split("test", &lexicon::TEST, seed, 2, sizes.test)?,
    })
}

fn split(
    name: &str,
    words: &'static Lexicon,
    seed: u64,
    stream: u64,
    sentences: usize,
) -> Result<Vec<Sentence>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // A stream of its own, so that the size of one split does not change the others.
    rng.set_stream(stream);
    let pairs = sentences / 2;
    let mut seen = HashSet::new();
    let mut written = Vec::new();
    for (index, phenomenon) in PHENOMENA.iter().enumerate() {
        let share = pairs / PHENOMENA.len() + usize::from(index < pairs % PHENOMENA.len());
        for number in 0..share {
            let (good, bad) = fresh_pair(phenomenon, number, words, &mut rng, &mut seen)
                .ok_or_else(|| too_many(name, sentences, phenomenon))?;
            let pair =
                u32::try_from(written.len()).map_err(|_| too_many(name, sentences, phenomenon))?;
            written.push(
                [(good, true), (bad, false)].map(|(text, acceptable)| Sentence {
                    text,
                    acceptable,
                    phenomenon: phenomenon.name,
                    pair,
                }),
            );
        }
    }
    Ok(shuffled(written, &mut rng))
}

/// As many texts as there are sentences, of `length` sentences each: all of a text are acceptable, or none is. Each
/// sentence begins one text; those that follow are others of the split, drawn anew for each. A function of `seed` and the
/// sentences alone, on every machine.
pub fn texts(sentences: &[Sentence], length: usize, seed: u64) -> Vec<(String, bool)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Beside those of the splits.
    rng.set_stream(3);
    let alike = |acceptable: bool| -> Vec<&Sentence> {
        let sentences = sentences.iter();
        sentences.filter(|it| it.acceptable == acceptable).collect()
    };
    let mut pools = [alike(false), alike(true)];
    let texts = sentences.iter().map(|first| {
        let mut text = first.text.clone();
        let pool = &mut pools[usize::from(first.acceptable)];
        let mut drawn = 1;
        let mut at = 0;
        // A shuffle that ends when there are enough; the order that it leaves is as good as any for the next.
        while drawn < length && at < pool.len() {
            let other = at + below(&mut rng, pool.len() - at);
            pool.swap(at, other);
            if !std::ptr::eq(pool[at], first) {
                text.push(' ');
                text.push_str(&pool[at].text);
                drawn += 1;
            }
            at += 1;
        }
        (text, first.acceptable)
    });
    texts.collect()
}

/// A pair of which neither sentence has been written before; none if many tries find none.
fn fresh_pair(
    phenomenon: &Phenomenon,
    number: usize,
    words: &'static Lexicon,
    rng: &mut ChaCha8Rng,
    seen: &mut HashSet<String>,
) -> Option<(String, String)> {
    let template = phenomenon.templates[number % phenomenon.templates.len()];
    for _ in 0..1000 {
        let (good, bad) = template(&mut Writer { words, rng });
        let (good, bad) = (finished(&good), finished(&bad));
        if good != bad && !seen.contains(&good) && !seen.contains(&bad) {
            seen.insert(good.clone());
            seen.insert(bad.clone());
            return Some((good, bad));
        }
    }
    None
}

fn too_many(split: &str, sentences: usize, phenomenon: &Phenomenon) -> Error {
    Error::user(format!(
        "the {split} split cannot have {sentences} sentences: the words for `{}` are used up",
        phenomenon.name
    ))
    .help("ask for fewer sentences; 4000 for training and 600 for each other split always work")
}

/// The sentence with its capital, and with `an` where the next word wants it.
fn finished(template: &str) -> String {
    let mut text = String::with_capacity(template.len() + 2);
    let mut words = template.split(' ').peekable();
    while let Some(word) = words.next() {
        let vowel = words
            .peek()
            .is_some_and(|next| next.starts_with(['a', 'e', 'i', 'o', 'u']));
        text.push_str(if word == "a" && vowel { "an" } else { word });
        if words.peek().is_some() {
            text.push(' ');
        }
    }
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}

/// One sentence of every pair in random order, then the others: the members of a pair are far apart,
/// and either may come first.
fn shuffled(pairs: Vec<[Sentence; 2]>, rng: &mut ChaCha8Rng) -> Vec<Sentence> {
    let (mut first, mut second): (Vec<_>, Vec<_>) = pairs
        .into_iter()
        .map(|[good, bad]| {
            if below(rng, 2) == 0 {
                (good, bad)
            } else {
                (bad, good)
            }
        })
        .unzip();
    shuffle(&mut first, rng);
    shuffle(&mut second, rng);
    let touching = match (first.last(), second.first()) {
        (Some(end), Some(start)) => end.pair == start.pair,
        _ => false,
    };
    if touching && second.len() > 1 {
        second.swap(0, 1);
    }
    first.append(&mut second);
    first
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for end in (1..items.len()).rev() {
        items.swap(end, below(rng, end + 1));
    }
}

#[cfg(test)]
mod tests;
