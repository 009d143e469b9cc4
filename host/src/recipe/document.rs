//! A recipe's text with the `--set` flags applied, and where in them each key stands, so that every
//! complaint can show the line it is about.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::error::{Error, Result};

/// Names for one choice: a `--set` of one removes the others from the recipe.
const RIVALS: &[&[&str]] = &[
    &["train.epochs", "train.steps"],
    &["train.batch_size", "train.tokens_per_batch"],
    &["adapter.rank", "adapter.r"],
    &["adapter.alpha", "adapter.lora_alpha"],
    &[
        "adapter.dropout",
        "adapter.lora_dropout",
        "adapter.vera_dropout",
    ],
    &["adapter.targets", "adapter.target_modules"],
];

/// Where each key of a recipe was written. Kept beside the recipe for as long as something may still
/// be found wrong with it: a plugin that refuses its parameters is best shown the line they came from.
#[derive(Clone, Debug)]
pub struct Document {
    /// What messages call the file: a recipe, or a sweep.
    what: &'static str,
    sources: Vec<Source>,
    places: Vec<Place>,
}

/// A text that spans point into: the file, or one `--set` flag.
#[derive(Clone, Debug)]
struct Source {
    name: PathBuf,
    text: String,
    /// Where the text starts in the one numbering that all spans share.
    start: usize,
}

/// A key and its value, as byte ranges in the shared numbering.
#[derive(Clone, Debug)]
struct Place {
    key: String,
    key_span: Range<usize>,
    value_span: Range<usize>,
}

