//! Rows from files, one at a time: nothing of a file is held but the row at hand.

mod csv;
mod jsonl;
mod npy;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use flate2::read::MultiGzDecoder;

use crate::cli::{Format, Header};
use crate::takes::InputSpec;

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
    pub format: Option<Format>,
    pub columns: Vec<String>,
    pub header: Header,
    /// Bytes read so far, over all files.
    pub consumed: Arc<AtomicU64>,
}

impl Reading {
    /// Opens a file, or standard input for `-`.
    pub fn open(&self, path: &Path) -> Result<Rows> {
        let rows = self.open_as(path);
        rows.with_context(|| format!("cannot read `{}`", path.display()))
    }

    fn open_as(&self, path: &Path) -> Result<Rows> {
        let format = match self.format.or_else(|| format_of(path)) {
            Some(format) => format,
            None if path == Path::new("-") => Format::Jsonl,
            None => bail!("its name does not tell what it is: say --format csv, jsonl, npy or npz"),
        };
        match format {
            Format::Csv => csv::rows(self.reader(path)?, self),
            Format::Jsonl => jsonl::rows(self.reader(path)?, self),
            Format::Npy => npy::rows(self.reader(path)?, self),
            Format::Npz if path == Path::new("-") => bail!("an NPZ archive cannot come from standard input"),
            Format::Npz => npy::archive_rows(path, self),
        }
    }

    fn reader(&self, path: &Path) -> Result<Box<dyn Read + Send>> {
        if path == Path::new("-") {
            return Ok(Box::new(BufReader::with_capacity(1 << 16, io::stdin())));
        }
        let counted = Counted { file: File::open(path)?, consumed: Arc::clone(&self.consumed) };
        let buffered = BufReader::with_capacity(1 << 16, counted);
        if path.extension().is_some_and(|extension| extension == "gz") {
            return Ok(Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(buffered))));
        }
        Ok(Box::new(buffered))
    }
}

/// What a file is, by its name.
fn format_of(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    match PathBuf::from(name).extension()?.to_str()? {
        "csv" => Some(Format::Csv),
        "jsonl" | "ndjson" | "json" => Some(Format::Jsonl),
        "npy" => Some(Format::Npy),
        "npz" => Some(Format::Npz),
        _ => None,
    }
}

struct Counted {
    file: File,
    consumed: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.consumed.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
