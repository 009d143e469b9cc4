//! The scorer `table`: scores that are known beforehand, by the modules' paths.
//!
//! From the recipe, or from a file:
//!
//! ```toml
//! scores = { "encoder.layer.*.attention.**" = 1.0, "**" = 0.5, "encoder.layer.0.attention.self.query" = 4.0 }
//! scores = "scores.csv"      # a header `path,score`, then a row for each entry
//! scores = "scores.json"     # an object of paths and scores
//! ```
//!
//! An entry names one module by its path, or several by a pattern: `*` stands for anything within one part of a path,
//! `**` for any number of parts, as in `adapter.targets`. Of a module's entries the one with its very path wins, else
//! the one with most letters that are not wildcards, which is the narrowest; two of equally many with different
//! scores are an error. Every module must have an entry and every entry a module, so that a name mistyped is found
//! before the first step.
//!
//! Nothing is measured. For fixed choices, for scores from elsewhere, and for telling a scorer's part in a result
//! from its allocator's.

use std::collections::BTreeMap;
use std::path::Path;

use dynalora_plugin_api::schemars::{self, JsonSchema, Schema, SchemaGenerator, json_schema};
use dynalora_plugin_api::serde::{Deserialize, Deserializer, de};
use dynalora_plugin_api::{
    Error, ModuleInfo, Needs, Observation, Plugin, Result, ScoreRequest, Scorer, export_plugin,
    load_state, save_state,
};
use fast_glob::{glob_match, validate};

/// Parameters of `table`.
#[derive(Deserialize, JsonSchema)]
#[serde(crate = "dynalora_plugin_api::serde", deny_unknown_fields)]
pub struct Parameters {
    /// Scores by path or pattern; or the path of a `.csv` or `.json` file with them, as seen from where the trainer
    /// runs.
    scores: Scores,
}

/// Where the scores are.
enum Scores {
    Here(BTreeMap<String, f64>),
    File(String),
}

impl<'de> Deserialize<'de> for Scores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Scores;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a table of scores by path, or the path of a .csv or .json file")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> std::result::Result<Scores, E> {
                Ok(Scores::File(path.to_owned()))
            }

            fn visit_map<A: de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Scores, A::Error> {
                let mut scores = BTreeMap::new();
                while let Some((path, score)) = map.next_entry()? {
                    scores.insert(path, score);
                }
                Ok(Scores::Here(scores))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Scores {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Scores".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "type": "object", "additionalProperties": { "type": "number", "minimum": 0.0 } },
                { "type": "string" },
            ],
            "examples": [{ "**": 1.0 }, "scores.csv"],
        })
    }
}

/// The plugin.
pub struct Table {
    /// One score per module.
    scores: Vec<f64>,
    /// Where they are from, for messages.
    source: String,
}

impl Plugin for Table {
    type Parameters = Parameters;

    const NAME: &'static str = "table";
    const DESCRIPTION: &'static str = "Gives each module the score that a table has for its path.";
    const REFERENCE: &'static str = "none: a control, and the way in for scores from elsewhere";
    const FORMULA: &'static str = "yᵢ = the entry of its path";

    fn new(Parameters { scores }: Parameters, modules: &[ModuleInfo]) -> Result<Self> {
        let (source, entries) = match scores {
            Scores::Here(scores) => ("parameter `scores`".to_owned(), scores),
            Scores::File(path) => {
                let entries = read(Path::new(&path))?;
                (format!("{path}, named by the parameter `scores`"), entries)
            }
        };
        let told = |why: String| Error::from(format!("{source}: {why}"));
        let scores = Entries::new(entries).and_then(|entries| entries.scores(modules));
        Ok(Table {
            scores: scores.map_err(told)?,
            source,
        })
    }
}

