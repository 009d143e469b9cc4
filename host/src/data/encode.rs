//! From texts to packed token ids, once: the result is cached.

use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::image::Images;
use super::places::Places;
use super::tokenizer::Encoder;
use super::{Example, Label, Words};
use crate::error::{Error, Result};
use crate::model::Architecture;

/// Examples as a model reads them, end to end, without padding: tokenised texts, or images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded {
    /// Vocabulary indices of all tokens; none of images.
    pub ids: Vec<u32>,
    /// Token types of all tokens; none of images.
    pub type_ids: Vec<u32>,
    /// The images, where the examples are such.
    pub images: Option<Images>,
    /// `offsets[i]..offsets[i + 1]` are the tokens of example `i`.
    pub offsets: Vec<usize>,
    /// One label per example, or none at all.
    pub labels: Vec<Label>,
    /// The words that are given a class each, where the examples are sentences in words.
    pub words: Option<Words>,
    /// Where the examples stand.
    pub places: Places,
}

/// What a model has embeddings for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens.
    pub vocabulary: usize,
    /// Token types; none where the model does not read them.
    pub token_types: Option<usize>,
    /// Positions of one example.
    pub length: usize,
}

impl Limits {
    /// Those of a model, which must read texts.
    pub fn of(config: &Architecture) -> Result<Self> {
        let Some(words) = config.words() else {
            return Err(Error::user(format!(
                "the data are texts, but the model is a {}, which reads images",
                config.family
            ))
            .help("set `format = \"images\"` in [data], with a folder of images per class; or take a model of texts"));
        };
        Ok(Limits {
            vocabulary: words.words.entries,
            token_types: words.types.map(|table| table.entries),
            length: config.max_length,
        })
    }
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

    /// The examples at `indices`, in their order.
    pub fn select(&self, indices: &[usize]) -> Encoded {
        let mut selected = Encoded {
            offsets: vec![0],
            images: self.images.as_ref().map(|images| images.select(indices)),
            words: self.words.as_ref().map(|words| words.select(indices)),
            places: self.places.select(indices),
            ..Encoded::default()
        };
        let mut tokens = 0;
        for &index in indices {
            let range = self.offsets[index]..self.offsets[index + 1];
            tokens += range.len();
            selected.offsets.push(tokens);
            selected.labels.extend(self.labels.get(index));
            selected
                .ids
                .extend(self.ids.get(range.clone()).unwrap_or_default());
            selected
                .type_ids
                .extend(self.type_ids.get(range).unwrap_or_default());
        }
        selected
    }

