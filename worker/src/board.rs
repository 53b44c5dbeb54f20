//! What this host runs, for all who ask: reports to everyone who listens, at each change and as a sign of life.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sluice_core::ModelName;
use sluice_core::assignment::Assignment;
use sluice_core::broker::Broker;
use sluice_core::clock::{UnixMs, unix_ms};
use sluice_core::report::{
    DeviceReport, ModelReport, REPORT_NOW, REPORTS, RegistryReport, Report, SIGN_OF_LIFE, State,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::engine::Device;
use crate::memory::Memory;
use crate::meter::Meters;

/// Changes that follow each other this closely make one report.
const PAUSE: Duration = Duration::from_millis(20);
/// The share of time that slots were busy is of at least so long.
const BUSY_OVER: Duration = Duration::from_secs(1);

/// That something was refused is told for so long, unless another assignment is followed before.
const TOLD_FOR: Duration = Duration::from_secs(600);

/// A model, and the device that it was asked to run on, if any.
pub type Place = (ModelName, Option<Device>);

/// What a host is, whatever it runs.
pub struct Host {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// How much each device can run at once.
    pub capacity: BTreeMap<String, usize>,
    pub memory: Arc<Memory>,
    pub meters: Arc<Meters>,
    pub started: UnixMs,
    /// Tells this process from every other.
    pub instance: String,
}

/// What this host runs.
pub struct Board {
    host: Host,
    shown: Mutex<Shown>,
    /// Grows at each change.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Shown {
    models: BTreeMap<Place, ModelReport>,
    /// When the time of a place's slots was looked at, what it was, and the share that it had been.
    busy: BTreeMap<Place, (Instant, Duration, f64)>,
    assignment: Option<Assignment>,
    /// Why what was sent as an assignment is refused, and since when.
    refuses: Option<(Instant, String)>,
    registry: Option<RegistryReport>,
    /// Who does the work under this host's name.
    taken_by: Option<String>,
    draining: bool,
}

impl Board {
    /// An empty board.
    pub fn new(host: Host) -> Arc<Self> {
        Arc::new(Self { host, shown: Mutex::default(), changes: watch::channel(0).0 })
    }

    /// Puts a model's state up.
    pub fn put(&self, asked: Option<Device>, report: ModelReport) {
        let before = self.shown().models.insert((report.model.clone(), asked), report.clone());
        if before.as_ref() != Some(&report) {
            debug!(model = %report.model, revision = report.revision, state = report.state.as_str(), reason = report.reason, "state");
            self.changed();
        }
    }

    /// Puts up that a model will load, unless something is known of it: until then this host is not ready.
    pub fn expect(&self, model: &ModelName, revision: u64) {
        let known = self.shown().models.keys().any(|(known, _)| known == model);
        if !known {
            let loading = ModelReport::new(model.clone(), Some(revision), State::Loading);
            self.put(None, loading);
        }
    }

    /// What is up of a model, with another version that serves.
    pub fn put_serving(&self, place: &Place, serving: Option<String>, slots: usize) {
        let report = self.shown().models.get(place).cloned();
        if let Some(report) = report {
            self.put(place.1, ModelReport { serving, slots, ..report });
        }
    }

    /// Takes a model down.
    pub fn remove(&self, place: &Place) {
        if self.shown().models.remove(place).is_some() {
            self.changed();
        }
    }

    /// What the scaler wants of this host.
    pub fn follow(&self, assignment: Assignment) {
        let mut shown = self.shown();
        (shown.assignment, shown.refuses) = (Some(assignment), None);
        drop(shown);
        self.changed();
    }

    /// Puts up why what was sent as an assignment is refused: the first reason since one was followed, which is told.
    pub fn refuse(&self, reason: &str) -> bool {
        let mut shown = self.shown();
        if shown.refuses.as_ref().is_some_and(|(since, _)| since.elapsed() < TOLD_FOR) {
            return false;
        }
        shown.refuses = Some((Instant::now(), reason.to_owned()));
        drop(shown);
        self.changed();
        true
    }

    /// How much each device of this host can run at once.
    pub fn capacity(&self) -> &BTreeMap<String, usize> {
        &self.host.capacity
    }

    /// Puts up which registry this host follows.
    pub fn put_registry(&self, registry: RegistryReport) {
        let before = self.shown().registry.replace(registry.clone());
        if before.as_ref() != Some(&registry) {
            self.changed();
        }
    }

    /// Whether it is up which registry this host follows, by its identity.
    pub fn knows_registry(&self) -> bool {
        self.shown().registry.as_ref().is_some_and(|registry| registry.identity.is_some())
    }

    /// This process, among those that may report under the host's name.
    pub fn instance(&self) -> &str {
        &self.host.instance
    }

    /// Another process does the work under this host's name, or none does any more. Gives whether that is new.
    pub fn taken_by(&self, other: Option<&str>) -> bool {
        let other = other.map(str::to_owned);
        let before = std::mem::replace(&mut self.shown().taken_by, other.clone());
        if before != other {
            self.changed();
        }
        before != other
    }

    /// Waits until `fits` is true of all models.
    pub async fn wait_until(&self, fits: impl Fn(&ModelReport) -> bool) {
        let mut changes = self.changes.subscribe();
        while !self.shown().models.values().all(&fits) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn report(&self) -> Report {
        let mut shown = self.shown();
        let now = Instant::now();
        let Shown { models, busy, assignment, refuses, registry, taken_by, draining } = &mut *shown;
        let models = models.iter().map(|(place, report)| {
            let mut report = report.clone();
            if !report.device.is_empty() {
                let meter = self.host.meters.of(&report.model, &report.device);
                report.measured = meter.read();
                if let Some(trouble) = meter.trouble() {
                    report.receives_nothing = true;
                    report.reason = Some(trouble);
                }
                let total = meter.busy(now);
                let (since, before, share) = busy.entry(place.clone()).or_insert((now, total, 0.0));
                let passed = now - *since;
                if passed >= BUSY_OVER {
                    let slots = report.slots.max(1) as f64;
                    *share = ((total - *before).as_secs_f64() / passed.as_secs_f64() / slots).min(1.0);
                    (*since, *before) = (now, total);
                }
                report.measured.busy = *share;
            }
            report
        });
        let models = models.collect();
        let device = |(name, capacity): (&String, &usize)| DeviceReport {
            name: name.clone(),
            capacity: *capacity,
            memory_mib: self.host.memory.total(name),
        };
        Report {
            host: self.host.name.clone(),
            at: unix_ms(),
            started: self.host.started,
            instance: self.host.instance.clone(),
            taken_by: taken_by.clone(),
            models,
            devices: self.host.capacity.iter().map(device).collect(),
            labels: self.host.labels.clone(),
            assignment: assignment.clone(),
            refuses: refuses.as_ref().filter(|(since, _)| since.elapsed() < TOLD_FOR).map(|(_, reason)| reason.clone()),
            registry: registry.clone(),
            draining: *draining,
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Reports until `stop`.
    pub async fn publish(self: Arc<Self>, broker: Arc<dyn Broker>, stop: CancellationToken) -> Result<()> {
        let mut asked = broker.listen(REPORT_NOW).await.context("listening for those who ask for a report")?;
        let mut changes = self.changes.subscribe();
        loop {
            let text = serde_json::to_vec(&self.report()).context("writing a report")?;
            // The next one says the same.
            if let Err(error) = broker.signal(REPORTS, text.into()).await {
                debug!(%error, "could not report");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                _ = changes.changed() => tokio::time::sleep(PAUSE).await,
                () = self.host.meters.news() => tokio::time::sleep(PAUSE).await,
                asked = asked.next() => { asked.context("listening for those who ask for a report")?; }
                () = tokio::time::sleep(SIGN_OF_LIFE) => {}
            }
        }
        // So that nobody counts on this host any more.
        self.shown().draining = true;
        let text = serde_json::to_vec(&self.report()).context("writing a report")?;
        if let Err(error) = broker.signal(REPORTS, text.into()).await {
            debug!(%error, "could not report");
        }
        Ok(())
    }
}
