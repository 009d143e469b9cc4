//! The points of a grid or of a random search: how they are written, what each sets, and what it is called.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::Deserialize;
use toml::Value;

/// A random search: points drawn independently of each other.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandomConfig {
    /// How many points.
    pub draws: u32,
    /// Which ones: another seed draws others. More draws keep those there are.
    #[serde(default)]
    pub seed: u64,
    /// Dotted keys, in quotes: a list of values, or `{ from, to, scale }`.
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub keys: Settings,
}

/// A recipe's keys with values.
pub type Settings = toml::Table;

/// A range that values are drawn from: whole numbers where both ends are, both of them included.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The least.
    pub from: f64,
    /// The most.
    pub to: f64,
    /// Evenly by value or by magnitude.
    #[serde(default)]
    pub scale: Scale,
}

/// How a range is drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Evenly.
    #[default]
    Linear,
    /// Evenly by logarithms.
    Log,
}

/// Values of keys, with a name for them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// `every=10 k=4`, or `draw-03`; empty where there is one point alone.
    pub name: String,
    /// What it sets.
    pub set: Settings,
}

/// Every combination of the grid's values, the last key's changing fastest. One empty point of an empty grid.
pub fn of_grid(grid: &Settings) -> Vec<Point> {
    let mut points = vec![Point::default()];
    let names = short_names(grid);
    for ((key, values), name) in grid.iter().zip(names) {
        let values = values.as_array().map_or(&[][..], Vec::as_slice);
        let longer = points.iter().flat_map(|point| {
            values.iter().map(|value| {
                let mut point = point.clone();
                if !point.name.is_empty() {
                    point.name.push(' ');
                }
                point.name.push_str(&format!("{name}={}", shown(value)));
                point.set.insert(key.clone(), value.clone());
                point
            })
        });
        points = longer.collect();
    }
    points
}

/// How many points [`of_grid`] makes.
pub fn points_of_grid(grid: &Settings) -> usize {
    let counts = grid.values().filter_map(Value::as_array).map(Vec::len);
    counts.fold(1, usize::saturating_mul)
}

/// Points drawn independently of each other: the nth is the same however many there are.
pub fn at_random(random: &RandomConfig) -> Vec<Point> {
    let width = (random.draws.saturating_sub(1)).to_string().len();
    let draw = |nth: u32| {
        let mut rng = ChaCha8Rng::seed_from_u64(random.seed);
        rng.set_stream(u64::from(nth));
        let set = random.keys.iter().filter_map(|(key, values)| {
            let choices = Choices::of(values).ok()?;
            Some((key.clone(), choices.draw(&mut rng)))
        });
        Point {
            name: format!("draw-{nth:0width$}"),
            set: set.collect(),
        }
    };
    (0..random.draws).map(draw).collect()
}

/// What a key's value is drawn from.
#[derive(Clone, Debug, PartialEq)]
pub enum Choices {
    /// One of these.
    Values(Vec<Value>),
    /// A whole number from the first to the last.
    Whole(i64, i64, Scale),
    /// A number between two.
    Between(f64, f64, Scale),
}

