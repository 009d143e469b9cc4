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
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
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
    assert_eq!(
        (recipe.seed, recipe.device, recipe.threads),
        (42, Device::Auto, None)
    );
    assert_eq!(recipe.train.length(), Length::Epochs(2));
    assert_eq!(recipe.train.batch_limit(), BatchLimit::Examples(32));
    assert_eq!(recipe.train.head_rate(), recipe.train.learning_rate);
    assert_eq!(recipe.allocation.schedule, Schedule::Periodic { every: 50 });
    let text = recipe.to_toml().expect("it can be written");
    for line in [
        "seed = 42",
        "batch_size = 32",
        "beta2 = 0.999",
        "unit = \"module\"",
        "k = \"50%\"",
    ] {
        assert!(
            text.lines().any(|written| written == line),
            "{line} is not in\n{text}"
        );
    }
    assert_eq!(parse(&text, &[]).expect("it reads back"), recipe);
}

#[test]
fn an_unknown_key_is_shown_with_the_nearest() {
    assert_snapshot!(broken("rank", "rnak"), @r"
     × the recipe has no key `adapter.rnak`
       ╭─[a.toml:10:1]
     9 │ [adapter]
    10 │ rnak = 8
       · ──┬─
       ·   ╰── unknown key
    11 │
       ╰────
     help: did you mean `rank`? [adapter] takes `kind`, `r`, `rank`, `r_max`, `alpha`, `lora_alpha`,
           `use_rslora`, `rank_pattern`, `alpha_pattern`, `init_lora_weights`, `use_dora`, `bias`, `eva`,
           `dropout`, `lora_dropout`, `vera_dropout`, `d_initial`, `projection_prng_key`, `from`, `from_head`,
           `target_modules`, `targets`, `exclude_modules`, `layers_to_transform`
    ");
    assert_snapshot!(broken("[train]", "[trian]"), @r"
     × the recipe has no key `trian`
       ╭─[a.toml:22:2]
    21 │
    22 │ [trian]
       ·  ──┬──
       ·    ╰── unknown key
    23 │ epochs = 2
       ╰────
     help: did you mean `train`? The recipe takes `seed`, `output`, `device`, `threads`, `plugin_dirs`,
           `model`, `data`, `adapter`, `allocation`, `scorer`, `allocator`, `train`, `evaluation`, `checkpoint`
    ");
    assert_snapshot!(broken("every", "evry"), @r#"
     × the recipe has no key `allocation.schedule.evry`
       ╭─[a.toml:13:33]
    12 │ [allocation]
    13 │ schedule = { kind = "periodic", evry = 50 }
       ·                                 ──┬─
       ·                                   ╰── unknown key
    14 │
       ╰────
     help: did you mean `every`? [allocation.schedule] takes `every`
    "#);
    assert_snapshot!(broken("rank = 8", "learning_rate = 1"), @r"
     × the recipe has no key `adapter.learning_rate`
       ╭─[a.toml:10:1]
     9 │ [adapter]
    10 │ learning_rate = 1
       · ──────┬──────
       ·       ╰── unknown key
    11 │
       ╰────
     help: did you mean `train.learning_rate`? [adapter] takes `kind`, `r`, `rank`, `r_max`, `alpha`,
           `lora_alpha`, `use_rslora`, `rank_pattern`, `alpha_pattern`, `init_lora_weights`, `use_dora`,
           `bias`, `eva`, `dropout`, `lora_dropout`, `vera_dropout`, `d_initial`, `projection_prng_key`,
           `from`, `from_head`, `target_modules`, `targets`, `exclude_modules`, `layers_to_transform`
    ");
}

#[test]
fn a_wrong_type_or_value_is_shown_where_it_stands() {
    assert_snapshot!(broken("rank = 8", "rank = 0"), @r"
     × `adapter.rank` is 0
       ╭─[a.toml:10:8]
     9 │ [adapter]
    10 │ rank = 0
       ·        ┬
       ·        ╰── expected a rank from 1 to 65536
    11 │
       ╰────
     help: change it in the recipe, or pass `--set adapter.rank=VALUE`
    ");
    assert_snapshot!(broken("rank = 8", "rank = -1"), @r"
     × `adapter.rank` is integer -1
       ╭─[a.toml:10:8]
     9 │ [adapter]
    10 │ rank = -1
       ·        ─┬
       ·         ╰── expected a whole number, 0 or more
    11 │
       ╰────
     help: change it in the recipe, or pass `--set adapter.rank=VALUE`
    ");
    assert_snapshot!(broken("rank = 8", "dropout = 1.5"), @r"
     × `adapter.dropout` is 1.5
       ╭─[a.toml:10:11]
     9 │ [adapter]
    10 │ dropout = 1.5
       ·           ─┬─
       ·            ╰── expected a probability from 0 to below 1
    11 │
       ╰────
     help: change it in the recipe, or pass `--set adapter.dropout=VALUE`
    ");
    assert_snapshot!(broken("rank = 8", "targets = ['query', 'glob:[']"), @r#"
     × the target "glob:[" cannot be used
       ╭─[a.toml:10:11]
     9 │ [adapter]
    10 │ targets = ['query', 'glob:[']
       ·           ─────────┬─────────
       ·                    ╰── unclosed character class; missing ']'
    11 │
       ╰────
     help: a target is the last part of a module's path ("query"), "all-linear", "glob:…" or "regex:…"
    "#);
    assert_snapshot!(broken("\"top-k\"", "7"), @r#"
     × `allocator.plugin` is integer 7
       ╭─[a.toml:19:10]
    18 │ [allocator]
    19 │ plugin = 7
       ·          ┬
       ·          ╰── expected text in quotes
    20 │ k = "50%"
       ╰────
     help: text needs quotes: `allocator.plugin = "…"`, or `--set 'allocator.plugin="…"'`
    "#);
    assert_snapshot!(broken("epochs = 2", "epochs = 'two'"), @r#"
     × `train.epochs` is string "two"
       ╭─[a.toml:23:10]
    22 │ [train]
    23 │ epochs = 'two'
       ·          ──┬──
       ·            ╰── expected a whole number, 0 or more
       ╰────
     help: change it in the recipe, or pass `--set train.epochs=VALUE`
    "#);
    assert_snapshot!(broken("epochs = 2", "order = 'shufle'"), @r#"
     × `train.order` cannot be "shufle"
       ╭─[a.toml:23:9]
    22 │ [train]
    23 │ order = 'shufle'
       ·         ────┬───
       ·             ╰── not one of its values
       ╰────
     help: did you mean "shuffle"? It can be "shuffle", "length-grouped", "sequential"
    "#);
    assert_snapshot!(broken("every = 50", "every = 0"), @r#"
     × schedule `periodic`: `every` is 0
       ╭─[a.toml:13:12]
    12 │ [allocation]
    13 │ schedule = { kind = "periodic", every = 0 }
       ·            ────────────────┬───────────────
       ·                            ╰── here
    14 │
       ╰────
     help: give a period of 1 step or more
    "#);
    assert_snapshot!(broken("[train]", "[checkpoint]\nevery = 0\n[train]"), @r#"
     × `checkpoint.every` is integer 0
       ╭─[a.toml:23:9]
    22 │ [checkpoint]
    23 │ every = 0
       ·         ┬
       ·         ╰── expected "epoch", "never" or a number of steps, at least 1
    24 │ [train]
       ╰────
     help: change it in the recipe, or pass `--set checkpoint.every=VALUE`
    "#);
    assert_snapshot!(broken("output = \"runs/a\"", "output = \"a\"\ndevice = \"gpu\""), @r#"
     × `device`: there is no device "gpu": give auto, cpu, cuda, vulkan, metal or webgpu, these four also with
     │ an index, as in cuda:1
      ╭─[a.toml:2:10]
    1 │ output = "a"
    2 │ device = "gpu"
      ·          ──┬──
      ·            ╰── refused
    3 │
      ╰────
     help: change it in the recipe, or pass `--set device=VALUE`
    "#);
}

#[test]
fn what_is_missing_or_contradictory_is_shown() {
    assert_snapshot!(broken("name = \"org/model\"", ""), @r"
     × the recipe lacks the key `model.name`
      ╭─[a.toml:3:1]
    2 │
    3 │ [model]
      · ───┬───
      ·    ╰── `name` belongs here
    4 │
      ╰────
     help: add it, or pass `--set model.name=VALUE`
    ");
    assert_snapshot!(broken("output = \"runs/a\"\n", ""), @r#"
     × the recipe lacks the key `output`
      ╭─[a.toml:1:1]
    1 │
      · ▲
      · ╰── `output` belongs here
    2 │ [model]
    3 │ name = "org/model"
      ╰────
     help: add it, or pass `--set output=VALUE`
    "#);
    assert_snapshot!(broken("epochs = 2", "epochs = 2\nsteps = 10"), @r"
     × `train.epochs` and `train.steps` are both given
       ╭─[a.toml:24:9]
    23 │ epochs = 2
    24 │ steps = 10
       ·         ─┬
       ·          ╰── one of the two is too many
       ╰────
     help: keep one of them; a `--set` of one replaces the other
    ");
    assert_snapshot!(broken("[allocator]\nplugin = \"top-k\"\nk = \"50%\"\n", ""), @r#"
     × the recipe reallocates, but has no [allocator]
       ╭─[a.toml:13:12]
    12 │ [allocation]
    13 │ schedule = { kind = "periodic", every = 50 }
       ·            ────────────────┬────────────────
       ·                            ╰── this schedule needs an allocator
    14 │
       ╰────
     help: add `[allocator]` with `plugin = "top-k"`, or set `schedule = { kind = "never" }` for plain LoRA
    "#);
    assert_snapshot!(broken("rank = 8", "rank = 8\nr = 8"), @r"
     × `rank` is given twice, once under another name
       ╭─[a.toml:9:1]
     8 │
     9 │ [adapter]
       · ────┬────
       ·     ╰── given again here
    10 │ rank = 8
       ╰────
     help: keep one of the two
    ");
    assert_snapshot!(broken("task = \"minimal-pairs\"", "task = \"cola\""), @r#"
     × `data.dir` is missing: where are the files of `cola`?
      ╭─[a.toml:6:1]
    5 │
    6 │ [data]
      · ───┬──
      ·    ╰── here
    7 │ task = "cola"
      ╰────
     help: Give the folder with the task's train and dev files: `dir = "glue/cola"`.
    "#);
    assert_snapshot!(broken("k = \"50%\"", "k = 2030-01-31"), @r#"
     × `allocator.k` is { "$__toml_private_datetime" = "2030-01-31" }
       ╭─[a.toml:20:5]
    19 │ plugin = "top-k"
    20 │ k = 2030-01-31
       ·     ─────┬────
       ·          ╰── expected a value JSON has: neither a date nor inf or nan
    21 │
       ╰────
     help: change it in the recipe, or pass `--set allocator.k=VALUE`
    "#);
}

#[test]
fn bad_toml_is_shown() {
    assert_snapshot!(broken("\"runs/a\"", "runs/a"), @r"
     × a.toml is not valid TOML
      ╭─[a.toml:1:10]
    1 │ output = runs/a
      ·          ───┬──
      ·             ╰── string values must be quoted, expected literal string
    2 │
      ╰────
     help: a recipe is made of `key = value` lines under `[table]` headings; text needs quotes
    ");
    assert_snapshot!(broken("rank = 8", "rank = 8\nrank = 9"), @r"
     × a.toml is not valid TOML
       ╭─[a.toml:11:1]
    10 │ rank = 8
    11 │ rank = 9
       · ──┬─
       ·   ╰── duplicate key
    12 │
       ╰────
     help: a recipe is made of `key = value` lines under `[table]` headings; text needs quotes
    ");
}

#[test]
fn each_kind_of_adapter_has_its_own_keys() {
    let written = |text: &str| {
        let text = TEXT.replace("rank = 8", text);
        parse(&text, &[])
            .expect("a good recipe")
            .to_toml()
            .expect("it can be written")
    };
    let vera = written("kind = \"vera\"");
    for line in [
        "rank = 256",
        "d_initial = 0.1",
        "dropout = 0.0",
        "projection_prng_key = 0",
    ] {
        assert!(
            vera.lines().any(|written| written == line),
            "{line} is not in\n{vera}"
        );
    }
    assert!(!vera.contains("alpha"));
    let lora = written("kind = \"lora\"");
    assert!(
        lora.contains("alpha = 16.0") && lora.contains("rank = 8"),
        "{lora}"
    );
    assert!(!lora.contains("d_initial") && !lora.contains("projection"));
    let pefts = written("kind = \"vera\"\nr = 4\nvera_dropout = 0.1");
    assert!(
        pefts.contains("rank = 4") && pefts.contains("dropout = 0.1"),
        "{pefts}"
    );

    assert_snapshot!(broken("rank = 8", "kind = \"vera\"\nalpha = 8"), @r#"
     × `adapter.alpha` belongs to kind = "lora"
       ╭─[a.toml:11:9]
    10 │ kind = "vera"
    11 │ alpha = 8
       ·         ┬
       ·         ╰── the adapter's kind is "vera"
    12 │
       ╰────
     help: drop the key, or set `adapter.kind = "lora"`
    "#);
    assert_snapshot!(broken("rank = 8", "d_initial = 0.1"), @r#"
     × `adapter.d_initial` belongs to kind = "vera"
       ╭─[a.toml:10:13]
     9 │ [adapter]
    10 │ d_initial = 0.1
       ·             ─┬─
       ·              ╰── the adapter's kind is "lora"
    11 │
       ╰────
     help: drop the key, or set `adapter.kind = "vera"`
    "#);
    assert_snapshot!(broken("rank = 8", "kind = \"vera\"\nd_initial = 0"), @r#"
     × `adapter.d_initial` is 0.0
       ╭─[a.toml:11:13]
    10 │ kind = "vera"
    11 │ d_initial = 0
       ·             ┬
       ·             ╰── expected a number other than 0: with both vectors zero neither would have a gradient
    12 │
       ╰────
     help: change it in the recipe, or pass `--set adapter.d_initial=VALUE`
    "#);
    assert_snapshot!(broken("rank = 8", "kind = \"dora\""), @r#"
     × `adapter.kind` cannot be "dora"
       ╭─[a.toml:10:8]
     9 │ [adapter]
    10 │ kind = "dora"
       ·        ───┬──
       ·           ╰── not one of its values
    11 │
       ╰────
     help: did you mean "lora"? It can be "lora", "vera"
    "#);
    for (kind, key) in [
        ("vera", "lora_alpha = 8"),
        ("vera", "lora_dropout = 0.1"),
        ("lora", "vera_dropout = 0.1"),
        ("lora", "projection_prng_key = 1"),
    ] {
        let said = broken("rank = 8", &format!("kind = {kind:?}\n{key}"));
        assert!(said.contains("belongs to kind"), "{said}");
    }
}

#[test]
fn flags_are_named_in_errors() {
    assert_snapshot!(refused("train.step=10"), @r"
     × the recipe has no key `train.step`
      ╭─[--set:1:7]
    1 │ train.step=10
      ·       ──┬─
      ·         ╰── unknown key
      ╰────
     help: did you mean `steps`? [train] takes `epochs`, `steps`, `batch_size`, `tokens_per_batch`, `order`,
           `gradient_accumulation`, `learning_rate`, `head_learning_rate`, `loraplus_lr_ratio`,
           `loraplus_lr_embedding`, `lr_schedule`, `warmup`, `weight_decay`, `beta1`, `beta2`, `epsilon`,
           `max_grad_norm`, `on_nonfinite`, `log_every`, `log_signals`, `report_to`, `gradient_checkpointing`,
           `cache_frozen_prefix`, `cache_memory_mib`
    ");
    assert_snapshot!(refused("adapter.rank=0"), @r"
     × `adapter.rank` is 0
      ╭─[--set:1:14]
    1 │ adapter.rank=0
      ·              ┬
      ·              ╰── expected a rank from 1 to 65536
      ╰────
     help: change or drop this flag: the recipe's own `adapter.rank` then holds
    ");
    assert_snapshot!(refused("train.steps"), @r#"
     × cannot read the flag `--set train.steps`
      ╭─[--set:1:1]
    1 │ train.steps
      · ─────┬─────
      ·      ╰── there is no `=` here
      ╰────
     help: write `--set table.key=value`, such as `--set train.steps=200`; quote a value with spaces or
           brackets for the shell: `--set 'adapter.targets=["query"]'`
    "#);
    assert_snapshot!(refused("adapter.targets=[query"), @r#"
     × cannot read the flag `--set adapter.targets=[query`
      ╭─[--set:1:23]
    1 │ adapter.targets=[query
      ╰────
     help: write `--set table.key=value`, such as `--set train.steps=200`; quote a value with spaces or
           brackets for the shell: `--set 'adapter.targets=["query"]'`
    "#);
    assert_snapshot!(refused("seed.x=1"), @r"
     × `seed` is map
      ╭─[--set:1:1]
    1 │ seed.x=1
      · ────┬───
      ·     ╰── expected a whole number, 0 or more
      ╰────
     help: change or drop this flag: the recipe's own `seed` then holds
    ");
    assert_snapshot!(refused("model.revision=7"), @r#"
     × `model.revision` is integer 7
      ╭─[--set:1:16]
    1 │ model.revision=7
      ·                ┬
      ·                ╰── expected text in quotes
      ╰────
     help: text needs quotes: `model.revision = "…"`, or `--set 'model.revision="…"'`
    "#);
    assert_snapshot!(refused("a b=1"), @r#"
     × cannot read the flag `--set a b=1`
      ╭─[--set:1:1]
    1 │ a b=1
      · ─┬─
      ·  ╰── this is not a dotted path of keys
      ╰────
     help: write `--set table.key=value`, such as `--set train.steps=200`; quote a value with spaces or
           brackets for the shell: `--set 'adapter.targets=["query"]'`
    "#);
}

#[test]
fn a_file_that_cannot_be_read_is_no_recipe() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = Recipe::load(&folder.path().join("none.toml"), &[]).expect_err("there is none");
    assert_eq!(missing.exit_code(), 2);
    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, b"seed = 1\noutput = \"\xff\"").expect("written");
    let error = Recipe::load(&binary, &[])
        .expect_err("not UTF-8")
        .to_string();
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
    assert!(
        recipe.output.ends_with("2030-01-31 # b"),
        "{}",
        recipe.output.display()
    );
    assert_eq!(recipe.train.length(), Length::Steps(10));
    assert_eq!(recipe.train.epochs, None);
    assert_eq!(recipe.train.batch_limit(), BatchLimit::Tokens(4096));
    assert_eq!(recipe.adapter.rank, Some(4));
    assert_eq!(recipe.adapter.targets.0.len(), 2);
    assert_eq!(recipe.train.warmup, crate::recipe::Warmup::Share(0.1));
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
    assert_eq!(
        parse(TEXT, &[]).expect("dynamic").warnings(),
        Vec::<String>::new()
    );
}

#[test]
fn relative_paths_become_absolute() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(folder.path().join("recipes")).expect("made");
    std::fs::create_dir_all(folder.path().join("models/tiny")).expect("made");
    let path = folder.path().join("recipes/a.toml");
    let text = TEXT
        .replace("org/model", "../models/tiny")
        .replace(
            "task = \"minimal-pairs\"",
            "task = \"cola\"\ndir = \"cola\"",
        )
        .replace("\"top-k\"", "\"./mine.so\"");
    std::fs::write(&path, format!("plugin_dirs = [\"built\"]\n{text}")).expect("written");
    let recipe = Recipe::load(&path, &[]).expect("a good recipe");
    let root = folder.path().canonicalize().expect("it exists");
    assert_eq!(Path::new(&recipe.model.name), root.join("models/tiny"));
    assert_eq!(recipe.data.dir, Some(folder.path().join("recipes/cola")));
    assert_eq!(recipe.plugin_dirs, [folder.path().join("recipes/built")]);
    let allocator = recipe.allocator.as_ref().expect("an allocator");
    assert_eq!(
        Path::new(&allocator.plugin),
        folder.path().join("recipes/mine.so")
    );
    assert!(recipe.output.is_absolute());

    let elsewhere = folder.path().join("copy.toml");
    std::fs::write(&elsewhere, recipe.to_toml().expect("written out")).expect("written");
    assert_eq!(
        Recipe::load(&elsewhere, &[]).expect("it reads back"),
        recipe
    );
}

#[test]
fn later_errors_can_point_into_the_recipe() {
    let (_, document) = Recipe::parse(Path::new("a.toml"), TEXT, &[]).expect("a good recipe");
    assert_snapshot!(show(&document.error("allocator.k", "there are 12 modules", "too many")), @r#"
     × there are 12 modules
       ╭─[a.toml:20:5]
    19 │ plugin = "top-k"
    20 │ k = "50%"
       ·     ──┬──
       ·       ╰── too many
    21 │
       ╰────
    "#);
    let error = Error::user("`allocator.plugin` is not found").help("build it");
    assert_snapshot!(show(&document.adopt("allocator", error)), @r#"
     × `allocator.plugin` is not found
       ╭─[a.toml:19:10]
    18 │ [allocator]
    19 │ plugin = "top-k"
       ·          ───┬───
       ·             ╰── here
    20 │ k = "50%"
       ╰────
     help: build it
    "#);
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every recipe below `folder`.
fn configs(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of recipes") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            // Sweeps are of recipes, and looked at where they are read.
            if !path.ends_with("sweeps") {
                found.extend(configs(&path));
            }
        } else if path.extension().is_some_and(|e| e == "toml") {
            found.push(path);
        }
    }
    found
}

#[test]
fn every_config_loads() {
    let found = configs(&repository().join("configs"));
    assert!(found.len() >= 7 + 36, "{} configs", found.len());
    let mut outputs = std::collections::HashMap::new();
    for path in found {
        let recipe = Recipe::load(&path, &[]).unwrap_or_else(|error| panic!("{}", show(&error)));
        let again = parse(&recipe.to_toml().expect("written out"), &[]).expect("it reads back");
        assert_eq!(again, recipe, "{}", path.display());
        assert_eq!(
            recipe.warnings(),
            Vec::<String>::new(),
            "{}",
            path.display()
        );
        // Two recipes of one folder would overwrite each other's runs.
        if let Some(other) = outputs.insert(recipe.output.clone(), path.clone()) {
            panic!("{} and {} have one output", other.display(), path.display());
        }
    }
}

/// The commands in the experiments' pages, with every value of their loops, name recipes that are there and
/// flags that they take, and none writes where another of its page does.
#[test]
fn the_commands_of_the_experiments_load() {
    for (page, least) in [
        ("configs/paper/README.md", 100),
        ("docs/reproduction.md", 240),
        ("docs/finding.md", 100),
    ] {
        let text = std::fs::read_to_string(repository().join(page)).expect(page);
        let mut outputs = std::collections::HashMap::new();
        for command in commands(&text) {
            let words = shell_words(&command);
            let sets: Vec<String> = words[3..]
                .chunks(2)
                .map(|flag| match flag {
                    [name, value] if name == "--set" => value.clone(),
                    _ => panic!("{flag:?} in {command}"),
                })
                .collect();
            let recipe = Recipe::load(&repository().join(&words[2]), &sets)
                .unwrap_or_else(|error| panic!("{command}\n{}", show(&error)));
            assert_eq!(recipe.warnings(), Vec::<String>::new(), "{command}");
            if let Some(other) = outputs.insert(recipe.output, command.clone()) {
                panic!("one output:\n{other}\n{command}");
            }
        }
        assert!(
            outputs.len() >= least,
            "{} commands in {page}",
            outputs.len()
        );
    }
}

/// Every `dynalora train` in a text, once for each value of the `for` loops it stands in.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut around: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some((name, values)) = line.strip_prefix("for ").and_then(|l| l.split_once(" in ")) {
            let values = values
                .strip_suffix("; do")
                .expect("a loop in the shell's words");
            around.push((name, values.split(' ').collect()));
        } else if line == "done" {
            around.pop().expect("a loop that is open");
        } else if line.starts_with("dynalora train ") {
            let mut commands = vec![line.to_owned()];
            for (name, values) in &around {
                let with = |value| {
                    let command = |line: &String| line.replace(&format!("${name}"), value);
                    commands.iter().map(command).collect::<Vec<_>>()
                };
                commands = values.iter().copied().flat_map(with).collect();
            }
            found.extend(commands);
        }
    }
    found
}

/// The words of a command, some of them in single quotes.
fn shell_words(command: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for letter in command.chars() {
        match letter {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            letter => words.last_mut().expect("one").push(letter),
        }
    }
    words
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
    assert!(
        committed == schema,
        "docs/recipe.schema.json is stale: run the tests once with UPDATE_SCHEMA=1"
    );
}

#[test]
fn the_docs_name_every_key() {
    let docs =
        std::fs::read_to_string(repository().join("docs/recipe.md")).expect("docs/recipe.md");
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
        recipe.device = [Device::Cuda, Device::Vulkan, Device::Metal, Device::WebGpu][device % 4](device);
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
