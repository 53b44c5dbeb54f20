//! Places where a model does not come to serve: avoided for a while, and longer each time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::report::State;

use crate::catalog::Entry;
use crate::fleet::Fleet;
use crate::place::{Place, Placement};

/// A place that has waited for memory for so long has failed: longer than a batch that may have to end first.
const MEMORY_PATIENCE: Duration = Duration::from_secs(10);
/// One whose host says nothing of the model that it was told to run: it may not reach the registry.
const SILENT_PATIENCE: Duration = Duration::from_secs(60);
/// One that loads, unless loading is known to take longer. It doubles with each failure, so that what loads slowly does in the end.
const LOADING_PATIENCE: Duration = Duration::from_secs(300);
/// What has loaded once may take so many times as long elsewhere.
const SLOWER: u32 = 4;
/// The pause before a place is tried again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Places that were told to run a model and do not serve it.
#[derive(Debug, Default)]
pub(super) struct Failures(BTreeMap<(ModelName, Place), Trial>);

/// How a place does with a model's revision.
#[derive(Debug)]
struct Trial {
    revision: u64,
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
    /// Takes up what hosts report of what they were told.
    pub(super) fn note(
        &mut self,
        fleet: &Fleet,
        models: &BTreeMap<ModelName, Arc<Entry>>,
        placement: &Placement,
        cold_start: impl Fn(&ModelName) -> Duration,
        now: Duration,
    ) {
        self.0.retain(|(model, place), trial| {
            let placed = placement.get(model).is_some_and(|places| places.contains_key(place));
            let current = models.get(model).is_some_and(|entry| entry.started && entry.revision == trial.revision);
            current && (placed || (trial.failures > 0 && fleet.remembers(&place.0)))
        });
        for (model, places) in placement {
            let Some(entry) = models.get(model).filter(|entry| entry.started) else { continue };
            for place in places.keys() {
                let Some(report) = fleet.said(model, place, now) else { continue };
                let serves = report.is_some_and(|report| report.serving.is_some());
                if serves && self.0.is_empty() {
                    continue;
                }
                let key = (model.clone(), place.clone());
                if serves {
                    // What has failed before is forgotten.
                    self.0.remove(&key);
                    continue;
                }
                // What it says of an older revision says nothing of this one.
                let report = report.filter(|report| report.revision == Some(entry.revision));
                let state = report.map(|report| report.state);
                let new = || Trial {
                    revision: entry.revision,
                    state,
                    since: now,
                    failures: 0,
                    until: now,
                    reason: String::new(),
                };
                let trial = self.0.entry(key).or_insert_with(new);
                if std::mem::replace(&mut trial.state, state) != state || now < trial.until {
                    trial.since = now;
                }
                if trial.until <= now && now - trial.since >= trial.patience(cold_start(model)) {
                    let pause = FIRST_PAUSE.saturating_mul(1 << trial.failures.min(8)).min(LONGEST_PAUSE);
                    trial.failures += 1;
                    trial.until = now + pause;
                    trial.reason = match (state, report.and_then(|report| report.reason.clone())) {
                        (_, Some(reason)) => reason,
                        (Some(State::Failed), None) => "it failed to load".into(),
                        (Some(state), None) => format!("it was {} for too long", state.as_str()),
                        (None, None) => "the host does not begin to load it".into(),
                    };
                }
            }
        }
    }

    /// Places that are not to try a model now.
    pub(super) fn to_avoid(&self, model: &ModelName, now: Duration) -> BTreeSet<Place> {
        self.avoided(model, now).map(|(place, _)| place.clone()).collect()
    }

    /// What was wrong at one of the places that are avoided, for people.
    pub(super) fn reason(&self, model: &ModelName, now: Duration) -> Option<String> {
        let ((host, device), trial) = self.avoided(model, now).next()?;
        Some(format!("{host}/{device}: {}", trial.reason))
    }

    fn avoided(&self, model: &ModelName, now: Duration) -> impl Iterator<Item = (&Place, &Trial)> {
        let of_model = self.0.range((model.clone(), Place::default())..).take_while(move |((of, _), _)| of == model);
        of_model.filter(move |(_, trial)| now < trial.until).map(|((_, place), trial)| (place, trial))
    }
}

impl Trial {
    /// How long it may stay as it is.
    fn patience(&self, cold_start: Duration) -> Duration {
        let at_least = |patience: Duration| {
            patience.max(cold_start.saturating_mul(SLOWER)).saturating_mul(1 << self.failures.min(8))
        };
        match self.state {
            Some(State::Failed) => Duration::ZERO,
            Some(State::Waiting) => MEMORY_PATIENCE,
            Some(State::Loading) => at_least(LOADING_PATIENCE),
            _ => at_least(SILENT_PATIENCE),
        }
    }
}
