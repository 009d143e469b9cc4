//! Numbers as a person reads them.

use std::time::Duration;

/// A number of bytes for a person.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A number of things for a person: 1.2 M.
pub fn count(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..1_000_000 => format!("{:.1} k", number as f64 / 1e3),
        _ => format!("{:.2} M", number as f64 / 1e6),
    }
}

/// A number of seconds for a person.
pub fn duration(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds.max(0.0)) {
        Ok(duration) => indicatif::HumanDuration(duration).to_string(),
        Err(_) => "for ever".to_owned(),
    }
}
