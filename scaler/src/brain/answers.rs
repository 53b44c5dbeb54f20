//! What the scaler that leads answers: reasons, gates of hosts, and leases.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::assignment::Gate;
use sluice_core::clock::UnixMs;
use sluice_core::manifest::DeviceKind;
use sluice_core::print::count;
use sluice_core::scaler::{Answer, Explanation, LeaseRequest, LeaseState};

use super::shares::{lease_claim, units_of};
use super::{Brain, Known};
use crate::fleet::Fleet;
use crate::place::Place;
use crate::share::{Claim, share};

impl Brain {
    /// Why a model has what it has.
    pub fn explain(&self, model: &ModelName) -> Answer {
        let mind = self.minds.get(model).and_then(|mind| Some((mind, mind.reason.as_ref()?)));
        let Some((mind, reason)) = mind else {
            return Answer::Refused(format!("model `{model}` is not deployed, as far as the scaler knows"));
        };
        let mut hosts: BTreeMap<String, usize> = BTreeMap::new();
        for ((host, _), slots) in &mind.places {
            *hosts.entry(host.clone()).or_default() += slots;
        }
        Answer::Explained(Explanation {
            model: model.clone(),
            revision: mind.revision.0,
            wanted: mind.wanted,
            granted: mind.granted,
            placed: hosts.values().sum(),
            serving: mind.serving,
            reason: reason.to_string(),
            trouble: mind.trouble.clone().or_else(|| mind.refused.clone()),
            failure: mind.failure.clone(),
            hosts: hosts.into_iter().collect(),
            changes: mind.changes.iter().cloned().collect(),
        })
    }

    /// Has one host load a model's revision though nobody asks for it; `None` while that revision is not known here.
    pub fn try_loading(&mut self, model: &ModelName, revision: u64) -> Option<Answer> {
        let mind = self.minds.get_mut(model)?;
        Some(match mind.demand.as_ref() {
            _ if mind.revision.0 < revision => return None,
            _ if mind.revision.0 > revision => Answer::Refused(format!("revision {} came meanwhile", mind.revision.0)),
            None => Answer::Refused("it is stopped".into()),
            Some(demand) if demand.scaling.paused => {
                Answer::Refused(format!("its scaling is paused (`sluice scale resume {model}`)"))
            }
            Some(_) => {
                mind.trial = Some(mind.revision);
                Answer::Done
            }
        })
    }

    /// Lets a host have less, or all again.
    pub fn set_gate(&mut self, host: &str, gate: Gate, fleet: &Fleet, now: Duration) -> Answer {
        match fleet.host(host, now) {
            None => {
                return Answer::Refused(format!("there is no host `{host}` that reports: `sluice hosts` lists them"));
            }
            Some(report) if report.assignment.is_none() => {
                return Answer::Refused(format!(
                    "host `{host}` runs what its own configuration lists: stop its worker instead"
                ));
            }
            Some(_) => {
                self.hosts.entry(host.to_owned()).or_insert(Known { gate, adopted: false }).gate = gate;
            }
        }
        Answer::Done
    }