impl Document {
    /// The text of the file at `path`, which messages call `what`.
    pub fn text(what: &str, path: &Path) -> Result<String> {
        let bytes = std::fs::read(path).map_err(|error| {
            let help = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    format!("check the path; {what}s to start from lie in configs/")
                }
                std::io::ErrorKind::IsADirectory => {
                    format!("give the {what} file itself, such as configs/cola.toml")
                }
                _ => "check that the file may be read".to_owned(),
            };
            Error::user(format!("cannot read the {what} {}", path.display()))
                .because(error)
                .help(help)
        })?;
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..at]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            Error::user(format!("{}, line {line}: not UTF-8", path.display())).help(format!(
                "save the {what} in the UTF-8 encoding, which TOML requires"
            ))
        })
    }

    /// Reads `text` (of the file `name`, which messages call `what`) with `sets` (each `key=value`) applied in order, as a
    /// `T`.
    ///
    /// `keys` lists every dotted key a `T` can have; it only serves to tell where a misplaced key belongs.
    pub fn read<T: DeserializeOwned>(
        what: &'static str,
        name: &Path,
        text: &str,
        sets: &[String],
        keys: &[String],
    ) -> Result<(T, Document)> {
        let mut document = Document {
            what,
            sources: vec![Source {
                name: name.to_owned(),
                text: text.to_owned(),
                start: 0,
            }],
            places: Vec::new(),
        };
        for set in sets {
            let last = &document.sources[document.sources.len() - 1];
            let start = last.start + last.text.len() + 1;
            document.sources.push(Source {
                name: "--set".into(),
                text: set.clone(),
                start,
            });
        }
        // Blanks before each flag give its spans their place in the shared numbering.
        let padded: Vec<String> = document
            .sources
            .iter()
            .map(|s| format!("{:1$}{2}", "", s.start, s.text))
            .collect();

        let mut root = DeTable::parse(&padded[0]).map_err(|error| document.syntax(&error))?;
        for (source, padded) in document.sources.iter().zip(&padded).skip(1) {
            let (path, value) = document.assignment(source, padded)?;
            document.assign(root.get_mut(), "", &path, value)?;
        }
        document.places = places("", root.get_ref());
        match T::deserialize(toml::de::Deserializer::from(root)) {
            Ok(value) => Ok((value, document)),
            Err(error) => Err(document.explain(&error, keys)),
        }
    }

    /// Whether `key` (dotted) was given, in the file or by a flag.
    pub fn has(&self, key: &str) -> bool {
        self.places.iter().any(|place| place.key == key)
    }

    /// Whether the table `key` (dotted) was written between braces, not as a heading or in the dots of its keys.
    pub fn is_inline(&self, key: &str) -> bool {
        let place = self.places.iter().find(|place| place.key == key);
        place.is_some_and(|place| {
            let (source, span) = self.locate(&place.value_span);
            source
                .text
                .get(span)
                .is_some_and(|text| text.starts_with('{'))
        })
    }

    /// A user error that points at `key` (dotted), or at the nearest table around it that was written.
    pub fn error(&self, key: &str, message: impl Into<String>, label: impl Into<String>) -> Error {
        let error = Error::user(message);
        let mut wanted = key;
        loop {
            if let Some(place) = self.places.iter().find(|place| place.key == wanted) {
                // A table's value is all its lines: its name says enough.
                let span = if wanted == key && self.fits_a_line(&place.value_span) {
                    &place.value_span
                } else {
                    &place.key_span
                };
                return self.point(error, span, label);
            }
            match wanted.rsplit_once('.') {
                Some((table, _)) => wanted = table,
                None => return error.at(&self.sources[0].name, &self.sources[0].text, 0..0, label),
            }
        }
    }

    /// Refuses the value of `key` unless `right`: `found` is what was given, `expected` what is possible.
    pub(super) fn check(
        &self,
        key: &str,
        right: bool,
        found: impl Serialize,
        expected: &str,
    ) -> Result<()> {
        if right {
            return Ok(());
        }
        let found = toml::Value::try_from(found)
            .map(|v| v.to_string())
            .unwrap_or_default();
        Err(self
            .error(
                key,
                format!("`{key}` is {found}"),
                format!("expected {expected}"),
            )
            .help(self.way_out(key)))
    }

    /// Refuses a probability that would drop everything.
    pub(super) fn check_dropout(&self, key: &str, dropout: f64) -> Result<()> {
        let right = (0.0..1.0).contains(&dropout);
        self.check(key, right, dropout, "a probability from 0 to below 1")
    }

    /// Refuses 0, and what TOML's integers cannot hold.
    pub(super) fn check_count(&self, key: &str, count: u64) -> Result<()> {
        let right = count > 0 && i64::try_from(count).is_ok();
        self.check(key, right, count as f64, "a whole number of at least 1")
    }

    /// Refuses two keys that exclude each other.
    pub(super) fn check_one_of(&self, [one, other]: [&str; 2]) -> Result<()> {
        if !(self.has(one) && self.has(other)) {
            return Ok(());
        }
        Err(self
            .error(
                other,
                format!("`{one}` and `{other}` are both given"),
                "one of the two is too many",
            )
            .help("keep one of them; a `--set` of one replaces the other"))
    }

    /// An error of another part of the program about a value of this recipe, now pointing at its line:
    /// that of the first key of the same table which the message names in backticks, or of `key`.
    pub fn adopt(&self, key: &str, error: Error) -> Error {
        let message = error.to_string();
        let table = key.split('.').next().unwrap_or(key);
        let named = message.split('`').skip(1).step_by(2).find_map(|words| {
            let name = words.split(' ').next()?;
            (name.split('.').next() == Some(table) && self.has(name)).then_some(name)
        });
        let mut adopted = self.error(named.unwrap_or(key), &message, "here");
        if let Some(help) = miette::Diagnostic::help(&error) {
            adopted = adopted.help(help.to_string());
        }
        match std::error::Error::source(&error) {
            Some(source) => adopted.because(source.to_string()),
            None => adopted,
        }
    }

    /// How to change `key`, given where it was written.
    pub(super) fn way_out(&self, key: &str) -> String {
        if self.what != "recipe" {
            return format!("change it in the {}", self.what);
        }
        let place = self.places.iter().find(|place| place.key == key);
        match place {
            Some(place) if place.key_span.start > self.sources[0].text.len() => {
                format!("change or drop this flag: the recipe's own `{key}` then holds")
            }
            _ => format!("change it in the recipe, or pass `--set {key}=VALUE`"),
        }
    }

    fn fits_a_line(&self, span: &Range<usize>) -> bool {
        let (source, span) = self.locate(span);
        source
            .text
            .get(span)
            .is_some_and(|text| !text.contains('\n'))
    }

    /// The source a span points into, and the span in that source's own numbering.
    fn locate(&self, span: &Range<usize>) -> (&Source, Range<usize>) {
        let index = self
            .sources
            .iter()
            .rposition(|s| s.start <= span.start)
            .unwrap_or(0);
        let source = &self.sources[index];
        let within = |at: usize| at.saturating_sub(source.start).min(source.text.len());
        (source, within(span.start)..within(span.end))
    }

    fn point(&self, error: Error, span: &Range<usize>, label: impl Into<String>) -> Error {
        let (source, span) = self.locate(span);
        error.at(&source.name, &source.text, span, label)
    }

    /// What TOML's own grammar says against the file.
    fn syntax(&self, error: &toml::de::Error) -> Error {
        let refused = Error::user(format!(
            "{} is not valid TOML",
            self.sources[0].name.display()
        ));
        self.point(refused, &error.span().unwrap_or(0..0), error.message())
            .help(format!(
                "a {} is made of `key = value` lines under `[table]` headings; text needs quotes",
                self.what
            ))
    }

    /// Splits a flag into the keys of its path and its value. What is not a TOML value is text:
    /// `--set output=runs/a` needs no quotes.
    fn assignment<'i>(
        &self,
        source: &Source,
        padded: &'i str,
    ) -> Result<(Vec<Spanned<DeString<'i>>>, Spanned<DeValue<'i>>)> {
        let whole = source.start..source.start + source.text.len();
        let refuse = |span: &Range<usize>, label: String| {
            let error = Error::user(format!("cannot read the flag `--set {}`", source.text));
            self.point(error, span, label)
                .help("write `--set table.key=value`, such as `--set train.steps=200`; quote a value with spaces or brackets for the shell: `--set 'adapter.targets=[\"query\"]'`")
        };
        let Some((key, value)) = source.text.split_once('=') else {
            return Err(refuse(&whole, "there is no `=` here".to_owned()));
        };
        let equals = source.start + key.len();
        if value.trim().is_empty() {
            return Err(refuse(&(equals..equals + 1), "no value follows".to_owned()));
        }
        // The path alone, by giving it the smallest value there is.
        let probe = format!("{}=0", &padded[..equals]);
        let path = match DeTable::parse(&probe) {
            Ok(table) if !key.contains('\n') => path_of_only_key(table.into_inner()),
            _ => {
                let label = "this is not a dotted path of keys".to_owned();
                return Err(refuse(&(source.start..equals), label));
            }
        };

        let value_span = equals + 1..whole.end;
        let text = Spanned::new(
            value_span.clone(),
            DeValue::String(Cow::Owned(value.trim().to_owned())),
        );
        if value.contains('\n') {
            return Ok((path, text));
        }
        let value = match DeTable::parse(padded) {
            Ok(table) => descend(table.into_inner(), path.len()),
            // A bracket or quote promises TOML; taking the rest as text would only hide the slip.
            Err(error) if value.trim_start().starts_with(['[', '{', '"', '\'']) => {
                let span = error.span().unwrap_or(value_span);
                return Err(refuse(&span, error.message().to_owned()));
            }
            Err(_) => text.clone(),
        };
        // No key takes a date, so `output=2026-01-31` is text.
        Ok((
            path,
            if value.get_ref().is_datetime() {
                text
            } else {
                value
            },
        ))
    }

    /// Puts `value` at `path` below `table`, whose own path is `prefix`, making tables on the way.
    fn assign<'i>(
        &self,
        table: &mut DeTable<'i>,
        prefix: &str,
        path: &[Spanned<DeString<'i>>],
        value: Spanned<DeValue<'i>>,
    ) -> Result<()> {
        let Some((key, rest)) = path.split_first() else {
            return Ok(());
        };
        let name = join(prefix, key.get_ref());
        if rest.is_empty() {
            for rival in RIVALS.iter().filter(|group| group.contains(&name.as_str())) {
                for key in *rival {
                    let key = key
                        .strip_prefix(prefix)
                        .unwrap_or(key)
                        .trim_start_matches('.');
                    table.remove(key);
                }
            }
            // Removed first, since an insertion keeps the old key, whose span is the file's.
            table.remove(key);
            table.insert(key.clone(), value);
            return Ok(());
        }
        if !table.contains_key(key) {
            let span = key.span().start..value.span().end;
            table.insert(
                key.clone(),
                Spanned::new(span, DeValue::Table(DeTable::new())),
            );
        }
        match table.get_mut(key).map(Spanned::get_mut) {
            Some(DeValue::Table(inner)) => self.assign(inner, &name, rest, value),
            _ => {
                let error = Error::user(format!("`{name}` is not a table: it has no keys to set"));
                Err(self
                    .point(error, &key.span(), "a single value in the recipe")
                    .help(format!("set it as a whole: `--set {name}=VALUE`")))
            }
        }
    }

    /// Turns what serde found wrong into a sentence that names the key.
    fn explain(&self, error: &toml::de::Error, keys: &[String]) -> Error {
        let span = error.span().unwrap_or(0..0);
        let place = self
            .places
            .iter()
            .filter(|p| p.key_span == span || contains(&p.value_span, &span))
            .max_by_key(|p| p.key.len());
        let key = place.map_or("", |place| place.key.as_str());
        let message = error.message();

        if let Some(rest) = message.strip_prefix("unknown field ") {
            let (unknown, known) = quoted(rest);
            return self.unknown_key(key, &span, &unknown, &known, keys);
        }
        if let Some(rest) = message.strip_prefix("unknown variant ") {
            let (unknown, known) = quoted(rest);
            let hint = match nearest(&unknown, &known) {
                Some(near) => format!("did you mean \"{near}\"? "),
                None => String::new(),
            };
            let error = Error::user(format!("`{key}` cannot be \"{unknown}\""));
            return self
                .point(error, &span, "not one of its values")
                .help(format!("{hint}It can be {}", list(&known, '"')));
        }
        if let Some(rest) = message.strip_prefix("missing field ") {
            let (missing, _) = quoted(rest);
            let name = self.whole_name(key, &missing, keys);
            let error = Error::user(format!("the {} lacks the key `{name}`", self.what));
            let is_table = keys.iter().any(|key| {
                let inner = key.strip_prefix(&name);
                inner.is_some_and(|inner| inner.starts_with('.'))
            });
            let help = if is_table {
                format!("add the table `[{name}]`")
            } else if self.what == "recipe" {
                format!("add it, or pass `--set {name}=VALUE`")
            } else {
                "add it".to_owned()
            };
            // What belongs to no table belongs at the top.
            let span = if name.contains('.') { span } else { 0..0 };
            return self
                .point(error, &span, format!("`{missing}` belongs here"))
                .help(help);
        }
        if let Some(rest) = message.strip_prefix("duplicate field ") {
            let (twice, _) = quoted(rest);
            let error = Error::user(format!("`{twice}` is given twice, once under another name"));
            return self
                .point(error, &span, "given again here")
                .help("keep one of the two");
        }
        let found = ["invalid type: ", "invalid value: ", "invalid length "]
            .iter()
            .find_map(|prefix| message.strip_prefix(prefix))
            .and_then(|rest| rest.split_once(", expected "));
        match found {
            Some((found, expected)) => {
                let found = found
                    .replace('`', "")
                    .replace("floating point", "the fraction");
                let error = Error::user(format!("`{key}` is {found}"));
                let mut help = self.way_out(key);
                if expected == "a string" {
                    help = match self.what {
                        "recipe" => {
                            format!("text needs quotes: `{key} = \"…\"`, or `--set '{key}=\"…\"'`")
                        }
                        _ => format!("text needs quotes: `{key} = \"…\"`"),
                    };
                }
                self.point(error, &span, format!("expected {}", plainly(expected)))
                    .help(help)
            }
            None => {
                let error = Error::user(format!("`{key}`: {message}"));
                self.point(error, &span, "refused").help(self.way_out(key))
            }
        }
    }

    /// The dotted path of a key that is missing beside or in `table`: a span says only roughly where.
    fn whole_name(&self, table: &str, missing: &str, keys: &[String]) -> String {
        let here = join(table, missing);
        if keys.contains(&here) || keys.is_empty() {
            return here;
        }
        let around = table.rsplit_once('.').map_or("", |(around, _)| around);
        let candidates = [join(around, missing), missing.to_owned()];
        let mut candidates = candidates.into_iter();
        candidates
            .find(|name| keys.contains(name) && !self.has(name))
            .unwrap_or(here)
    }

    fn unknown_key(
        &self,
        key: &str,
        span: &Range<usize>,
        unknown: &str,
        known: &[String],
        keys: &[String],
    ) -> Error {
        // The span is the key's own, except inside a tagged table, where it is the whole table's.
        let place = self
            .places
            .iter()
            .find(|place| place.key == join(key, unknown));
        let (key, span) = match place {
            Some(place) => (place.key.as_str(), &place.key_span),
            None => (key, span),
        };
        let table = key.rsplit_once('.').map_or("", |(table, _)| table);
        let elsewhere: Vec<String> = keys
            .iter()
            .filter(|k| k.rsplit('.').next() == Some(unknown))
            .cloned()
            .collect();
        let mut help = match nearest(unknown, known) {
            Some(near) => format!("did you mean `{near}`? "),
            None if !elsewhere.is_empty() => format!("did you mean {}? ", list(&elsewhere, '`')),
            None => String::new(),
        };
        match (known.is_empty(), table.is_empty()) {
            (true, _) => help += "Nothing but its name can be given here",
            (_, true) => help += &format!("The {} takes {}", self.what, list(known, '`')),
            (_, false) => help += &format!("[{table}] takes {}", list(known, '`')),
        }
        let error = Error::user(format!("the {} has no key `{key}`", self.what));
        self.point(error, span, "unknown key").help(help)
    }
}

