use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dynalora_plugin_api::Random;
use insta::assert_snapshot;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::layout::Rect;
use ratatui::style::Color;

use super::view::Asked;
use super::*;
use crate::run::{AllocationRecord, EvalRecord, MetricRecord, Run, StepRecord, Summary, Writer};

/// The modules of so many layers, six in each.
fn modules(layers: usize) -> Vec<String> {
    let roles = [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ];
    let of = |layer| roles.map(|role| format!("encoder.layer.{layer}.{role}"));
    (0..layers).flat_map(of).collect()
}

/// Begins a run of 400 steps as training does, which chooses half of its modules anew every twenty.
fn begin(dir: &Path, layers: usize) -> Writer {
    let recipe = format!(
        "seed = 7\noutput = \"{}\"\n[model]\nname = \"org/model\"\n[data]\ntask = \"minimal-pairs\"\n\
         metrics = [\"accuracy\"]\n\
         [train]\nsteps = 400\n[allocation]\nschedule = {{ kind = \"periodic\", every = 20 }}\n\
         [scorer]\nplugin = \"activation\"\n[allocator]\nplugin = \"top-k\"\n",
        dir.display()
    );
    let mut writer = Run::create(dir, &recipe).unwrap();
    let modules = modules(layers);
    let all = vec![true; modules.len()];
    let ranks = vec![8; modules.len()];
    let first = AllocationRecord::initial(modules, &all, &ranks);
    writer.allocation(&first).unwrap();
    writer
}

/// Goes on to a step, ten at a time.
fn go_on(writer: &mut Writer, layers: usize, steps: std::ops::Range<u64>) {
    for step in steps.step_by(10) {
        let step = step + 10;
        let record = StepRecord {
            step,
            epoch: step as f64 / 100.0,
            loss: 0.2 + 0.5 * (-(step as f64) / 100.0).exp(),
            learning_rate: 1e-3 * (1.0 - step as f64 / 400.0),
            active_modules: layers * 3,
            tokens: step * 512,
            seconds: step as f64 * 0.5,
            peak_memory: Some(430 << 20),
            constant_loss: Some(0.69),
            ..Default::default()
        };
        writer.metric(&MetricRecord::Step(record)).unwrap();
        if step.is_multiple_of(100) {
            let accuracy = [0.61, 0.74, 0.82, 0.79][step as usize / 100 - 1];
            let record = EvalRecord {
                step,
                split: "validation".to_owned(),
                loss: 0.75 - accuracy / 2.0,
                metrics: BTreeMap::from([("accuracy".to_owned(), accuracy)]),
                ..Default::default()
            };
            writer.metric(&MetricRecord::Evaluation(record)).unwrap();
        }
        if step.is_multiple_of(20) && step < 400 {
            writer.allocation(&choice(step, layers)).unwrap();
        }
    }
}

/// Upper layers more often than lower ones, queries never.
fn choice(step: u64, layers: usize) -> AllocationRecord {
    let score = |at: usize| {
        let (layer, role) = (at / 6, at % 6);
        let noise = (at as u64 * 7 + step / 20 * 5) % 6;
        role as f64 * (layer + 1) as f64 + noise as f64
    };
    let scores: Vec<f64> = (0..layers * 6).map(score).collect();
    let mut sorted = scores.clone();
    sorted.sort_by(f64::total_cmp);
    let active: Vec<bool> = scores.iter().map(|it| *it >= sorted[layers * 3]).collect();
    AllocationRecord {
        step,
        index: Some(step / 20 - 1),
        ranks: active.iter().map(|it| if *it { 8 } else { 0 }).collect(),
        ledger: Default::default(),
        active,
        scores,
        ..Default::default()
    }
}

fn end(mut writer: Writer) {
    let summary = Summary {
        steps: 400,
        seconds: 200.0,
        ..Default::default()
    };
    writer.summary(&summary).unwrap();
}

fn shown(board: &Board, view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let drawn = terminal.draw(|to| frame(board, view, to.area(), to.buffer_mut()));
    text(drawn.unwrap().buffer)
}

/// A run of so many layers after so many steps, in its folder.
fn running(layers: usize, steps: u64) -> (tempfile::TempDir, Writer) {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = begin(&folder.path().join("top-k-s7"), layers);
    go_on(&mut writer, layers, 0..steps);
    (folder, writer)
}

