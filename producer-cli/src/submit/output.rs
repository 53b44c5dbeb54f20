//! The output files: answers in order, and what failed beside them.

use std::fs::File;
use std::io::{BufWriter, Stdout, Write};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sluice_core::broker::Reply;
use sluice_core::print::Unprinted;
use sluice_core::{Datatype, ErrorCode, Failure, Tensor, codec};

use super::journal::Written;
use super::paths::Paths;
use super::target::{Begin, Target};
use super::waiting::{Asked, Entry};

/// Where answers go.
pub struct Output {
    answers: Answers,
    errors_target: Target,
    /// Made when the first row fails.
    errors: Option<Part>,
    begin: Begin,
    /// What an earlier run left may be replaced.
    replace: bool,
    pub written: Written,
}

enum Answers {
    Stdout(BufWriter<Stdout>),
    File(Target, Part),
}

/// A file that is written, or that an earlier run put in its place as its last steps.
enum Part {
    Open(BufWriter<File>),
    Finished,
}

impl Part {
    fn open(target: &Target, begin: Begin) -> Result<Self> {
        match begin {
            Begin::After(bytes) if target.is_finished(bytes) => Ok(Self::Finished),
            _ => Ok(Self::Open(target.open(begin)?)),
        }
    }

    fn write(&mut self, target: &Target, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Open(file) => file.write_all(bytes).with_context(|| cannot_write(target)),
            Self::Finished => bail!(
                "`{}`, which the earlier run wrote, is gone, and more was to come: --overwrite starts over",
                target.written().display()
            ),
        }
    }

    fn flush(&mut self, target: &Target) -> Result<()> {
        match self {
            Self::Open(file) => file.flush().with_context(|| cannot_write(target)),
            Self::Finished => Ok(()),
        }
    }

    fn finish(&self, target: &Target, replace: bool) -> Result<()> {
        match self {
            Self::Open(file) => target.finish(file.get_ref(), replace),
            Self::Finished => Ok(()),
        }
    }
}

impl Output {
    /// Opens the output: anew, or cut to what was written when the state was kept.
    pub fn open(paths: &Paths, written: &Written, begin: Begin, replace: bool) -> Result<Self> {
        let after = |bytes| if let Begin::After(_) = begin { Begin::After(bytes) } else { begin };
        if begin != Begin::New && written.error_bytes == 0 {
            // Of an earlier run that is replaced, or of rows that failed after the state was kept: they are asked for again.
            paths.errors.clear()?;
        }
        let begin_errors = if begin == Begin::Over { Begin::Over } else { Begin::New };
        if written.error_bytes == 0 {
            // Not only when the first row fails, or when all is done.
            let Target { path, place, .. } = &paths.errors;
            if !replace && paths.errors.is_file() && place.exists() {
                bail!("`{}` is there already: choose another name for errors", path.display());
            }
            paths.errors.try_out(begin_errors)?;
        }
        let answers = match &paths.output {
            None => Answers::Stdout(BufWriter::new(std::io::stdout())),
            Some(target) => Answers::File(target.clone(), Part::open(target, after(written.output_bytes))?),
        };
        let errors = match written.error_bytes {
            0 => None,
            bytes => Some(Part::open(&paths.errors, after(bytes))?),
        };
        let (errors_target, begin) = (paths.errors.clone(), begin_errors);
        Ok(Self { answers, errors_target, errors, begin, replace, written: *written })
    }

