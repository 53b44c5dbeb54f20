//! On which line a record begins. The parser counts an ending of two characters late, and empty lines with what follows them.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

/// The lines that are read and not asked for yet: where each begins, and its number from 1. Empty ones are left out.
#[derive(Clone, Default)]
pub(super) struct Numbering(Arc<Mutex<VecDeque<(u64, u64)>>>);

impl Numbering {
    /// The line of a record that the parser says begins at this byte, or at the next that is no end of a line. Records are asked for in order.
    pub(super) fn line_at(&self, byte: u64) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while lines.front().is_some_and(|(begin, _)| *begin < byte) {
            lines.pop_front();
        }
        lines.front().map(|(_, line)| *line)
    }
}

/// Hands bytes on, and numbers their lines.
pub(super) struct Numbered<R> {
    bytes: R,
    numbering: Numbering,
    offset: u64,
    line: u64,
    line_is_empty: bool,
}

impl<R> Numbered<R> {
    /// The first line that is read has this number.
    pub(super) fn new(bytes: R, line: u64) -> Self {
        Self { bytes, numbering: Numbering::default(), offset: 0, line, line_is_empty: true }
    }

    pub(super) fn numbering(&self) -> Numbering {
        self.numbering.clone()
    }
}

impl<R: Read> Read for Numbered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.read(buffer)?;
        let mut lines = self.numbering.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in &buffer[..count] {
            match byte {
                b'\n' => {
                    self.line += 1;
                    self.line_is_empty = true;
                }
                b'\r' => {}
                _ if self.line_is_empty => {
                    self.line_is_empty = false;
                    lines.push_back((self.offset, self.line));
                }
                _ => {}
            }
            self.offset += 1;
        }
        Ok(count)
    }
}
