//! The scaler's metrics, by the definitions in `sluice_core::metrics`.

use prometheus::{Gauge, GaugeVec, Histogram, HistogramOpts, Opts, Registry};
use sluice_core::broker::Reading;
use sluice_core::metrics::{self as names, Metric};

use crate::brain::{Brain, Round};

/// All families, registered.
pub struct Metrics {
    slots: GaugeVec,
    lag: GaugeVec,
    troubles: GaugeVec,
    pub hosts: Gauge,
    pub leads: Gauge,
    pub round: Histogram,
    pub storage_bytes: GaugeVec,
    pub storage_limits: GaugeVec,
}

impl Metrics {
    /// Registers every family.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let family = |metric: Metric| -> prometheus::Result<GaugeVec> {
            let family = GaugeVec::new(Opts::new(metric.name, metric.help), metric.labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let gauge = |metric: Metric| -> prometheus::Result<Gauge> {
            let gauge = Gauge::new(metric.name, metric.help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let round = names::SCALER_ROUND_SECONDS;
        let round = Histogram::with_opts(HistogramOpts::new(round.name, round.help).buckets(round.buckets.to_vec()))?;
        registry.register(Box::new(round.clone()))?;
        Ok(Self {
            slots: family(names::SCALER_SLOTS)?,
            lag: family(names::SCALER_LAG_ROWS)?,
            troubles: family(names::SCALER_TROUBLES)?,
            hosts: gauge(names::SCALER_HOSTS)?,
            leads: gauge(names::SCALER_LEADS)?,
            round,
            storage_bytes: family(names::STORAGE_BYTES)?,
            storage_limits: family(names::STORAGE_LIMIT_BYTES)?,
        })
    }

    /// What came of a round.
    pub fn show(&self, brain: &Brain, round: &Round) {
        // Models come and go: what is not set below is gone.
        self.slots.reset();
        self.lag.reset();
        self.troubles.reset();
        for of in brain.models() {
            let model = of.name.as_str();
            let unplaced = round.unplaced.get(of.name).map_or(0, |unplaced| unplaced.slots);
            let kinds = [("wanted", of.wanted), ("granted", of.granted), ("placed", of.placed), ("unplaced", unplaced)];
            for (kind, slots) in kinds {
                self.slots.with_label_values(&[model, kind]).set(slots as f64);
            }
            if let Some(Reading::Known(lag)) = of.demand.map(|demand| &demand.lag) {
                self.lag.with_label_values(&[model]).set((lag.waiting + lag.running) as f64);
            }
            self.troubles.with_label_values(&[model]).set(f64::from(u8::from(of.in_trouble)));
        }
    }

    /// Nothing is decided here any more.
    pub fn clear(&self) {
        self.slots.reset();
        self.lag.reset();
        self.troubles.reset();
        self.leads.set(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_registered_under_its_name() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).expect("registers");
        metrics.slots.with_label_values(&["m", "wanted"]).set(1.0);
        metrics.lag.with_label_values(&["m"]).set(1.0);
        metrics.troubles.with_label_values(&["m"]).set(1.0);
        metrics.storage_bytes.with_label_values(&["RESULTS"]).set(1.0);
        metrics.storage_limits.with_label_values(&["RESULTS"]).set(1.0);
        let families = registry.gather();
        for metric in names::SCALER {
            assert!(families.iter().any(|family| family.name() == metric.name), "{} is missing", metric.name);
        }
    }
}
