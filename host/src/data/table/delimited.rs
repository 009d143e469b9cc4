//! CSV and TSV: lines of fields, with or without quotes around them.

use std::path::Path;

use super::{Column, Header, Layout, Positions, Row, check_texts, read_bytes, shorten};
use crate::data::problems::Problems;
use crate::error::{Error, Result};

/// Where the wanted columns are in the rows of a file.
struct Place {
    text: usize,
    text_pair: Option<usize>,
    label: Option<usize>,
    least: usize,
    most: usize,
}

pub(super) fn read(path: &Path, layout: &Layout) -> Result<Vec<Row>> {
    let bytes = read_bytes(path)?;
    let mut problems = Problems::new(path, layout.format.unit());
    let mut rows = Vec::new();
    let mut place: Option<Place> = None;
    let mut refusal = None;
    let mut skipped = Vec::new();
    let mut quoted: Option<usize> = None;
    let mut visit = |line: usize, fields: &[&[u8]]| {
        if refusal.is_some() {
            return;
        }
        let place = match &place {
            Some(place) => place,
            None => match locate(path, layout, fields) {
                Ok((found, is_header)) => {
                    let found = place.insert(found);
                    if is_header {
                        return;
                    }
                    &*found
                }
                Err(error) => {
                    refusal = Some(error);
                    return;
                }
            },
        };
        if fields.len() < place.least && layout.skip_short {
            skipped.push(line);
            return;
        }
        match row(line, fields, place, layout) {
            Ok(row) => {
                let texts = [Some(&row.text), row.text_pair.as_ref()];
                let enclosed =
                    |text: &String| text.len() > 1 && text.starts_with('"') && text.ends_with('"');
                if layout.quote_guessed
                    && !layout.quote
                    && texts.into_iter().flatten().any(enclosed)
                {
                    quoted = quoted.or(Some(line));
                }
                rows.push(row);
            }
            Err(what) => problems.push(line, what),
        }
    };
    let unclosed = match layout.quote {
        true => split_quoted(&bytes, layout.delimiter, &mut visit)?,
        false => {
            split_plain(&bytes, layout.delimiter, &mut visit);
            None
        }
    };
    if let Some(error) = refusal {
        return Err(error);
    }
    if let Some(line) = unclosed {
        return Err(Error::user(format!(
            "{}: a quote opened in the row at line {line} is never closed: it swallows the rest of the file",
            path.display()
        ))
        .help("Close or double the quote. If quotes are ordinary characters in this file, set `quote = false` in [data]."));
    }
    if !skipped.is_empty() {
        tracing::warn!(
            "{}: left out {} rows that are cut short in the published file (lines {:?})",
            path.display(),
            skipped.len(),
            &skipped[..skipped.len().min(5)]
        );
    }
    if let Some(line) = quoted {
        tracing::warn!(
            "{}, line {line}: a text is enclosed in quotes, which are taken as a part of it: set `quote = true` in \
             [data] if they only enclose it, `quote = false` if they belong to it",
            path.display()
        );
    }
    problems.finish(match layout.quote {
        true => "Mend or remove these rows. If quotes are ordinary characters in this file, set `quote = false` in [data].",
        false => "Mend or remove these rows. If fields with the delimiter in them are quoted, use `quote = true` in [data] with files of your own.",
    })?;
    Ok(rows)
}

/// Every line's fields, the delimiter and the line's end taken as they come.
fn split_plain(bytes: &[u8], delimiter: u8, visit: &mut dyn FnMut(usize, &[&[u8]])) {
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !line.is_empty() {
            let fields: Vec<&[u8]> = line.split(|&byte| byte == delimiter).collect();
            visit(index + 1, &fields);
        }
    }
}

/// Every record's fields by the rules of RFC 4180; the line of the last record if a quote in it is
/// never closed.
fn split_quoted(
    bytes: &[u8],
    delimiter: u8,
    visit: &mut dyn FnMut(usize, &[&[u8]]),
) -> Result<Option<usize>> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(bytes);
    let mut record = csv::ByteRecord::new();
    // The csv crate counts blank lines before a record as its beginning.
    let mut start = 0;
    let mut line = 1;
    let mut last = (0, 1);
    loop {
        while let Some(&byte) = bytes
            .get(start)
            .filter(|&&byte| byte == b'\n' || byte == b'\r')
        {
            line += usize::from(byte == b'\n');
            start += 1;
        }
        let more = reader.read_byte_record(&mut record).map_err(|error| {
            Error::failure(format!("the row at line {line} cannot be read")).because(error)
        })?;
        if !more {
            break;
        }
        let fields: Vec<&[u8]> = record.iter().collect();
        visit(line, &fields);
        last = (start, line);
        let end = (reader.position().byte() as usize).clamp(start, bytes.len());
        line += bytes[start..end]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count();
        start = end;
    }
    let tail = &bytes[last.0..];
    let quotes = tail.iter().filter(|&&byte| byte == b'"').count();
    let several_lines = tail.trim_ascii_end().contains(&b'\n');
    Ok((several_lines && quotes % 2 == 1).then_some(last.1))
}

