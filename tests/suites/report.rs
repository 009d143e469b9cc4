//! `dynalora report` over real runs of the built program.

use dynalora_tests::Scene;
use serde_json::Value;

/// Two seeds of plain LoRA, of top-k and of uniform.
fn runs(scene: &Scene) -> Vec<String> {
    let mut runs = Vec::new();
    for seed in ["seed=1", "seed=2"] {
        for (arm, set) in [
            ("lora", "allocation.schedule={ kind = \"never\" }"),
            ("top-k", "allocator.plugin=top-k"),
            ("uniform", "allocator.plugin=uniform"),
        ] {
            let name = format!("{arm}-{}", seed.replace('=', ""));
            scene.train(&name, &[set, seed, "evaluation.every=4"]);
            runs.push(name);
        }
    }
    runs
}

fn report(scene: &Scene, runs: &[String], more: &[&str]) -> String {
    let mut arguments = vec!["report"];
    arguments.extend(runs.iter().map(String::as_str));
    arguments.extend(more);
    scene.ok(&arguments)
}

fn refused(scene: &Scene, arguments: &[&str]) -> String {
    let output = scene.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    // As a terminal would wrap it.
    said.split_whitespace()
        .filter(|word| *word != "│")
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn runs_are_averaged_over_seeds_and_compared() {
    let scene = Scene::new();
    let runs = runs(&scene);
    // What is the same on every machine.
    let columns = "--columns=trainable_parameters,trainable_share,unique_share,flops";
    let table = report(&scene, &runs, &[columns, "--names", "folder"]);
    let table = table.split("\n\n").nth(1).expect("a table");
    insta::assert_snapshot!(table, @r"
    | arm     | seeds | trainable parameters | trainable, % of all | modules touched, % | training, FLOP |
    |---------|-------|----------------------|---------------------|--------------------|----------------|
    | lora    | 2     | 3328                 | 100.0               | 100.0              | 2.877e8        |
    | top-k   | 2     | 2389                 | 71.8                | 100.0              | 3.002e8        |
    | uniform | 2     | 2304                 | 69.2                | 100.0              | 2.986e8        |
    ");

    let json: Value = serde_json::from_str(&report(&scene, &runs, &["--json"])).expect("JSON");
    assert_eq!(json["baseline"], "LoRA");
    let arms = json["arms"].as_array().expect("arms");
    let names: Vec<&str> = arms.iter().filter_map(|arm| arm["name"].as_str()).collect();
    assert_eq!(names, ["LoRA", "allocator=top-k", "allocator=uniform"]);
    // By hand from the runs' own files.
    let best = |run: &str| {
        let records = scene.records(run, "metrics.jsonl");
        let values = records
            .iter()
            .filter_map(|record| record["metrics"]["accuracy"].as_f64());
        values.fold(0.0, f64::max)
    };
    for (arm, name) in arms.iter().zip(["lora", "top-k", "uniform"]) {
        let [one, two] = ["seed1", "seed2"].map(|seed| best(&format!("{name}-{seed}")));
        let metric = &arm["figures"]["metric"];
        assert_eq!(metric["mean"].as_f64(), Some((one + two) / 2.0), "{name}");
        let sd = metric["sd"].as_f64().expect("two seeds");
        assert!(
            (sd - (one - two).abs() / 2f64.sqrt()).abs() < 1e-12,
            "{name}"
        );
        if name == "lora" {
            assert_eq!(arm["against_baseline"], Value::Null);
            continue;
        }
        let differences =
            [(one, "lora-seed1"), (two, "lora-seed2")].map(|(own, base)| own - best(base));
        let found = arm["against_baseline"]["metric"]["difference"]["mean"].as_f64();
        let mean = (differences[0] + differences[1]) / 2.0;
        assert!((found.expect("a mean") - mean).abs() < 1e-12, "{name}");
        let flops = arm["figures"]["flops"]["mean"].as_f64().expect("counted");
        let plain = arms[0]["figures"]["flops"]["mean"]
            .as_f64()
            .expect("counted");
        assert!(flops != plain);
    }
}

#[test]
fn the_page_and_the_plots_are_written() {
    let scene = Scene::new();
    let runs = runs(&scene);
    let more = [
        "--output",
        "report.html",
        "--svg",
        "plots",
        "--x",
        "flops",
        "--y",
        "final",
    ];
    report(&scene, &runs, &more);
    let page = std::fs::read_to_string(scene.path("report.html")).expect("a page");
    // Of the two dynamic arms the choices, the masks and the scores.
    assert_eq!(page.matches("<svg").count(), 2 + 2 * 3);
    let of = "allocator=uniform-2-seeds";
    for name in [
        "metric",
        "scatter",
        &format!("selection-{of}"),
        &format!("masks-{of}"),
        &format!("scores-{of}"),
    ] {
        let svg = std::fs::read_to_string(scene.path(&format!("plots/{name}.svg"))).expect(name);
        assert!(svg.starts_with("<svg") && page.contains(&svg), "{name}");
    }
    assert!(page.contains("training, FLOP") && page.contains("final accuracy"));
    // Each of the eleven modules is named.
    assert!(page.contains("1 attention.self.query") && page.contains("pooler.dense"));
    let table = report(&scene, &runs, &["--format", "latex"]);
    assert!(
        table.contains("\\toprule") && table.contains("allocator=uniform &"),
        "{table}"
    );
    let lines = report(&scene, &runs, &["--format", "csv"]);
    assert_eq!(lines.lines().count(), 1 + runs.len(), "{lines}");
}

#[test]
fn what_cannot_be_reported_is_refused() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("empty")).expect("a folder");
    let said = refused(&scene, &["report", "empty"]);
    assert!(said.contains("it has no recipe.toml"), "{said}");
    scene.train("one", &[]);
    let said = refused(
        &scene,
        &["report", "one", "--output", "no/such/report.html"],
    );
    assert!(said.contains("cannot write no/such/report.html"), "{said}");
    scene.train("two", &["data.metrics=[\"f1\"]"]);
    let said = refused(&scene, &["report", "one", "two"]);
    assert!(
        said.contains("runs of different tasks cannot be compared"),
        "{said}"
    );

    // A run that was never finished is shown, and left out.
    std::fs::remove_file(scene.path("one/summary.json")).expect("a summary");
    let shown = scene.ok(&["report", "one"]);
    assert!(shown.contains("0, and 1 unfinished"), "{shown}");
    let counted = scene.ok(&["report", "one", "--unfinished"]);
    assert!(counted.contains("1, 1 of them unfinished"), "{counted}");
}
