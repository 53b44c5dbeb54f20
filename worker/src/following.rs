//! Which models of the registry this host runs, and how many slots of each: as its configuration lists them, or as the scaler says.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use sluice_core::ModelName;
use sluice_core::assignment::{Assignment, Generation, assignment_topic};
use sluice_core::broker::Signals;
use sluice_registry::{Cache, Registry, Revision};
use sluice_service::tasks::spawn_vital;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::board::Place;
use crate::config::{Config, Served, SlotConfig};
use crate::deployment::{Deployment, Host};
use crate::directory::{Directory, Found};
use crate::engine::Device;

/// A model on a device, and its revisions from now on.
pub type Next = (Deployment, watch::Receiver<Option<Revision>>);

/// The registry, followed.
pub struct Following {
    found: mpsc::Receiver<Found>,
    pub looked: watch::Receiver<bool>,
    registry: Registry,
    cache: Arc<Cache>,
    slots: Slots,
}

/// Who says what runs.
enum Slots {
    /// The configuration.
    Listed { named: BTreeMap<ModelName, SlotConfig>, others: Option<SlotConfig> },
    /// The scaler.
    Assigned(Assignments),
}

/// What the scaler says.
struct Assignments {
    signals: Box<dyn Signals>,
    followed: Generation,
    /// Another process that was heard of under this host's name.
    twin: Option<String>,
    /// How many slots each place should have, as deployments hear it.
    counts: BTreeMap<Place, watch::Sender<usize>>,
    revisions: BTreeMap<ModelName, watch::Receiver<Option<Revision>>>,
    /// Models that are to be looked for.
    asks: mpsc::UnboundedSender<ModelName>,
}

/// Begins to follow the registry.
pub async fn follow_registry(
    config: &Config,
    options: &sluice_broker::Options,
    slots: Vec<SlotConfig>,
    reserved: Vec<ModelName>,
    host: &Arc<Host>,
) -> Result<Following> {
    let cache = Cache::open(config.worker.cache_folder()?, config.worker.cache_mib * 1024 * 1024)?;
    let registry = sluice_registry::open(&config.registry, options).await.context("cannot open the registry")?;
    let (asks, asked) = mpsc::unbounded_channel();
    let mut names = Vec::new();
    let mut all = false;
    let slots = if slots.is_empty() {
        let signals = host.broker.listen(&assignment_topic(&host.name)).await.context("listening to the scaler")?;
        host.board.follow(Assignment { host: host.name.clone(), ..Assignment::default() });
        info!(url = registry.url(), "no slots are configured: waiting for what the scaler says");
        let (counts, revisions) = (BTreeMap::new(), BTreeMap::new());
        Slots::Assigned(Assignments { signals, followed: Generation::default(), twin: None, counts, revisions, asks })
    } else {
        info!(url = registry.url(), "following the registry");
        let mut named = BTreeMap::new();
        let mut others = None;
        for slot in slots {
            match slot.serves()? {
                Served::Model(model) => _ = named.insert(model, slot),
                _ => others = Some(slot),
            }
        }
        names.extend(named.keys().cloned());
        all = others.is_some();
        Slots::Listed { named, others }
    };
    // Whoever finds many at once waits until each is taken.
    let (sender, found) = mpsc::channel(16);
    let (look, looked) = watch::channel(false);
    let directory = Directory {
        registry: registry.clone(),
        broker: Arc::clone(&host.broker),
        board: Arc::clone(&host.board),
        // An assignment is no promise: a host without one is ready.
        expected: matches!(slots, Slots::Listed { .. }),
        poll: config.worker.registry_poll,
        all,
        reserved,
        found: sender,
    };
    spawn_vital("registry", &host.draining, directory.follow(names, asked, look, host.draining.clone()));
    Ok(Following { found, looked, registry, cache: Arc::new(cache), slots })
}

impl Following {
    /// Waits until there is something new to run. Cancel-safe.
    pub async fn next(&mut self, host: &Arc<Host>) -> Result<Vec<Next>> {
        let Some(assignments) = (match &mut self.slots {
            Slots::Assigned(assignments) => Some(assignments),
            Slots::Listed { .. } => None,
        }) else {
            return match self.found.recv().await {
                Some((model, revisions)) => Ok(vec![(self.listed(host, model), revisions)]),
                // It ends only when the worker does.
                None => std::future::pending().await,
            };
        };
        let places = tokio::select! {
            signal = assignments.signals.next() => {
                let signal = signal.context("listening to the scaler")?;
                match serde_json::from_slice::<Assignment>(&signal.payload) {
                    Ok(assignment) => assignments.follow(assignment, host),
                    Err(error) => {
                        warn!(%error, "an assignment cannot be read");
                        Vec::new()
                    }
                }
            }
            found = self.found.recv() => match found {
                Some((model, revisions)) => assignments.found(model, revisions),
                None => std::future::pending().await,
            },
        };
        let deployment =
            |((model, device), count, revisions): Started| (self.deployment(host, model, device, count), revisions);
        Ok(places.into_iter().map(deployment).collect())
    }