/// The entries of a file.
fn read(path: &Path) -> Result<BTreeMap<String, f64>> {
    let told = |why: String| Error::from(format!("parameter `scores`: {}: {why}", path.display()));
    let text = || std::fs::read_to_string(path).map_err(|error| told(error.to_string()));
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => {
            let Pairs(pairs) = serde_json::from_str(&text()?).map_err(|e| told(e.to_string()))?;
            distinct(pairs.into_iter().map(Ok)).map_err(told)
        }
        Some("csv") => {
            let text = text()?;
            let mut rows = csv::Reader::from_reader(text.as_bytes());
            let header = rows.headers().map_err(|error| told(error.to_string()))?;
            if header != vec!["path", "score"] {
                let found = header.iter().collect::<Vec<_>>().join(",");
                return Err(told(format!(
                    "line 1 is \"{found}\", expected the header \"path,score\""
                )));
            }
            let rows = rows.deserialize::<(String, f64)>();
            distinct(rows.map(|row| row.map_err(|error| error.to_string()))).map_err(told)
        }
        _ => Err(told(
            "its name ends neither in .csv nor in .json".to_owned(),
        )),
    }
}

/// Pairs as a map; an error for two of one path.
fn distinct(
    pairs: impl Iterator<Item = std::result::Result<(String, f64), String>>,
) -> std::result::Result<BTreeMap<String, f64>, String> {
    let mut entries = BTreeMap::new();
    for pair in pairs {
        let (path, score) = pair?;
        if entries.contains_key(&path) {
            return Err(format!("\"{path}\" is there twice"));
        }
        entries.insert(path, score);
    }
    Ok(entries)
}

/// A table of JSON whose keys are kept apart: a map would take the last of two in silence.
struct Pairs(Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of scores by path")
            }

            fn visit_map<A: de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// The entries of a table.
struct Entries {
    exact: BTreeMap<String, f64>,
    /// The narrowest first.
    patterns: Vec<Pattern>,
}

struct Pattern {
    text: String,
    /// The same with slashes between the parts, which are what a star does not go over.
    glob: String,
    /// Letters that are no wildcards.
    letters: usize,
    score: f64,
}

impl Entries {
    fn new(entries: BTreeMap<String, f64>) -> std::result::Result<Self, String> {
        let (mut exact, mut patterns) = (BTreeMap::new(), Vec::new());
        for (text, score) in entries {
            if !(score.is_finite() && score >= 0.0) {
                return Err(format!(
                    "\"{text}\" has the score {score}, expected finite and not negative"
                ));
            }
            if !text.contains(['*', '?', '[', '{']) {
                exact.insert(text, score);
                continue;
            }
            let glob = text.replace('.', "/");
            validate(&glob).map_err(|error| format!("\"{text}\" is no pattern: {error}"))?;
            if text.starts_with('!') {
                return Err(format!(
                    "\"{text}\" is no pattern: an entry says which modules it is of, not which it is not of"
                ));
            }
            patterns.push(Pattern {
                letters: text.chars().filter(|c| !"*?[]{}".contains(*c)).count(),
                glob,
                text,
                score,
            });
        }
        patterns.sort_by_key(|pattern| std::cmp::Reverse(pattern.letters));
        Ok(Entries { exact, patterns })
    }

    /// One score for each module.
    fn scores(&self, modules: &[ModuleInfo]) -> std::result::Result<Vec<f64>, String> {
        let mut used = vec![false; self.patterns.len()];
        let mut scores = Vec::with_capacity(modules.len());
        for module in modules {
            let path = module.path.replace('.', "/");
            let mut matching = Vec::new();
            for (pattern, used) in self.patterns.iter().zip(&mut used) {
                if glob_match(&pattern.glob, &path) {
                    *used = true;
                    matching.push(pattern);
                }
            }
            let score = match (self.exact.get(&module.path), matching.as_slice()) {
                (Some(score), _) => *score,
                (None, []) => return Err(format!("no entry is of the module {}", module.path)),
                (None, [first, second, ..])
                    if first.letters == second.letters && first.score != second.score =>
                {
                    return Err(format!(
                        "\"{}\" and \"{}\" are both of the module {}, equally narrow, with the scores {} and {}: \
                         name the module by its path as well",
                        first.text, second.text, module.path, first.score, second.score
                    ));
                }
                (None, [first, ..]) => first.score,
            };
            scores.push(score);
        }
        let strange = |path: &&String| !modules.iter().any(|module| module.path == **path);
        let idle = self.patterns.iter().zip(&used).find(|(_, used)| !**used);
        let unused = self
            .exact
            .keys()
            .find(strange)
            .or(idle.map(|(pattern, _)| &pattern.text));
        match (unused, modules.first()) {
            (Some(entry), Some(module)) => Err(format!(
                "\"{entry}\" is of none of the {} modules, whose paths are like {}",
                modules.len(),
                module.path
            )),
            _ => Ok(scores),
        }
    }
}

