//! Places where a model does not come to serve: avoided for a while, and longer each time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::clock::UnixMs;
use sluice_core::report::{ModelReport, State};

use crate::catalog::Entry;
use crate::fleet::Fleet;
use crate::place::{Place, Places};

/// A place that has waited, for memory or for the registry, for so long has failed: longer than a batch that may have to end first.
const WAITING_PATIENCE: Duration = Duration::from_secs(10);
/// One whose host says nothing of the model that it was told to run: it may not reach the registry.
const SILENT_PATIENCE: Duration = Duration::from_secs(60);
/// One that loads, unless loading is known to take longer. It doubles up to three times, so that what loads slowly does in the end.
const LOADING_PATIENCE: Duration = Duration::from_secs(300);
/// What has loaded once may take so many times as long elsewhere.
const SLOWER: u32 = 4;
/// The pause before a place is tried again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// One that says it serves while requests wait, and takes none of them for so long, is of no use: hosts report every two seconds.
const IDLE_PATIENCE: Duration = Duration::from_secs(60);
/// One that has requests in hand and runs no row for so long; of a model whose batches may take longer, two of these. A worker whose batch takes
/// longer than that ends itself.
const STUCK_PATIENCE: Duration = Duration::from_secs(300);
/// For so long after its pause a failure says something of the model, not of the place alone.
const LATELY: Duration = Duration::from_secs(600);

/// After so many failures lately, nobody moves for it, and it is not tried any more for the sake of knowing.
const ENOUGH_TRIES: usize = 3;

/// Places that were told to run a model and do not serve it, or do nothing though they say so; and those where it failed before.
#[derive(Debug, Default)]
pub(super) struct Failures {
    trials: BTreeMap<Place, Trial>,
    /// Places that serve.
    work: BTreeMap<Place, Work>,
}

/// What a round looks at.
pub(super) struct Look<'s> {
    pub fleet: &'s Fleet,
    pub model: &'s ModelName,
    pub entry: &'s Entry,
    pub places: &'s Places,
    pub cold_start: Duration,
    /// Whether there are requests that nobody has taken.
    pub waits: bool,
    pub now: Duration,
}

/// What a place that serves has done lately.
#[derive(Debug)]
struct Work {
    rows: u64,
    /// When it was last seen to run rows, or nothing waited.
    ran: Duration,
    /// When it was last seen to have requests in hand, or nothing waited.
    held: Duration,
}

impl Work {
    /// Why it is of no use, if it is not; and whether it has run rows since the last look.
    fn note(&mut self, report: &ModelReport, look: &Look) -> (Option<&'static str>, bool) {
        let measured = &report.measured;
        let has_run = std::mem::replace(&mut self.rows, measured.rows) != measured.rows;
        if has_run || !look.waits {
            self.ran = look.now;
        }
        if has_run || !look.waits || measured.requests_held > 0 || measured.requests_running > 0 {
            self.held = look.now;
        }
        let stuck = STUCK_PATIENCE.max(look.entry.manifest.limits.batch_time.saturating_mul(2));
        let reason = match () {
            () if look.now.saturating_sub(self.held) >= IDLE_PATIENCE => {
                Some("it says that it serves, and takes none of the requests that wait")
            }
            () if look.now.saturating_sub(self.ran) >= stuck => Some("it says that it serves, and gets nothing done"),
            () => None,
        };
        (reason, has_run)
    }
}

/// How a place does with a model's revision.
#[derive(Debug)]
struct Trial {
    revision: (u64, UnixMs),
    /// It said that it served, and got nothing done: that it says so again proves nothing.
    idle: bool,
    /// What its host says of it, and since when; none while it says nothing.
    state: Option<State>,
    since: Duration,
    failures: u32,
    /// When it may try again.
    until: Duration,
    /// Why it failed last.
    reason: String,
}

