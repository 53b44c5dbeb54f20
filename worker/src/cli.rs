//! The command line of the worker: its arguments, and the table that `check` prints.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use sluice_service::config::Choice;
use sluice_worker::{check, engine};

/// Serves models from a queue: pulls requests, batches them, runs them through libtorch, answers, and only then
/// acknowledges.
///
/// Without `[[worker.slots]]` it runs what `sluice-scaler` says; with them, what they list.
/// The configuration is a TOML file; SLUICE_WORKER__HOST=a or SLUICE_BROKER__URL=... in the environment go over it.
/// SIGTERM drains: no new requests, running batches end, the rest is given back. A second signal ends at once.
/// Exit code 70: the process was of no more use (a hung model, a broken GPU context); start it again.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub config: Choice,
}

#[derive(Subcommand)]
pub enum Command {
    /// Try a package on this host: does it load, are its rows independent, and how is it served best?
    Check(Check),
}

/// Loads a package and runs random rows of the manifest's shapes at growing batch sizes, as slots would; prints what it measured and
/// what follows. A package is code: check one from a stranger only where it may do no harm. Floats are from 0 to 1, integers are 0 or 1; sizes that vary are taken as `sizes` says, else as 8 or as `padding` says.
#[derive(Args)]
pub struct Check {
    /// The folder with model.toml
    package: PathBuf,
    /// cpu or cuda:N; what the package asks for if not given
    #[arg(long)]
    device: Option<String>,
    /// The largest batch that is tried
    #[arg(long, default_value_t = 256, value_name = "ROWS")]
    largest: usize,
    /// Write the recommendation into model.toml
    #[arg(long)]
    write: bool,
    /// An operator that models may use though it may reach outside of them, as `worker.allow_operators` has it for hosts
    #[arg(long, value_name = "NAME")]
    allow_operator: Vec<String>,
    /// Print JSON for machines
    #[arg(long)]
    json: bool,
}

impl Check {
    /// Runs it.
    pub fn run(&self) -> Result<()> {
        let options = self;
        engine::prepare_process(false, &options.allow_operator)?;
        let device = options.device.as_deref().map(engine::Device::parse).transpose();
        let device = device.map_err(|reason| anyhow::anyhow!("--device {reason}"))?;
        let report = check::check(&options.package, device, options.largest.max(1), &|what| eprintln!("{what}"))?;
        if options.json {
            println!("{}", serde_json::to_string(&report)?);
        } else {
            let mut table = Table::new();
            table.load_style(if table.is_tty() { presets::UTF8_BORDERS_ONLY } else { presets::NOTHING });
            table.set_header(["THREADS", "ROWS", "ROWS/S", "P50 MS", "P99 MS", "MEMORY MIB"]);
            for column in table.column_iter_mut() {
                column.set_cell_alignment(CellAlignment::Right);
            }
            for one in &report.measurements {
                table.add_row([
                    one.threads.to_string(),
                    one.rows.to_string(),
                    format!("{:.0}", one.rate),
                    format!("{:.2}", one.p50_ms),
                    format!("{:.2}", one.p99_ms),
                    format!("{:.0}", one.memory_mib),
                ]);
            }
            let best = &report.recommendation;
            let independent = if report.bounded.is_none() { "; rows are independent" } else { "" };
            println!("model `{}` on {}, one slot{independent}", report.model, report.device);
            println!("{table}");
            if let Some(reason) = &report.bounded {
                println!("batches cannot be larger: {reason}");
            }
            if !report.writes.is_empty() {
                let names = engine::state::names(&report.writes);
                println!("forward writes {names}: each slot has a copy of its own, and takes its memory");
            }
            println!("recommended: batching.max_rows = {}", best.max_rows);
            println!("             resources.threads = {} ({} slots on this host)", best.threads, best.slots);
            println!("             resources.memory_mib = {}", best.memory_mib);
        }
        if options.write {
            check::write(&options.package, &report.recommendation)?;
            eprintln!("written into {}", options.package.join("model.toml").display());
        } else if !options.json {
            println!("--write puts that into model.toml");
        }
        Ok(())
    }
}