    /// Tokens of all examples.
    pub fn tokens(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// Which of all answers are to example `i`: one, or one to each of its words.
    pub fn answers(&self, i: usize) -> Range<usize> {
        match &self.words {
            Some(words) => words.offsets[i]..words.offsets[i + 1],
            None => i..i + 1,
        }
    }

    /// What each answer is to be: the labels, or those of all words.
    pub fn expected(&self) -> Vec<Label> {
        expected(&self.labels, self.words.as_ref())
    }

    /// Tokens of example `i`.
    pub fn length(&self, i: usize) -> usize {
        self.offsets[i + 1] - self.offsets[i]
    }
}

/// What each answer to examples with such labels, or of such words, is to be.
pub(super) fn expected(labels: &[Label], words: Option<&Words>) -> Vec<Label> {
    match words {
        Some(words) => words.classes.iter().copied().map(Label::Class).collect(),
        None => labels.to_vec(),
    }
}

/// Bump when the layout of the cache or the meaning of an encoding changes.
const VERSION: &[u8] = b"dynalora tokens 3";

/// Tokenises `examples` with the `tokenizer.json` given and what lies beside it, in parallel, special tokens
/// included, the longer text of a pair cut first where both have more than `max_length` tokens. Labels are kept if
/// every example has one.
pub fn tokenize(tokenizer: &Path, examples: &[Example], max_length: usize) -> Result<Encoded> {
    let encoder = Encoder::open(tokenizer, max_length)?;
    encode(&encoder, examples, &Places::default())
}

/// [`tokenize`] with a tokenizer that is open, and with the places of the examples for its errors.
pub fn encode(encoder: &Encoder, examples: &[Example], places: &Places) -> Result<Encoded> {
    check_room(encoder, examples)?;
    let encodings = examples
        .par_iter()
        .enumerate()
        .map(|(index, example)| {
            encoder.encode(example).map_err(|what| {
                Error::user(format!("{}: {what}", places.name(index)))
                    .help("mend or remove it; what counts of a text is its start, of at most model.max_length tokens")
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut encoded = Encoded {
        offsets: vec![0],
        places: places.clone(),
        ..Encoded::default()
    };
    for (ids, type_ids) in encodings {
        encoded.ids.extend(ids);
        encoded.type_ids.extend(type_ids);
        encoded.offsets.push(encoded.ids.len());
    }
    encoded.labels = labels(examples);
    Ok(encoded)
}

fn check_room(encoder: &Encoder, examples: &[Example]) -> Result<()> {
    match examples.iter().any(|example| example.text_pair.is_some()) {
        true => encoder.check_room(true),
        false => encoder.check_room(false),
    }
}

fn labels(examples: &[Example]) -> Vec<Label> {
    let labels: Option<Vec<Label>> = examples.iter().map(|example| example.label).collect();
    labels.unwrap_or_default()
}

/// Refuses tokens that a model has no embedding for, and examples without any.
pub fn check(encoded: &Encoded, limits: &Limits, encoder: &Encoder) -> Result<()> {
    let refuse = |index: usize, what: String| {
        let help = "the tokenizer does not fit the model or the text: take the tokenizer.json that was saved with the \
                    model, and mend or remove texts that are made of nothing it knows";
        Err(Error::user(format!("{}: {what}", encoded.places.name(index))).help(help))
    };
    for index in 0..encoded.len() {
        let range = encoded.offsets[index]..encoded.offsets[index + 1];
        let (ids, types) = (&encoded.ids[range.clone()], &encoded.type_ids[range]);
        if ids.is_empty() {
            return refuse(index, "the text comes to no tokens at all".to_owned());
        }
        if ids.len() > limits.length {
            let what = format!(
                "the text comes to {} tokens, but the model has positions for {}",
                ids.len(),
                limits.length
            );
            return refuse(index, what);
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= limits.vocabulary) {
            let what = format!(
                "the text has the token {:?} with the id {id}, but the model's vocabulary ends before {}",
                encoder.token(*id),
                limits.vocabulary
            );
            return refuse(index, what);
        }
        let beyond = |of: usize| types.iter().find(|kind| **kind as usize >= of);
        if let Some(of) = limits.token_types
            && let Some(kind) = beyond(of)
        {
            let what = format!(
                "the text has tokens of the type {kind}, but the model knows {of} type(s), from 0"
            );
            return refuse(index, what);
        }
    }
    Ok(())
}

/// [`encode`], or what it gave the last time for the same tokenizer, examples and length. A cache that
/// cannot be read or written only costs time.
pub fn encode_cached(
    cache: &Path,
    encoder: &Encoder,
    examples: &[Example],
    places: &Places,
) -> Result<Encoded> {
    check_room(encoder, examples)?;
    let file = cache.join(format!("{}.safetensors", key(encoder, examples)));
    match read(&file) {
        Ok(Some(mut encoded)) if encoded.len() == examples.len() => {
            encoded.labels = labels(examples);
            encoded.places = places.clone();
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
    let encoded = encode(encoder, examples, places)?;
    if let Err(error) = write(&file, &encoded) {
        tracing::warn!("the tokens are not cached: {}: {error}", file.display());
    }
    Ok(encoded)
}

fn key(encoder: &Encoder, examples: &[Example]) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(VERSION);
    part(encoder.identity().as_bytes());
    part(&(encoder.max_length() as u64).to_le_bytes());
    for example in examples {
        part(example.text.as_bytes());
        // A pair with an empty second text is not a text alone.
        part(&[u8::from(example.text_pair.is_some())]);
        part(example.text_pair.as_deref().unwrap_or_default().as_bytes());
    }
    crate::file::hex(&hash.finalize())
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
    if words("sha256")? != digest([&ids, &type_ids, &offsets]) {
        return Err("its contents have changed".into());
    }
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
        ..Encoded::default()
    }))
}

/// The SHA-256 of a cache's parts, in words.
fn digest(parts: [&[u32]; 3]) -> Vec<u32> {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(bytemuck::cast_slice::<u32, u8>(part));
    }
    let words = hash.finalize();
    let words = words.as_chunks::<4>().0.iter();
    words.map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

fn write(file: &Path, encoded: &Encoded) -> Result<(), Failure> {
    let offsets = encoded
        .offsets
        .iter()
        .map(|offset| u32::try_from(*offset))
        .collect::<Result<Vec<_>, _>>()?;
    let digest = digest([&encoded.ids, &encoded.type_ids, &offsets]);
    let parts = [
        ("ids", &encoded.ids),
        ("type_ids", &encoded.type_ids),
        ("offsets", &offsets),
        ("sha256", &digest),
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
    crate::file::write_atomically(file, &safetensors::serialize(views, None)?)?;
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

    /// A folder with a tokenizer, and how many caches are in it.
    struct Place(tempfile::TempDir, PathBuf);

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let tokenizer = tokenizer(folder.path());
            Place(folder, tokenizer)
        }

        fn get(&self, examples: &[Example], max_length: usize) -> Encoded {
            let cache = self.0.path().join("cache");
            let encoder = Encoder::open(&self.1, max_length).expect("a tokenizer");
            encode_cached(&cache, &encoder, examples, &Places::default()).expect("it tokenises")
        }

        fn caches(&self) -> Vec<PathBuf> {
            let entries = std::fs::read_dir(self.0.path().join("cache")).expect("the cache");
            entries
                .map(|entry| entry.expect("an entry").path())
                .collect()
        }
    }

    #[test]
    fn a_cache_is_used_the_second_time() {
        let place = Place::new();
        let fresh = place.get(&examples(), 8);
        assert_eq!(
            fresh,
            tokenize(&place.1, &examples(), 8).expect("it tokenises")
        );
        let file = place.caches().remove(0);
        // A whole cache is believed: put another there and see it.
        let mut other = fresh.clone();
        other.ids[1] = 8;
        write(&file, &other).expect("it writes");
        assert_eq!(place.get(&examples(), 8).ids, other.ids);
        // Labels are no part of it.
        let mut relabelled = examples();
        relabelled[0].label = Some(Label::Class(0));
        let again = place.get(&relabelled, 8);
        assert_eq!(again.ids, other.ids);
        assert_eq!(Label::classes(&again.labels), Some(vec![0, 0, 1]));
        assert_eq!(place.caches(), [file]);
    }

    #[test]
    fn whatever_decides_the_tokens_has_a_cache_of_its_own() {
        let place = Place::new();
        place.get(&examples(), 8);
        let mut expected = 1;
        let mut another = |examples: &[Example], max_length: usize| {
            let encoded = place.get(examples, max_length);
            assert_eq!(
                encoded,
                tokenize(&place.1, examples, max_length).expect("it tokenises")
            );
            expected += 1;
            assert_eq!(place.caches().len(), expected);
        };
        another(&examples(), 6);
        let mut edited = examples();
        edited[0].text.push_str(" mat");
        another(&edited, 8);
        // Other columns: the pair's second text is left out, or both trade places.
        let mut single = examples();
        single[1].text_pair = None;
        another(&single, 8);
        single[1].text_pair = Some(String::new());
        another(&single, 8);
        let mut swapped = examples();
        swapped[1].text = "on the mat".into();
        swapped[1].text_pair = Some("the dog".into());
        another(&swapped, 8);
        another(&examples()[..2], 8);
        let text = std::fs::read_to_string(&place.1).expect("a tokenizer");
        std::fs::write(&place.1, text.replace("\"cat\":5", "\"cat\":1")).expect("it writes");
        another(&examples(), 8);
        assert_eq!(place.get(&examples(), 8).ids[..4], [2, 4, 1, 6]);
        let beside = place.0.path().join("tokenizer_config.json");
        for config in [
            r#"{"truncation_side": "left"}"#,
            r#"{"truncation_side": "left", "mask_token": "mat"}"#,
            r#"{"split_special_tokens": true}"#,
        ] {
            std::fs::write(&beside, config).expect("it writes");
            another(&examples(), 8);
        }
        // What decides nothing changes nothing.
        std::fs::write(
            &beside,
            r#"{"split_special_tokens": true, "padding_side": "left"}"#,
        )
        .expect("it writes");
        place.get(&examples(), 8);
        assert_eq!(place.caches().len(), expected);
    }

    #[test]
    fn a_damaged_cache_is_made_anew() {
        let place = Place::new();
        let fresh = place.get(&examples(), 8);
        let file = place.caches().remove(0);
        let whole = std::fs::read(&file).expect("a cache");
        let mut damaged: Vec<Vec<u8>> = (0..whole.len())
            .step_by(11)
            .map(|end| whole[..end].to_vec())
            .collect();
        for at in (0..whole.len()).step_by(3) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            damaged.push(flipped);
        }
        damaged.push(b"not safetensors".to_vec());
        for bytes in damaged {
            std::fs::write(&file, &bytes).expect("it writes");
            assert_eq!(place.get(&examples(), 8), fresh);
            assert_eq!(std::fs::read(&file).expect("a cache").len(), whole.len());
        }
        // A folder where the cache should be, or a file where its folder should be, costs only time.
        std::fs::remove_file(&file).expect("it is there");
        std::fs::create_dir(&file).expect("a folder");
        assert_eq!(place.get(&examples(), 8), fresh);
        std::fs::remove_dir_all(place.0.path().join("cache")).expect("it is there");
        std::fs::write(place.0.path().join("cache"), "").expect("it writes");
        assert_eq!(place.get(&examples(), 8), fresh);
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
