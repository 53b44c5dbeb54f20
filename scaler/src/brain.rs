//! A round of decisions: what each model needs, what its group's share allows, and where that goes. No sockets: what it looks at is
//! handed in, what follows is handed out.

mod answers;
mod failures;
mod mind;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::assignment::{Assigned, Gate};
use sluice_core::broker::Reading;
use sluice_core::clock::UnixMs;
use sluice_core::manifest::{DeviceKind, WhileStopped};
use sluice_core::scaler::Changed;

use crate::assign::Wanted;
use crate::catalog::Entry;
use crate::decide::Demand;
use crate::fleet::Fleet;
use crate::lease::{GRACE, Leases};
use crate::place::{Place, Placement, Unplaced, Want, place};
use crate::share::{Claim, Group, PATIENCE, share};
use failures::Failures;
use mind::Mind;

/// A model's last changes that are kept.
const CHANGES: usize = 20;

/// What is in a model's queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Queued {
    /// Requests that nobody has taken.
    pub ready: u64,
    /// Requests taken and not settled, if the broker knows; hosts do otherwise.
    pub in_flight: Option<u64>,
}

/// What a round looks at.
pub struct Seen<'s> {
    /// The deployed models.
    pub models: &'s BTreeMap<ModelName, Arc<Entry>>,
    /// Their queues.
    pub queues: &'s BTreeMap<ModelName, Reading<Queued>>,
    /// The hosts.
    pub fleet: &'s Fleet,
    /// The time of day.
    pub clock: UnixMs,
    /// The time since a fixed moment, which only grows.
    pub now: Duration,
}

/// What is remembered from round to round.
#[derive(Debug, Default)]
pub struct Brain {
    groups: Vec<Group>,
    minds: BTreeMap<ModelName, Mind>,
    placement: Placement,
    /// Hosts whose assignment was taken up, or that were told one here.
    adopted: BTreeSet<String>,
    failures: Failures,
    /// Hosts that an operator wants less of.
    gates: BTreeMap<String, Gate>,
    leases: Leases,
    /// Units of each kind of device, and what wants them, as of the last round.
    claims: BTreeMap<bool, (usize, Vec<Claim>)>,
}

/// What came of a round.
#[derive(Debug, Default)]
pub struct Round {
    /// What each host should have.
    pub wanted: BTreeMap<String, Wanted>,
    /// What happened, for the log: a model and what.
    pub changes: Vec<(ModelName, Changed)>,
    /// Troubles that are new: a model, and what is wrong.
    pub troubles: Vec<(ModelName, String)>,
    /// Leases that ended, and why.
    pub ended: Vec<(String, String)>,
    /// Slots that models need and that are nowhere, since there is no room for them or others have it.
    pub unplaced: BTreeMap<ModelName, Unplaced>,
}

impl Brain {
    /// With these shares.
    pub fn new(groups: Vec<Group>) -> Self {
        Self { groups, ..Self::default() }
    }

    /// A new leader takes up what hosts follow, each when it is first heard: it begins where the old one ended. A host that comes back
    /// later is told anew instead.
    pub fn adopt(&mut self, fleet: &Fleet, now: Duration) {
        for report in fleet.alive(now) {
            let Some(assignment) = &report.assignment else { continue };
            if !self.adopted.insert(report.host.clone()) {
                continue;
            }
            for assigned in &assignment.slots {
                let places = self.placement.entry(assigned.model.clone()).or_default();
                places.insert((report.host.clone(), assigned.device.clone()), assigned.slots);
            }
            if assignment.gate != Gate::Open {
                self.gates.insert(report.host.clone(), assignment.gate);
            }
            self.leases.adopt(&report.host, &assignment.leases, now);
        }
    }

    /// Decides everything once.
    pub fn round(&mut self, seen: &Seen) -> Round {
        let Seen { fleet, now, clock, .. } = *seen;
        self.adopt(fleet, now);
        let mut round = Round { ended: self.leases.tick(clock, now), ..Round::default() };
        self.minds.retain(|model, _| seen.models.contains_key(model));
        self.failures.note(fleet, seen.models, &self.placement, now);
        let measured = fleet.measure(now);
        for (model, entry) in seen.models {
            let measured = measured.get(model).copied().unwrap_or_default();
            let placed = self.placement.get(model).map_or(0, |places| places.values().sum());
            let mind = self.minds.entry(model.clone()).or_default();
            mind.want(seen, model, entry, measured, placed);
        }
        self.grant(seen);
        let hosts = fleet.open(now, &self.gates, &self.leases.places());
        let wants = self.wants(seen);
        let busy = |model: &ModelName, (host, device): &Place| {
            let report = fleet.host(host, now);
            let found =
                report.and_then(|report| report.models.iter().find(|of| of.model == *model && of.device == *device));
            found.map_or(0.0, |of| of.measured.busy)
        };
        let placed = place(&wants, &hosts, &self.placement, &busy);
        round.unplaced = placed.unplaced;
        let before = std::mem::replace(&mut self.placement, placed.placement);
        self.note_changes(seen, &before, &mut round);
        round.wanted = self.wanted(fleet, now);
        round
    }

