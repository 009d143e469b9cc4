//! A look at the runs, drawn.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Row, Table, Widget};

use super::chart::{self, Curve};
use super::view::{Look, Rows, View};
use super::{Board, Followed, map};
use crate::number::{duration, size};
use crate::run::State;

const LOSS: Color = Color::Yellow;
const VALIDATION: Color = Color::Magenta;
const METRIC: Color = Color::Green;
/// Of runs in one chart.
const RUNS: [Color; 6] = [
    Color::Yellow,
    Color::Green,
    Color::Cyan,
    Color::Magenta,
    Color::Blue,
    Color::Red,
];

/// From so many columns on the choice in force has room beside all choices.
const WIDE: u16 = 120;

/// Curves are no lower than this where there is a map.
const LOWEST: u16 = 7;

/// A run is said to be silent after so many seconds without a record.
const SILENT: f64 = 60.0;

/// Draws the chosen run, or the list of all.
pub fn frame(board: &Board, view: &View, area: Rect, to: &mut Buffer) {
    let [body, foot] = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(area);
    match board.runs.get(view.chosen).filter(|_| view.open) {
        Some(run) => one(run, view, body, to),
        None => all(board, view, body, to),
    }
    keys(board, view, foot, to);
    settle(view.look, to);
}

/// One run by itself.
fn one(run: &Followed, view: &View, area: Rect, to: &mut Buffer) {
    let width = usize::from(area.width);
    let facts = in_lines(&facts(run), width);
    let mut troubles = Vec::new();
    troubles.extend(run.trouble.clone());
    if let Some((step, fault)) = &run.given_up {
        troubles.push(format!("without its plugins since step {step}: {fault}"));
    }
    let mut lines = vec![heading(run, width), progress(run, width)];
    lines.extend(facts.into_iter().map(Line::from));
    let loud = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
    let troubles = troubles
        .iter()
        .map(|it| Line::styled(format!("! {it}"), loud));
    lines.extend(troubles);
    let head = (lines.len() as u16).min(area.height);
    let plain = is_plain(run);
    let rest = area.height - head;
    let wide = area.width >= WIDE;
    let map = match plain {
        true => 1,
        false => wanted(run, view, wide, rest - rest.min(LOWEST.max(rest / 4))),
    };
    let [top, charts, below] = Layout::vertical([
        Constraint::Length(head),
        Constraint::Min(0),
        Constraint::Length(map.min(rest)),
    ])
    .areas(area);
    for (line, row) in lines.iter().zip(top.rows()) {
        line.render(row, to);
    }
    self::charts(run, view, charts, to);
    if plain {
        let modules = run.modules.len();
        if modules > 0 {
            Line::from(format!("all {modules} modules are active throughout")).render(below, to);
        }
        return;
    }
    maps(run, view, below, to);
}

/// Lines that the maps make use of, of so many.
fn wanted(run: &Followed, view: &View, wide: bool, most: u16) -> u16 {
    let beside = if wide { map::height_of_now(run) } else { 0 };
    map::height(run, view.rows, most).max(beside).min(most)
}

fn maps(run: &Followed, view: &View, area: Rect, to: &mut Buffer) {
    let (now, time) = (view.rows == Rows::Now, (view.rows, view.value));
    // Beside each other where the choices keep half of the room.
    let own = map::width_of_now(run).min(area.width / 2);
    if now {
        map::now(run, view.value, area, to);
    } else if area.width >= WIDE {
        let parts = [Constraint::Min(0), Constraint::Length(own)];
        let [left, right] = Layout::horizontal(parts).spacing(2).areas(area);
        map::over_time(run, time, view.scrolled, left, to);
        let height = map::height_of_now(run).min(right.height);
        map::now(run, view.value, Rect { height, ..right }, to);
    } else {
        map::over_time(run, time, view.scrolled, area, to);
    }
}

