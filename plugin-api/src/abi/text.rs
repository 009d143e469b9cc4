//! Texts from a plugin, before a person sees them: they may be of any length and hold anything.

use serde_json::Value;

/// The longest text that is shown, in characters.
pub const LONGEST: usize = 2000;

/// `text` with at most `longest` characters, control characters written out (`\u{1b}`) so that none reaches a
/// terminal or a log; newlines and tabs stay. What is cut off is said.
pub fn shown(text: &str, longest: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(4 * longest));
    for (count, character) in text.chars().enumerate() {
        if count == longest {
            let all = text.chars().count();
            shown.push_str(&format!("… (cut: {all} characters in all)"));
            break;
        }
        match character {
            '\n' | '\t' => shown.push(character),
            _ if character.is_control() || reorders(character) => {
                shown.extend(character.escape_unicode());
            }
            _ => shown.push(character),
        }
    }
    shown
}

/// The same for a text that has one line.
pub fn line(text: &str, longest: usize) -> String {
    shown(text, longest).replace('\n', "\\n").replace('\t', " ")
}

/// The same for every text of a JSON value, keys included.
pub fn json(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(shown(&text, LONGEST)),
        Value::Array(values) => values.into_iter().map(json).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| (line(&key, 200), json(value)))
            .collect(),
        other => other,
    }
}

/// Whether a character changes the order in which others are shown, or starts a line without being a newline.
fn reorders(character: char) -> bool {
    matches!(character,
        '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        assert_eq!(
            shown("a\u{1b}[31mb\r\n\tc\u{0}\u{9b}\u{202e}d", 100),
            "a\\u{1b}[31mb\\u{d}\n\tc\\u{0}\\u{9b}\\u{202e}d"
        );
        assert_eq!(line("a\nb\tc", 100), "a\\nb c");
        assert_eq!(
            super::json(json!({"a\u{7}": ["b\u{7}", 1.5]})),
            json!({"a\\u{7}": ["b\\u{7}", 1.5]})
        );
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        let long = "ä".repeat(5_000_000);
        let shown = shown(&long, LONGEST);
        assert!(shown.starts_with(&"ä".repeat(LONGEST)));
        assert!(
            shown.ends_with("… (cut: 5000000 characters in all)"),
            "{}",
            &shown[shown.len() - 60..]
        );
        assert_eq!(super::shown("12345", 5), "12345");
    }
}
