use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::ValueEnum;
use dynalora_plugin_api::LedgerEntry;

use super::*;
use crate::run::{
    AllocationRecord, EvalRecord, MetricRecord, PluginNumbers, Run, Stall, StallKind, StepRecord,
    Summary,
};

const PLAIN: &str = "[allocation]\nschedule = { kind = \"never\" }\n";
const TOP_K: &str = "[allocation]\nschedule = { kind = \"periodic\", every = 10 }\n\
    [scorer]\nplugin = \"activation\"\n[allocator]\nplugin = \"top-k\"\nk = 2\n";
const UNIFORM: &str = "[allocation]\nschedule = { kind = \"periodic\", every = 10 }\n\
    [scorer]\nplugin = \"activation\"\n[allocator]\nplugin = \"uniform\"\nk = 2\n";
const MODULES: [&str; 4] = [
    "encoder.layer.0.attention.self.query",
    "encoder.layer.0.attention.self.value",
    "encoder.layer.1.attention.self.query",
    "encoder.layer.1.attention.self.value",
];

/// Writes a run as training does: forty steps, evaluated at steps 20 and 40 with accuracies `values`, its
/// modules chosen anew after step 10.
fn write(dir: &Path, seed: u64, tables: &str, values: [f64; 2], finished: bool) -> PathBuf {
    let recipe = format!(
        "seed = {seed}\noutput = \"{}\"\n[model]\nname = \"org/model\"\n[data]\ntask = \"minimal-pairs\"\n\
         metrics = [\"accuracy\"]\n{tables}",
        dir.display()
    );
    let mut writer = Run::create(dir, &recipe).unwrap();
    let names = MODULES.map(str::to_owned).to_vec();
    let dynamic = !tables.ends_with(PLAIN);
    let first = [true, !dynamic, true, true];
    writer
        .allocation(&AllocationRecord::initial(
            names,
            &first,
            &first.map(|active| if active { 8 } else { 0 }),
        ))
        .unwrap();
    if dynamic {
        let active = vec![false, false, true, true];
        writer
            .allocation(&AllocationRecord {
                step: 10,
                index: Some(0),
                scores: vec![0.1, 0.4, 0.3, 0.2],
                ranks: active
                    .iter()
                    .map(|active| if *active { 8 } else { 0 })
                    .collect(),
                active,
                ledger: vec![LedgerEntry::default(); 4],
                numbers: PluginNumbers {
                    scorer: BTreeMap::from([
                        ("temperature".to_owned(), vec![0.25]),
                        ("each".to_owned(), vec![1.0; 4]),
                    ]),
                    ..Default::default()
                },
                ..Default::default()
            })
            .unwrap();
    }
    let evaluations = if finished { &values[..] } else { &values[..1] };
    for (number, value) in evaluations.iter().enumerate() {
        let step = 20 * (number as u64 + 1);
        let seconds = step as f64 * if dynamic { 0.1 } else { 0.2 } + (number + 1) as f64;
        writer
            .metric(&MetricRecord::Step(StepRecord {
                step,
                seconds: seconds - 1.0,
                peak_memory: Some(200 << 20),
                flops: step * 1_000_000,
                ..Default::default()
            }))
            .unwrap();
        for split in ["validation", "validation_mismatched"] {
            let value = if split == "validation" { *value } else { 0.0 };
            writer
                .metric(&MetricRecord::Evaluation(EvalRecord {
                    step,
                    split: split.to_owned(),
                    metrics: BTreeMap::from([("accuracy".to_owned(), value)]),
                    seconds: 0.5,
                    ..Default::default()
                }))
                .unwrap();
        }
    }
    if finished {
        writer
            .summary(&Summary {
                steps: 40,
                modules: 4,
                adapter_parameters: 24_576,
                active_parameters_mean: if dynamic { 15_360.0 } else { 24_576.0 },
                peak_memory: Some(200 << 20),
                seconds: if dynamic { 6.0 } else { 10.0 },
                flops: 40_000_000,
                ..Default::default()
            })
            .unwrap();
    }
    dir.to_owned()
}

