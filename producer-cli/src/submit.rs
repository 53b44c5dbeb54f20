//! `sluice submit`: the rows of files, through a model, into a file.

mod chunk;
mod flow;
mod journal;
mod output;
mod progress;
mod waiting;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use sluice_core::JobId;
use sluice_core::print::count;

use crate::cli::{Global, ReplyMode, Submit};
use crate::input::Reading;
use crate::takes::learn;
use crate::{common, exit};
use chunk::Reader;
use flow::{Ended, Flow};
use journal::{Journal, Source, Written};
use output::Output;
use progress::Progress;

pub async fn run(global: &Global, options: Submit) -> Result<ExitCode> {
    let paths = Paths::of(&options)?;
    let sources = options.files.iter().map(|file| Source::of(file)).collect::<Result<Vec<_>>>()?;
    let journal = match paths.journal.as_deref() {
        Some(path) if options.resume => Some(Journal::open(path)?),
        Some(path) => {
            paths.refuse_to_replace(&options, path)?;
            None
        }
        None => None,
    };
    let settings = Journal {
        job: match &journal {
            Some(journal) => journal.job.clone(),
            None => uuid::Uuid::now_v7().to_string().parse::<JobId>()?,
        },
        model: options.model.clone(),
        sources,
        rows_per_message: options.rows_per_message,
        columns: options.columns.clone(),
        written: Written::default(),
    };
    if let Some(earlier) = &journal {
        earlier.check_same(&settings)?;
    }
    let resumed = journal.is_some();
    let journal = journal.unwrap_or(settings);

    let broker = common::connect(global).await?;
    let model = learn(&broker, &options.model, &options.takes).await?;
    let replies = match options.reply {
        ReplyMode::Durable => broker.results(&journal.job).await.context(
            "cannot read durable results; a worker makes their store when it first starts (or use --reply inbox)",
        )?,
        ReplyMode::Inbox => broker.inbox().await?,
    };

    let reading = Reading {
        inputs: model.inputs.into(),
        format: options.format,
        columns: options.columns.clone(),
        header: options.header,
        consumed: Arc::default(),
    };
    let total = journal.sources.iter().map(|source| source.bytes).sum::<Option<u64>>();
    let progress = Progress::start(total);
    // Files are opened here, so that a wrong name or a wrong choice of columns is an error before anything is written.
    let reader = Reader::start(reading, options.files.clone(), options.rows_per_message, journal.written.rows)?;
    let output = Output::open(&paths, &journal.written)?;
    let (results_of, job) = (Arc::clone(&broker), journal.job.clone());
    let flow = Flow {
        broker,
        model: options.model.clone(),
        job: journal.job.clone(),
        routing: &options.routing,
        deadline: options.deadline,
        window: options.window as usize,
        mode: options.reply,
        body_bytes: model.body_bytes,
        resumed_at: resumed.then_some(journal.written.chunks),
    };
    let mut journal = paths.journal.as_ref().map(|path| (path.clone(), journal));
    let (ended, summary) = flow.run(reader, replies, output, &progress, &mut journal).await?;
    progress.finish();

    match ended {
        Ended::Complete => {
            if let Some((path, _)) = &journal {
                std::fs::remove_file(path).or_else(ignore_missing)?;
            }
            if options.reply == ReplyMode::Durable
                && let Err(error) = results_of.remove_results(&job).await
            {
                eprintln!("everything is written, but its copy on the broker could not be removed: {error}");
            }
        }
        Ended::Interrupted => {
            match &journal {
                Some((path, _)) => eprintln!(
                    "interrupted; {} rows are written. Go on with the same command and --resume (the state is in {})",
                    summary.rows,
                    path.display()
                ),
                None => eprintln!("interrupted; {} rows are written", summary.rows),
            }
            return Ok(ExitCode::from(exit::INTERRUPTED));
        }
    }
    if options.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        eprintln!("{summary}");
        if summary.failed > 0 {
            eprintln!("{} failed: {}", count(summary.failed, "row", "rows"), paths.errors.display());
        }
    }
    Ok(if summary.failed > 0 { ExitCode::from(exit::SOME_FAILED) } else { ExitCode::SUCCESS })
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Where everything goes.
pub struct Paths {
    /// `None` for standard output.
    output: Option<PathBuf>,
    errors: PathBuf,
    /// Where the state of a run is kept that can be resumed.
    journal: Option<PathBuf>,
}

impl Paths {
    fn of(options: &Submit) -> Result<Self> {
        let to_stdout = options.output == Path::new("-");
        let beside = |suffix: &str| {
            let mut name = options.output.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        let errors = match &options.errors {
            Some(errors) => errors.clone(),
            None if to_stdout => PathBuf::from("sluice.errors"),
            None => beside(".errors"),
        };
        let from_stdin = options.files.iter().any(|file| file == Path::new("-"));
        if options.resume && (to_stdout || from_stdin) {
            bail!(
                "--resume needs files: what came from standard input or went to standard output cannot be gone over again"
            );
        }
        if from_stdin && options.files.len() > 1 {
            bail!("standard input (-) cannot be mixed with files");
        }
        let resumable = !to_stdout && !from_stdin && options.reply == ReplyMode::Durable;
        Ok(Self {
            output: (!to_stdout).then(|| options.output.clone()),
            errors,
            journal: resumable.then(|| beside(".job")),
        })
    }

    fn refuse_to_replace(&self, options: &Submit, journal: &Path) -> Result<()> {
        if options.overwrite {
            return std::fs::remove_file(journal)
                .or_else(ignore_missing)
                .context("cannot replace the state of an earlier run");
        }
        if journal.exists() {
            bail!(
                "an earlier run that wrote `{}` was interrupted: go on with it by --resume, or start over by --overwrite",
                options.output.display()
            );
        }
        match &self.output {
            Some(output) if output.exists() => {
                bail!("`{}` is there already: replace it by --overwrite, or choose another name", output.display())
            }
            _ => Ok(()),
        }
    }
}
