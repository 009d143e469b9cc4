//! `dynalora watch`

use std::path::PathBuf;
use std::str::FromStr;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::{Common, print};
use crate::error::{Error, Result};
use crate::plugin::guard;
use crate::watch::{Board, Look, Rows, Value, View, frame, live, text};

/// Arguments of `dynalora watch`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folders of runs, or folders that hold runs at whatever depth, as those of a sweep
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Print one look as text, for which no terminal is needed
    #[arg(long)]
    once: bool,
    /// Columns and lines of that look
    #[arg(
        long,
        value_name = "COLUMNSxLINES",
        default_value = "80x24",
        requires = "once"
    )]
    size: Size,
    /// What a row of the map is at first
    #[arg(long, value_enum, default_value_t)]
    rows: Rows,
    /// What its shades are at first
    #[arg(long, value_enum, default_value_t)]
    shades: Value,
    /// Draw with the letters of ASCII alone
    #[arg(long)]
    ascii: bool,
}

/// Columns and lines.
#[derive(Clone, Copy, Debug)]
struct Size(u16, u16);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('x');
        let size = parts.and_then(|(x, y)| Some(Size(x.parse().ok()?, y.parse().ok()?)));
        let size = size.filter(|Size(x, y)| (20..=1000).contains(x) && (5..=1000).contains(y));
        size.ok_or_else(|| {
            "expected columns from 20 and lines from 5 to 1000, such as 80x24".to_owned()
        })
    }
}

/// Shows runs while they train.
pub fn run(arguments: &Arguments, _: &Common) -> Result<()> {
    let mut board = Board::open(&arguments.runs)?;
    let look = Look {
        monochrome: is_monochrome(),
        ascii: arguments.ascii,
    };
    let mut view = View {
        rows: arguments.rows,
        value: arguments.shades,
        ..View::of(&board, look)
    };
    if arguments.once {
        let Size(width, height) = arguments.size;
        let area = Rect::new(0, 0, width, height);
        let mut drawn = Buffer::empty(area);
        frame(&board, &view, area, &mut drawn);
        return print(&text(&drawn));
    }
    if !guard::stdout_is_terminal() {
        return Err(Error::user("standard output is no terminal")
            .help("`--once` prints one look as text, of any `--size`"));
    }
    live(&mut board, &mut view, guard::stdout)
}

/// Whether colours are not wanted (https://no-color.org), or not had.
fn is_monochrome() -> bool {
    let set = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let terminal = std::env::var("TERM").unwrap_or_default();
    set || terminal == "dumb" || terminal.starts_with("vt")
}