/// Three seeds of plain LoRA, of top-k and of uniform, the last of them unfinished.
fn runs(folder: &Path) -> Vec<PathBuf> {
    let mut runs = Vec::new();
    for (seed, [lora, top_k, uniform]) in [
        (1, [[0.70, 0.80], [0.71, 0.79], [0.60, 0.65]]),
        (2, [[0.74, 0.82], [0.80, 0.78], [0.66, 0.61]]),
        (3, [[0.72, 0.84], [0.70, 0.83], [0.63, 0.70]]),
    ] {
        for (arm, tables, values) in [
            ("lora", PLAIN, lora),
            ("top-k", TOP_K, top_k),
            ("uniform", UNIFORM, uniform),
        ] {
            let dir = folder.join(format!("{arm}-seed{seed}"));
            runs.push(write(
                &dir,
                seed,
                tables,
                values,
                (arm, seed) != ("uniform", 3),
            ));
        }
    }
    runs
}

fn columns() -> Vec<Figure> {
    Figure::value_variants().to_vec()
}

fn message(report: Result<Report>) -> String {
    report.map_or_else(|error| error.to_string(), |_| "no error".to_owned())
}

#[test]
fn the_tables_say_what_the_runs_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let runs = runs(folder.path());
    let report = Report::new(&runs, &Options::default()).unwrap();
    let tables = tables(&report, &columns());
    insta::assert_snapshot!(markdown(&tables[..2]), @r"
    Mean ± standard deviation over seeds:

    | arm               | seeds               | best accuracy   | final accuracy  | trainable parameters | trainable, % of all | modules touched, % | lowest active layer | step, s         | run, s | peak memory, MiB | training, FLOP |
    |-------------------|---------------------|-----------------|-----------------|----------------------|---------------------|--------------------|---------------------|-----------------|--------|------------------|----------------|
    | LoRA              | 3                   | 0.8200 ± 0.0200 | 0.8200 ± 0.0200 | 24.6 k               | 100.0               | 100.0              | 0.00                | 0.2000 ± 0.0000 | 10.0   | 200              | 4.000e7        |
    | allocator=top-k   | 3                   | 0.8067 ± 0.0208 | 0.8000 ± 0.0265 | 15.4 k               | 62.5                | 75.0               | 0.75                | 0.1000 ± 0.0000 | 6.0    | 200              | 4.000e7        |
    | allocator=uniform | 2, and 1 unfinished | 0.6550 ± 0.0071 | 0.6300 ± 0.0283 | 15.4 k               | 62.5                | 75.0               | 0.75                | 0.1000 ± 0.0000 | 6.0    | 200              | 4.000e7        |

    Difference from LoRA, seed by seed, with the paired t interval:

    | arm               | seeds | best accuracy    | 95 % interval            | final accuracy   | 95 % interval            | step time |
    |-------------------|-------|------------------|--------------------------|------------------|--------------------------|-----------|
    | allocator=top-k   | 3     | -0.0133 ± 0.0058 | -0.0277 to +0.0010 (few) | -0.0200 ± 0.0173 | -0.0630 to +0.0230 (few) | × 0.50    |
    | allocator=uniform | 2     | -0.1550 ± 0.0071 | -0.2185 to -0.0915 (few) | -0.1800 ± 0.0424 | -0.5612 to +0.2012 (few) | × 0.50    |

    (few): an interval of too few seeds to be trusted. It takes 10 where an arm draws modules by chance, 5 where none does.
    ");
    let unfinished = runs[8].display().to_string();
    assert_eq!(
        tables[2].rows,
        [[unfinished.as_str(), "3", "20", "0.6300", "0.6300"]]
    );
    // Best of 0.79, 0.80 and 0.83 against 0.80, 0.82 and 0.84: differences −0.01, −0.02, −0.01.
    let top_k = &report.arms[1];
    let metric = top_k.against_baseline.as_ref().unwrap().metric.unwrap();
    assert!((metric.difference.mean + 0.04 / 3.0).abs() < 1e-12);
}

