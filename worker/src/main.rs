//! `sluice-worker`: pulls requests off a queue, batches them, runs them, answers, then acknowledges.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use sluice_service::{config, shutdown, telemetry};
use sluice_worker::config::Config;
use sluice_worker::{Exit, engine};

/// For Rust's many small allocations; libtorch keeps the system's, tuned in `prepare_process`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves models from a queue: pulls requests, batches them, runs them through libtorch, answers, and only then
/// acknowledges.
///
/// The configuration is a TOML file; SLUICE_WORKER__HOST=a or SLUICE_BROKER__URL=... in the environment go over it.
/// SIGTERM drains: no new requests, running batches end, the rest is given back. A second signal ends at once.
/// Exit code 70: the process was of no more use (a hung model, a broken GPU context); start it again.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only check the configuration
    #[arg(long)]
    check_config: bool,
    /// Show the configuration as it is used, with secrets masked
    #[arg(long)]
    print_config: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let config: Config = config::load(arguments.config.as_deref())?;
    config.check()?;
    if arguments.print_config {
        print!("{}", config::show(&config));
    }
    if arguments.check_config || arguments.print_config {
        return Ok(());
    }
    telemetry::start(&config.worker.log, config.worker.log_format)?;
    engine::prepare_process(config.worker.jit_profiling);
    // One thread moves messages; models run on slots' threads. More would only take cores from them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exit = runtime.block_on(async { sluice_worker::run(config, shutdown::on_signal()?, |_| ()).await })?;
    // A hung slot's thread cannot be waited for.
    std::process::exit(if exit == Exit::Fault { 70 } else { 0 })
}
