//! Sentences in words, and tags for them.

use dynalora::data::words::Sentence;

/// The tag of a word among so many, from its number and its sentence's: as `words.py` of the oracle has it.
pub fn class(sentence: usize, word: usize, tags: u32) -> u32 {
    let mixed = (sentence as u64 * 2_654_435_761 + word as u64 * 40_503 + 12_345) & 0xffff_ffff;
    (mixed >> 16) as u32 % tags
}

/// A text cut at blanks, with the tags of [`class`].
pub fn sentence(number: usize, text: &str, tags: u32) -> Sentence {
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    let classes = (0..words.len()).map(|word| class(number, word, tags));
    Sentence {
        classes: Some(classes.collect()),
        words,
    }
}

/// Tags that a rule gives: runs of words that end with a mark are `END`, of others that begin with a capital `UP`.
pub fn tags(words: &[&str]) -> Vec<String> {
    let mut before = None;
    let tags = words.iter().map(|word| {
        let kind = match word {
            word if !word.ends_with(char::is_alphanumeric) => Some("END"),
            word if word.starts_with(char::is_uppercase) => Some("UP"),
            _ => None,
        };
        let tag = match kind {
            None => "O".to_owned(),
            Some(kind) if before == Some(kind) => format!("I-{kind}"),
            Some(kind) => format!("B-{kind}"),
        };
        before = kind;
        tag
    });
    tags.collect()
}
