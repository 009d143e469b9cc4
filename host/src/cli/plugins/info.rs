//! `dynalora plugins info`: a plugin's account of itself, for a person.

use dynalora_plugin_api::{Kind, Needs};
use serde_json::{Value, json};

use crate::cli::table;
use crate::plugin::Found;

/// What there is to say of a plugin, in text.
pub fn described(found: &Found) -> String {
    let manifest = &found.manifest;
    let mut text = format!(
        "{} {} ({})\n{}\n",
        manifest.name, manifest.version, manifest.kind, manifest.description
    );
    for line in manifest.formula.lines() {
        text.push_str(&format!("\n    {line}"));
    }
    if !manifest.formula.is_empty() {
        text.push('\n');
    }
    text.push_str(&format!(
        "\nafter: {}\nlibrary: {} (plugin-api {})\n",
        manifest.reference,
        found.path.display(),
        manifest.api_version
    ));
    for line in asks(manifest.kind, manifest.needs.as_ref()) {
        text.push_str(&format!("{line}\n"));
    }
    text.push_str(&parameters(&manifest.parameters));
    text
}

/// What it asks the host for with default parameters, a line each.
fn asks(kind: Kind, needs: Option<&Needs>) -> Vec<String> {
    let mut lines = Vec::new();
    let Some(needs) = needs else {
        return match kind {
            Kind::Allocator => vec!["goes by: scores".to_owned()],
            // It could not be made with the parameters that its schema suggests.
            Kind::Scorer => vec!["measures: what its parameters say".to_owned()],
        };
    };
    let names: Vec<&str> = needs.signals.iter().map(|signal| signal.name()).collect();
    let mut measures = names.join(", ");
    if needs.components {
        let more = "the sensitivity of every component of A and B";
        measures = match measures.is_empty() {
            true => more.to_owned(),
            false => format!("{measures}, {more}"),
        };
    }
    if measures.is_empty() && kind == Kind::Scorer && needs.raw.is_empty() {
        measures = "nothing".to_owned();
    }
    if !measures.is_empty() {
        lines.push(format!("measures: {measures}"));
    }
    if !needs.raw.is_empty() {
        let names: Vec<&str> = needs.raw.iter().map(|raw| raw.name()).collect();
        lines.push(format!(
            "copies from the device, which is slower: {}",
            names.join(", ")
        ));
    }
    if needs.held_back > 0 {
        lines.push(format!(
            "trials: forward passes on {} training examples held back",
            needs.held_back
        ));
    }
    if needs.steps && !needs.measures() {
        lines.push("is told of steps: loss, learning rate, metric".to_owned());
    }
    if kind == Kind::Allocator {
        lines.push(match needs.scores {
            true => "goes by: scores".to_owned(),
            false => "reads no scores: a recipe need not name a scorer".to_owned(),
        });
    }
    lines
}

fn parameters(schema: &Value) -> String {
    let Some(properties) = schema["properties"]
        .as_object()
        .filter(|properties| !properties.is_empty())
    else {
        return "\nIt takes no parameters.".to_owned();
    };
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let mut table = table(&["parameter", "allowed", "default", "description"]);
    for (key, property) in properties {
        let default = match &property["default"] {
            Value::Null if required.contains(&json!(key)) => "required".to_owned(),
            Value::Null => "none".to_owned(),
            default => default.to_string(),
        };
        let description = property["description"].as_str().unwrap_or_default();
        table.add_row([
            key.clone(),
            allowed(schema, property),
            default,
            description.replace('\n', " "),
        ]);
    }
    format!("\n{}", table.trim_fmt())
}

/// The values that a schema allows, in words.
pub fn allowed(root: &Value, schema: &Value) -> String {
    allowed_to(root, schema, 8)
}

fn allowed_to(root: &Value, schema: &Value, depth: u32) -> String {
    let schema = follow(root, schema);
    if depth == 0 {
        return "…".to_owned();
    }
    let within = |schema: &Value| allowed_to(root, schema, depth - 1);
    if !schema["const"].is_null() {
        return schema["const"].to_string();
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values.iter().map(Value::to_string).collect();
        return values.join(", ");
    }
    for key in ["oneOf", "anyOf"] {
        if let Some(parts) = schema[key].as_array() {
            let mut parts: Vec<String> = parts.iter().map(within).collect();
            parts.dedup();
            return parts.join(", ");
        }
    }
    if let Some(part) = schema["allOf"].get(0) {
        return within(part);
    }
    if let Some(kinds) = schema["type"].as_array() {
        let kinds = kinds.iter().map(|kind| {
            let mut one = schema.clone();
            one["type"] = kind.clone();
            within(&one)
        });
        return kinds.collect::<Vec<_>>().join(", ");
    }
    match schema["type"].as_str() {
        Some("integer") => ranged("whole number", schema),
        Some("number") => ranged("number", schema),
        Some("boolean") => "true, false".to_owned(),
        Some("null") => "nothing".to_owned(),
        Some("string") => match schema["pattern"].as_str() {
            // The shares of `Count`.
            Some(pattern) if pattern.contains('%') => "share such as \"50%\"".to_owned(),
            Some(pattern) => format!("text like {pattern}"),
            None => "text".to_owned(),
        },
        Some("array") => format!("list of ({})", within(&schema["items"])),
        Some("object") => object(schema, &within),
        _ => "anything".to_owned(),
    }
}