    /// What each group's share allows.
    fn grant(&mut self, seen: &Seen) {
        let mut needed = Vec::new();
        self.claims.clear();
        for kind in [DeviceKind::Cpu, DeviceKind::Cuda] {
            let devices = seen.fleet.alive(seen.now).filter(|report| {
                report.assignment.is_some() && !report.draining && self.gate(&report.host) != Gate::Drained
            });
            let (mut capacity, mut largest) = (0, 1);
            for device in devices.flat_map(|report| &report.devices) {
                if device.name.starts_with("cuda") == (kind == DeviceKind::Cuda) {
                    capacity += device.capacity;
                    largest = largest.max(device.capacity);
                }
            }
            let models: Vec<(&ModelName, &Arc<Entry>)> = seen
                .models
                .iter()
                .filter(|(_, entry)| entry.started && entry.manifest.resources.device == kind)
                .collect();
            let mut claims: Vec<Claim> = models
                .iter()
                .map(|(model, entry)| {
                    let mind = self.minds.get(model);
                    let waited = mind.and_then(|mind| mind.waiting_since).map(|since| seen.now.saturating_sub(since));
                    Claim {
                        group: entry.manifest.scaling.group.clone(),
                        priority: entry.manifest.scaling.priority,
                        // What hosts run by their own configuration takes nothing of the others.
                        wants: mind.map_or(0, |mind| mind.wanted.saturating_sub(mind.listed)),
                        has: self.placement.get(*model).map_or(0, |places| places.values().sum()),
                        // What cannot be placed anyway takes nothing from others.
                        units: if mind.is_some_and(|mind| mind.fits_nowhere) { 0 } else { units(entry).min(largest) },
                        waited: waited.unwrap_or_default(),
                    }
                })
                .collect();
            let lent: Vec<(&String, Claim)> = self
                .leases
                .iter()
                .filter_map(|(id, held)| {
                    let units = self.units_of(seen, held.devices.keys(), kind);
                    (units > 0).then(|| (id, lease_claim(held.group(), units, true)))
                })
                .collect();
            claims.extend(lent.iter().map(|(_, claim)| claim.clone()));
            let granted = share(capacity, &self.groups, &claims);
            for ((model, _), granted) in models.iter().zip(&granted) {
                if let Some(mind) = self.minds.get_mut(*model) {
                    mind.granted = *granted + mind.listed.min(mind.wanted);
                }
            }
            for ((id, claim), granted) in lent.iter().zip(&granted[models.len()..]) {
                needed.push(((*id).clone(), *granted < claim.wants));
            }
            self.claims.insert(kind == DeviceKind::Cuda, (capacity, claims));
        }
        for (id, needed) in needed {
            let reason =
                format!("others need its devices, and its group has no share for them; they are taken in {GRACE:?}");
            self.leases.is_needed(&id, needed, &reason, seen.now);
        }
    }

