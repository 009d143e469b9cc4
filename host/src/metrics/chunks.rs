//! Chunks of tagged words, counted as seqeval does (Nakayama 2018), and conlleval of the shared task of 2000 before it.
//!
//! A tag is a letter and a type, `B-PER`. Taggings need not be right by any scheme: a chunk also begins with an `I-`
//! behind another type or nothing, and ends where the type changes.

use std::collections::HashSet;

/// How many chunks there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Found where and as what they are.
    right: usize,
    /// Found.
    predicted: usize,
    /// There.
    expected: usize,
}

impl Counts {
    pub(super) fn precision(self) -> f64 {
        super::ratio(self.right as f64, self.predicted as f64)
    }

    pub(super) fn recall(self) -> f64 {
        super::ratio(self.right as f64, self.expected as f64)
    }

    pub(super) fn f1(self) -> f64 {
        let (precision, recall) = (self.precision(), self.recall());
        super::ratio(2.0 * precision * recall, precision + recall)
    }
}

/// The chunks of two taggings, the model's and the data's. The classes have these `names`; of sentence `i` the words are
/// those from `offsets[i]` to before `offsets[i + 1]`.
pub(super) fn count(names: &[String], offsets: &[usize], taggings: [&[u32]; 2]) -> Counts {
    let tags: Vec<Tag<'_>> = names.iter().map(|name| Tag::of(name)).collect();
    let [predicted, expected] = taggings.map(|tagging| chunks(&tags, offsets, tagging));
    Counts {
        right: predicted.intersection(&expected).count(),
        predicted: predicted.len(),
        expected: expected.len(),
    }
}

/// The parts of a tag's name.
#[derive(Clone, Copy)]
struct Tag<'a> {
    letter: char,
    kind: &'a str,
}

impl<'a> Tag<'a> {
    /// What stands between sentences.
    const OUTSIDE: Tag<'static> = Tag {
        letter: 'O',
        kind: "_",
    };

    fn of(name: &'a str) -> Self {
        let mut letters = name.chars();
        let letter = letters.next().unwrap_or('O');
        let rest = letters.as_str();
        let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
        Tag {
            letter,
            kind: if kind.is_empty() { "_" } else { kind },
        }
    }
}

/// Type, first place and last of each chunk. Places count the words of all sentences, and one more behind each.
type Chunks<'a> = HashSet<(&'a str, usize, usize)>;

fn chunks<'a>(tags: &[Tag<'a>], offsets: &[usize], tagging: &[u32]) -> Chunks<'a> {
    let sentences = offsets.windows(2).flat_map(|ends| {
        let words = tagging[ends[0]..ends[1]].iter();
        words
            .map(|class| tags[*class as usize])
            .chain([Tag::OUTSIDE])
    });
    let mut chunks = Chunks::new();
    let (mut before, mut begin) = (
        Tag {
            letter: 'O',
            kind: "",
        },
        0,
    );
    for (at, tag) in sentences.chain([Tag::OUTSIDE]).enumerate() {
        if ends(before, tag) {
            chunks.insert((before.kind, begin, at - 1));
        }
        if begins(before, tag) {
            begin = at;
        }
        before = tag;
    }
    chunks
}

/// Whether a chunk ends between two words.
fn ends(before: Tag<'_>, tag: Tag<'_>) -> bool {
    let by_letter = match before.letter {
        'E' | 'S' => true,
        'B' | 'I' => matches!(tag.letter, 'B' | 'S' | 'O'),
        _ => false,
    };
    by_letter || (!matches!(before.letter, 'O' | '.') && before.kind != tag.kind)
}

/// Whether one begins with the second of them.
fn begins(before: Tag<'_>, tag: Tag<'_>) -> bool {
    let by_letter = match tag.letter {
        'B' | 'S' => true,
        'E' | 'I' => matches!(before.letter, 'E' | 'S' | 'O'),
        _ => false,
    };
    by_letter || (!matches!(tag.letter, 'O' | '.') && before.kind != tag.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(names: &[&str], predicted: &[&[u32]], expected: &[&[u32]]) -> Counts {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut offsets = vec![0];
        for sentence in expected {
            offsets.push(offsets.last().unwrap() + sentence.len());
        }
        count(&names, &offsets, [&predicted.concat(), &expected.concat()])
    }

    #[test]
    fn chunks_count_where_type_and_both_ends_are_right() {
        let names = ["O", "B-MISC", "I-MISC", "B-PER", "I-PER"];
        // The example in seqeval's own documentation.
        let found = counts(
            &names,
            &[&[0, 0, 1, 2, 2, 2, 0], &[3, 4, 0]],
            &[&[0, 0, 0, 1, 2, 2, 0], &[3, 4, 0]],
        );
        assert_eq!((found.right, found.predicted, found.expected), (1, 2, 2));
        assert_eq!(
            (found.precision(), found.recall(), found.f1()),
            (0.5, 0.5, 0.5)
        );
        // Without a B: a chunk begins behind nothing, behind another type, and at a sentence's start.
        let found = counts(&names, &[&[2, 2, 4], &[4, 0, 4]], &[&[1, 2, 3], &[3, 0, 3]]);
        assert_eq!((found.right, found.predicted, found.expected), (4, 4, 4));
        let nothing = counts(&names, &[&[0, 0]], &[&[0, 0]]);
        assert_eq!(nothing, Counts::default());
        assert_eq!(nothing.f1(), 0.0);
    }
}