fn open(folder: &tempfile::TempDir) -> (Board, View) {
    let board = Board::open(&[folder.path().to_owned()]).unwrap();
    let view = View::of(&board, Look::default());
    (board, view)
}

#[test]
fn a_run_is_one_look() {
    let (folder, _writer) = running(6, 240);
    let (board, view) = open(&folder);
    assert_snapshot!("one-look", shown(&board, &view, 80, 24));
}

#[test]
fn a_wide_terminal_has_room_for_every_module() {
    let (folder, writer) = running(6, 400);
    end(writer);
    let (board, view) = open(&folder);
    // Of forty records, each with the one before.
    let run = &board.runs[0];
    let mean = (run.steps[3].loss + run.steps[4].loss) / 2.0;
    assert_eq!(run.loss()[4], (50.0, mean));
    assert_snapshot!("wide", shown(&board, &view, 130, 60));
}

#[test]
fn a_thousand_modules_are_layers_in_rows() {
    let (folder, _writer) = running(167, 400);
    let (board, mut view) = open(&folder);
    assert_snapshot!("thousand-modules", shown(&board, &view, 80, 24));
    view.rows = Rows::Now;
    assert_snapshot!("thousand-modules-now", shown(&board, &view, 80, 24));
}

#[test]
fn several_runs_are_a_list_and_each_a_look() {
    let folder = tempfile::tempdir().unwrap();
    let mut writers = Vec::new();
    for (name, steps) in [("a-s1", 400), ("a-s2", 120), ("b/s1", 0)] {
        fs::create_dir_all(folder.path().join("b")).unwrap();
        let mut writer = begin(&folder.path().join(name), 2);
        go_on(&mut writer, 2, 0..steps);
        writers.push(writer);
    }
    end(writers.remove(0));
    let (mut board, mut view) = open(&folder);
    assert_snapshot!("several-runs", shown(&board, &view, 80, 24));
    view.take(Asked::Scroll(1), 3);
    view.take(Asked::Open(true), 3);
    assert!(shown(&board, &view, 80, 24).starts_with("a-s2 "));
    view.take(Asked::Run(-1), 3);
    view.take(Asked::Run(-1), 3);
    let look = shown(&board, &view, 80, 24);
    assert!(
        look.starts_with("b/s1 ") && look.contains("tab run 3 of 3"),
        "{look}"
    );
    assert!(look.contains("no record of training yet"), "{look}");
    view.take(Asked::Open(false), 3);
    assert!(shown(&board, &view, 80, 24).contains("> b/s1"));

    // Nobody trains any more, and one is taken away.
    drop(writers);
    fs::remove_dir_all(folder.path().join("a-s2")).unwrap();
    board.refresh();
    let look = shown(&board, &view, 80, 24);
    for line in [
        "a-s1 +finished +400/400",
        "a-s2 +gone +120/400",
        "b/s1 +not saved +0/400",
    ] {
        let line = regex::Regex::new(line).unwrap();
        assert!(line.is_match(&look), "{look}");
    }
}

#[test]
fn what_a_run_adds_is_seen_and_what_a_resume_cuts_is_gone() {
    let (folder, mut writer) = running(2, 40);
    let (mut board, view) = open(&folder);
    assert_eq!(board.runs[0].step(), 40);
    go_on(&mut writer, 2, 40..200);
    // A line that is being written.
    let log = folder.path().join("top-k-s7/metrics.jsonl");
    board.refresh();
    let run = &board.runs[0];
    assert_eq!((run.step(), run.choices.len()), (200, 11));
    assert_eq!(run.curve("accuracy"), [(100.0, 0.61), (200.0, 0.74)]);
    let loss = run.loss();
    assert_eq!((loss.len(), loss[3].1), (20, run.steps[3].loss));
    assert_eq!(run.total_steps(), Some(400));
    assert_eq!(run.seconds_left(), Some(100.0));
    drop(writer);

    let whole = fs::read(&log).unwrap();
    fs::write(&log, [&whole[..], b"{\"kind\":\"step\",\"st"].concat()).unwrap();
    board.refresh();
    let run = &board.runs[0];
    assert_eq!((run.step(), &run.trouble), (200, &None));
    assert!(shown(&board, &view, 80, 24).contains("stopped before a checkpoint"));

    let text = String::from_utf8(whole).unwrap();
    let half: String = text
        .lines()
        .take(9)
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&log, half).unwrap();
    board.refresh();
    assert_eq!((board.runs[0].step(), board.runs[0].steps.len()), (90, 9));

    fs::write(&log, text + "no record\n").unwrap();
    board.refresh();
    assert_eq!(board.runs[0].step(), 200);
    let look = shown(&board, &view, 80, 24);
    assert!(
        look.contains("! metrics.jsonl, line 23: not a record"),
        "{look}"
    );
}