/// Finds the wanted columns from a file's first line, and whether that line is a header.
fn locate(path: &Path, layout: &Layout, first: &[&[u8]]) -> Result<(Place, bool)> {
    let names: Vec<String> = first
        .iter()
        .map(|field| String::from_utf8_lossy(field).trim().to_owned())
        .collect();
    let index = |wanted: &[Column]| {
        wanted.iter().find_map(|column| match column {
            Column::Name(name) => names.iter().position(|found| found == name),
            Column::Index(index) => (*index < names.len()).then_some(*index),
        })
    };
    let (is_header, positions) = match layout.header {
        Header::Yes => (true, None),
        Header::No => (false, None),
        Header::Detect(None) => (true, None),
        Header::Detect(Some(positions)) => match index(&layout.text) {
            Some(_) => (true, None),
            None => (false, Some(positions)),
        },
    };
    if let Some(Positions {
        text,
        text_pair,
        label,
        least,
        most,
    }) = positions
    {
        return Ok((
            Place {
                text,
                text_pair,
                label: Some(label),
                least,
                most,
            },
            false,
        ));
    }
    if is_header {
        let wanted = [&layout.text, &layout.text_pair, &layout.label];
        for name in wanted.into_iter().filter_map(|columns| {
            columns.iter().find_map(|column| match column {
                Column::Name(name) if names.contains(name) => Some(name),
                _ => None,
            })
        }) {
            if names.iter().filter(|found| *found == name).count() > 1 {
                return Err(Error::user(format!(
                    "{}: two columns are named `{name}`",
                    path.display()
                ))
                .help("rename one of them, so that it is clear which is meant"));
            }
        }
    }
    let missing = |wanted: &[Column]| {
        let wanted = wanted
            .iter()
            .map(Column::to_string)
            .collect::<Vec<_>>()
            .join(" or ");
        let error = Error::user(format!("{}: there is no column {wanted}", path.display()));
        // The whole header in one column: it is divided by something else.
        let other = [('\t', "\\t"), (';', ";"), (',', ","), ('|', "|")]
            .into_iter()
            .find(|(mark, _)| {
                names.len() == 1
                    && names[0].contains(*mark)
                    && *mark as u32 != u32::from(layout.delimiter)
            });
        match is_header {
            true if other.is_some() => error.help(format!(
                "The header is one column by this delimiter: {}. Set `delimiter = \"{}\"` in [data].",
                shorten(&names.join(" | "), 200),
                other.map_or("", |(_, mark)| mark)
            )),
            true => error.help(format!(
                "The header names: {}.",
                shorten(&names.join(" | "), 200)
            )),
            false => error.help(format!(
                "The first line has {} columns: {}.",
                names.len(),
                shorten(&names.join(" | "), 200)
            )),
        }
    };
    let place = Place {
        text: index(&layout.text).ok_or_else(|| missing(&layout.text))?,
        text_pair: match layout.text_pair.is_empty() {
            true => None,
            false => Some(index(&layout.text_pair).ok_or_else(|| missing(&layout.text_pair))?),
        },
        label: match index(&layout.label) {
            None if layout.needs_label => return Err(missing(&layout.label)),
            label => label,
        },
        least: names.len(),
        most: names.len(),
    };
    Ok((place, is_header))
}

fn row(line: usize, fields: &[&[u8]], place: &Place, layout: &Layout) -> Result<Row, String> {
    if fields.len() < place.least || fields.len() > place.most {
        let expected = match place.least == place.most {
            true => place.least.to_string(),
            false => format!("{} to {}", place.least, place.most),
        };
        return Err(format!(
            "{} columns where {expected} are expected",
            fields.len()
        ));
    }
    let field = |index: usize| {
        std::str::from_utf8(fields[index])
            .map(str::to_owned)
            .map_err(|error| {
                format!(
                    "column {} is not valid UTF-8 (after {} bytes of it)",
                    index + 1,
                    error.valid_up_to()
                )
            })
    };
    let row = Row {
        line,
        text: field(place.text)?,
        text_pair: place.text_pair.map(field).transpose()?,
        label: place.label.map(field).transpose()?,
    };
    check_texts(row, layout)
}
