//! A sample of steps measured: the choices of measuring all of them, at a part of the price.

use dynalora_tests::Scene;
use serde_json::Value;

/// The masks of a run's reallocations.
fn choices(scene: &Scene, run: &str) -> Vec<Value> {
    let records = scene.records(run, "allocations.jsonl");
    records[1..]
        .iter()
        .map(|record| record["active"].clone())
        .collect()
}

/// The operations of a run.
fn flops(scene: &Scene, run: &str) -> f64 {
    let records = scene.records(run, "metrics.jsonl");
    let mut steps = records.iter().filter_map(|record| record["flops"].as_f64());
    steps.next_back().expect("a step")
}

#[test]
fn a_sample_of_steps_chooses_what_all_steps_do() {
    let scene = Scene::new();
    let (mut same, mut all) = (0, 0);
    for seed in 0..5 {
        for k in ["50%", "4"] {
            let masks = ["1", "10"].map(|one_in| {
                let name = format!("s{seed}-k{}-{one_in}", k.trim_end_matches('%'));
                let sets = [
                    format!("seed={seed}"),
                    format!("allocator.k={k}"),
                    format!("scorer.one_in={one_in}"),
                ];
                let fixed = [
                    "train.steps=60",
                    "allocation.schedule.every=10",
                    "adapter.targets=all-linear",
                    "threads=1",
                ];
                let sets: Vec<&str> = sets.iter().map(String::as_str).chain(fixed).collect();
                scene.train(&name, &sets);
                choices(&scene, &name)
            });
            let [whole, sampled] = masks;
            assert_eq!((whole.len(), sampled.len()), (5, 5));
            all += whole.len();
            same += whole.iter().zip(&sampled).filter(|(a, b)| a == b).count();
        }
    }
    println!("{same} of {all} reallocations chose the same modules");
    assert!(10 * same >= 9 * all, "{same} of {all}");
}

#[test]
fn only_the_steps_measured_cost_anything() {
    let scene = Scene::new();
    // Everything is active until the one choice, so that runs differ by what is measured alone.
    let cost = |one_in: u64| {
        let name = format!("one-in-{one_in}");
        let one_in = format!("scorer.one_in={one_in}");
        let sets = [
            "train.steps=41",
            "allocation.schedule={kind=\"once\",after=40}",
            &one_in,
        ];
        scene.train(&name, &sets);
        flops(&scene, &name)
    };
    let [all, tenth, once] = [1, 10, 1000].map(cost);
    let share = (tenth - once) / (all - once);
    // Four steps of forty are measured, one of them anyway; batches are not equally long.
    assert!(all > once && (0.03..0.15).contains(&share), "{share}");
}

#[test]
fn a_resumed_run_measures_the_same_steps() {
    let scene = Scene::new();
    let fixed = ["train.steps=40", "allocation.schedule.every=7"];
    for (name, scorer) in [
        ("run", ["scorer.one_in=5", "scorer.window=run"]),
        ("period", ["scorer.one_in=5", "scorer.window=period"]),
        ("ema", ["scorer.one_in=3", "scorer.window={ema=0.9}"]),
    ] {
        scene.assert_resumes(name, &[&fixed[..], &scorer[..]].concat());
    }
    let gradient = ["scorer.plugin=gradient", "scorer.one_in=4"];
    scene.assert_resumes("gradient", &[&fixed[..], &gradient[..]].concat());
}
