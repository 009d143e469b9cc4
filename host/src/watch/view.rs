//! What of the runs is shown, and how: all that keys change.

use clap::ValueEnum;

use super::Board;

/// What is shown.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Which run is chosen.
    pub chosen: usize,
    /// Whether it is shown alone, not in the list of all.
    pub open: bool,
    /// What the rows of the map are.
    pub rows: Rows,
    /// What its shades are.
    pub value: Value,
    /// Which curve stands beside the loss.
    pub curve: usize,
    /// How many rows of the map are scrolled past.
    pub scrolled: usize,
    /// How it looks.
    pub look: Look,
}

/// What a terminal can show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// No colours.
    pub monochrome: bool,
    /// No letters beyond ASCII.
    pub ascii: bool,
}

/// What a row of the map is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Rows {
    /// Modules where there is room for all, or else layers, or else several layers
    #[default]
    Fitting,
    /// Each module
    Modules,
    /// All modules of a layer
    Layers,
    /// All modules of a role: every layer's query
    Roles,
    /// Roles by layers, of the choice in force alone
    Now,
}

impl Rows {
    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            Rows::Fitting => "what fits",
            Rows::Modules => "modules",
            Rows::Layers => "layers",
            Rows::Roles => "roles",
            Rows::Now => "now",
        }
    }

    /// The next in the circle.
    pub fn next(self) -> Self {
        match self {
            Rows::Fitting => Rows::Modules,
            Rows::Modules => Rows::Layers,
            Rows::Layers => Rows::Roles,
            Rows::Roles => Rows::Now,
            Rows::Now => Rows::Fitting,
        }
    }
}

/// What a shade of the map is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Value {
    /// Whether a module is active
    #[default]
    Active,
    /// The rank as a share of the largest
    Rank,
    /// The score as a share of the choice's largest
    Score,
}

impl Value {
    /// As it is shown.
    pub fn word(self) -> &'static str {
        match self {
            Value::Active => "active",
            Value::Rank => "rank",
            Value::Score => "score",
        }
    }

    /// The next in the circle.
    pub fn next(self) -> Self {
        match self {
            Value::Active => Value::Rank,
            Value::Rank => Value::Score,
            Value::Score => Value::Active,
        }
    }
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To leave.
    Leave,
    /// Another run: the next, or the one before.
    Run(isize),
    /// The chosen run alone, or all.
    Open(bool),
    /// Other rows of the map.
    Rows,
    /// Other shades.
    Value,
    /// Another curve.
    Curve,
    /// So many lines down, or up.
    Scroll(isize),
}

impl View {
    /// The view that a look at these runs begins with: of a single run, itself.
    pub fn of(board: &Board, look: Look) -> Self {
        View {
            open: board.runs.len() == 1,
            look,
            ..View::default()
        }
    }

    /// Changes what is shown.
    pub fn take(&mut self, asked: Asked, runs: usize) {
        let moved = |at: usize, by: isize| at.saturating_add_signed(by).min(runs.saturating_sub(1));
        match asked {
            Asked::Leave => {}
            Asked::Run(by) if runs > 1 => {
                let runs = runs as isize;
                self.chosen = (self.chosen as isize + by).rem_euclid(runs) as usize;
                (self.open, self.scrolled) = (true, 0);
            }
            Asked::Run(_) => {}
            Asked::Open(open) => self.open = open && runs > 0 || runs == 1,
            Asked::Rows => (self.rows, self.scrolled) = (self.rows.next(), 0),
            Asked::Value => self.value = self.value.next(),
            Asked::Curve => self.curve += 1,
            // The map stands on its foot: further rows are above.
            Asked::Scroll(by) if self.open => {
                self.scrolled = self.scrolled.saturating_add_signed(-by);
            }
            Asked::Scroll(by) => self.chosen = moved(self.chosen, by),
        }
    }
}