    fn units_of<'p>(&self, seen: &Seen, places: impl Iterator<Item = &'p Place>, kind: DeviceKind) -> usize {
        let units = places.filter(|(_, device)| device.starts_with("cuda") == (kind == DeviceKind::Cuda)).filter_map(
            |(host, device)| {
                let report = seen.fleet.host(host, seen.now)?;
                Some(report.devices.iter().find(|of| of.name == *device)?.capacity)
            },
        );
        units.sum()
    }

    /// What is to be placed, those that matter most first.
    fn wants(&self, seen: &Seen) -> Vec<Want> {
        let mut wants: Vec<(i32, Want)> = Vec::with_capacity(seen.models.len());
        for (model, entry) in seen.models {
            let Some(mind) = self.minds.get(model) else { continue };
            let manifest = &entry.manifest;
            // What hosts run by their own configuration is there already.
            let listed = mind.listed;
            let refuses = !entry.started && manifest.serving.while_stopped == WhileStopped::Refuse;
            let (slots, units, memory_mib) = match refuses {
                // Somebody has to say so; that takes no room.
                true => (usize::from(listed == 0), 0, 0),
                false => {
                    let memory_mib = manifest.resources.memory_mib.max(mind.memory_mib);
                    (mind.granted.saturating_sub(listed), units(entry), memory_mib)
                }
            };
            let want = Want {
                model: model.clone(),
                slots,
                kind: manifest.resources.device,
                units,
                memory_mib,
                sharing: manifest.resources.sharing,
                selector: manifest.scaling.selector.clone(),
                avoid: self.failures.hosts_to_avoid(model, seen.now),
            };
            wants.push((manifest.scaling.priority, want));
        }
        wants.sort_by_key(|(priority, _)| std::cmp::Reverse(*priority));
        wants.into_iter().map(|(_, want)| want).collect()
    }

    fn note_changes(&mut self, seen: &Seen, before: &Placement, round: &mut Round) {
        let count = |placement: &Placement, model: &ModelName| {
            placement.get(model).map_or(0, |places| places.values().sum::<usize>())
        };
        for (model, mind) in &mut self.minds {
            let (from, to) = (count(before, model), count(&self.placement, model));
            if from != to {
                let changed = Changed { at: seen.clock, from, to, reason: mind.reason.clone() };
                mind.changes.push_front(changed.clone());
                mind.changes.truncate(CHANGES);
                round.changes.push((model.clone(), changed));
            }
            // A turn lasts until it has served: a slot that is taken back while it loads is of no use to anybody.
            mind.serving_since = if to > 0 && mind.serving > 0 { mind.serving_since.or(Some(seen.now)) } else { None };
            let had_turn = mind.serving_since.is_some_and(|since| seen.now.saturating_sub(since) >= PATIENCE);
            let wants = mind.wanted > 0 && !had_turn;
            mind.waiting_since = if wants { mind.waiting_since.or(Some(seen.now)) } else { None };
            mind.fits_nowhere = round.unplaced.get(model).is_some_and(|unplaced| !unplaced.full);
            let refused = mind.wanted.saturating_sub(mind.granted);
            if let Some(unplaced) = round.unplaced.get_mut(model) {
                unplaced.slots += refused;
                mind.trouble = Some(format!("{} slots fit nowhere: {}", unplaced.slots, unplaced.reason));
            } else if refused > 0 {
                let gpu =
                    seen.models.get(model).is_some_and(|entry| entry.manifest.resources.device == DeviceKind::Cuda);
                let reason = match (self.claims.get(&gpu).map_or(0, |(capacity, _)| *capacity), gpu) {
                    (0, true) => "no host that may be used has a GPU (`sluice hosts`)",
                    (0, false) => "no host may be used: none reports, or all are drained (`sluice hosts`)",
                    _ => "there is not room for all, and this is what the shares of groups leave it",
                };
                let reason = reason.to_owned();
                mind.trouble = Some(format!("{refused} slots wait: {reason}"));
                round.unplaced.insert(model.clone(), Unplaced { slots: refused, reason, full: true });
            }
            if mind.trouble != mind.told {
                if let Some(trouble) = &mind.trouble
                    && mind.told.is_none()
                {
                    round.troubles.push((model.clone(), trouble.clone()));
                }
                mind.told = mind.trouble.clone();
            }
        }
    }

    fn wanted(&self, fleet: &Fleet, now: Duration) -> BTreeMap<String, Wanted> {
        let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
        for report in fleet.alive(now).filter(|report| report.assignment.is_some()) {
            let gate = self.gate(&report.host);
            let leases = self.leases.of_host(&report.host);
            wanted.insert(report.host.clone(), Wanted { slots: Vec::new(), gate, leases });
        }
        for (model, places) in &self.placement {
            for ((host, device), slots) in places {
                if let Some(wanted) = wanted.get_mut(host) {
                    wanted.slots.push(Assigned { model: model.clone(), device: device.clone(), slots: *slots });
                }
            }
        }
        wanted
    }

    fn gate(&self, host: &str) -> Gate {
        self.gates.get(host).copied().unwrap_or_default()
    }

    /// How every model stands, for metrics and records.
    pub fn models(&self) -> impl Iterator<Item = ModelView<'_>> {
        self.minds.iter().map(|(name, mind)| ModelView {
            name,
            wanted: mind.wanted,
            granted: mind.granted,
            placed: self.placement.get(name).map_or(0, |places| places.values().sum()),
            in_trouble: mind.trouble.is_some(),
            demand: mind.demand.as_ref(),
        })
    }
}

/// How a model stands.
#[derive(Debug)]
pub struct ModelView<'b> {
    /// Which.
    pub name: &'b ModelName,
    /// Slots by its load.
    pub wanted: usize,
    /// Of these, what its group's share allows.
    pub granted: usize,
    /// Of these, what is on hosts or on its way there.
    pub placed: usize,
    /// Whether something keeps it from what it needs.
    pub in_trouble: bool,
    /// What the decision rested on; none while it is stopped.
    pub demand: Option<&'b Demand>,
}

/// What a slot takes of a device.
fn units(entry: &Entry) -> usize {
    match entry.manifest.resources.device {
        DeviceKind::Cpu => entry.manifest.resources.threads,
        DeviceKind::Cuda => 1,
    }
}

/// A lease wants its devices whole. It is work that can wait: models of its own group come first.
fn lease_claim(group: &str, units: usize, has: bool) -> Claim {
    let has = if has { units } else { 0 };
    Claim { group: group.to_owned(), priority: -1, wants: units, has, units: 1, waited: Duration::ZERO }
}

#[cfg(test)]
mod tests;
