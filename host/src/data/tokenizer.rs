//! A model's tokenizer as its whole folder describes it: `tokenizer.json`, and what `tokenizer_config.json` says
//! over it, as Transformers' `AutoTokenizer` reads the two.

mod words;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokenizers::normalizers::{BertNormalizer, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::utils::truncation::truncate_encodings;
use tokenizers::{
    AddedToken, Encoding, PostProcessor, Tokenizer, TruncationDirection, TruncationParams,
    TruncationStrategy,
};

use super::Example;
use super::quiet::without_panic;
use crate::error::{Error, Result};
pub(super) use words::{OfWords, Pieces};

/// The file beside `tokenizer.json`.
pub(super) const CONFIG: &str = "tokenizer_config.json";

/// Texts up to so many bytes are tokenised whole.
const SHORT: usize = 16 << 10;
/// No more than so many bytes of a text are tokenised: the tokenizers library takes about a hundred times as much
/// memory.
pub(super) const MOST: usize = 1 << 20;
/// Tokens that must follow those that are read, so that nothing at a cut reaches them.
const MARGIN: usize = 32;

/// The keys of `tokenizer_config.json` that decide which ids come out. Others change what is shown or padded.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Config {
    tokenizer_class: Option<String>,
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    add_prefix_space: Option<bool>,
    truncation_side: Option<String>,
    split_special_tokens: Option<bool>,
    added_tokens_decoder: Option<BTreeMap<u32, Token>>,
    additional_special_tokens: Option<Vec<Token>>,
    extra_special_tokens: Option<Extra>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    unk_token: Option<Token>,
    sep_token: Option<Token>,
    pad_token: Option<Token>,
    cls_token: Option<Token>,
    mask_token: Option<Token>,
    /// No part of a tokenizer's identity: the length is known apart from it.
    #[serde(skip_serializing)]
    model_max_length: Option<f64>,
}

/// A token, by its content alone or with how it is matched.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum Token {
    Content(String),
    Added {
        content: String,
        #[serde(default)]
        single_word: bool,
        #[serde(default)]
        lstrip: bool,
        #[serde(default)]
        rstrip: bool,
        normalized: Option<bool>,
        #[serde(default)]
        special: bool,
    },
}

/// Special tokens without a role: a list, or names for them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum Extra {
    List(Vec<Token>),
    Named(BTreeMap<String, Token>),
}

impl Token {
    fn added(&self, special: bool) -> AddedToken {
        match self {
            Token::Content(content) => AddedToken::from(content.clone(), special),
            Token::Added {
                content,
                single_word,
                lstrip,
                rstrip,
                normalized,
                special: own,
            } => {
                let special = special || *own;
                AddedToken::from(content.clone(), special)
                    .single_word(*single_word)
                    .lstrip(*lstrip)
                    .rstrip(*rstrip)
                    .normalized(normalized.unwrap_or(!special))
            }
        }
    }
}

/// How a class of Transformers builds its tokenizer over what `tokenizer.json` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// `BertNormalizer` with the config's casing.
    Bert,
    /// `ByteLevel` with the config's prefix space.
    Roberta,
    /// As `tokenizer.json` says.
    Other,
}

impl Class {
    /// The special tokens that the class has unless the config names others.
    fn tokens(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Class::Bert => &[
                ("unk", "[UNK]"),
                ("sep", "[SEP]"),
                ("pad", "[PAD]"),
                ("cls", "[CLS]"),
                ("mask", "[MASK]"),
            ],
            Class::Roberta => &[
                ("bos", "<s>"),
                ("eos", "</s>"),
                ("unk", "<unk>"),
                ("sep", "</s>"),
                ("pad", "<pad>"),
                ("cls", "<s>"),
                ("mask", "<mask>"),
            ],
            Class::Other => &[],
        }
    }
}

/// A tokenizer ready to encode texts of at most `max_length` tokens.
pub struct Encoder {
    path: PathBuf,
    /// Cuts nothing and adds nothing.
    raw: Tokenizer,
    /// Puts special tokens around what was cut.
    framing: Tokenizer,
    max_length: usize,
    side: TruncationDirection,
    /// Whether a space always divides words, so that a long text may be read in part.
    by_words: bool,
    /// The token that ends a text.
    end: Option<u32>,
    identity: String,
}

