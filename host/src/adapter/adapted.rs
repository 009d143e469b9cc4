//! The modules that a recipe adapts, with what its patterns give some of them.

use dynalora_plugin_api::ModuleInfo;

use super::{Config, LinearInfo, select};
use crate::error::{Error, Result};
use crate::recipe::{AdapterBias, AdapterConfig, AdapterKind, EvaConfig, Pattern};

/// The modules that carry an adapter, in forward order.
#[derive(Clone, Debug)]
pub struct Adapted {
    /// What plugins are told of them.
    pub modules: Vec<ModuleInfo>,
    /// Method and sizes of each.
    pub configs: Vec<Config>,
    /// With how many components each starts, where any can grow.
    pub initial_ranks: Option<Vec<u32>>,
}

impl Adapted {
    /// Those of `linears` that a recipe's `[adapter]` names. A pattern that decides of no module is an error: it is a
    /// typing mistake, or stands behind another.
    pub fn new(recipe: &AdapterConfig, linears: &[LinearInfo], prefix: &str) -> Result<Self> {
        let chosen = select(recipe, linears, prefix)?;
        let chosen = linears.iter().zip(chosen).filter(|(_, chosen)| *chosen);
        let chosen: Vec<&LinearInfo> = chosen.map(|(linear, _)| linear).collect();
        let paths: Vec<String> = chosen
            .iter()
            .map(|linear| format!("{prefix}.{}", linear.path))
            .collect();
        if let Some(ranks) = &recipe.rank_pattern {
            refuse_idle("rank_pattern", ranks, &paths)?;
        }
        if let Some(alphas) = &recipe.alpha_pattern {
            refuse_idle("alpha_pattern", alphas, &paths)?;
        }
        let sizes: Vec<(usize, f64)> = paths
            .iter()
            .map(|path| recipe.rank_and_alpha_of(path))
            .collect();
        let configs: Vec<Config> = sizes
            .iter()
            .zip(&chosen)
            .map(|((rank, alpha), linear)| {
                let layer = (linear.bias, linear.is_embedding);
                Config::of(recipe, *rank, *alpha, layer)
            })
            .collect();
        if recipe.bias() == AdapterBias::LoraOnly && !configs.iter().any(Config::trains_bias) {
            return Err(Error::user(format!(
                "adapter.bias is \"lora_only\", but none of the {} adapted layers has a bias",
                configs.len()
            ))
            .help("drop the key, or name layers that have one in adapter.targets"));
        }
        refuse_on_embeddings(recipe, &chosen)?;
        for (linear, config) in chosen.iter().zip(&configs) {
            let most = linear.inputs.min(linear.outputs);
            if config.pairs() == 2 && config.rank() as usize > most {
                return Err(Error::user(format!(
                    "the rank of {} is {}, but its weight has {most} singular values for `adapter.init_lora_weights` \
                     to start from",
                    linear.path,
                    config.rank()
                ))
                .help("lower `adapter.rank`, or drop `adapter.init_lora_weights`"));
            }
        }
        if let Some(eva) = recipe.eva() {
            refuse_too_many_directions(&chosen, &configs, eva)?;
        }
        let initial = sizes.iter().map(|(rank, _)| *rank as u32).collect();
        Ok(Adapted {
            modules: chosen
                .iter()
                .zip(&configs)
                .map(|(linear, config)| linear.module(config))
                .collect(),
            configs,
            initial_ranks: recipe.grows().then_some(initial),
        })
    }
}

impl Adapted {
    /// The same modules with the `ranks` that EVA gives them, without those that get none. A module keeps its scale by a
    /// larger or smaller α, as with PEFT, unless the recipe leaves that out.
    pub fn redistributed(&self, recipe: &AdapterConfig, prefix: &str, ranks: &[u32]) -> Self {
        let adjusts = recipe.eva().is_some_and(|eva| eva.adjust_scaling_factors);
        let modules = self.modules.iter().zip(&self.configs).zip(ranks);
        let remaining = modules
            .filter(|(_, rank)| **rank > 0)
            .map(|((module, before), rank)| {
                let (own, alpha) = recipe.rank_and_alpha_of(&format!("{prefix}.{}", module.path));
                let alpha = match adjusts {
                    true => alpha * f64::from(*rank) / own as f64,
                    false => alpha,
                };
                let bias = before.trains_bias();
                let layer = (bias, before.is_embedding());
                let config = Config::of(recipe, *rank as usize, alpha, layer);
                let linear = LinearInfo {
                    path: module.path.clone(),
                    layer: module.layer,
                    inputs: module.in_features as usize,
                    outputs: module.out_features as usize,
                    bias,
                    is_embedding: before.is_embedding(),
                };
                (linear.module(&config), config)
            });
        let (modules, configs) = remaining.unzip();
        Adapted {
            modules,
            configs,
            initial_ranks: None,
        }
    }
}

