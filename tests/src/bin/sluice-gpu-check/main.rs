//! Checks Sluice on a GPU, or what of it can be checked on the CPU: right, fast, shared, broken, elastic. `cargo xtask gpu-kit` packs it with
//! all that it needs, and `gpu-check.sh` runs it there. Each step is a process of its own with a limit; a report says what each found.

mod asking;
mod broken;
mod elastic;
mod fast;
mod report;
mod right;
mod shared;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use report::Found;
use steps::STEPS;

/// The allocator that the command line has, which this stands for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HELP: &str = "\
Usage: sluice-gpu-check --kit FOLDER --python PYTHON --report FILE [--small] [--only STEP,...]

Runs all steps on cuda:0, or without a GPU those that can be run on the CPU, and writes FILE.md and FILE.json. --kit is the folder with the
scripts, the digits and the broker's configuration; PYTHON has PyTorch. --small takes networks of fewer layers, as it is done without a GPU.
";

/// What all steps know.
#[derive(Debug, Clone)]
pub struct Kit {
    /// The folder that was unpacked.
    pub folder: PathBuf,
    /// Where the packages are made.
    pub models: PathBuf,
    /// It has PyTorch.
    pub python: PathBuf,
    /// Whether there is a GPU.
    pub gpu: bool,
    /// Whether networks have fewer layers, and figures say nothing.
    pub small: bool,
}

impl Kit {
    /// As packages and PyTorch name the kind of device.
    pub fn kind(&self) -> &'static str {
        if self.gpu { "cuda" } else { "cpu" }
    }

    /// As workers name the device.
    pub fn device(&self) -> &'static str {
        if self.gpu { "cuda:0" } else { "cpu" }
    }

    /// A package by its name.
    pub fn package(&self, name: &str) -> PathBuf {
        self.models.join(name)
    }
}

fn main() -> ExitCode {
    match check() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<()> {
    let (mut folder, mut python, mut report, mut step, mut only) = (None, None, None, None, None);
    let (mut models, mut gpu, mut small) = (None, None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--kit" => folder = Some(PathBuf::from(value()?)),
            "--python" => python = Some(PathBuf::from(value()?)),
            "--report" => report = Some(PathBuf::from(value()?)),
            "--only" => only = Some(value()?),
            "--small" => small = true,
            // What a step's process is told.
            "--step" => step = Some(value()?),
            "--models" => models = Some(PathBuf::from(value()?)),
            "--gpu" => gpu = Some(value()? == "yes"),
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(());
            }
            other => bail!("`{other}` is not an option\n{HELP}"),
        }
    }
    let folder = folder.with_context(|| format!("--kit is missing\n{HELP}"))?;
    let python = python.with_context(|| format!("--python is missing\n{HELP}"))?;
    let own;
    let models = match models {
        Some(models) => models,
        None => {
            own = tempfile::tempdir()?;
            own.path().to_path_buf()
        }
    };
    let gpu = match gpu {
        Some(gpu) => gpu,
        None => steps::has_gpu(&python)?,
    };
    // A processor would take minutes for what a GPU does in seconds.
    let kit = Kit { folder, models, python, gpu, small: small || !gpu };
    if let Some(name) = step {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(steps::run(&name, &kit, &mut Found));
    }
    let report = report.with_context(|| format!("--report is missing\n{HELP}"))?;
    let wanted: Option<Vec<&str>> = only.as_ref().map(|only| only.split(',').collect());
    if let Some(unknown) = wanted.iter().flatten().find(|name| STEPS.iter().all(|step| step.name != **name)) {
        let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        bail!("there is no step `{unknown}`; there are {}", names.join(", "));
    }
    let done = steps::run_all(&kit, wanted.as_deref())?;
    report::write(&report, &kit, &done)?;
    let failed: Vec<&str> = done.iter().filter(|step| step.failure.is_some()).map(|step| step.name.as_str()).collect();
    if !failed.is_empty() {
        bail!("failed: {}; see {}.md", failed.join(", "), report.display());
    }
    Ok(())
}
