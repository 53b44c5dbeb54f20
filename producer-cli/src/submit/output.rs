//! The output files: answers in order, and what failed beside them.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sluice_core::broker::Reply;
use sluice_core::{Datatype, Failure, Tensor, codec};

use super::Paths;
use super::chunk::Chunk;
use super::journal::Written;

/// Where answers go.
pub struct Output {
    answers: Box<dyn Write>,
    errors_path: PathBuf,
    /// Made when the first row fails.
    errors: Option<BufWriter<File>>,
    pub written: Written,
}

impl Output {
    /// Opens the output, cut to what was written when the state was kept.
    pub fn open(paths: &Paths, written: &Written) -> Result<Self> {
        let answers: Box<dyn Write> = match &paths.output {
            None => Box::new(BufWriter::new(std::io::stdout())),
            Some(path) => Box::new(cut(path, written.output_bytes)?),
        };
        let errors = if written.error_bytes > 0 {
            Some(cut(&paths.errors, written.error_bytes)?)
        } else {
            // Those of an earlier run are not of this one.
            std::fs::remove_file(&paths.errors)
                .or_else(super::ignore_missing)
                .with_context(|| format!("cannot replace `{}`", paths.errors.display()))?;
            None
        };
        Ok(Self { answers, errors_path: paths.errors.clone(), errors, written: *written })
    }

    /// Writes a chunk, given its reply if it was sent.
    pub fn write(&mut self, chunk: &Chunk, reply: Option<&Reply>) -> Result<()> {
        let answered = reply.map(|reply| read(reply, chunk.good as usize));
        let mut position = 0;
        for (offset, row) in chunk.rows.iter().enumerate() {
            let number = chunk.first_row + offset as u64;
            let failure = match (&row.fault, &answered) {
                (Some(fault), _) => Failure::invalid(fault.clone()),
                (None, Some(Ok(outputs))) => {
                    let line = answer_line(number, outputs, position)?;
                    position += 1;
                    self.answers.write_all(&line)?;
                    self.written.output_bytes += line.len() as u64;
                    continue;
                }
                (None, Some(Err(failure))) => failure.clone(),
                (None, None) => Failure::new(sluice_core::ErrorCode::Internal, "it was not sent"),
            };
            let line = json!({
                "row": number, "file": &*row.place.file, "line": row.place.line, "code": failure.code, "error": failure.message,
            });
            self.fail(&format!("{line}\n"))?;
        }
        self.written.chunks = chunk.index + 1;
        self.written.rows = chunk.first_row + chunk.rows.len() as u64;
        Ok(())
    }

    fn fail(&mut self, line: &str) -> Result<()> {
        let path = &self.errors_path;
        let failed = || format!("cannot write `{}`", path.display());
        if self.errors.is_none() {
            self.errors = Some(BufWriter::new(File::create(path).with_context(failed)?));
        }
        if let Some(errors) = &mut self.errors {
            errors.write_all(line.as_bytes()).with_context(failed)?;
        }
        self.written.error_bytes += line.len() as u64;
        self.written.failed += 1;
        Ok(())
    }

    /// Hands everything to the system.
    pub fn flush(&mut self) -> Result<()> {
        self.answers.flush().context("cannot write the output")?;
        if let Some(errors) = &mut self.errors {
            errors.flush().context("cannot write the errors")?;
        }
        Ok(())
    }
}

fn cut(path: &PathBuf, bytes: u64) -> Result<BufWriter<File>> {
    let open = || -> std::io::Result<File> {
        let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
        file.set_len(bytes)?;
        file.seek(SeekFrom::Start(bytes))?;
        Ok(file)
    };
    Ok(BufWriter::with_capacity(1 << 16, open().with_context(|| format!("cannot write `{}`", path.display()))?))
}

fn read(reply: &Reply, rows: usize) -> Result<Vec<Tensor>, Failure> {
    if reply.error.is_some() {
        return Err(codec::decode_failure(reply.content_type, &reply.body));
    }
    let response = codec::decode_response(reply.content_type, &reply.body)?;
    match response.outputs.iter().find(|output| output.rows() != rows) {
        None => Ok(response.outputs),
        Some(output) => Err(Failure::new(
            sluice_core::ErrorCode::Internal,
            format!("the answer has {} rows of `{}` for {rows} that were sent", output.rows(), output.name),
        )),
    }
}

/// One line: the row's number and its part of each output.
fn answer_line(number: u64, outputs: &[Tensor], position: usize) -> Result<Vec<u8>> {
    let mut line = format!("{{\"row\":{number},\"outputs\":{{").into_bytes();
    for (index, output) in outputs.iter().enumerate() {
        if index > 0 {
            line.push(b',');
        }
        serde_json::to_writer(&mut line, &output.name)?;
        line.push(b':');
        serde_json::to_writer(&mut line, &row_of(output, position))?;
    }
    line.extend_from_slice(b"}}\n");
    Ok(line)
}

/// One row of an output: a number if it has no further dimensions, else an array.
fn row_of(output: &Tensor, position: usize) -> Value {
    let scalar = output.shape.len() == 1;
    let values = match output.datatype {
        // Elements of their own lengths cannot be cut out by size.
        Datatype::Bytes => {
            let all = codec::data_as_json(output);
            let per_row: usize = output.shape[1..].iter().product::<i64>() as usize;
            let row = all.as_array().map(|all| all.iter().skip(position * per_row).take(per_row).cloned().collect());
            row.unwrap_or(Value::Null)
        }
        _ => {
            let bytes = output.data.len() / output.rows().max(1);
            let row = Tensor { data: output.data.slice(position * bytes..(position + 1) * bytes), ..output.clone() };
            codec::data_as_json(&row)
        }
    };
    match values {
        Value::Array(mut values) if scalar && values.len() == 1 => values.remove(0),
        values => values,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_becomes_a_line() {
        let floats: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let outputs = [
            Tensor { name: "y".into(), datatype: Datatype::Fp32, shape: vec![2, 2], data: floats.into() },
            Tensor { name: "label".into(), datatype: Datatype::Uint8, shape: vec![2], data: vec![7, 9].into() },
        ];
        let line = String::from_utf8(answer_line(41, &outputs, 1).expect("a line")).expect("text");
        assert_eq!(line, "{\"row\":41,\"outputs\":{\"y\":[3.0,4.0],\"label\":9}}\n");
        let words = Tensor {
            name: "w".into(),
            datatype: Datatype::Bytes,
            shape: vec![2, 1],
            data: vec![1, 0, 0, 0, b'a', 2, 0, 0, 0, b'b', b'c'].into(),
        };
        assert_eq!(row_of(&words, 1), json!(["bc"]));
    }
}