/// Whether every module was active all the time, at one rank.
fn is_plain(run: &Followed) -> bool {
    run.choices.iter().all(|choice| {
        let first = choice.ranks.first();
        choice.active.iter().all(|active| *active)
            && choice.ranks.iter().all(|rank| Some(rank) == first)
    })
}

fn charts(run: &Followed, view: &View, area: Rect, to: &mut Buffer) {
    let constant = Curve {
        faint: true,
        ..Curve::line(run.constant_loss(), Color::Reset)
    };
    let validation = Curve {
        line: false,
        ..Curve::line(run.validation_loss(), VALIDATION)
    };
    let mut title = vec![Span::raw("loss: ").bold(), "training".fg(LOSS)];
    if !validation.points.is_empty() {
        title.extend([Span::raw(", "), "• validation".fg(VALIDATION)]);
    }
    if !constant.points.is_empty() {
        title.extend([Span::raw(", "), Span::raw("constant").dim()]);
    }
    let [left, right] = halves(area);
    let curves = [constant, Curve::line(run.loss(), LOSS), validation];
    let nothing = "no record of training yet";
    chart::draw(Line::from(title), &curves, nothing, left, to);
    let names = run.curves();
    let Some(name) = names.get(view.curve % names.len().max(1)) else {
        return;
    };
    let curve = Curve::line(run.curve(name), METRIC);
    let title = Line::from(name.clone().fg(METRIC)).bold();
    chart::draw(title, &[curve], "nothing of it yet", right, to);
}

/// Two charts, or one where there is no room for two.
fn halves(area: Rect) -> [Rect; 2] {
    if area.width < 60 {
        return [area, Rect { width: 0, ..area }];
    }
    let half = Constraint::Fill(1);
    Layout::horizontal([half, half]).spacing(2).areas(area)
}

fn heading(run: &Followed, width: usize) -> Line<'static> {
    let about = run.about.as_ref();
    let about = about.map(|about| format!(" · {} · seed {}", about.chooser, about.seed));
    let (about, state) = (about.unwrap_or_default(), state(run));
    let taken = [&run.name, &about, &state]
        .into_iter()
        .map(|it| it.chars().count());
    let gap = width.saturating_sub(taken.sum()).max(2);
    Line::from(vec![
        Span::raw(run.name.clone()).bold(),
        Span::raw(about),
        Span::raw(" ".repeat(gap)),
        Span::raw(state).fg(colour(run.state)).bold(),
    ])
}

fn state(run: &Followed) -> String {
    let word = match run.state {
        None => return "its folder is gone".to_owned(),
        Some(State::Interrupted) => return "stopped, goes on by --resume".to_owned(),
        Some(State::NotSaved) => return "stopped before a checkpoint".to_owned(),
        Some(state) => state.word(),
    };
    let silent = run.age().filter(|age| *age >= SILENT);
    match silent.filter(|_| run.state == Some(State::Running)) {
        Some(age) => format!("{word}, silent for {}", duration(age)),
        None => word.to_owned(),
    }
}

fn colour(state: Option<State>) -> Color {
    match state {
        Some(State::Running) => Color::Green,
        Some(State::Finished) => Color::Cyan,
        Some(State::Interrupted | State::NotSaved) => Color::Yellow,
        Some(State::Collapsed) | None => Color::Red,
    }
}

fn progress(run: &Followed, width: usize) -> Line<'static> {
    let step = run.step();
    let Some(total) = run.total_steps() else {
        return Line::from(format!("step {step}"));
    };
    let share = step as f64 / total.max(1) as f64;
    let left = run.seconds_left();
    let left = left.map_or(String::new(), |it| format!(" · {} left", duration(it)));
    let text = format!(" {:.0}% · step {step} of {total}{left}", 100.0 * share);
    let room = width.saturating_sub(text.chars().count()).min(40);
    let done = (share.min(1.0) * room as f64).round() as usize;
    let bar = format!("{}{}", "█".repeat(done), "░".repeat(room - done));
    Line::from(vec![bar.fg(colour(run.state)), Span::raw(text)])
}

