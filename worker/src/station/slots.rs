//! The slots of a model that is served: how many, what each has, and which gets the next batch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;

use crate::batcher::Room;
use crate::engine;
use crate::memory::Copies;
use crate::metrics::SlotsGauge;
use crate::package::Package;
use crate::slot::{self, Finished, Slot, Work};

/// The slots of a model that is served.
pub struct Slots {
    /// By numbers that are used once.
    all: BTreeMap<usize, Place>,
    next: usize,
    copies: Copies,
    finished: mpsc::UnboundedSender<Finished>,
    gauge: SlotsGauge,
}

/// A slot, and what it has.
struct Place {
    slot: Slot,
    /// Batches: one that runs, one that is next.
    load: u8,
    /// It gets no more, and ends once it is idle.
    leaving: bool,
}

impl Slots {
    pub fn new(slots: Vec<Slot>, copies: Copies, finished: mpsc::UnboundedSender<Finished>, gauge: SlotsGauge) -> Self {
        let next = slots.len();
        let all = slots.into_iter().map(|slot| Place { slot, load: 0, leaving: false }).enumerate().collect();
        let mut slots = Self { all, next, copies, finished, gauge };
        slots.count();
        slots
    }

    /// How many stay.
    pub fn staying(&self) -> usize {
        self.all.values().filter(|place| !place.leaving).count()
    }

    /// More slots at once; fewer as they become idle: first those that are not ready, then the idlest. One at least is left: without any there is no model.
    pub fn resize(&mut self, package: &Arc<Package>, count: usize) -> Result<()> {
        let staying = self.staying();
        for _ in count.max(1)..staying {
            let idlest = self
                .all
                .values_mut()
                .filter(|place| !place.leaving)
                .min_by_key(|place| (place.slot.is_ready(), place.load));
            if let Some(place) = idlest {
                place.leaving = true;
            }
        }
        let mut missing = count.saturating_sub(staying);
        // One that was to leave and has not is there already.
        for place in self.all.values_mut().filter(|place| place.leaving).take(missing) {
            place.leaving = false;
            missing -= 1;
        }
        for _ in 0..missing {
            let Some(model) = self.all.values().next().map(|place| place.slot.model()) else { break };
            let slot = slot::start(package, model, &self.copies, self.next, &self.finished)?;
            self.all.insert(self.next, Place { slot, load: 0, leaving: false });
            self.next += 1;
        }
        self.let_leave();
        Ok(())
    }

    /// The one that has least to do, and the room that it has for a batch, if it has any.
    pub fn free(&self) -> Option<(usize, Room)> {
        // One that still loads its copy of the model may do so for long, or in vain.
        let usable = self.all.iter().filter(|(_, place)| !place.leaving && place.slot.is_ready());
        let (slot, load) = usable.map(|(slot, place)| (*slot, place.load)).min_by_key(|(_, load)| *load)?;
        match load {
            0 => Some((slot, Room::IdleSlot)),
            1 => Some((slot, Room::NextBatch)),
            _ => None,
        }
    }

    /// Gives a batch to one that has room for it.
    pub fn give(&mut self, slot: usize, room: Room, work: Work) -> Result<()> {
        let place = self.all.get_mut(&slot).context("a batch was cut for a slot that is not there")?;
        place.load += 1;
        match room {
            Room::IdleSlot => place.slot.run(work)?,
            Room::NextBatch => place.slot.prepare(work),
        }
        self.count();
        Ok(())
    }

    /// One has done a batch.
    pub fn done(&mut self, slot: usize) {
        if let Some(place) = self.all.get_mut(&slot) {
            place.load = place.load.saturating_sub(1);
        }
        self.let_leave();
    }

    /// One whose execution takes longer than this.
    pub fn hung(&self, limit: Duration) -> Option<usize> {
        let hung = |place: &Place| place.slot.running_for().is_some_and(|time| time > limit);
        self.all.iter().find(|(_, place)| hung(place)).map(|(slot, _)| *slot)
    }

    /// Ends all, which are idle, and waits until the model is unloaded.
    pub async fn unload(self) {
        let threads: Vec<_> = self.all.into_values().map(|place| place.slot.end()).collect();
        // A panic in a slot was answered as a failure of its batch.
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|thread| _ = thread.join()));
        _ = joined.await;
        engine::release_memory();
    }

    /// Ends those that are to leave and have nothing left.
    fn let_leave(&mut self) {
        self.all.retain(|_, place| !(place.leaving && place.load == 0));
        self.count();
    }

    fn count(&mut self) {
        let busy = self.all.values().filter(|place| place.load > 0).count();
        self.gauge.set(0, self.all.len() - busy, busy);
    }
}