#[test]
fn runs_of_one_evaluation_are_compared_in_one_column() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = arm(folder.path(), "lora", PLAIN, 2, 0.8);
    runs.extend(arm(folder.path(), "uniform", UNIFORM, 2, 0.7));
    let comparison = || {
        let report = Report::new(&runs, &Options::default()).unwrap();
        tables(&report, &[]).swap_remove(1)
    };
    let once = |run: &Path| {
        let path = run.join("metrics.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        let first = |line: &&str| line.contains("evaluation") && line.contains("\"step\":20,");
        let lines = text.lines().filter(|line| !first(line));
        fs::write(
            path,
            lines.map(|line| line.to_owned() + "\n").collect::<String>(),
        )
        .unwrap();
    };
    // One that was evaluated twice keeps the two apart.
    runs[1..].iter().for_each(|run| once(run));
    assert_eq!(comparison().header.len(), 7);
    once(&runs[0]);
    insta::assert_snapshot!(markdown(&[comparison()]), @r"
    Difference from LoRA, seed by seed, with the paired t interval:

    | arm                   | seeds | accuracy         | 95 % interval            | step time |
    |-----------------------|-------|------------------|--------------------------|-----------|
    | allocator=uniform k=2 | 2     | -0.1000 ± 0.0000 | -0.1000 to -0.1000 (few) | × 0.56    |

    (few): an interval of too few seeds to be trusted. It takes 10 where an arm draws modules by chance, 5 where none does.
    ");
}

#[test]
fn the_best_perplexity_is_the_smallest() {
    let folder = tempfile::tempdir().unwrap();
    let run = write(&folder.path().join("run"), 0, PLAIN, [4.0, 5.0], true);
    for file in ["recipe.toml", "metrics.jsonl"] {
        let path = run.join(file);
        let text = fs::read_to_string(&path).unwrap();
        let task = "task = \"minimal-pairs\"\nmetrics = [\"accuracy\"]";
        let causal = "problem = \"causal-lm\"\ntrain = \"a.txt\"\nvalidation = \"b.txt\"";
        let text = text.replace(task, causal).replace("accuracy", "perplexity");
        fs::write(path, text).unwrap();
    }
    let reading = Reading::open(&run, None).unwrap();
    assert_eq!(reading.metric, "perplexity");
    assert_eq!(reading.figures[&Figure::Metric], 4.0);
    assert_eq!(reading.figures[&Figure::Final], 5.0);
}

#[test]
fn arms_are_named_by_what_a_reader_looks_for() {
    let folder = tempfile::tempdir().unwrap();
    let runs = runs(folder.path());
    let names = |runs: &[PathBuf], names: Naming| -> Vec<String> {
        let options = Options {
            names,
            ..Default::default()
        };
        let report = Report::new(runs, &options).unwrap();
        report.arms.into_iter().map(|arm| arm.name).collect()
    };
    assert_eq!(
        names(&runs, Naming::Recipe),
        ["LoRA", "allocator=top-k", "allocator=uniform"]
    );
    assert_eq!(names(&runs, Naming::Folder), ["lora", "top-k", "uniform"]);
    // Beside plain LoRA alone, an arm has nothing to differ in: its allocator is what a reader looks for.
    assert_eq!(
        names(&runs[..2], Naming::Recipe),
        ["LoRA", "allocator=top-k k=2"]
    );
    // One arm differs from nothing.
    assert_eq!(names(&runs[..1], Naming::Recipe), ["lora"]);
    let half = TOP_K.replace("k = 2", "k = \"50%\"");
    let other = write(&folder.path().join("half/1"), 1, &half, [0.5; 2], true);
    let again = write(&folder.path().join("half/2"), 2, &half, [0.6; 2], true);
    let all = [runs[1].clone(), runs[2].clone(), other, again];
    assert_eq!(
        names(&all, Naming::Recipe),
        [
            "allocator=top-k k=2",
            "allocator=uniform k=2",
            "allocator=top-k k=50%"
        ]
    );
    assert_eq!(names(&all, Naming::Folder), ["top-k", "uniform", "half"]);
    // A rank on one side only is a difference of plain LoRA too.
    let wide = format!("[adapter]\nrank = 16\n{PLAIN}");
    let wide = write(&folder.path().join("wide"), 1, &wide, [0.5; 2], true);
    assert_eq!(
        names(&[runs[0].clone(), wide], Naming::Recipe),
        ["LoRA rank=8", "LoRA rank=16"]
    );
}

