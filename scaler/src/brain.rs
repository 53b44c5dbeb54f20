//! A round of decisions: what each model needs, what its group's share allows, and where that goes. No sockets: what it looks at is
//! handed in, what follows is handed out.

mod answers;
mod failures;
mod mind;
mod shares;

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
use crate::place::{Host, Place, Placement, Unplaced, Want, place};
use crate::share::{Claim, Group, PATIENCE};
use failures::Failures;
use mind::Mind;

/// A model's last changes that are kept.
const CHANGES: usize = 20;

/// For a model that has failed at so many places lately and serves nowhere, nobody moves.
const ENOUGH_TRIES: usize = 3;

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
        // An operator's word on a host that is silent just now holds for as long as the host is remembered.
        self.gates.retain(|host, _| fleet.remembers(host));
        self.adopted.retain(|host| fleet.remembers(host));
        for report in fleet.remembered() {
            if let Some(assignment) = &report.assignment
                && !self.gates.contains_key(&report.host)
            {
                self.gates.insert(report.host.clone(), assignment.gate);
            }
        }
        for report in fleet.alive(now) {
            let Some(assignment) = &report.assignment else { continue };
            if !self.adopted.insert(report.host.clone()) {
                continue;
            }
            for assigned in &assignment.slots {
                let places = self.placement.entry(assigned.model.clone()).or_default();
                places.insert((report.host.clone(), assigned.device.clone()), assigned.slots);
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
        let minds = &self.minds;
        let cold_start = |model: &ModelName| minds.get(model).and_then(|mind| mind.cold_start).unwrap_or_default();
        self.failures.note(fleet, seen.models, &self.placement, cold_start, now);
        let measured = fleet.measure(now);
        for (model, entry) in seen.models {
            let measured = measured.get(model).copied().unwrap_or_default();
            let placed = self.placement.get(model).map_or(0, |places| places.values().sum());
            let mind = self.minds.entry(model.clone()).or_default();
            mind.want(seen, model, entry, measured, placed);
        }
        let leases = self.grant(seen);
        let hosts = fleet.open(now, &self.gates, &self.lent(&leases));
        let wants = self.wants(seen, &hosts);
        let busy = |model: &ModelName, place: &Place| {
            fleet.said(model, place, now).flatten().map_or(0.0, |said| said.measured.busy)
        };
        let placed = place(&wants, &hosts, &self.placement, &busy);
        for (id, share) in leases {
            let reason =
                format!("others need its devices, and its group has no share for them; they are taken in {GRACE:?}");
            let needed = share.short || placed.in_the_way.contains(&id);
            self.leases.is_needed(&id, needed, &reason, now);
        }
        round.unplaced = placed.unplaced;
        let before = std::mem::replace(&mut self.placement, placed.placement);
        self.note_changes(seen, &before, &mut round);
        round.wanted = self.wanted(fleet, now);
        round
    }

    /// What is to be placed, those that matter most first.
    fn wants(&self, seen: &Seen, hosts: &[Host]) -> Vec<Want> {
        // What was measured where all was taken, by whatever chance, fits on the largest device when nothing else is there.
        let mut most: BTreeMap<bool, u64> = BTreeMap::new();
        for device in hosts.iter().flat_map(|host| &host.devices) {
            let most = most.entry(device.kind() == DeviceKind::Cuda).or_default();
            *most = device.memory_mib.map_or(u64::MAX, |mib| mib.max(*most));
        }
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
                    let most = *most.get(&(manifest.resources.device == DeviceKind::Cuda)).unwrap_or(&0);
                    let measured = mind.memory_mib.map_or(0, |(mib, _)| mib.min(most));
                    let memory_mib = manifest.resources.memory_mib.max(measured);
                    (mind.granted.saturating_sub(listed), units(entry), memory_mib)
                }
            };
            // One that comes to serve nowhere is not to drain one healthy device after the other.
            let tried_enough = mind.serving == 0 && self.failures.places(model, seen.now) >= ENOUGH_TRIES;
            let want = Want {
                model: model.clone(),
                slots,
                owed: if refuses || tried_enough { 0 } else { mind.owed },
                waited: mind.waiting_since.map_or(Duration::ZERO, |since| seen.now.saturating_sub(since)),
                kind: manifest.resources.device,
                units,
                memory_mib,
                sharing: manifest.resources.sharing,
                selector: manifest.scaling.selector.clone(),
                avoid: self.failures.to_avoid(model, seen.now),
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
                let mut reason = mind.reason.clone();
                if to < from && to < mind.wanted {
                    // The decision does not tell: a host is gone, or others have a better right.
                    reason += &format!("; {} of {} have no room now", mind.wanted - to, mind.wanted);
                }
                let changed = Changed { at: seen.clock, from, to, reason };
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
                if let Some(reason) = self.failures.reason(model, seen.now) {
                    unplaced.reason += &format!("; {reason}");
                }
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

#[cfg(test)]
mod tests;
