//! `sluice-worker check`: runs a package at growing batch sizes, as slots would, and recommends how to serve it. Measures; `recommend`
//! decides.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use sluice_core::manifest::DeviceKind;
use sluice_core::{Datatype, Manifest, Tensor};

use crate::engine::{self, Device, Model};
use crate::memory::taken_mib;
use crate::package::Package;
use crate::slot::STACK;

/// How long each size is measured.
const MEASURED: Duration = Duration::from_millis(400);
/// At least so many runs, however long they take.
const LEAST_RUNS: usize = 3;
/// A batch that takes longer is large enough.
const LONG: Duration = Duration::from_secs(2);
/// Rows that are compared alone and together.
const COMPARED: usize = 5;
/// A size is good enough if it gives this much of the best rate: larger ones only cost latency.
const GOOD_ENOUGH: f64 = 0.95;

/// One batch size, measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// Intra-op threads of the slot.
    pub threads: usize,
    /// Rows per batch.
    pub rows: usize,
    /// Rows per second on one slot.
    pub rate: f64,
    /// Half of the batches took at most this many milliseconds.
    pub p50_ms: f64,
    /// Nearly all did.
    pub p99_ms: f64,
    /// The device's memory beyond what was taken before the model was loaded, in MiB; 0 where that cannot be told.
    pub memory_mib: f64,
}

/// How to serve a package on a host like this one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recommendation {
    /// `batching.max_rows`.
    pub max_rows: usize,
    /// `resources.threads`.
    pub threads: usize,
    /// `resources.memory_mib`.
    pub memory_mib: u64,
    /// Slots that this host has processors for.
    pub slots: usize,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Where it ran.
    pub device: String,
    /// Every size, in the order of measuring.
    pub measurements: Vec<Measurement>,
    /// What follows.
    pub recommendation: Recommendation,
}