#[test]
fn vera_is_not_taken_for_lora() {
    let folder = tempfile::tempdir().unwrap();
    let lora = write(&folder.path().join("lora"), 1, PLAIN, [0.7; 2], true);
    let vera = format!("[adapter]\nkind = \"vera\"\nrank = 8\n{PLAIN}");
    let vera = write(&folder.path().join("vera"), 1, &vera, [0.6; 2], true);
    let report = Report::new(&[vera, lora], &Options::default()).unwrap();
    let names: Vec<&str> = report.arms.iter().map(|arm| arm.name.as_str()).collect();
    assert_eq!(names, ["VeRA adapter=vera", "LoRA adapter=lora"]);
    assert_eq!(report.baseline.as_deref(), Some("LoRA adapter=lora"));
}

#[test]
fn unfinished_runs_count_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let runs = runs(folder.path());
    let report = Report::new(&runs, &Options::default()).unwrap();
    assert_eq!(report.arms[2].figures[&Figure::Final].count, 2);
    assert_eq!(report.unfinished().count(), 1);
    let options = Options {
        unfinished: true,
        ..Default::default()
    };
    let counted = Report::new(&runs, &options).unwrap();
    let uniform = &counted.arms[2];
    assert_eq!(uniform.figures[&Figure::Final].count, 3);
    // What only the closing account tells, it has of two.
    assert_eq!(uniform.figures[&Figure::TrainableShare].count, 2);
    assert_eq!(uniform.against_baseline.as_ref().unwrap().seeds, [1, 2, 3]);
}

#[test]
fn a_baseline_is_found_by_name_or_part() {
    let folder = tempfile::tempdir().unwrap();
    let runs = runs(folder.path());
    let with = |baseline: &str| {
        let options = Options {
            baseline: Some(baseline.to_owned()),
            ..Default::default()
        };
        Report::new(&runs, &options)
    };
    assert_eq!(with("top").unwrap().baseline.unwrap(), "allocator=top-k");
    let found = message(with("allocator"));
    assert_eq!(found, "--baseline \"allocator\" fits several arms");
    assert_eq!(message(with("vera")), "--baseline \"vera\" is no arm");
    // Without plain LoRA nothing is compared unless it is said with what.
    let others = [runs[1].clone(), runs[2].clone()];
    assert_eq!(
        Report::new(&others, &Options::default()).unwrap().baseline,
        None
    );
}

#[test]
fn mistakes_are_named_with_folder_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let runs = runs(folder.path());
    let report = |runs: &[PathBuf]| message(Report::new(runs, &Options::default()));
    let nowhere = report(&[folder.path().join("nowhere")]);
    assert!(nowhere.ends_with("no such folder"), "{nowhere}");
    let twice = report(&[runs[0].clone(), runs[0].clone()]);
    assert!(
        twice.ends_with("same recipe with the same seed, 1"),
        "{twice}"
    );

    let metric = Options {
        metric: Some("matthews".to_owned()),
        ..Default::default()
    };
    let found = message(Report::new(&runs[..1], &metric));
    assert!(
        found.ends_with("has no metric `matthews` at step 20"),
        "{found}"
    );

    let recipe = runs[3].join("recipe.toml");
    let text = fs::read_to_string(&recipe).unwrap();
    let other = text
        .replace("minimal-pairs", "cola")
        .replace("metrics", "dir = \"x\"\nmetrics");
    fs::write(&recipe, other).unwrap();
    let found = report(&runs);
    assert!(
        found.starts_with("runs of different tasks cannot be compared")
            && found.contains("accuracy on minimal-pairs")
            && found.ends_with("accuracy on cola"),
        "{found}"
    );
    fs::write(&recipe, text).unwrap();

    let metrics = runs[1].join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    fs::write(
        &metrics,
        text.replacen("\"kind\":\"evaluation\"", "\"kind\":", 1),
    )
    .unwrap();
    let found = report(&runs);
    assert!(
        found.ends_with("top-k-seed1/metrics.jsonl, line 2: not a record"),
        "{found}"
    );
    fs::write(&metrics, text).unwrap();

    let allocations = runs[1].join("allocations.jsonl");
    let text = fs::read_to_string(&allocations).unwrap();
    fs::write(
        &allocations,
        text.replace("[false,false,true,true]", "[true]"),
    )
    .unwrap();
    let found = report(&runs);
    assert!(
        found.contains("the record of step 10 is of 1 modules"),
        "{found}"
    );
}