impl Scorer for Table {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn observe(&mut self, _: &Observation) -> Result<()> {
        Ok(())
    }

    fn scores(&mut self, _: &ScoreRequest) -> Result<Vec<f64>> {
        Ok(self.scores.clone())
    }

    fn save(&self) -> Result<Vec<u8>> {
        save_state(&self.scores)
    }

    /// A run that goes on with other scores than it began with would be neither run.
    fn load(&mut self, state: &[u8]) -> Result<()> {
        let saved: Vec<f64> = load_state(state)?;
        match saved == self.scores {
            true => Ok(()),
            false => Err(format!(
                "the scores are not those that the run began with: {} has changed since",
                self.source
            )
            .into()),
        }
    }
}

export_plugin!(scorer Table);

#[cfg(test)]
mod tests {
    use super::*;
    use dynalora_plugin_api::{conformance, testing};

    fn scores(parameters: &str, modules: usize) -> Result<Vec<f64>> {
        let mut scorer = testing::scorer::<Table>(parameters, modules)?;
        scorer.scores(&testing::score_request(modules))
    }

    fn refusal(parameters: &str) -> String {
        scores(parameters, 12).unwrap_err().to_string()
    }

    fn from_file(name: &str, text: &str) -> Result<Vec<f64>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        scores(&format!(r#"{{"scores": {path:?}}}"#), 6)
    }

    #[test]
    fn the_narrowest_entry_wins() {
        let parameters = r#"{"scores": {
            "**": 1, "encoder.layer.1.*": 2, "encoder.layer.*.query": 3, "encoder.layer.1.query": 4, "**.up": 5
        }}"#;
        // `encoder.layer.1.*` has more letters than `**.up`, whatever those match.
        assert_eq!(
            scores(parameters, 12).unwrap(),
            [3.0, 1.0, 1.0, 1.0, 5.0, 1.0, 4.0, 2.0, 2.0, 2.0, 2.0, 2.0]
        );
        // A star stays within one part of a path.
        let error = refusal(r#"{"scores": {"encoder.*": 1}}"#);
        assert!(
            error.contains("no entry is of the module encoder.layer.0.query"),
            "{error}"
        );
    }

