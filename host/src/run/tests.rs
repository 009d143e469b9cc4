use std::fs;

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

fn save(writer: &Writer, step: u64, content: &str, best: Option<f64>) -> Checkpoint {
    let pending = writer.begin_checkpoint(step).unwrap();
    fs::write(pending.path().join("state"), content).unwrap();
    writer
        .commit_checkpoint(pending, best.map(|value| ("matthews".to_owned(), value)))
        .unwrap()
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
    assert_eq!((run.last().unwrap(), run.best().unwrap()), (None, None));
}

#[test]
fn a_taken_folder_is_never_written_into() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    drop(Run::create(&dir, "seed = 1").unwrap());
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
    Run::create(folder.path(), "").unwrap();
}

#[test]
fn a_run_goes_only_before_its_first_record_and_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    let mut writer = Run::create(&dir, "").unwrap();
    writer.allocation(&allocation(0)).unwrap();
    assert!(writer.run().remove_unstarted());
    assert!(!dir.exists());

    let writer = Run::create(&dir, "").unwrap();
    save(&writer, 1, "x", None);
    assert!(!writer.run().remove_unstarted());
    drop(writer);

    let dir = folder.path().join("other");
    let mut writer = Run::create(&dir, "").unwrap();
    writer.metric(&step(1)).unwrap();
    assert!(!writer.run().remove_unstarted());
    assert_eq!(Run::open(&dir).unwrap().metrics().unwrap(), [step(1)]);
}

#[test]
fn two_trainings_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let writer = Run::create(folder.path(), "").unwrap();
    let error = Run::resume(folder.path()).unwrap_err().to_string();
    assert!(
        error.starts_with("another process is training in"),
        "{error}"
    );
    Run::open(folder.path()).unwrap();
    drop(writer);
    Run::resume(folder.path()).unwrap();
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

#[test]
fn only_the_last_and_the_best_checkpoint_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let writer = Run::create(folder.path(), "").unwrap();
    let run = writer.run();
    fs::create_dir(run.dir().join("checkpoints/mine")).unwrap();
    save(&writer, 10, "a", Some(0.25));
    save(&writer, 20, "b", None);
    save(&writer, 30, "c", None);
    assert_eq!(
        checkpoints(run),
        ["mine", "pointers.json", "step-000010", "step-000030"]
    );
    let (best, judged) = run.best().unwrap().unwrap();
    assert_eq!(
        (best.step, judged.metric.as_str(), judged.value),
        (10, "matthews", 0.25)
    );
    assert_eq!(run.last().unwrap().unwrap().step, 30);
    save(&writer, 40, "d", Some(0.5));
    assert_eq!(checkpoints(run), ["mine", "pointers.json", "step-000040"]);
}

#[test]
fn a_step_saved_again_replaces_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let writer = Run::create(folder.path(), "").unwrap();
    save(&writer, 10, "old", None);
    let again = save(&writer, 10, "new", Some(0.1));
    assert_eq!(
        checkpoints(writer.run()),
        ["pointers.json", "step-000010.2"]
    );
    assert_eq!(writer.run().last().unwrap().unwrap(), again);
    assert_eq!(fs::read_to_string(again.path.join("state")).unwrap(), "new");
}

#[test]
fn an_uncommitted_checkpoint_never_existed() {
    let folder = tempfile::tempdir().unwrap();
    let writer = Run::create(folder.path(), "").unwrap();
    save(&writer, 10, "good", None);
    let torn = writer.begin_checkpoint(20).unwrap();
    fs::write(torn.path().join("half"), "x").unwrap();
    assert_eq!(writer.run().last().unwrap().unwrap().step, 10);
    let last = save(&writer, 20, "whole", None);
    assert!(!last.path.join("half").exists());
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
            save(&writer, at, "", None);
        }
    }
    drop(writer);
    let (mut writer, last) = Run::resume(folder.path()).unwrap();
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
    let mut writer = Run::create(folder.path(), "").unwrap();
    writer.allocation(&allocation(0)).unwrap();
    writer.metric(&step(1)).unwrap();
    drop(writer);
    let (writer, last) = Run::resume(folder.path()).unwrap();
    assert_eq!(last, None);
    assert!(
        writer.run().metrics().unwrap().is_empty()
            && writer.run().allocations().unwrap().is_empty()
    );
}

#[test]
fn damaged_pointers_are_an_error_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let writer = Run::create(folder.path(), "").unwrap();
    let last = save(&writer, 10, "", None);
    let pointers = folder.path().join("checkpoints/pointers.json");
    let good = fs::read_to_string(&pointers).unwrap();
    drop(writer);
    for bad in ["", "{}", &good.replace("step-000010", "../checkpoints")] {
        fs::write(&pointers, bad).unwrap();
        assert_eq!(
            Run::resume(folder.path()).unwrap_err().exit_code(),
            2,
            "{bad}"
        );
        assert!(last.path.exists());
    }
    fs::write(&pointers, good).unwrap();
    fs::remove_dir_all(&last.path).unwrap();
    let error = Run::open(folder.path())
        .unwrap()
        .last()
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("names the checkpoint `step-000010`, which is not there"),
        "{error}"
    );
}

#[test]
fn another_recipe_is_refused_by_its_first_other_line() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::create(folder.path(), "seed = 1\nthreads = 2\n")
        .unwrap()
        .run()
        .clone();
    run.check_recipe("seed = 1\r\nthreads = 2").unwrap();
    for (recipe, wanted) in [
        (
            "seed = 1\nthreads = 4\n",
            "line 2: the run was started with `threads = 2`, the recipe given now has `threads = 4`",
        ),
        (
            "seed = 1\n",
            "line 2: the run was started with `threads = 2`, the recipe given now has nothing more",
        ),
        (
            "seed = 1\nthreads = 2\nx = 1",
            "line 3: the run was started with nothing more, the recipe given now has `x = 1`",
        ),
    ] {
        let error = run.check_recipe(recipe).unwrap_err().to_string();
        assert!(error.ends_with(wanted), "{error}");
    }
}
