//! The terminal: taken, drawn on, and given back however the program ends.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute};

use super::view::Asked;
use super::{Board, View, frame};
use crate::error::{Error, Result};
use crate::train::Stop;

/// The runs' files are looked at this often.
const LOOKS_APART: Duration = Duration::from_secs(1);
/// Keys and signals are.
const KEYS_APART: Duration = Duration::from_millis(200);

/// What writes to the terminal.
type Out = fn() -> Box<dyn Write>;

/// Shows the runs on the terminal that `out` writes to, until somebody leaves.
pub fn live(board: &mut Board, view: &mut View, out: Out) -> Result<()> {
    let stop = Stop::listen()?;
    let taken = Taken::take(out)?;
    let mut terminal = Terminal::new(CrosstermBackend::new(out())).map_err(lost)?;
    let mut looked = Instant::now();
    let mut stale = true;
    loop {
        if let Some(signal) = stop.signal() {
            drop(taken);
            let said = format!("stopped by {signal}");
            return Err(Error::interrupted(signal.0, said));
        }
        if looked.elapsed() >= LOOKS_APART {
            board.refresh();
            (looked, stale) = (Instant::now(), true);
        }
        if stale {
            let draw = terminal.draw(|to| {
                let area = to.area();
                frame(board, view, area, to.buffer_mut());
            });
            draw.map_err(lost)?;
            stale = false;
        }
        if !event::poll(KEYS_APART).map_err(lost)? {
            continue;
        }
        stale = true;
        match event::read().map_err(lost)? {
            Event::Key(key) if key.kind != KeyEventKind::Release => match asked(key) {
                Some(Asked::Leave) => return Ok(()),
                Some(asked) => view.take(asked, board.runs.len()),
                None => stale = false,
            },
            Event::Resize(..) => {}
            _ => stale = false,
        }
    }
}

fn asked(key: KeyEvent) -> Option<Asked> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char('c' | 'd') if control => Asked::Leave,
        KeyCode::Char('q') => Asked::Leave,
        KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => Asked::Run(1),
        KeyCode::BackTab | KeyCode::Left | KeyCode::Char('h') => Asked::Run(-1),
        KeyCode::Enter => Asked::Open(true),
        KeyCode::Esc | KeyCode::Backspace | KeyCode::Char('a') => Asked::Open(false),
        KeyCode::Char('r') => Asked::Rows,
        KeyCode::Char('v') => Asked::Value,
        KeyCode::Char('c') => Asked::Curve,
        KeyCode::Down | KeyCode::Char('j') => Asked::Scroll(1),
        KeyCode::Up | KeyCode::Char('k') => Asked::Scroll(-1),
        KeyCode::PageDown => Asked::Scroll(10),
        KeyCode::PageUp => Asked::Scroll(-10),
        _ => return None,
    })
}

fn lost(error: std::io::Error) -> Error {
    Error::failure("the terminal cannot be used")
        .because(error)
        .help("`--once` prints one look as text, without a terminal")
}

/// A terminal that is not as it was, until this is dropped. A panic gives it back before it speaks.
struct Taken {
    out: Out,
}

impl Taken {
    fn take(out: Out) -> Result<Self> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back(out);
            before(panic);
        }));
        TAKEN.store(true, Ordering::SeqCst);
        enable_raw_mode().map_err(lost)?;
        let taken = Taken { out };
        execute!(out(), EnterAlternateScreen, cursor::Hide).map_err(lost)?;
        Ok(taken)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back(self.out);
    }
}

/// Whether the terminal is to be given back: once, or the cursor would go where it was at first.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Nothing more can be done about a terminal that does not take it.
fn give_back(out: Out) {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    let _ = execute!(out(), LeaveAlternateScreen, cursor::Show);
    let _ = disable_raw_mode();
}
