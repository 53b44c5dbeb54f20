//! What the shares of groups allow models and leases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_core::assignment::Gate;
use sluice_core::manifest::DeviceKind;
use sluice_core::report::Report;

use super::mind::Mind;
use super::placing::units;
use super::{Brain, Seen, Told};
use crate::catalog::Entry;
use crate::fleet::Fleet;
use crate::place::{Lent, Place};
use crate::share::{Claim, PATIENCE, share};

/// What its group's share makes of a lease.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeaseShare {
    /// Whether others have a better right to its devices.
    pub(super) short: bool,
    /// Whether a guaranteed minimum covers it.
    owed: bool,
}

impl Brain {
    /// Tells each model's mind what it may have; gives what becomes of leases.
    pub(super) fn grant(&mut self, seen: &Seen, told: &[Told]) -> BTreeMap<String, LeaseShare> {
        let mut leases: BTreeMap<String, LeaseShare> = BTreeMap::new();
        self.claims.clear();
        for kind in [DeviceKind::Cpu, DeviceKind::Cuda] {
            let (capacity, largest) = self.capacity(seen, told, kind);
            let of_kind = |entry: &Entry| entry.started && entry.manifest.resources.device == kind;
            let models = seen.models.values().zip(self.minds.values_mut());
            let (entries, mut minds): (Vec<&Arc<Entry>>, Vec<&mut Mind>) =
                models.filter(|(entry, _)| of_kind(entry)).unzip();
            let lent = self.leases.places();
            if minds.iter().any(|mind| mind.seated) || lent.iter().any(|(_, device)| is_of(device, kind)) {
                // Whoever is idle takes nothing back from whom it made room for.
                for mind in minds.iter_mut().filter(|mind| !mind.is_tried()) {
                    let placed = mind.places.iter().filter(|(place, _)| !lent.contains(*place));
                    let placed: usize = placed.map(|(_, slots)| slots).sum();
                    mind.wanted = mind.wanted.min(mind.idle.needed().max(placed + mind.listed));
                }
            }
            let mut claims: Vec<Claim> =
                entries.iter().zip(&minds).map(|(entry, mind)| claim(seen, entry, mind, largest)).collect();
            let lent: Vec<(&String, Claim)> = self
                .leases
                .iter()
                .filter_map(|(id, held)| {
                    let units = units_of(seen.fleet, seen.now, held.devices.keys(), kind);
                    (units > 0).then(|| (id, lease_claim(held.group(), units, true)))
                })
                .collect();
            claims.extend(lent.iter().map(|(_, claim)| claim.clone()));
            let granted = share(capacity, &self.groups, &claims);
            for (mind, granted) in minds.iter_mut().zip(&granted) {
                mind.granted = granted.slots + mind.listed.min(mind.wanted);
                // What could not be placed though all made way moves nobody; what it has stays its own.
                mind.owed = if mind.fits_nowhere { granted.owed.min(mind.placed) } else { granted.owed };
            }
            for ((id, claim), granted) in lent.iter().zip(&granted[minds.len()..]) {
                let share = leases.entry((*id).clone()).or_insert(LeaseShare { short: false, owed: true });
                share.short |= granted.slots < claim.wants;
                share.owed &= granted.owed >= claim.wants;
            }
            // Who asks for a lease has what only delays keep.
            for (claim, mind) in claims.iter_mut().zip(&minds).filter(|(_, mind)| !mind.is_tried()) {
                claim.wants = claim.wants.min(mind.idle.needed().saturating_sub(mind.listed));
            }
            self.claims.insert(kind == DeviceKind::Cuda, (capacity, claims));
        }
        leases
    }

    /// Units of a kind of device that models and leases may have, and those of the largest device.
    fn capacity(&self, seen: &Seen, told: &[Told], kind: DeviceKind) -> (usize, usize) {
        let (mut capacity, mut largest) = (0_usize, 1);
        for (report, gate) in told.iter().filter(|(report, _)| !report.draining) {
            for device in report.devices.iter().filter(|device| is_of(&device.name, kind)) {
                let units = match gate {
                    Gate::Open => device.capacity,
                    // What is free there is of use to nobody.
                    Gate::Cordoned => self.used(seen, report, &device.name).min(device.capacity),
                    // A lease has it until it ends.
                    Gate::Drained if self.is_lent(report, &device.name) => device.capacity,
                    Gate::Drained => 0,
                };
                capacity = capacity.saturating_add(units);
                largest = largest.max(units);
            }
        }
        (capacity, largest)
    }

    fn is_lent(&self, report: &Report, device: &str) -> bool {
        self.leases.places().contains(&(report.host.clone(), device.to_owned()))
    }

    /// Units that are taken of a device.
    fn used(&self, seen: &Seen, report: &Report, device: &str) -> usize {
        if self.is_lent(report, device) {
            return usize::MAX;
        }
        let place = (report.host.clone(), device.to_owned());
        let used = |(entry, mind): (&Arc<Entry>, &Mind)| Some(units(entry).saturating_mul(*mind.places.get(&place)?));
        seen.models.values().zip(self.minds.values()).filter_map(used).fold(0, usize::saturating_add)
    }

    /// Where devices are lent.
    pub(super) fn lent(&self, leases: &BTreeMap<String, LeaseShare>) -> BTreeMap<Place, Lent> {
        let places = self.leases.iter().flat_map(|(id, held)| {
            let owed = leases.get(id).is_some_and(|share| share.owed);
            held.devices.keys().map(move |place| (place.clone(), Lent { lease: id.clone(), owed }))
        });
        places.collect()
    }
}

fn claim(seen: &Seen, entry: &Entry, mind: &Mind, largest: usize) -> Claim {
    Claim {
        group: entry.manifest.scaling.group.clone(),
        priority: entry.manifest.scaling.priority,
        // What hosts run by their own configuration takes nothing of the others.
        wants: mind.wanted.saturating_sub(mind.listed),
        has: mind.placed,
        // What cannot be placed anyway, or does not come to serve, takes nothing from others.
        units: if mind.fits_nowhere || mind.tried_enough.is_some() { 0 } else { units(entry).min(largest) },
        waited: match mind.waiting_since.map_or(Duration::ZERO, |since| seen.now.saturating_sub(since)) {
            // Its turn has come already.
            waited if mind.seated => waited.max(PATIENCE),
            waited => waited,
        },
    }
}

fn is_of(device: &str, kind: DeviceKind) -> bool {
    device.starts_with("cuda") == (kind == DeviceKind::Cuda)
}

/// What leased places of a kind have.
pub(super) fn units_of<'p>(
    fleet: &Fleet,
    now: Duration,
    places: impl Iterator<Item = &'p Place>,
    kind: DeviceKind,
) -> usize {
    let units = places.filter(|(_, device)| is_of(device, kind)).filter_map(|(host, device)| {
        let report = fleet.host(host, now)?;
        Some(report.devices.iter().find(|of| of.name == *device)?.capacity)
    });
    units.fold(0, usize::saturating_add)
}

/// A lease wants its devices whole. It is work that can wait: models of its own group come first.
pub(super) fn lease_claim(group: &str, units: usize, has: bool) -> Claim {
    let has = if has { units } else { 0 };
    Claim { group: group.to_owned(), priority: -1, wants: units, has, units: 1, waited: Duration::ZERO }
}
