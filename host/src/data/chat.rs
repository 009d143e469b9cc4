//! Conversations, written as the model's chat template says: `chat_template.jinja`, or `chat_template` of
//! `tokenizer_config.json`, as `apply_chat_template` of Transformers runs it.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error as TemplateError, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use rayon::prelude::*;
use regex::Regex;
use serde::{Deserialize, Serialize as _};
use serde_json::ser::{Formatter, Serializer};

use super::Example;
use super::places::Places;
use super::table::json_told;
use super::tokenizer::{CONFIG, read_config};
use crate::error::{Error, Result};
use crate::file;

const FILE: &str = "chat_template.jinja";
/// What the template is called in its own errors, and among several.
const NAME: &str = "default";

/// A model's chat template.
pub struct Template {
    environment: Environment<'static>,
    /// The special tokens that a template may name.
    tokens: Vec<(String, String)>,
    identity: String,
    path: PathBuf,
}

/// What of `tokenizer_config.json` a template is run with.
#[derive(Debug, Default, Deserialize)]
struct Config {
    chat_template: Option<Templates>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl Template {
    /// The template in a model's folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let (config, _): (Config, bool) = read_config(folder)?;
        let (path, text) = source(folder, config.chat_template)?;
        let tokens = config
            .rest
            .iter()
            .filter(|(key, _)| key.ends_with("_token"));
        let tokens = tokens.filter_map(|(key, value)| {
            let content = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((key.clone(), content.to_owned()))
        });
        Self::new(path, &text, tokens.collect())
    }

    fn new(path: PathBuf, text: &str, tokens: Vec<(String, String)>) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment.set_syntax(syntax.expect("Jinja's own marks"));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function(
            "raise_exception",
            |what: String| -> Result<Value, TemplateError> {
                Err(TemplateError::new(ErrorKind::InvalidOperation, what))
            },
        );
        // Marks what the assistant says, which is told here from what stands before it.
        let marks = Regex::new(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}").expect("a pattern");
        let plain = marks.replace_all(text, "{%${1} set generation = 0 ${2}%}");
        let identity = file::sha256(format!("{text}\0{tokens:?}").as_bytes());
        environment
            .add_template_owned(NAME, plain.into_owned())
            .map_err(|error| {
                Error::user(format!(
                    "{}: the chat template: {}",
                    path.display(),
                    told(&error)
                ))
                .help("it must be a template that Transformers' apply_chat_template takes")
            })?;
        Ok(Template {
            environment,
            tokens,
            identity,
            path,
        })
    }

    /// A SHA-256 of the template and the special tokens, in hexadecimal.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a user says, written up to where the assistant answers.
    pub fn question(&self, content: &str) -> Result<String, String> {
        self.write(&[context! { role => "user", content => content }], true)
    }

    /// The text of a conversation; with `open`, up to where the assistant answers.
    fn write(&self, messages: &[Value], open: bool) -> Result<String, String> {
        let template = self.environment.get_template(NAME);
        let template = template.map_err(|error| told(&error))?;
        let tokens = self.tokens.iter();
        let tokens = tokens.map(|(key, token)| (key.as_str(), token.as_str()));
        let tokens = Value::from_pairs(tokens);
        let values = context! {
            messages => messages.to_vec(),
            add_generation_prompt => open,
            tools => (),
            documents => (),
            ..tokens
        };
        template.render(values).map_err(|error| told(&error))
    }

    /// What stands before each answer of a conversation, and the answer.
    fn answers(&self, messages: &[Value]) -> Result<Vec<(String, String)>, String> {
        let mut answers = Vec::new();
        for (at, message) in messages.iter().enumerate() {
            if !is_of_assistant(message) {
                continue;
            }
            let before = self.write(&messages[..at], true)?;
            let whole = self.write(&messages[..=at], false)?;
            let answer = whole.strip_prefix(before.as_str()).ok_or(
                "the chat template writes what stands before an answer in another way once the answer is there, so that \
                 the two cannot be told apart",
            )?;
            if answer.is_empty() {
                return Err("the chat template writes nothing of an answer".to_owned());
            }
            let answer = answer.to_owned();
            answers.push((before, answer));
        }
        match answers.is_empty() {
            true => Err(
                "nothing is said by the role \"assistant\": there is nothing to learn".to_owned(),
            ),
            false => Ok(answers),
        }
    }
}

