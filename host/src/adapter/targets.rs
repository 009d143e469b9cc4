//! Which linear layers carry an adapter.

use super::LinearInfo;
use crate::error::{Error, Result};
use crate::recipe::{AdapterConfig, Target};

/// Which of `linears` are targets, in their order. A target that matches nothing, an exclusion that excludes nothing and a
/// layer that is not there are errors, since they are typing mistakes. Paths count with and without `prefix`, the family's:
/// PEFT's have it (`bert.encoder.layer.0.attention.self.query`), and so have exported adapters.
pub fn select(recipe: &AdapterConfig, linears: &[LinearInfo], prefix: &str) -> Result<Vec<bool>> {
    let matching = |target: &Target| -> Result<Vec<bool>> {
        let matcher = target.matcher()?;
        let matches = |linear: &LinearInfo| {
            let path = &linear.path;
            matcher.is_match(path) || matcher.is_match(&format!("{prefix}.{path}"))
        };
        Ok(linears.iter().map(matches).collect())
    };
    let mut chosen = vec![false; linears.len()];
    for target in &recipe.targets.0 {
        let meant = matching(target)?;
        if !meant.contains(&true) && names_embeddings(target) {
            return Err(Error::user(format!(
                "adapter.targets: \"{target}\" is a table of embeddings, and adapters are on linear layers alone here"
            ))
            .help(
                "LoRA on embeddings (PEFT's lora_embedding_A and lora_embedding_B) is not supported: leave the target \
                 out, or train it with PEFT",
            ));
        }
        if !meant.contains(&true) {
            return Err(Error::user(format!(
                "adapter.targets: \"{target}\" matches no linear layer of the model"
            ))
            .help(format!(
                "the model has {} linear layers; their roles are {}; `glob:` and `regex:` patterns \
                 match whole paths such as `{}`, with or without `{prefix}.` before them",
                linears.len(),
                roles(linears).join(", "),
                linears.first().map_or("", |linear| &linear.path),
            )));
        }
        for (chosen, meant) in chosen.iter_mut().zip(meant) {
            *chosen |= meant;
        }
    }
    for target in recipe
        .exclude_modules
        .iter()
        .flat_map(|excluded| &excluded.0)
    {
        let meant = matching(target)?;
        if !chosen
            .iter()
            .zip(&meant)
            .any(|(chosen, meant)| *chosen && *meant)
        {
            return Err(Error::user(format!(
                "adapter.exclude_modules: \"{target}\" matches none of the modules that are targets"
            ))
            .help("drop it, or name what is among the targets"));
        }
        for (chosen, meant) in chosen.iter_mut().zip(meant) {
            *chosen &= !meant;
        }
    }
    if let Some(layers) = &recipe.layers_to_transform {
        for layer in &layers.0 {
            if linears.iter().all(|linear| linear.layer != Some(*layer)) {
                let layers = linears.iter().filter_map(|linear| linear.layer).max();
                return Err(Error::user(format!(
                    "adapter.layers_to_transform: there is no layer {layer}"
                ))
                .help(match layers {
                    Some(last) => format!("the model's layers are 0 to {last}"),
                    None => "the model has no layers".to_owned(),
                }));
            }
        }
        for (chosen, linear) in chosen.iter_mut().zip(linears) {
            *chosen &= linear.layer.is_some_and(|layer| layers.0.contains(&layer));
        }
    }
    if !chosen.contains(&true) {
        return Err(Error::user(
            "no module is left to adapt: `exclude_modules` and `layers_to_transform` leave none of the targets",
        )
        .help("exclude less, or name more in adapter.targets"));
    }
    Ok(chosen)
}

/// What the tables of embeddings are called in Transformers.
const EMBEDDINGS: [&str; 9] = [
    "embed_tokens",
    "embeddings",
    "position_embedding",
    "position_embeddings",
    "tok_embeddings",
    "token_type_embeddings",
    "word_embeddings",
    "wpe",
    "wte",
];

/// Whether a target is a table of embeddings, by its name.
fn names_embeddings(target: &Target) -> bool {
    let Target::Name(name) = target else {
        return false;
    };
    EMBEDDINGS.contains(&name.rsplit('.').next().unwrap_or(name))
}

