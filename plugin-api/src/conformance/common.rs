//! What scorers and allocators have in common: manifest and parameters.

use serde_json::{Value, json};

use super::setup::{MODULES, Observer, Setup, observe, upcoming, varied};
use super::{Checks, Make, ensure, kept};
use crate::abi::host::Carrier;
use crate::message::{Fields, Value as Field};
use crate::parameters;
use crate::testing::modules;
use crate::{Manifest, ModuleInfo, Result};

/// Makes the checks; false if no instance can be made, so that there is nothing further to check.
pub fn check(checks: &mut Checks, manifest: &Manifest, good: &Value, make: Make<'_>) -> bool {
    let make = |parameters: &Value| make(parameters, &modules(MODULES)).map(drop);
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

/// What a later version of the host may do: call what there is not yet, and send what there is not yet.
pub fn boundary(checks: &mut Checks, setup: &Setup<'_>) {
    let units = setup.units(MODULES);
    checks.check("an unknown call", || {
        let answer = setup.carrier(&units)?.call("no-such-call", &Fields::new());
        match answer {
            Ok(None) => kept(),
            Ok(Some(_)) => Err("it answers a call that there is not".into()),
            Err(error) => Err(format!(
                "it fails, where it should say that it does not know it: {error}"
            )
            .into()),
        }
    });
    checks.check("needs do not change", || {
        let mut carrier = setup.carrier(&units)?;
        let mut needs = || carrier.call("needs", &Fields::new());
        ensure(needs()? == needs()?, || {
            "asked twice what it needs, it answers differently".into()
        })?;
        kept()
    });
    checks.check("trials need examples", || {
        let mut carrier = setup.carrier(&units)?;
        let needs = match carrier.call("needs", &Fields::new())? {
            Some(answer) => crate::Needs::from_fields(&answer)?,
            None => crate::Needs::default(),
        };
        if needs.held_back > 0 {
            return kept();
        }
        let asked = crate::TrialRequest {
            active: vec![true; units.len()],
            ranks: units.iter().map(|unit| unit.rank).collect(),
            ..crate::TrialRequest::default()
        };
        let trials = match carrier.call("trials", &asked.to_fields()) {
            Ok(Some(answer)) => crate::Trials::from_fields(&answer)?,
            // One that needs none is never asked.
            Ok(None) | Err(_) => crate::Trials::default(),
        };
        ensure(trials.trials.is_empty(), || {
            "it asks for trials, which are never made: its needs hold no examples back".into()
        })?;
        kept()
    });
}

/// A carrier that sends a made-up field with each call, and a made-up key in what is sent as JSON, as a host of a
/// later version does.
pub struct Later(pub Box<dyn Carrier>);

impl Carrier for Later {
    fn call(&mut self, name: &str, fields: &Fields<'_>) -> Result<Option<Fields<'static>>> {
        let mut sent = Fields::new().with("no_such_field", Field::Real(0.5));
        for (name, value) in fields.iter() {
            let later = match value {
                Field::Json(text) => later_json(text).map(|text| Field::Json(text.into())),
                _ => None,
            };
            sent.put(name.to_owned(), later.unwrap_or_else(|| value.clone()));
        }
        sent.put("no_such_list", Field::Bools(vec![true].into()));
        self.0.call(name, &sent)
    }
}

fn later_json(text: &str) -> Option<String> {
    let mut value: Value = serde_json::from_str(text).ok()?;
    let object = value.as_object_mut()?;
    object.insert("no_such_key".to_owned(), json!({"deep": [1, null]}));
    Some(value.to_string())
}

/// What a plugin wants of a step is a function of the step and of what it has been told: asked twice it says the same,
/// and two that have seen the same want the same. What it does not want it is not told.
pub fn wishes<P: Observer>(
    make: impl Fn() -> Result<P>,
    units: &[ModuleInfo],
    ask: impl Fn(&mut P) -> Result<()>,
) -> Result<String> {
    let (mut first, mut second) = (make()?, make()?);
    let needs = first.needs();
    if !needs.observes() {
        return Ok("is not told of steps".to_owned());
    }
    let (mut told, mut measured) = (0, 0);
    for step in 1..=100 {
        let at = upcoming(step);
        let wants = first.wants(&at);
        ensure(first.wants(&at) == wants, || {
            format!("asked twice what it wants of step {step}, it answers differently")
        })?;
        ensure(second.wants(&at) == wants, || {
            format!("two that have seen the same want different things of step {step}")
        })?;
        told += usize::from(wants.anything());
        for plugin in [&mut first, &mut second] {
            measured += observe(plugin, units, step..=step, &varied)?;
        }
        if step == 50 {
            ask(&mut first)?;
            ask(&mut second)?;
        }
    }
    Ok(format!(
        "told of {told} of 100 steps, {} of them measured",
        measured / 2
    ))
}

/// Bytes that are no state, and half of one, are refused.
pub fn damaged(state: &[u8], load: impl Fn(&[u8]) -> Result<()>) -> Result<String> {
    for bad in [b"\xff\x00 no state".as_slice(), &state[..state.len() / 2]] {
        // Half of nothing is nothing, which a plugin without a state takes.
        let refused = bad.is_empty() || load(bad).is_err();
        ensure(refused, || {
            format!("takes {} bytes that are no state of its", bad.len())
        })?;
    }
    kept()
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
