//! What of each device is taken while slots are placed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Index;

use sluice_core::manifest::{DeviceKind, Sharing};

use super::{Device, Host, Place, Places, Want};

/// Of so many places with most room, the best is taken: looking at all would cost hosts times models.
const LOOKED_AT: usize = 32;

/// No device has more memory; keeps sums of what is senseless from overflowing.
const MOST_MIB: u64 = 1 << 40;

/// What of a device is taken.
#[derive(Clone, Copy)]
pub(super) struct Room<'h> {
    pub(super) host: &'h Host,
    pub(super) device: &'h Device,
    /// Units that nothing takes; below zero where what runs takes more by now.
    pub(super) free: i64,
    /// Memory that nothing takes, if that is known.
    pub(super) free_mib: Option<i64>,
    /// Models that are here, and how many of these share with nobody.
    pub(super) models: usize,
    pub(super) exclusive: usize,
}

impl Room<'_> {
    pub(super) fn place(&self) -> Place {
        (self.host.name.clone(), self.device.name.clone())
    }

    /// Whether one slot more has room.
    pub(super) fn fits(&self, want: &Want, first: bool) -> bool {
        self.admits(want, first) && self.free >= want.units_on(self.device) as i64
    }

    /// Whether the model has memory here, and the company that it bears.
    pub(super) fn admits(&self, want: &Want, first: bool) -> bool {
        let takes_memory = first || want.copied;
        let memory = !takes_memory || self.free_mib.is_none_or(|free| mib(want, 1, first) <= free);
        let alone = !(self.exclusive > 0 || (want.sharing == Sharing::Exclusive && self.models > 0));
        memory && (alone || !first)
    }

    /// Takes room for slots, the first ones of the model here or more.
    pub(super) fn take(&mut self, want: &Want, slots: usize, first: bool) {
        self.free -= want.units_on(self.device).saturating_mul(slots) as i64;
        // Somebody who only refuses requests takes no room.
        if want.units == 0 {
            return;
        }
        self.free_mib = self.free_mib.map(|free| free - mib(want, slots, first));
        if first {
            self.models += 1;
            self.exclusive += usize::from(want.sharing == Sharing::Exclusive);
        }
    }

    /// Gives room back, that of the model's last slots here or not.
    pub(super) fn give_back(&mut self, want: &Want, slots: usize, last: bool) {
        self.free += want.units_on(self.device).saturating_mul(slots) as i64;
        if want.units == 0 {
            return;
        }
        self.free_mib = self.free_mib.map(|free| free + mib(want, slots, last));
        if last {
            self.models -= 1;
            self.exclusive -= usize::from(want.sharing == Sharing::Exclusive);
        }
    }
}

/// All devices, found by name and by how much room they have.
pub(super) struct Rooms<'h> {
    all: Vec<Room<'h>>,
    index: HashMap<(&'h str, &'h str), usize>,
    /// By kind, those with most room first; empty until sorted.
    order: BTreeMap<bool, BTreeSet<(Reverse<i64>, usize)>>,
}

impl<'h> Rooms<'h> {
    /// Empty ones.
    pub(super) fn new(hosts: &'h [Host]) -> Self {
        let room = |host: &'h Host, device: &'h Device| Room {
            host,
            device,
            free: device.capacity as i64,
            free_mib: device.memory_mib.map(|mib| mib.min(MOST_MIB) as i64),
            models: 0,
            exclusive: 0,
        };
        let all: Vec<Room> =
            hosts.iter().flat_map(|host| host.devices.iter().map(move |device| room(host, device))).collect();
        let name = |room: &Room<'h>| (room.host.name.as_str(), room.device.name.as_str());
        let index = all.iter().enumerate().map(|(at, room)| (name(room), at)).collect();
        Self { all, index, order: BTreeMap::new() }
    }

    /// Before the first is looked for by its room.
    pub(super) fn sort(&mut self) {
        for (at, room) in self.all.iter().enumerate() {
            self.order.entry(is_gpu(room)).or_default().insert((Reverse(room.free), at));
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Room<'h>> {
        self.all.iter()
    }

    pub(super) fn find(&self, (host, device): &Place) -> Option<usize> {
        self.index.get(&(host.as_str(), device.as_str())).copied()
    }

    /// Changes what is taken of one.
    pub(super) fn change(&mut self, at: usize, change: impl FnOnce(&mut Room)) {
        let room = &mut self.all[at];
        let before = (Reverse(room.free), at);
        change(room);
        if let Some(order) = self.order.get_mut(&is_gpu(room)) {
            order.remove(&before);
            order.insert((Reverse(room.free), at));
        }
    }

    /// The best place for one more slot of a model that has these.
    pub(super) fn best(&self, want: &Want, places: &Places) -> Option<usize> {
        let order = self.order.get(&(want.kind == DeviceKind::Cuda))?;
        let mut on_host: HashMap<&str, usize> = HashMap::new();
        for ((host, _), slots) in places {
            *on_host.entry(host).or_default() += slots;
        }
        let here = |room: &Room| on_host.contains_key(room.host.name.as_str()) && places.contains_key(&room.place());
        let fitting =
            order.iter().take_while(|(free, _)| free.0 > 0 || want.units == 0).map(|(_, at)| *at).filter(|at| {
                let room = &self[*at];
                room.host.takes_more && want.suits(room) && room.fits(want, !here(room))
            });
        fitting.take(LOOKED_AT).min_by_key(|at| {
            let room = &self[*at];
            (on_host.get(room.host.name.as_str()).copied().unwrap_or(0), Reverse(room.free), *at)
        })
    }
}

impl<'h> Index<usize> for Rooms<'h> {
    type Output = Room<'h>;

    fn index(&self, at: usize) -> &Room<'h> {
        &self.all[at]
    }
}

fn is_gpu(room: &Room) -> bool {
    room.device.kind() == DeviceKind::Cuda
}

/// What slots of a model take, the first or the last ones of the device or others: each its copy, or all of them the same.
fn mib(want: &Want, slots: usize, first_or_last: bool) -> i64 {
    let times = if want.copied { slots as u64 } else { u64::from(first_or_last) };
    want.memory_mib.saturating_mul(times).min(MOST_MIB) as i64
}
