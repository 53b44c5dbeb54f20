//! Moves others out of the way of what a model is owed: a guaranteed minimum, or its turn after it has waited long. Shares count units
//! alone; memory, devices that are not shared and units that lie scattered can still keep a model from what it was granted. And idle slots out
//! of the way of a model that has none.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::rooms::{Room, Rooms};
use super::{MadeRoom, Placed, Want, fill};

/// Places what is owed and has no room, those that have waited longest first, where others lose least; then the first slots of those that
/// have none, where others are idle. Nobody loses what it is owed itself.
pub(super) fn reclaim(wants: &[Want], rooms: &mut Rooms, placed: &mut Placed) {
    let count = |at: usize| placed.places[at].values().sum::<usize>();
    let lacks = |at: &usize| count(*at) < wants[*at].owed;
    let full = placed.unplaced.iter().filter(|(_, unplaced)| unplaced.full);
    let mut lacking: Vec<usize> = full.map(|(at, _)| *at).filter(lacks).collect();
    // What shares leave it nothing of is not missing as far as placing knows.
    let mut empty: Vec<usize> = (0..wants.len()).filter(|at| wants[*at].lacks_first && count(*at) == 0).collect();
    if lacking.is_empty() && empty.is_empty() {
        return;
    }
    let longest = |at: &usize| (Reverse(wants[*at].waited), *at);
    lacking.sort_by_key(longest);
    empty.sort_by_key(longest);
    let count = (0..wants.len()).map(count).collect();
    let mut tenants = Tenants { wants, count, of: BTreeMap::new() };
    for (index, places) in placed.places.iter().enumerate() {
        for (place, slots) in places {
            if let Some(at) = rooms.find(place) {
                tenants.of.entry(at).or_default().insert(index, *slots);
            }
        }
    }
    for index in empty {
        // What shares leave it nothing of may still be free: not everybody who is granted room can use it.
        let free = rooms.best(&wants[index], &placed.places[index]).map(|at| (at, Vec::new()));
        if let Some((at, leaving)) = free.or_else(|| tenants.cheapest(index, rooms, Leaves::Idle)) {
            for (victim, slots) in leaving {
                tenants.evict(at, victim, slots, rooms, placed);
                placed.made_room.push(MadeRoom { of: victim, slots, to: index });
            }
            tenants.admit(at, index, rooms, placed);
            placed.seated.push(index);
        }
    }
    let mut evicted: BTreeMap<usize, usize> = BTreeMap::new();
    for index in lacking {
        let want = &wants[index];
        while tenants.count[index] < want.owed {
            let Some((at, leaving)) = tenants.cheapest(index, rooms, Leaves::Anything) else {
                placed.in_the_way.extend(lease_in_the_way(want, rooms));
                break;
            };
            for (victim, slots) in leaving {
                tenants.evict(at, victim, slots, rooms, placed);
                *evicted.entry(victim).or_default() += slots;
            }
            tenants.admit(at, index, rooms, placed);
        }
    }
    // Those that had to go may find room elsewhere.
    for (victim, slots) in evicted {
        let lacked = placed.unplaced.remove(&victim).map_or(0, |unplaced| unplaced.slots);
        fill(wants, victim, lacked + slots, rooms, placed);
    }
}

/// What makes way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaves {
    /// Whatever is not owed.
    Anything,
    /// What nobody needs now.
    Idle,
}

/// Who is where.
struct Tenants<'w> {
    wants: &'w [Want],
    /// Slots of each want.
    count: Vec<usize>,
    /// By room, the wants that have slots there.
    of: BTreeMap<usize, BTreeMap<usize, usize>>,
}

