//! Writing the record, which two files of a given size hold at most.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Line, write};

/// Where the record is written.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: File,
    bytes: u64,
    limit: u64,
}

impl Recorder {
    /// Goes on at the end of a file. One of more bytes than `limit` becomes `<path>.1`, in place of what was there, and another begins.
    pub fn open(path: PathBuf, limit: u64) -> Result<Self> {
        let (file, bytes) = append_to(&path)?;
        Ok(Self { path, file, bytes, limit })
    }

    /// Appends lines, so that they are there to be read.
    pub fn write(&mut self, lines: impl Iterator<Item = Line>) -> Result<()> {
        let mut text = Vec::new();
        for line in lines {
            write(&mut text, &line)?;
        }
        self.file.write_all(&text)?;
        self.bytes += text.len() as u64;
        if self.bytes > self.limit {
            let mut full = self.path.clone().into_os_string();
            full.push(".1");
            fs::rename(&self.path, &full)
                .with_context(|| format!("making way for more of `{}`", self.path.display()))?;
            (self.file, self.bytes) = append_to(&self.path)?;
        }
        Ok(())
    }
}

fn append_to(path: &PathBuf) -> Result<(File, u64)> {
    let open = || {
        let file = File::options().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        std::io::Result::Ok((file, bytes))
    };
    open().with_context(|| format!("cannot write the record `{}`", path.display()))
}