    /// `adapter.targets` are matched by globset, which is too large for a plugin.
    #[test]
    fn patterns_mean_what_they_mean_as_targets() {
        let parts = ["encoder", "layer", "0", "11", "self.query", "up_proj"];
        let mut paths = vec!["encoder".to_owned(), "pooler.dense".to_owned()];
        for from in 0..parts.len() {
            for to in from + 1..=parts.len() {
                paths.push(parts[from..to].join("."));
            }
        }
        let pieces = [
            "*",
            "**",
            "encoder",
            "layer",
            "[01]",
            "1?",
            "{0,11}",
            "*.self",
            "{query,value}",
            "up*",
            "[!0]",
            "?",
        ];
        for (one, two) in pieces.iter().flat_map(|one| pieces.map(|two| (*one, two))) {
            for pattern in [
                one.to_owned(),
                format!("{one}.{two}"),
                format!("**.{one}.{two}"),
                format!("encoder.{one}.{two}.**"),
                format!("**.{one}.**.{two}"),
            ] {
                let glob = pattern.replace('.', "/");
                let target = globset::GlobBuilder::new(&glob)
                    .literal_separator(true)
                    .build()
                    .unwrap()
                    .compile_matcher();
                validate(&glob).unwrap();
                for path in &paths {
                    let path = path.replace('.', "/");
                    assert_eq!(
                        glob_match(&glob, &path),
                        target.is_match(&path),
                        "{pattern} of {path}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_covers_not_all_or_nothing_is_refused_by_name() {
        for (parameters, words) in [
            (
                r#"{"scores": {"encoder.layer.0.*": 1}}"#,
                &[
                    "`scores`",
                    "no entry is of the module encoder.layer.1.query",
                ][..],
            ),
            (
                r#"{"scores": {"**": 1, "encoder.layer.9.*": 2}}"#,
                &[
                    "\"encoder.layer.9.*\" is of none of the 12 modules",
                    "encoder.layer.0.query",
                ],
            ),
            (
                r#"{"scores": {"**": 1, "encoder.layer.0.qurey": 2}}"#,
                &["\"encoder.layer.0.qurey\" is of none"],
            ),
            (
                r#"{"scores": {"encode*.**": 1, "*.layer.**": 2}}"#,
                &["\"*.layer.**\"", "\"encode*.**\"", "equally narrow"],
            ),
            (r#"{"scores": {"**": -1}}"#, &["\"**\" has the score -1"]),
            (r#"{"scores": {"[": 1}}"#, &["\"[\" is no pattern"]),
            (
                r#"{"scores": {"!encoder.*": 1}}"#,
                &["\"!encoder.*\" is no pattern"],
            ),
            (r#"{"scores": {"**": "high"}}"#, &["`scores", "high"]),
            (
                r#"{"scores": "scores.txt"}"#,
                &["scores.txt", "neither in .csv nor in .json"],
            ),
            (
                r#"{"scores": "no/such.csv"}"#,
                &["no/such.csv", "No such file"],
            ),
        ] {
            let error = refusal(parameters);
            for word in words {
                assert!(error.contains(word), "{word} is not in: {error}");
            }
        }
        // Equally narrow and of one mind.
        scores(r#"{"scores": {"encode*.**": 1, "*.layer.**": 1}}"#, 12).unwrap();
    }

    #[test]
    fn files_say_the_same_as_a_table() {
        let expected = [2.0, 0.5, 0.5, 0.5, 0.5, 0.5];
        let csv = "path,score\n**,0.5\nencoder.layer.0.query,2\n";
        assert_eq!(from_file("scores.csv", csv).unwrap(), expected);
        let json = r#"{"**": 0.5, "encoder.layer.0.query": 2}"#;
        assert_eq!(from_file("scores.json", json).unwrap(), expected);
        for (name, text, word) in [
            (
                "scores.csv",
                "path,value\n**,1\n",
                "line 1 is \"path,value\"",
            ),
            ("scores.csv", "path,score\n**,much\n", "line: 2"),
            (
                "scores.csv",
                "path,score\n**,1\n**,2\n",
                "\"**\" is there twice",
            ),
            (
                "scores.json",
                r#"{"**": 1, "**": 2}"#,
                "\"**\" is there twice",
            ),
            ("scores.json", r#"["**"]"#, "an object of scores by path"),
        ] {
            let error = from_file(name, text).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(name), "{error}");
        }
    }

    #[test]
    fn scores_that_change_under_a_run_are_refused() {
        let [one, two] = [r#"{"scores": {"**": 1}}"#, r#"{"scores": {"**": 2}}"#];
        let make = |parameters| testing::scorer::<Table>(parameters, 6).unwrap();
        let state = make(one).save().unwrap();
        make(one).load(&state).unwrap();
        let error = make(two).load(&state).unwrap_err().to_string();
        assert!(error.contains("has changed since"), "{error}");
    }

    #[test]
    fn conforms() {
        conformance::scorer::<Table>().assert();
    }
}
