//! The worker's metrics, by the definitions in `sluice_core::metrics`. Handles are looked up once per model, not per
//! request.

use std::sync::Arc;
use std::time::Instant;

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};
use sluice_core::metrics::{self as names, Metric};
use sluice_core::{Lane, ModelName};

use crate::meter::{Meter, Meters};

/// How a request ended, for `sluice_requests_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Forwarded,
    Invalid,
    ExpiredFetch,
    ExpiredBatch,
    ExpiredReply,
    Retried,
    Dead,
    GivenBack,
}

const OUTCOMES: [(Outcome, &str); 9] = [
    (Outcome::Ok, "ok"),
    (Outcome::Forwarded, "forwarded"),
    (Outcome::Invalid, "invalid"),
    (Outcome::ExpiredFetch, "expired_fetch"),
    (Outcome::ExpiredBatch, "expired_batch"),
    (Outcome::ExpiredReply, "expired_reply"),
    (Outcome::Retried, "retried"),
    (Outcome::Dead, "dead"),
    (Outcome::GivenBack, "given_back"),
];

/// All families, registered.
#[derive(Clone)]
pub struct Metrics {
    requests: IntCounterVec,
    rows: IntCounterVec,
    batches: IntCounterVec,
    batch_rows: HistogramVec,
    queue_seconds: HistogramVec,
    batch_wait_seconds: HistogramVec,
    compute_seconds: HistogramVec,
    in_flight: IntGaugeVec,
    slots: GaugeVec,
    lost_queues: IntCounterVec,
    meters: Arc<Meters>,
}

impl Metrics {
    /// Registers every family.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |metric: Metric| -> prometheus::Result<IntCounterVec> {
            let family = IntCounterVec::new(Opts::new(metric.name, metric.help), metric.labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let histogram = |metric: Metric| -> prometheus::Result<HistogramVec> {
            let options = HistogramOpts::new(metric.name, metric.help).buckets(metric.buckets.to_vec());
            let family = HistogramVec::new(options, metric.labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let in_flight =
            IntGaugeVec::new(Opts::new(names::IN_FLIGHT.name, names::IN_FLIGHT.help), names::IN_FLIGHT.labels)?;
        registry.register(Box::new(in_flight.clone()))?;
        let slots = GaugeVec::new(Opts::new(names::SLOTS.name, names::SLOTS.help), names::SLOTS.labels)?;
        registry.register(Box::new(slots.clone()))?;
        Ok(Self {
            requests: counter(names::REQUESTS)?,
            rows: counter(names::ROWS)?,
            batches: counter(names::BATCHES)?,
            batch_rows: histogram(names::BATCH_ROWS)?,
            queue_seconds: histogram(names::QUEUE_SECONDS)?,
            batch_wait_seconds: histogram(names::BATCH_WAIT_SECONDS)?,
            compute_seconds: histogram(names::COMPUTE_SECONDS)?,
            in_flight,
            slots,
            lost_queues: counter(names::LOST_QUEUES)?,
            meters: Arc::default(),
        })
    }

    /// What reports say of models.
    pub fn meters(&self) -> Arc<Meters> {
        Arc::clone(&self.meters)
    }

    /// The handles of one model.
    pub fn of_model(&self, model: &ModelName, device: &str) -> ModelMetrics {
        let meter = self.meters.of(model, device);
        let model = model.as_str();
        ModelMetrics {
            requests: Lane::ALL.map(|lane| {
                OUTCOMES.map(|(_, outcome)| self.requests.with_label_values(&[model, lane.as_str(), outcome]))
            }),
            rows: self.rows.with_label_values(&[model]),
            batches_ok: self.batches.with_label_values(&[model, device, "ok"]),
            batches_split: self.batches.with_label_values(&[model, device, "split"]),
            batch_rows: self.batch_rows.with_label_values(&[model]),
            queue_seconds: Lane::ALL.map(|lane| self.queue_seconds.with_label_values(&[model, lane.as_str()])),
            batch_wait_seconds: self.batch_wait_seconds.with_label_values(&[model]),
            compute_seconds: self.compute_seconds.with_label_values(&[model, device]),
            in_flight: self.in_flight.with_label_values(&[model]),
            lost_queue: self.lost_queues.with_label_values(&[model]),
            meter,
            slots: ["loading", "idle", "busy"].map(|state| self.slots.with_label_values(&[model, device, state])),
        }
    }
}

/// One model's handles.
pub struct ModelMetrics {
    requests: [[IntCounter; OUTCOMES.len()]; 3],
    pub rows: IntCounter,
    pub batches_ok: IntCounter,
    pub batches_split: IntCounter,
    pub batch_rows: Histogram,
    pub queue_seconds: [Histogram; 3],
    pub batch_wait_seconds: Histogram,
    pub compute_seconds: Histogram,
    in_flight: IntGauge,
    /// Times that its requests could no longer be received.
    pub lost_queue: IntCounter,
    pub meter: Arc<Meter>,
    slots: [Gauge; 3],
}

impl ModelMetrics {
    /// Counts a request's end.
    pub fn count(&self, lane: Lane, outcome: Outcome) {
        self.requests[lane.index()][outcome as usize].inc();
    }

    /// A request came.
    pub fn took(&self) {
        self.in_flight.inc();
        self.meter.took();
    }

    /// A request has ended here.
    pub fn ended(&self) {
        self.in_flight.dec();
        self.meter.ended();
    }

    /// A part of the model's slots.
    pub fn slots(&self) -> SlotsGauge {
        SlotsGauge { gauges: self.slots.clone(), counted: [0; 3], meter: Arc::clone(&self.meter) }
    }
}

/// How many slots of a part are in each state. Parts add up: two versions of a model may run side by side. Dropping it takes its
/// own away.
pub struct SlotsGauge {
    gauges: [Gauge; 3],
    counted: [usize; 3],
    meter: Arc<Meter>,
}

impl SlotsGauge {
    /// Sets the numbers of this part.
    pub fn set(&mut self, loading: usize, idle: usize, busy: usize) {
        let counts = [loading, idle, busy];
        for (gauge, (count, before)) in self.gauges.iter().zip(counts.into_iter().zip(self.counted)) {
            gauge.add(count as f64 - before as f64);
        }
        if busy != self.counted[2] {
            self.meter.slots_run(busy as isize - self.counted[2] as isize, Instant::now());
        }
        self.counted = counts;
    }
}

impl Drop for SlotsGauge {
    fn drop(&mut self) {
        self.set(0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_label_and_every_metric_is_registered_under_its_name() {
        for (place, (outcome, _)) in OUTCOMES.iter().enumerate() {
            assert_eq!(*outcome as usize, place);
        }
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).expect("registers");
        let model = metrics.of_model(&"digits".parse().expect("a name"), "cpu");
        model.count(Lane::Low, Outcome::Dead);
        let families = registry.gather();
        for metric in names::ALL {
            assert!(families.iter().any(|family| family.name() == metric.name), "{} is missing", metric.name);
        }
        let requests = families.iter().find(|family| family.name() == names::REQUESTS.name).expect("counted");
        let counted =
            requests.get_metric().iter().find(|metric| metric.get_counter().get_value() == 1.0).expect("one is 1");
        let labels: Vec<_> = counted.get_label().iter().map(|label| label.value()).collect();
        assert!(labels.contains(&"dead") && labels.contains(&"low"), "{labels:?}");
        assert!(names::REQUESTS.help.contains("given_back"));
    }
}