/// The text of the template in a model's folder, of which `tokenizer_config.json` has these, and where it stands.
fn source(folder: &Path, configured: Option<Templates>) -> Result<(PathBuf, String)> {
    let own = folder.join(FILE);
    match std::fs::read_to_string(&own) {
        Ok(text) => return Ok((own, text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(file::cannot_read(&own, error)),
    }
    let path = folder.join(CONFIG);
    let named = match configured {
        Some(Templates::One(text)) => return Ok((path, text)),
        Some(Templates::Named(named)) => named,
        None => {
            return Err(Error::user(format!(
                "{}: the model has no chat template, neither {FILE} nor `chat_template` in {CONFIG}",
                folder.display()
            ))
            .help("take a model that was trained on conversations, or put its template there; of prompts and responses without one give the columns `text` and `response`"));
        }
    };
    match named.into_iter().find(|named| named.name == NAME) {
        Some(default) => Ok((path, default.template)),
        None => Err(Error::user(format!(
            "{}: none of its chat templates is called `{NAME}`",
            path.display()
        ))
        .help(format!("save the one to use as {FILE} beside it"))),
    }
}

/// The examples that conversations become, one for each answer of the assistant, and which conversation each is of.
pub(super) fn examples(
    template: &Template,
    conversations: &[Example],
    places: &Places,
) -> Result<(Vec<Example>, Vec<usize>)> {
    let written = conversations.par_iter().enumerate().map(|(index, example)| {
        let answers = messages(&example.text).and_then(|messages| template.answers(&messages));
        answers.map_err(|what| {
            Error::user(format!("{}: {what}", places.name(index))).help(
                "a conversation is a list of objects with `role` (system, user, assistant) and `content`, in the order that the model's chat template takes",
            )
        })
    });
    let written = written.collect::<Result<Vec<_>>>()?;
    let (mut examples, mut of) = (Vec::new(), Vec::new());
    for (index, (answers, from)) in written.into_iter().zip(conversations).enumerate() {
        for (before, answer) in answers {
            examples.push(Example {
                text: before,
                text_pair: Some(answer),
                label: from.label,
            });
            of.push(index);
        }
    }
    Ok((examples, of))
}

/// The turns of a conversation, each with a role and what was said.
fn messages(text: &str) -> Result<Vec<Value>, String> {
    let messages: Vec<Value> = serde_json::from_str(text)
        .map_err(|error| format!("no conversation: {}", json_told(&error)))?;
    for (at, message) in messages.iter().enumerate() {
        let role = message.get_attr("role");
        if !role.is_ok_and(|role| role.as_str().is_some()) {
            return Err(format!(
                "message {} has no `role`, a text: {message}",
                at + 1
            ));
        }
        if message
            .get_attr("content")
            .is_ok_and(|content| content.is_undefined())
        {
            return Err(format!("message {} has no `content`: {message}", at + 1));
        }
    }
    Ok(messages)
}

fn is_of_assistant(message: &Value) -> bool {
    let role = message.get_attr("role");
    role.is_ok_and(|role| role.as_str() == Some("assistant"))
}

/// What a template says is wrong.
fn told(error: &TemplateError) -> String {
    match (error.detail(), error.line()) {
        (Some(what), Some(line)) => format!("{what} (line {line} of the chat template)"),
        (Some(what), None) => what.to_owned(),
        (None, _) => error.to_string(),
    }
}

/// As Transformers' own filter: `json.dumps` with `ensure_ascii=False`.
fn to_json(value: Value, options: minijinja::value::Kwargs) -> Result<String, TemplateError> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| {
        TemplateError::new(ErrorKind::BadSerialization, error.to_string())
    };
    let mut bytes = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent);
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut Serializer::with_formatter(&mut bytes, pretty))
                .map_err(failed)?;
        }
        None => value
            .serialize(&mut Serializer::with_formatter(&mut bytes, Spaced))
            .map_err(failed)?,
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Python's blanks behind commas and colons.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests;
