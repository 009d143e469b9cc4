//! What a program said, held against what it should have.

use std::path::Path;
use std::process::Output;

/// What it wrote to standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Without the frame and the line ends of a message.
pub fn flat(text: &str) -> String {
    let words = text.split_whitespace().filter(|word| *word != "│");
    words.collect()
}

/// Fails unless all of these parts were said, wherever lines were broken.
#[track_caller]
pub fn contains(output: &Output, parts: &[&str]) {
    let said = said(output);
    for part in parts {
        assert!(
            flat(&said).contains(&flat(part)),
            "{part:?} is missing:\n{said}"
        );
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
