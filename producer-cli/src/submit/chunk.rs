//! Packs rows into messages, on a thread of its own: reading a file waits for the disk.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use sluice_core::codec::{self, ContentType};
use sluice_core::{InferRequest, Tensor};
use tokio::sync::mpsc;

use crate::input::{Field, Reading};
use crate::takes::InputSpec;

/// Messages read ahead: enough to keep the window filled.
const READ_AHEAD: usize = 64;

/// Where a row came from.
#[derive(Debug, Clone)]
pub struct Place {
    pub file: Arc<str>,
    pub line: u64,
}

/// A row of a chunk: part of its message, or not fit to be sent.
#[derive(Debug, Clone)]
pub struct ChunkRow {
    pub place: Place,
    pub fault: Option<String>,
}

/// The rows of one message, and those between them that could not be read.
#[derive(Debug)]
pub struct Chunk {
    pub index: u64,
    /// The number of its first row over all files, from 0.
    pub first_row: u64,
    pub rows: Vec<ChunkRow>,
    /// The message; `None` if none of its rows could be read.
    pub body: Option<Bytes>,
    /// Rows in the message.
    pub good: u32,
    /// Bytes of input consumed by then.
    pub consumed: u64,
}

impl Chunk {
    /// Whether an earlier run wrote it, which wrote so many rows: all of a chunk or nothing, if it cut chunks alike.
    fn is_written(&self, rows: u64) -> Result<bool> {
        let end = self.first_row + self.rows.len() as u64;
        if self.first_row < rows && rows < end {
            bail!(
                "it wrote {rows} rows, and now a message has rows {} to {}, so it cut messages differently",
                self.first_row,
                end - 1
            );
        }
        Ok(end <= rows)
    }
}

/// An input that cannot be read to its end. What is mended is another input, so that a run cannot be gone on with.
#[derive(Debug)]
pub struct Unreadable(String);

impl fmt::Display for Unreadable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Chunks as they are read.
pub struct Reader {
    pub chunks: mpsc::Receiver<Result<Chunk>>,
}

impl Reader {
    /// Opens the first file, looks at the others, and starts reading at row `skip`.
    pub fn start(reading: Reading, files: Vec<PathBuf>, rows_per_message: u32, skip: u64) -> Result<Self> {
        let mut files = files.into_iter();
        let first = files.next().context("no files")?;
        let mut rows = reading.open(&first)?;
        let look = Reading { consumed: Arc::default(), ..reading.clone() };
        // What is read of a pipe is gone.
        for file in files.as_slice().iter().filter(|file| file.is_file()) {
            drop(look.open(file)?);
        }
        let mut name: Arc<str> = first.display().to_string().into();
        let (sender, chunks) = mpsc::channel(READ_AHEAD);
        let mut packer = Packer {
            inputs: Arc::clone(&reading.inputs),
            limit: rows_per_message,
            next_index: 0,
            next_row: 0,
            rows: Vec::new(),
            fields: Vec::new(),
        };
        std::thread::spawn(move || {
            let consumed = Arc::clone(&reading.consumed);
            let send = |chunk: Chunk| match chunk.is_written(skip) {
                // It is read again only to be counted.
                Ok(true) => true,
                Ok(false) => sender.blocking_send(Ok(chunk)).is_ok(),
                Err(error) => {
                    let unreadable = Unreadable("cannot go on with the earlier run".into());
                    let _ = sender.blocking_send(Err(error.context(unreadable)));
                    false
                }
            };
            loop {
                for item in rows.by_ref() {
                    let item = match item {
                        Ok(item) => item,
                        Err(error) => {
                            let unreadable = Unreadable(format!("cannot read on in `{name}`"));
                            let _ = sender.blocking_send(Err(error.context(unreadable)));
                            return;
                        }
                    };
                    let place = Place { file: Arc::clone(&name), line: item.line };
                    for chunk in packer.add(place, item.row, consumed.load(Ordering::Relaxed)) {
                        if !send(chunk) {
                            return;
                        }
                    }
                }
                let Some(file) = files.next() else { break };
                name = file.display().to_string().into();
                match reading.open(&file) {
                    Ok(opened) => rows = opened,
                    Err(error) => {
                        let unreadable = Unreadable("cannot read all files".into());
                        let _ = sender.blocking_send(Err(error.context(unreadable)));
                        return;
                    }
                }
            }
            if let Some(chunk) = packer.close(consumed.load(Ordering::Relaxed)) {
                send(chunk);
            }
        });
        Ok(Self { chunks })
    }
}

struct Packer {
    inputs: Arc<[InputSpec]>,
    limit: u32,
    next_index: u64,
    next_row: u64,
    rows: Vec<ChunkRow>,
    /// The good rows' fields, one list per row.
    fields: Vec<Vec<Field>>,
}

impl Packer {
    /// Adds a row; returns chunks that are full, or that cannot take it because its shape differs.
    fn add(&mut self, place: Place, row: Result<Vec<Field>, String>, consumed: u64) -> Vec<Chunk> {
        let mut done = Vec::new();
        match row {
            Ok(fields) => {
                let differs = self
                    .fields
                    .first()
                    .is_some_and(|first| first.iter().zip(&fields).any(|(one, other)| one.shape != other.shape));
                if differs {
                    done.extend(self.close(consumed));
                }
                self.fields.push(fields);
                self.rows.push(ChunkRow { place, fault: None });
            }
            Err(fault) => self.rows.push(ChunkRow { place, fault: Some(fault) }),
        }
        if self.rows.len() >= self.limit as usize {
            done.extend(self.close(consumed));
        }
        done
    }

