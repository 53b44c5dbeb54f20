//! `cargo xtask test`: set-up, then every test of the workspace.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use xtask::setup::{self, Accelerator};

/// Runs the tests with nextest if it is there, else with `cargo test`.
pub fn run(arguments: &[String]) -> Result<()> {
    setup::libtorch(Accelerator::None)?;
    setup::nats_server()?;
    // The end-to-end tests run the real binaries.
    cargo(&["build", "--workspace", "--bins", "--examples"])?;
    let nextest = Command::new("cargo")
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut command = if nextest { vec!["nextest", "run", "--workspace"] } else { vec!["test", "--workspace"] };
    command.extend(arguments.iter().map(String::as_str));
    let status = Command::new("cargo")
        .args(&command)
        .env("SLUICE_TEST_BINARIES_BUILT", "1")
        .current_dir(xtask::root())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("tests failed");
    }
    Ok(())
}

/// Runs one cargo command in the checkout.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    eprintln!("cargo {}", arguments.join(" "));
    let status =
        Command::new("cargo").args(arguments).current_dir(xtask::root()).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("`cargo {}` failed", arguments.join(" "));
    }
    Ok(())
}