/// The entry of `known` that `word` was most likely meant to be, if any is close.
pub fn nearest<'a>(word: &str, known: &'a [String]) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .iter()
        .map(|entry| {
            (
                strsim::normalized_damerau_levenshtein(&word, &entry.to_lowercase()),
                entry,
            )
        })
        .filter(|(likeness, _)| *likeness > 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, entry)| entry.as_str())
}

/// `a`, `b` and so on, each between two `quote`s.
pub(super) fn list(words: &[String], quote: char) -> String {
    words
        .iter()
        .map(|word| format!("{quote}{word}{quote}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

fn contains(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// Every key below `table`, whose own path is `prefix`.
fn places(prefix: &str, table: &DeTable<'_>) -> Vec<Place> {
    let mut found = Vec::new();
    for (key, value) in table.iter() {
        let name = join(prefix, key.get_ref());
        match value.get_ref() {
            DeValue::Table(inner) => found.extend(places(&name, inner)),
            // Tables in a list: `arm[0].name`.
            DeValue::Array(values) => {
                for (nth, value) in values.iter().enumerate() {
                    if let DeValue::Table(inner) = value.get_ref() {
                        let name = format!("{name}[{nth}]");
                        found.extend(places(&name, inner));
                        found.push(Place {
                            key: name,
                            key_span: value.span(),
                            value_span: value.span(),
                        });
                    }
                }
            }
            _ => {}
        }
        found.push(Place {
            key: name,
            key_span: key.span(),
            value_span: value.span(),
        });
    }
    found
}

/// The keys from the root of a table with one leaf down to it.
fn path_of_only_key<'i>(table: DeTable<'_>) -> Vec<Spanned<DeString<'i>>> {
    let mut path = Vec::new();
    let mut next = Some(table);
    while let Some((key, value)) = next.take().and_then(|table| table.into_iter().next()) {
        let owned = key.get_ref().clone().into_owned();
        path.push(Spanned::new(key.span(), owned.into()));
        if let DeValue::Table(inner) = value.into_inner() {
            next = Some(inner);
        }
    }
    path
}

/// The value `depth` keys below the root of a table that has one key at each of those depths.
fn descend(table: DeTable<'_>, depth: usize) -> Spanned<DeValue<'_>> {
    let mut value = Spanned::new(0..0, DeValue::Table(table));
    for _ in 0..depth {
        let span = value.span();
        value = match value.into_inner() {
            DeValue::Table(table) => match table.into_iter().next() {
                Some((_, inner)) => inner,
                None => return Spanned::new(span, DeValue::Table(DeTable::new())),
            },
            leaf => return Spanned::new(span, leaf),
        };
    }
    value
}

/// The first word between backticks, and the others.
fn quoted(text: &str) -> (String, Vec<String>) {
    let mut words = text.split('`').skip(1).step_by(2).map(str::to_owned);
    (words.next().unwrap_or_default(), words.collect())
}

/// serde speaks of Rust's types; a recipe's reader need not.
fn plainly(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a string" => "text in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a path" | "path string" => "a path in quotes",
        "a map" => "a table",
        _ if expected.starts_with("struct ") => "a table",
        _ => expected,
    }
}