#[test]
fn the_page_stands_alone_and_escapes_what_it_shows() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = runs(folder.path());
    let strange = TOP_K.replace("top-k", "a<b|c");
    runs.push(write(
        &folder.path().join("strange"),
        1,
        &strange,
        [0.5; 2],
        true,
    ));
    let report = Report::new(&runs, &Options::default()).unwrap();
    let plots = plots(&Look::default(), &report, Figure::Flops, Figure::Metric).unwrap();
    let names: Vec<&str> = plots.iter().map(|plot| plot.name.as_str()).collect();
    // Of the plugins' own numbers those are drawn of which there is one at a time.
    let first = ["metric", "scatter", "number-01"];
    assert_eq!(names[..3], first);
    assert!(plots[2].title.starts_with("scorer.temperature"));
    // Of each dynamic arm what was chosen and by which scores, of those with several seeds all masks too; of LoRA
    // there is nothing to draw.
    assert_eq!(
        names[3..],
        [
            "selection-allocator=top-k-3-seeds",
            "masks-allocator=top-k-3-seeds",
            "scores-allocator=top-k-3-seeds",
            "selection-allocator=uniform-3-seeds",
            "masks-allocator=uniform-3-seeds",
            "scores-allocator=uniform-3-seeds",
            "selection-allocator=a-b-c-seed-1",
            "scores-allocator=a-b-c-seed-1",
        ]
    );
    // Four modules: none active in all seeds is of one shade, active of another; half the modules change it.
    let selection = &plots[3].svg;
    for shade in ["#EBEBEB", "#002546"] {
        assert!(selection.contains(shade), "{shade}");
    }
    assert!(selection.contains("0 attention.self.query"));
    let json = serde_json::to_value(&report).unwrap();
    let numbers = json["arms"].as_array().unwrap().iter();
    let numbers = numbers.map(|arm| &arm["runs"][0]["numbers"]);
    let mut numbers = numbers.filter(|numbers| !numbers.is_null());
    let each = &numbers.next().expect("a dynamic arm")["scorer.each"];
    assert_eq!(*each, serde_json::json!([[10, [1.0, 1.0, 1.0, 1.0]]]));
    // The metric's plot: a band for the arms with several seeds, a line for each arm and the unfinished run,
    // and a line for each arm in the legend.
    let count = |part: &str| plots[0].svg.matches(part).count();
    assert_eq!(count("<polygon"), 3);
    assert!(plots[0].svg.contains("optimiser step") && plots[0].svg.contains("accuracy"));
    // Each arm has its name at its points and in the legend.
    assert_eq!(plots[1].svg.matches("LoRA\n").count(), 2);
    let tables = tables(&report, &columns());
    assert!(markdown(&tables).contains("a<b\\|c"));
    let page = page(&report, &tables, &plots);
    assert!(page.contains("a&lt;b|c") && !page.contains("a<b"));
    for outside in ["<script", "href=", "src=", "url(", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

/// Writes into a run's closing account that it ended with the loss of a constant answer.
fn collapse(dir: &Path) {
    let path = dir.join("summary.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut summary: Summary = serde_json::from_str(&text).unwrap();
    summary.stalls = Some(vec![Stall {
        kind: StallKind::FellBack,
        from: 13,
        to: 40,
        loss: 0.69,
        constant_loss: 0.68,
    }]);
    fs::write(&path, serde_json::to_string(&summary).unwrap()).unwrap();
}

/// As many seeds of an arm, their metric `value` and a thousandth a seed more.
fn arm(folder: &Path, name: &str, tables: &str, seeds: u64, value: f64) -> Vec<PathBuf> {
    let run = |seed| {
        let value = value + seed as f64 / 1000.0;
        let dir = folder.join(format!("{name}-seed{seed}"));
        write(&dir, seed, tables, [value; 2], true)
    };
    (1..=seeds).map(run).collect()
}

#[test]
fn collapsed_runs_are_marked_and_the_mean_is_said_with_and_without() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = arm(folder.path(), "lora", PLAIN, 4, 0.8);
    runs.extend(arm(folder.path(), "uniform", UNIFORM, 3, 0.7));
    let fallen = write(
        &folder.path().join("uniform-seed4"),
        4,
        UNIFORM,
        [0.6, 0.1],
        true,
    );
    collapse(&fallen);
    runs.push(fallen.clone());
    let options = Options {
        names: Naming::Folder,
        ..Default::default()
    };
    let report = Report::new(&runs, &options).unwrap();
    let tables = tables(&report, &[Figure::Final, Figure::Flops]);
    insta::assert_snapshot!(markdown(&tables[..2]), @r"
    Mean ± standard deviation over seeds:

    | arm     | seeds                  | final accuracy                                         | training, FLOP |
    |---------|------------------------|--------------------------------------------------------|----------------|
    | lora    | 4                      | 0.8025 ± 0.0013                                        | 4.000e7        |
    | uniform | 4, 1 of them collapsed | 0.5515 ± 0.3010; without the collapsed 0.7020 ± 0.0010 | 4.000e7        |

    Difference from lora, seed by seed, with the paired t interval:

    | arm                             | seeds | best accuracy    | 95 % interval            | final accuracy   | 95 % interval            | step time |
    |---------------------------------|-------|------------------|--------------------------|------------------|--------------------------|-----------|
    | uniform                         | 4     | -0.1260 ± 0.0520 | -0.2087 to -0.0433 (few) | -0.2510 ± 0.3020 | -0.7315 to +0.2295 (few) | × 0.50    |
    | uniform, without collapsed runs | 3     | -0.1000 ± 0.0000 | -0.1000 to -0.1000 (few) | -0.1000 ± 0.0000 | -0.1000 to -0.1000 (few) | –         |

    (few): an interval of too few seeds to be trusted. It takes 10 where an arm draws modules by chance, 5 where none does.
    ");
    assert_eq!(
        tables[2].rows,
        [[
            fallen.display().to_string().as_str(),
            "uniform",
            "4",
            "0.1000",
            "0.6900",
            "0.6800",
            "fell back to it, steps 13 to 40"
        ]]
    );
    let json = serde_json::to_value(&report).unwrap();
    let [lora, uniform] = [&json["arms"][0], &json["arms"][1]];
    assert_eq!(lora["collapsed"], serde_json::json!([]));
    assert_eq!(uniform["collapsed"], serde_json::json!([4]));
    assert_eq!(uniform["figures"]["final"]["count"], 4);
    assert_eq!(uniform["without_collapsed"]["final"]["count"], 3);
    let without = &uniform["against_baseline"]["without_collapsed"];
    assert_eq!(without["seeds"], serde_json::json!([1, 2, 3]));
    let page = page(
        &report,
        &tables,
        &plots(&Look::default(), &report, Figure::Flops, Figure::Metric).unwrap(),
    );
    assert_eq!(page.matches("<td>collapsed</td>").count(), 1);
}

#[test]
fn runs_that_did_otherwise_than_their_recipes_say_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = arm(folder.path(), "lora", PLAIN, 2, 0.8);
    runs.extend(arm(folder.path(), "uniform", UNIFORM, 2, 0.7));
    // One has lost its plugins, one left an update out.
    let record = AllocationRecord {
        step: 30,
        active: vec![true; 4],
        ranks: vec![8; 4],
        fault: Some("the allocator `uniform` has ended".to_owned()),
        ..Default::default()
    };
    let log = runs[3].join("allocations.jsonl");
    let text = fs::read_to_string(&log).unwrap() + &serde_json::to_string(&record).unwrap() + "\n";
    fs::write(log, text).unwrap();
    let path = runs[0].join("summary.json");
    let mut summary: Summary = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    summary.skipped = 1;
    fs::write(&path, serde_json::to_string(&summary).unwrap()).unwrap();

    let report = Report::new(&runs, &Options::default()).unwrap();
    let tables = tables(&report, &[Figure::Final]);
    let seeds: Vec<&str> = tables[0].rows.iter().map(|row| row[1].as_str()).collect();
    assert_eq!(seeds, ["2, 1 of them not by the recipe"; 2]);
    let last: Vec<&[String]> = tables[2].rows.iter().map(|row| &row[2..]).collect();
    assert_eq!(
        last,
        [
            ["1", "0.8010", "1 update was left out, which was not finite"],
            [
                "2",
                "0.7020",
                "no plugin was asked any more after step 30: the allocator `uniform` has ended"
            ],
        ]
    );
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["arms"][1]["runs"][1]["given_up"]["step"], 30);
    assert_eq!(json["arms"][0]["runs"][0]["skipped"], 1);
    // Nothing is said of those of which nothing is to be said.
    assert_eq!(
        Report::new(&runs[1..3], &Options::default())
            .unwrap()
            .disturbed()
            .count(),
        0
    );
}

