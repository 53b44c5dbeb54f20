//! `sluice-worker check`: runs a package at growing batch sizes, as slots would, and recommends how to serve it. Measures; `recommend`
//! decides.

mod rows;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use sluice_core::Tensor;
use sluice_core::manifest::DeviceKind;

use crate::engine::example::random;
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
    /// Attributes that `forward` writes, so that each slot has a copy of the model.
    pub writes: Vec<String>,
    /// Why batches cannot be larger than the manifest says, if they cannot.
    pub bounded: Option<String>,
    /// What follows.
    pub recommendation: Recommendation,
}

/// What a slot of some number of threads showed.
struct Measured {
    measurements: Vec<Measurement>,
    writes: Vec<String>,
    bounded: Option<String>,
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
    let (mut writes, mut bounded) = (Vec::new(), None);
    while threads <= cores {
        progress(format!("measuring slots of {threads} threads"));
        let package = Arc::clone(&package);
        // A thread's number of intra-op threads is set once.
        let measuring = std::thread::Builder::new().name("check".into()).stack_size(STACK).spawn(move || {
            let _guard = engine::prepare_thread(threads);
            measure(&package, device, threads, largest, before)
        });
        let measured = measuring.context("cannot start a thread")?.join();
        let measured = measured.map_err(|_| anyhow!("the engine panicked"))??;
        measurements.extend(measured.measurements);
        (writes, bounded) = (measured.writes, measured.bounded);
        // On a GPU they do nothing.
        threads = if device == Device::Cpu { threads * 2 } else { cores + 1 };
    }
    let recommendation = recommend(&measurements, cores).context("nothing was measured")?;
    let (model, device) = (package.manifest.name.to_string(), device.to_string());
    Ok(Report { model, device, measurements, writes, bounded, recommendation })
}

fn measure(package: &Package, device: Device, threads: usize, largest: usize, before: Option<f64>) -> Result<Measured> {
    let manifest = &package.manifest;
    let model = engine::load(package, device)?.model;
    let max_rows = manifest.batching.max_rows;
    let mut bounded = provably_larger(&model, package)?;
    let largest = if bounded.is_some() { largest.min(max_rows) } else { largest };
    let mut measurements: Vec<Measurement> = Vec::new();
    let mut rows = 1;
    while rows <= largest {
        let request = random(manifest, rows, rows as u64);
        let mut times = Vec::new();
        let began = Instant::now();
        // The first run of a size is slower.
        match run(&model, &[&request]) {
            Ok(_) => {}
            Err(error) if rows > max_rows => {
                bounded = Some(format!("{rows} rows together do not run: {error:#}"));
                break;
            }
            Err(error) => return Err(error.context(format!("running {rows} random rows"))),
        }
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
    let writes = model.writes().to_vec();
    drop(model);
    engine::release_memory();
    Ok(Measured { measurements, writes, bounded })
}

/// Proves that batches as the manifest wants them change no answer. Returns why larger ones would, if they would.
fn provably_larger(model: &Arc<dyn Model>, package: &Package) -> Result<Option<String>> {
    let manifest = &package.manifest;
    let together = manifest.batching.max_rows.min(rows::COMPARED);
    if together > 1 {
        let reason = rows::dependence(model, manifest, together)?;
        if let Some(reason) = reason.or(rows::padding(model, manifest, together)?) {
            bail!(reason);
        }
    }
    if together == rows::COMPARED {
        return Ok(None);
    }
    let larger = rows::dependence(model, manifest, rows::COMPARED)
        .and_then(|reason| Ok(reason.or(rows::padding(model, manifest, rows::COMPARED)?)));
    Ok(larger.unwrap_or_else(|error| Some(format!("{error:#}"))))
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

fn run(model: &Arc<dyn Model>, requests: &[&[Tensor]]) -> Result<Vec<Vec<Tensor>>> {
    Ok(Arc::clone(model).gather(requests)?()?)
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
