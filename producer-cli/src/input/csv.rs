//! CSV: some columns make an input, in row-major order. How the file is written is found out from its first records;
//! where these do not tell, it is asked.

mod columns;
mod header;
mod numbering;
mod separator;

use std::io::Read;
use std::path::Path;

use anyhow::{Result, bail};
use csv::{ReaderBuilder, StringRecord, StringRecordsIntoIter};
use sluice_core::print::count;

use super::convert::{Mark, Number, Packing, number_in};
use super::source::{Source, extension_of};
use super::{Field, Item, Reading, Rows};
use crate::cli::{Files, Header};
use columns::{by_name, select};
use header::FirstLine;
use numbering::{Numbered, Numbering};

/// So many records are looked at to see how a file is written.
const SAMPLE: usize = 50;
const NOT_UTF8: &str = "it is not UTF-8 (Excel: save as \"CSV UTF-8\")";
/// Names shown of a header.
const NAMES_SHOWN: usize = 6;

type Records = StringRecordsIntoIter<Numbered<Box<dyn Read + Send>>>;

pub(super) fn rows(mut source: Source, path: &Path, reading: &Reading) -> Result<Rows> {
    source.refuse_binary()?;
    let said = source.take_separator()?;
    let options = &reading.options;
    let by_extension = extension_of(path).filter(|extension| extension == "tsv").map(|_| b'\t');
    let delimiter = options.delimiter.or(said).or(by_extension);
    let bytes = Numbered::new(source.bytes, if said.is_some() { 2 } else { 1 });
    let numbering = bytes.numbering();
    let mut records = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter.unwrap_or(b','))
        .quoting(options.quote.0.is_some())
        .quote(options.quote.0.unwrap_or(b'"'))
        .escape(options.escape)
        .buffer_capacity(1 << 16)
        .from_reader(bytes)
        .into_records();
    // What need not be found out is not waited for.
    let wanted = if options.header == Header::Auto || delimiter.is_none() { SAMPLE } else { 2 };
    let first: Vec<_> = records.by_ref().take(wanted).collect();
    if let (Some(Err(error)), true) = (first.first(), options.header != Header::No) {
        bail!(
            "its first line cannot be read: {}",
            if is_utf8_error(error) { NOT_UTF8.into() } else { error.to_string() }
        );
    }
    let sample: Vec<&StringRecord> = first.iter().filter_map(|record| record.as_ref().ok()).collect();
    let Some(top) = sample.first() else {
        return Ok(Box::new(parsed(first, records, Layout::none(reading, numbering))));
    };
    if delimiter.is_none()
        && let Some(other) = separator::other_than_comma(&sample)
    {
        bail!("its fields seem to be separated by {other}: say --delimiter {other}, or --delimiter , if they are not");
    }
    let named = match options.header {
        Header::Yes => true,
        Header::No => false,
        Header::Auto if by_name(&options.columns) => true,
        Header::Auto => guess(&sample, path, reading)?,
    };
    let names = named.then(|| (*top).clone());
    let (head, rows) = sample.split_at(usize::from(named));
    let width = head.first().map_or_else(|| usual_width(rows), |names| names.len());
    if named && !rows.is_empty() && rows.iter().all(|row| row.len() == width + 1) {
        bail!(
            "its lines have one field more than its header, as R's write.table writes the names of rows: write it with row.names = \
             FALSE, or col.names = NA"
        );
    }
    let selections = select(&reading.inputs, &options.columns, names.as_ref(), width)?;
    let layout = Layout { reading: reading.clone(), mark: mark(options), selections, width, named, numbering };
    layout.refuse_decimal_commas(rows.first().copied(), delimiter)?;
    let skip = usize::from(named);
    Ok(Box::new(parsed(first.into_iter().skip(skip), records, layout)))
}

fn parsed(
    first: impl IntoIterator<Item = csv::Result<StringRecord>, IntoIter: Send + 'static>,
    records: Records,
    layout: Layout,
) -> impl Iterator<Item = Result<Item>> + Send {
    first.into_iter().chain(records).map(move |record| match record {
        Ok(record) => Ok(Item { line: layout.line(record.position()), row: layout.row(&record) }),
        // Text that is not UTF-8 spoils its line only.
        Err(error) => match error.kind() {
            csv::ErrorKind::Utf8 { pos, .. } => Ok(Item { line: layout.line(pos.as_ref()), row: Err(NOT_UTF8.into()) }),
            _ => Err(error.into()),
        },
    })
}

