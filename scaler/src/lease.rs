//! Devices lent to other work. The hosts carry them in their assignments, so that a new leader learns of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_core::assignment::Lease;
use sluice_core::clock::UnixMs;
use sluice_core::scaler::LeaseRequest;

use crate::place::Place;

/// A holder that has not been heard for so long is gone.
const GONE_AFTER: Duration = Duration::from_secs(15);
/// Others must have needed a lease's devices for so long: by then a new leader has heard of every host too.
const SHORT_FOR: Duration = Duration::from_secs(5);
/// The time between telling a holder and taking its devices.
pub const GRACE: Duration = Duration::from_secs(30);

/// All leases.
#[derive(Debug, Default)]
pub struct Leases(BTreeMap<String, Held>);

/// One lease.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its devices.
    pub devices: BTreeMap<Place, Lease>,
    renewed: Duration,
    /// Since when others need its devices.
    short_since: Option<Duration>,
    /// When it ends though it is still wanted, and why.
    pub ending: Option<(Duration, String)>,
}

impl Held {
    fn new(devices: BTreeMap<Place, Lease>, now: Duration) -> Self {
        Self { devices, renewed: now, short_since: None, ending: None }
    }

    /// Whose share it counts to.
    pub fn group(&self) -> &str {
        self.devices.values().next().map_or("", |lease| lease.group.as_str())
    }
}

impl Leases {
    /// Takes what a host says of leases that are not known here.
    pub fn adopt(&mut self, host: &str, leases: &[Lease], now: Duration) {
        for lease in leases {
            let new = || Held::new(BTreeMap::new(), now);
            let held = self.0.entry(lease.id.clone()).or_insert_with(new);
            // A host that was away may carry an old one of the name.
            let known = held.devices.values().map(|known| known.since).max().unwrap_or(lease.since);
            if lease.since < known {
                continue;
            }
            if lease.since > known {
                held.devices.clear();
            }
            held.devices.insert((host.to_owned(), lease.device.clone()), lease.clone());
        }
    }

    /// Lends these places.
    pub fn lend(&mut self, request: &LeaseRequest, places: Vec<Place>, at: UnixMs, now: Duration) {
        let lease = |(host, device): Place| {
            let lease = Lease {
                id: request.id.clone(),
                device: device.clone(),
                group: request.group.clone(),
                holder: request.holder.clone(),
                since: at,
                until: request.until,
            };
            ((host, device), lease)
        };
        let devices = places.into_iter().map(lease).collect();
        self.0.insert(request.id.clone(), Held::new(devices, now));
    }

    /// Its holder is alive.
    pub fn renew(&mut self, id: &str, now: Duration) -> Option<&Held> {
        let held = self.0.get_mut(id)?;
        held.renewed = now;
        Some(held)
    }

    /// It is not needed any more. Whether there was one.
    pub fn release(&mut self, id: &str) -> bool {
        self.0.remove(id).is_some()
    }

    /// Why its devices are needed now, if they are. Once they have been for long enough, its holder is told.
    pub fn is_needed(&mut self, id: &str, reason: Option<&str>, now: Duration) {
        let Some(held) = self.0.get_mut(id) else { return };
        held.short_since = reason.and(held.short_since.or(Some(now)));
        if let (Some(since), Some(reason)) = (held.short_since, reason)
            && now.saturating_sub(since) >= SHORT_FOR
        {
            held.ending.get_or_insert_with(|| (now + GRACE, reason.to_owned()));
        }
    }

    /// Ends what is over; says what, and why.
    pub fn tick(&mut self, clock: UnixMs, now: Duration) -> Vec<(String, String)> {
        let mut ended = Vec::new();
        for (id, held) in &mut self.0 {
            if held.devices.values().any(|lease| lease.until.is_some_and(|until| until <= clock)) {
                // The holder is told; it ends what it runs.
                held.ending.get_or_insert_with(|| (now + GRACE, "its time is up".into()));
            }
            if now.saturating_sub(held.renewed) >= GONE_AFTER {
                ended.push((id.clone(), "its holder is gone".to_owned()));
            } else if let Some((at, reason)) = &held.ending
                && now >= *at
            {
                ended.push((id.clone(), reason.clone()));
            }
        }
        for (id, _) in &ended {
            self.0.remove(id);
        }
        ended
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Held)> {
        self.0.iter()
    }

    /// One of them.
    pub fn get(&self, id: &str) -> Option<&Held> {
        self.0.get(id)
    }

    /// All places that are lent.
    pub fn places(&self) -> BTreeSet<Place> {
        self.0.values().flat_map(|held| held.devices.keys().cloned()).collect()
    }

    /// The leases of one host.
    pub fn of_host(&self, host: &str) -> Vec<Lease> {
        let devices = self.0.values().flat_map(|held| &held.devices);
        devices.filter(|((of, _), _)| of == host).map(|(_, lease)| lease.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: &str, until: Option<UnixMs>) -> LeaseRequest {
        let (group, holder) = ("training".to_owned(), "ada".to_owned());
        LeaseRequest { id: id.into(), devices: 1, host: None, kind: None, group, holder, until }
    }

    #[test]
    fn leases_end_when_their_time_is_up_their_holder_is_gone_or_they_are_reclaimed() {
        let seconds = Duration::from_secs;
        let mut leases = Leases::default();
        let place = |host: &str| vec![(host.to_owned(), "cpu".to_owned())];
        leases.lend(&request("timed", Some(5_000)), place("a"), 0, seconds(0));
        leases.lend(&request("forgotten", None), place("b"), 0, seconds(0));
        leases.lend(&request("needed", None), place("c"), 0, seconds(0));
        let mut gone = Vec::new();
        for second in 0..60 {
            let now = seconds(second);
            leases.renew("timed", now);
            leases.renew("needed", now);
            // A short shortage does no harm; the second one lasts.
            let needed = (10..12).contains(&second) || second >= 15;
            leases.is_needed("needed", needed.then_some("others need it"), now);
            gone.extend(leases.tick(second * 1000, now).into_iter().map(|(id, reason)| (second, id, reason)));
        }
        let gone: Vec<(u64, &str, &str)> = gone.iter().map(|(at, id, why)| (*at, id.as_str(), why.as_str())).collect();
        assert_eq!(
            gone,
            [
                (15, "forgotten", "its holder is gone"),
                (35, "timed", "its time is up"),
                (50, "needed", "others need it")
            ]
        );
        assert!(leases.places().is_empty());
    }

    #[test]
    fn a_new_leader_learns_of_them_from_the_hosts() {
        let mut old = Leases::default();
        let places = vec![("a".to_owned(), "cuda:0".to_owned()), ("b".to_owned(), "cuda:1".to_owned())];
        old.lend(&request("two", None), places, 7, Duration::ZERO);
        let mut new = Leases::default();
        for host in ["a", "b"] {
            new.adopt(host, &old.of_host(host), Duration::ZERO);
        }
        assert_eq!(new.places(), old.places());
        // One that was away for long still carries what was lent under the name before.
        let stale = || Lease { since: 3, holder: "bob".into(), ..old.of_host("a").remove(0) };
        new.adopt("z", &[stale()], Duration::ZERO);
        assert_eq!(new.places(), old.places());
        let mut newest = Leases::default();
        newest.adopt("z", &[stale()], Duration::ZERO);
        for host in ["a", "b"] {
            newest.adopt(host, &old.of_host(host), Duration::ZERO);
        }
        assert_eq!(newest.places(), old.places(), "whichever is heard first");
    }
}
