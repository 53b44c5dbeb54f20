//! How fast the device is by the queue, and by PyTorch alone.

use std::path::PathBuf;

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
    if kit.small { 0.3 } else { 2.0 }
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
fn of_size(kit: &Kit, network: &str, rows: usize) -> Result<PathBuf> {
    let (from, to) = (kit.package(network), kit.package(&format!("{network}-{rows}")));
    std::fs::create_dir_all(&to)?;
    std::fs::copy(from.join("model.pt"), to.join("model.pt"))?;
    let manifest = std::fs::read_to_string(from.join("model.toml"))?;
    let manifest = manifest.replace(&format!("name = \"{network}\""), &format!("name = \"{network}-{rows}\""));
    std::fs::write(to.join("model.toml"), manifest.replace("max_rows = 64", &format!("max_rows = {rows}")))?;
    Ok(to)
}

/// A broker, and a worker with so many slots of a package.
fn serve(package: &std::path::Path, slots: usize) -> Result<(Stack, Worker)> {
    let mut stack = Stack::alone(Kind::Nats)?;
    let mut worker = stack.launch(&[(package, slots)], "")?;
    worker.process.wait_for_line(": ready", START)?;
    Ok((stack, worker))
}

async fn ask(kit: &Kit, stack: &Stack, worker: &Worker, model: &str, network: &str, window: usize) -> Result<Measured> {
    let input = rows(kit, network, 1).pop().context("a row")?;
    // The first batches of a size are slower.
    load::measure(stack, model, window, length(kit) / 4.0, body(input.clone()), &[worker.process.id()]).await?;
    load::measure(stack, model, window, length(kit), body(input), &[worker.process.id()]).await
}

pub async fn speed(kit: &Kit, found: &mut Found) -> Result<()> {
    for network in ["small", "resnet", "encoder"] {
        let mut alone = vec![kit.folder.join("alone.py").display().to_string()];
        alone.extend([kit.package(network).display().to_string(), kit.kind().to_owned(), length(kit).to_string()]);
        alone.extend(sizes(kit).iter().map(ToString::to_string));
        let alone = printed(&kit.python, &alone.iter().map(String::as_str).collect::<Vec<_>>())?;
        let alone: Vec<Alone> = serde_json::from_str(&alone).context("alone.py")?;
        ensure!(alone.len() == sizes(kit).len(), "alone.py measured {} sizes", alone.len());
        let mut rates = Vec::new();
        for alone in alone {
            let rows = alone.rows;
            let (stack, worker) = serve(&of_size(kit, network, rows)?, 1)?;
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
    for network in if kit.small { &["small"][..] } else { &["small", "resnet", "encoder"] } {
        for slots in [1, 2, 4] {
            let (stack, worker) = serve(&kit.package(network), slots)?;
            let ours = ask(kit, &stack, &worker, network, network, 2 * slots * 64).await?;
            found.figure(format!("`{network}`, slots: {slots}"), ours.rate(), "rows/s");
            found.figure(format!("`{network}`, slots: {slots}: p50, p99 {:.1} ms", ours.p99_ms), ours.p50_ms, "ms");
        }
    }
    Ok(())
}