    fn close(&mut self, consumed: u64) -> Option<Chunk> {
        if self.rows.is_empty() {
            return None;
        }
        let rows = std::mem::take(&mut self.rows);
        let fields = std::mem::take(&mut self.fields);
        let chunk = Chunk {
            index: self.next_index,
            first_row: self.next_row,
            good: fields.len() as u32,
            body: (!fields.is_empty()).then(|| self.encode(&fields)),
            consumed,
            rows,
        };
        self.next_index += 1;
        self.next_row += chunk.rows.len() as u64;
        Some(chunk)
    }

    fn encode(&self, rows: &[Vec<Field>]) -> Bytes {
        let tensor = |(at, spec): (usize, &InputSpec)| {
            let mut data = BytesMut::with_capacity(rows.iter().map(|row| row[at].data.len()).sum());
            for row in rows {
                data.extend_from_slice(&row[at].data);
            }
            let mut shape = vec![rows.len() as i64];
            shape.extend(&rows[0][at].shape);
            Tensor { name: spec.name.clone(), datatype: spec.datatype, shape, data: data.freeze() }
        };
        let request = InferRequest { inputs: self.inputs.iter().enumerate().map(tensor).collect(), outputs: vec![] };
        codec::encode_request(ContentType::MessagePack, &request)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sluice_core::Datatype;

    use super::*;
    use crate::cli::Files;
    use crate::input::Notes;

    fn packer(limit: u32) -> Packer {
        let input = InputSpec { name: "x".into(), datatype: Datatype::Uint8, sizes: vec![None] };
        Packer { inputs: vec![input].into(), limit, next_index: 0, next_row: 0, rows: vec![], fields: vec![] }
    }

    fn row(bytes: &[u8]) -> Result<Vec<Field>, String> {
        Ok(vec![Field { shape: vec![bytes.len() as i64], data: BytesMut::from(bytes) }])
    }

    #[test]
    fn chunks_close_when_full_or_when_the_shape_changes_and_keep_bad_rows_in_their_place() {
        let mut packer = packer(3);
        let place = || Place { file: "f".into(), line: 1 };
        assert!(packer.add(place(), row(&[1, 2]), 0).is_empty());
        assert!(packer.add(place(), Err("bad".into()), 0).is_empty());
        let full = packer.add(place(), row(&[3, 4]), 0).pop().expect("three rows are a chunk");
        assert_eq!((full.index, full.first_row, full.rows.len(), full.good), (0, 0, 3, 2));
        let body = codec::decode_request(ContentType::MessagePack, &full.body.expect("a body")).expect("decodes");
        assert_eq!((&body.inputs[0].shape[..], &body.inputs[0].data[..]), (&[2, 2][..], &[1, 2, 3, 4][..]));
        assert!(packer.add(place(), row(&[5]), 0).is_empty());
        let shorter = packer.add(place(), row(&[6, 7]), 0).pop().expect("another shape");
        assert_eq!((shorter.index, shorter.first_row, shorter.good), (1, 3, 1));
        let last = packer.close(0).expect("the rest");
        assert_eq!((last.index, last.first_row), (2, 4));
        assert!(packer.close(0).is_none());
    }

    fn reader(folder: &Path, files: &[(&str, &[u8])]) -> Result<Reader> {
        let inputs = [InputSpec { name: "x".into(), datatype: Datatype::Uint8, sizes: vec![Some(2)] }].into();
        let notes = Notes::new(|_| {}).into();
        let reading = Reading { inputs, options: Files::default(), notes, consumed: Arc::default() };
        let paths = files.iter().map(|(name, content)| {
            std::fs::write(folder.join(name), content).expect("writes");
            folder.join(name)
        });
        Reader::start(reading, paths.collect(), 1, 0)
    }

    #[test]
    fn all_files_are_looked_at_before_a_row_of_the_first_is_given() {
        let folder = tempfile::tempdir().expect("a folder");
        let good: (&str, &[u8]) = ("a.csv", b"5,3\n7,1\n");
        for bad in [("b.npy", &b"not numpy"[..]), ("b.csv", b"1,2,3\n"), ("b.unknown", b"")] {
            let refusal = reader(folder.path(), &[good, bad]).err().expect(bad.0);
            assert!(format!("{refusal:#}").contains(bad.0), "{refusal:#}");
        }
        let mut reader = reader(folder.path(), &[good, ("c.csv", b"9,4\n")]).expect("all can be read");
        let chunks: Vec<Chunk> =
            std::iter::from_fn(|| reader.chunks.blocking_recv()).map(|it| it.expect("read")).collect();
        assert_eq!(chunks.iter().map(|chunk| chunk.first_row).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(chunks[2].consumed, 12, "each byte counts once");
    }

    #[test]
    fn an_input_that_cannot_be_read_to_its_end_is_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let array =
            b"\x93NUMPY\x01\0\x46\0{'descr': '|u1', 'fortran_order': False, 'shape': (3, 2), }          \n\x01\x02\x03";
        let mut reader = reader(folder.path(), &[("cut.npy", array)]).expect("it begins well");
        let ends = std::iter::from_fn(|| reader.chunks.blocking_recv()).find_map(Result::err).expect("it is cut");
        assert!(ends.is::<Unreadable>(), "{ends:#}");
    }

    #[test]
    fn what_an_earlier_run_wrote_is_left_out_by_whole_chunks_only() {
        let chunk = |first_row, rows| Chunk {
            index: 0,
            first_row,
            rows: vec![ChunkRow { place: Place { file: "f".into(), line: 1 }, fault: None }; rows],
            body: None,
            good: 0,
            consumed: 0,
        };
        let written = |first_row, rows| chunk(first_row, rows).is_written(8).ok();
        assert_eq!((written(4, 4), written(8, 4), written(0, 1)), (Some(true), Some(false), Some(true)));
        assert_eq!((written(4, 5), written(0, 9)), (None, None), "some of its rows would have no answer");
    }
}
