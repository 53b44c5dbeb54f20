//! What is remembered of one model from round to round, and how many slots it needs.

use std::collections::VecDeque;
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::broker::Reading;
use sluice_core::clock::UnixMs;
use sluice_core::report::{SIGN_OF_LIFE, State};
use sluice_core::scaler::Changed;

use super::Seen;
use super::failures::{Failures, Look};
use super::idle::Idle;
use crate::arrivals::Arrivals;
use crate::catalog::Entry;
use crate::decide::{Demand, History, Lag, Reason, decide};
use crate::fleet::Measured;
use crate::place::{Place, Places};

/// Until the first was measured.
const USUAL_COLD_START: Duration = Duration::from_secs(1);

/// After so long nobody knows any more what a model takes: a high reading that kept it off every host must not do so for ever.
const MEMORY_REMEMBERED: Duration = Duration::from_secs(600);
/// Requests that are larger or smaller by more than this share count as of another size.
const RESIZED: f64 = 0.2;

/// Idle slots make room as soon as they have been idle for as long as a start takes, within these bounds: hosts report every two seconds what
/// they have done meanwhile.
const LEAST_IDLE: Duration = SIGN_OF_LIFE;
const MOST_IDLE: Duration = Duration::from_secs(10);

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
    pub(super) idle: Idle,
    /// It has the place of slots that were idle, and has not had its turn: it keeps it until then.
    pub(super) seated: bool,
    /// The revision that one host is to try to load.
    pub(super) trial: Option<(u64, UnixMs)>,
    /// Where this revision was tried last, and why it did not load; none while it serves anywhere.
    pub(super) failure: Option<String>,
    /// Why it came to serve nowhere when it was tried last, if it was tried often enough lately.
    pub(super) tried_enough: Option<String>,
    /// Whom its idle slots made room for in this round.
    pub(super) gave_way: Option<ModelName>,
    pub(super) row_time: Option<Duration>,
    pub(super) rows_per_request: Option<f64>,
    pub(super) cold_start: Option<Duration>,
    /// MiB that this revision was seen to take, and when; remembered for a while when it is nowhere loaded.
    pub(super) memory_mib: Option<(u64, Duration)>,
    /// Whether each slot has a copy of it, as was seen last where it serves.
    pub(super) copied: bool,
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
    /// A host of its places that refuses what somebody sends it as assignments, and why.
    pub(super) refused: Option<String>,
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
        let queue = seen.queues.get(model);
        let waits = matches!(queue, Some(Reading::Known(queued)) if queued.ready > 0);
        let (fleet, places, now) = (seen.fleet, &self.places, seen.now);
        self.failures.note(&Look { fleet, model, entry, places, cold_start, waits, now });
        let refuses = |(host, _): &Place| {
            let reason = seen.fleet.host(host, seen.now)?.refuses.as_ref()?;
            Some(format!("host `{host}` refuses what somebody sends it as an assignment: {reason}"))
        };
        self.refused = self.places.keys().find_map(refuses);
        self.serving = measured.serving;
        self.listed = measured.listed;
        if std::mem::replace(&mut self.revision, entry.identity()) != entry.identity() {
            self.memory_mib = None;
        }
        if measured.serving > 0 {
            self.copied = measured.copied;
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
        let done = seen.fleet.done(model);
        let said = seen.fleet.failure(model, entry.revision, seen.now).map(str::to_owned);
        // Or it waits everywhere for what does not come.
        self.tried_enough = self.failures.of_enough(seen.now).filter(|_| self.serving == 0);
        self.failure = said.or_else(|| self.tried_enough.clone());
        let is_ready = |place: &Place| {
            let report = seen.fleet.said(model, place, seen.now).flatten();
            report.is_some_and(|report| report.revision == Some(entry.revision) && report.state == State::Ready)
        };
        // What was tried is known.
        if self.failure.is_some() || self.trial != Some(entry.identity()) || self.places.keys().any(is_ready) {
            self.trial = None;
        }
        if !entry.started {
            self.idle = Idle::default();
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
                // What a host holds and does not run yet waits as if nobody had taken it.
                let running = measured.running.min(in_flight);
                let waiting = queued.ready.saturating_add(in_flight - running);
                let in_rows = |requests: u64| (requests as f64 * rows).ceil() as u64;
                let lag = Lag { waiting: in_rows(waiting), running: in_rows(running) };
                let backlog = (lag.waiting + lag.running) as f64;
                (Reading::Known(lag), self.arrivals.note(backlog, done, seen.now))
            }
            Reading::Unknown(reason) => {
                self.arrivals.forget();
                self.trouble = Some(format!("how much waits is unknown: {reason}"));
                (Reading::Unknown(reason), 0.0)
            }
        };
        if measured.deaf > 0 && self.trouble.is_none() {
            self.trouble =
                Some(format!("{} of its hosts receive no requests: `sluice slots {model}` tells why", measured.deaf));
        }
        let holds = entry.manifest.scaling.paused || matches!(lag, Reading::Unknown(_));
        let demand = Demand {
            scaling: entry.manifest.scaling.clone(),
            lag,
            arrivals,
            row_time: self.row_time,
            rows_per_request: rows,
            cold_start: self.cold_start.unwrap_or(USUAL_COLD_START),
            // What cannot be decided holds what was wanted, though a host that had it may be gone for the moment.
            slots: match holds {
                true => self.wanted.max(self.placed + measured.listed),
                false => self.placed + measured.listed,
            },
        };
        let decision = decide(&demand, &mut self.history, seen.now);
        let works = demand.lag.clone().known().is_none_or(|lag| lag.waiting + lag.running > 0);
        let has = self.placed + self.listed;
        self.idle.note(works, done, decision.reason.needed(), has, entry.manifest.scaling.min_slots, seen.now);
        (self.wanted, self.reason) = match self.trial {
            Some(_) if decision.slots == 0 => (1, Some(Reason::Trial)),
            // One that serves nowhere and does not load is not kept for a while as one that serves is.
            None if self.failure.is_some() && decision.reason.needed() == Some(0) => {
                (entry.manifest.scaling.min_slots, Some(decision.reason))
            }
            _ => (decision.slots, Some(decision.reason)),
        };
        self.demand = Some(demand);
    }

    /// Slots that nobody needs now and that make room for whoever has none, and for how long they were not needed.
    pub(super) fn spare(&self, now: Duration) -> (usize, Duration) {
        let least = self.cold_start.unwrap_or_default().clamp(LEAST_IDLE, MOST_IDLE);
        match self.idle.spare(now) {
            (spare, idle) if idle >= least => (spare.min(self.placed), idle),
            (_, idle) => (0, idle),
        }
    }

    /// Whether idle slots of others are to make room for its first one: requests wait for it, or a person wants one at all times.
    pub(super) fn lacks_its_first(&self) -> bool {
        let Some(demand) = self.demand.as_ref().filter(|_| self.wanted > 0 && !self.fits_nowhere) else { return false };
        let waits = demand.lag.clone().known().is_some_and(|lag| lag.waiting > 0);
        let is_due = waits || demand.scaling.min_slots > 0 || self.trial.is_some();
        self.placed == 0 && self.serving == 0 && is_due
    }

    /// Whether one host is to find out whether it loads.
    pub(super) fn is_tried(&self) -> bool {
        self.trial.is_some()
    }

    /// Idle slots have made room for another model: they are wanted no more.
    pub(super) fn make_room(&mut self, slots: usize, model: &ModelName) {
        self.wanted = self.wanted.saturating_sub(slots);
        self.granted = self.granted.min(self.wanted);
        self.gave_way = Some(model.clone());
    }

    /// It has the place of others' idle slots.
    pub(super) fn take_seat(&mut self) {
        self.granted = self.granted.max(1);
        self.seated = true;
    }
}
