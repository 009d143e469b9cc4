use std::path::Path;

use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;

/// A recipe with every table, short enough to break in single places.
const TEXT: &str = r#"output = "runs/a"

[model]
name = "org/model"

[data]
task = "minimal-pairs"

[adapter]
rank = 8

[allocation]
schedule = { kind = "periodic", every = 50 }

[scorer]
plugin = "activation"

[allocator]
plugin = "top-k"
k = "50%"

[train]
epochs = 2
"#;

fn parse(text: &str, sets: &[&str]) -> Result<Recipe> {
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    Recipe::parse(Path::new("a.toml"), text, &sets).map(|(recipe, _)| recipe)
}

/// The error as a terminal without colours shows it.
fn show(error: &Error) -> String {
    let mut text = String::new();
    miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor())
        .with_width(110)
        .render_report(&mut text, error)
        .expect("writing to a string");
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// The error of [`TEXT`] with `from` replaced by `to`.
fn broken(from: &str, to: &str) -> String {
    assert_eq!(TEXT.matches(from).count(), 1, "{from}");
    let error = parse(&TEXT.replace(from, to), &[]).expect_err(to);
    assert_eq!(error.exit_code(), 2);
    show(&error)
}

/// The error of [`TEXT`] under one flag.
fn refused(set: &str) -> String {
    let error = parse(TEXT, &[set]).expect_err(set);
    assert_eq!(error.exit_code(), 2);
    show(&error)
}

#[test]
fn defaults_are_written_out_and_read_back() {
    let recipe = parse(TEXT, &[]).expect("a good recipe");
    assert_eq!((recipe.seed, recipe.device, recipe.threads), (42, Device::Auto, None));
    assert_eq!(recipe.train.length(), Length::Epochs(2));
    assert_eq!(recipe.train.batch_limit(), BatchLimit::Examples(32));
    assert_eq!(recipe.train.head_rate(), recipe.train.learning_rate);
    assert_eq!(recipe.allocation.schedule, Schedule::Periodic { every: 50 });
    let text = recipe.to_toml().expect("it can be written");
    for line in ["seed = 42", "batch_size = 32", "beta2 = 0.999", "unit = \"module\"", "k = \"50%\""] {
        assert!(text.lines().any(|written| written == line), "{line} is not in\n{text}");
    }
    assert_eq!(parse(&text, &[]).expect("it reads back"), recipe);
}

#[test]
fn an_unknown_key_is_shown_with_the_nearest() {
    assert_snapshot!(broken("rank", "rnak"), @"");
    assert_snapshot!(broken("[train]", "[trian]"), @"");
    assert_snapshot!(broken("every", "evry"), @"");
    assert_snapshot!(broken("rank = 8", "learning_rate = 1"), @"");
}

#[test]
fn a_wrong_type_or_value_is_shown_where_it_stands() {
    assert_snapshot!(broken("rank = 8", "rank = 0"), @"");
    assert_snapshot!(broken("rank = 8", "rank = -1"), @"");
    assert_snapshot!(broken("rank = 8", "dropout = 1.5"), @"");
    assert_snapshot!(broken("rank = 8", "targets = ['query', 'glob:[']"), @"");
    assert_snapshot!(broken("\"top-k\"", "7"), @"");
    assert_snapshot!(broken("epochs = 2", "epochs = 'two'"), @"");
    assert_snapshot!(broken("epochs = 2", "order = 'shufle'"), @"");
    assert_snapshot!(broken("every = 50", "every = 0"), @"");
    assert_snapshot!(broken("[train]", "[checkpoint]\nevery = 0\n[train]"), @"");
    assert_snapshot!(broken("output = \"runs/a\"", "output = \"a\"\ndevice = \"gpu\""), @"");
}

#[test]
fn what_is_missing_or_contradictory_is_shown() {
    assert_snapshot!(broken("name = \"org/model\"", ""), @"");
    assert_snapshot!(broken("output = \"runs/a\"\n", ""), @"");
    assert_snapshot!(broken("epochs = 2", "epochs = 2\nsteps = 10"), @"");
    assert_snapshot!(broken("[scorer]\nplugin = \"activation\"\n", ""), @"");
    assert_snapshot!(broken("rank = 8", "rank = 8\nr = 8"), @"");
    assert_snapshot!(broken("task = \"minimal-pairs\"", "task = \"cola\""), @"");
    assert_snapshot!(broken("k = \"50%\"", "k = 2030-01-31"), @"");
}

