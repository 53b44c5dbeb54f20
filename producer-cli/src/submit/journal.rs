//! The state of a run that can be resumed: which job it is, and how much of the output is written. Kept beside the
//! output, replaced as a whole.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sluice_core::{JobId, ModelName};

/// What is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    pub job: JobId,
    pub model: ModelName,
    pub sources: Vec<Source>,
    pub rows_per_message: u32,
    /// The options by which the input is read.
    pub reading: Vec<String>,
    /// Where rows that failed go.
    #[serde(default)]
    pub errors: PathBuf,
    /// Whether what was there before may be replaced when all is written.
    #[serde(default)]
    pub replace: bool,
    pub written: Written,
}

/// An input file, as it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    pub path: PathBuf,
    /// `None` for standard input.
    pub bytes: Option<u64>,
    /// Unix milliseconds.
    pub modified: Option<u64>,
}

/// How far the output is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    pub chunks: u64,
    pub rows: u64,
    pub failed: u64,
    pub output_bytes: u64,
    pub error_bytes: u64,
}

impl Source {
    pub fn of(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Self { path: path.into(), bytes: None, modified: None });
        }
        let metadata = std::fs::metadata(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Self {
            path: path.into(),
            bytes: Some(metadata.len()),
            modified: modified.map(|since| since.as_millis() as u64),
        })
    }
}

impl Journal {
    /// Reads the state of an interrupted run.
    pub fn open(path: &Path) -> Result<Self> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("nothing to resume: there is no `{}`. A run that was completed leaves none", path.display())
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
        };
        serde_json::from_slice(&text).with_context(|| format!("`{}` is not the state of a run", path.display()))
    }

    /// Resuming with another input would mix up the answers.
    pub fn check_same(&self, now: &Self) -> Result<()> {
        let differs = if self.model != now.model {
            format!("it asked model `{}`", self.model)
        } else if self.sources != now.sources {
            "the input files are others, or have changed since".into()
        } else if self.rows_per_message != now.rows_per_message {
            format!("it had --rows-per-message {}", self.rows_per_message)
        } else if self.reading != now.reading {
            format!("it read the input by `{}`", self.reading.join(" "))
        } else if self.errors != now.errors {
            format!("it had --errors {}", self.errors.display())
        } else {
            return Ok(());
        };
        bail!("the interrupted run cannot be resumed like this: {differs}. --overwrite starts over")
    }

    /// Writes the state. A crash leaves the old or the new one.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let failed = || format!("cannot write `{}`", path.display());
        std::fs::write(&fresh, serde_json::to_vec_pretty(self)?)
            .inspect_err(|_| drop(std::fs::remove_file(&fresh)))
            .with_context(failed)?;
        std::fs::rename(&fresh, path).with_context(failed)
    }
}
