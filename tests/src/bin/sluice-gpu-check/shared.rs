//! Several on one device, and its memory.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use sluice_e2e::Stack;
use xtask::broker::Kind;

use crate::Kit;
use crate::asking::{Caller, floats};
use crate::report::Found;
use crate::right::{START, rows, serve};
use crate::steps::printed;

/// What of the device's memory is taken: of a GPU's by all, as its driver says; else of the machine's by this process.
pub fn taken_mib(kit: &Kit, process: u32) -> Result<f64> {
    if kit.gpu {
        let query = ["--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"];
        return printed(Path::new("nvidia-smi"), &query)?.trim().parse().context("nvidia-smi");
    }
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

pub async fn together(kit: &Kit, found: &mut Found) -> Result<()> {
    let (mut stack, first) = serve(kit, &["small", "encoder", "digits"])?;
    found.figure("memory taken with three models in a process", taken_mib(kit, first.process.id())?, "MiB");
    let (small, encoder) = (kit.package("small"), kit.package("encoder"));
    let mut second = stack.launch(&[(&small, 2), (&encoder, 2)], "")?;
    second.process.wait_for_line(": ready", START)?;
    found.figure("and with two of them in another, two slots each", taken_mib(kit, second.process.id())?, "MiB");
    let mut caller = Caller::new(&stack).await?;
    for model in ["small", "encoder"] {
        let answers = caller.outputs(model, &rows(kit, model, 400)).await?;
        ensure!(answers.len() == 400);
        for (name, worker) in [("first", &first), ("second", &second)] {
            let served = worker.metric("sluice_batch_rows_sum", &[&format!("\"{model}\"")])?;
            found.figure(format!("rows of `{model}` that the {name} process ran"), served, "");
            ensure!(served > 0.0, "the {name} process ran nothing of `{model}`");
        }
    }
    Ok(())
}

/// Slots of a model share its weights: with four of them a process takes hardly more than with one.
pub fn weights(kit: &Kit, found: &mut Found) -> Result<()> {
    /// What four slots may take over what one does: each has its own intermediate values and work space.
    const MOST: f64 = 1.5;
    let mut stack = Stack::alone(Kind::Nats)?;
    let mut takes = Vec::new();
    for slots in [1, 4] {
        let before = if kit.gpu { taken_mib(kit, 0)? } else { 0.0 };
        let mut worker = stack.launch(&[(&kit.package("encoder"), slots)], "")?;
        worker.process.wait_for_line(": ready", START)?;
        let taken = taken_mib(kit, worker.process.id())? - before;
        found.figure(format!("a process with `encoder`, slots: {slots}"), taken, "MiB");
        takes.push(taken);
        // The driver has its memory back when the process is gone.
        worker.process.stop(START)?;
    }
    ensure!(takes[1] < MOST * takes[0], "four slots take {:.1} times as much as one", takes[1] / takes[0]);
    Ok(())
}

/// Loads are counted by versions of one package that take turns.
pub fn memory(kit: &Kit, found: &mut Found) -> Result<()> {
    const LOADS: usize = 20;
    /// What may be left of one load to the next, in MiB.
    const LEFT: f64 = 150.0;
    let mut stack = Stack::alone(Kind::Nats)?;
    let run = |stack: &Stack, arguments: &[&str]| -> Result<()> {
        let output = stack.cli(arguments)?;
        ensure!(output.status.success(), "`{}`: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let package = kit.package("encoder").display().to_string();
    run(&stack, &["model", "deploy", &package, "--version", "1"])?;
    run(&stack, &["model", "deploy", &package, "--version", "2"])?;
    let worker = stack.follower("encoder", "")?;
    let taken = |stage: &str, found: &mut Found| -> Result<f64> {
        let taken = taken_mib(kit, worker.process.id())?;
        found.figure(format!("taken {stage}"), taken, "MiB");
        Ok(taken)
    };
    let before = taken("before any model", found)?;
    run(&stack, &["model", "start", "encoder", "--version", "1", "--wait"])?;
    let loaded = taken("with the model", found)?;
    ensure!(loaded > before, "loading a model took nothing");
    for load in 0..LOADS {
        let version = if load % 2 == 0 { "2" } else { "1" };
        run(&stack, &["model", "start", "encoder", "--version", version, "--wait"])?;
    }
    let after = taken(&format!("with the model after {LOADS} more loads and unloads"), found)?;
    run(&stack, &["model", "stop", "encoder", "--wait"])?;
    taken("when it is unloaded", found)?;
    ensure!(after < loaded + LEFT, "{loaded:.0} MiB became {after:.0} MiB");
    Ok(())
}

pub fn unfit(kit: &Kit, found: &mut Found) -> Result<()> {
    let mut stack = Stack::alone(Kind::Nats)?;
    let mut worker = stack.launch(&[(&kit.package("large"), 1)], "")?;
    let line = worker.process.wait_for_line("it needs", START)?;
    ensure!(line.contains(kit.device()), "{line}");
    ensure!(worker.process.ended().is_none(), "the worker has ended");
    found.remark("the log says", line);
    Ok(())
}

pub async fn exhausted(kit: &Kit, found: &mut Found) -> Result<()> {
    let (stack, mut worker) = serve(kit, &["hungry", "small"])?;
    let total = "import torch; print(torch.cuda.get_device_properties(0).total_memory)";
    let total: f32 = printed(&kit.python, &["-c", total])?.trim().parse()?;
    let mut caller = Caller::new(&stack).await?;
    let mut neighbour = Caller::new(&stack).await?;
    // Three of these fit, and the sixteen of a batch do not.
    let hungry: Vec<_> = (0..16).map(|_| floats(&[1], |_| total / 5.0)).collect();
    let ids = caller.send("hungry", &hungry).await?;
    let served = neighbour.outputs("small", &rows(kit, "small", 200)).await?.len();
    let answers = caller.receive(&ids).await?;
    let answered = answers.iter().filter(|answer| answer.is_ok()).count();
    found.figure("answered of 16 that do not fit together", answered as f64, "");
    found.figure("answered of a neighbour's 200", served as f64, "");
    ensure!(answered == 16, "{:?}", answers.iter().find_map(|answer| answer.as_ref().err()));
    ensure!(worker.process.ended().is_none(), "the worker has ended");
    // What no device has room for.
    let answer = caller.ask("hungry", &[floats(&[1], |_| 2.0 * total)]).await?.remove(0);
    let error = answer.err().context("a row of twice the memory was answered")?;
    ensure!(error.contains("memory"), "{error}");
    found.remark("a row that fits nowhere", error);
    Ok(())
}
