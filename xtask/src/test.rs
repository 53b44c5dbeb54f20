//! `cargo xtask test`: set-up, then every test of the workspace.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use xtask::rabbitmq::{self, RabbitServer};
use xtask::setup::{self, Accelerator};

/// What a test run counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs the tests with nextest if it is there, else with `cargo test`. After `--rabbitmq 4` come those arguments that go on to it.
pub fn run(arguments: &[String]) -> Result<Counts> {
    let arguments = match arguments {
        [option, release, rest @ ..] if option == "--rabbitmq" => {
            ensure!(release == "4", "--rabbitmq takes 4; without it the system's RabbitMQ is used");
            // SAFETY: nothing else runs in this process yet.
            unsafe { std::env::set_var(rabbitmq::RELEASE, release) };
            rest
        }
        all => all,
    };
    setup::libtorch(Accelerator::None)?;
    setup::nats_server()?;
    setup::python_packages()?;
    setup::s3_server()?;
    let without_rabbitmq = match RabbitServer::installation() {
        Ok(_) => false,
        Err(error) if std::env::var_os("CI").is_some() => return Err(error),
        Err(error) => {
            eprintln!("the tests on RabbitMQ are left out: {error:#}");
            true
        }
    };
    // RabbitMQ takes its time to start: the tests share one, each with a virtual host of its own.
    let folder = tempfile::tempdir()?;
    let shared = match without_rabbitmq {
        false => Some(RabbitServer::start(folder.path())?),
        true => None,
    };
    // The end-to-end tests run the real binaries.
    cargo(&["build", "--workspace", "--bins", "--examples"])?;
    let nextest = Command::new("cargo")
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut command = if nextest {
        vec!["nextest", "run", "--workspace", "--no-fail-fast"]
    } else {
        vec!["test", "--workspace", "--no-fail-fast"]
    };
    if nextest && std::env::var_os("CI").is_some() {
        command.extend(["--profile", "ci"]);
    }
    command.extend(arguments.iter().map(String::as_str));
    if without_rabbitmq {
        command.extend(if nextest { ["-E", "not test(rabbitmq::)"] } else { ["--", "--skip=rabbitmq::"] });
    }
    let mut child = Command::new("cargo")
        .args(&command)
        .env("SLUICE_TEST_BINARIES_BUILT", "1")
        .envs(shared.as_ref().map(RabbitServer::to_share))
        .current_dir(xtask::root())
        // nextest reports on standard error, cargo test on standard output: both are passed on, and counted.
        .stdout(if nextest { Stdio::inherit() } else { Stdio::piped() })
        .stderr(if nextest { Stdio::piped() } else { Stdio::inherit() })
        .spawn()
        .context("cannot run cargo")?;
    let mut counts = Counts::default();
    let lines: Box<dyn BufRead> = match (child.stdout.take(), child.stderr.take()) {
        (Some(output), _) => Box::new(BufReader::new(output)),
        (None, Some(errors)) => Box::new(BufReader::new(errors)),
        (None, None) => Box::new(std::io::empty()),
    };
    for line in lines.lines() {
        let line = line?;
        eprintln!("{line}");
        counts = counts + count(&line).unwrap_or_default();
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("tests failed: {counts}");
    }
    if counts.passed == 0 {
        bail!("no test ran");
    }
    Ok(counts)
}

/// Reads `Summary [..] 72 tests run: 71 passed (1 slow), 1 failed, 0 skipped` or `test result: ok. 5 passed; 0 failed; ..`.
fn count(line: &str) -> Option<Counts> {
    let is_summary = line.trim_start().starts_with("Summary [") || line.starts_with("test result: ");
    if !is_summary {
        return None;
    }
    let number = |word: &str| {
        let words: Vec<&str> = line.split([' ', ',', ';', '.']).filter(|word| !word.is_empty()).collect();
        let at = words.iter().position(|found| *found == word)?;
        words.get(at.checked_sub(1)?)?.parse().ok()
    };
    Some(Counts {
        passed: number("passed").unwrap_or(0),
        failed: number("failed").unwrap_or(0),
        skipped: number("skipped").or_else(|| number("ignored")).unwrap_or(0),
    })
}

/// Runs one cargo command in the checkout.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    cargo_with(arguments, &[])
}

/// Runs one cargo command in the checkout, with more in its environment.
pub fn cargo_with(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    eprintln!("cargo {}", arguments.join(" "));
    let mut command = Command::new("cargo");
    command.args(arguments).envs(environment.iter().copied()).current_dir(xtask::root());
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("`cargo {}` failed", arguments.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runners_are_counted() {
        let counts = |passed, failed, skipped| Some(Counts { passed, failed, skipped });
        let nextest = "     Summary [  42.360s] 32 tests run: 29 passed (2 slow), 3 failed, 1 skipped";
        assert_eq!(count(nextest), counts(29, 3, 1));
        let plain = "test result: ok. 18 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.10s";
        assert_eq!(count(plain), counts(18, 0, 2));
        assert_eq!(count("29 passed"), None);
    }
}
