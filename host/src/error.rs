//! The one error type of the host: what went wrong, where, and what to do about it.

use std::path::Path;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose turn it is to mend it; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The user can mend it: exit code 2.
    User,
    /// A plugin did not answer as it must, in a run that may go on without: exit code 2.
    Plugin,
    /// The program or the machine failed: exit code 1.
    Failure,
    /// Training came to numbers that are not finite: exit code 1.
    Diverged,
    /// A signal of this number asked the process to stop: exit code 128 and the number.
    Interrupted(i32),
}

/// An error for a person to read: one sentence, the place, the cause and the way out.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Whose mistake it is.
    pub kind: Kind,
    message: String,
    help: Option<String>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    snippet: Option<Box<Snippet>>,
}

/// The text an error points into.
#[derive(Debug)]
struct Snippet {
    text: NamedSource<String>,
    span: std::ops::Range<usize>,
    label: String,
}

impl Error {
    /// A mistake the user can mend.
    pub fn user(message: impl Into<String>) -> Self {
        Self::new(Kind::User, message.into())
    }

    /// A plugin's fault.
    pub fn plugin(message: impl Into<String>) -> Self {
        Self::new(Kind::Plugin, message.into())
    }

    /// A failure of the program or of the machine under it.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(Kind::Failure, message.into())
    }

    /// Training came to numbers that are not finite.
    pub fn diverged(message: impl Into<String>) -> Self {
        Self::new(Kind::Diverged, message.into())
    }

    /// A signal asked the process to stop.
    pub fn interrupted(signal: i32, message: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted(signal), message.into())
    }

    fn new(kind: Kind, message: String) -> Self {
        Error {
            kind,
            message,
            help: None,
            source: None,
            snippet: None,
        }
    }

    /// What the user can do about it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Something more that the user can do about it.
    pub fn and_help(mut self, more: impl AsRef<str>) -> Self {
        let help = match self.help.take() {
            Some(help) => format!("{help}\n{}", more.as_ref()),
            None => more.as_ref().to_owned(),
        };
        self.help = Some(help);
        self
    }

    /// The error underneath.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The place in a text file: `span` is a byte range of `text`.
    pub fn at(
        mut self,
        file: &Path,
        text: impl Into<String>,
        span: std::ops::Range<usize>,
        label: impl Into<String>,
    ) -> Self {
        self.snippet = Some(Box::new(Snippet {
            text: NamedSource::new(file.display().to_string(), text.into()),
            span,
            label: label.into(),
        }));
        self
    }

    /// The process's exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::User | Kind::Plugin => 2,
            Kind::Failure | Kind::Diverged => 1,
            Kind::Interrupted(signal) => 128 + signal as u8,
        }
    }
}

impl Diagnostic for Error {
    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        self.help
            .as_ref()
            .map(|help| Box::new(help) as Box<dyn std::fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.snippet
            .as_ref()
            .map(|snippet| &snippet.text as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let snippet = self.snippet.as_ref()?;
        let label = LabeledSpan::new_with_span(Some(snippet.label.clone()), snippet.span.clone());
        Some(Box::new(std::iter::once(label)))
    }
}
