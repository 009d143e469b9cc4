//! Rotary positions in a `config.json`.

use serde_json::{Map, Value};

use super::json::Json;
use crate::error::Result;
use crate::model::architecture::Rotary;

/// The kinds of layers that tables are given of: those that attend to all, and those that attend to what is near.
pub(super) const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// Of a family whose layers turn alike: as `rope_parameters`, or the older `rope_scaling` and `rope_theta`, say.
pub(super) fn of(json: &Json, head_size: usize) -> Result<Rotary> {
    let (key, map) = match json.table("rope_parameters")? {
        Some(map) => ("rope_parameters", Some(map)),
        None => ("rope_scaling", json.table("rope_scaling")?),
    };
    let theta = theta(json, "rope_theta", 10_000.0)?;
    turns(json, (key, map), theta, head_size)
}

/// Of a family whose two [`KINDS`] of layers turn apart: as the tables of `rope_parameters` say, or the older keys of each
/// kind's θ. The older `rope_scaling` is of the first kind, and where it is `shared` of both.
pub(super) fn of_kinds(
    json: &Json,
    head_size: usize,
    thetas: [(&str, f64); 2],
    shared: bool,
) -> Result<[Rotary; 2]> {
    let tables = json.table("rope_parameters")?;
    let scaling = json.table("rope_scaling")?;
    if let (Some(_), Some(found)) = (tables, json.value("rope_scaling")) {
        let help = "rope_parameters is there too, which says the same: leave one of the two out";
        return json.refuse("rope_scaling", found, help);
    }
    let other = tables.and_then(|map| map.iter().find(|(key, _)| !KINDS.contains(&key.as_str())));
    if let Some((key, found)) = other {
        let help = "this family has a table for full_attention and one for sliding_attention";
        return json.refuse(&format!("rope_parameters.{key}"), found, help);
    }
    let of_kind = |which: usize| {
        let (kind, (key, default)) = (KINDS[which], thetas[which]);
        let theta = theta(json, key, default)?;
        let key = format!("rope_parameters.{kind}");
        match tables.and_then(|map| map.get(kind)) {
            Some(Value::Object(map)) => turns(json, (&key, Some(map)), theta, head_size),
            None | Some(Value::Null) => {
                let map = scaling.filter(|_| which == 0 || shared);
                turns(json, ("rope_scaling", map), theta, head_size)
            }
            Some(other) => json.refuse(&key, other, "expected a table"),
        }
    };
    Ok([of_kind(0)?, of_kind(1)?])
}

fn theta(json: &Json, key: &str, default: f64) -> Result<f64> {
    let theta = json.get(&[key], "a number above 0", default)?;
    match theta > 0.0 {
        true => Ok(theta),
        false => json.refuse(key, theta, "expected a number above 0"),
    }
}

/// `θ_i = base^(−2i / head size)` (Su et al. 2021, eq. 15), scaled as the table `map` under this key says.
fn turns(
    json: &Json,
    (key, map): (&str, Option<&Map<String, Value>>),
    theta: f64,
    head_size: usize,
) -> Result<Rotary> {
    let none = Map::new();
    let map = map.unwrap_or(&none);
    let number = |name: &str, default: Option<f64>| match (map.get(name), default) {
        (Some(found), _) => match found.as_f64().filter(|number| *number > 0.0) {
            Some(number) => Ok(number),
            None => json.refuse(&format!("{key}.{name}"), found, "expected a number above 0"),
        },
        (None, Some(default)) => Ok(default),
        (None, None) => json.refuse(&format!("{key}.{name}"), "missing", "this scaling needs it"),
    };
    let theta = number("rope_theta", Some(theta))?;
    for (name, given) in [
        ("partial_rotary_factor", json.value("partial_rotary_factor")),
        ("partial_rotary_factor", map.get("partial_rotary_factor")),
    ] {
        if let Some(given) = given.filter(|given| given.as_f64() != Some(1.0)) {
            return json.refuse(
                name,
                given,
                "only heads that are turned whole are supported",
            );
        }
    }
    let half = head_size / 2;
    let plain = (0..half).map(|i| theta.powf(-2.0 * i as f64 / head_size as f64));
    let kind = map.get("rope_type").or_else(|| map.get("type"));
    let frequencies = match kind.map(|kind| (kind, kind.as_str())) {
        None | Some((_, Some("default"))) => plain.collect(),
        Some((_, Some("linear"))) => {
            let factor = number("factor", None)?;
            plain.map(|frequency| frequency / factor).collect()
        }
        Some((_, Some("llama3"))) => {
            let factor = number("factor", None)?;
            let [low, high] = [
                number("low_freq_factor", None)?,
                number("high_freq_factor", None)?,
            ];
            let old = number("original_max_position_embeddings", None)?;
            plain
                .map(|frequency| scaled_as_llama3(frequency, factor, [low, high], old))
                .collect()
        }
        Some((kind, _)) => {
            let help =
                "the supported ways to scale rotary positions are default, linear and llama3";
            return json.refuse(&format!("{key}.rope_type"), kind, help);
        }
    };
    Ok(Rotary { frequencies })
}

/// Slow turns slowed by `factor`, fast ones left, in between something in between, as Llama 3.1's (Dubey et al. 2024)
/// published code has it.
fn scaled_as_llama3(frequency: f64, factor: f64, [low, high]: [f64; 2], old: f64) -> f64 {
    // Turns over the length that the model was first trained on.
    let turns = old * frequency / (2.0 * std::f64::consts::PI);
    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    frequency * (kept + (1.0 - kept) / factor)
}
