//! Parameters made up from a JSON Schema: some a plugin must take, some it must refuse.

use serde_json::{Map, Value, json};

/// An object with a plausible value for every required property of `schema`.
pub fn example(schema: &Value) -> Value {
    let required = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let values = required.map(|name| (name.to_owned(), value(schema, &schema["properties"][name])));
    Value::Object(values.collect::<Map<_, _>>())
}

fn value(root: &Value, schema: &Value) -> Value {
    let schema = follow(root, schema);
    let listed = [
        &schema["examples"][0],
        &schema["default"],
        &schema["const"],
        &schema["enum"][0],
    ];
    if let Some(listed) = listed.into_iter().find(|listed| !listed.is_null()) {
        return listed.clone();
    }
    if let Some(first) = ["oneOf", "anyOf", "allOf"]
        .iter()
        .find_map(|key| schema[key].get(0))
    {
        return value(root, first);
    }
    let kind = schema["type"]
        .as_str()
        .or_else(|| schema["type"][0].as_str());
    let low = schema["minimum"]
        .as_f64()
        .or(schema["exclusiveMinimum"].as_f64());
    let high = schema["maximum"]
        .as_f64()
        .or(schema["exclusiveMaximum"].as_f64());
    match kind {
        Some("integer") => json!(schema["minimum"].as_i64().unwrap_or(1)),
        Some("number") => match (low, high) {
            (Some(low), Some(high)) => json!((low + high) / 2.0),
            (Some(low), None) => json!(low + 1.0),
            (None, Some(high)) => json!(high - 1.0),
            (None, None) => json!(1.0),
        },
        Some("boolean") => json!(true),
        Some("array") => json!([]),
        Some("object") => example(schema),
        Some("string") => json!(""),
        _ => Value::Null,
    }
}

/// Values of a property that its schema rules out.
pub fn refused(root: &Value, schema: &Value) -> Vec<Value> {
    let schema = follow(root, schema);
    let mut refused = Vec::new();
    // A schema that allows anything (`true`, or no keyword but the notes) rules nothing out.
    let rules = ["type", "oneOf", "anyOf", "allOf", "enum", "const"];
    if !rules.iter().any(|rule| !schema[rule].is_null()) {
        return refused;
    }
    refused.push(json!([[["?"]]]));
    // A table of whatever its author likes takes any key.
    if schema["additionalProperties"] != json!(true) {
        refused.push(json!({ "no such key": [null] }));
    }
    let alternatives = ["oneOf", "anyOf"]
        .iter()
        .filter_map(|key| schema[key].as_array())
        .flatten();
    for schema in alternatives
        .map(|schema| follow(root, schema))
        .chain([schema])
    {
        let bound = |key: &str, beyond: i64| match &schema[key] {
            Value::Number(bound) => match bound.as_i64() {
                Some(bound) => bound.checked_add(beyond).map(|value| json!(value)),
                None => bound.as_f64().map(|bound| json!(bound + beyond as f64)),
            },
            _ => None,
        };
        let beyond = [
            ("minimum", -1),
            ("exclusiveMinimum", 0),
            ("maximum", 1),
            ("exclusiveMaximum", 0),
        ];
        refused.extend(beyond.into_iter().filter_map(|(key, by)| bound(key, by)));
    }
    refused
}

/// Values at the ends of what a property's schema allows, and a little beyond: a plugin takes them and works, or
/// refuses them.
pub fn extremes(root: &Value, schema: &Value) -> Vec<Value> {
    let schema = follow(root, schema);
    let mut found = Vec::new();
    for key in ["oneOf", "anyOf", "allOf"] {
        for schema in schema[key].as_array().into_iter().flatten() {
            found.extend(extremes(root, schema));
        }
    }
    found.extend(schema["enum"].as_array().into_iter().flatten().cloned());
    found.extend(
        Some(&schema["const"])
            .filter(|value| !value.is_null())
            .cloned(),
    );
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.clone(),
        kind => vec![kind.clone()],
    };
    for kind in kinds {
        match kind.as_str() {
            Some("integer") => {
                found.extend(
                    [0, 1, i64::MAX as u64, u64::MAX, u64::from(u32::MAX)].map(|n| json!(n)),
                );
            }
            Some("number") => {
                let mut numbers = vec![
                    0.0,
                    -0.0,
                    5e-324,
                    1e-300,
                    f64::MIN_POSITIVE,
                    f64::EPSILON,
                    1.0_f64.next_down(),
                    1.0,
                    1e300,
                    f64::MAX,
                ];
                for bound in ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"] {
                    if let Some(bound) = schema[bound].as_f64() {
                        numbers.extend([bound, bound.next_up(), bound.next_down()]);
                    }
                }
                found.extend(numbers.into_iter().map(|n| json!(n)));
            }
            Some("boolean") => found.extend([json!(false), json!(true)]),
            // A share, where it is one.
            Some("string") if schema["pattern"].as_str().is_some_and(|p| p.contains('%')) => {
                found.extend(["0.0000000001%", "100%", "99.99999999%"].map(|text| json!(text)));
            }
            Some("string") => found.push(json!("\u{1b}".repeat(10_000))),
            Some("object") => {
                let fields = schema["properties"].as_object();
                for (name, schema) in fields.into_iter().flatten() {
                    found.extend(
                        extremes(root, schema)
                            .into_iter()
                            .map(|value| json!({ name: value })),
                    );
                }
            }
            _ => {}
        }
    }
    found
}

/// The schema that `schema` stands for, through its `$ref`s.
fn follow<'a>(root: &'a Value, mut schema: &'a Value) -> &'a Value {
    // No deeper than anyone writes, should they go in a circle.
    for _ in 0..16 {
        match schema["$ref"]
            .as_str()
            .and_then(|path| root.pointer(path.trim_start_matches('#')))
        {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Count, Norm, Window};

    #[derive(serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Parameters {
        k: Count,
        norm: Norm,
        #[schemars(range(min = 3, max = 5))]
        size: u32,
        #[serde(default)]
        window: Window,
        share: f64,
        on: bool,
        names: Vec<String>,
        free: std::collections::BTreeMap<String, Value>,
    }

    #[test]
    fn an_example_is_read_back() {
        let schema = schemars::schema_for!(Parameters).to_value();
        let example = example(&schema);
        assert_eq!(example["k"], json!("50%"));
        assert!(example.get("window").is_none());
        serde_json::from_value::<Parameters>(example).unwrap();
    }

    #[test]
    fn extremes_reach_into_alternatives() {
        let schema = schemars::schema_for!(Parameters).to_value();
        let of = |name: &str| extremes(&schema, &schema["properties"][name]);
        assert!(of("share").contains(&json!(5e-324)) && of("share").contains(&json!(f64::MAX)));
        assert!(of("k").contains(&json!("100%")) && of("k").contains(&json!(u64::MAX)));
        assert!(of("norm").contains(&json!("rms")));
        assert!(
            of("window").contains(&json!({"ema": 1.0_f64.next_down()})),
            "{:?}",
            of("window")
        );
    }

    #[test]
    fn bounds_are_stepped_over_by_one() {
        let schema = schemars::schema_for!(Parameters).to_value();
        let size = refused(&schema, &schema["properties"]["size"]);
        assert!(
            size.contains(&json!(2)) && size.contains(&json!(6)),
            "{size:?}"
        );
        assert!(refused(&schema, &schema["properties"]["k"]).contains(&json!(0)));
        let free = refused(&schema, &schema["properties"]["free"]);
        assert_eq!(free, [json!([[["?"]]])]);
        assert!(refused(&schema, &json!(true)).is_empty());
    }
}