/// `{ ema = number ≥ 0 }`, or a table with keys of any name.
fn object(schema: &Value, within: &dyn Fn(&Value) -> String) -> String {
    match schema["properties"].as_object() {
        Some(fields) if !fields.is_empty() => {
            let fields = fields
                .iter()
                .map(|(key, schema)| format!("{key} = {}", within(schema)));
            format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
        _ => match &schema["additionalProperties"] {
            values @ Value::Object(_) => format!("table of ({})", within(values)),
            _ => "table".to_owned(),
        },
    }
}

fn ranged(what: &str, schema: &Value) -> String {
    let bounds = [
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("maximum", "≤"),
        ("exclusiveMaximum", "<"),
    ];
    let bounds = bounds.iter().filter_map(|(key, sign)| {
        let bound = schema[key].as_number()?;
        Some(format!(
            "{sign} {}",
            bound.to_string().trim_end_matches(".0")
        ))
    });
    let bounds: Vec<String> = bounds.collect();
    match bounds.is_empty() {
        true => what.to_owned(),
        false => format!("{what} {}", bounds.join(" and ")),
    }
}

/// The schema that this one stands for, through its `$ref`s.
fn follow<'a>(root: &'a Value, mut schema: &'a Value) -> &'a Value {
    // No deeper than anyone writes, should they go in a circle.
    for _ in 0..16 {
        let target = schema["$ref"]
            .as_str()
            .and_then(|path| root.pointer(path.trim_start_matches('#')));
        match target {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

#[cfg(test)]
mod tests {
    use dynalora_plugin_api::{Budget, Manifest, Signal, Window, schemars};

    use super::*;

    #[derive(schemars::JsonSchema)]
    #[allow(dead_code)]
    struct Everything {
        /// One of two.
        kind: Kinds,
        window: Window,
        #[schemars(range(min = 1, max = 5))]
        size: u32,
        #[schemars(range(min = 0.0, max = 1.0))]
        share: f64,
        name: Option<String>,
        on: bool,
        weights: std::collections::BTreeMap<String, f64>,
        list: Vec<bool>,
        raw: Value,
    }

    #[derive(schemars::JsonSchema)]
    #[serde(rename_all = "snake_case")]
    #[allow(dead_code)]
    enum Kinds {
        One,
        Two,
    }

    #[test]
    fn what_a_schema_allows_is_said_in_words() {
        let schema = schemars::schema_for!(Everything).to_value();
        let allowed = |key: &str| allowed(&schema, &schema["properties"][key]);
        assert_eq!(allowed("kind"), "\"one\", \"two\"");
        assert_eq!(
            allowed("window"),
            "\"run\", \"period\", { ema = number ≥ 0 and ≤ 1 }"
        );
        assert_eq!(allowed("size"), "whole number ≥ 1 and ≤ 5");
        assert_eq!(allowed("share"), "number ≥ 0 and ≤ 1");
        assert_eq!(allowed("name"), "text, nothing");
        assert_eq!(allowed("on"), "true, false");
        assert_eq!(allowed("weights"), "table of (number)");
        assert_eq!(allowed("list"), "list of (true, false)");
        assert_eq!(allowed("raw"), "anything");
        let schema = schemars::schema_for!(Budget).to_value();
        assert_eq!(
            super::allowed(&schema, &schema["properties"]["k"]),
            "whole number ≥ 1, share such as \"50%\""
        );
    }

    #[test]
    fn a_schema_in_a_circle_ends() {
        let schema =
            json!({"$defs": {"a": {"oneOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"});
        assert!(allowed(&schema, &schema).contains('…'));
        let schema = json!({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"});
        assert_eq!(allowed(&schema, &schema), "anything");
    }

    #[test]
    fn formula_reference_and_needs_are_shown() {
        let needs = Needs::signals([Signal::GRADIENT_L2]).and_held_back(64);
        let manifest = Manifest {
            name: "mine".into(),
            kind: Kind::Allocator,
            version: "0.3.0".into(),
            api_version: "1.0.0".into(),
            description: "Does it.".into(),
            reference: "a paper, eq. 3".into(),
            formula: "y = x\nz = y".into(),
            needs: Some(needs.without_scores()),
            parameters: json!({"properties": {}}),
        };
        let found = Found {
            path: "libmine.so".into(),
            manifest,
        };
        let text = described(&found);
        for words in [
            "mine 0.3.0 (allocator)\nDoes it.",
            "    y = x\n    z = y\n",
            "after: a paper, eq. 3",
            "libmine.so (plugin-api 1.0.0)",
            "measures: gradient_l2",
            "64 training examples",
            "reads no scores",
            "no parameters",
        ] {
            assert!(text.contains(words), "{words:?} is missing: {text}");
        }
    }
}
