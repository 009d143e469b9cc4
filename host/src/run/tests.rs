use std::fs;
use std::path::Path;

use super::*;

fn step(step: u64) -> MetricRecord {
    MetricRecord::Step(StepRecord {
        step,
        ..Default::default()
    })
}

fn allocation(step: u64) -> AllocationRecord {
    AllocationRecord {
        step,
        ..Default::default()
    }
}

fn save(writer: &mut Writer, step: u64, content: &str, best: Option<f64>) -> Checkpoint {
    let pending = writer.begin_checkpoint(step).unwrap();
    fs::write(pending.path().join("state"), content).unwrap();
    writer
        .commit_checkpoint(pending, best.map(|value| ("matthews".to_owned(), value)))
        .unwrap()
}

/// A run that has recorded its start.
fn begin(dir: &Path, recipe: &str) -> Writer {
    let mut writer = Run::create(dir, recipe).unwrap();
    writer.allocation(&allocation(0)).unwrap();
    writer
}

fn checkpoints(run: &Run) -> Vec<String> {
    let entries = fs::read_dir(run.dir().join("checkpoints")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("deep/run");
    let mut writer = Run::create(&dir, "seed = 1\n").unwrap();
    writer.metric(&step(1)).unwrap();
    writer.allocation(&allocation(0)).unwrap();
    assert_eq!(writer.run().summary().unwrap(), None);
    writer
        .summary(&Summary {
            steps: 1,
            ..Default::default()
        })
        .unwrap();

    let run = Run::open(&dir).unwrap();
    assert_eq!(run.recipe().unwrap(), "seed = 1\n");
    assert_eq!(run.metrics().unwrap(), [step(1)]);
    assert_eq!(run.allocations().unwrap(), [allocation(0)]);
    assert_eq!(run.summary().unwrap().unwrap().steps, 1);
    assert_eq!((run.last().unwrap(), run.best(1)), (None, None));
}

#[test]
fn a_taken_folder_is_never_written_into() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    begin(&dir, "seed = 1");
    let error = Run::create(&dir, "seed = 2").unwrap_err();
    assert!(
        error.to_string().ends_with("already holds a run"),
        "{error}"
    );
    assert_eq!(error.exit_code(), 2);
    assert_eq!(Run::open(&dir).unwrap().recipe().unwrap(), "seed = 1");

    fs::write(folder.path().join("thesis.tex"), "").unwrap();
    let error = Run::create(folder.path(), "").unwrap_err().to_string();
    assert!(error.contains("is not empty"), "{error}");
    let file = folder.path().join("thesis.tex");
    assert!(Run::create(&file, "").is_err());
}

#[test]
fn a_start_cut_short_does_not_block_the_next() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".lock"), "").unwrap();
    fs::create_dir(folder.path().join("checkpoints")).unwrap();
    fs::write(folder.path().join("recipe.toml.partial"), "seed").unwrap();
    fs::write(folder.path().join("provenance.json"), "{}").unwrap();
    assert!(Run::is_cut_short(folder.path()).unwrap());
    begin(folder.path(), "");
    assert!(!Run::is_cut_short(folder.path()).unwrap());
}

#[test]
fn a_start_that_comes_to_nothing_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    drop(Run::create(&dir, "").unwrap());
    assert!(!dir.exists());
    // Nor does one that was to replace a run take it away.
    drop(begin(&dir, "seed = 1"));
    drop(Run::replace(&dir, "seed = 2").unwrap());
    assert_eq!(Run::open(&dir).unwrap().recipe().unwrap(), "seed = 1");
    let mut writer = Run::replace(&dir, "seed = 2").unwrap();
    writer.metric(&step(1)).unwrap();
    assert_eq!(writer.run().recipe().unwrap(), "seed = 2");
    assert!(writer.run().allocations().unwrap().is_empty());
}