    /// Writes a chunk with its answers.
    pub fn write(&mut self, entry: &Entry) -> Result<()> {
        let chunk = &entry.chunk;
        let mut asked = entry.asked.iter().map(|asked| (asked.rows.end, answer(asked))).peekable();
        let (mut good, mut position) = (0, 0);
        for (offset, row) in chunk.rows.iter().enumerate() {
            let number = chunk.first_row + offset as u64;
            let failure = if let Some(fault) = &row.fault {
                Failure::invalid(fault.clone())
            } else {
                if asked.next_if(|(end, _)| *end <= good).is_some() {
                    position = 0;
                }
                good += 1;
                match asked.peek() {
                    Some((_, Ok(outputs))) => {
                        let line = answer_line(number, outputs, position)?;
                        position += 1;
                        self.answer(&line)?;
                        continue;
                    }
                    Some((_, Err(failure))) => failure.clone(),
                    None => Failure::new(ErrorCode::Internal, "it was not sent"),
                }
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

    fn answer(&mut self, line: &[u8]) -> Result<()> {
        match &mut self.answers {
            Answers::Stdout(stdout) => stdout.write_all(line).map_err(Unprinted::from)?,
            Answers::File(target, file) => file.write(target, line)?,
        }
        self.written.output_bytes += line.len() as u64;
        Ok(())
    }

    fn fail(&mut self, line: &str) -> Result<()> {
        let file = match &mut self.errors {
            Some(file) => file,
            None => self.errors.insert(Part::open(&self.errors_target, self.begin)?),
        };
        file.write(&self.errors_target, line.as_bytes())?;
        self.written.error_bytes += line.len() as u64;
        self.written.failed += 1;
        Ok(())
    }

    /// Hands everything to the system.
    pub fn flush(&mut self) -> Result<()> {
        match &mut self.answers {
            Answers::Stdout(stdout) => stdout.flush().map_err(Unprinted::from)?,
            Answers::File(target, file) => file.flush(target)?,
        }
        if let Some(errors) = &mut self.errors {
            errors.flush(&self.errors_target)?;
        }
        Ok(())
    }

    /// Takes away what was opened: nothing is in it yet.
    pub fn discard(&self) {
        if let Answers::File(Target { partial: Some(partial), .. }, _) = &self.answers {
            let _ = std::fs::remove_file(partial);
        }
    }

    /// Puts what is complete in its place: the answers first. Whatever fails then, or ends the run, a resumed one goes on with it.
    pub fn finish(mut self) -> Result<()> {
        // What an earlier run wrote of its failures is not true of this one.
        if self.errors.is_none() && self.replace && self.errors_target.is_file() && self.errors_target.place.exists() {
            self.errors = Some(Part::open(&self.errors_target, Begin::Over)?);
        }
        self.flush()?;
        if let Answers::File(target, file) = &self.answers {
            file.finish(target, self.replace)?;
        }
        self.errors.as_ref().map_or(Ok(()), |errors| errors.finish(&self.errors_target, self.replace))
    }
}

fn cannot_write(target: &Target) -> String {
    format!("cannot write `{}`", target.written().display())
}

/// What became of rows that were asked for together.
fn answer(asked: &Asked) -> Result<Vec<Tensor>, Failure> {
    match &asked.reply {
        Some(reply) => read(reply, asked.rows.len()),
        None => Err(Failure::new(ErrorCode::Internal, "it was not answered")),
    }
}

fn read(reply: &Reply, rows: usize) -> Result<Vec<Tensor>, Failure> {
    if reply.error.is_some() {
        return Err(codec::decode_failure(reply.content_type, &reply.body));
    }
    let response = codec::decode_response(reply.content_type, &reply.body)?;
    match response.outputs.iter().find(|output| output.rows() != rows) {
        None => Ok(response.outputs),
        Some(output) => Err(Failure::new(
            ErrorCode::Internal,
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
    use super::super::paths::tests::of;
    use super::*;

    #[test]
    fn a_run_that_ends_between_its_files_is_gone_on_with() {
        for occupied in ["out", "out.errors"] {
            let folder = tempfile::tempdir().expect("a folder");
            let at = folder.path();
            std::fs::write(at.join("in"), "x").expect("writes");
            let paths = of(at, &["in", "-o", "out"]).expect("paths");
            let mut output = Output::open(&paths, &Written::default(), Begin::New, false).expect("opens");
            output.answer(b"answer\n").expect("writes");
            output.fail("failure\n").expect("writes");
            output.flush().expect("writes");
            let written = output.written;
            // One of the two cannot be put in its place, and later it can.
            std::fs::write(at.join(occupied), "of somebody else").expect("writes");
            output.finish().expect_err("that is not replaced");
            std::fs::remove_file(at.join(occupied)).expect("removes");
            let paths = of(at, &["in", "-o", "out", "--resume"]).expect("paths");
            let resume = || Output::open(&paths, &written, Begin::After(0), false);
            resume().expect("what is there is known").finish().expect("both can be placed");
            let text = |name: &str| std::fs::read_to_string(at.join(name)).unwrap_or_default();
            assert_eq!((text("out").as_str(), text("out.errors").as_str()), ("answer\n", "failure\n"), "{occupied}");
            assert!(!at.join("out.partial").exists() && !at.join("out.errors.partial").exists());
            // It ended when all was done but for forgetting its state.
            let mut output = resume().expect("all is there");
            assert!(output.answer(b"more\n").is_err(), "that is finished");
            output.finish().expect("nothing is left to do");
            assert_eq!((text("out").as_str(), text("out.errors").as_str()), ("answer\n", "failure\n"), "{occupied}");
        }
    }

    #[test]
    fn errors_that_could_not_be_written_are_known_before_anything_is_asked() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("in"), "x").expect("writes");
        let open = |arguments: &[&str], begin| {
            let paths = of(folder.path(), arguments).expect("paths");
            Output::open(&paths, &Written::default(), begin, false).map(drop)
        };
        let error = open(&["in", "-o", "out", "--errors", "away/errors"], Begin::New).expect_err("no such folder");
        assert!(format!("{error:#}").contains("away/errors"), "{error:#}");
        assert!(!at("out.partial").exists(), "nothing is left");
        // Somebody made it since the run began.
        for name in ["mine", "out.partial"] {
            std::fs::write(at(name), "").expect("writes");
        }
        let error = open(&["in", "-o", "out", "--errors", "mine", "--resume"], Begin::After(0)).expect_err("taken");
        assert!(error.to_string().contains("mine` is there already"), "{error:#}");
        open(&["in", "-o", "out", "--resume"], Begin::After(0)).expect("nothing is in the way");
        assert!(!at("out.errors.partial").exists(), "nothing is left");
    }

    #[test]
    fn what_failed_in_a_run_that_is_replaced_goes_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("in"), "x").expect("writes");
        std::fs::write(at("out.errors.partial"), "of an earlier run").expect("writes");
        let paths = of(folder.path(), &["in", "-o", "out", "--overwrite"]).expect("paths");
        let open = || Output::open(&paths, &Written::default(), Begin::Over, true);
        let other = File::open(at("out.errors.partial")).expect("is there");
        other.lock().expect("locks");
        assert!(open().is_err() && at("out.errors.partial").exists(), "another run writes it");
        drop(other);
        open().expect("opens").finish().expect("ends");
        assert!(at("out").exists() && !at("out.errors.partial").exists());
    }

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