#[test]
fn a_collapse_of_the_baseline_takes_its_seed_out_of_the_comparison_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = arm(folder.path(), "lora", PLAIN, 3, 0.8);
    runs.extend(arm(folder.path(), "uniform", UNIFORM, 3, 0.7));
    collapse(&runs[1]);
    let report = Report::new(&runs, &Options::default()).unwrap();
    let against = report.arms[1].against_baseline.as_ref().unwrap();
    assert_eq!(against.without_collapsed.as_ref().unwrap().seeds, [1, 3]);
    assert_eq!(
        (
            report.arms[0].collapsed.as_slice(),
            &report.arms[1].collapsed
        ),
        (&[2][..], &vec![])
    );
    // One that ended after it had left the level again is none.
    let path = runs[1].join("summary.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"to\":40", "\"to\":30")).unwrap();
    let report = Report::new(&runs, &Options::default()).unwrap();
    assert_eq!(report.collapsed().count(), 0);
}

#[test]
fn intervals_of_too_few_seeds_are_marked() {
    let folder = tempfile::tempdir().unwrap();
    let drawn =
        "[allocation]\nschedule = { kind = \"never\" }\ninitial = \"random\"\ninitial_k = 2\n";
    let foreign = TOP_K.replace("top-k", "mine");
    let mut runs = arm(folder.path(), "lora", PLAIN, 10, 0.8);
    for (name, tables, seeds) in [
        ("top4", TOP_K, 4),
        ("top5", &TOP_K.replace("k = 2", "k = 3"), 5),
        ("uniform9", UNIFORM, 9),
        ("uniform10", &UNIFORM.replace("k = 2", "k = 3"), 10),
        ("drawn9", drawn, 9),
        ("mine9", &foreign, 9),
    ] {
        runs.extend(arm(folder.path(), name, tables, seeds, 0.7));
    }
    let options = Options {
        names: Naming::Folder,
        ..Default::default()
    };
    let report = Report::new(&runs, &options).unwrap();
    let few: Vec<(&str, usize, bool)> = (report.arms.iter())
        .filter_map(|arm| {
            let against = arm.against_baseline.as_ref()?;
            Some((
                arm.name.as_str(),
                against.seeds_needed,
                against.too_few_seeds,
            ))
        })
        .collect();
    assert_eq!(
        few,
        [
            ("top4", 5, true),
            ("top5", 5, false),
            ("uniform9", 10, true),
            ("uniform10", 10, false),
            ("drawn9", 10, true),
            ("mine9", 10, true)
        ]
    );
    let comparison = &tables(&report, &[])[1];
    let marked = comparison.rows.iter().map(|row| row[3].ends_with(" (few)"));
    assert!(marked.eq(few.iter().map(|(_, _, few)| *few)));
    assert!(
        comparison
            .note
            .as_ref()
            .unwrap()
            .contains("takes 10 where an arm draws")
    );
    assert!(markdown(&tables(&report, &[])).contains("too few seeds to be trusted"));
}

