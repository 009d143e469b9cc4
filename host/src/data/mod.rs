//! Tasks, formats, tokenising and batching.

mod batch;
mod chat;
mod encode;
mod files;
mod hub;
pub mod image;
mod labels;
mod language;
mod learnt;
mod load;
pub mod minimal_pairs;
mod places;
mod problems;
mod quiet;
mod table;
mod task;
mod tokenizer;
pub mod words;

pub use batch::{Batch, EpochPlan, drawn, evaluation_batches};
pub use chat::Template;
pub use encode::{Encoded, Limits, check, encode, tokenize};
pub use files::files;
pub use learnt::{FILE as LEARNT_FILE, Learnt, guess as guess_classes};
pub use load::{Data, Splits, check_kind, encoder, labels_of, load, load_split, read};
pub use places::Places;
pub use task::Part;
pub use tokenizer::Encoder;
pub use words::Words;

pub use crate::recipe::{Column, DataConfig, Format, Problem, Task};

/// One text, or pair of texts, of a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub text_pair: Option<String>,
    /// What it is trained towards; none where the data does not say.
    pub label: Option<Label>,
}

/// What an example is trained towards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Label {
    /// The index of a class.
    Class(u32),
    /// A value.
    Value(f32),
    /// The example's own tokens from this one on, each predicted from those before it: at least the second.
    Tokens(u32),
    /// The classes of so many of its words, which [`Words`] has.
    Words(u32),
}

impl Label {
    /// All of `labels` as classes; none if one is a value, or there are none.
    pub fn classes(labels: &[Label]) -> Option<Vec<u32>> {
        if labels.is_empty() {
            return None;
        }
        let classes = labels.iter().map(|label| match label {
            Label::Class(class) => Some(*class),
            Label::Value(_) | Label::Tokens(_) | Label::Words(_) => None,
        });
        classes.collect()
    }

    /// All of `labels` as values; none if one is a class, or there are none.
    pub fn values(labels: &[Label]) -> Option<Vec<f32>> {
        if labels.is_empty() {
            return None;
        }
        let values = labels.iter().map(|label| match label {
            Label::Value(value) => Some(*value),
            Label::Class(_) | Label::Tokens(_) | Label::Words(_) => None,
        });
        values.collect()
    }
}
