//! How fast the device is by the queue, and by PyTorch alone.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde::Deserialize;
use sluice_core::codec::{self, ContentType};
use sluice_core::{InferRequest, Tensor};
use sluice_e2e::load::{self, Measured};
use sluice_e2e::{Stack, Worker};
use xtask::broker::Kind;

use crate::Kit;
use crate::report::Found;
use crate::right::{START, rows};
use crate::steps::printed;

/// What PyTorch alone reaches at a batch size.
#[derive(Deserialize)]
struct Alone {
    rows: usize,
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Each measurement's length in seconds.
fn length(kit: &Kit) -> f64 {
    if kit.small { 0.3 } else { 1.5 }
}

fn sizes(kit: &Kit) -> &'static [usize] {
    if kit.small { &[1, 8] } else { &[1, 8, 64, 512] }
}

/// Requests under way so that two batches are always there: one runs, one waits.
fn window(rows: usize) -> usize {
    4 * rows
}

/// A message of one row.
fn body(input: Tensor) -> Bytes {
    codec::encode_request(ContentType::MessagePack, &InferRequest { inputs: vec![input], outputs: vec![] })
}

/// The package of a network under another name, with batches of at most so many rows.
fn named(kit: &Kit, network: &str, name: &str, rows: usize) -> Result<PathBuf> {
    let (from, to) = (kit.package(network), kit.package(name));
    std::fs::create_dir_all(&to)?;
    std::fs::copy(from.join("model.pt"), to.join("model.pt"))?;
    let manifest = std::fs::read_to_string(from.join("model.toml"))?;
    let manifest = manifest.replace(&format!("name = \"{network}\""), &format!("name = \"{name}\""));
    std::fs::write(to.join("model.toml"), manifest.replace("max_rows = 64", &format!("max_rows = {rows}")))?;
    Ok(to)
}

/// A broker, and a worker with so many slots of each package.
fn serve(packages: &[(PathBuf, usize)]) -> Result<(Stack, Worker)> {
    let mut stack = Stack::alone(Kind::Nats)?;
    let slots: Vec<(&Path, usize)> = packages.iter().map(|(package, slots)| (package.as_path(), *slots)).collect();
    let mut worker = stack.launch(&slots, "")?;
    worker.process.wait_for_line(": ready", START)?;
    Ok((stack, worker))
}

async fn ask(kit: &Kit, stack: &Stack, worker: &Worker, model: &str, network: &str, window: usize) -> Result<Measured> {
    let input = rows(kit, network, 1).pop().context("a row")?;
    // The first batches of a size are slower.
    load::measure(stack, model, window, length(kit) / 4.0, body(input.clone()), &[worker.process.id()]).await?;
    load::measure(stack, model, window, length(kit), body(input), &[worker.process.id()]).await
}

fn alone(kit: &Kit, network: &str) -> Result<Vec<Alone>> {
    let mut arguments = vec![kit.folder.join("alone.py").display().to_string()];
    arguments.extend([kit.package(network).display().to_string(), kit.kind().to_owned(), length(kit).to_string()]);
    arguments.extend(sizes(kit).iter().map(ToString::to_string));
    let printed = printed(&kit.python, &arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
    let alone: Vec<Alone> = serde_json::from_str(&printed).context("alone.py")?;
    ensure!(alone.len() == sizes(kit).len(), "alone.py measured {} sizes", alone.len());
    Ok(alone)
}

pub async fn speed(kit: &Kit, found: &mut Found) -> Result<()> {
    for network in ["small", "resnet", "encoder"] {
        let of_size = |rows: &usize| Ok((named(kit, network, &format!("{network}-{rows}"), *rows)?, 1));
        let packages = sizes(kit).iter().map(of_size).collect::<Result<Vec<_>>>()?;
        let alone = alone(kit, network)?;
        // All sizes in one process: starting one takes longer than a measurement.
        let (stack, worker) = serve(&packages)?;
        let mut rates = Vec::new();
        for alone in alone {
            let rows = alone.rows;
            let ours = ask(kit, &stack, &worker, &format!("{network}-{rows}"), network, window(rows)).await?;
            let what = format!("`{network}`, batches of at most {rows}");
            found.figure(format!("{what}: by the queue"), ours.rate(), "rows/s");
            found.figure(format!("{what}: p50, p99 {:.1} ms", ours.p99_ms), ours.p50_ms, "ms");
            found.figure(format!("{what}: PyTorch alone"), alone.rate, "rows/s");
            found.figure(format!("{what}: its p50, p99 {:.1} ms", alone.p99_ms), alone.p50_ms, "ms");
            found.figure(format!("{what}: ours over PyTorch's"), ours.rate() / alone.rate, "");
            rates.push(ours.rate());
        }
        let best = rates.iter().copied().fold(0.0, f64::max);
        found.figure(format!("`{network}`: gain of dynamic batching, best over one by one"), best / rates[0], "");
    }
    Ok(())
}

pub async fn slots(kit: &Kit, found: &mut Found) -> Result<()> {
    const SLOTS: [usize; 3] = [1, 2, 4];
    for network in ["small", "encoder"] {
        let of_slots = |slots: usize| Ok((named(kit, network, &format!("{network}-by-{slots}"), 64)?, slots));
        let (stack, worker) = serve(&SLOTS.into_iter().map(of_slots).collect::<Result<Vec<_>>>()?)?;
        for slots in SLOTS {
            let model = format!("{network}-by-{slots}");
            let ours = ask(kit, &stack, &worker, &model, network, 2 * slots * 64).await?;
            found.figure(format!("`{network}`, slots: {slots}"), ours.rate(), "rows/s");
            found.figure(format!("`{network}`, slots: {slots}: p50, p99 {:.1} ms", ours.p99_ms), ours.p50_ms, "ms");
        }
    }
    Ok(())
}