fn is_utf8_error(error: &csv::Error) -> bool {
    matches!(error.kind(), csv::ErrorKind::Utf8 { .. })
}

fn mark(options: &Files) -> Mark {
    if options.decimal_comma { Mark::Comma } else { Mark::Point }
}

/// Whether the first line is a header, where nobody said; that it is taken for one is told.
fn guess(sample: &[&StringRecord], path: &Path, reading: &Reading) -> Result<bool> {
    let (top, later) = (sample[0], &sample[1..]);
    let shown = || {
        let names: Vec<_> = top.iter().take(NAMES_SHOWN).collect();
        let more = if top.len() > NAMES_SHOWN { ",..." } else { "" };
        format!("{}{more}", names.join(","))
    };
    match header::first_line(top, later) {
        FirstLine::Row => Ok(false),
        FirstLine::Names => {
            reading.notes.once(&format!("header of {}", path.display()), || {
                format!(
                    "the first line of `{}` is taken for column names ({}); --header no takes it for a row, --header yes says that \
                     it is none",
                    path.display(),
                    shown()
                )
            });
            Ok(true)
        }
        FirstLine::Unclear => bail!(
            "its first line ({}) may be a row or column names: say --header no if it is a row, --header yes if it is names",
            shown()
        ),
    }
}

/// The width of most lines, and among equals of the earliest.
fn usual_width(rows: &[&StringRecord]) -> usize {
    let lines_like = |width: usize| rows.iter().filter(|row| row.len() == width).count();
    let widths = rows.iter().rev().map(|row| row.len());
    widths.max_by_key(|width| lines_like(*width)).unwrap_or(0)
}

/// How the lines of a file become rows.
struct Layout {
    reading: Reading,
    mark: Mark,
    selections: Vec<Vec<usize>>,
    width: usize,
    named: bool,
    numbering: Numbering,
}

impl Layout {
    /// Of a file without a line that can be read.
    fn none(reading: &Reading, numbering: Numbering) -> Self {
        Self { reading: reading.clone(), mark: Mark::Point, selections: vec![], width: 0, named: false, numbering }
    }

    fn line(&self, position: Option<&csv::Position>) -> u64 {
        position.map_or(0, |position| self.numbering.line_at(position.byte()).unwrap_or_else(|| position.line()))
    }

    fn row(&self, record: &StringRecord) -> Result<Vec<Field>, String> {
        if record.len() != self.width {
            let others = if self.named { "the header has" } else { "the other lines have" };
            return Err(format!("it has {}, {others} {}", count(record.len(), "field", "fields"), self.width));
        }
        let field = |(spec, columns): (&_, &Vec<usize>)| {
            let mut packing = Packing::new(spec, self.reading.precision(), columns.len());
            for column in columns {
                let text = record.get(*column).unwrap_or_default();
                packing.field(text, self.mark).map_err(|reason| format!("column {column}: {reason}"))?;
            }
            Ok(self.reading.field(spec, spec.row_shape(columns.len())?, packing))
        };
        self.reading.inputs.iter().zip(&self.selections).map(field).collect()
    }

    /// Decimal commas spoil every line, so they are spoken of once.
    fn refuse_decimal_commas(&self, row: Option<&StringRecord>, delimiter: Option<u8>) -> Result<()> {
        let (Some(row), Mark::Point) = (row, self.mark) else { return Ok(()) };
        let numeric =
            self.reading.inputs.iter().zip(&self.selections).filter(|(spec, _)| spec.datatype.size().is_some());
        let mut fields = numeric.flat_map(|(_, columns)| columns).filter_map(|column| row.get(*column));
        let comma = fields.find(|text| {
            number_in(text, Mark::Point).is_none() && matches!(number_in(text, Mark::Comma), Some(Number::Decimal(_)))
        });
        match comma {
            Some(text) if delimiter.is_some_and(|delimiter| delimiter != b',') => {
                bail!("`{text}` has a decimal comma: say --decimal-comma if its numbers are written so")
            }
            _ => Ok(()),
        }
    }
}
