//! Which slots run where: a pure function of what is wanted, what there is, and what runs now.
//!
//! What runs stays where it is as far as it may; the idlest go first. What is missing goes where there is memory, and of the places that
//! have most room to one whose host has fewest slots of the model. Only what is owed to a model moves others out of its way.

mod reclaim;
mod rooms;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::manifest::{DeviceKind, Sharing};

use rooms::{Room, Rooms};

/// A host, as far as placing is concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// What selectors look for.
    pub labels: BTreeMap<String, String>,
    /// Whether it takes slots that it does not have.
    pub takes_more: bool,
    /// Where slots can run, unless they are lent.
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
    /// The lease that it is lent to other work under.
    pub lent: Option<Lent>,
}

/// Under what a device is lent.
#[derive(Debug, Clone, PartialEq)]
pub struct Lent {
    /// The lease.
    pub lease: String,
    /// Whether its group's guaranteed minimum covers it.
    pub owed: bool,
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
    /// Of these, those for which others give way.
    pub owed: usize,
    /// How long it has waited for its turn.
    pub waited: Duration,
    /// Whether idle slots of others make room for its first one.
    pub lacks_first: bool,
    /// Slots that are needed now; the others make room for whoever has none.
    pub needs: usize,
    /// For how long these others were not needed.
    pub idle: Duration,
    /// What kind of device.
    pub kind: DeviceKind,
    /// Units that a slot takes.
    pub units: usize,
    /// Memory that its weights take, once for each device, or for each slot.
    pub memory_mib: u64,
    /// Whether each slot has a copy of them.
    pub copied: bool,
    /// Whether others may be on its devices.
    pub sharing: Sharing,
    /// Labels that its hosts must have.
    pub selector: BTreeMap<String, String>,
    /// Places where it did not come to serve lately.
    pub avoid: BTreeSet<Place>,
}

/// A place of a model: a host's name, and its device's.
pub type Place = (String, String);

/// How many slots of a model are where.
pub type Places = BTreeMap<Place, usize>;

/// What came of placing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Placed {
    /// Where the slots of each want go.
    pub places: Vec<Places>,
    /// What fits nowhere, by want.
    pub unplaced: BTreeMap<usize, Unplaced>,
    /// Leases that have what a model is owed and can run on nothing else.
    pub in_the_way: BTreeSet<String>,
    /// Those that have their first slot though shares, or others' idle slots, left no room for it.
    pub seated: Vec<usize>,
    /// Idle slots that went so that another model has its first one.
    pub made_room: Vec<MadeRoom>,
}

/// Idle slots that went so that another model has its first one.
#[derive(Debug, Clone, PartialEq)]
pub struct MadeRoom {
    /// Whose, by want.
    pub of: usize,
    /// How many.
    pub slots: usize,
    /// Who has the place, by want.
    pub to: usize,
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

/// Places everything, in the order of `wants`. `now` is where the slots of each are; `busy` says which share of its time a place was busy.
pub fn place(wants: &[Want], hosts: &[Host], mut now: Vec<Places>, busy: &dyn Fn(&ModelName, &Place) -> f64) -> Placed {
    let mut rooms = Rooms::new(hosts);
    // What stays comes first, of all models: nothing new may take its room.
    let mut missing = Vec::new();
    for (at, (want, places)) in wants.iter().zip(&mut now).enumerate() {
        let kept = keep(want, places, &mut rooms, busy);
        if want.slots > kept {
            missing.push((at, want.slots - kept));
        }
    }
    rooms.sort();
    let mut placed = Placed { places: now, ..Placed::default() };
    for (at, slots) in missing {
        fill(wants, at, slots, &mut rooms, &mut placed);
    }
    reclaim::reclaim(wants, &mut rooms, &mut placed);
    placed
}

/// Leaves of a model's places what stays; gives its slots.
fn keep(want: &Want, places: &mut Places, rooms: &mut Rooms, busy: &dyn Fn(&ModelName, &Place) -> f64) -> usize {
    let may_stay = |place: &Place| rooms.find(place).filter(|at| want.suits(&rooms[*at]));
    let mut rooms_of = Vec::with_capacity(places.len());
    places.retain(|place, slots| {
        let at = if *slots > 0 { may_stay(place) } else { None };
        rooms_of.extend(at);
        at.is_some()
    });
    let total: usize = places.values().sum();
    if total > want.slots {
        leave(want, places, total - want.slots, busy);
    }
    for (at, slots) in rooms_of.into_iter().zip(places.values()) {
        if *slots > 0 {
            rooms.change(at, |room| room.take(want, *slots, true));
        }
    }
    places.retain(|_, slots| *slots > 0);
    total.min(want.slots)
}

/// Takes so many slots away: the busiest stay; among equals those with many slots, so that whole devices become free.
fn leave(want: &Want, places: &mut Places, mut too_many: usize, busy: &dyn Fn(&ModelName, &Place) -> f64) {
    let mut idlest: Vec<(f64, &mut usize, &Place)> =
        places.iter_mut().map(|(place, slots)| (busy(&want.model, place), slots, place)).collect();
    idlest.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(b.2.cmp(a.2)));
    for (_, slots, _) in idlest {
        let gone = too_many.min(*slots);
        *slots -= gone;
        too_many -= gone;
    }
}