    /// Lends devices, if that leaves everybody else their share.
    pub fn acquire(&mut self, request: &LeaseRequest, fleet: &Fleet, clock: UnixMs, now: Duration) -> Answer {
        if let Err(reason) = request.check() {
            return Answer::Refused(reason);
        }
        if let Some(held) = self.leases.get(&request.id) {
            let holder = held.devices.values().map(|lease| &lease.holder).next();
            return match holder.filter(|holder| **holder != request.holder) {
                Some(holder) => Answer::Refused(format!(
                    "lease `{}` is held by {holder}: choose another --name, or end that one by `sluice lease release`",
                    request.id
                )),
                None => self.renew(&request.id, fleet, now),
            };
        }
        if let Some(host) = request.host.as_ref().filter(|host| fleet.host(host, now).is_none()) {
            return Answer::Refused(format!("there is no host `{host}` that reports: `sluice hosts` lists them"));
        }
        let lent = self.leases.places();
        let hosts = fleet.alive(now).filter(|report| {
            report.assignment.is_some()
                && !report.draining
                && self.gate(&report.host) == Gate::Open
                && request.host.as_ref().is_none_or(|host| *host == report.host)
        });
        let devices: Vec<(Place, usize)> = hosts
            .flat_map(|report| {
                report.devices.iter().map(|device| ((report.host.clone(), device.name.clone()), device.capacity))
            })
            .collect();
        let is_gpu = |place: &Place| place.1.starts_with("cuda");
        let gpus = match request.kind.as_deref() {
            Some(kind) => kind == "cuda",
            None => devices.iter().any(|(place, _)| is_gpu(place)),
        };
        let mut devices: Vec<(Place, usize)> =
            devices.into_iter().filter(|(place, _)| is_gpu(place) == gpus && !lent.contains(place)).collect();
        if devices.len() < request.devices {
            let what = if gpus { "GPUs" } else { "hosts' processors" };
            let wanted = request.devices;
            let gated = fleet.alive(now).filter(|report| self.gate(&report.host) != Gate::Open).count();
            let gated = match gated {
                0 => String::new(),
                gated => {
                    format!("; {} cordoned or drained (`sluice hosts open`)", count(gated, "host is", "hosts are"))
                }
            };
            return Answer::Refused(format!("{wanted} {what} are wanted, and {} could be lent{gated}", devices.len()));
        }
        // The least disturbed first.
        let running = |place: &Place| -> usize { self.minds.values().filter_map(|mind| mind.places.get(place)).sum() };
        let owed = |place: &Place| -> usize {
            self.minds.values().filter_map(|mind| Some(mind.owed.min(*mind.places.get(place)?))).sum()
        };
        devices.sort_by_key(|(place, _)| (owed(place), running(place), place.clone()));
        devices.truncate(request.devices);
        let units = devices.iter().map(|(_, units)| units).sum();
        let (capacity, mut claims) = self.claims.get(&gpus).cloned().unwrap_or_default();
        claims.push(lease_claim(&request.group, units, false));
        let granted = share(capacity, &self.groups, &claims);
        let granted = granted.last().map_or(0, |granted| granted.slots);
        if granted < units {
            return Answer::Refused(format!(
                "the lease takes {} of group `{}`, and what others need leaves the group {granted} of {capacity}; `sluice lease list` and \
                 `sluice slots` show who has them",
                match gpus {
                    true => count(units, "slot of GPUs", "slots of GPUs"),
                    false => count(units, "thread of processors", "threads of processors"),
                },
                request.group
            ));
        }
        // Whoever asks before the next round finds that much less.
        self.claims.insert(gpus, (capacity, claims));
        self.leases.lend(request, devices.into_iter().map(|(place, _)| place).collect(), clock, now);
        self.renew(&request.id, fleet, now)
    }

    /// Whether it has decided on this model.
    pub fn knows(&self, model: &ModelName) -> bool {
        self.minds.get(model).is_some_and(|mind| mind.reason.is_some())
    }

    /// Whether there is such a lease.
    pub fn knows_lease(&self, id: &str) -> bool {
        self.leases.get(id).is_some()
    }

    /// How a lease stands; its holder is alive.
    pub fn renew(&mut self, id: &str, fleet: &Fleet, now: Duration) -> Answer {
        match self.leases.renew(id, now).is_some() {
            true => Answer::Lease(self.state(id, fleet, now)),
            false => Answer::Refused(format!("lease `{id}` has ended")),
        }
    }

    /// A lease is not needed any more.
    pub fn release(&mut self, id: &str, fleet: &Fleet, now: Duration) -> Answer {
        // Whoever asks before the next round finds that much more.
        if let Some(held) = self.leases.get(id) {
            for (gpus, kind) in [(false, DeviceKind::Cpu), (true, DeviceKind::Cuda)] {
                let units = units_of(fleet, now, held.devices.keys(), kind);
                let claims = self.claims.get_mut(&gpus).map(|(_, claims)| claims);
                if let Some(claims) = claims.filter(|_| units > 0) {
                    let is_its =
                        |claim: &Claim| claim.priority < 0 && claim.group == held.group() && claim.wants == units;
                    if let Some(at) = claims.iter().rposition(is_its) {
                        claims.remove(at);
                    }
                }
            }
        }
        match self.leases.release(id) {
            true => Answer::Done,
            false => Answer::Refused(format!("there is no lease `{id}`: `sluice lease list` shows them")),
        }
    }

    /// All leases.
    pub fn leases(&self, fleet: &Fleet, now: Duration) -> Answer {
        Answer::Leases(self.leases.iter().map(|(id, _)| self.state(id, fleet, now)).collect())
    }

    fn state(&self, id: &str, fleet: &Fleet, now: Duration) -> LeaseState {
        let held = self.leases.get(id);
        let devices: Vec<(String, _)> = held
            .into_iter()
            .flat_map(|held| &held.devices)
            .map(|((host, _), lease)| (host.clone(), lease.clone()))
            .collect();
        let free = devices.iter().all(|(host, lease)| {
            // One that is silent may be cut off, and still run what it had.
            fleet.host(host, now).is_some_and(|report| {
                let told = report.assignment.as_ref().is_some_and(|assignment| assignment.leases.contains(lease));
                told && report.models.iter().all(|model| model.device != lease.device)
            })
        });
        let ending = held.and_then(|held| held.ending.clone());
        let ending =
            ending.map(|(at, why)| (at.saturating_sub(now).as_millis() as UnixMs + sluice_core::clock::unix_ms(), why));
        LeaseState { id: id.to_owned(), devices, free, ending }
    }
}
