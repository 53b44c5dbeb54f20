//! Whether a model's requests can be received: notices that they cannot, tells everyone who should know, and makes the queue again
//! where it is gone. Receives nothing itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::broker::{Broker, BrokerError, Limited, QueueLimits};
use sluice_core::{Manifest, ModelName};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::metrics::ModelMetrics;

/// Trouble that is over within this is nobody's concern: a broker that changes its leader, a connection made anew.
const MOMENT: Duration = Duration::from_secs(1);
/// The pause after an error, and between two attempts to make a queue again.
const PAUSE: Duration = Duration::from_millis(200);
const REPAIR_EVERY: Duration = Duration::from_secs(2);

/// Whether a model's requests can be received.
pub struct Reception {
    broker: Arc<dyn Broker>,
    model: ModelName,
    limits: QueueLimits,
    metrics: Arc<ModelMetrics>,
    state: State,
    /// Not to be asked for deliveries before this.
    resume: Option<Instant>,
    repair: Option<AbortOnDropHandle<()>>,
    repaired: Option<Instant>,
}

/// What is known, and since when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Receives,
    /// Perhaps only for a moment.
    Doubtful(Instant),
    /// Everyone was told.
    Lost(Instant),
}

/// What is to be told.
#[derive(Debug, PartialEq, Eq)]
enum News {
    None,
    Lost,
    Again(Duration),
}

impl State {
    fn next(self, troubled: bool, now: Instant) -> (Self, News) {
        match (self, troubled) {
            (State::Lost(since), false) => (State::Receives, News::Again(now - since)),
            (_, false) => (State::Receives, News::None),
            (State::Receives, true) => (State::Doubtful(now), News::None),
            (State::Doubtful(since), true) if now - since >= MOMENT => (State::Lost(since), News::Lost),
            (same, true) => (same, News::None),
        }
    }
}

impl Reception {
    pub fn new(broker: &Arc<dyn Broker>, manifest: &Manifest, metrics: &Arc<ModelMetrics>) -> Self {
        Self {
            broker: Arc::clone(broker),
            model: manifest.name.clone(),
            limits: manifest.queue_limits(),
            metrics: Arc::clone(metrics),
            state: State::default(),
            resume: None,
            repair: None,
            repaired: None,
        }
    }

    /// The queue is to have other limits from now on.
    pub fn tune(&mut self, manifest: &Manifest) {
        self.limits = manifest.queue_limits();
    }

    /// Looks at what a consumer says of itself.
    pub fn look(&mut self, trouble: Option<String>, now: Instant) {
        let (state, news) = self.state.next(trouble.is_some(), now);
        self.state = state;
        match news {
            News::None => {}
            News::Lost => {
                warn!(model = %self.model, reason = trouble, "receives no requests");
                self.metrics.lost_queue.inc();
            }
            News::Again(after) => info!(model = %self.model, ?after, "receives requests again"),
        }
        let told = trouble.filter(|_| matches!(self.state, State::Lost(_)));
        self.metrics.meter.set_trouble(told.map(|reason| format!("receives no requests: {reason}")));
    }

    /// A consumer gave an error instead of a delivery.
    pub fn failed(&mut self, error: &BrokerError, now: Instant) {
        self.resume = Some(now + PAUSE);
        let running = self.repair.as_ref().is_some_and(|repair| !repair.is_finished());
        let lately = self.repaired.is_some_and(|repaired| now - repaired < REPAIR_EVERY);
        if !error.is_of_a_lost_queue() || running || lately {
            return;
        }
        self.repaired = Some(now);
        if !matches!(self.state, State::Lost(_)) {
            // There is nothing to wait for: it does not come back by itself.
            self.state = State::Lost(now);
            self.metrics.lost_queue.inc();
            self.metrics.meter.set_trouble(Some(format!("receives no requests: {error}")));
        }
        warn!(model = %self.model, reason = %error, "receives no requests: the queue is gone or not whole, and is made again");
        let (broker, model, limits) = (Arc::clone(&self.broker), self.model.clone(), self.limits.clone());
        self.repair = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            match broker.ensure_queue(&model, &limits).await {
                Ok(Limited::AsAsked) => {
                    info!(%model, "the queue is made again; what waited in it before is lost if all of it was gone")
                }
                Ok(Limited::AsConfigured(reason)) => {
                    warn!(%model, reason, "the queue is made again, with the limits that the broker is configured with")
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    warn!(%model, %error, cause, "the queue cannot be made again; trying on");
                }
            }
        })));
    }

    /// Waits until a consumer may be asked again.
    pub async fn may_ask(&self) {
        if let Some(resume) = self.resume {
            tokio::time::sleep_until(resume.into()).await;
        }
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        if matches!(self.state, State::Lost(_)) {
            self.metrics.meter.set_trouble(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_not_told_and_both_ends_of_what_lasts_are_told_once() {
        let start = Instant::now();
        let mut state = State::default();
        let mut told = Vec::new();
        for (at, troubled) in [
            (0, true),
            (500, false),
            (1000, true),
            (1800, true),
            (2000, true),
            (2200, true),
            (3000, false),
            (3200, false),
        ] {
            let (next, news) = state.next(troubled, start + Duration::from_millis(at));
            state = next;
            if news != News::None {
                told.push((at, news));
            }
        }
        assert_eq!(told, [(2000, News::Lost), (3000, News::Again(Duration::from_secs(2)))]);
    }
}