/// Places what a model lacks as far as there is room.
fn fill(wants: &[Want], index: usize, mut slots: usize, rooms: &mut Rooms, placed: &mut Placed) {
    let (want, places) = (&wants[index], &mut placed.places[index]);
    while slots > 0 {
        let Some(at) = rooms.best(want, places) else {
            let (reason, full) = why_not(want, rooms);
            placed.unplaced.insert(index, Unplaced { slots, reason, full });
            break;
        };
        let there = places.entry(rooms[at].place()).or_insert(0);
        rooms.change(at, |room| room.take(want, 1, *there == 0));
        *there += 1;
        slots -= 1;
    }
}

impl Want {
    /// Whether a device is of the right kind, on a host that the model may run on, and not lent.
    fn suits(&self, room: &Room) -> bool {
        room.device.lent.is_none() && self.would_suit(room)
    }

    /// Whether it would be if it were not lent.
    fn would_suit(&self, room: &Room) -> bool {
        room.device.kind() == self.kind
            && self.selected(room)
            && (self.avoid.is_empty() || !self.avoid.contains(&room.place()))
    }

    fn selected(&self, room: &Room) -> bool {
        self.selector.iter().all(|(label, value)| room.host.labels.get(label) == Some(value))
    }

    /// One slot of a model that wants more than a whole device has takes the whole device.
    fn units_on(&self, device: &Device) -> usize {
        self.units.min(device.capacity)
    }
}

/// What a model would need that nothing has, for people, and whether others have it.
fn why_not(want: &Want, rooms: &Rooms) -> (String, bool) {
    let kind = if want.kind == DeviceKind::Cuda { "GPU" } else { "cpu" };
    let of_kind: Vec<&Room> =
        rooms.iter().filter(|room| room.host.takes_more && room.device.kind() == want.kind).collect();
    if of_kind.is_empty() {
        return (format!("no host that may be used has a {kind}"), false);
    }
    let labelled: Vec<&Room> = of_kind.into_iter().filter(|room| want.selected(room)).collect();
    if labelled.is_empty() {
        let labels: Vec<String> = want.selector.iter().map(|(label, value)| format!("{label}={value}")).collect();
        return (format!("no host with a {kind} has the labels {}", labels.join(", ")), false);
    }
    let trusted: Vec<&Room> = labelled.into_iter().filter(|room| want.would_suit(room)).collect();
    if trusted.is_empty() {
        let reason = "it failed to load on every device that it may run on, or waited there in vain; each is tried again after a pause";
        return (reason.into(), false);
    }
    let most = trusted.iter().filter_map(|room| room.device.memory_mib).max();
    if let Some(most) =
        most.filter(|most| want.memory_mib > *most && trusted.iter().all(|room| room.device.memory_mib.is_some()))
    {
        return (format!("it needs {} MiB, and no {kind} has more than {most} MiB", want.memory_mib), false);
    }
    let count = trusted.len();
    let suitable: Vec<&Room> = trusted.into_iter().filter(|room| room.device.lent.is_none()).collect();
    if suitable.is_empty() {
        return (format!("the {count} {kind}s that it may run on are lent (`sluice lease list`)"), true);
    }
    if want.sharing == Sharing::Exclusive && suitable.iter().all(|room| room.models > 0) {
        return (format!("it wants a {kind} for itself, and something runs on each"), true);
    }
    let free: i64 = suitable.iter().map(|room| room.free.max(0)).sum();
    let reason = format!(
        "the {} {kind}s that it may run on are full ({free} units free, a slot takes {})",
        suitable.len(),
        want.units
    );
    (reason, true)
}

#[cfg(test)]
mod tests;
