//! From texts to packed token ids, once: the result is cached.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use tokenizers::{
    EncodeInput, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy,
};

use super::{Example, Label};
use crate::error::{Error, Result};

/// Tokenised examples, end to end, without padding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// Vocabulary indices of all tokens.
    pub ids: Vec<u32>,
    /// Token types of all tokens.
    pub type_ids: Vec<u32>,
    /// `offsets[i]..offsets[i + 1]` are the tokens of example `i`.
    pub offsets: Vec<usize>,
    /// One label per example, or none at all.
    pub labels: Vec<Label>,
}

impl Encoded {
    /// Number of examples.
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of example `i`.
    pub fn length(&self, i: usize) -> usize {
        self.offsets[i + 1] - self.offsets[i]
    }
}

/// Bump when the layout of the cache or the meaning of an encoding changes.
const VERSION: &[u8] = b"dynalora tokens 1";

fn open(tokenizer: &Path, max_length: usize) -> Result<Tokenizer> {
    let refuse = |error: tokenizers::Error| {
        Error::user(format!("{} cannot be used as a tokenizer: {error}", tokenizer.display())).help(
            "the file must be a tokenizer.json of the tokenizers library, whole; fetch the model again",
        )
    };
    let mut opened = Tokenizer::from_file(tokenizer).map_err(refuse)?;
    // Files carry settings of their own; padding would defeat packing.
    opened.with_padding(None);
    opened
        .with_truncation(Some(TruncationParams {
            max_length,
            stride: 0,
            strategy: TruncationStrategy::LongestFirst,
            direction: TruncationDirection::Right,
        }))
        .map_err(refuse)?;
    Ok(opened)
}

