//! Which slots run where: a pure function of what is wanted, what there is, and what runs now.
//!
//! What runs stays where it is as far as it may; the idlest go first. What is missing goes where there is memory, and of the places that
//! have most room to one whose host has fewest slots of the model.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use sluice_core::ModelName;
use sluice_core::manifest::{DeviceKind, Sharing};

/// Of so many places with most room, the best is taken: looking at all would cost hosts times models.
const LOOKED_AT: usize = 32;

/// A host, as far as placing is concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// What selectors look for.
    pub labels: BTreeMap<String, String>,
    /// Whether it takes slots that it does not have.
    pub takes_more: bool,
    /// Where slots can run; those that are lent are not here.
    pub devices: Vec<Device>,
}

/// A device of a host.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// `cpu` or `cuda:N`.
    pub name: String,
    /// Units that it has.
    pub capacity: usize,
    /// Memory for models, if known.
    pub memory_mib: Option<u64>,
}

impl Device {
    /// Its kind.
    pub fn kind(&self) -> DeviceKind {
        if self.name.starts_with("cuda") { DeviceKind::Cuda } else { DeviceKind::Cpu }
    }
}

/// What is wanted of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Want {
    /// Which.
    pub model: ModelName,
    /// How many slots.
    pub slots: usize,
    /// What kind of device.
    pub kind: DeviceKind,
    /// Units that a slot takes.
    pub units: usize,
    /// Memory that its weights take, once for each device.
    pub memory_mib: u64,
    /// Whether others may be on its devices.
    pub sharing: Sharing,
    /// Labels that its hosts must have.
    pub selector: BTreeMap<String, String>,
    /// Hosts where it failed to load lately.
    pub avoid: BTreeSet<String>,
}

/// A place of a model: a host's name, and its device's.
pub type Place = (String, String);

/// How many slots of each model are where.
pub type Placement = BTreeMap<ModelName, BTreeMap<Place, usize>>;

/// What came of placing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Placed {
    /// Where everything goes.
    pub placement: Placement,
    /// What fits nowhere.
    pub unplaced: BTreeMap<ModelName, Unplaced>,
}

/// Slots of a model that fit nowhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Unplaced {
    /// How many.
    pub slots: usize,
    /// Why, for people.
    pub reason: String,
    /// Whether others take the room; else there would be none for it in any case.
    pub full: bool,
}

/// What of a device is taken.
struct Room<'h> {
    host: &'h Host,
    device: &'h Device,
    free: usize,
    free_mib: Option<u64>,
    models: usize,
    exclusive: bool,
}

/// Places everything, in the order of `wants`. `busy` says which share of its time a place was busy.
pub fn place(wants: &[Want], hosts: &[Host], now: &Placement, busy: &dyn Fn(&ModelName, &Place) -> f64) -> Placed {
    let mut rooms: Vec<Room> = hosts
        .iter()
        .flat_map(|host| {
            host.devices.iter().map(move |device| Room {
                host,
                device,
                free: device.capacity,
                free_mib: device.memory_mib,
                models: 0,
                exclusive: false,
            })
        })
        .collect();
    let index: HashMap<(&str, &str), usize> =
        rooms.iter().enumerate().map(|(at, room)| ((room.host.name.as_str(), room.device.name.as_str()), at)).collect();
    let mut placed = Placed::default();
    // What stays comes first, of all models: nothing new may take its room.
    let mut missing = Vec::new();
    for want in wants {
        let kept = keep(want, now.get(&want.model), &index, &mut rooms, busy);
        let count: usize = kept.values().sum();
        if want.slots > count {
            missing.push((want, want.slots - count));
        }
        if !kept.is_empty() {
            placed.placement.insert(want.model.clone(), kept);
        }
    }
    let mut by_room: BTreeMap<bool, BTreeSet<(Reverse<usize>, usize)>> = BTreeMap::new();
    for (at, room) in rooms.iter().enumerate() {
        by_room.entry(room.device.kind() == DeviceKind::Cuda).or_default().insert((Reverse(room.free), at));
    }
    for (want, mut slots) in missing {
        let order = by_room.entry(want.kind == DeviceKind::Cuda).or_default();
        let mut places = placed.placement.remove(&want.model).unwrap_or_default();
        while slots > 0 {
            let Some(at) = best(want, &rooms, order, &places) else {
                let (reason, full) = why_not(want, &rooms);
                placed.unplaced.insert(want.model.clone(), Unplaced { slots, reason, full });
                break;
            };
            order.remove(&(Reverse(rooms[at].free), at));
            let place = (rooms[at].host.name.clone(), rooms[at].device.name.clone());
            let there = places.entry(place).or_insert(0);
            rooms[at].take(want, 1, *there == 0);
            *there += 1;
            order.insert((Reverse(rooms[at].free), at));
            slots -= 1;
        }
        if !places.is_empty() {
            placed.placement.insert(want.model.clone(), places);
        }
    }
    placed
}

