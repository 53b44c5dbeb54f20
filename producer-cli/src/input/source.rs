//! The bytes of a file or of standard input: decompressed, without a byte order mark, and what their beginning tells.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};
use flate2::read::MultiGzDecoder;

use crate::cli::Format;

/// So much is looked at to see what a file is.
const HEAD: usize = 512;
const NUMPY: &[u8] = b"\x93NUMPY";
const ZIP: &[u8] = b"PK\x03\x04";

/// A file as it is read, and how it begins.
pub(super) struct Source {
    pub(super) bytes: Box<dyn Read + Send>,
    head: Vec<u8>,
}

impl Source {
    /// Opens a file, or standard input for `-`. Gzip is undone, whatever the name.
    pub(super) fn open(path: &Path, consumed: &Arc<AtomicU64>) -> Result<Self> {
        let raw: Box<dyn Read + Send> = if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            Box::new(Counted { file: File::open(path)?, consumed: Arc::clone(consumed) })
        };
        let (head, bytes) = peek(Box::new(BufReader::with_capacity(1 << 16, raw)), HEAD, Extent::Line)?;
        let named_gzip = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
        let (head, bytes) = match head.starts_with(&[0x1f, 0x8b]) {
            true => peek(Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(bytes))), HEAD, Extent::Line)?,
            false if named_gzip => bail!("its name ends in .gz, and it is not gzip"),
            false => (head, bytes),
        };
        let Some(head) = head.strip_prefix(b"\xef\xbb\xbf") else { return Ok(Self { bytes, head }) };
        let mut bytes = bytes;
        bytes.read_exact(&mut [0; 3])?;
        Ok(Self { bytes, head: head.to_vec() })
    }

    /// What it is, as far as its beginning tells for sure. JSON is told by its first bracket.
    pub(super) fn format(&self) -> Option<Format> {
        let first = self.head.iter().find(|byte| !byte.is_ascii_whitespace());
        match first {
            _ if self.head.starts_with(NUMPY) => Some(Format::Npy),
            _ if self.head.starts_with(ZIP) => Some(Format::Npz),
            Some(b'{' | b'[') => Some(Format::Jsonl),
            _ => None,
        }
    }

    /// Refuses what cannot be text, with what to do about it.
    pub(super) fn refuse_binary(&self) -> Result<()> {
        const UNPACK: &str = "it is compressed in a way that is not read here: unpack it first, or pipe it in (-)";
        let refusals: [(&[u8], &str); 9] = [
            (NUMPY, "it is a NumPy array: say --format npy"),
            (
                ZIP,
                "it is a zip archive, such as an Excel workbook: save it as CSV (UTF-8), or unpack it; NumPy's archives are \
                 read by --format npz",
            ),
            (b"PAR1", "it is Parquet: write it as CSV or JSON Lines"),
            (b"ARROW1", "it is Arrow: write it as CSV or JSON Lines"),
            (b"\x28\xb5\x2f\xfd", UNPACK),
            (b"\xfd7zXZ", UNPACK),
            (b"BZh", UNPACK),
            (b"\xff\xfe", "it is UTF-16: save it as UTF-8"),
            (b"\xfe\xff", "it is UTF-16: save it as UTF-8"),
        ];
        match refusals.iter().find(|(magic, _)| self.head.starts_with(magic)) {
            Some((_, refusal)) => bail!("{refusal}"),
            None => Ok(()),
        }
    }

    /// A first line `sep=;`, as Excel has it: it is taken off.
    pub(super) fn take_separator(&mut self) -> Result<Option<u8>> {
        let Some([separator, end @ ..]) = self.head.strip_prefix(b"sep=") else { return Ok(None) };
        let end = match end {
            [b'\r', b'\n', ..] => 2,
            [b'\n', ..] => 1,
            _ => return Ok(None),
        };
        let separator = *separator;
        self.bytes.read_exact(&mut [0; 7][..5 + end])?;
        Ok(Some(separator))
    }
}

/// How much of a beginning is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// To the end of its first line: more may be long in coming.
    Line,
    All,
}

/// The first bytes, at most `limit`, and all of them as a reader.
pub(super) fn peek(
    mut bytes: Box<dyn Read + Send>,
    limit: usize,
    extent: Extent,
) -> io::Result<(Vec<u8>, Box<dyn Read + Send>)> {
    let mut head = Vec::new();
    let mut buffer = vec![0; 1 << 12];
    while head.len() < limit && !(extent == Extent::Line && head.contains(&b'\n')) {
        match bytes.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => head.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let whole = BufReader::with_capacity(1 << 16, Cursor::new(head.clone()).chain(bytes));
    Ok((head, Box::new(whole)))
}

/// What a file is, by its name.
pub(super) fn format_of(path: &Path) -> Option<Format> {
    match extension_of(path)?.as_str() {
        "csv" | "tsv" => Some(Format::Csv),
        "jsonl" | "ndjson" => Some(Format::Jsonl),
        "json" => Some(Format::Json),
        "npy" => Some(Format::Npy),
        "npz" => Some(Format::Npz),
        _ => None,
    }
}

/// The last part of its name but for `.gz`, in lower case.
pub(super) fn extension_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    Some(PathBuf::from(name).extension()?.to_str()?.to_owned())
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