/// Loads the package, proves that its rows are independent, and measures it. `progress` is told what happens.
pub fn check(folder: &Path, device: Option<Device>, largest: usize, progress: &dyn Fn(String)) -> Result<Report> {
    let package = Arc::new(Package::open(folder)?);
    let device = device.unwrap_or(match package.manifest.resources.device {
        DeviceKind::Cpu => Device::Cpu,
        DeviceKind::Cuda => Device::Cuda(0),
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Once: what a model leaves behind is found again by the next.
    let before = taken_mib(device);
    let mut threads = 1;
    let mut measurements = Vec::new();
    while threads <= cores {
        progress(format!("measuring slots of {threads} threads"));
        let package = Arc::clone(&package);
        // A thread's number of intra-op threads is set once.
        let measuring = std::thread::Builder::new().name("check".into()).stack_size(STACK).spawn(move || {
            let _guard = engine::prepare_thread(threads);
            measure(&package, device, threads, largest, before)
        });
        let measured = measuring.context("cannot start a thread")?.join();
        measurements.extend(measured.map_err(|_| anyhow!("the engine panicked"))??);
        // On a GPU they do nothing.
        threads = if device == Device::Cpu { threads * 2 } else { cores + 1 };
    }
    let recommendation = recommend(&measurements, cores).context("nothing was measured")?;
    Ok(Report { model: package.manifest.name.to_string(), device: device.to_string(), measurements, recommendation })
}

fn measure(
    package: &Package,
    device: Device,
    threads: usize,
    largest: usize,
    before: Option<f64>,
) -> Result<Vec<Measurement>> {
    let model = engine::load(package, device)?.model;
    let manifest = &package.manifest;
    prove_independence(&model, manifest)?;
    let mut measurements: Vec<Measurement> = Vec::new();
    let mut rows = 1;
    while rows <= largest {
        let request = random(manifest, rows, rows as u64);
        let mut times = Vec::new();
        let began = Instant::now();
        // The first run of a size is slower.
        run(&model, &[&request])?;
        while times.len() < LEAST_RUNS || began.elapsed() < MEASURED {
            let started = Instant::now();
            run(&model, &[&request])?;
            times.push(started.elapsed());
        }
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
        let total: Duration = times.iter().sum();
        measurements.push(Measurement {
            threads,
            rows,
            rate: rows as f64 * times.len() as f64 / total.as_secs_f64(),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            memory_mib: taken_mib(device).zip(before).map_or(0.0, |(taken, before)| taken - before),
        });
        if times[times.len() / 2] > LONG {
            break;
        }
        rows *= 2;
    }
    drop(model);
    engine::release_memory();
    Ok(measurements)
}

/// The threads with which all of the host gives most, and the smallest size that is good enough.
fn recommend(measurements: &[Measurement], cores: usize) -> Option<Recommendation> {
    let of_host = |one: &Measurement| one.rate * (cores / one.threads).max(1) as f64;
    let best = measurements.iter().max_by(|one, other| of_host(one).total_cmp(&of_host(other)))?;
    // More threads than needed make slots fewer and stall beside others.
    let threads =
        measurements.iter().filter(|one| of_host(one) >= GOOD_ENOUGH * of_host(best)).map(|one| one.threads).min()?;
    let same: Vec<_> = measurements.iter().filter(|one| one.threads == threads).collect();
    let best_rate = same.iter().map(|one| one.rate).fold(0.0, f64::max);
    let chosen = same.iter().find(|one| one.rate >= GOOD_ENOUGH * best_rate)?;
    let memory = same.iter().filter(|one| one.rows <= chosen.rows).map(|one| one.memory_mib).fold(0.0, f64::max);
    Some(Recommendation {
        max_rows: chosen.rows,
        threads,
        memory_mib: (memory * 1.1).ceil() as u64,
        slots: (cores / threads).max(1),
    })
}

/// A row alone must give what it gives in a batch: else batching would change answers.
fn prove_independence(model: &Arc<dyn Model>, manifest: &Manifest) -> Result<()> {
    let requests: Vec<Vec<Tensor>> = (0..COMPARED).map(|seed| random(manifest, 1, seed as u64 + 1000)).collect();
    let borrowed: Vec<&[Tensor]> = requests.iter().map(Vec::as_slice).collect();
    let together = run(model, &borrowed)?;
    for (row, (request, in_batch)) in borrowed.iter().zip(together).enumerate() {
        let alone = run(model, &[request])?.pop().unwrap_or_default();
        for (alone, in_batch) in alone.iter().zip(&in_batch) {
            if let Some(difference) = difference(alone, in_batch) {
                bail!(
                    "rows are not independent: row {row} of output `{}` differs by {difference:.3e} when it runs in a batch. Batching \
                     would change answers: is the model in eval mode? If it cannot be helped, set `batching.max_rows = 1`",
                    alone.name
                );
            }
        }
    }
    Ok(())
}

/// How much two outputs differ, if it is more than rounding.
fn difference(one: &Tensor, other: &Tensor) -> Option<f64> {
    let (one_values, other_values) = (floats(one), floats(other));
    let (Some(one_values), Some(other_values)) = (one_values, other_values) else {
        return (one.data != other.data).then_some(f64::INFINITY);
    };
    let tolerance = if matches!(one.datatype, Datatype::Fp16 | Datatype::Bf16) { 3e-2 } else { 1e-3 };
    let scale = one_values.iter().fold(1e-3_f64, |scale, value| scale.max(value.abs()));
    let largest = one_values.iter().zip(&other_values).map(|(one, other)| (one - other).abs()).fold(0.0, f64::max);
    (largest > tolerance * scale || one_values.len() != other_values.len()).then_some(largest)
}

fn floats(tensor: &Tensor) -> Option<Vec<f64>> {
    let data = &tensor.data;
    Some(match tensor.datatype {
        Datatype::Fp64 => data.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
        Datatype::Fp32 => data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes).into()).collect(),
        Datatype::Fp16 => data.as_chunks().0.iter().map(|bytes| half::f16::from_le_bytes(*bytes).into()).collect(),
        Datatype::Bf16 => data.as_chunks().0.iter().map(|bytes| half::bf16::from_le_bytes(*bytes).into()).collect(),
        _ => return None,
    })
}

fn run(model: &Arc<dyn Model>, requests: &[&[Tensor]]) -> Result<Vec<Vec<Tensor>>> {
    Ok(Arc::clone(model).gather(requests)?()?)
}