/// Refuses what adapters beside tables of embeddings do not have.
fn refuse_on_embeddings(recipe: &AdapterConfig, chosen: &[&LinearInfo]) -> Result<()> {
    let Some(table) = chosen.iter().find(|linear| linear.is_embedding) else {
        return Ok(());
    };
    let refuse = |what: &str, help: &str| {
        Err(Error::user(format!(
            "adapter.targets names {}, a table of embeddings, but {what}",
            table.path
        ))
        .help(help))
    };
    if recipe.kind == AdapterKind::Vera {
        return refuse(
            "adapter.kind is \"vera\", which is of linear layers alone, as in PEFT",
            "leave the target out, or set adapter.kind = \"lora\"",
        );
    }
    let all = chosen.iter().all(|linear| linear.is_embedding);
    match recipe.init_lora_weights {
        Some(start) if start.is_pissa() => {
            let what = format!(
                "adapter.init_lora_weights is \"{start}\", which no table of embeddings starts from"
            );
            return refuse(
                &what,
                "leave the target out, or drop adapter.init_lora_weights",
            );
        }
        Some(start) if all => {
            let what = format!(
                "adapter.init_lora_weights is \"{start}\", by which linear layers alone start, and none is a target"
            );
            return refuse(
                &what,
                "adapt linear layers too, or drop adapter.init_lora_weights",
            );
        }
        _ => {}
    }
    if recipe.dropout > 0.0 && all {
        let what = format!(
            "adapter.dropout is {}, and nothing drops out there, as in PEFT",
            recipe.dropout
        );
        return refuse(&what, "set it to 0, or adapt linear layers too");
    }
    Ok(())
}

/// Refuses pairs that are to start at more directions than what their module reads has.
fn refuse_too_many_directions(
    chosen: &[&LinearInfo],
    configs: &[Config],
    eva: EvaConfig,
) -> Result<()> {
    let layers = chosen.iter().zip(configs);
    for (linear, config) in layers.filter(|(linear, _)| !linear.is_embedding) {
        let most = match eva.redistributes() {
            true => eva.most(config.rank()),
            false => config.rank() as usize,
        };
        if most > linear.inputs {
            return Err(Error::user(format!(
                "the rank of {} can become {most}, but what it reads has {} directions for `adapter.init_lora_weights` = \
                 \"eva\" to start at",
                linear.path, linear.inputs
            ))
            .help("lower `adapter.rank`, `adapter.r_max` or `adapter.eva.rho`"));
        }
    }
    Ok(())
}

