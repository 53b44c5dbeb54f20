//! What is measured of one model on one device, for those who decide how many slots it needs. Written where it happens, read by
//! reports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::report::Measured;

/// The meters of all models of a host.
#[derive(Default)]
pub struct Meters(Mutex<BTreeMap<(ModelName, String), Arc<Meter>>>);

impl Meters {
    /// The meter of a model on a device; two versions that run side by side share it.
    pub fn of(&self, model: &ModelName, device: &str) -> Arc<Meter> {
        let mut meters = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Arc::clone(meters.entry((model.clone(), device.to_owned())).or_default())
    }
}

/// What is measured of one model on one device.
#[derive(Default)]
pub struct Meter {
    rows: AtomicU64,
    busy_nanos: AtomicU64,
    held: AtomicU64,
    /// The bits of floating-point numbers.
    rows_per_request: AtomicU64,
    row_seconds: AtomicU64,
    cold_start_seconds: AtomicU64,
    memory_mib: AtomicU64,
}

impl Meter {
    /// A batch was run.
    pub fn ran(&self, rows: usize, took: Duration, row_seconds: f64) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.busy_nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        self.row_seconds.store(row_seconds.to_bits(), Ordering::Relaxed);
    }

    /// A request came.
    pub fn took(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has ended here.
    pub fn ended(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many rows requests have.
    pub fn sized(&self, rows_per_request: f64) {
        self.rows_per_request.store(rows_per_request.to_bits(), Ordering::Relaxed);
    }

    /// It was loaded where nothing of it ran.
    pub fn started(&self, took: Duration) {
        self.cold_start_seconds.store(took.as_secs_f64().to_bits(), Ordering::Relaxed);
    }

    /// Loading it took so much memory.
    pub fn weighed(&self, mib: u64) {
        self.memory_mib.store(mib, Ordering::Relaxed);
    }

    /// How long its slots have run all in all.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy_nanos.load(Ordering::Relaxed))
    }

    /// All but the share of time that they were busy, which needs two looks.
    pub fn read(&self) -> Measured {
        let float = |bits: &AtomicU64| f64::from_bits(bits.load(Ordering::Relaxed));
        Measured {
            rows: self.rows.load(Ordering::Relaxed),
            requests_held: self.held.load(Ordering::Relaxed),
            rows_per_request: float(&self.rows_per_request),
            row_seconds: float(&self.row_seconds),
            busy: 0.0,
            cold_start_seconds: float(&self.cold_start_seconds),
            memory_mib: self.memory_mib.load(Ordering::Relaxed),
        }
    }
}