impl Encoder {
    /// Opens the `tokenizer.json` at `path` and what lies beside it.
    pub fn open(path: &Path, max_length: usize) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| {
            Error::user(format!("cannot read {}", path.display()))
                .because(error)
                .help("a model folder holds config.json, model.safetensors and tokenizer.json")
        })?;
        // The library panics over some damage.
        let opened = without_panic(|| Tokenizer::from_bytes(&bytes));
        let mut tokenizer = opened
            .ok_or_else(|| refuse(path, "it is damaged"))?
            .map_err(|error| refuse(path, error))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let (config, given) = read_config(folder)?;
        let class = class(&config, folder);
        let at = Beside { folder, given };
        at.casing(&config, class, &mut tokenizer)?;
        at.prefix_space(&config, class, &mut tokenizer)?;
        let added = without_panic(|| at.added_tokens(&config, class, &mut tokenizer));
        added.ok_or_else(|| refuse(path, "it is damaged"))??;
        if config.split_special_tokens == Some(true) {
            tokenizer.set_encode_special_tokens(true);
        }
        let side = at.side(&config, &tokenizer)?;
        let max_length = at.cap(&config, max_length);
        // Files carry settings of their own; padding would defeat packing.
        tokenizer.with_padding(None);
        let mut framing = tokenizer;
        framing.with_truncation(None).map_err(|e| refuse(path, e))?;
        let mut raw = framing.clone();
        raw.with_post_processor(None::<PostProcessorWrapper>);
        let mut hash = Sha256::new();
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
        let settings = serde_json::to_vec(&(format!("{class:?}"), &config));
        hash.update(settings.map_err(|error| Error::failure(error.to_string()))?);
        Ok(Encoder {
            path: path.to_owned(),
            by_words: raw.get_pre_tokenizer().is_some_and(divides_words),
            end: end(&config, &raw),
            raw,
            framing,
            max_length,
            side,
            identity: crate::file::hex(&hash.finalize()),
        })
    }

    /// A digest of all that decides which ids a text gets, but for the length.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The most tokens of an example, special ones included.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Refuses a length in which no token of a text has room beside the special ones.
    pub fn check_room(&self, pair: bool) -> Result<()> {
        let special = self.special(pair);
        if self.max_length > special {
            return Ok(());
        }
        let what = if pair { "a pair" } else { "a text" };
        Err(Error::user(format!(
            "`model.max_length` comes to {}, but the tokenizer puts {special} special tokens around {what}: nothing of it would be read",
            self.max_length
        ))
        .help(format!("set model.max_length to at least {}", special + 1)))
    }

    /// How many special tokens stand around a text or a pair.
    fn special(&self, pair: bool) -> usize {
        let processor = self.framing.get_post_processor();
        processor.map_or(0, |processor| processor.added_tokens(pair))
    }

    /// Ids and token types of an example, or what is wrong with it.
    pub fn encode(&self, example: &Example) -> Result<(Vec<u32>, Vec<u32>), String> {
        without_panic(|| self.try_encode(example)).ok_or_else(|| {
            format!(
                "the tokenizer panics over it; {} may be damaged",
                self.path.display()
            )
        })?
    }

    fn try_encode(&self, example: &Example) -> Result<(Vec<u32>, Vec<u32>), String> {
        match &example.text_pair {
            Some(pair) => {
                let (first, second) = self.decisive_pair(&example.text, pair)?;
                self.frame(first, Some(second))
            }
            None => {
                let (text, _) = self.decisive(&example.text, self.max_length + 1)?;
                self.frame(text, None)
            }
        }
    }

    /// Cuts and frames as the library does, but for what is cut off, which it would keep: of a pair, in as many
    /// pieces as those of the one text times those of the other.
    fn frame(&self, text: &str, pair: Option<&str>) -> Result<(Vec<u32>, Vec<u32>), String> {
        let first = self.tokens(text)?;
        let second = match pair {
            Some(pair) => {
                let mut second = self.tokens(pair)?;
                second.set_type_ids(vec![1; second.len()]);
                Some(second)
            }
            None => None,
        };
        let params = TruncationParams {
            // `check_room` has made sure that something is left.
            max_length: self.max_length.saturating_sub(self.special(pair.is_some())),
            stride: 0,
            strategy: TruncationStrategy::LongestFirst,
            direction: self.side,
        };
        let cannot = |error: tokenizers::Error| format!("it cannot be tokenised: {error}");
        let (mut first, mut second) = truncate_encodings(first, second, &params).map_err(cannot)?;
        first.take_overflowing();
        if let Some(second) = &mut second {
            second.take_overflowing();
        }
        let framed = self.framing.post_process(first, second, true);
        let framed = framed.map_err(cannot)?;
        Ok((framed.get_ids().to_vec(), framed.get_type_ids().to_vec()))
    }

    /// The parts of a pair that decide its tokens. Of two texts that are both cut, the longer one may keep a token
    /// more: the parts compare in length as the texts do.
    fn decisive_pair<'t>(
        &self,
        first: &'t str,
        second: &'t str,
    ) -> Result<(&'t str, &'t str), String> {
        let need = self.max_length + 1;
        let (mut one, mut other) = (self.decisive(first, need)?, self.decisive(second, need)?);
        let cut = one.1.is_some() || other.1.is_some();
        if cut {
            let counts =
                |(part, known): &(&str, Option<usize>)| known.map_or_else(|| self.count(part), Ok);
            let (a, b) = (counts(&one)?, counts(&other)?);
            if a.min(b) >= need {
                let longer = self.count(first)? > self.count(second)?;
                if longer && a <= b {
                    one = self.decisive(first, b + 1)?;
                }
                if !longer && a > b {
                    other = self.decisive(second, a)?;
                }
            }
        }
        Ok((one.0, other.0))
    }

    /// The part of `text` at the end where reading begins whose tokens begin with the same `need` as the whole
    /// text's, and how many tokens it has; or the whole text.
    fn decisive<'t>(&self, text: &'t str, need: usize) -> Result<(&'t str, Option<usize>), String> {
        if text.len() <= SHORT {
            return Ok((text, None));
        }
        let mut before: Option<Vec<u32>> = None;
        let mut size = SHORT.max(16 * need);
        loop {
            let part = match self.by_words {
                true => part(text, size, self.side),
                false => text,
            };
            if part.len() > MOST {
                return Err(format!(
                    "the text has {} bytes, of which more than {MOST} would have to be tokenised to fill {} tokens: its words are too long, or too few",
                    text.len(),
                    self.max_length
                ));
            }
            if part.len() == text.len() {
                return Ok((text, None));
            }
            let tokens = self.tokens(part)?;
            let ids = tokens.get_ids();
            if ids.len() >= need + MARGIN {
                let kept = match self.side {
                    TruncationDirection::Right => ids[..need].to_vec(),
                    TruncationDirection::Left => ids[ids.len() - need..].to_vec(),
                };
                if before.as_ref() == Some(&kept) {
                    return Ok((part, Some(ids.len())));
                }
                before = Some(kept);
            }
            size = 2 * part.len();
        }
    }

    /// How many tokens a text has, special ones aside; a long one is read in pieces.
    fn count(&self, text: &str) -> Result<usize, String> {
        let (mut rest, mut tokens) = (text, 0);
        while !rest.is_empty() {
            let piece = self.piece(rest)?;
            tokens += self.tokens(piece)?.len();
            rest = &rest[piece.len()..];
        }
        Ok(tokens)
    }

    fn tokens(&self, text: &str) -> Result<Encoding, String> {
        let encoding = self.raw.encode_fast(text, false);
        encoding.map_err(|error| format!("it cannot be tokenised: {error}"))
    }

    /// All tokens of a document, special ones and the one that ends a text included.
    pub(super) fn document(&self, text: &str) -> Result<Vec<u32>, String> {
        self.guarded(|| {
            let [before, after] = self.around()?;
            let mut ids = [before, self.whole(text)?, after].concat();
            ids.extend(self.end.filter(|end| ids.last() != Some(end)));
            Ok(ids)
        })
    }

    /// All tokens of a prompt, with the special ones that stand before a text.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, String> {
        self.guarded(|| {
            let [before, _] = self.around()?;
            Ok([before, self.whole(text)?].concat())
        })
    }

    /// All tokens of a response, and the one that ends a text.
    pub(super) fn response(&self, text: &str) -> Result<Vec<u32>, String> {
        self.guarded(|| {
            let mut ids = self.whole(text)?;
            ids.extend(self.end);
            Ok(ids)
        })
    }

    /// All tokens of a text that has its special ones written in it.
    pub fn written(&self, text: &str) -> Result<Vec<u32>, String> {
        self.guarded(|| self.whole(text))
    }

    /// The token that ends a text, if there is one.
    pub fn end(&self) -> Option<u32> {
        self.end
    }

    /// The text of tokens, special ones left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.guarded(|| {
            let text = self.raw.decode(ids, true);
            text.map_err(|error| format!("the tokens have no text: {error}"))
        })
    }

    fn guarded<T>(&self, run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        without_panic(run).ok_or_else(|| {
            format!(
                "the tokenizer panics over it; {} may be damaged",
                self.path.display()
            )
        })?
    }

    /// The special tokens before a text and behind it.
    fn around(&self) -> Result<[Vec<u32>; 2], String> {
        let inner = self.tokens("a")?;
        let ids = inner.get_ids().to_vec();
        let framed = self.framing.post_process(inner, None, true);
        let framed = framed.map_err(|error| format!("it cannot be tokenised: {error}"))?;
        let framed = framed.get_ids();
        let at = framed
            .windows(ids.len().max(1))
            .position(|part| part == ids);
        match at.filter(|_| !ids.is_empty()) {
            Some(at) => Ok([framed[..at].to_vec(), framed[at + ids.len()..].to_vec()]),
            None => Err("the tokenizer's special tokens cannot be told from a text's".to_owned()),
        }
    }

    /// All tokens of a text, special ones aside; a long one is read in pieces.
    fn whole(&self, text: &str) -> Result<Vec<u32>, String> {
        let (mut rest, mut ids) = (text, Vec::new());
        while !rest.is_empty() {
            let piece = self.piece(rest)?;
            ids.extend_from_slice(self.tokens(piece)?.get_ids());
            rest = &rest[piece.len()..];
        }
        Ok(ids)
    }

    /// The start of a text that is tokenised at once.
    fn piece<'t>(&self, rest: &'t str) -> Result<&'t str, String> {
        let piece = match self.by_words && rest.len() > SHORT {
            true => part(rest, SHORT, TruncationDirection::Right),
            false => rest,
        };
        match piece.len() > MOST {
            true => Err(format!(
                "the text has a word of more than {MOST} bytes, which is not tokenised"
            )),
            false => Ok(piece),
        }
    }

    /// The token of an id, for a message.
    pub(super) fn token(&self, id: u32) -> String {
        self.raw.id_to_token(id).unwrap_or_default()
    }
}