#[test]
fn bad_toml_is_shown() {
    assert_snapshot!(broken("\"runs/a\"", "runs/a"), @"");
    assert_snapshot!(broken("rank = 8", "rank = 8\nrank = 9"), @"");
}

#[test]
fn flags_are_named_in_errors() {
    assert_snapshot!(refused("train.step=10"), @"");
    assert_snapshot!(refused("adapter.rank=0"), @"");
    assert_snapshot!(refused("train.steps"), @"");
    assert_snapshot!(refused("adapter.targets=[query"), @"");
    assert_snapshot!(refused("seed.x=1"), @"");
    assert_snapshot!(refused("model.revision=7"), @"");
    assert_snapshot!(refused("a b=1"), @"");
}

#[test]
fn a_file_that_cannot_be_read_is_no_recipe() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = Recipe::load(&folder.path().join("none.toml"), &[]).expect_err("there is none");
    assert_eq!(missing.exit_code(), 2);
    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, b"seed = 1\noutput = \"\xff\"").expect("written");
    let error = Recipe::load(&binary, &[]).expect_err("not UTF-8").to_string();
    assert!(error.ends_with("binary.toml, line 2: not UTF-8"), "{error}");
}

#[test]
fn flags_replace_what_the_recipe_says() {
    let recipe = parse(
        TEXT,
        &[
            "seed=7",
            "output=runs/2030-01-31 # b",
            "train.steps=10",
            "train.tokens_per_batch=4096",
            "adapter.r=4",
            "adapter.targets=[\"query\", \"key\"]",
            "train.warmup=0.1",
            "allocation.schedule.every=5",
            "allocator={ plugin = \"threshold\", p = 0.5 }",
            "evaluation.every = never",
            "seed=9",
        ],
    )
    .expect("good flags");
    assert_eq!(recipe.seed, 9);
    assert!(recipe.output.ends_with("2030-01-31 # b"), "{}", recipe.output.display());
    assert_eq!(recipe.train.length(), Length::Steps(10));
    assert_eq!(recipe.train.epochs, None);
    assert_eq!(recipe.train.batch_limit(), BatchLimit::Tokens(4096));
    assert_eq!(recipe.adapter.rank, 4);
    assert_eq!(recipe.adapter.targets.0.len(), 2);
    assert_eq!(recipe.train.warmup, crate::train::schedule::Warmup::Share(0.1));
    assert_eq!(recipe.allocation.schedule, Schedule::Periodic { every: 5 });
    let allocator = recipe.allocator.expect("an allocator");
    assert_eq!(allocator.plugin, "threshold");
    assert_eq!(allocator.parameters_json(), serde_json::json!({ "p": 0.5 }));
    assert_eq!(recipe.evaluation.every, Every::Never);
    let dated = parse(TEXT, &["output=2030-01-31"]).expect("a date is text here");
    assert!(dated.output.ends_with("2030-01-31"));
}

#[test]
fn a_scorer_that_never_works_is_worth_a_warning() {
    let recipe = parse(TEXT, &["allocation.schedule={kind=\"never\"}"]).expect("plain LoRA");
    assert_eq!(recipe.warnings().len(), 2);
    assert_eq!(parse(TEXT, &[]).expect("dynamic").warnings(), Vec::<String>::new());
}

#[test]
fn relative_paths_become_absolute() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(folder.path().join("recipes")).expect("made");
    std::fs::create_dir_all(folder.path().join("models/tiny")).expect("made");
    let path = folder.path().join("recipes/a.toml");
    let text = TEXT
        .replace("org/model", "../models/tiny")
        .replace("task = \"minimal-pairs\"", "task = \"cola\"\ndir = \"cola\"")
        .replace("\"top-k\"", "\"./mine.so\"");
    std::fs::write(&path, format!("plugin_dirs = [\"built\"]\n{text}")).expect("written");
    let recipe = Recipe::load(&path, &[]).expect("a good recipe");
    let root = folder.path().canonicalize().expect("it exists");
    assert_eq!(Path::new(&recipe.model.name), root.join("models/tiny"));
    assert_eq!(recipe.data.dir, Some(folder.path().join("recipes/cola")));
    assert_eq!(recipe.plugin_dirs, [folder.path().join("recipes/built")]);
    let allocator = recipe.allocator.as_ref().expect("an allocator");
    assert_eq!(Path::new(&allocator.plugin), folder.path().join("recipes/mine.so"));
    assert!(recipe.output.is_absolute());

    let elsewhere = folder.path().join("copy.toml");
    std::fs::write(&elsewhere, recipe.to_toml().expect("written out")).expect("written");
    assert_eq!(Recipe::load(&elsewhere, &[]).expect("it reads back"), recipe);
}

