//! Files of every kind, read row by row.

mod csv;
mod json;
mod numpy;

use std::io::Write;

use sluice_core::Datatype;

use super::*;

fn reading(inputs: &[(&str, Datatype, &[Option<usize>])]) -> Reading {
    let inputs = inputs.iter().map(|(name, datatype, sizes)| InputSpec {
        name: name.to_string(),
        datatype: *datatype,
        sizes: sizes.to_vec(),
    });
    let notes = Notes::new(|_| {}).into();
    Reading { inputs: inputs.collect(), options: Files::default(), notes, consumed: Arc::default() }
}

/// The line, and the row or what is wrong with it.
type Line = (u64, Result<Vec<Field>, String>);

fn read(reading: &Reading, name: &str, content: &[u8]) -> Result<Vec<Line>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(name);
    std::fs::write(&path, content)?;
    reading.open(&path)?.map(|item| item.map(|item| (item.line, item.row))).collect()
}

fn floats(field: &Field) -> Vec<f32> {
    field.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn one() -> Reading {
    reading(&[("x", Datatype::Fp32, &[Some(2)])])
}

/// Of a row that is good.
fn good(line: &Line) -> Vec<f32> {
    floats(&line.1.as_ref().expect("a row")[0])
}

/// What is wrong with a row.
fn bad(line: &Line) -> &str {
    line.1.as_ref().expect_err("a bad row")
}

/// Why a file is not read at all, or not to its end.
fn refusal(reading: &Reading, name: &str, content: &[u8]) -> String {
    match read(reading, name, content) {
        Ok(rows) => panic!("{name} was read: {rows:?}"),
        Err(error) => format!("{error:#}"),
    }
}

/// The reading, and what it says beside the rows.
fn heard(mut reading: Reading) -> (Reading, Arc<Mutex<Vec<String>>>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&said);
    reading.notes = Notes::new(move |text| ear.lock().expect("no panic").push(text.to_owned())).into();
    (reading, said)
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).expect("memory");
    encoder.finish().expect("memory")
}
