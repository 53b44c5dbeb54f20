//! `sluice-worker`: pulls requests off a queue, batches them, runs them, answers, then acknowledges.

// Printing does not panic: a pipe may be closed, a disk full.
#[macro_use(println, eprintln)]
extern crate sluice_core;

mod cli;

use std::process::ExitCode;

use anyhow::Result;
use sluice_service::{command, shutdown, telemetry};
use sluice_worker::config::Config;
use sluice_worker::{Exit, engine};

use cli::{Arguments, Command};

/// For Rust's many small allocations; libtorch keeps the system's, tuned in `prepare_process`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    command::main(run)
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(Command::Check(options)) = arguments.command {
        return options.run().map(|()| ExitCode::SUCCESS);
    }
    let Some(config) = arguments.config.load(Config::check)? else { return Ok(ExitCode::SUCCESS) };
    telemetry::start(&config.worker.log, config.worker.log_format)?;
    engine::prepare_process(config.worker.jit_profiling, &config.worker.allow_operators)?;
    // One thread moves messages; models run on slots' threads. More would only take cores from them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(async { sluice_worker::run(config, shutdown::on_signal()?, |_| ()).await })?;
    // A hung slot's thread cannot be waited for.
    std::process::exit(if exit == Exit::Fault { 70 } else { 0 })
}