/// A request that fits the manifest: floats from 0 to 1, integers 0 and 1, which any vocabulary and any mask has.
fn random(manifest: &Manifest, rows: usize, seed: u64) -> Vec<Tensor> {
    // Xorshift: any numbers do, as long as they are the same each time.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut fill = |tensor: Tensor| {
        let count = tensor.shape.iter().product::<i64>() as usize;
        let mut data = Vec::with_capacity(tensor.data.len());
        for _ in 0..count {
            let bits = next();
            let fraction = (bits >> 11) as f64 / (1_u64 << 53) as f64;
            match tensor.datatype {
                Datatype::Fp64 => data.extend(fraction.to_le_bytes()),
                Datatype::Fp32 => data.extend((fraction as f32).to_le_bytes()),
                Datatype::Fp16 => data.extend(half::f16::from_f64(fraction).to_le_bytes()),
                Datatype::Bf16 => data.extend(half::bf16::from_f64(fraction).to_le_bytes()),
                other => {
                    data.push((bits >> 63) as u8);
                    data.resize(data.len() + other.size().unwrap_or(1) - 1, 0);
                }
            }
        }
        Tensor { data: data.into(), ..tensor }
    };
    engine::example(manifest, rows).into_iter().map(&mut fill).collect()
}

/// Writes what is recommended into the package's `model.toml`, and leaves the rest as it stands.
pub fn write(folder: &Path, recommendation: &Recommendation) -> Result<()> {
    let path = folder.join("model.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let written = with_recommendation(&text, recommendation)?;
    std::fs::write(&path, written).with_context(|| format!("cannot write `{}`", path.display()))
}

fn with_recommendation(text: &str, recommendation: &Recommendation) -> Result<String> {
    let mut document: toml_edit::DocumentMut = text.parse().context("model.toml")?;
    let values = [
        ("batching", "max_rows", recommendation.max_rows as i64),
        ("resources", "threads", recommendation.threads as i64),
        ("resources", "memory_mib", recommendation.memory_mib as i64),
    ];
    for (section, key, value) in values {
        if value == 0 {
            continue;
        }
        let table = document.entry(section).or_insert(toml_edit::table());
        match table.get_mut(key).and_then(|item| item.as_value_mut()) {
            // With what stands around it, such as a comment.
            Some(old) => {
                let decor = old.decor().clone();
                *old = value.into();
                *old.decor_mut() = decor;
            }
            None => table[key] = toml_edit::value(value),
        }
    }
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(threads: usize, rows: usize, rate: f64, memory_mib: f64) -> Measurement {
        Measurement { threads, rows, rate, p50_ms: 1.0, p99_ms: 1.0, memory_mib }
    }

    #[test]
    fn the_smallest_size_that_is_good_enough_is_recommended() {
        let measurements = [
            measured(1, 1, 100.0, 10.0),
            measured(1, 2, 180.0, 12.0),
            measured(1, 4, 198.0, 20.0),
            measured(1, 8, 200.0, 50.0),
        ];
        let expected = Recommendation { max_rows: 4, threads: 1, memory_mib: 22, slots: 2 };
        assert_eq!(recommend(&measurements, 2), Some(expected));
        assert_eq!(recommend(&[], 2), None);
    }

    #[test]
    fn more_threads_are_recommended_only_if_the_host_gives_more_with_them() {
        // Two slots of one thread give 200, one of two threads 150.
        let worse = [measured(1, 8, 100.0, 10.0), measured(2, 8, 150.0, 10.0)];
        assert_eq!(recommend(&worse, 2).map(|best| (best.threads, best.slots)), Some((1, 2)));
        let better = [measured(1, 8, 100.0, 10.0), measured(2, 8, 250.0, 10.0)];
        assert_eq!(recommend(&better, 2).map(|best| (best.threads, best.slots)), Some((2, 1)));
    }

    #[test]
    fn writing_keeps_comments_and_order() {
        let text = "name = \"m\" # mine\n\n[batching]\nmax_rows = 8 # tried\nmax_delay = \"1ms\"\n";
        let recommendation = Recommendation { max_rows: 64, threads: 1, memory_mib: 90, slots: 2 };
        let written = with_recommendation(text, &recommendation).expect("written");
        let expected = "name = \"m\" # mine\n\n[batching]\nmax_rows = 64 # tried\nmax_delay = \"1ms\"\n\n\
            [resources]\nthreads = 1\nmemory_mib = 90\n";
        assert_eq!(written, expected);
    }
}
