//! What is measured of one model on one device, for those who decide how many slots it needs. Written where it happens, read by
//! reports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::report::Measured;
use tokio::sync::Notify;

use crate::engine::Device;

/// The meters of all models of a host.
#[derive(Default)]
pub struct Meters {
    meters: Mutex<BTreeMap<(ModelName, String), Arc<Meter>>>,
    news: Arc<Notify>,
}

impl Meters {
    /// The meter of a model on a device; two versions that run side by side share it.
    pub fn of(&self, model: &ModelName, device: &str) -> Arc<Meter> {
        let mut meters = self.meters.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let meter = || Arc::new(Meter { news: Arc::clone(&self.news), ..Meter::default() });
        Arc::clone(meters.entry((model.clone(), device.to_owned())).or_insert_with(meter))
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
    busy_nanos: AtomicU64,
    held: AtomicU64,
    running: AtomicU64,
    rows_per_request: Followed,
    row_seconds: Followed,
    /// The bits of a floating-point number.
    cold_start_seconds: AtomicU64,
    /// The version that was loaded last, and the MiB that this took.
    weight: Mutex<(String, u64)>,
}

impl Meter {
    /// A batch was run.
    pub fn ran(&self, rows: usize, took: Duration, row_seconds: f64) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.busy_nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
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

    /// What loading a version took on a GPU before. What libtorch has kept there since is not taken once more.
    pub fn weighed_before(&self, version: &str, device: Device) -> u64 {
        let weight = self.weight();
        if device != Device::Cpu && weight.0 == version { weight.1 } else { 0 }
    }

    fn weight(&self) -> MutexGuard<'_, (String, u64)> {
        self.weight.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// How long its slots have run all in all.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy_nanos.load(Ordering::Relaxed))
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
        }
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
        meter.ran(8, Duration::from_millis(44), 0.0055);
        assert!(!is_news());
        meter.sized(17.0);
        assert!(is_news());
        _ = meter.read();
        meter.ran(8, Duration::from_millis(8), 0.001);
        assert!(is_news());
    }
}
