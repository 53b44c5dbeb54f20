//! The state of a run that can be resumed: which job it is, and how much of the output is written. Kept beside the
//! output, replaced as a whole.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sluice_core::{JobId, ModelName};

use crate::common;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    pub job: JobId,
    /// What the ids of its requests follow from.
    #[serde(default)]
    pub secret: String,
    pub model: ModelName,
    /// The version that must answer, if one was said.
    #[serde(default)]
    pub version: Option<String>,
    /// The models that outputs went on to.
    #[serde(default)]
    pub then: Vec<ModelName>,
    /// What the model took, as `--takes` has it: messages are cut by it.
    #[serde(default)]
    pub takes: Vec<String>,
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

    /// Resuming with another input would mix up the answers, and with another model, version or pipeline there would be answers of both.
    pub fn check_same(&self, now: &Self) -> Result<()> {
        let versioned = |version: &Option<String>| match version {
            Some(version) => format!("--model-version {version}"),
            None => "no --model-version".into(),
        };
        let piped = |then: &[ModelName]| match then {
            [] => "no --then".into(),
            then => then.iter().map(|model| format!("--then {model}")).collect::<Vec<_>>().join(" "),
        };
        let differs = if self.model != now.model {
            format!("it asked model `{}`", self.model)
        } else if self.version != now.version {
            format!("it had {}, this has {}", versioned(&self.version), versioned(&now.version))
        } else if self.then != now.then {
            format!("it had {}, this has {}", piped(&self.then), piped(&now.then))
        } else if self.takes.is_empty() || self.secret.is_empty() {
            "an earlier release began it, which kept less of what it did".into()
        } else if self.takes != now.takes {
            format!("the model took {}, and takes {} now", self.takes.join(", "), now.takes.join(", "))
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
        // Whoever knows its secret knows the ids of its requests.
        common::write_private(Path::new(&fresh), &serde_json::to_vec_pretty(self)?)
            .inspect_err(|_| drop(std::fs::remove_file(&fresh)))
            .with_context(failed)?;
        std::fs::rename(&fresh, path).with_context(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_gone_on_with_only_as_it_began() {
        let name = |name: &str| -> ModelName { name.parse().expect("a name") };
        let began = Journal {
            job: "job".parse().expect("a job"),
            secret: "s".into(),
            model: name("m"),
            version: None,
            then: vec![name("next")],
            takes: vec!["x:FP32:?".into()],
            sources: vec![Source { path: "in.csv".into(), bytes: Some(7), modified: Some(1) }],
            rows_per_message: 4,
            reading: vec!["--header no".into()],
            errors: "out.errors".into(),
            replace: false,
            written: Written::default(),
        };
        let folder = tempfile::tempdir().expect("a folder");
        began.save(&folder.path().join("out.job")).expect("writes");
        let began = Journal::open(&folder.path().join("out.job")).expect("reads");
        began
            .check_same(&Journal { written: Written { rows: 3, ..Written::default() }, ..began.clone() })
            .expect("the same");
        type Change = fn(&mut Journal);
        let cases: [(Change, &str); 8] = [
            (|now| now.model = "other".parse().expect("a name"), "it asked model `m`"),
            (|now| now.version = Some("2".into()), "it had no --model-version, this has --model-version 2"),
            (|now| now.then.clear(), "it had --then next, this has no --then"),
            (|now| now.takes = vec!["x:FP32:4".into()], "the model took x:FP32:?, and takes x:FP32:4 now"),
            (|now| now.sources[0].bytes = Some(8), "the input files are others"),
            (|now| now.rows_per_message = 8, "it had --rows-per-message 4"),
            (|now| now.reading.clear(), "it read the input by `--header no`"),
            (|now| now.errors = "e".into(), "it had --errors out.errors"),
        ];
        for (change, expected) in cases {
            let mut now = began.clone();
            change(&mut now);
            let refusal = began.check_same(&now).expect_err(expected).to_string();
            assert!(refusal.contains(expected) && refusal.contains("--overwrite"), "{refusal}");
        }
        let older = Journal { takes: vec![], ..began.clone() };
        assert!(older.check_same(&began).is_err(), "nobody knows how its messages were cut");
    }
}