#[test]
fn a_run_from_before_the_key_had_a_head_that_started_at_zero() {
    let folder = tempfile::tempdir().unwrap();
    let runs = arm(folder.path(), "lora", PLAIN, 2, 0.8);
    let recipe = runs[0].join("recipe.toml");
    let text = fs::read_to_string(&recipe).unwrap();
    fs::write(
        &recipe,
        text.replace("[model]\n", "[model]\nhead_bias = \"labels\"\n"),
    )
    .unwrap();
    let report = Report::new(&runs, &Options::default()).unwrap();
    let names: Vec<&str> = report.arms.iter().map(|arm| arm.name.as_str()).collect();
    assert_eq!(names, ["LoRA head_bias=labels", "LoRA head_bias=zero"]);
}

#[test]
fn tables_are_written_for_latex_and_runs_as_csv() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = arm(folder.path(), "lora", PLAIN, 2, 0.8);
    runs.extend(arm(folder.path(), "half_50%", UNIFORM, 2, 0.7));
    let options = Options {
        names: Naming::Folder,
        ..Default::default()
    };
    let report = Report::new(&runs, &options).unwrap();
    insta::assert_snapshot!(latex(&tables(&report, &[Figure::Final])), @r"
    % Mean ± standard deviation over seeds
    \begin{tabular}{lrr}
    \toprule
    arm & seeds & final accuracy \\
    \midrule
    lora & 2 & 0.8015 $\pm$ 0.0007 \\
    half\_50\% & 2 & 0.7015 $\pm$ 0.0007 \\
    \bottomrule
    \end{tabular}

    % Difference from lora, seed by seed, with the paired t interval
    \begin{tabular}{lrrrrrr}
    \toprule
    arm & seeds & best accuracy & 95 \% interval & final accuracy & 95 \% interval & step time \\
    \midrule
    half\_50\% & 2 & $-$0.1000 $\pm$ 0.0000 & $-$0.1000 to $-$0.1000 (few) & $-$0.1000 $\pm$ 0.0000 & $-$0.1000 to $-$0.1000 (few) & $\times$ 0.50 \\
    \bottomrule
    \end{tabular}
    % (few): an interval of too few seeds to be trusted. It takes 10 where an arm draws modules by chance, 5 where none does.
    ");
    let csv = csv(&report).unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 5);
    assert!(
        lines[0].starts_with("arm,seed,run,finished,collapsed,metric,final,"),
        "{csv}"
    );
    assert!(
        lines[1].starts_with("lora,1,") && lines[1].contains(",true,false,0.801,0.801,"),
        "{csv}"
    );
    assert!(lines[4].starts_with("half_50%,2,"), "{csv}");
}