/// The token that ends a text, as `tokenizer_config.json` names it.
fn end(config: &Config, tokenizer: &Tokenizer) -> Option<u32> {
    let content = match config.eos_token.as_ref()? {
        Token::Content(content) | Token::Added { content, .. } => content,
    };
    tokenizer.token_to_id(content)
}

/// At least `size` bytes of `text`, from the end where reading begins to just before a space that a word's end or
/// beginning is at; all of it where there is no such space.
fn part(text: &str, size: usize, side: TruncationDirection) -> &str {
    let bytes = text.as_bytes();
    let divides = |at: usize| {
        at > 0
            && at + 1 < bytes.len()
            && bytes[at] == b' '
            && bytes[at - 1].is_ascii_alphanumeric()
            && bytes[at + 1].is_ascii_alphanumeric()
    };
    match side {
        TruncationDirection::Right => {
            let found = (size..bytes.len()).find(|at| divides(*at));
            found.map_or(text, |at| &text[..at])
        }
        TruncationDirection::Left => {
            let end = bytes.len().saturating_sub(size);
            let found = (0..end).rev().find(|at| divides(*at));
            found.map_or(text, |at| &text[at..])
        }
    }
}

/// Whether a space always ends a word.
fn divides_words(by: &PreTokenizerWrapper) -> bool {
    match by {
        PreTokenizerWrapper::BertPreTokenizer(_)
        | PreTokenizerWrapper::Whitespace(_)
        | PreTokenizerWrapper::WhitespaceSplit(_) => true,
        PreTokenizerWrapper::ByteLevel(bytes) => bytes.use_regex,
        PreTokenizerWrapper::Metaspace(metaspace) => metaspace.get_split(),
        PreTokenizerWrapper::Sequence(several) => several.as_ref().iter().any(divides_words),
        _ => false,
    }
}

