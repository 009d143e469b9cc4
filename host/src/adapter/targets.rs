//! Which linear layers carry an adapter.

use super::LinearInfo;
use crate::error::{Error, Result};
use crate::recipe::Targets;

/// Which of `linears` are targets, in their order. A target that matches nothing is an error, since it
/// is a typing mistake. Paths count with and without `prefix`, the family's: PEFT's have it
/// (`bert.encoder.layer.0.attention.self.query`), and so have exported adapters.
pub fn select(targets: &Targets, linears: &[LinearInfo], prefix: &str) -> Result<Vec<bool>> {
    let mut chosen = vec![false; linears.len()];
    for target in &targets.0 {
        let matcher = target.matcher()?;
        let mut any = false;
        for (linear, chosen) in linears.iter().zip(&mut chosen) {
            let path = &linear.path;
            if matcher.is_match(path) || matcher.is_match(&format!("{prefix}.{path}")) {
                any = true;
                *chosen = true;
            }
        }
        if !any {
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
    }
    Ok(chosen)
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
                });
            }
        }
        linears
    }

    fn targets(patterns: &[&str]) -> Targets {
        Targets(patterns.iter().map(|pattern| (*pattern).into()).collect())
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
}