impl Choices {
    /// Reads `[…]` or `{ from = …, to = …, scale = … }`.
    pub fn of(written: &Value) -> Result<Self, String> {
        if let Value::Array(values) = written {
            return match values.is_empty() {
                true => Err("the list is empty".to_owned()),
                false => Ok(Choices::Values(values.clone())),
            };
        }
        let Range { from, to, scale } = Range::deserialize(written.clone())
            .map_err(|error| error.message().trim().to_owned())?;
        if !(from < to && from.is_finite() && to.is_finite()) {
            return Err(format!("from {from} to {to} there is nothing"));
        }
        if scale == Scale::Log && from <= 0.0 {
            return Err(format!("{from} has no logarithm"));
        }
        let end = |name: &str| written.get(name).and_then(Value::as_integer);
        Ok(match (end("from"), end("to")) {
            (Some(from), Some(to)) => Choices::Whole(from, to, scale),
            _ => Choices::Between(from, to, scale),
        })
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> Value {
        match self {
            Choices::Values(values) => values[rng.random_range(0..values.len())].clone(),
            Choices::Whole(from, to, Scale::Linear) => {
                Value::Integer(rng.random_range(*from..=*to))
            }
            Choices::Whole(from, to, Scale::Log) => {
                // Each whole number stands for what is rounded to it.
                let ends = (*from as f64 - 0.5).max(0.5)..*to as f64 + 0.5;
                let drawn = between(rng, ends.start, ends.end, Scale::Log).round();
                Value::Integer((drawn as i64).clamp(*from, *to))
            }
            Choices::Between(from, to, scale) => Value::Float(between(rng, *from, *to, *scale)),
        }
    }
}

/// With four digits: more are of no use to anybody.
fn between(rng: &mut ChaCha8Rng, from: f64, to: f64, scale: Scale) -> f64 {
    let at: f64 = rng.random();
    let drawn = match scale {
        Scale::Linear => from + at * (to - from),
        Scale::Log => (from.ln() + at * (to.ln() - from.ln())).exp(),
    };
    let short: f64 = format!("{drawn:.3e}").parse().unwrap_or(drawn);
    short.clamp(from, to)
}

/// The last parts of the keys, as many as tell them apart.
fn short_names(keys: &Settings) -> Vec<String> {
    let last = |key: &str, parts: usize| -> String {
        let all: Vec<&str> = key.split('.').collect();
        all[all.len().saturating_sub(parts)..].join(".")
    };
    let name = |key: &String| {
        let apart = |parts: &usize| {
            let own = last(key, *parts);
            keys.keys()
                .filter(|other| last(other, *parts) == own)
                .count()
                == 1
        };
        let parts = (1..=key.split('.').count()).find(apart);
        parts.map_or_else(|| key.clone(), |parts| last(key, parts))
    };
    keys.keys().map(name).collect()
}

/// A value in a name: text without its quotes.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Settings {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_grid_is_every_combination() {
        let grid = table(
            "\"allocation.schedule.every\" = [3, 10]\n\"allocator.plugin\" = [\"uniform\", \"top-k\"]",
        );
        let points = of_grid(&grid);
        let names: Vec<&str> = points.iter().map(|point| point.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "every=3 plugin=uniform",
                "every=3 plugin=top-k",
                "every=10 plugin=uniform",
                "every=10 plugin=top-k"
            ]
        );
        assert_eq!(
            points[1].set["allocation.schedule.every"],
            Value::Integer(3)
        );
        assert_eq!(of_grid(&Settings::new()), [Point::default()]);
        assert_eq!(points_of_grid(&grid), 4);
        assert_eq!(points_of_grid(&Settings::new()), 1);
        // Two keys that end alike are told apart.
        let alike =
            table("\"scorer.plugin\" = [\"a\"]\n\"allocator.plugin\" = [\"b\"]\nthreads = [1]");
        let mut names = short_names(&alike);
        names.sort();
        assert_eq!(names, ["allocator.plugin", "scorer.plugin", "threads"]);
    }

    #[test]
    fn draws_lie_within_their_ranges_and_stay_when_there_are_more() {
        let random = |draws| RandomConfig {
            draws,
            seed: 3,
            keys: table(
                "rate = { from = 1e-4, to = 1e-2, scale = \"log\" }\nrank = { from = 1, to = 16, scale = \"log\" }\n\
                 layers = { from = 2, to = 4 }\nkind = [\"a\", \"b\"]",
            ),
        };
        let many = at_random(&random(400));
        assert_eq!(many[399].name, "draw-399");
        assert_eq!(
            at_random(&random(7))
                .iter()
                .map(|p| &p.set)
                .collect::<Vec<_>>(),
            many[..7].iter().map(|p| &p.set).collect::<Vec<_>>()
        );
        let share = |small: &dyn Fn(&Point) -> bool| {
            many.iter().filter(|point| small(point)).count() as f64 / 400.0
        };
        // Half of the logarithm's range, 1 of log₂ 1 to 16 with its share of 1.5 / 0.5 in 16.5 / 0.5, a third, a half.
        let rate = share(&|point| point.set["rate"].as_float().unwrap() < 1e-3);
        let rank = share(&|point| point.set["rank"].as_integer().unwrap() == 1);
        let layers = share(&|point| point.set["layers"].as_integer().unwrap() == 4);
        let kind = share(&|point| point.set["kind"].as_str() == Some("a"));
        for (found, expected) in [
            (rate, 0.5),
            (rank, 3f64.ln() / 33f64.ln()),
            (layers, 1.0 / 3.0),
            (kind, 0.5),
        ] {
            assert!(
                (found - expected).abs() < 0.08,
                "{found} instead of {expected}"
            );
        }
        assert!(
            many.iter()
                .all(|point| (1e-4..=1e-2).contains(&point.set["rate"].as_float().unwrap()))
        );
    }

    #[test]
    fn what_cannot_be_drawn_from_is_refused() {
        let refused = |text: &str| Choices::of(&table(text)["x"]).unwrap_err();
        assert_eq!(refused("x = []"), "the list is empty");
        assert_eq!(
            refused("x = { from = 3, to = 1 }"),
            "from 3 to 1 there is nothing"
        );
        assert_eq!(
            refused("x = { from = 0, to = 1, scale = \"log\" }"),
            "0 has no logarithm"
        );
        assert!(refused("x = { from = 0, too = 1 }").contains("too"));
        assert_eq!(
            Choices::of(&table("x = { from = 1, to = 8 }")["x"]),
            Ok(Choices::Whole(1, 8, Scale::Linear))
        );
    }
}