impl Failures {
    /// Takes up what hosts report of where they were told to run it.
    pub(super) fn note(&mut self, look: &Look) {
        let Look { fleet, entry, places, now, .. } = *look;
        // Where it is not now, or nothing is heard from, only failures count.
        let here = |place: &Place| places.contains_key(place) && fleet.host(&place.0, now).is_some();
        self.trials.retain(|place, trial| {
            let failed = trial.failures > 0 && fleet.remembers(&place.0);
            entry.started && trial.revision == entry.identity() && (failed || here(place))
        });
        self.work.retain(|place, _| entry.started && here(place));
        for place in places.keys().filter(|_| entry.started) {
            let Some(report) = fleet.said(look.model, place, now) else { continue };
            if let Some(report) = report.filter(|report| report.serving.is_some()) {
                self.note_work(place, report, look);
                continue;
            }
            self.work.remove(place);
            // What is said of an older revision says nothing of this one.
            let report = report.filter(|report| report.revision == Some(entry.revision));
            let trial = self.trials.entry(place.clone()).or_insert_with(|| Trial::new(entry.identity(), now));
            trial.note(report, look.cold_start, now);
        }
    }

    /// What has worked once has not failed, unless it only says so.
    fn note_work(&mut self, place: &Place, report: &ModelReport, look: &Look) {
        let now = look.now;
        let new = || Work { rows: report.measured.rows, ran: now, held: now };
        let work = self.work.entry(place.clone()).or_insert_with(new);
        match work.note(report, look) {
            (Some(reason), _) => {
                let trial = self.trials.entry(place.clone()).or_insert_with(|| Trial::new(look.entry.identity(), now));
                if now >= trial.until {
                    trial.idle = true;
                    trial.fail(reason.into(), now);
                    self.work.remove(place);
                }
            }
            (None, has_run) => {
                if has_run || self.trials.get(place).is_some_and(|trial| !trial.idle) {
                    self.trials.remove(place);
                }
            }
        }
    }

    /// Why it failed last, for people, if it has failed often enough lately, at one place or at several, and not served since.
    pub(super) fn of_enough(&self, now: Duration) -> Option<String> {
        let lately = || self.trials.iter().filter(|(_, trial)| trial.failures > 0 && now < trial.until + LATELY);
        let tries: usize = lately().map(|(_, trial)| trial.failures as usize).sum();
        let ((host, device), trial) = lately().max_by_key(|(_, trial)| trial.until)?;
        (tries >= ENOUGH_TRIES).then(|| format!("{host}/{device}: {}", trial.reason))
    }

    /// Places that are not to try it now.
    pub(super) fn to_avoid(&self, now: Duration) -> BTreeSet<Place> {
        self.avoided(now).map(|(place, _)| place.clone()).collect()
    }

    /// What was wrong at one of the places that are avoided, for people.
    pub(super) fn reason(&self, now: Duration) -> Option<String> {
        let ((host, device), trial) = self.avoided(now).next()?;
        Some(format!("{host}/{device}: {}", trial.reason))
    }

    fn avoided(&self, now: Duration) -> impl Iterator<Item = (&Place, &Trial)> {
        self.trials.iter().filter(move |(_, trial)| now < trial.until)
    }
}

impl Trial {
    fn new(revision: (u64, UnixMs), now: Duration) -> Self {
        Self { revision, idle: false, state: None, since: now, failures: 0, until: now, reason: String::new() }
    }

    /// Takes up what a host says of a place that does not serve, if anything.
    fn note(&mut self, report: Option<&ModelReport>, cold_start: Duration, now: Duration) {
        let state = report.map(|report| report.state);
        if std::mem::replace(&mut self.state, state) != state || now < self.until {
            self.since = now;
        }
        if now < self.until || now - self.since < self.patience(cold_start) {
            return;
        }
        let reason = match (state, report.and_then(|report| report.reason.clone())) {
            (_, Some(reason)) => reason,
            (Some(State::Failed), None) => "it failed to load".into(),
            (Some(state), None) => format!("it was {} for too long", state.as_str()),
            (None, None) => "the host does not begin to load it".into(),
        };
        self.fail(reason, now);
    }

    /// It is left alone for a while, longer each time.
    fn fail(&mut self, reason: String, now: Duration) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(8)).min(LONGEST_PAUSE);
        self.failures += 1;
        self.until = now + pause;
        self.reason = reason;
    }

    /// How long it may stay as it is.
    fn patience(&self, cold_start: Duration) -> Duration {
        let at_least = |patience: Duration| {
            patience.max(cold_start.saturating_mul(SLOWER)).saturating_mul(1 << self.failures.min(3))
        };
        match self.state {
            Some(State::Failed) => Duration::ZERO,
            Some(State::Waiting) => WAITING_PATIENCE,
            Some(State::Loading) => at_least(LOADING_PATIENCE),
            _ => at_least(SILENT_PATIENCE),
        }
    }
}
