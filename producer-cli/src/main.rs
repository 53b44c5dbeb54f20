//! `sluice`: single requests, whole files, models, queues and dead letters, from the command line.

// Printing does not panic: a pipe may be closed, a disk full.
#[macro_use(print, println, eprint, eprintln)]
extern crate sluice_core;

mod broker_config;
mod cli;
mod common;
mod context;
mod dead;
mod dev;
mod ends;
mod hosts;
mod infer;
mod input;
mod lease;
mod model;
mod queue;
mod reports;
mod scale;
mod settings;
mod submit;
mod table;
mod takes;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use cli::{Arguments, Command};
use sluice_core::print::{self, Unprinted};
use sluice_service::telemetry::{self, LogFormat};

/// As in the worker: many small allocations, few large ones.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit codes beyond 0 and 1; `--help` explains them.
mod exit {
    /// Some rows failed, or the model answered with an error.
    pub const SOME_FAILED: u8 = 2;
    /// The command line was wrong.
    pub const USAGE: u8 = 64;
    /// Whoever read the answers left before all were written; as if SIGPIPE had ended it.
    pub const CLOSED: u8 = 141;
    /// Ended by Ctrl-C.
    pub const INTERRUPTED: u8 = 130;
}

fn main() -> ExitCode {
    sluice_service::stack::with_room(begin)
}

fn begin() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            print::told(error.print());
            return if error.use_stderr() { ExitCode::from(exit::USAGE) } else { print::conclude(ExitCode::SUCCESS) };
        }
    };
    // Client libraries log as errors what this command reports its own way.
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "error,lapin=off,sluice::settings=warn".into());
    telemetry::log(filter.into(), LogFormat::Text);
    let machine = arguments.command.json();
    let code = match run(arguments) {
        Ok(code) => code,
        Err(error) => match error.downcast_ref::<Unprinted>() {
            Some(unprinted) if unprinted.is_closed() => ExitCode::from(exit::CLOSED),
            _ if machine => {
                eprintln!("{}", serde_json::json!({ "error": format!("{error:#}") }));
                ExitCode::FAILURE
            }
            _ => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
    };
    print::conclude(code)
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { mut global, command } = arguments;
    if !matches!(command, Command::Completions { .. }) {
        global.configured = context::Configured::read(global.config.clone())?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Infer(options) => infer::run(&global, options).await,
            Command::Submit(options) => submit::run(&global, options).await,
            Command::Queue(options) => queue::run(&global, options).await,
            Command::Dead(options) => dead::run(&global, options).await,
            Command::Model(options) => model::run(&global, options).await,
            Command::Hosts(options) => hosts::run(&global, options).await,
            Command::Slots(options) => hosts::slots(&global, options).await,
            Command::Scale(options) => scale::run(&global, options).await,
            Command::Lease(options) => lease::run(&global, options).await,
            Command::Settings(options) => settings::run(&global, options).await,
            Command::BrokerConfig(options) => broker_config::run(&options),
            Command::Context(options) => context::show(&global, &options),
            Command::Dev(options) => dev::run(&global, options).await,
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Arguments::command(), "sluice", &mut script);
                print!("{}", String::from_utf8_lossy(&script));
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}
