//! A round of decisions: what each model needs, what its group's share allows, and where that goes. No sockets: what it looks at is
//! handed in, what follows is handed out.

mod answers;
mod failures;
mod idle;
mod mind;
mod placing;
mod shares;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::assignment::{Assigned, Gate};
use sluice_core::broker::Reading;
use sluice_core::clock::UnixMs;
use sluice_core::report::Report;
use sluice_core::scaler::Changed;

use crate::assign::Wanted;
use crate::catalog::Entry;
use crate::decide::Demand;
use crate::fleet::{self, Fleet};
use crate::lease::Leases;
use crate::place::{Place, Unplaced, place};
use crate::share::{Claim, Group};
use mind::Mind;

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
    /// In a round, one for each deployed model and in the same order.
    minds: BTreeMap<ModelName, Mind>,
    hosts: BTreeMap<String, Known>,
    leases: Leases,
    /// Units of each kind of device, and what wants them, as of the last round.
    claims: BTreeMap<bool, (usize, Vec<Claim>)>,
}

/// What is remembered of a host that does as it is told.
#[derive(Debug)]
struct Known {
    /// What an operator lets it have.
    gate: Gate,
    /// Whether its assignment was taken up, or it was told one here.
    adopted: bool,
}

/// A host that lives and does as it is told, and what an operator lets it have.
type Told<'s> = (&'s Report, Gate);

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
        self.hosts.retain(|host, _| fleet.remembers(host));
        for (report, alive) in fleet.remembered(now) {
            let Some(assignment) = &report.assignment else { continue };
            let known = match self.hosts.get_mut(&report.host) {
                Some(known) => known,
                None => {
                    let new = Known { gate: assignment.gate, adopted: false };
                    self.hosts.entry(report.host.clone()).or_insert(new)
                }
            };
            if !alive || std::mem::replace(&mut known.adopted, true) {
                continue;
            }
            for assigned in &assignment.slots {
                let places = &mut self.minds.entry(assigned.model.clone()).or_default().places;
                places.insert((report.host.clone(), assigned.device.clone()), assigned.slots);
            }
            self.leases.adopt(&report.host, &assignment.leases, now);
        }
    }

    /// Decides everything once.
    pub fn round(&mut self, seen: &Seen) -> Round {
        let Seen { fleet, now, clock, .. } = *seen;
        self.adopt(fleet, now);
        self.follow(seen);
        let mut round = Round { ended: self.leases.tick(clock, now), ..Round::default() };
        let measured = fleet.measure(now);
        for ((model, entry), mind) in seen.models.iter().zip(self.minds.values_mut()) {
            mind.want(seen, model, entry, measured.get(model).copied().unwrap_or_default());
        }
        let told = self.told(seen);
        let leases = self.grant(seen, &told);
        let hosts = fleet::open(&told, &self.lent(&leases));
        let (order, wants) = self.wants(seen, &hosts);
        let models: Vec<&ModelName> = seen.models.keys().collect();
        let mut minds: Vec<&mut Mind> = self.minds.values_mut().collect();
        let now_at = order.iter().map(|at| std::mem::take(&mut minds[*at].places)).collect();
        let busy = |model: &ModelName, place: &Place| {
            fleet.said(model, place, now).flatten().map_or(0.0, |said| said.measured.busy)
        };
        let placed = place(&wants, &hosts, now_at, &busy);
        for made in &placed.made_room {
            let (victim, model) = (order[made.of], order[made.to]);
            minds[victim].make_room(made.slots, models[model]);
        }
        for seated in &placed.seated {
            minds[order[*seated]].take_seat();
        }
        for (at, places) in order.into_iter().zip(placed.places) {
            minds[at].places = places;
        }
        round.unplaced =
            placed.unplaced.into_iter().map(|(want, unplaced)| (wants[want].model.clone(), unplaced)).collect();
        for (id, share) in leases {
            let reason = match self.is_drained(&id) {
                true => Some("a host of its devices is drained"),
                false if share.short || placed.in_the_way.contains(&id) => {
                    Some("others need its devices, and its group has no share for them")
                }
                false => None,
            };
            self.leases.is_needed(&id, reason, now);
        }
        self.note_changes(seen, &mut round);
        round.wanted = self.wanted(seen, &told);
        round
    }

    /// Has a mind for each deployed model, and no other.
    fn follow(&mut self, seen: &Seen) {
        if !self.minds.keys().eq(seen.models.keys()) {
            self.minds.retain(|model, _| seen.models.contains_key(model));
            for model in seen.models.keys() {
                self.minds.entry(model.clone()).or_default();
            }
        }
    }

    fn told<'s>(&self, seen: &Seen<'s>) -> Vec<Told<'s>> {
        let told = seen.fleet.alive(seen.now).filter(|report| report.assignment.is_some());
        told.map(|report| (report, self.gate(&report.host))).collect()
    }

    fn wanted(&self, seen: &Seen, told: &[Told]) -> BTreeMap<String, Wanted> {
        let of = |(report, gate): &Told| Wanted {
            instance: Some(report.instance.clone()).filter(|instance| !instance.is_empty()),
            twin: seen.fleet.twin(&report.host, seen.now).map(|twin| twin.instance.clone()),
            slots: Vec::new(),
            gate: *gate,
            leases: self.leases.of_host(&report.host),
        };
        let mut wanted: Vec<Wanted> = told.iter().map(of).collect();
        let index: HashMap<&str, usize> =
            told.iter().enumerate().map(|(at, (report, _))| (report.host.as_str(), at)).collect();
        for (model, mind) in &self.minds {
            for ((host, device), slots) in &mind.places {
                if let Some(at) = index.get(host.as_str()) {
                    let assigned = Assigned { model: model.clone(), device: device.clone(), slots: *slots };
                    wanted[*at].slots.push(assigned);
                }
            }
        }
        told.iter().map(|(report, _)| report.host.clone()).zip(wanted).collect()
    }

    /// Whether an operator wants everything off a host that a lease has devices of.
    fn is_drained(&self, lease: &str) -> bool {
        let mut hosts = self.leases.get(lease).into_iter().flat_map(|held| held.devices.keys());
        hosts.any(|(host, _)| self.gate(host) == Gate::Drained)
    }

    fn gate(&self, host: &str) -> Gate {
        self.hosts.get(host).map(|known| known.gate).unwrap_or_default()
    }

    /// How every model stands, for metrics and records.
    pub fn models(&self) -> impl Iterator<Item = ModelView<'_>> {
        self.minds.iter().map(|(name, mind)| ModelView {
            name,
            wanted: mind.wanted,
            granted: mind.granted,
            placed: mind.placed,
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

#[cfg(test)]
mod tests;
