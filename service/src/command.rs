//! How a binary begins and ends: its command line, and its exit code.

use std::process::ExitCode;

use clap::Parser;
use sluice_core::print;

use crate::stack;

/// The command line was wrong: `EX_USAGE` of sysexits.h, as the command line `sluice` has it.
const USAGE: u8 = 64;

/// Reads the command line, runs, and tells what went wrong.
pub fn main<T: Parser>(run: impl FnOnce(T) -> anyhow::Result<ExitCode> + Send + 'static) -> ExitCode {
    stack::with_room(|| begin(run))
}

fn begin<T: Parser>(run: impl FnOnce(T) -> anyhow::Result<ExitCode>) -> ExitCode {
    let code = match T::try_parse() {
        Ok(arguments) => run(arguments).unwrap_or_else(|error| {
            print::note(format_args!("Error: {error:?}\n"));
            ExitCode::FAILURE
        }),
        Err(error) => {
            print::told(error.print());
            if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
        }
    };
    print::conclude(code)
}
