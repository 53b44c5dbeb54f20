//! `cargo xtask bench`: builds what is measured, and measures it.

use std::process::Command;

use anyhow::{Context, Result, bail};
use xtask::setup::{self, Accelerator};

use crate::demo::target_folder;
use crate::test::cargo;

pub fn run(arguments: &[String]) -> Result<()> {
    setup::libtorch(Accelerator::None)?;
    setup::nats_server()?;
    setup::rabbitmq_server()?;
    cargo(&["build", "--release", "--workspace", "--bins", "--examples"])?;
    let status = Command::new(target_folder().join("release/sluice-bench"))
        .args(arguments)
        .env("SLUICE_TEST_BINARIES_BUILT", "1")
        .status()
        .context("cannot run sluice-bench")?;
    if !status.success() {
        bail!("the benchmark failed");
    }
    Ok(())
}