#[test]
fn no_size_is_too_small_and_no_terminal_too_plain() {
    let (folder, _writer) = running(34, 400);
    let (board, view) = open(&folder);
    for (width, height) in [
        (20, 5),
        (30, 10),
        (59, 12),
        (80, 24),
        (200, 60),
        (1000, 5),
        (20, 200),
    ] {
        for rows in [
            Rows::Fitting,
            Rows::Modules,
            Rows::Layers,
            Rows::Roles,
            Rows::Now,
        ] {
            for value in [Value::Active, Value::Rank, Value::Score] {
                let view = View {
                    rows,
                    value,
                    scrolled: 40,
                    ..view.clone()
                };
                let look = shown(&board, &view, width, height);
                assert!(look.starts_with("top-k-s7"), "{look}");
            }
        }
    }
    let draw = |look| {
        let area = Rect::new(0, 0, 100, 30);
        let mut drawn = ratatui::buffer::Buffer::empty(area);
        frame(
            &board,
            &View {
                look,
                ..view.clone()
            },
            area,
            &mut drawn,
        );
        drawn
    };
    let coloured = draw(Look::default());
    assert!(coloured.content.iter().any(|cell| cell.fg != Color::Reset));
    assert!(!text(&coloured).is_ascii());
    let plain = draw(Look {
        monochrome: true,
        ascii: true,
    });
    assert!(
        plain
            .content
            .iter()
            .all(|cell| (cell.fg, cell.bg) == (Color::Reset, Color::Reset))
    );
    assert!(text(&plain).is_ascii(), "{}", text(&plain));
    assert!(!text(&plain).contains('?'), "{}", text(&plain));
}

#[test]
fn a_plain_run_has_no_map_and_one_that_gave_its_plugins_up_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = begin(&folder.path().join("run"), 2);
    let (mut board, view) = open(&folder);
    let look = shown(&board, &view, 80, 24);
    assert!(
        look.contains("all 12 modules are active throughout"),
        "{look}"
    );
    let mut given_up = choice(20, 2);
    given_up.fault = Some("it panicked".to_owned());
    writer.allocation(&given_up).unwrap();
    board.refresh();
    let look = shown(&board, &view, 80, 24);
    assert!(
        look.contains("! without its plugins since step 20: it panicked"),
        "{look}"
    );
    assert!(look.contains("active modules by choice"), "{look}");
}

#[test]
fn no_damaged_log_is_too_damaged_to_be_looked_at() {
    let (folder, writer) = running(2, 240);
    drop(writer);
    let run = folder.path().join("top-k-s7");
    let logs = ["metrics.jsonl", "allocations.jsonl"].map(|name| run.join(name));
    let whole = logs.clone().map(|log| fs::read(log).unwrap());
    let mut random = Random::new(5);
    let mut below = |most: usize| (random.bits() % most as u64) as usize;
    for _ in 0..400 {
        for (log, whole) in logs.iter().zip(&whole) {
            let mut bytes = whole.clone();
            for _ in 0..below(4) {
                let at = below(bytes.len());
                match below(4) {
                    // Another digit most of the time, so that it stays a record.
                    0 => bytes[at] = below(256) as u8,
                    1 => bytes.truncate(at + 1),
                    2 => bytes.insert(at, b'9'),
                    _ => {
                        let digits = bytes.iter().enumerate();
                        let digits = digits.filter(|(_, byte)| byte.is_ascii_digit());
                        let places: Vec<usize> = digits.map(|(at, _)| at).collect();
                        if let Some(at) = places.get(below(places.len().max(1))) {
                            let more = ["9", "1e300", "-", "999999"][below(4)];
                            bytes.splice(*at..*at, more.bytes());
                        }
                    }
                }
            }
            fs::write(log, bytes).unwrap();
        }
        let (board, mut view) = open(&folder);
        for rows in [Rows::Fitting, Rows::Now] {
            view.rows = rows;
            view.curve += 1;
            let look = shown(&board, &view, 130, 40);
            assert!(look.starts_with("top-k-s7"), "{look}");
        }
    }
}
