//! Sentences that come in words: what `is_split_into_words=True` of Transformers' tokenizers makes of them.

use std::borrow::Cow;
use std::ops::Range;

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::utils::truncation::truncate_encodings;
use tokenizers::{Encoding, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use super::{Encoder, MOST, SHORT};

/// A tokenizer for sentences in words.
pub(in crate::data) struct OfWords<'a> {
    encoder: &'a Encoder,
    raw: Cow<'a, Tokenizer>,
}

/// A sentence as its model reads it.
#[derive(Debug, Default, PartialEq)]
pub(in crate::data) struct Pieces {
    pub ids: Vec<u32>,
    pub type_ids: Vec<u32>,
    /// Of each word that is read its number in the sentence, and the first token of it that is read.
    pub words: Vec<(u32, u32)>,
    /// How many words come to no token.
    pub empty: usize,
    /// Of how many no token is read, for want of room.
    pub cut: usize,
}

impl Encoder {
    /// The same tokenizer for sentences in words. One of bytes puts a blank before each word, as `add_prefix_space`
    /// does, without which Transformers refuses words.
    pub(in crate::data) fn of_words(&self) -> OfWords<'_> {
        let mut raw = Cow::Borrowed(&self.raw);
        if let Some(PreTokenizerWrapper::ByteLevel(bytes)) = self.raw.get_pre_tokenizer()
            && !bytes.add_prefix_space
        {
            let mut bytes = *bytes;
            bytes.add_prefix_space = true;
            raw.to_mut().with_pre_tokenizer(Some(bytes));
        }
        OfWords { encoder: self, raw }
    }
}

impl OfWords<'_> {
    /// The tokens of a sentence, special ones included, cut at the encoder's length; or what is wrong with it.
    pub fn encode(&self, words: &[String]) -> Result<Pieces, String> {
        self.encoder.guarded(|| self.try_encode(words))
    }

    fn try_encode(&self, words: &[String]) -> Result<Pieces, String> {
        let Encoder { side, framing, .. } = self.encoder;
        // `check_room` has made sure that something is left.
        let special = self.encoder.special(false);
        let room = self.encoder.max_length().saturating_sub(special);
        let (encoding, taken) = self.decisive(words, room)?;
        let whole = first_tokens(&encoding).len();
        let params = TruncationParams {
            max_length: room,
            stride: 0,
            strategy: TruncationStrategy::LongestFirst,
            direction: *side,
        };
        let cannot = |error: tokenizers::Error| format!("it cannot be tokenised: {error}");
        let (mut encoding, _) = truncate_encodings(encoding, None, &params).map_err(cannot)?;
        encoding.take_overflowing();
        let framed = framing.post_process(encoding, None, true);
        let framed = framed.map_err(cannot)?;
        let read = first_tokens(&framed).into_iter();
        let read = read.map(|(word, token)| (word + taken.start as u32, token));
        let read: Vec<(u32, u32)> = read.collect();
        Ok(Pieces {
            ids: framed.get_ids().to_vec(),
            type_ids: framed.get_type_ids().to_vec(),
            empty: taken.len() - whole,
            cut: words.len() - taken.len() + whole - read.len(),
            words: read,
        })
    }

    /// The tokens of as many words as fill a `room`, from where reading begins, special ones aside, and which words these
    /// are. No word's tokens depend on another.
    fn decisive(&self, words: &[String], room: usize) -> Result<(Encoding, Range<usize>), String> {
        let mut size = SHORT.max(16 * room);
        loop {
            let taken = self.taken(words, size);
            let bytes: usize = words[taken.clone()].iter().map(String::len).sum();
            if bytes > MOST {
                return Err(format!(
                    "words of {bytes} bytes, where at most {MOST} are tokenised to fill {} tokens: they are too long",
                    self.encoder.max_length
                ));
            }
            let encoding = self.raw.encode(&words[taken.clone()], false);
            let encoding = encoding.map_err(|error| format!("it cannot be tokenised: {error}"))?;
            if encoding.len() > room || taken.len() == words.len() {
                return Ok((encoding, taken));
            }
            size *= 2;
        }
    }

    /// As many words as have `size` bytes, from where reading begins.
    fn taken(&self, words: &[String], size: usize) -> Range<usize> {
        let mut bytes = 0;
        let mut is_short = |word: &&String| {
            let short = bytes < size;
            bytes += word.len();
            short
        };
        match self.encoder.side {
            TruncationDirection::Right => 0..words.iter().take_while(|it| is_short(it)).count(),
            TruncationDirection::Left => {
                let count = words.iter().rev().take_while(|it| is_short(it)).count();
                words.len() - count..words.len()
            }
        }
    }
}

/// Each word that has tokens, and the first of them.
fn first_tokens(encoding: &Encoding) -> Vec<(u32, u32)> {
    let mut before = None;
    let tokens = encoding.get_word_ids().iter().zip(0..);
    let firsts = tokens.filter_map(|(word, token)| {
        let first = *word != before;
        before = *word;
        word.filter(|_| first).map(|word| (word, token))
    });
    firsts.collect()
}