/// Refuses an expression by which no module goes.
fn refuse_idle<T>(key: &str, pattern: &Pattern<T>, paths: &[String]) -> Result<()> {
    for (index, (name, _)) in pattern.entries().enumerate() {
        let mut decided = paths.iter().map(|path| pattern.matching(path));
        if decided.any(|mut matching| matching.next() == Some(index)) {
            continue;
        }
        let mut met = paths.iter().map(|path| pattern.matching(path));
        let shadowed = met.any(|mut matching| matching.any(|at| at == index));
        let message = format!("`adapter.{key}` has \"{name}\", ");
        return Err(match shadowed {
            true => Error::user(format!(
                "{message}but of every module that it matches an expression before it decides"
            ))
            .help("the first that matches counts, as in PEFT: put it before the wider one, or drop it"),
            false => Error::user(format!("{message}which matches none of the adapted modules"))
                .help(format!(
                    "an expression is a module's path or its last parts, or matches them whole, as in PEFT: \"query\", \
                     or \"layer.0.*\"; the first of the adapted modules is `{}`",
                    paths.first().map_or("", String::as_str)
                )),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(text: &str) -> Result<Adapted> {
        let recipe: AdapterConfig = toml::from_str(text).expect("an [adapter]");
        let linear = |layer: u32, part: &str| LinearInfo {
            path: format!("encoder.layer.{layer}.{part}"),
            layer: Some(layer),
            inputs: 4,
            outputs: 6,
            bias: part == "query",
            is_embedding: false,
        };
        let linears: Vec<LinearInfo> = (0..2)
            .flat_map(|layer| ["query", "value"].map(|part| linear(layer, part)))
            .collect();
        Adapted::new(&recipe, &linears, "bert")
    }

    #[test]
    fn patterns_give_modules_ranks_and_scales_of_their_own() {
        let found = adapted(
            "rank = 4\nalpha = 8\nrank_pattern = { 'layer.1.query' = 2, 'query' = 3 }\nalpha_pattern = { '^bert.encoder.layer.0.*' = 12 }",
        )
        .unwrap();
        let ranks: Vec<u32> = found.modules.iter().map(|module| module.rank).collect();
        let scales: Vec<f32> = found.configs.iter().map(Config::scale).collect();
        assert_eq!(ranks, [3, 4, 2, 4]);
        assert_eq!(scales, [4.0, 3.0, 4.0, 2.0]);
        assert_eq!(found.modules[0].parameters, 3 * 10);
        assert_eq!(found.initial_ranks, None);
    }

    #[test]
    fn modules_grow_from_ranks_of_their_own_and_keep_the_scale_of_these() {
        let found = adapted(
            "rank = 4\nalpha = 8\nr_max = 6\nuse_rslora = true\nrank_pattern = { query = 1, 'layer.1.value' = 6 }",
        )
        .unwrap();
        assert!(found.modules.iter().all(|module| module.rank == 6));
        assert_eq!(found.initial_ranks, Some(vec![1, 4, 1, 6]));
        let scales: Vec<f32> = found.configs.iter().map(Config::scale).collect();
        let stabilised = (8.0 / 6.0_f64.sqrt()) as f32;
        assert_eq!(scales, [8.0, 4.0, 8.0, stabilised]);
        // The others' rank is that of all of them.
        let found = adapted("rank = 4\nr_max = 4\nrank_pattern = { query = 2 }").unwrap();
        assert_eq!(found.initial_ranks, Some(vec![2, 4, 2, 4]));
    }

    #[test]
    fn eva_moves_ranks_and_keeps_scales_as_peft_does() {
        let text =
            "rank = 2\nalpha = 8\ninit_lora_weights = \"eva\"\nrank_pattern = { query = 1 }\n";
        for (more, scales) in [
            ("", [8.0, 4.0, 4.0]),
            (
                "use_rslora = true\n",
                [8.0, 8.0 / 2.0_f32.sqrt(), 12.0 / 3.0_f32.sqrt()],
            ),
            (
                "[eva]\nadjust_scaling_factors = false\n",
                [8.0, 4.0, 8.0 / 3.0],
            ),
        ] {
            let text = format!("{text}{more}");
            let recipe: AdapterConfig = toml::from_str(&text).expect("an [adapter]");
            let found = adapted(&text)
                .unwrap()
                .redistributed(&recipe, "bert", &[1, 2, 0, 3]);
            let paths: Vec<&str> = found.modules.iter().map(|it| it.path.as_str()).collect();
            let layer = |layer: u32, part: &str| format!("encoder.layer.{layer}.{part}");
            assert_eq!(
                paths,
                [layer(0, "query"), layer(0, "value"), layer(1, "value")]
            );
            let ranks: Vec<u32> = found.modules.iter().map(|it| it.rank).collect();
            assert_eq!(ranks, [1, 2, 3]);
            assert_eq!(found.modules[2].parameters, 3 * 10);
            for (config, scale) in found.configs.iter().zip(scales) {
                assert!(
                    (config.scale() - scale).abs() < 1e-6,
                    "{}, not {scale}",
                    config.scale()
                );
            }
        }
        let error = adapted("rank = 3\ninit_lora_weights = \"eva\"").unwrap_err();
        assert!(error.to_string().contains("can become 6"), "{error}");
        assert!(adapted("rank = 2\ninit_lora_weights = \"eva\"").is_ok());
        assert!(
            adapted("rank = 3\nr_max = 4\ninit_lora_weights = \"eva\"\n[eva]\nrho = 1").is_ok()
        );
    }

    #[test]
    fn an_expression_that_decides_of_no_module_is_refused() {
        for (text, words) in [
            ("rank_pattern = { key = 2 }", "\"key\", which matches none"),
            ("rank_pattern = { uery = 2 }", "matches none"),
            ("rank_pattern = { '^encoder.*' = 2 }", "matches none"),
            (
                "alpha_pattern = { '.*query' = 2, 'layer.0.query' = 3 }",
                "an expression before it decides",
            ),
        ] {
            let error = adapted(text).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