fn refuse(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::user(format!(
        "{} cannot be used as a tokenizer: {what}",
        path.display()
    ))
    .help(
        "the file must be a tokenizer.json of the tokenizers library, whole; fetch the model again",
    )
}

/// What `tokenizer_config.json` says, and whether it is there.
pub(super) fn read_config<T: DeserializeOwned + Default>(folder: &Path) -> Result<(T, bool)> {
    let path = folder.join(CONFIG);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok((T::default(), false));
        }
        Err(error) => {
            return Err(
                Error::user(format!("cannot read {}: {error}", path.display()))
                    .help("it must be the tokenizer_config.json of the model, whole"),
            );
        }
    };
    match serde_json::from_str(&text) {
        Ok(config) => Ok((config, true)),
        Err(error) => Err(Error::user(format!("{}: {error}", path.display()))
            .help("it must be the tokenizer_config.json of the model, whole")),
    }
}

/// The class that `AutoTokenizer` takes: the config's, else that of the model's type.
fn class(config: &Config, folder: &Path) -> Class {
    #[derive(Deserialize)]
    struct Model {
        model_type: Option<String>,
        tokenizer_class: Option<String>,
    }
    let model = std::fs::read_to_string(folder.join("config.json"))
        .ok()
        .and_then(|text| serde_json::from_str::<Model>(&text).ok());
    let named = config.tokenizer_class.clone();
    let named = named.or_else(|| model.as_ref()?.tokenizer_class.clone());
    match named {
        Some(name) => match name.strip_suffix("Fast").unwrap_or(&name) {
            "BertTokenizer" | "DistilBertTokenizer" => Class::Bert,
            "RobertaTokenizer" => Class::Roberta,
            _ => Class::Other,
        },
        None => match model.and_then(|model| model.model_type).as_deref() {
            Some("bert" | "distilbert") => Class::Bert,
            Some("roberta") => Class::Roberta,
            _ => Class::Other,
        },
    }
}