fn roles(linears: &[LinearInfo]) -> Vec<&str> {
    let mut roles: Vec<&str> = Vec::new();
    for linear in linears {
        if !roles.contains(&linear.role()) {
            roles.push(linear.role());
        }
    }
    roles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Layers, Targets};

    fn linears() -> Vec<LinearInfo> {
        let mut linears = Vec::new();
        for layer in 0..3 {
            let parts = [
                "attention.self.query",
                "attention.self.value",
                "attention.output.dense",
                "output.dense",
            ];
            for part in parts {
                linears.push(LinearInfo {
                    path: format!("encoder.layer.{layer}.{part}"),
                    layer: Some(layer),
                    inputs: 4,
                    outputs: 4,
                    bias: true,
                });
            }
        }
        linears
    }

    fn targets(patterns: &[&str]) -> AdapterConfig {
        let targets = patterns.iter().map(|pattern| (*pattern).into()).collect();
        AdapterConfig {
            targets: Targets(targets),
            ..AdapterConfig::default()
        }
    }

    #[test]
    fn roles_path_ends_globs_and_regexes() {
        let count = |patterns: &[&str]| {
            let chosen = select(&targets(patterns), &linears(), "bert").expect("valid targets");
            chosen.iter().filter(|chosen| **chosen).count()
        };
        assert_eq!(count(&["query"]), 3);
        assert_eq!(count(&["dense"]), 6);
        assert_eq!(count(&["attention.output.dense"]), 3);
        assert_eq!(count(&["all-linear"]), 12);
        assert_eq!(count(&["glob:encoder.layer.{0,2}.attention.self.query"]), 2);
        assert_eq!(count(&[r"regex:.*\.[12]\..*value"]), 2);
        assert_eq!(count(&["query", "value"]), 6);
        // As PEFT and exported adapters write them.
        assert_eq!(count(&["bert.encoder.layer.0.attention.self.query"]), 1);
        assert_eq!(count(&[r"regex:bert\.encoder\..*\.query"]), 3);
        assert_eq!(count(&["glob:bert.encoder.layer.1.**"]), 4);
    }

    #[test]
    fn a_target_that_matches_nothing_is_refused() {
        // A role must be a whole part of the path, a regex must match all of it.
        for pattern in [
            "uery",
            "glob:*.9.*",
            "regex:query",
            "roberta.encoder.layer.0.attention.self.query",
        ] {
            assert!(
                select(&targets(&[pattern]), &linears(), "bert").is_err(),
                "{pattern}"
            );
        }
    }

    #[test]
    fn a_table_of_embeddings_is_refused_by_name() {
        for name in ["word_embeddings", "bert.embeddings.word_embeddings", "wte"] {
            let error = select(&targets(&["query", name]), &linears(), "bert").unwrap_err();
            assert!(
                error.to_string().contains("is a table of embeddings"),
                "{error}"
            );
        }
        let error = select(&targets(&["embedding_projection"]), &linears(), "bert").unwrap_err();
        assert!(
            error.to_string().contains("matches no linear layer"),
            "{error}"
        );
    }

    #[test]
    fn modules_are_excluded_and_layers_picked_as_in_peft() {
        let with = |excluded: &[&str], layers: &[u32]| {
            let mut recipe = targets(&["all-linear"]);
            recipe.exclude_modules = (!excluded.is_empty()).then(|| targets(excluded).targets);
            recipe.layers_to_transform = (!layers.is_empty()).then(|| Layers(layers.to_vec()));
            select(&recipe, &linears(), "bert")
        };
        let count = |excluded: &[&str], layers: &[u32]| {
            let chosen = with(excluded, layers).expect("valid");
            chosen.iter().filter(|chosen| **chosen).count()
        };
        assert_eq!(count(&["query"], &[]), 9);
        assert_eq!(
            count(&["dense", "bert.encoder.layer.0.attention.self.query"], &[]),
            5
        );
        assert_eq!(count(&[], &[1]), 4);
        assert_eq!(count(&["value"], &[0, 2]), 6);
        for (excluded, layers, part) in [
            (&["key"][..], &[][..], "\"key\" matches none"),
            (&[], &[3], "there is no layer 3"),
            (&["all-linear"], &[], "no module is left"),
        ] {
            let error = with(excluded, layers).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
