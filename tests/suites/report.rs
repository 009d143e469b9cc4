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
fn plots_for_a_paper_have_its_measures() {
    let scene = Scene::new();
    scene.train("run", &["evaluation.every=4"]);
    let all = ["--svg", "plots", "--pdf", "plots", "--png", "plots"];
    let measures = [
        "--width",
        "84mm",
        "--font-size",
        "9pt",
        "--colors",
        "viridis",
        "--dpi",
        "600",
    ];
    let said = scene.run(&[&["report", "run"], &all[..], &measures].concat());
    assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
    let names = std::fs::read_dir(scene.path("plots"))
        .expect("a folder")
        .flatten();
    let mut names: Vec<_> = names
        .map(|entry| entry.file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    // The metric, figure by figure, what was chosen and its scores.
    assert_eq!(names.len(), 3 * 4, "{names:?}");
    for name in names.iter().filter_map(|name| name.strip_suffix(".svg")) {
        let read = |kind: &str| {
            let path = scene.path(&format!("plots/{name}.{kind}"));
            std::fs::read(&path).unwrap_or_else(|error| panic!("{name}.{kind}: {error}"))
        };
        let svg = String::from_utf8(read("svg")).expect("a text");
        assert!(svg.starts_with("<svg width=\"84mm\" height=\""), "{name}");
        // 84 mm are 238.11 points.
        let pdf = read("pdf");
        let pdf = String::from_utf8_lossy(&pdf);
        assert!(
            pdf.starts_with("%PDF-") && pdf.contains("/MediaBox [0 0 238.1"),
            "{name}"
        );
        // And 1984.3 dots, of which the last is begun.
        let png = read("png");
        assert_eq!(png[1..4], *b"PNG");
        assert_eq!(png[16..20], 1985u32.to_be_bytes(), "{name}");
    }

    for (flags, what) in [
        (
            &["--width", "84mm"][..],
            "--width draws, but nothing is drawn here",
        ),
        (
            &["--colors", "greys"],
            "--colors draws, but nothing is drawn here",
        ),
        (
            &["--pdf", "plots", "--width", "9mm"],
            "a picture of 9mm with letters of 8pt",
        ),
        (&["--pdf", "plots", "--width", "84"], "such as 84mm"),
    ] {
        let said = refused(&scene, &[&["report", "run"], flags].concat());
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn a_sweep_is_reported_on_by_its_file() {
    let scene = Scene::new();
    let sweep = |set: &str| {
        let text = format!(
            "output = \"runs\"\nrecipe = \"recipe.toml\"\nseeds = \"0..1\"\nbaseline = \"plain\"\ncolumns = [\"final\"]\n{set}\
             [[arm]]\nname = \"plain\"\nset = {{ \"allocation.schedule\" = {{ kind = \"never\" }} }}\n\
             [[arm]]\nname = \"by chance\"\nset = {{ \"allocator.plugin\" = \"uniform\" }}\n"
        );
        scene.write("sweep.toml", &text);
    };
    sweep("");
    let table = scene.ok(&["sweep", "sweep.toml", "--quiet"]);
    assert_eq!(scene.ok(&["report", "sweep.toml"]), table);
    assert!(
        table.contains("| by chance |") && table.contains("Difference from plain"),
        "{table}"
    );
    let latex = scene.ok(&[
        "report",
        "sweep.toml",
        "--format",
        "latex",
        "--columns",
        "metric",
    ]);
    assert!(
        latex.contains("\nby chance & 2 & ") && !latex.contains("trainable"),
        "{latex}"
    );
    let page = [
        "report",
        "sweep.toml",
        "--output",
        "page.html",
        "--baseline",
        "chance",
    ];
    assert!(scene.ok(&page).contains("Difference from by chance"));
    // Of what is missing it is said.
    std::fs::remove_file(scene.path("runs/by-chance-s1/summary.json")).expect("a run");
    let partly = scene.run(&["report", "sweep.toml"]);
    let said = String::from_utf8_lossy(&partly.stderr).into_owned();
    assert!(
        partly.status.success() && said.contains("3 of 4 runs"),
        "{said}"
    );
    // Runs of another recipe are not those of the sweep.
    sweep("set = { \"train.learning_rate\" = 0.5 }\n");
    let said = refused(&scene, &["report", "sweep.toml"]);
    assert!(said.contains("train.learning_rate"), "{said}");
    let learning_rate = ["report", "sweep.toml", "--set", "train.learning_rate=0.005"];
    assert!(scene.ok(&learning_rate).contains("| by chance |"));
    let said = refused(&scene, &["report", "runs/plain-s0", "--set", "seed=1"]);
    assert!(said.contains("--set cannot act"), "{said}");
    let said = refused(&scene, &["report", "sweep.toml", "runs/plain-s0"]);
    assert!(said.contains("stands beside folders of runs"), "{said}");
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