/// What of a model stays where it is.
fn keep(
    want: &Want,
    now: Option<&BTreeMap<Place, usize>>,
    index: &HashMap<(&str, &str), usize>,
    rooms: &mut [Room],
    busy: &dyn Fn(&ModelName, &Place) -> f64,
) -> BTreeMap<Place, usize> {
    let mut may_stay: Vec<(&Place, usize, usize)> = now
        .into_iter()
        .flatten()
        .filter_map(|(place, slots)| {
            let at = *index.get(&(place.0.as_str(), place.1.as_str()))?;
            (*slots > 0 && want.suits(&rooms[at])).then_some((place, *slots, at))
        })
        .collect();
    let total: usize = may_stay.iter().map(|(_, slots, _)| slots).sum();
    if total > want.slots {
        // The busiest stay; among equals those with many slots, so that whole devices become free.
        may_stay.sort_by(|a, b| {
            busy(&want.model, b.0).total_cmp(&busy(&want.model, a.0)).then(b.1.cmp(&a.1)).then(a.0.cmp(b.0))
        });
    }
    let mut left = want.slots;
    let mut kept = BTreeMap::new();
    for (place, slots, at) in may_stay {
        let slots = slots.min(left);
        if slots > 0 {
            left -= slots;
            rooms[at].take(want, slots, true);
            kept.insert(place.clone(), slots);
        }
    }
    kept
}

impl Want {
    /// Whether a device is of the right kind, on a host that the model may run on.
    fn suits(&self, room: &Room) -> bool {
        room.device.kind() == self.kind
            && self.selector.iter().all(|(label, value)| room.host.labels.get(label) == Some(value))
            && !self.avoid.contains(&room.host.name)
    }

    /// One slot of a model that wants more than a whole device has takes the whole device.
    fn units_on(&self, device: &Device) -> usize {
        self.units.min(device.capacity)
    }
}

impl Room<'_> {
    fn take(&mut self, want: &Want, slots: usize, first: bool) {
        self.free = self.free.saturating_sub(want.units_on(self.device) * slots);
        if first {
            self.models += 1;
            self.exclusive |= want.sharing == Sharing::Exclusive;
            self.free_mib = self.free_mib.map(|free| free.saturating_sub(want.memory_mib));
        }
    }

    fn fits(&self, want: &Want, first: bool) -> bool {
        let memory = !first || self.free_mib.is_none_or(|free| want.memory_mib <= free);
        let alone = !first || !(self.exclusive || (want.sharing == Sharing::Exclusive && self.models > 0));
        memory && alone && self.free >= want.units_on(self.device)
    }
}

/// The best place for one more slot.
fn best(
    want: &Want,
    rooms: &[Room],
    order: &BTreeSet<(Reverse<usize>, usize)>,
    places: &BTreeMap<Place, usize>,
) -> Option<usize> {
    let mut on_host: HashMap<&str, usize> = HashMap::new();
    for ((host, _), slots) in places {
        *on_host.entry(host).or_default() += slots;
    }
    let here = |room: &Room| {
        on_host.contains_key(room.host.name.as_str())
            && places.contains_key(&(room.host.name.clone(), room.device.name.clone()))
    };
    let fitting = order.iter().take_while(|(free, _)| free.0 > 0 || want.units == 0).map(|(_, at)| *at).filter(|at| {
        rooms[*at].host.takes_more && want.suits(&rooms[*at]) && rooms[*at].fits(want, !here(&rooms[*at]))
    });
    fitting.take(LOOKED_AT).min_by_key(|at| {
        let room = &rooms[*at];
        (on_host.get(room.host.name.as_str()).copied().unwrap_or(0), Reverse(room.free), *at)
    })
}

