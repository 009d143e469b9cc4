//! An allocator in C against the header, and what C can get wrong.

use dynalora_tests::{Scene, flat, package, plugin_in_c, said, text};
use serde_json::Value;

const LOWEST: &str = include_str!("../fixtures/plugins/lowest.c");

#[test]
fn an_allocator_in_c_is_found_checked_and_used() {
    let scene = Scene::new();
    let folder = scene.path("plugins");
    let Some(library) = plugin_in_c(&folder, "lowest", LOWEST) else {
        return;
    };
    let (folder, path) = (text(&folder), text(&library));
    // By its manifest, of which the library's own code is no part.
    let info = scene.ok(&[
        "plugins",
        "info",
        "lowest-c",
        "--plugin-dir",
        folder,
        "--json",
    ]);
    let info: Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info[0]["manifest"]["version"], "1.0.0", "{info}");
    let report = scene.ok(&["plugins", "check", path]);
    assert!(!report.contains("BROKEN"), "{report}");
    let report = scene.ok(&["plugins", "check", path, "--isolated"]);
    assert!(!report.contains("BROKEN"), "{report}");

    scene.edit(
        "plugin = \"top-k\"\nk = \"50%\"",
        "plugin = \"lowest-c\"\nk = 3",
    );
    let chosen = |name: &str, sets: &[&str]| {
        let output = format!("output={}", scene.path(name).display());
        let mut arguments = vec![
            "train",
            "recipe.toml",
            "--quiet",
            "--plugin-dir",
            folder,
            "--set",
            &output,
        ];
        for set in sets {
            arguments.extend(["--set", set]);
        }
        scene.ok(&arguments);
        let records = scene.records(name, "allocations.jsonl");
        let masks = records.iter().skip(1).map(|record| {
            let active = record["active"].as_array().expect("a mask");
            (0..active.len())
                .filter(|at| active[*at] == true)
                .collect::<Vec<_>>()
        });
        masks.collect::<Vec<_>>()
    };
    let masks = chosen("run", &[]);
    assert_eq!(masks.len(), 2);
    // Three in a row, of eleven in a circle, drawn by the seed of each reallocation.
    for mask in &masks {
        assert_eq!(mask.len(), 3);
        assert!(
            (0..11).any(|first| (0..3).all(|at| mask.contains(&((first + at) % 11)))),
            "{mask:?}"
        );
    }
    assert_eq!(chosen("isolated", &["allocator.isolation=process"]), masks);
    let others: Vec<_> = (4..8)
        .map(|seed| chosen(&format!("seed-{seed}"), &[&format!("seed={seed}")]))
        .collect();
    assert!(others.iter().any(|other| *other != masks));

    let output = scene.run(&[
        "train",
        "recipe.toml",
        "--plugin-dir",
        folder,
        "--set",
        "allocator.k=12",
        "--set",
        "output=refused",
    ]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(flat(&said(&output)).contains(&flat("refuses [allocator]: parameter `k`")));
}

/// Another answer to `allocate`, and what is said of it.
const WRONG: [(&str, &str); 9] = [
    (
        "double x[3] = {1, 1, 1}; dynalora_answer(out, \"active\", DYNALORA_F64S, x, 3)",
        "`active`",
    ),
    (
        "dynalora_answer(out, \"active\", DYNALORA_BOOLS, NULL, 11)",
        "`active` has values at no place",
    ),
    (
        "static double x[12]; dynalora_answer(out, \"rates\", DYNALORA_F64S, (char *)x + 1, 11)",
        "no place",
    ),
    (
        "static char x[11] = {7}; dynalora_answer(out, \"active\", DYNALORA_BOOLS, x, 11)",
        "a flag of 7",
    ),
    (
        "dynalora_say(out, \"active\", DYNALORA_TEXT, \"\\xff\\xfe\")",
        "not UTF-8",
    ),
    ("dynalora_say(out, \"active\", 77, \"x\")", "of kind 77"),
    (
        "out.put(out.context, NULL)",
        "a field has values at no place",
    ),
    ("(void)out", "`active` is missing"),
    (
        "static char x[11] = {1}; dynalora_answer(out, \"actives\", DYNALORA_BOOLS, x, 11)",
        "`actives`",
    ),
];

#[test]
fn what_c_gets_wrong_is_an_error_as_far_as_it_can_be_seen() {
    let scene = Scene::new();
    scene.edit(
        "plugin = \"top-k\"\nk = \"50%\"",
        "plugin = \"lowest-c\"\nk = 3",
    );
    let answers = "    dynalora_answer(out, \"active\", DYNALORA_BOOLS, active, now->len);";
    assert!(LOWEST.contains(answers));
    for (number, (answer, why)) in WRONG.into_iter().enumerate() {
        let folder = scene.path(&format!("plugins-{number}"));
        let Some(_) = plugin_in_c(
            &folder,
            "wrong",
            &LOWEST.replace(answers, &format!("    {answer};")),
        ) else {
            return;
        };
        for isolation in ["none", "process"] {
            let output = format!(
                "output={}",
                scene.path(&format!("{isolation}-{number}")).display()
            );
            let isolation = format!("allocator.isolation={isolation}");
            let output = scene.run(&[
                "train",
                "recipe.toml",
                "--plugin-dir",
                text(&folder),
                "--set",
                &output,
                "--set",
                &isolation,
            ]);
            assert_eq!(output.status.code(), Some(2), "{answer}: {}", said(&output));
            for word in [why, "the allocator `lowest-c`", "step 4"] {
                assert!(
                    flat(&said(&output)).contains(&flat(word)),
                    "{answer}, {word}: {}",
                    said(&output)
                );
            }
        }
    }
}

#[test]
fn a_library_whose_table_or_label_is_wrong_is_refused() {
    let scene = Scene::new();
    let export = "DYNALORA_PLUGIN(\"lowest-c\", \"allocator\", \"1.0.0\", make, call, free)";
    assert!(LOWEST.contains(export));
    for (number, (other, why)) in [
        (export.replace("make, call, free", "make, call, NULL"), "a function in dynalora_plugin_table is missing"),
        (export.replace("allocator", "sampler"), "it holds a sampler"),
        (export.replace("lowest-c", "other"), "but it calls itself"),
        ("DYNALORA_LABEL(\"format=1\\nname=lowest-c\\nkind=allocator\\nversion=1.0.0\\napi=1.0.0\\npanic=none\\n\")".into(), "exports no plugin"),
        ("DYNALORA_LABEL(\"format=1\\nname=lowest-c\\nkind=allocator\\nversion=1.0.0\\napi=2.0.0\\npanic=none\\n\")".into(), "built against dynalora-plugin-api 2.0.0"),
    ].into_iter().enumerate() {
        let uses = "void *uses[] = {(void *)make, (void *)call};\n";
        let source = format!("{}\n{uses}", LOWEST.replace(export, &other));
        let Some(library) = plugin_in_c(&scene.path("plugins"), &format!("wrong{number}"), &source) else {
            return;
        };
        let output = scene.run(&["plugins", "check", text(&library)]);
        assert_eq!(output.status.code(), Some(2), "{other}: {}", said(&output));
        assert!(flat(&said(&output)).contains(&flat(why)), "{why}: {}", said(&output));
    }
}

#[test]
fn the_page_shows_the_fixture() {
    let page = std::fs::read_to_string(package().join("../docs/plugins.md")).expect("the page");
    assert!(
        page.contains("tests/fixtures/plugins/lowest.c")
            && page.contains("include/dynalora_plugin.h")
    );
}