impl Tenants<'_> {
    /// The room where least has to go for one slot more, or what has been idle for longest, and what that is.
    fn cheapest(&self, index: usize, rooms: &Rooms, leaves: Leaves) -> Option<(usize, Vec<(usize, usize)>)> {
        let want = &self.wants[index];
        let suitable = rooms.iter().enumerate().filter(|(_, room)| room.host.takes_more && want.suits(room));
        let leaving = suitable.filter_map(|(at, room)| Some((at, self.leaving(index, at, room, leaves)?)));
        leaving.min_by_key(|(at, leaving)| {
            let units = |(victim, slots): &(usize, usize)| self.wants[*victim].units_on(rooms[*at].device) * slots;
            let idle = leaving.iter().map(|(victim, _)| self.wants[*victim].idle).min().unwrap_or(Duration::MAX);
            let idle = if leaves == Leaves::Idle { idle } else { Duration::ZERO };
            (Reverse(idle), leaving.iter().map(units).sum::<usize>(), *at)
        })
    }

    /// What has to leave a room for one slot more, those that matter least first; `None` if that would not do.
    fn leaving(&self, index: usize, at: usize, room: &Room, leaves: Leaves) -> Option<Vec<(usize, usize)>> {
        let want = &self.wants[index];
        let empty = BTreeMap::new();
        let here = self.of.get(&at).unwrap_or(&empty);
        let first = !here.contains_key(&index);
        let others = here.iter().rev().map(|(victim, slots)| (*victim, *slots));
        let mut others: Vec<(usize, usize)> = others.filter(|(victim, _)| *victim != index).collect();
        if leaves == Leaves::Idle {
            others.sort_by_key(|(victim, _)| Reverse(self.wants[*victim].idle));
        }
        let mut room = *room;
        let mut leaving: BTreeMap<usize, usize> = BTreeMap::new();
        // Memory, and a device for oneself, are there only once all slots of a model have gone; units may come from several.
        for memory in [true, false] {
            for &(victim, slots) in &others {
                let other = &self.wants[victim];
                let gone = leaving.get(&victim).copied().unwrap_or(0);
                let stays = if leaves == Leaves::Idle { other.owed.max(other.needs) } else { other.owed };
                let may_go = slots.min(self.count[victim].saturating_sub(stays)).saturating_sub(gone);
                let go = match memory {
                    true if room.admits(want, first) => break,
                    true => slots,
                    false => {
                        let lacks = (want.units_on(room.device) as i64 - room.free).max(0) as usize;
                        lacks.div_ceil(other.units_on(room.device).max(1)).min(may_go)
                    }
                };
                if go == 0 || go > may_go || other.units == 0 {
                    continue;
                }
                room.give_back(other, go, gone + go == slots);
                leaving.insert(victim, gone + go);
            }
        }
        if !room.fits(want, first) {
            return None;
        }
        // Those that went before it was known that the next would do may stay, those that matter most first.
        for (victim, gone) in std::mem::take(&mut leaving) {
            let mut with = room;
            with.take(&self.wants[victim], gone, gone == here[&victim]);
            match with.fits(want, first) {
                true => room = with,
                false => _ = leaving.insert(victim, gone),
            }
        }
        Some(leaving.into_iter().collect())
    }

    fn evict(&mut self, at: usize, victim: usize, slots: usize, rooms: &mut Rooms, placed: &mut Placed) {
        let (want, place) = (&self.wants[victim], rooms[at].place());
        let there = self.of.entry(at).or_default();
        let left = there.get(&victim).map_or(0, |had| had - slots);
        rooms.change(at, |room| room.give_back(want, slots, left == 0));
        self.count[victim] -= slots;
        let places = &mut placed.places[victim];
        if left > 0 {
            there.insert(victim, left);
            places.insert(place, left);
        } else {
            there.remove(&victim);
            places.remove(&place);
        }
    }

    fn admit(&mut self, at: usize, index: usize, rooms: &mut Rooms, placed: &mut Placed) {
        let want = &self.wants[index];
        let there = self.of.entry(at).or_default().entry(index).or_default();
        rooms.change(at, |room| room.take(want, 1, *there == 0));
        *there += 1;
        self.count[index] += 1;
        *placed.places[index].entry(rooms[at].place()).or_default() += 1;
        if let Some(unplaced) = placed.unplaced.get_mut(&index) {
            unplaced.slots -= 1;
            if unplaced.slots == 0 {
                placed.unplaced.remove(&index);
            }
        }
    }
}

/// A lease on a device that would do, if it is one that may be ended.
fn lease_in_the_way(want: &Want, rooms: &Rooms) -> Option<String> {
    let would_do = |room: &&Room| {
        room.host.takes_more
            && want.would_suit(room)
            && room.device.memory_mib.is_none_or(|most| want.memory_mib <= most)
    };
    let lent = rooms.iter().filter(would_do).filter_map(|room| room.device.lent.as_ref());
    lent.filter(|lent| !lent.owed).map(|lent| lent.lease.clone()).min()
}
