//! A JSON text of many lines: the texts of its rows. These are the entries of its array, or one object after another.

use std::io::{BufReader, Bytes, Read};
use std::iter::Peekable;

use anyhow::{Context, Result, bail, ensure};

use super::LONGEST_ROW;

/// Where the reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    /// Before an entry of the array.
    Entry,
    /// After an entry of the array.
    Comma,
    /// Between objects that stand one after another.
    Objects,
    End,
}

pub(super) struct Document {
    bytes: Peekable<Bytes<BufReader<Box<dyn Read + Send>>>>,
    line: u64,
    at: At,
}

impl Document {
    pub(super) fn new(bytes: Box<dyn Read + Send>) -> Self {
        Self { bytes: BufReader::with_capacity(1 << 16, bytes).bytes().peekable(), line: 1, at: At::Start }
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        match self.bytes.next_if(Result::is_err) {
            Some(error) => Ok(Some(error?)),
            None => Ok(self.bytes.peek().and_then(|byte| byte.as_ref().ok().copied())),
        }
    }

    fn take(&mut self) -> Result<Option<u8>> {
        let byte = self.bytes.next().transpose()?;
        self.line += u64::from(byte == Some(b'\n'));
        Ok(byte)
    }

    /// The next byte that is not space; it stays.
    fn next_visible(&mut self) -> Result<Option<u8>> {
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.take()?;
        }
        Ok(None)
    }

    fn row(&mut self) -> Result<Option<(u64, Vec<u8>)>> {
        loop {
            let byte = self.next_visible()?;
            let line = self.line;
            let cut = || format!("line {line}: its array of rows has no end: the file is cut");
            match self.at {
                At::Start => match byte {
                    Some(b'[') => {
                        self.take()?;
                        self.at = At::Entry;
                        if self.next_visible()? == Some(b']') {
                            self.at = At::Comma;
                        }
                    }
                    Some(_) => self.at = At::Objects,
                    None => return Ok(None),
                },
                At::Entry => {
                    byte.with_context(cut)?;
                    let text = self.value()?;
                    ensure!(!text.is_empty(), "line {line}: a row is missing before `{}`", self.shown()?);
                    self.at = At::Comma;
                    return Ok(Some((line, text)));
                }
                At::Comma => match byte.with_context(cut)? {
                    b',' => {
                        self.take()?;
                        self.at = At::Entry;
                    }
                    b']' => {
                        self.take()?;
                        if self.next_visible()?.is_some() {
                            let line = self.line;
                            bail!(
                                "line {line}: more comes after the array of rows; if each line is a row, say --format jsonl"
                            );
                        }
                        self.at = At::End;
                    }
                    _ => bail!("line {line}: `{}` stands between rows, where a comma belongs", self.shown()?),
                },
                At::Objects => match byte {
                    Some(b'{') => return Ok(Some((line, self.value()?))),
                    Some(_) => bail!(
                        "line {line}: `{}` begins neither an array of rows nor an object; if each line is a row, say --format \
                         jsonl",
                        self.shown()?
                    ),
                    None => self.at = At::End,
                },
                At::End => return Ok(None),
            }
        }
    }

    fn shown(&mut self) -> Result<char> {
        Ok(self.peek()?.map_or('\u{fffd}', char::from))
    }

    /// The text of a value: to the bracket that closes it, or to what ends a number or word.
    fn value(&mut self) -> Result<Vec<u8>> {
        let begin = self.line;
        let (mut text, mut depth, mut in_string) = (Vec::new(), 0_usize, false);
        while let Some(byte) = self.peek()? {
            if depth == 0 && !in_string && (matches!(byte, b',' | b']' | b'}') || byte.is_ascii_whitespace()) {
                return Ok(text);
            }
            text.extend(self.take()?);
            ensure!((text.len() as u64) < LONGEST_ROW, "the row at line {begin} is longer than {LONGEST_ROW} bytes");
            match byte {
                b'\\' if in_string => text.extend(self.take()?),
                b'"' => in_string = !in_string,
                b'[' | b'{' if !in_string => depth += 1,
                b']' | b'}' if !in_string => depth -= 1,
                _ => {}
            }
            if depth == 0 && !in_string && matches!(byte, b']' | b'}' | b'"') {
                return Ok(text);
            }
        }
        ensure!(depth == 0 && !in_string, "it ends within the row that begins at line {begin}: the file is cut");
        Ok(text)
    }
}

impl Iterator for Document {
    type Item = Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.row();
        if row.is_err() {
            self.at = At::End;
        }
        row.transpose()
    }
}