    /// A deployment has ended since no slots were wanted; gives it anew if some are by now.
    pub fn forget(&mut self, host: &Arc<Host>, place: &Place) -> Option<Next> {
        let Slots::Assigned(assignments) = &mut self.slots else { return None };
        let (place, count, revisions) = assignments.forget(place)?;
        Some((self.deployment(host, place.0, place.1, count), revisions))
    }

    fn listed(&self, host: &Arc<Host>, model: ModelName) -> Deployment {
        let slot = match &self.slots {
            Slots::Listed { named, others } => named.get(&model).or(others.as_ref()),
            Slots::Assigned(_) => None,
        };
        let device = slot.and_then(|slot| slot.device().ok().flatten());
        let (_, count) = watch::channel(slot.map_or(1, |slot| slot.count));
        self.deployment(host, model, device, count)
    }

    fn deployment(
        &self,
        host: &Arc<Host>,
        model: ModelName,
        device: Option<Device>,
        count: watch::Receiver<usize>,
    ) -> Deployment {
        Deployment {
            host: Arc::clone(host),
            registry: self.registry.clone(),
            cache: Arc::clone(&self.cache),
            device,
            count,
            model,
        }
    }
}

/// A place that nothing ran on, how many slots it should have, and the model's revisions.
type Started = (Place, watch::Receiver<usize>, watch::Receiver<Option<Revision>>);

impl Assignments {
    /// Makes what runs equal to an assignment, if it is a newer one; gives the places that are new.
    fn follow(&mut self, assignment: Assignment, host: &Arc<Host>) -> Vec<Started> {
        if assignment.host != host.name || assignment.generation <= self.followed {
            debug!(generation = %assignment.generation, followed = %self.followed, host = assignment.host, "not a newer assignment of this host");
            return Vec::new();
        }
        let checked = self.followed.may_become(assignment.generation).and_then(|()| assignment.check());
        if let Err(reason) = checked {
            if host.board.refuse(&reason) {
                warn!(
                    reason,
                    "an assignment is refused: whoever sent it is no scaler, or `control.assign.*` is open to others"
                );
            }
            return Vec::new();
        }
        let mut assignment = self.of_this_process(assignment, host);
        if let Some(reason) = assignment.within(host.board.capacity()) {
            warn!(reason, "an assignment asks for more than this host has");
        }
        let mut wanted = BTreeMap::new();
        for assigned in &assignment.slots {
            match Device::parse(&assigned.device) {
                Ok(device) => _ = wanted.insert((assigned.model.clone(), Some(device)), assigned.slots),
                Err(reason) => warn!(model = %assigned.model, "an assigned device {reason}"),
            }
        }
        self.followed = assignment.generation;
        debug!(generation = %assignment.generation, slots = ?assignment.slots, "following");
        host.board.follow(assignment);
        for (place, count) in &self.counts {
            let slots = wanted.remove(place).unwrap_or(0);
            count.send_if_modified(|count| std::mem::replace(count, slots) != slots);
        }
        let mut started = Vec::new();
        for (place, slots) in wanted {
            let (sender, count) = watch::channel(slots);
            match self.revisions.get(&place.0) {
                Some(revisions) => started.push((place.clone(), count, revisions.clone())),
                // The worker stops if nobody listens.
                None => _ = self.asks.send(place.0.clone()),
            }
            self.counts.insert(place, sender);
        }
        started
    }

    /// Of two processes under one name only one is meant: the other has nothing to do.
    fn of_this_process(&mut self, mut assignment: Assignment, host: &Arc<Host>) -> Assignment {
        let own = host.board.instance();
        let other = assignment.instance.as_deref().filter(|instance| *instance != own);
        if host.board.taken_by(other) {
            match other {
                Some(other) => warn!(
                    host = host.name,
                    other,
                    "another worker runs under this host's name: this one takes no work; give it a `worker.host` of its own"
                ),
                None => {
                    info!(host = host.name, "the other worker of this host's name is gone: this one takes its work")
                }
            }
        }
        if other.is_some() {
            assignment.slots.clear();
            assignment.leases.clear();
        } else if std::mem::replace(&mut self.twin, assignment.twin.clone()) != assignment.twin
            && let Some(other) = &assignment.twin
        {
            warn!(
                host = host.name,
                other,
                "another worker runs under this host's name: it takes no work; give it a `worker.host` of its own"
            );
        }
        assignment
    }

    /// Nothing runs there any more, and nothing is followed there unless slots are wanted by now.
    fn forget(&mut self, place: &Place) -> Option<Started> {
        let count = self.counts.get(place)?;
        if *count.borrow() > 0 {
            return Some((place.clone(), count.subscribe(), self.revisions.get(&place.0)?.clone()));
        }
        info!(model = %place.0, "no slots were wanted here for a while: it is not followed any more");
        self.counts.remove(place);
        if self.counts.keys().all(|(model, _)| *model != place.0) {
            self.revisions.remove(&place.0);
        }
        None
    }

    /// A model that was looked for: all its places can start.
    fn found(&mut self, model: ModelName, revisions: watch::Receiver<Option<Revision>>) -> Vec<Started> {
        let places = self.counts.iter().filter(|((wanted, _), _)| *wanted == model);
        let started = places.map(|(place, count)| (place.clone(), count.subscribe(), revisions.clone())).collect();
        self.revisions.insert(model, revisions);
        started
    }
}
