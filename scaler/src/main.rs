//! `sluice-scaler`: starts and drains slots on hosts, by what waits in queues.

// Printing does not panic: a pipe may be closed, a disk full.
#[macro_use(println)]
extern crate sluice_core;

use std::io::BufReader;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use sluice_scaler::config::Config;
use sluice_scaler::record::{self, Recorder};
use sluice_service::config::Choice;
use sluice_service::{command, shutdown, telemetry};

/// Watches how far each model's queue lags, and tells hosts how many slots of which model to run, down to none.
///
/// Run two or more for safety: one leads, the others wait and take over within seconds. Stopping it changes nothing that runs.
/// The configuration is a TOML file; SLUICE_SCALER__INTERVAL=1s or SLUICE_BROKER__URL=... in the environment go over it.
/// What each model may have is said by its profile: `sluice model profile set MODEL scaling.max_slots=4`.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: Choice,
    /// Append what every decision rests on to a file, as JSON Lines
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// The largest size of the record; a full file is renamed to FILE.1, in place of the one before
    #[arg(long, value_name = "MIB", default_value_t = 1024, requires = "record", value_parser = clap::value_parser!(u64).range(1..))]
    record_limit: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Decide again on what was recorded, with other settings
    Replay(Replay),
}

/// Decides again on what `--record` wrote, with other settings, and prints how many slots there would have been.
///
/// Example:
///   sluice-scaler replay decisions.jsonl --set target_wait=500ms --set max_slots=16
#[derive(Args)]
#[command(verbatim_doc_comment)]
struct Replay {
    /// What was recorded
    file: PathBuf,
    /// A setting of `[scaling]`, for all models
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print JSON for machines
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    command::main(run)
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(Command::Replay(options)) = arguments.command {
        return options.run().map(|()| ExitCode::SUCCESS);
    }
    let Some(config) = arguments.config.load(Config::check)? else { return Ok(ExitCode::SUCCESS) };
    let limit = arguments.record_limit.saturating_mul(1 << 20);
    let record = arguments.record.map(|path| Recorder::open(path, limit)).transpose()?;
    telemetry::start(&config.scaler.log, config.scaler.log_format)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { sluice_scaler::run(config, record, shutdown::on_signal()?, |_| ()).await })?;
    Ok(ExitCode::SUCCESS)
}

impl Replay {
    fn run(&self) -> Result<()> {
        let file = std::fs::File::open(&self.file).with_context(|| format!("cannot read `{}`", self.file.display()))?;
        let models = record::replay(BufReader::new(file), |scaling| record::set(scaling, &self.set))?;
        if self.json {
            println!("{}", serde_json::to_string(&models)?);
            return Ok(());
        }
        for (model, replayed) in &models {
            println!(
                "{model}: {} decisions; {:.1} slot-seconds as recorded, {:.1} with these settings",
                replayed.decisions, replayed.recorded, replayed.replayed
            );
            for (at, recorded, replayed) in &replayed.changes {
                println!("  {:>9.1} s  {recorded:>3} slots, would be {replayed:>3}", *at as f64 / 1000.0);
            }
        }
        Ok(())
    }
}