#[test]
fn later_errors_can_point_into_the_recipe() {
    let (_, document) = Recipe::parse(Path::new("a.toml"), TEXT, &[]).expect("a good recipe");
    assert_snapshot!(show(&document.error("allocator.k", "there are 12 modules", "too many")), @"");
    let error = Error::user("`allocator.plugin` is not found").help("build it");
    assert_snapshot!(show(&document.adopt("allocator", error)), @"");
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_config_loads() {
    let mut loaded = 0;
    for entry in std::fs::read_dir(repository().join("configs")).expect("configs/ is there") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let recipe = Recipe::load(&path, &[]).unwrap_or_else(|error| panic!("{}", show(&error)));
            let name = path.file_name().expect("a name");
            let again = parse(&recipe.to_toml().expect("written out"), &[]).expect("it reads back");
            assert_eq!(again, recipe, "{}", name.display());
            assert_eq!(recipe.warnings(), Vec::<String>::new(), "{}", name.display());
            loaded += 1;
        }
    }
    assert!(loaded >= 7, "{loaded} configs");
}

/// `UPDATE_SCHEMA=1 cargo test` writes the file anew.
#[test]
fn the_committed_schema_is_the_recipes() {
    let path = repository().join("docs/recipe.schema.json");
    let schema = serde_json::to_string_pretty(&Recipe::schema()).expect("JSON") + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &schema).expect("written");
    }
    let committed = std::fs::read_to_string(&path).expect("docs/recipe.schema.json is there");
    assert!(committed == schema, "docs/recipe.schema.json is stale: run the tests once with UPDATE_SCHEMA=1");
}

#[test]
fn the_docs_name_every_key() {
    let docs = std::fs::read_to_string(repository().join("docs/recipe.md")).expect("docs/recipe.md");
    let missing: Vec<String> = Recipe::keys()
        .into_iter()
        .filter(|key| {
            let leaf = key.rsplit('.').next().unwrap_or(key);
            !docs.contains(&format!("`{leaf}`")) && !docs.contains(&format!("`[{key}]`"))
        })
        .collect();
    assert_eq!(missing, Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_back_equal(
        seed in 0..=i64::MAX as u64,
        rate in 0.0..1.0_f64,
        k in "[ -~]{0,12}",
        every in 1..u64::from(u32::MAX),
        device in 0..9_usize,
    ) {
        let mut recipe = parse(TEXT, &[]).expect("a good recipe");
        recipe.seed = seed;
        recipe.train.learning_rate = rate;
        recipe.evaluation.every = Every::Steps(every);
        recipe.device = Device::Cuda(device);
        recipe.allocator.as_mut().expect("one").parameters.insert(k.clone(), k.into());
        let text = recipe.to_toml().expect("it can be written");
        // A parameter of that name would be the plugin itself.
        prop_assume!(recipe.allocator.as_ref().is_some_and(|a| !a.parameters.contains_key("plugin")));
        prop_assert_eq!(parse(&text, &[]).expect("it reads back"), recipe);
    }

    #[test]
    fn no_text_and_no_flag_panics(text in "(?s).{0,60}", set in "(?s).{0,30}", key in "[a-z.=\"{\\[]{0,20}") {
        let _ = parse(&text, &[]);
        let _ = parse(&format!("{TEXT}{text}"), &[]).map_err(|error| show(&error));
        let _ = parse(TEXT, &[&set]).map_err(|error| show(&error));
        let _ = parse(TEXT, &[&format!("{key}={set}")]).map_err(|error| show(&error));
    }
}
