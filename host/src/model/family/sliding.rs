//! Layers that attend to what is near alone, in a `config.json`.

use super::json::Json;
use super::rotary::KINDS;
use crate::error::Result;
use crate::model::architecture::{Layers, Local};

/// `sliding_window`: how many tokens one of a causal model sees, itself included; none where it is null.
pub(super) fn window(json: &Json, default: usize) -> Result<Option<usize>> {
    if json.value("sliding_window").is_none() && json.find(&["sliding_window"])?.is_some() {
        return Ok(None);
    }
    json.size(&["sliding_window"], default).map(Some)
}

/// Which of so many layers are local: those of `layer_types`, or else of the `pattern`, which the key of this name gives.
/// None where there are none.
pub(super) fn layers(
    json: &Json,
    layers: usize,
    (key, pattern): (&str, Layers),
) -> Result<Option<Layers>> {
    let found = match json.value("layer_types") {
        None => pattern,
        Some(list) => {
            let kinds: Vec<String> =
                json.get(&["layer_types"], "a list of kinds of layers", Vec::new())?;
            if kinds.len() != layers {
                let help = format!("there must be one for each of the {layers} layers");
                return json.refuse("layer_types", format!("of {} layers", kinds.len()), &help);
            }
            if let Some(other) = kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
                let help = format!("the kinds that are computed are {}", KINDS.join(", "));
                return json.refuse("layer_types", format!("\"{other}\" in a layer"), &help);
            }
            let listed: Vec<bool> = kinds.iter().map(|kind| kind == KINDS[1]).collect();
            let differs = listed.iter().enumerate();
            let differs = differs.filter(|(layer, local)| pattern.has(*layer) != **local);
            if json.value(key).is_some() && differs.count() > 0 {
                let help = format!("{key} says otherwise: leave one of the two out");
                return json.refuse("layer_types", list, &help);
            }
            Layers::Listed(listed)
        }
    };
    Ok(Some(found).filter(|found| found.any(layers)))
}

/// The local layers of a causal model of so many positions; none where every token sees all before it anyway.
pub(super) fn local(
    json: &Json,
    (window, layers): (Option<usize>, Option<Layers>),
    positions: usize,
) -> Result<Option<Local>> {
    match (window, layers) {
        (None, Some(Layers::Listed(_) | Layers::Between { .. })) => {
            let help = "its layers of sliding_attention need it: give a number (and Qwen's use_sliding_window), or list \
                        no such layers in layer_types";
            json.refuse("sliding_window", "not used", help)
        }
        (Some(window), Some(layers)) if window < positions => Ok(Some(Local {
            reach: window - 1,
            rotary: None,
            layers,
        })),
        _ => Ok(None),
    }
}