#[test]
fn only_a_runs_own_files_are_replaced_and_none_of_a_live_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = begin(folder.path(), "");
    save(&mut writer, 1, "x", None);
    let error = Run::check_free(folder.path(), true)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("another process"), "{error}");
    drop(writer);
    Run::check_free(folder.path(), true).unwrap();
    for foreign in ["notes.txt", "checkpoints/mine", "adapter/cat.jpeg"] {
        let path = folder.path().join(foreign);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        for error in [
            Run::check_free(folder.path(), true).unwrap_err(),
            Run::replace(folder.path(), "").unwrap_err(),
        ] {
            assert!(error.to_string().contains(foreign), "{error}");
        }
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_replacement_cut_short_is_finished_by_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = begin(folder.path(), "");
    save(&mut writer, 1, "x", None);
    drop(writer);
    fs::remove_file(folder.path().join("recipe.toml")).unwrap();
    let error = Run::create(folder.path(), "").unwrap_err().to_string();
    assert!(error.ends_with("but no recipe.toml"), "{error}");
    fs::write(folder.path().join(".replacing"), "").unwrap();
    let writer = begin(folder.path(), "seed = 2");
    assert_eq!(writer.run().last().unwrap(), None);
    assert!(!folder.path().join(".replacing").exists());
}

#[test]
fn a_run_goes_only_before_its_first_record_and_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    let writer = begin(&dir, "");
    // Not under the hands of one who writes.
    assert!(!writer.run().remove_unstarted());
    let run = writer.run().clone();
    drop(writer);
    assert!(run.remove_unstarted() && !dir.exists());

    let mut writer = begin(&dir, "");
    save(&mut writer, 1, "x", None);
    drop(writer);
    assert!(!run.remove_unstarted());

    let dir = folder.path().join("other");
    let mut writer = Run::create(&dir, "").unwrap();
    writer.metric(&step(1)).unwrap();
    let run = writer.run().clone();
    drop(writer);
    assert!(!run.remove_unstarted());
    assert_eq!(Run::open(&dir).unwrap().metrics().unwrap(), [step(1)]);
}

#[test]
fn two_trainings_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let writer = begin(folder.path(), "");
    let error = Run::resume(folder.path(), "").unwrap_err().to_string();
    assert!(
        error.starts_with("another process is training in"),
        "{error}"
    );
    Run::open(folder.path()).unwrap();
    drop(writer);
    Run::resume(folder.path(), "").unwrap();
}

#[test]
fn a_folder_that_is_no_run_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = |dir: &std::path::Path| Run::open(dir).unwrap_err().to_string();
    assert!(error(&folder.path().join("none")).ends_with("no such folder"));
    assert!(error(folder.path()).ends_with("it has no recipe.toml"));
    fs::write(folder.path().join("file"), "").unwrap();
    assert!(error(&folder.path().join("file")).ends_with("it is a file"));
}

fn keeping(keep: usize) -> Opening {
    Opening {
        keep,
        ..Opening::from("")
    }
}

#[test]
fn only_the_last_few_and_the_best_checkpoint_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Run::create(folder.path(), keeping(2)).unwrap();
    save(&mut writer, 10, "a", Some(0.25));
    fs::create_dir(folder.path().join("checkpoints/mine")).unwrap();
    for step in [20, 30, 40] {
        save(&mut writer, step, "b", None);
    }
    let run = writer.run().clone();
    assert_eq!(
        checkpoints(&run),
        [
            "mine",
            "pointers.json",
            "step-000010",
            "step-000030",
            "step-000040"
        ]
    );
    let (best, judged) = run.best(40).unwrap();
    assert_eq!(
        (best.step, judged.metric.as_str(), judged.value),
        (10, "matthews", 0.25)
    );
    assert_eq!(run.last().unwrap().unwrap().step, 40);
    save(&mut writer, 50, "d", Some(0.5));
    assert_eq!(
        checkpoints(&run),
        ["mine", "pointers.json", "step-000040", "step-000050"]
    );
}

