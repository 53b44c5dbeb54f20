//! `sluice submit`: the rows of files, through a model, into a file.

mod chunk;
mod divide;
mod flow;
mod ids;
mod journal;
mod output;
mod paths;
mod progress;
mod target;
mod waiting;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Error, Result, anyhow};
use sluice_core::JobId;
use sluice_core::print::{Unprinted, count};

use crate::cli::{Global, ReplyMode, Submit};
use crate::input::{Notes, Reading};
use crate::takes::{InputSpec, learn};
use crate::{common, exit};
use chunk::{Reader, Unreadable};
use flow::{Ended, Flow};
use ids::Ids;
use journal::{Journal, Source, Written};
use output::Output;
use paths::Paths;
use progress::{Progress, Summary};
use target::Begin;

pub async fn run(global: &Global, options: Submit) -> Result<ExitCode> {
    let paths = Paths::of(&options)?;
    let sources = options.files.iter().map(|file| Source::of(file)).collect::<Result<Vec<_>>>()?;
    let journal = match paths.journal.as_deref() {
        Some(path) if options.resume => Some(Journal::open(path)?),
        _ => None,
    };

    let broker = common::connect(global).await?;
    let model = learn(&broker, &options.model, &options.takes).await?;
    let settings = Journal {
        job: match &journal {
            Some(journal) => journal.job.clone(),
            None => JobId::of(broker.user(), &uuid::Uuid::now_v7().to_string())?,
        },
        secret: match &journal {
            Some(journal) => journal.secret.clone(),
            None => uuid::Uuid::new_v4().simple().to_string(),
        },
        model: options.model.clone(),
        version: options.routing.model_version.clone(),
        then: options.routing.then.clone(),
        takes: model.inputs.iter().map(InputSpec::told).collect(),
        sources,
        rows_per_message: options.rows_per_message,
        reading: options.reading.told(),
        errors: paths.errors.path.clone(),
        replace: options.overwrite,
        written: Written::default(),
    };
    if let Some(earlier) = &journal {
        earlier.check_same(&settings)?;
    }
    let resumed = journal.is_some();
    let journal = journal.unwrap_or(settings);

    let replies = match options.reply {
        ReplyMode::Durable => broker.results(&journal.job).await.context(
            "cannot read durable results (use --reply inbox, or see that the model was started: that makes their store)",
        )?,
        ReplyMode::Inbox => broker.inbox().await?,
    };

    let total = journal.sources.iter().map(|source| source.bytes).sum::<Option<u64>>();
    let progress = Progress::start(total);
    let reading = Reading {
        inputs: model.inputs.into(),
        options: options.reading.clone(),
        notes: Notes::new(progress.notes()).into(),
        consumed: Arc::default(),
    };
    // Files are opened here, so that a wrong name or a wrong choice of columns is an error before anything is written.
    let reader = Reader::start(reading, options.files.clone(), options.rows_per_message, journal.written.rows)?;
    let begin = match (resumed, options.overwrite) {
        (true, _) => Begin::After(0),
        (false, true) => Begin::Over,
        (false, false) => Begin::New,
    };
    let mut output = Output::open(&paths, &journal.written, begin, journal.replace)?;
    let mut kept = paths.journal.as_ref().map(|path| (path.clone(), journal.clone()));
    if let Some((path, journal)) = &kept {
        // Before anything is asked for: whatever happens then, it can be gone on with.
        journal.save(path).inspect_err(|_| {
            if begin == Begin::New {
                output.discard()
            }
        })?;
    }
    paths.forget_what_is_replaced()?;
    let (results_of, job) = (Arc::clone(&broker), journal.job.clone());
    let flow = Flow {
        broker,
        model: options.model.clone(),
        ids: Ids::new(journal.job.clone(), journal.secret.clone()),
        routing: &options.routing,
        deadline: options.deadline,
        window: options.window as usize,
        mode: options.reply,
        body_bytes: model.body_bytes,
        resumed_at: resumed.then_some(journal.written.chunks),
    };
    let done = flow.run(reader, replies, &mut output, &progress, &mut kept).await;
    progress.finish();
    let way_on = match (&kept, &paths.output) {
        (Some((path, _)), _) => {
            format!("go on with the same command and --resume (the state is in {})", path.display())
        }
        (None, Some(target)) => format!("what there is stays in {}", target.written().display()),
        (None, None) => String::new(),
    };
    match done {
        Err(error) => Err(with_way_on(error, &way_on)),
        Ok((Ended::Interrupted, summary)) => {
            eprintln!(
                "interrupted; {} written{}{way_on}",
                count(summary.rows, "row is", "rows are"),
                if way_on.is_empty() { "" } else { "; " }
            );
            Ok(ExitCode::from(exit::INTERRUPTED))
        }
        Ok((Ended::Complete, summary)) => {
            output.finish().map_err(|error| with_way_on(error, &way_on))?;
            if let Some((path, _)) = &kept {
                std::fs::remove_file(path)
                    .or_else(ignore_missing)
                    .with_context(|| format!("all is written, but `{}` cannot be removed", path.display()))?;
            }
            if options.reply == ReplyMode::Durable
                && let Err(error) = results_of.remove_results(&job).await
            {
                eprintln!("everything is written, but its copy on the broker could not be removed: {error}");
            }
            conclude(&options, &paths, &summary)
        }
    }
}

/// What went wrong, and what can be done about it.
fn with_way_on(error: Error, way_on: &str) -> Error {
    if error.is::<Unprinted>() || way_on.is_empty() {
        error
    } else if error.is::<Unreadable>() {
        anyhow!("{error:#}; --resume cannot help with that: start over by --overwrite")
    } else {
        anyhow!("{error:#}; when that is mended, {way_on}")
    }
}

fn conclude(options: &Submit, paths: &Paths, summary: &Summary) -> Result<ExitCode> {
    if options.json {
        println!("{}", serde_json::to_string(summary)?);
    } else {
        eprintln!("{summary}");
        if summary.failed > 0 {
            eprintln!("{} failed: {}", count(summary.failed, "row", "rows"), paths.errors.path.display());
        }
    }
    Ok(if summary.failed > 0 { ExitCode::from(exit::SOME_FAILED) } else { ExitCode::SUCCESS })
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