#[test]
fn a_key_that_arms_differ_in_is_an_axis() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = arm(folder.path(), "lora", PLAIN, 2, 0.8);
    for (every, value) in [(10, 0.5), (3, 0.4), (300, 0.6)] {
        for (plugin, less) in [("uniform", 0.0), ("top-k", 0.1)] {
            let tables = UNIFORM
                .replace("every = 10", &format!("every = {every}"))
                .replace("\"uniform\"", &format!("{plugin:?}"));
            runs.extend(arm(
                folder.path(),
                &format!("{plugin}-{every}"),
                &tables,
                2,
                value - less,
            ));
        }
    }
    let report = Report::new(&runs, &Options::default()).unwrap();
    let key = "allocation.schedule.every";
    let plot = swept(&Look::default(), &report, key, Figure::Final).unwrap();
    assert_eq!(plot.name, "swept-allocation.schedule.every");
    // A line for each allocator with three points, and a level for LoRA.
    for name in ["allocator=uniform\n", "allocator=top-k\n", "LoRA\n"] {
        assert_eq!(plot.svg.matches(name).count(), 1, "{name}");
    }
    assert_eq!(plot.svg.matches("<circle").count(), 6);
    let refused = |key: &str| {
        let error = swept(&Look::default(), &report, key, Figure::Final).unwrap_err();
        let help = miette::Diagnostic::help(&error).map(|help| help.to_string());
        format!("{error} {}", help.unwrap_or_default())
    };
    assert!(
        refused("allocation.schedule.evry").contains("did you mean `allocation.schedule.every`")
    );
    assert!(refused("allocator.plugin").contains("which is no number"));
}

#[test]
fn names_that_are_known_are_the_arms() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = arm(folder.path(), "x", PLAIN, 2, 0.8);
    runs.extend(arm(folder.path(), "y", UNIFORM, 2, 0.7));
    let named = |names: [&str; 4]| Options {
        arms: Some(runs.iter().cloned().zip(names.map(str::to_owned)).collect()),
        baseline: Some("plain".to_owned()),
        ..Default::default()
    };
    let report = Report::new(&runs, &named(["plain", "plain", "drawn", "drawn"])).unwrap();
    let names: Vec<&str> = report.arms.iter().map(|arm| arm.name.as_str()).collect();
    assert_eq!(names, ["plain", "drawn"]);
    // Runs of one name that are two arms.
    let refused = message(Report::new(&runs, &named(["plain"; 4])));
    assert!(
        refused.contains("the runs of `plain` are not one arm")
            && refused.contains("allocator.plugin"),
        "{refused}"
    );
}
