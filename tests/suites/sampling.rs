//! A sample of steps measured: the choices of measuring all of them, at a part of the price.

use dynalora_tests::Scene;
use serde::Deserialize;

/// A reallocation: scores and mask.
#[derive(Deserialize)]
struct Choice {
    scores: Vec<f64>,
    active: Vec<bool>,
}

/// A run's reallocations.
fn choices(scene: &Scene, run: &str) -> Vec<Choice> {
    let records = scene.records(run, "allocations.jsonl");
    let choices = records[1..].iter().map(Choice::deserialize);
    choices
        .map(|choice| choice.expect("a reallocation"))
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
    let (mut same, mut all, mut both, mut chosen) = (0, 0, 0, 0);
    let mut furthest = 0f64;
    for seed in 0..5 {
        for k in ["50%", "4"] {
            let runs = ["1", "10"].map(|one_in| {
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
            let [whole, sampled] = runs;
            assert_eq!((whole.len(), sampled.len()), (5, 5));
            let mut parted = false;
            for (whole, sampled) in whole.iter().zip(&sampled) {
                let pairs = whole.active.iter().zip(&sampled.active);
                chosen += pairs.clone().filter(|(whole, _)| **whole).count();
                both += pairs
                    .filter(|(whole, sampled)| **whole && **sampled)
                    .count();
                // Other modules train on to other scores.
                if !parted {
                    all += 1;
                    match whole.active == sampled.active {
                        true => same += 1,
                        false => {
                            parted = true;
                            furthest = furthest.max(gap(whole, sampled));
                        }
                    }
                }
            }
        }
    }
    println!(
        "{same} of {all} choices are the same, {both} of {chosen} modules; where they part scores are {furthest:.4} apart"
    );
    assert!(100 * both >= 95 * chosen, "{both} of {chosen}");
    // The model is random, its modules much alike: they change places only where they all but tie.
    assert!(furthest < 0.02, "{furthest}");
}

/// How far apart the scores of the modules are that two choices differ by, by those of the first.
fn gap(whole: &Choice, sampled: &Choice) -> f64 {
    let of = |ours: &[bool], theirs: &[bool]| -> Vec<f64> {
        let places = (0..ours.len()).filter(|at| ours[*at] && !theirs[*at]);
        places.map(|at| whole.scores[at]).collect()
    };
    let left = of(&whole.active, &sampled.active);
    let taken = of(&sampled.active, &whole.active);
    left.into_iter().fold(0.0, f64::max) / taken.into_iter().fold(f64::MAX, f64::min) - 1.0
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