/// What `tokenizer_config.json` changes.
struct Beside<'a> {
    folder: &'a Path,
    given: bool,
}

impl Beside<'_> {
    /// Says that a key counts over `tokenizer.json`; without a config, that one is needed.
    fn overrides(&self, key: &str, value: &str, file: &str) -> Result<()> {
        let path = self.folder.join(CONFIG);
        if self.given {
            tracing::warn!(
                "{}: `{key}` comes to {value}, where tokenizer.json has {file}: as in Transformers, {value} counts",
                path.display()
            );
            return Ok(());
        }
        Err(Error::user(format!(
            "{} is missing, and tokenizer.json has {file} for `{key}`, where Transformers takes {value} if nothing is said",
            path.display()
        ))
        .help(format!(
            "fetch the model's tokenizer_config.json, or write one that says which it is: {{\"{key}\": {file}}}"
        )))
    }

    fn casing(&self, config: &Config, class: Class, tokenizer: &mut Tokenizer) -> Result<()> {
        let asked = [
            ("do_lower_case", config.do_lower_case),
            ("strip_accents", config.strip_accents),
            ("tokenize_chinese_chars", config.tokenize_chinese_chars),
        ];
        let asked = asked.iter().find(|(_, value)| value.is_some());
        let bert = match tokenizer.get_normalizer() {
            Some(NormalizerWrapper::BertNormalizer(bert)) => *bert,
            _ => {
                // Which of the two counts, Transformers' versions do not agree on.
                return match (class, asked) {
                    (Class::Bert, Some((key, _))) => Err(Error::user(format!(
                        "{}: `{key}` is for a BertNormalizer, but tokenizer.json has another normalizer",
                        self.folder.join(CONFIG).display()
                    ))
                    .help("take the key out and set tokenizer_class to \"PreTrainedTokenizerFast\" if tokenizer.json is right")),
                    _ => Ok(()),
                };
            }
        };
        if class != Class::Bert {
            return Ok(());
        }
        let lower = config.do_lower_case.unwrap_or(true);
        let chinese = config.tokenize_chinese_chars.unwrap_or(true);
        let strips = |strip: Option<bool>, lower: bool| strip.unwrap_or(lower);
        let differ = [
            ("do_lower_case", lower, bert.lowercase),
            (
                "strip_accents",
                strips(config.strip_accents, lower),
                strips(bert.strip_accents, bert.lowercase),
            ),
            ("tokenize_chinese_chars", chinese, bert.handle_chinese_chars),
        ];
        for (key, wanted, found) in differ {
            if wanted != found {
                self.overrides(key, &wanted.to_string(), &found.to_string())?;
            }
        }
        tokenizer.with_normalizer(Some(BertNormalizer::new(
            bert.clean_text,
            chinese,
            config.strip_accents,
            lower,
        )));
        Ok(())
    }

    fn prefix_space(&self, config: &Config, class: Class, tokenizer: &mut Tokenizer) -> Result<()> {
        let Some(PreTokenizerWrapper::ByteLevel(bytes)) = tokenizer.get_pre_tokenizer() else {
            return Ok(());
        };
        let mut bytes = *bytes;
        let wanted = match (class, config.add_prefix_space) {
            (Class::Roberta, given) => given.unwrap_or(false),
            (_, Some(given)) if given != bytes.add_prefix_space => {
                return Err(Error::user(format!(
                    "{}: `add_prefix_space` is {given}, but tokenizer.json has {}",
                    self.folder.join(CONFIG).display(),
                    bytes.add_prefix_space
                ))
                .help("Transformers' versions do not agree on which of the two counts here: make them the same"));
            }
            _ => return Ok(()),
        };
        if wanted != bytes.add_prefix_space {
            let (wanted, found) = (wanted.to_string(), bytes.add_prefix_space.to_string());
            self.overrides("add_prefix_space", &wanted, &found)?;
        }
        bytes.add_prefix_space = wanted;
        tokenizer.with_pre_tokenizer(Some(bytes));
        Ok(())
    }

    fn added_tokens(&self, config: &Config, class: Class, tokenizer: &mut Tokenizer) -> Result<()> {
        let path = self.folder.join(CONFIG);
        for (id, token) in config.added_tokens_decoder.iter().flatten() {
            let token = token.added(false);
            let content = token.content.clone();
            tokenizer.add_tokens(&[token]);
            match tokenizer.token_to_id(&content) {
                Some(found) if found == *id => {}
                found => {
                    let found = found.map_or("none".to_owned(), |found| found.to_string());
                    return Err(Error::user(format!(
                        "{}: `added_tokens_decoder` gives {content:?} the id {id}, but by tokenizer.json it has {found}",
                        path.display()
                    ))
                    .help("both files must come from the same tokenizer: save it again with Transformers' save_pretrained"));
                }
            }
        }
        let named = [
            ("bos", &config.bos_token),
            ("eos", &config.eos_token),
            ("unk", &config.unk_token),
            ("sep", &config.sep_token),
            ("pad", &config.pad_token),
            ("cls", &config.cls_token),
            ("mask", &config.mask_token),
        ];
        let mut special: Vec<AddedToken> = Vec::new();
        for (role, token) in &named {
            let usual = class.tokens().iter().find(|(of, _)| of == role);
            match (token, usual) {
                (Some(token), _) => special.push(token.added(true)),
                // One that the vocabulary lacks would only get an id that the model lacks.
                (None, Some((_, usual))) if tokenizer.token_to_id(usual).is_some() => {
                    special.push(AddedToken::from(*usual, true));
                }
                _ => {}
            }
        }
        let extra: Vec<&Token> = match &config.extra_special_tokens {
            Some(Extra::List(tokens)) => tokens.iter().collect(),
            Some(Extra::Named(tokens)) => tokens.values().collect(),
            None => Vec::new(),
        };
        let additional = config.additional_special_tokens.iter().flatten();
        special.extend(additional.chain(extra).map(|token| token.added(true)));
        let known = tokenizer.get_added_tokens_decoder();
        special.retain(|token| !known.values().any(|known| known.content == token.content));
        if !special.is_empty() {
            tokenizer.add_special_tokens(&special);
        }
        Ok(())
    }

    fn side(&self, config: &Config, tokenizer: &Tokenizer) -> Result<TruncationDirection> {
        match config.truncation_side.as_deref() {
            Some("right") => Ok(TruncationDirection::Right),
            Some("left") => Ok(TruncationDirection::Left),
            Some(other) => Err(Error::user(format!(
                "{}: `truncation_side` is {other:?}",
                self.folder.join(CONFIG).display()
            ))
            .help("it is \"right\" or \"left\"")),
            None => Ok(tokenizer
                .get_truncation()
                .map_or(TruncationDirection::Right, |own| own.direction)),
        }
    }

    fn cap(&self, config: &Config, max_length: usize) -> usize {
        match config.model_max_length {
            Some(most) if most >= 1.0 && most < max_length as f64 => {
                tracing::warn!(
                    "model.max_length is {max_length}, but {} has a `model_max_length` of {most}: {most} is used",
                    self.folder.join(CONFIG).display()
                );
                most as usize
            }
            _ => max_length,
        }
    }
}

#[cfg(test)]
mod tests;
