//! What commands print and write: nothing that is not theirs is replaced, and what cannot be written is told.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use sluice_e2e::{Stack, binaries};
use xtask::broker::Kind;

/// The end of a command whose output's reader leaves after `lines` lines.
fn closed_after(lines: usize, mut command: Command) -> Result<(ExitStatus, String)> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdout = BufReader::new(child.stdout.take().context("a pipe")?);
    for _ in 0..lines {
        stdout.read_line(&mut String::new())?;
    }
    drop(stdout);
    let output = child.wait_with_output()?;
    Ok((output.status, String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn full(mut command: Command) -> Result<(ExitStatus, String)> {
    let output = command.stdout(File::options().write(true).open("/dev/full")?).output()?;
    Ok((output.status, String::from_utf8_lossy(&output.stderr).into_owned()))
}

pub async fn a_closed_pipe_ends_a_command_quietly_and_a_full_disk_is_an_error(kind: Kind) -> Result<()> {
    let stack = Stack::start(kind)?;
    let commands: [&[&str]; 6] =
        [&["queue", "--watch"], &["queue"], &["model", "list"], &["hosts"], &["completions", "bash"], &["--help"]];
    for arguments in commands {
        let (status, error) = closed_after(usize::from(arguments.len() > 1), stack.cli_command(arguments)?)?;
        assert_eq!((status.code(), error.as_str()), (Some(0), ""), "{arguments:?}");
        let (status, error) = full(stack.cli_command(arguments)?)?;
        assert_eq!(status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.starts_with("error: cannot write to standard output: No space left"), "{arguments:?}: {error}");
    }
    for program in ["sluice", "sluice-worker", "sluice-scaler"] {
        let mut command = Command::new(binaries::path(program)?);
        assert_eq!(command.arg("--nonsense").output()?.status.code(), Some(64), "{program}");
        let mut command = Command::new(binaries::path(program)?);
        command.arg(if program == "sluice" { "--version" } else { "--print-config" });
        let (status, error) = full(command)?;
        assert!(status.code() == Some(1) && error.contains("No space left"), "{program}: {error}");
    }
    Ok(())
}