#[test]
fn a_step_saved_again_replaces_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Run::create(folder.path(), "").unwrap();
    save(&mut writer, 10, "old", None);
    let again = save(&mut writer, 10, "new", Some(0.1));
    assert_eq!(
        checkpoints(writer.run()),
        ["pointers.json", "step-000010.2"]
    );
    assert_eq!(writer.run().last().unwrap().unwrap(), again);
    assert_eq!(again.read("state").unwrap(), b"new");
    // The best stays the best when its step is saved once more, without an evaluation.
    let last = save(&mut writer, 10, "later", None);
    let run = writer.run();
    assert_eq!(
        checkpoints(run),
        ["pointers.json", "step-000010.2", "step-000010.3"]
    );
    assert_eq!(run.last().unwrap().unwrap(), last);
    assert_eq!(run.best(10).unwrap().0, again);
}

#[test]
fn an_uncommitted_checkpoint_never_existed() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Run::create(folder.path(), "").unwrap();
    save(&mut writer, 10, "good", None);
    let torn = writer.begin_checkpoint(20).unwrap();
    fs::write(torn.path().join("half"), "x").unwrap();
    assert_eq!(writer.run().last().unwrap().unwrap().step, 10);
    drop(torn);
    assert!(!folder.path().join("checkpoints/pending").exists());
    // As a kill leaves it.
    fs::create_dir(folder.path().join("checkpoints/pending")).unwrap();
    fs::write(folder.path().join("checkpoints/pending/half"), "x").unwrap();
    let last = save(&mut writer, 20, "whole", None);
    assert!(!last.path.join("half").exists());
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_goes_when_there_is_a_better_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Run::create(folder.path(), "").unwrap();
    for at in [10, 20] {
        writer.metric(&step(at)).unwrap();
        save(&mut writer, at, "abc", Some(at as f64));
    }
    drop(writer);
    let folder_of = |name: &str| folder.path().join("checkpoints").join(name);
    for file in ["state", "manifest.json"] {
        let path = folder_of("step-000020").join(file);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            for bit in [0, 3, 7] {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                fs::write(&path, &bad).unwrap();
                let (writer, last) = Run::resume(folder.path(), "").unwrap();
                assert_eq!(last.unwrap().step, 10, "{file}, byte {at}, bit {bit}");
                assert_eq!(writer.run().best(10).unwrap().1.value, 10.0);
                // Nothing has been touched yet.
                assert_eq!(writer.run().metrics().unwrap().len(), 2);
            }
        }
        for cut in [0, good.len() - 1] {
            fs::write(&path, &good[..cut]).unwrap();
            assert_eq!(
                Run::open(folder.path())
                    .unwrap()
                    .last()
                    .unwrap()
                    .unwrap()
                    .step,
                10
            );
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(
            Run::open(folder.path())
                .unwrap()
                .last()
                .unwrap()
                .unwrap()
                .step,
            10
        );
        fs::write(&path, good).unwrap();
    }
    fs::write(folder_of("step-000020/state"), "abd").unwrap();
    let (mut writer, _) = Run::resume(folder.path(), "").unwrap();
    save(&mut writer, 15, "abc", None);
    assert_eq!(
        checkpoints(writer.run()),
        ["pointers.json", "step-000010", "step-000015"]
    );
    drop(writer);
    for name in ["step-000010", "step-000015"] {
        fs::write(folder_of(name).join("state"), "x").unwrap();
    }
    let error = Run::resume(folder.path(), "").unwrap_err();
    assert!(
        error.to_string().starts_with("none of the 2 checkpoints"),
        "{error}"
    );
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn resuming_drops_what_the_checkpoint_does_not_know() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Run::create(folder.path(), "").unwrap();
    writer.allocation(&allocation(0)).unwrap();
    for at in 1..=4 {
        writer.metric(&step(at)).unwrap();
        writer.allocation(&allocation(at)).unwrap();
        if at == 2 {
            save(&mut writer, at, "", None);
        }
    }
    drop(writer);
    let (mut writer, last) = Run::resume(folder.path(), "").unwrap();
    assert_eq!(last.unwrap().step, 2);
    writer.metric(&step(3)).unwrap();
    assert_eq!(writer.run().metrics().unwrap(), [step(1), step(2), step(3)]);
    assert_eq!(
        writer.run().allocations().unwrap(),
        [allocation(0), allocation(1), allocation(2)]
    );
}