/// What a model would need that nothing has, for people, and whether others have it.
fn why_not(want: &Want, rooms: &[Room]) -> (String, bool) {
    let kind = if want.kind == DeviceKind::Cuda { "GPU" } else { "cpu" };
    let of_kind: Vec<&Room> =
        rooms.iter().filter(|room| room.host.takes_more && room.device.kind() == want.kind).collect();
    if of_kind.is_empty() {
        return (format!("no host that may be used has a {kind}"), false);
    }
    let labelled: Vec<&Room> = of_kind
        .iter()
        .filter(|room| want.selector.iter().all(|(label, value)| room.host.labels.get(label) == Some(value)))
        .copied()
        .collect();
    if labelled.is_empty() {
        let labels: Vec<String> = want.selector.iter().map(|(label, value)| format!("{label}={value}")).collect();
        return (format!("no host with a {kind} has the labels {}", labels.join(", ")), false);
    }
    let suitable: Vec<&Room> = labelled.iter().filter(|room| !want.avoid.contains(&room.host.name)).copied().collect();
    if suitable.is_empty() {
        let reason = "it failed to load on every host that it may run on, or waited for memory there in vain; each is tried again \
            after a pause";
        return (reason.into(), false);
    }
    let most = suitable.iter().filter_map(|room| room.device.memory_mib).max();
    if let Some(most) =
        most.filter(|most| want.memory_mib > *most && suitable.iter().all(|room| room.device.memory_mib.is_some()))
    {
        return (format!("it needs {} MiB, and no {kind} has more than {most} MiB", want.memory_mib), false);
    }
    if want.sharing == Sharing::Exclusive && suitable.iter().all(|room| room.models > 0) {
        return (format!("it wants a {kind} for itself, and something runs on each"), true);
    }
    let free: usize = suitable.iter().map(|room| room.free).sum();
    let reason = format!(
        "the {} {kind}s that it may run on are full ({free} units free, a slot takes {})",
        suitable.len(),
        want.units
    );
    (reason, true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(name: &str, capacity: usize, memory_mib: u64) -> Host {
        let device = Device { name: "cpu".into(), capacity, memory_mib: Some(memory_mib) };
        let labels = BTreeMap::from([("zone".into(), name.into())]);
        Host { name: name.into(), labels, takes_more: true, devices: vec![device] }
    }

    fn want(model: &str, slots: usize) -> Want {
        Want {
            model: model.parse().expect("a name"),
            slots,
            kind: DeviceKind::Cpu,
            units: 1,
            memory_mib: 100,
            sharing: Sharing::Shared,
            selector: BTreeMap::new(),
            avoid: BTreeSet::new(),
        }
    }

    fn idle(_: &ModelName, _: &Place) -> f64 {
        0.0
    }

    /// `a: 2, b: 1`.
    fn of(placed: &Placed, model: &str) -> String {
        let places = placed.placement.get(&model.parse::<ModelName>().expect("a name"));
        let text = places.into_iter().flatten().map(|((host, _), slots)| format!("{host}: {slots}"));
        text.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn slots_are_spread_and_full_hosts_are_passed_over() {
        let hosts = [host("a", 4, 1000), host("b", 2, 1000), host("c", 4, 50)];
        let placed = place(&[want("m", 5)], &hosts, &Placement::new(), &idle);
        assert_eq!(of(&placed, "m"), "a: 3, b: 2");
        let placed = place(&[want("m", 9)], &hosts, &Placement::new(), &idle);
        assert_eq!(of(&placed, "m"), "a: 4, b: 2");
        let unplaced = placed.unplaced.values().next().expect("not all fit");
        assert_eq!((unplaced.slots, unplaced.full), (3, true), "{}", unplaced.reason);
    }

    #[test]
    fn several_models_share_a_device_by_memory_and_exclusive_ones_do_not() {
        let hosts = [host("a", 8, 250)];
        let placed = place(&[want("l", 2), want("m", 2), want("n", 1)], &hosts, &Placement::new(), &idle);
        assert_eq!(
            (of(&placed, "l"), of(&placed, "m"), of(&placed, "n")),
            ("a: 2".into(), "a: 2".into(), String::new())
        );
        let alone = Want { sharing: Sharing::Exclusive, ..want("x", 1) };
        let placed = place(&[alone.clone(), want("m", 1)], &hosts, &Placement::new(), &idle);
        assert_eq!((of(&placed, "x"), of(&placed, "m")), ("a: 1".into(), String::new()));
        let placed = place(&[want("m", 1), alone], &hosts, &Placement::new(), &idle);
        assert!(placed.unplaced.values().next().expect("no room").reason.contains("for itself"));
    }

    #[test]
    fn what_runs_stays_and_the_idlest_goes_first() {
        let hosts = [host("a", 4, 1000), host("b", 4, 1000), host("c", 4, 1000)];
        let at = |host: &str| (host.to_owned(), "cpu".to_owned());
        let model: ModelName = "m".parse().expect("a name");
        let now = Placement::from([(model, BTreeMap::from([(at("a"), 1), (at("b"), 2), (at("c"), 1)]))]);
        let busy = |_: &ModelName, place: &Place| if place.0 == "b" { 0.1 } else { 0.9 };
        assert_eq!(of(&place(&[want("m", 4)], &hosts, &now, &busy), "m"), "a: 1, b: 2, c: 1");
        assert_eq!(of(&place(&[want("m", 3)], &hosts, &now, &busy), "m"), "a: 1, b: 1, c: 1");
        assert_eq!(of(&place(&[want("m", 2)], &hosts, &now, &busy), "m"), "a: 1, c: 1");
        assert_eq!(of(&place(&[want("m", 0)], &hosts, &now, &busy), "m"), "");
        // A cordoned host keeps what it has.
        let cordoned = hosts.clone().map(|host| Host { takes_more: host.name == "c", ..host });
        assert_eq!(of(&place(&[want("m", 6)], &cordoned, &now, &busy), "m"), "a: 1, b: 2, c: 3");
        // A host that is gone loses what it had.
        assert_eq!(of(&place(&[want("m", 4)], &hosts[..2], &now, &busy), "m"), "a: 2, b: 2");
    }

    #[test]
    fn labels_failures_and_kinds_of_device_are_kept_apart() {
        let hosts = [host("a", 4, 1000), host("b", 4, 1000)];
        let zone = |zone: &str| BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
        let chosen = Want { selector: zone("b"), ..want("m", 2) };
        assert_eq!(of(&place(&[chosen], &hosts, &Placement::new(), &idle), "m"), "b: 2");
        let reason = |want: Want| {
            place(&[want], &hosts, &Placement::new(), &idle).unplaced.into_values().next().expect("unplaced").reason
        };
        assert_eq!(reason(Want { selector: zone("x"), ..want("m", 1) }), "no host with a cpu has the labels zone=x");
        let avoid = BTreeSet::from(["a".to_owned()]);
        assert_eq!(of(&place(&[Want { avoid, ..want("m", 2) }], &hosts, &Placement::new(), &idle), "m"), "b: 2");
        assert_eq!(reason(Want { kind: DeviceKind::Cuda, ..want("m", 1) }), "no host that may be used has a GPU");
        assert!(reason(Want { memory_mib: 5000, ..want("m", 1) }).contains("needs 5000 MiB"));
        // More threads than the host has processors: the whole host.
        assert_eq!(
            of(&place(&[Want { units: 64, ..want("m", 2) }], &hosts, &Placement::new(), &idle), "m"),
            "a: 1, b: 1"
        );
    }

    proptest! {
        #[test]
        fn nothing_is_over_booked_and_what_fits_is_placed(
            wants in prop::collection::vec((0..6_usize, 1..4_usize, 0..300_u64), 1..10),
            capacities in prop::collection::vec((1..8_usize, 100..800_u64), 1..6),
        ) {
            let hosts: Vec<Host> =
                capacities.iter().enumerate().map(|(at, (units, mib))| host(&format!("h{at}"), *units, *mib)).collect();
            let wants: Vec<Want> = wants
                .iter()
                .enumerate()
                .map(|(at, (slots, units, mib))| Want { units: *units, memory_mib: *mib, ..want(&format!("m{at}"), *slots) })
                .collect();
            let first = place(&wants, &hosts, &Placement::new(), &idle);
            for (host, (units, mib)) in hosts.iter().zip(&capacities) {
                let there: Vec<(&Want, usize)> = wants
                    .iter()
                    .filter_map(|want| Some((want, *first.placement.get(&want.model)?.get(&(host.name.clone(), "cpu".into()))?)))
                    .collect();
                prop_assert!(there.iter().map(|(want, slots)| want.units.min(*units) * slots).sum::<usize>() <= *units);
                prop_assert!(there.iter().map(|(want, _)| want.memory_mib).sum::<u64>() <= *mib);
            }
            for want in &wants {
                let slots: usize = first.placement.get(&want.model).into_iter().flatten().map(|(_, slots)| slots).sum();
                let missing = first.unplaced.get(&want.model).map_or(0, |unplaced| unplaced.slots);
                prop_assert_eq!(slots + missing, want.slots);
            }
            // Nothing moves without need.
            prop_assert_eq!(place(&wants, &hosts, &first.placement, &idle).placement, first.placement);
        }
    }
}
