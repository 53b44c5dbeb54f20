//! `sluice-worker`: pulls requests off a queue, batches them, runs them, answers, then acknowledges.

mod cli;

use anyhow::Result;
use clap::Parser;
use sluice_service::{shutdown, telemetry};
use sluice_worker::config::Config;
use sluice_worker::{Exit, engine};

use cli::{Arguments, Command};

/// For Rust's many small allocations; libtorch keeps the system's, tuned in `prepare_process`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Command::Check(options)) = arguments.command {
        return options.run();
    }
    let Some(config) = arguments.config.load(Config::check)? else { return Ok(()) };
    telemetry::start(&config.worker.log, config.worker.log_format)?;
    engine::prepare_process(config.worker.jit_profiling);
    // One thread moves messages; models run on slots' threads. More would only take cores from them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(async { sluice_worker::run(config, shutdown::on_signal()?, |_| ()).await })?;
    // A hung slot's thread cannot be waited for.
    std::process::exit(if exit == Exit::Fault { 70 } else { 0 })
}
