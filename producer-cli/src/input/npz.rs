//! NPZ archives: one array per input, each read as a stream of its own, so that none is held whole.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::mpsc;

use anyhow::{Context, Result, bail};

use super::npy::Array;
use super::{Field, Item, Reading, Rows};
use crate::takes::InputSpec;

pub(super) fn rows(path: &Path, reading: &Reading) -> Result<Rows> {
    let reading = reading.clone();
    let mut arrays = Vec::new();
    for spec in reading.inputs.iter() {
        let array = Array::open(member(path, spec)?, spec);
        arrays.push(array.with_context(|| format!("its array `{}`", spec.name))?);
    }
    let rows = arrays[0].rows;
    if let Some((spec, array)) = reading.inputs.iter().zip(&arrays).find(|(_, array)| array.rows != rows) {
        bail!("`{}` has {} rows, `{}` has {rows}", spec.name, array.rows, reading.inputs[0].name);
    }
    let one = move |line| {
        let mut row: Result<Vec<Field>, String> = Ok(Vec::with_capacity(arrays.len()));
        for (array, spec) in arrays.iter_mut().zip(reading.inputs.iter()) {
            let mut next = || {
                let field = array.next_row(spec, &reading)?;
                if line == rows {
                    array.end()?;
                }
                anyhow::Ok(field)
            };
            let field = next().with_context(|| format!("its array `{}`", spec.name))?;
            row = row.and_then(|mut fields| {
                fields.push(field?);
                Ok(fields)
            });
        }
        Ok(Item { line, row })
    };
    Ok(Box::new((1..=rows).map(one)))
}

/// One member of an archive. What went wrong with it, its checksum above all, is told at its end.
struct Member {
    bytes: BufReader<io::PipeReader>,
    outcome: mpsc::Receiver<io::Result<()>>,
    ended: bool,
}

impl Read for Member {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.read(buffer)?;
        if count == 0 && !buffer.is_empty() && !self.ended {
            self.ended = true;
            let outcome = self.outcome.recv();
            outcome.unwrap_or_else(|_| Err(io::Error::other("it cannot be unpacked")))?;
        }
        Ok(count)
    }
}

fn member(path: &Path, spec: &InputSpec) -> Result<Member> {
    let mut archive = zip::ZipArchive::new(BufReader::new(File::open(path)?)).context("it is not an NPZ archive")?;
    let name = format!("{}.npy", spec.name);
    let Some(index) = archive.index_for_name(&name) else {
        let names: Vec<_> =
            archive.file_names().flatten().map(|name| name.trim_end_matches(".npy").to_owned()).collect();
        bail!("it holds no array `{}`; it holds {}", spec.name, names.join(", "));
    };
    let (reader, mut pipe) = io::pipe().context("cannot make a pipe")?;
    let (sender, outcome) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let copied = archive.by_index(index).map_err(io::Error::other).and_then(|mut member| {
            let copied = io::copy(&mut member, &mut pipe);
            copied.map(drop).map_err(|error| match error.kind() {
                // Its reader has gone, and nobody asks.
                io::ErrorKind::BrokenPipe => error,
                kind => io::Error::new(kind, format!("it is damaged: {error}")),
            })
        });
        // First how it ended, for whoever then finds the end.
        let _ = sender.send(copied);
        drop(pipe);
    });
    Ok(Member { bytes: BufReader::with_capacity(1 << 16, reader), outcome, ended: false })
}
