//! Hosts that could not load a model: avoided for a while, and longer each time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::report::{ModelReport, State};

use crate::catalog::Entry;
use crate::fleet::Fleet;
use crate::place::Placement;

/// A host that has waited for memory for so long has failed to load the model: longer than a batch that may have to end first.
const MEMORY_PATIENCE: Duration = Duration::from_secs(10);
/// The pause before a host that failed to load a model may try again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What failed, by model and host.
#[derive(Debug, Default)]
pub(super) struct Failures {
    failed: BTreeMap<(ModelName, String), Failure>,
    /// Since when hosts wait for memory.
    waiting: BTreeMap<(ModelName, String), Duration>,
}

#[derive(Debug)]
struct Failure {
    revision: Option<u64>,
    count: u32,
    until: Duration,
}

impl Failures {
    /// Takes up what hosts report.
    pub(super) fn note(
        &mut self,
        fleet: &Fleet,
        models: &BTreeMap<ModelName, Arc<Entry>>,
        placement: &Placement,
        now: Duration,
    ) {
        self.failed.retain(|(model, host), failure| {
            let serves = |of: &ModelReport| of.model == *model && of.serving.is_some();
            // What has worked since is forgotten.
            !fleet.host(host, now).is_some_and(|report| report.models.iter().any(serves))
                && models
                    .get(model)
                    .is_some_and(|entry| failure.revision.is_none_or(|revision| revision == entry.revision))
        });
        let waiting = std::mem::take(&mut self.waiting);
        for (host, report) in fleet.stuck(now) {
            let key = (report.model.clone(), host.to_owned());
            if report.state == State::Waiting {
                let since = waiting.get(&key).copied().unwrap_or(now);
                self.waiting.insert(key.clone(), since);
                if now - since < MEMORY_PATIENCE {
                    continue;
                }
            }
            let failure = self.failed.entry(key).or_insert(Failure { revision: report.revision, count: 0, until: now });
            let assigned = placement.get(&report.model).is_some_and(|places| places.keys().any(|(at, _)| at == host));
            if assigned && failure.until <= now {
                let pause = FIRST_PAUSE.saturating_mul(1 << failure.count.min(8)).min(LONGEST_PAUSE);
                failure.count += 1;
                failure.until = now + pause;
            }
        }
    }

    /// Hosts that are not to try a model now.
    pub(super) fn hosts_to_avoid(&self, model: &ModelName, now: Duration) -> BTreeSet<String> {
        let of_model = self.failed.range((model.clone(), String::new())..).take_while(|((of, _), _)| of == model);
        of_model.filter(|(_, failure)| now < failure.until).map(|((_, host), _)| host.clone()).collect()
    }
}