/// Where it stands, in numbers.
fn facts(run: &Followed) -> Vec<String> {
    let mut facts = Vec::new();
    let Some(last) = run.steps.last() else {
        return facts;
    };
    facts.push(format!("loss {:.4}", last.loss));
    if let Some((name, value)) = run.metric() {
        let best = run.best().filter(|(_, best)| *best != value);
        let best = best.map(|(step, best)| format!(" (best {best:.4} at step {step})"));
        facts.push(format!("{name} {value:.4}{}", best.unwrap_or_default()));
    }
    facts.push(format!("epoch {:.2}", last.epoch));
    facts.push(format!(
        "{} of {} active",
        last.active_modules,
        run.modules.len()
    ));
    if let Some(pace) = run.pace() {
        facts.push(format!("{:.0} tokens/s", pace.tokens));
        facts.push(format!("{} steps/s", significant(pace.steps)));
    }
    if let Some(bytes) = last.peak_memory {
        facts.push(format!("peak {}", size(bytes)));
    }
    let seconds = run.summary.as_ref().map_or(last.seconds, |it| it.seconds);
    facts.push(format!("after {}", duration(seconds)));
    if last.skipped > 0 {
        facts.push(format!("{} updates left out", last.skipped));
    }
    facts
}

/// Three digits of what may be small.
fn significant(number: f64) -> String {
    let digits = (2.0 - number.log10().floor()).clamp(0.0, 4.0) as usize;
    format!("{number:.digits$}")
}

/// Parts in as few lines as they take.
fn in_lines(parts: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 3 + part.chars().count() <= width => {
                line.push_str(" · ");
                line.push_str(part);
            }
            _ => lines.push(part.clone()),
        }
    }
    lines
}

/// All runs in a table, and their curves in one chart.
fn all(board: &Board, view: &View, area: Rect, to: &mut Buffer) {
    if board.runs.is_empty() {
        Line::from("no runs yet").render(area, to);
        return;
    }
    let chosen = &board.runs[view.chosen.min(board.runs.len() - 1)];
    let wanted = board.runs.len() as u16 + 1;
    let table = wanted.min((area.height / 2).max(4));
    let parts = [Constraint::Length(table), Constraint::Min(0)];
    let [table, charts] = Layout::vertical(parts).areas(area);
    list(board, view.chosen, table, to);
    let names = chosen.curves();
    let name = names.get(view.curve % names.len().max(1));
    let curves = |of: &dyn Fn(&Followed) -> Vec<(f64, f64)>| {
        let mut curves: Vec<Curve> = Vec::new();
        let runs = board.runs.iter().enumerate();
        for (at, run) in runs.clone().filter(|(at, _)| *at != view.chosen) {
            curves.push(Curve {
                faint: true,
                ..Curve::line(of(run), RUNS[at % RUNS.len()])
            });
        }
        // Last, and so above the others.
        curves.push(Curve::line(of(chosen), RUNS[view.chosen % RUNS.len()]));
        curves
    };
    let [left, right] = halves(charts);
    let title = |name: &str| Line::from(format!("{name} of all runs")).bold();
    let loss = curves(&Followed::loss);
    chart::draw(title("training loss"), &loss, "no record yet", left, to);
    if let Some(name) = name {
        let curves = curves(&|run: &Followed| run.curve(name));
        chart::draw(title(name), &curves, "nothing of it yet", right, to);
    }
}