#[test]
fn resuming_without_a_checkpoint_starts_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = begin(folder.path(), "");
    writer.metric(&step(1)).unwrap();
    drop(writer);
    let (mut writer, last) = Run::resume(folder.path(), "").unwrap();
    assert_eq!((last, writer.run().metrics().unwrap().len()), (None, 1));
    writer.allocation(&allocation(0)).unwrap();
    assert!(writer.run().metrics().unwrap().is_empty());
    assert_eq!(writer.run().allocations().unwrap(), [allocation(0)]);
}

#[test]
fn pointers_are_for_people_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = begin(folder.path(), "");
    save(&mut writer, 10, "", Some(0.5));
    drop(writer);
    let pointers = folder.path().join("checkpoints/pointers.json");
    for bad in ["", "{}", "{\"last\":{\"checkpoint\":\"../..\",\"step\":1}}"] {
        fs::write(&pointers, bad).unwrap();
        let (_, last) = Run::resume(folder.path(), "").unwrap();
        assert_eq!(last.unwrap().step, 10, "{bad}");
    }
    fs::remove_file(&pointers).unwrap();
    let (writer, last) = Run::resume(folder.path(), "").unwrap();
    assert_eq!(
        (last.unwrap().step, writer.run().best(10).unwrap().1.step),
        (10, 10)
    );
}

#[test]
fn nothing_is_written_where_the_run_no_longer_is() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, away) = (parent.path().join("run"), parent.path().join("away"));
    for replaced in [false, true] {
        let mut writer = begin(&dir, "");
        fs::rename(&dir, &away).unwrap();
        if replaced {
            fs::create_dir_all(dir.join("checkpoints")).unwrap();
            fs::write(dir.join(".lock"), "").unwrap();
        }
        let errors = [
            writer.metric(&step(1)).unwrap_err(),
            writer.allocation(&allocation(1)).unwrap_err(),
            writer.begin_checkpoint(1).unwrap_err(),
            writer.begin_adapter().unwrap_err(),
            writer.summary(&Summary::default()).unwrap_err(),
        ];
        for error in errors {
            assert!(error.to_string().contains("is gone"), "{error}");
            assert_eq!(error.exit_code(), 1);
        }
        assert!(replaced || !dir.exists());
        let _ = fs::remove_dir_all(&dir);
        fs::remove_dir_all(&away).unwrap();
    }
    let mut writer = begin(&dir, "");
    fs::remove_file(dir.join("metrics.jsonl")).unwrap();
    let error = writer.metric(&step(1)).unwrap_err().to_string();
    assert!(error.contains("metrics.jsonl is gone"), "{error}");
}

#[test]
fn a_run_with_other_inputs_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("train.csv");
    fs::write(&data, "a").unwrap();
    let opening = |threads: usize, accept_changes: bool| Opening {
        sitting: Some(Sitting {
            ranks: 1,
            from_step: 0,
            started: 0,
            program: Program::current(),
            machine: Machine::current(),
            threads,
            device: "cpu".to_owned(),
            inputs: [("data.train".to_owned(), Input::of(&data).unwrap())].into(),
            accepted: Vec::new(),
        }),
        accept_changes,
        ..Opening::from("")
    };
    let dir = folder.path().join("run");
    let mut writer = Run::create(&dir, opening(1, false)).unwrap();
    save(&mut writer, 1, "", None);
    drop(writer);
    drop(Run::resume(&dir, opening(2, false)).unwrap());
    fs::write(&data, "ab").unwrap();
    let error = Run::resume(&dir, opening(1, false)).unwrap_err();
    assert!(error.to_string().contains("data.train was"), "{error}");
    assert_eq!(error.exit_code(), 2);
    let (mut writer, _) = Run::resume(&dir, opening(1, true)).unwrap();
    writer.metric(&step(2)).unwrap();
    let known = writer.run().provenance().unwrap().unwrap();
    assert_eq!((known.sittings.len(), known.sittings[1].from_step), (2, 1));
    assert_eq!(known.sittings[1].accepted.len(), 1);
    assert!(known.identity()["data.train"].contains(" then "));
}
