//! JSON Lines: the text of each line.

use std::io::{BufRead, BufReader, Read};

use anyhow::{Result, anyhow};

use super::LONGEST_ROW;

pub(super) struct Lines {
    reader: BufReader<Box<dyn Read + Send>>,
    line: u64,
}

impl Lines {
    pub(super) fn new(bytes: Box<dyn Read + Send>) -> Self {
        Self { reader: BufReader::with_capacity(1 << 16, bytes), line: 0 }
    }
}

impl Iterator for Lines {
    type Item = Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut text = Vec::new();
            self.line += 1;
            match self.reader.by_ref().take(LONGEST_ROW).read_until(b'\n', &mut text) {
                Ok(0) => return None,
                Ok(read) if read as u64 == LONGEST_ROW => {
                    return Some(Err(anyhow!(
                        "line {} is longer than {LONGEST_ROW} bytes; an array of rows is read by --format json",
                        self.line
                    )));
                }
                Ok(_) if text.iter().all(u8::is_ascii_whitespace) => {}
                Ok(_) => return Some(Ok((self.line, text))),
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}