fn list(board: &Board, chosen: usize, area: Rect, to: &mut Buffer) {
    let room = usize::from(area.height.saturating_sub(1)).max(1);
    // The chosen one is always among those that are seen.
    let first = (chosen + 1).saturating_sub(room);
    let seen = board.runs.iter().enumerate().skip(first).take(room);
    let rows = seen.map(|(at, run)| {
        let loss = run.steps.last().map(|last| format!("{:.4}", last.loss));
        let metric = run
            .metric()
            .map(|(name, value)| format!("{name} {value:.4}"));
        let total = run.total_steps();
        let of = total.map_or(String::new(), |total| format!("/{total}"));
        let pace = run.pace().map(|pace| format!("{:.0}", pace.tokens));
        let mark = if at == chosen { "> " } else { "  " };
        let style = match at == chosen {
            true => Style::new().add_modifier(Modifier::BOLD),
            false => Style::new(),
        };
        let state = run.state.map_or("gone", State::word);
        Row::new([
            Line::from(format!("{mark}{}", run.name)).fg(RUNS[at % RUNS.len()]),
            Line::from(state).fg(colour(run.state)),
            Line::from(format!("{}{of}", run.step())),
            Line::from(loss.unwrap_or_default()),
            Line::from(metric.unwrap_or_default()),
            Line::from(pace.unwrap_or_default()),
            Line::from(run.seconds_left().map(duration).unwrap_or_default()),
        ])
        .style(style)
    });
    let widths = [
        Constraint::Min(12),
        Constraint::Length(11),
        Constraint::Length(11),
        Constraint::Length(7),
        Constraint::Length(17),
        Constraint::Length(8),
        Constraint::Length(10),
    ];
    let head = [
        "  run", "state", "step", "loss", "metric", "tokens/s", "left",
    ];
    let head = Row::new(head).style(Style::new().add_modifier(Modifier::DIM));
    Widget::render(Table::new(rows, widths).header(head), area, to);
}

fn keys(board: &Board, view: &View, area: Rect, to: &mut Buffer) {
    let mut keys = vec!["q leave".to_owned()];
    if board.runs.len() > 1 {
        let runs = board.runs.len();
        match view.open {
            true => keys.push(format!("tab run {} of {runs}", view.chosen + 1)),
            false => keys.push(format!("↑↓ enter: one of {runs} runs")),
        }
    }
    if view.open && board.runs.len() > 1 {
        keys.push("a all".to_owned());
    }
    keys.push("c curve".to_owned());
    if view.open {
        keys.push(format!("r rows: {}", view.rows.word()));
        keys.push(format!("v shades: {}", view.value.word()));
        keys.push("↑↓ scroll".to_owned());
    }
    let line = Line::from(keys.join("  ")).add_modifier(Modifier::DIM);
    line.render(area, to);
}

/// Takes away what the terminal cannot show.
fn settle(look: Look, to: &mut Buffer) {
    for cell in &mut to.content {
        if look.monochrome {
            cell.set_fg(Color::Reset).set_bg(Color::Reset);
        }
        if look.ascii && !cell.symbol().is_ascii() {
            let plain = plain(cell.symbol());
            cell.set_symbol(plain);
        }
    }
}

/// A letter of ASCII in the place of another.
fn plain(symbol: &str) -> &'static str {
    match symbol {
        " " => " ",
        "·" => ".",
        "░" => ":",
        "▒" => "+",
        "▓" => "x",
        "█" => "#",
        "─" => "-",
        "│" => "|",
        "└" => "+",
        "•" => "o",
        "↑" => "^",
        "↓" => "v",
        "→" => ">",
        "…" => "~",
        "⠀" => " ",
        // Points of Braille.
        braille if ("\u{2801}".."\u{2900}").contains(&braille) => "*",
        _ => "?",
    }
}

/// What was drawn, as text: a line for each that is not empty at the end.
pub fn text(drawn: &Buffer) -> String {
    let rows = drawn.area.rows().map(|row| {
        let cells = row.columns().map(|at| drawn[(at.x, at.y)].symbol());
        let line: String = cells.collect();
        line.trim_end().to_owned()
    });
    let rows: Vec<String> = rows.collect();
    rows.join("\n").trim_end().to_owned()
}
