//! Sentences in words, each of which is given a class: token classification.

mod load;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rayon::prelude::*;

use super::places::Places;
use super::tokenizer::{Encoder, OfWords, Pieces};
use super::{Encoded, Label};
use crate::error::{Error, Result};

pub use load::{Splits, labels_of, load, load_split, read};

/// A sentence in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sentence {
    /// The words.
    pub words: Vec<String>,
    /// The class of each; none where the data does not say.
    pub classes: Option<Vec<u32>>,
}

/// The words that are given a class each, of examples one behind the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Words {
    /// `offsets[i]..offsets[i + 1]` are the words of example `i`.
    pub offsets: Vec<usize>,
    /// The number of each in its sentence, from 0: words of which no token is read are not asked for.
    pub numbers: Vec<u32>,
    /// The token of its example that stands for each: the first that is read.
    pub tokens: Vec<u32>,
    /// The class of each; empty where the data does not say.
    pub classes: Vec<u32>,
    /// What the classes are called.
    pub names: Arc<[String]>,
}

impl Words {
    /// Those of no example yet.
    fn none(names: Arc<[String]>) -> Self {
        Words {
            offsets: vec![0],
            names,
            ..Words::default()
        }
    }

    /// Those of the examples at `indices`, in their order.
    pub fn select(&self, indices: &[usize]) -> Words {
        let mut selected = Words::none(self.names.clone());
        for &index in indices {
            let range = self.offsets[index]..self.offsets[index + 1];
            selected.numbers.extend(&self.numbers[range.clone()]);
            selected.tokens.extend(&self.tokens[range.clone()]);
            let classes = self.classes.get(range).unwrap_or_default();
            selected.classes.extend(classes);
            selected.offsets.push(selected.tokens.len());
        }
        selected
    }
}

/// What of sentences is not read.
#[derive(Clone, Copy, Debug, Default)]
struct Unread {
    words: usize,
    cut: usize,
    empty: usize,
    sentences: usize,
}

/// Tokenises sentences as `is_split_into_words=True` does, special tokens included. For a word stands the first token of
/// it, as in the published scripts; the others have no label. What of them is not read is said, with the `name` that
/// they go by. An error for a sentence of which no word is read.
pub fn encode(
    encoder: &Encoder,
    sentences: &[Sentence],
    names: &[String],
    (name, places): (&str, &Places),
) -> Result<Encoded> {
    encoder.check_room(false)?;
    let of_words = encoder.of_words();
    let pieces = sentences.par_iter().enumerate().map(|(index, sentence)| {
        pieces(&of_words, sentence).map_err(|what| {
            Error::user(format!("{}: {what}", places.name(index)))
                .help("mend or remove it; what counts of a sentence is its start, of at most model.max_length tokens")
        })
    });
    let pieces = pieces.collect::<Result<Vec<_>>>()?;
    let mut unread = Unread::default();
    let mut words = Words::none(names.into());
    let mut encoded = Encoded {
        offsets: vec![0],
        places: places.clone(),
        ..Encoded::default()
    };
    let labelled = sentences.iter().all(|sentence| sentence.classes.is_some());
    for (sentence, pieces) in sentences.iter().zip(pieces) {
        unread.words += sentence.words.len();
        unread.cut += pieces.cut;
        unread.empty += pieces.empty;
        unread.sentences += usize::from(pieces.cut > 0);
        encoded.ids.extend(pieces.ids);
        encoded.type_ids.extend(pieces.type_ids);
        encoded.offsets.push(encoded.ids.len());
        for &(number, token) in &pieces.words {
            words.numbers.push(number);
            words.tokens.push(token);
            let classes = sentence.classes.as_ref().filter(|_| labelled);
            words
                .classes
                .extend(classes.map(|classes| classes[number as usize]));
        }
        words.offsets.push(words.tokens.len());
        if labelled {
            let count = pieces.words.len() as u32;
            encoded.labels.push(Label::Words(count));
        }
    }
    encoded.words = Some(words);
    unread.say(name, encoder.max_length());
    Ok(encoded)
}

fn pieces(of_words: &OfWords<'_>, sentence: &Sentence) -> Result<Pieces, String> {
    if sentence.words.is_empty() {
        return Err("the sentence has no words".to_owned());
    }
    let pieces = of_words.encode(&sentence.words)?;
    if pieces.words.is_empty() {
        return Err("no word of the sentence comes to a token that is read".to_owned());
    }
    Ok(pieces)
}

impl Unread {
    fn say(self, name: &str, length: usize) {
        let Unread {
            words,
            cut,
            empty,
            sentences,
        } = self;
        if cut > 0 {
            tracing::warn!(
                "{name}: {cut} of {words} words, of {sentences} sentences, are cut off, which are longer than {length} \
                 tokens (model.max_length): nothing is learnt of them, and no score counts them"
            );
        }
        if empty > 0 {
            tracing::warn!(
                "{name}: {empty} of {words} words come to no token: nothing is learnt of them, and no score counts them"
            );
        }
    }
}
