//! `cargo xtask ci`: all of CI, in the order in which failures are cheap to find.

use std::time::Instant;

use anyhow::{Context, Result};
use xtask::setup::{self, Accelerator};

use crate::test::{cargo, cargo_with};
use crate::{demo, gpu_kit, test};

pub fn run() -> Result<()> {
    let began = Instant::now();
    let step = |name: &str, step: &dyn Fn() -> Result<()>| {
        eprintln!("\n== {name} ({} s)", began.elapsed().as_secs());
        step().with_context(|| format!("the step `{name}` failed"))
    };
    step("format", &|| cargo(&["fmt", "--all", "--check"]))?;
    step("dependency rules", &xtask::rules::check)?;
    step("set-up", &|| setup::libtorch(Accelerator::None).and_then(|()| setup::nats_server().map(drop)))?;
    step("lints", &|| cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    step("documentation", &|| {
        cargo_with(&["doc", "--workspace", "--no-deps", "--document-private-items"], &[("RUSTDOCFLAGS", "-D warnings")])
    })?;
    eprintln!("\n== tests ({} s)", began.elapsed().as_secs());
    let counts = test::run(&[]).context("the step `tests` failed")?;
    // Last of the tests, since it chooses the release for all that follows in this process.
    eprintln!("\n== the broker's contract on RabbitMQ 4 ({} s)", began.elapsed().as_secs());
    let arguments = ["--rabbitmq", "4", "--test", "contract", "rabbitmq"];
    let on_rabbitmq_4 = test::run(&arguments.map(String::from)).context("the step `contract on RabbitMQ 4` failed")?;
    step("the check of a GPU, without one", &gpu_kit::check_default)?;
    step("demo", &|| demo::run(&demo::Options::parse(&[])?))?;
    eprintln!("\nall of CI passed in {} s", began.elapsed().as_secs());
    println!("{}", counts + on_rabbitmq_4);
    Ok(())
}
