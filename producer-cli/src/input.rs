//! Rows from files, one at a time: nothing of a file is held but the row at hand, and a few where it has to be found out
//! how they are written. Nothing is guessed in silence.

mod convert;
mod csv;
mod json;
mod npy;
mod npz;
mod source;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use bytes::BytesMut;

use crate::cli::{Files, Format, Numbers};
use crate::takes::InputSpec;
use convert::{Packing, Precision};
use source::Source;

pub use json::rows_of;
pub use npy::read_array;

/// One input of one row: its shape without the row dimension, and its bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub shape: Vec<i64>,
    pub data: BytesMut,
}

/// A row, or why there is none.
pub struct Item {
    /// The line in a text file, the index in an array; from 1.
    pub line: u64,
    /// One field per input, or what is wrong with the line.
    pub row: Result<Vec<Field>, String>,
}

/// Rows in order. An `Err` ends it: the file cannot be read on.
pub type Rows = Box<dyn Iterator<Item = Result<Item>> + Send>;

/// How files are to be read.
#[derive(Clone)]
pub struct Reading {
    pub inputs: Arc<[InputSpec]>,
    pub options: Files,
    pub notes: Arc<Notes>,
    /// Bytes read so far, over all files.
    pub consumed: Arc<AtomicU64>,
}

impl Reading {
    /// For the values of a single request.
    pub fn of_one_request(numbers: Numbers, notes: Notes) -> Self {
        let options = Files { numbers, ..Files::default() };
        Self { inputs: Arc::new([]), options, notes: notes.into(), consumed: Arc::default() }
    }

    /// Opens a file, or standard input for `-`.
    pub fn open(&self, path: &Path) -> Result<Rows> {
        let rows = self.open_as(path);
        rows.with_context(|| format!("cannot read `{}`", path.display()))
    }

    fn open_as(&self, path: &Path) -> Result<Rows> {
        let given = self.options.format.or_else(|| source::format_of(path));
        let from_stdin = path == Path::new("-");
        if given == Some(Format::Npz) && !from_stdin {
            return npz::rows(path, self);
        }
        let source = Source::open(path, &self.consumed)?;
        let format = match (given, source.format()) {
            (Some(format), _) => format,
            (None, Some(format @ Format::Npy)) => format,
            (None, Some(format)) if from_stdin => format,
            (None, _) if from_stdin => bail!("it does not tell what it is: say --format csv, jsonl, json or npy"),
            (None, _) => bail!("its name does not tell what it is: say --format csv, jsonl, json, npy or npz"),
        };
        match format {
            Format::Csv => csv::rows(source, path, self),
            Format::Jsonl | Format::Json => {
                json::rows(source, self, json::Form::of(format, self.options.format.is_some()))
            }
            Format::Npy => npy::rows(source, self),
            Format::Npz => bail!("an NPZ archive cannot come from standard input"),
        }
    }

    fn precision(&self) -> Precision {
        self.options.numbers.precision()
    }

    /// The values of a row as a field. That an integer was rounded is said once for each input.
    fn field(&self, spec: &InputSpec, shape: Vec<i64>, packing: Packing) -> Field {
        if let Some((integer, held)) = packing.rounded {
            self.notes.once(&spec.name, || {
                format!(
                    "integers in input `{}` are rounded, since {} does not hold them all: {integer} became {held}; with --exact \
                     such rows are errors",
                    spec.name, spec.datatype
                )
            });
        }
        Field { shape, data: packing.data }
    }
}

impl Numbers {
    fn precision(self) -> Precision {
        if self.exact { Precision::Exact } else { Precision::Nearest }
    }
}

/// What is said about files beside their rows, each once.
pub struct Notes {
    say: Box<dyn Fn(&str) + Send + Sync>,
    said: Mutex<BTreeSet<String>>,
}

impl Notes {
    /// Notes that are said so.
    pub fn new(say: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { say: Box::new(say), said: Mutex::default() }
    }

    fn once(&self, about: &str, text: impl FnOnce() -> String) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if !said.contains(about) {
            said.insert(about.to_owned());
            (self.say)(&text());
        }
    }
}

#[cfg(test)]
mod tests;
