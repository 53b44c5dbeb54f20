//! Packs rows into messages, on a thread of its own: reading a file waits for the disk.

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
                "the earlier run wrote {rows} rows, and now a message has rows {} to {}: it packed them differently, so that it cannot \
                 be gone on with; --overwrite starts over",
                self.first_row,
                end - 1
            );
        }
        Ok(end <= rows)
    }
}

/// Chunks as they are read.
pub struct Reader {
    pub chunks: mpsc::Receiver<Result<Chunk>>,
}

impl Reader {
    /// Opens the first file, and starts reading at row `skip`.
    pub fn start(reading: Reading, files: Vec<PathBuf>, rows_per_message: u32, skip: u64) -> Result<Self> {
        let mut files = files.into_iter();
        let first = files.next().context("no files")?;
        let mut rows = reading.open(&first)?;
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
                    let _ = sender.blocking_send(Err(error));
                    false
                }
            };
            loop {
                for item in rows.by_ref() {
                    let item = match item {
                        Ok(item) => item,
                        Err(error) => {
                            let _ = sender.blocking_send(Err(error.context(format!("cannot read on in `{name}`"))));
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
                        let _ = sender.blocking_send(Err(error));
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
    use sluice_core::Datatype;

    use super::*;

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
