//! What scorers and allocators have in common: manifest and parameters.

use serde_json::{Value, json};

use super::{Checks, ensure, kept};
use crate::parameters;
use crate::testing::modules;
use crate::{Manifest, ModuleInfo, Result};

const MODULES: usize = 24;

/// Makes the checks; false if no instance can be made, so that there is nothing further to check.
pub fn check(
    checks: &mut Checks,
    manifest: &Manifest,
    good: &Value,
    make: &dyn Fn(&Value, &[ModuleInfo]) -> Result<()>,
) -> bool {
    let make = |parameters: &Value| make(parameters, &modules(MODULES));
    checks.check("manifest", || manifest_is_sane(manifest));
    let schema = &manifest.parameters;
    checks.check("parameter schema", || schema_is_sane(schema));
    let made = checks.check("accepts its parameters", || {
        make(good).map_err(|error| {
            format!("{good}: {error}; give parameters it takes if these are not")
        })?;
        Ok(good.to_string())
    });
    checks.check("refuses an unknown parameter", || {
        refuses(
            &make,
            &with(good, "no-such-parameter", json!(1)),
            "no-such-parameter",
        )
    });
    checks.check("refuses what is no table", || {
        for bad in [json!([[]]), json!("k"), json!(1), Value::Null] {
            refuses(&make, &bad, "")?;
        }
        kept()
    });
    checks.check("refuses bad values", || {
        let mut tried = 0;
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            for bad in parameters::refused(schema, property) {
                refuses(&make, &with(good, name, bad), name)?;
                tried += 1;
            }
        }
        Ok(format!("{tried} tried"))
    });
    made
}

/// An error unless making a plugin from `bad` is one that names `word`.
fn refuses(make: &dyn Fn(&Value) -> Result<()>, bad: &Value, word: &str) -> Result<String> {
    let Err(error) = make(bad) else {
        return Err(format!("takes {bad}").into());
    };
    let error = error.to_string();
    ensure(!error.contains("panicked"), || format!("{bad}: {error}"))?;
    ensure(error.contains(word), || {
        format!("{bad}: the error does not name `{word}`: {error}")
    })?;
    kept()
}

fn with(good: &Value, name: &str, value: Value) -> Value {
    let mut changed = good.clone();
    if let Some(parameters) = changed.as_object_mut() {
        parameters.insert(name.to_owned(), value);
    }
    changed
}

fn manifest_is_sane(manifest: &Manifest) -> Result<String> {
    let Manifest {
        name,
        kind,
        version,
        description,
        reference,
        ..
    } = manifest;
    let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure(
        name.chars().all(kebab)
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && !name.ends_with('-'),
        || format!("the name is `{name}`, expected kebab case such as `top-k`"),
    )?;
    ensure(
        description.trim().ends_with('.') && description.len() <= 200,
        || format!("the description is \"{description}\", expected one sentence with a full stop"),
    )?;
    ensure(!reference.trim().is_empty(), || {
        "the reference is empty: say where it comes from".into()
    })?;
    Ok(format!("{kind} {name} {version}"))
}

fn schema_is_sane(schema: &Value) -> Result<String> {
    ensure(schema["type"] == "object", || {
        format!(
            "the type is {}, expected \"object\": let Parameters be a struct",
            schema["type"]
        )
    })?;
    ensure(schema["additionalProperties"] == false, || {
        "it allows unknown keys: put #[serde(deny_unknown_fields)] on Parameters".into()
    })?;
    let none = serde_json::Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    for (name, property) in properties {
        ensure(property["description"].is_string(), || {
            format!("`{name}` has no description: put a doc comment on the field")
        })?;
    }
    Ok(
        match properties
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
        {
            names if names.is_empty() => "no parameters".to_owned(),
            names => names,
        },
    )
}
