//! Which linear layers and tables of embeddings carry an adapter.

use super::LinearInfo;
use crate::error::{Error, Result};
use crate::recipe::{AdapterConfig, Target};

/// Which of `linears` are targets, in their order. A target that matches nothing, an exclusion that excludes nothing and a
/// layer that is not there are errors, since they are typing mistakes. Paths count with and without `prefix`, the family's:
/// PEFT's have it (`bert.encoder.layer.0.attention.self.query`), and so have exported adapters. `all-linear` means no table of
/// embeddings.
pub fn select(recipe: &AdapterConfig, linears: &[LinearInfo], prefix: &str) -> Result<Vec<bool>> {
    let matching = |target: &Target| -> Result<Vec<bool>> {
        let matcher = target.matcher()?;
        let matches = |linear: &LinearInfo| {
            let path = &linear.path;
            let is_named = !linear.is_embedding || *target != Target::AllLinear;
            is_named && (matcher.is_match(path) || matcher.is_match(&format!("{prefix}.{path}")))
        };
        Ok(linears.iter().map(matches).collect())
    };
    let mut chosen = vec![false; linears.len()];
    for target in &recipe.targets.0 {
        let meant = matching(target)?;
        if !meant.contains(&true) {
            let (tables, layers): (Vec<_>, Vec<_>) =
                linears.iter().partition(|linear| linear.is_embedding);
            let names: Vec<&str> = tables.iter().map(|table| table.path.as_str()).collect();
            return Err(Error::user(format!(
                "adapter.targets: \"{target}\" matches no linear layer of the model and no table of embeddings"
            ))
            .help(format!(
                "the model has {} linear layers; their roles are {}; {}; `glob:` and `regex:` patterns \
                 match whole paths such as `{}`, with or without `{prefix}.` before them",
                layers.len(),
                roles(&layers).join(", "),
                match &names[..] {
                    [] => "it has no table of embeddings that tokens are looked up in".to_owned(),
                    names => format!("its tables of embeddings are {}", names.join(", ")),
                },
                layers.first().map_or("", |linear| &linear.path),
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

fn roles<'a>(linears: &[&'a LinearInfo]) -> Vec<&'a str> {
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
                    is_embedding: false,
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
    fn tables_of_embeddings_are_named_and_not_linear() {
        let mut all = linears();
        let table = |name: &str| LinearInfo {
            path: format!("embeddings.{name}"),
            layer: None,
            inputs: 100,
            outputs: 4,
            bias: false,
            is_embedding: true,
        };
        all.splice(
            0..0,
            [table("word_embeddings"), table("position_embeddings")],
        );
        let of = |recipe: &AdapterConfig| {
            let chosen = select(recipe, &all, "bert").map(|chosen| {
                let all = chosen.iter().zip(&all).filter(|(chosen, _)| **chosen);
                all.filter(|(_, linear)| linear.is_embedding).count()
            });
            chosen.map_err(|error| error.to_string())
        };
        for (patterns, tables) in [
            (&["all-linear"][..], 0),
            (&["word_embeddings"], 1),
            (&["query", "bert.embeddings.position_embeddings"], 1),
            (&["all-linear", "glob:embeddings.*"], 2),
            (&[r"regex:bert\..*(embeddings|query)"], 2),
        ] {
            assert_eq!(of(&targets(patterns)), Ok(tables), "{patterns:?}");
        }
        // What is in no layer is in none of these, as in PEFT.
        let mut in_a_layer = targets(&["query", "word_embeddings"]);
        in_a_layer.layers_to_transform = Some(Layers(vec![1]));
        assert_eq!(of(&in_a_layer), Ok(0));
        let error = of(&targets(&["wte"])).unwrap_err();
        assert!(error.contains("no table of embeddings"), "{error}");
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
