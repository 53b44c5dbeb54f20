//! What is measured of one model on one device, for those who decide how many slots it needs. Written where it happens, read by
//! reports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use sluice_core::ModelName;
use sluice_core::report::Measured;
use tokio::sync::{Notify, watch};

use crate::engine::Device;

/// The meters of all models of a host.
#[derive(Default)]
pub struct Meters {
    meters: Mutex<BTreeMap<(ModelName, String), Arc<Meter>>>,
    news: Arc<Notify>,
    /// Grows whenever something is in trouble, or no longer.
    troubles: Arc<watch::Sender<u64>>,
}

impl Meters {
    /// The meter of a model on a device; two versions that run side by side share it.
    pub fn of(&self, model: &ModelName, device: &str) -> Arc<Meter> {
        let mut meters = self.meters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let meter = || {
            Arc::new(Meter { news: Arc::clone(&self.news), troubles: Arc::clone(&self.troubles), ..Meter::default() })
        };
        Arc::clone(meters.entry((model.clone(), device.to_owned())).or_insert_with(meter))
    }

    /// Tells `to` what keeps models from serving, at each change, for ever.
    pub async fn tell_troubles(&self, to: impl Fn(Option<String>)) {
        let mut changes = self.troubles.subscribe();
        loop {
            changes.mark_unchanged();
            to(self.trouble());
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        let meters = self.meters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let troubles: Vec<String> = meters
            .iter()
            .filter_map(|((model, _), meter)| Some(format!("model `{model}` {}", meter.trouble()?)))
            .collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    /// Waits until something was measured that makes what was read last worthless: a burst is not to wait for the next report.
    pub async fn news(&self) {
        self.news.notified().await;
    }
}

/// What is measured of one model on one device.
#[derive(Default)]
pub struct Meter {
    news: Arc<Notify>,
    rows: AtomicU64,
    busy: Mutex<Busy>,
    held: AtomicU64,
    running: AtomicU64,
    rows_per_request: Followed,
    row_seconds: Followed,
    /// The bits of a floating-point number.
    cold_start_seconds: AtomicU64,
    /// What keeps it from serving.
    trouble: Mutex<Option<String>>,
    troubles: Arc<watch::Sender<u64>>,
    /// The version that was loaded last, and the MiB that this took.
    weight: Mutex<(String, u64)>,
    /// Whether each of its slots has a copy of its own.
    copied: AtomicBool,
}

impl Meter {
    /// A batch was run.
    pub fn ran(&self, rows: usize, row_seconds: f64) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.row_takes(row_seconds);
    }

    /// How long a row takes, in seconds.
    pub fn row_takes(&self, seconds: f64) {
        self.row_seconds.set(seconds, &self.news);
    }

    /// A request came.
    pub fn took(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has ended here.
    pub fn ended(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// Of one version, slots run other numbers of requests than before.
    pub fn runs(&self, before: u64, now: u64) {
        // Sums of what wraps around are right.
        self.running.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// How many rows requests have.
    pub fn sized(&self, rows_per_request: f64) {
        self.rows_per_request.set(rows_per_request, &self.news);
    }

    /// It was loaded where nothing of it ran.
    pub fn started(&self, took: Duration) {
        self.cold_start_seconds.store(took.as_secs_f64().to_bits(), Ordering::Relaxed);
    }

    /// Loading a version took so much memory.
    pub fn weighed(&self, version: &str, mib: u64) {
        *self.weight() = (version.to_owned(), mib);
    }

    /// Whether each slot has a copy, which takes as much again.
    pub fn copied(&self, copied: bool) {
        self.copied.store(copied, Ordering::Relaxed);
    }

    /// What loading a version took on a GPU before. What libtorch has kept there since is not taken once more.
    pub fn weighed_before(&self, version: &str, device: Device) -> u64 {
        let weight = self.weight();
        if device != Device::Cpu && weight.0 == version { weight.1 } else { 0 }
    }

    /// Something keeps it from serving, or nothing does.
    pub fn set_trouble(&self, trouble: Option<String>) {
        let before = {
            let mut place = self.trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            std::mem::replace(&mut *place, trouble.clone())
        };
        if before.is_some() != trouble.is_some() {
            self.troubles.send_modify(|count| *count += 1);
            self.news.notify_one();
        }
    }

    /// What keeps it from serving.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    fn weight(&self) -> MutexGuard<'_, (String, u64)> {
        self.weight.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// More slots run from now on, or fewer.
    pub fn slots_run(&self, more: isize, now: Instant) {
        let mut busy = self.busy.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        busy.count_until(now);
        busy.slots = busy.slots.saturating_add_signed(more);
    }

    /// How long its slots have run all in all, a batch that runs now included.
    pub fn busy(&self, now: Instant) -> Duration {
        let mut busy = self.busy.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        busy.count_until(now);
        busy.total
    }

    /// All but the share of time that they were busy, which needs two looks.
    pub fn read(&self) -> Measured {
        Measured {
            rows: self.rows.load(Ordering::Relaxed),
            requests_held: self.held.load(Ordering::Relaxed),
            requests_running: self.running.load(Ordering::Relaxed),
            rows_per_request: self.rows_per_request.read(),
            row_seconds: self.row_seconds.read(),
            busy: 0.0,
            cold_start_seconds: f64::from_bits(self.cold_start_seconds.load(Ordering::Relaxed)),
            memory_mib: self.weight().1,
            copied: self.copied.load(Ordering::Relaxed),
        }
    }
}

/// The time that slots have run.
#[derive(Default)]
struct Busy {
    slots: usize,
    total: Duration,
    /// Until when it is counted.
    counted: Option<Instant>,
}

impl Busy {
    fn count_until(&mut self, now: Instant) {
        let passed = self.counted.map_or(Duration::ZERO, |counted| now.saturating_duration_since(counted));
        self.total += passed * u32::try_from(self.slots).unwrap_or(u32::MAX);
        self.counted = Some(self.counted.map_or(now, |counted| counted.max(now)));
    }
}

/// A number that is news when it has doubled or halved since it was read, or was not known then. Kept as bits of floating-point numbers.
#[derive(Default)]
struct Followed {
    now: AtomicU64,
    read: AtomicU64,
}

impl Followed {
    fn set(&self, value: f64, news: &Notify) {
        self.now.store(value.to_bits(), Ordering::Relaxed);
        let read = f64::from_bits(self.read.load(Ordering::Relaxed));
        if value > 2.0 * read || value < read / 2.0 {
            news.notify_one();
        }
    }

    fn read(&self) -> f64 {
        let bits = self.now.load(Ordering::Relaxed);
        self.read.store(bits, Ordering::Relaxed);
        f64::from_bits(bits)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn what_doubles_or_halves_is_news_and_what_hardly_moves_is_not() {
        let meters = Meters::default();
        let meter = meters.of(&"digits".parse().expect("a name"), "cpu");
        let is_news = || meters.news().now_or_never().is_some();
        assert!(!is_news());
        meter.sized(8.0);
        assert!(is_news(), "the first");
        meter.row_takes(0.010);
        assert!(is_news(), "the first");
        assert_eq!((meter.read().rows_per_request, meter.read().row_seconds), (8.0, 0.010));
        meter.sized(15.0);
        meter.ran(8, 0.0055);
        assert!(!is_news());
        meter.sized(17.0);
        assert!(is_news());
        _ = meter.read();
        meter.ran(8, 0.001);
        assert!(is_news());
    }

    #[test]
    fn a_slot_is_busy_while_it_runs_and_not_only_once_it_has_run() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let meter = Meter::default();
        meter.slots_run(1, at(0));
        assert_eq!(meter.busy(at(3)), Duration::from_secs(3));
        meter.slots_run(1, at(4));
        meter.slots_run(-2, at(6));
        assert_eq!(meter.busy(at(9)), Duration::from_secs(4 + 2 * 2));
    }
}