/// Tokenises `examples` in parallel, special tokens included, the longer text of a pair cut first where
/// both have more than `max_length` tokens. Labels are kept if every example has one.
pub fn tokenize(tokenizer: &Path, examples: &[Example], max_length: usize) -> Result<Encoded> {
    let opened = open(tokenizer, max_length)?;
    let encodings = examples
        .par_iter()
        .map(|example| {
            let input: EncodeInput<'_> = match &example.text_pair {
                Some(pair) => (example.text.as_str(), pair.as_str()).into(),
                None => example.text.as_str().into(),
            };
            let encoding = opened.encode_fast(input, true).map_err(|error| {
                Error::failure(format!("cannot tokenise {:?}: {error}", example.text))
            })?;
            Ok((
                encoding.get_ids().to_vec(),
                encoding.get_type_ids().to_vec(),
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut encoded = Encoded {
        offsets: vec![0],
        ..Encoded::default()
    };
    for (ids, type_ids) in encodings {
        encoded.ids.extend(ids);
        encoded.type_ids.extend(type_ids);
        encoded.offsets.push(encoded.ids.len());
    }
    let labels: Option<Vec<Label>> = examples.iter().map(|example| example.label).collect();
    encoded.labels = labels.unwrap_or_default();
    Ok(encoded)
}

/// [`tokenize`], or what it gave the last time for the same tokenizer, examples and length. A cache that
/// cannot be read or written only costs time.
pub fn tokenize_cached(
    cache: &Path,
    tokenizer: &Path,
    examples: &[Example],
    max_length: usize,
) -> Result<Encoded> {
    let file = cache.join(format!(
        "{}.safetensors",
        key(tokenizer, examples, max_length)?
    ));
    let labels: Option<Vec<Label>> = examples.iter().map(|example| example.label).collect();
    match read(&file) {
        Ok(Some(mut encoded)) if encoded.len() == examples.len() => {
            encoded.labels = labels.unwrap_or_default();
            return Ok(encoded);
        }
        Ok(None) => {}
        Ok(Some(_)) | Err(_) => {
            tracing::warn!(
                "the token cache {} is damaged and is made anew",
                file.display()
            );
        }
    }
    let encoded = tokenize(tokenizer, examples, max_length)?;
    if let Err(error) = write(&file, &encoded) {
        tracing::warn!("the tokens are not cached: {}: {error}", file.display());
    }
    Ok(encoded)
}

fn key(tokenizer: &Path, examples: &[Example], max_length: usize) -> Result<String> {
    let bytes = std::fs::read(tokenizer).map_err(|error| {
        Error::user(format!("cannot read {}", tokenizer.display()))
            .because(error)
            .help("a model folder holds config.json, model.safetensors and tokenizer.json")
    })?;
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(VERSION);
    part(&bytes);
    part(&(max_length as u64).to_le_bytes());
    for example in examples {
        part(example.text.as_bytes());
        // A pair with an empty second text is not a text alone.
        part(&[u8::from(example.text_pair.is_some())]);
        part(example.text_pair.as_deref().unwrap_or_default().as_bytes());
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn read(file: &Path) -> Result<Option<Encoded>, Failure> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let tensors = SafeTensors::deserialize(&bytes)?;
    let words = |name: &str| -> Result<Vec<u32>, Failure> {
        let data = tensors.tensor(name)?.data();
        Ok(data
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect())
    };
    let (ids, type_ids, offsets) = (words("ids")?, words("type_ids")?, words("offsets")?);
    let offsets: Vec<usize> = offsets.into_iter().map(|offset| offset as usize).collect();
    let whole = offsets.first() == Some(&0)
        && offsets.is_sorted()
        && offsets.last() == Some(&ids.len())
        && ids.len() == type_ids.len();
    if !whole {
        return Err("its parts do not fit together".into());
    }
    Ok(Some(Encoded {
        ids,
        type_ids,
        offsets,
        labels: Vec::new(),
    }))
}

fn write(file: &Path, encoded: &Encoded) -> Result<(), Failure> {
    let offsets = encoded
        .offsets
        .iter()
        .map(|offset| u32::try_from(*offset))
        .collect::<Result<Vec<_>, _>>()?;
    let parts = [
        ("ids", &encoded.ids),
        ("type_ids", &encoded.type_ids),
        ("offsets", &offsets),
    ];
    let views = parts
        .iter()
        .map(|(name, words)| {
            let bytes = bytemuck::cast_slice(words);
            Ok((
                *name,
                TensorView::new(Dtype::U32, vec![words.len()], bytes)?,
            ))
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let folder: PathBuf = file.parent().unwrap_or(Path::new(".")).to_owned();
    std::fs::create_dir_all(&folder)?;
    crate::run::write_atomically(file, &safetensors::serialize(views, None)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A word-level tokenizer with BERT's special tokens, and padding switched on as in MiniLM's file.
    fn tokenizer(folder: &Path) -> PathBuf {
        let words = [
            "[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "mat",
        ];
        let vocabulary: serde_json::Map<_, _> = words
            .iter()
            .enumerate()
            .map(|(id, word)| ((*word).to_owned(), id.into()))
            .collect();
        let special = |id: u64, word: &str| {
            serde_json::json!({"id": id, "content": word, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let json = serde_json::json!({
            "version": "1.0",
            "truncation": null,
            "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": [special(0, "[PAD]"), special(2, "[CLS]"), special(3, "[SEP]")],
            "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
        });
        let path = folder.join("tokenizer.json");
        std::fs::write(&path, json.to_string()).expect("a temporary file");
        path
    }

    fn examples() -> Vec<Example> {
        let example = |text: &str, pair: Option<&str>, class: u32| Example {
            text: text.to_owned(),
            text_pair: pair.map(str::to_owned),
            label: Some(Label::Class(class)),
        };
        vec![
            example("the cat sat", None, 1),
            example("the dog", Some("on the mat"), 0),
            example("cat cat cat cat cat cat cat", Some("mat mat"), 1),
        ]
    }

    #[test]
    fn texts_are_packed_without_padding_and_the_longer_one_is_cut() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let encoded = tokenize(&tokenizer(folder.path()), &examples(), 8).expect("it tokenises");
        assert_eq!(encoded.offsets, [0, 5, 13, 21]);
        assert_eq!(encoded.ids[..5], [2, 4, 5, 6, 3]);
        assert_eq!(encoded.ids[5..13], [2, 4, 1, 3, 7, 4, 8, 3]);
        assert_eq!(encoded.type_ids[5..13], [0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(encoded.ids[13..], [2, 5, 5, 5, 3, 8, 8, 3]);
        assert_eq!(Label::classes(&encoded.labels), Some(vec![1, 0, 1]));
    }

    #[test]
    fn a_cache_is_used_and_a_damaged_one_made_anew() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = folder.path().join("cache");
        let tokenizer = tokenizer(folder.path());
        let get = || tokenize_cached(&cache, &tokenizer, &examples(), 8).expect("it tokenises");
        let fresh = get();
        let files = || {
            std::fs::read_dir(&cache)
                .expect("the cache")
                .collect::<Vec<_>>()
        };
        assert_eq!(files().len(), 1);
        // A cached file is believed: change it and see the change.
        let file = files().remove(0).expect("an entry").path();
        let mut other = fresh.clone();
        other.ids[1] = 8;
        write(&file, &other).expect("it writes");
        assert_eq!(get().ids, other.ids);
        std::fs::write(&file, b"not safetensors").expect("it writes");
        assert_eq!(get(), fresh);
        assert_eq!(get(), fresh);
        // Another length is another key.
        tokenize_cached(&cache, &tokenizer, &examples(), 6).expect("it tokenises");
        assert_eq!(files().len(), 2);
    }

    #[test]
    fn a_damaged_tokenizer_is_the_users_to_replace() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, "{\"model\":").expect("it writes");
        let error = tokenize(&path, &examples(), 8).expect_err("it is cut short");
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
}
