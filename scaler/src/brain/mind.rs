//! What is remembered of one model from round to round, and how many slots it needs.

use std::collections::VecDeque;
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::broker::Reading;
use sluice_core::clock::UnixMs;
use sluice_core::scaler::Changed;

use super::Seen;
use super::failures::Failures;
use crate::arrivals::Arrivals;
use crate::catalog::Entry;
use crate::decide::{Demand, History, Lag, Reason, decide};
use crate::fleet::Measured;
use crate::place::Places;

/// Until the first was measured.
const USUAL_COLD_START: Duration = Duration::from_secs(1);

/// After so long nobody knows any more what a model takes: a high reading that kept it off every host must not do so for ever.
const MEMORY_REMEMBERED: Duration = Duration::from_secs(600);
/// Requests that are larger or smaller by more than this share count as of another size.
const RESIZED: f64 = 0.2;

/// What is remembered of a model.
#[derive(Debug, Default)]
pub(super) struct Mind {
    /// Where its slots are, or are on their way to.
    pub(super) places: Places,
    /// How many these are; while a round decides, how many there were when it began.
    pub(super) placed: usize,
    pub(super) failures: Failures,
    pub(super) history: History,
    pub(super) arrivals: Arrivals,
    pub(super) row_time: Option<Duration>,
    pub(super) rows_per_request: Option<f64>,
    pub(super) cold_start: Option<Duration>,
    /// MiB that this revision was seen to take, and when; remembered for a while when it is nowhere loaded.
    pub(super) memory_mib: Option<(u64, Duration)>,
    /// Since when it has wanted something and not had a turn: served for a while.
    pub(super) waiting_since: Option<Duration>,
    pub(super) serving_since: Option<Duration>,
    pub(super) wanted: usize,
    pub(super) granted: usize,
    /// Of these, those for which others give way.
    pub(super) owed: usize,
    pub(super) serving: usize,
    /// Of these, what hosts run by their own configuration.
    pub(super) listed: usize,
    pub(super) revision: (u64, UnixMs),
    /// Why so many are wanted; none before the first round that knows it.
    pub(super) reason: Option<Reason>,
    pub(super) trouble: Option<String>,
    /// However much others gave back, it would not fit.
    pub(super) fits_nowhere: bool,
    /// A trouble is logged once.
    pub(super) told: Option<String>,
    pub(super) changes: VecDeque<Changed>,
    pub(super) demand: Option<Demand>,
}

impl Mind {
    /// How many slots a model needs.
    pub(super) fn want(&mut self, seen: &Seen, model: &ModelName, entry: &Entry, measured: Measured) {
        self.trouble = None;
        self.placed = self.places.values().sum();
        let cold_start = self.cold_start.unwrap_or_default();
        self.failures.note(seen.fleet, model, entry, &self.places, cold_start, seen.now);
        self.serving = measured.serving;
        self.listed = measured.listed;
        if std::mem::replace(&mut self.revision, entry.identity()) != entry.identity() {
            self.memory_mib = None;
        }
        if measured.memory_mib > 0 {
            self.memory_mib = Some((measured.memory_mib, seen.now));
        }
        self.memory_mib = self.memory_mib.filter(|(_, at)| seen.now.saturating_sub(*at) < MEMORY_REMEMBERED);
        self.row_time =
            measured.row_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).or(self.row_time);
        if let Some(rows) = measured.rows_per_request
            && self.rows_per_request.is_none_or(|before| (rows / before - 1.0).abs() > RESIZED)
        {
            // What waits is counted otherwise from now on; the difference has not arrived.
            self.arrivals.forget();
            self.rows_per_request = Some(rows);
        }
        self.cold_start = measured.cold_start.or(self.cold_start);
        if !entry.started {
            (self.wanted, self.granted, self.owed) = (0, 0, 0);
            self.history = History::default();
            self.arrivals.forget();
            self.reason = Some(Reason::Stopped);
            self.demand = None;
            return;
        }
        let rows = self.rows_per_request.unwrap_or(1.0);
        let queue =
            seen.queues.get(model).cloned().unwrap_or(Reading::Unknown("the broker did not tell in time".into()));
        let (lag, arrivals) = match queue {
            Reading::Known(queued) => {
                let in_flight = queued.in_flight.unwrap_or(measured.held);
                let in_rows = |requests: u64| (requests as f64 * rows).ceil() as u64;
                let lag = Lag { waiting: in_rows(queued.ready), in_flight: in_rows(in_flight) };
                let backlog = (lag.waiting + lag.in_flight) as f64;
                (Reading::Known(lag), self.arrivals.note(backlog, seen.fleet.done(model), seen.now))
            }
            Reading::Unknown(reason) => {
                self.arrivals.forget();
                self.trouble = Some(format!("how much waits is unknown: {reason}"));
                (Reading::Unknown(reason), 0.0)
            }
        };
        let holds = entry.manifest.scaling.paused || matches!(lag, Reading::Unknown(_));
        let demand = Demand {
            scaling: entry.manifest.scaling.clone(),
            lag,
            arrivals,
            row_time: self.row_time,
            cold_start: self.cold_start.unwrap_or(USUAL_COLD_START),
            // What cannot be decided holds what was wanted, though a host that had it may be gone for the moment.
            slots: match holds {
                true => self.wanted.max(self.placed + measured.listed),
                false => self.placed + measured.listed,
            },
        };
        let decision = decide(&demand, &mut self.history, seen.now);
        self.wanted = decision.slots;
        self.reason = Some(decision.reason);
        self.demand = Some(demand);
    }
}
