//! Where examples stand, for errors that come after reading.

use std::path::{Path, PathBuf};

/// Where each example of a split stands: a file and a line of it, a file alone, or a number in something without lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Each source with the first example it has, in the order of the examples.
    sources: Vec<Source>,
    /// Where they are a selection, the number that each example has among all.
    selected: Option<Vec<usize>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    name: String,
    /// What its parts are called; empty where it is one example.
    unit: &'static str,
    first: usize,
    /// The lines of its examples; none where they are numbered from 1.
    lines: Vec<usize>,
}

impl Places {
    /// Examples numbered from 1 in something that has a `name` and parts called `unit`.
    pub fn numbered(name: &str, unit: &'static str) -> Self {
        Places {
            sources: vec![Source {
                name: name.to_owned(),
                unit,
                first: 0,
                lines: Vec::new(),
            }],
            selected: None,
        }
    }

    /// Adds examples of the file at `path`, one for each of `lines`.
    pub(super) fn add(&mut self, path: &Path, unit: &'static str, lines: Vec<usize>) {
        let first = self.sources.last().map_or(0, |s| s.first + s.lines.len());
        self.sources.push(Source {
            name: PathBuf::from(path).display().to_string(),
            unit,
            first,
            lines,
        });
    }

    /// Adds the one example that the file at `path` is.
    pub(super) fn add_file(&mut self, path: &Path) {
        self.add(path, "", vec![1]);
    }

    /// The places of the examples at `indices` alone.
    pub fn select(&self, indices: &[usize]) -> Self {
        let selected = indices.iter().map(|index| self.among_all(*index));
        Places {
            sources: self.sources.clone(),
            selected: Some(selected.collect()),
        }
    }

    fn among_all(&self, index: usize) -> usize {
        let selected = self.selected.as_ref();
        selected
            .and_then(|selected| selected.get(index).copied())
            .unwrap_or(index)
    }

    /// The place of the example at `index`: `train.csv, line 7`.
    pub fn name(&self, index: usize) -> String {
        let index = self.among_all(index);
        let source = self.sources.iter().rfind(|source| source.first <= index);
        match source {
            None => format!("example {}", index + 1),
            Some(source) if source.unit.is_empty() => source.name.clone(),
            Some(source) => {
                let at = index - source.first;
                let line = source.lines.get(at).copied().unwrap_or(at + 1);
                match source.name.is_empty() {
                    true => format!("{} {line}", source.unit),
                    false => format!("{}, {} {line}", source.name, source.unit),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_named_by_file_and_line() {
        let mut places = Places::default();
        places.add(Path::new("a.tsv"), "line", vec![2, 5]);
        places.add(Path::new("b.parquet"), "row", vec![1, 2]);
        places.add_file(Path::new("c.png"));
        // A selection, and one of that.
        let some = places.select(&[1, 3]);
        assert_eq!(some.name(1), "b.parquet, row 2");
        assert_eq!(some.select(&[0]).name(0), "a.tsv, line 5");
        assert_eq!(places.name(1), "a.tsv, line 5");
        assert_eq!(places.name(2), "b.parquet, row 1");
        assert_eq!(places.name(4), "c.png");
        assert_eq!(Places::default().name(0), "example 1");
        let stdin = Places::numbered("standard input", "line");
        assert_eq!(stdin.name(3), "standard input, line 4");
        assert_eq!(Places::numbered("", "text").name(0), "text 1");
    }
}
