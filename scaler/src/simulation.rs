//! Hours of traffic in milliseconds: requests arrive, wait, and are served by slots that a rule starts and stops. Discrete events, a
//! seeded source of chance: the same each time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use sluice_core::broker::Reading;

use crate::decide::{Demand, History, Lag, Scaling, decide};

mod case;
mod foresight;
mod rules;
mod trace;

pub use case::{Case, QUICK, SLOW};
pub use foresight::Foresight;
pub use rules::{QueueThreshold, Rule, Sluice, TargetUtilisation};
pub use trace::{TRACES, Trace};

/// What a rule sees when it is asked.
#[derive(Debug, Clone, Copy)]
pub struct Observation {
    /// The time since the beginning.
    pub now: Duration,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that run.
    pub running: usize,
    /// Requests that arrived per second since a while ago.
    pub arrivals: f64,
    /// Slots that serve or start; not those that drain.
    pub slots: usize,
}

/// The model that is served.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// How long a request takes on a slot.
    pub service: Duration,
    /// How long a slot takes to be ready.
    pub cold_start: Duration,
}

/// What a run cost and gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Requests served.
    pub served: usize,
    /// Slots that ran or started, added up over time, in hours.
    pub slot_hours: f64,
    /// The mean time from arrival to the start of the service.
    pub mean_wait: Duration,
    /// 99 of 100 waited at most this long.
    pub p99_wait: Duration,
    /// How often the number of slots was changed.
    pub changes: usize,
    /// How often it went up after it had gone down, or down after up, within a minute.
    pub reversals: usize,
}

/// Arrivals are counted over so long.
const COUNTED: Duration = Duration::from_secs(10);
/// A change that is taken back within this time was for nothing.
const SOON: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A slot is ready, or done with a request.
    Free(usize),
    /// The rule is asked.
    Decide,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Gone,
    Starting,
    Idle,
    Busy,
    /// Ends after its request, or at once when it is ready.
    Draining,
}

struct Simulation {
    model: Model,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, Event)>>,
    slots: Vec<Slot>,
    waiting: VecDeque<Duration>,
    arrived: VecDeque<Duration>,
    waits: Vec<Duration>,
    slot_seconds: f64,
    last_change: Option<(Duration, bool)>,
    outcome: (usize, usize),
}

/// Serves a trace's arrivals under a rule until everything is answered.
pub fn simulate(arrivals: &[Duration], model: Model, rule: &mut dyn Rule) -> Outcome {
    let mut simulation = Simulation {
        model,
        now: Duration::ZERO,
        events: BinaryHeap::new(),
        slots: Vec::new(),
        waiting: VecDeque::new(),
        arrived: VecDeque::new(),
        waits: Vec::with_capacity(arrivals.len()),
        slot_seconds: 0.0,
        last_change: None,
        outcome: (0, 0),
    };
    simulation.at(rule.interval(), Event::Decide);
    let mut next = arrivals.iter().copied().peekable();
    while simulation.waits.len() < arrivals.len() || simulation.count(Slot::Busy) > 0 {
        let event_at = simulation.events.peek().map(|Reverse((at, _))| *at);
        match next.peek() {
            Some(at) if event_at.is_none_or(|event_at| *at <= event_at) => {
                simulation.advance(*at);
                simulation.arrive();
                next.next();
            }
            _ => match simulation.events.pop() {
                Some(Reverse((at, event))) => {
                    simulation.advance(at);
                    simulation.handle(event, rule);
                }
                None => break,
            },
        }
    }
    simulation.outcome()
}

impl Simulation {
    fn at(&mut self, delay: Duration, event: Event) {
        self.events.push(Reverse((self.now + delay, event)));
    }

    fn count(&self, state: Slot) -> usize {
        self.slots.iter().filter(|slot| **slot == state).count()
    }

    fn advance(&mut self, to: Duration) {
        let paid = self.slots.iter().filter(|slot| **slot != Slot::Gone).count();
        self.slot_seconds += paid as f64 * (to - self.now).as_secs_f64();
        self.now = to;
    }

    fn arrive(&mut self) {
        self.arrived.push_back(self.now);
        self.waiting.push_back(self.now);
        if let Some(idle) = self.slots.iter().position(|slot| *slot == Slot::Idle) {
            self.serve(idle);
        }
    }

    fn serve(&mut self, slot: usize) {
        self.slots[slot] = match self.waiting.pop_front() {
            Some(arrived) => {
                self.waits.push(self.now - arrived);
                self.at(self.model.service, Event::Free(slot));
                Slot::Busy
            }
            None => Slot::Idle,
        };
    }

    fn handle(&mut self, event: Event, rule: &mut dyn Rule) {
        match event {
            Event::Free(slot) if self.slots[slot] == Slot::Draining => self.slots[slot] = Slot::Gone,
            Event::Free(slot) => self.serve(slot),
            Event::Decide => {
                while self.arrived.front().is_some_and(|at| *at + COUNTED < self.now) {
                    self.arrived.pop_front();
                }
                let over = COUNTED.min(self.now).as_secs_f64();
                let observation = Observation {
                    now: self.now,
                    waiting: self.waiting.len(),
                    running: self.count(Slot::Busy) + self.count(Slot::Draining),
                    arrivals: self.arrived.len() as f64 / over,
                    slots: self.count(Slot::Starting) + self.count(Slot::Idle) + self.count(Slot::Busy),
                };
                let wanted = rule.slots(&observation);
                self.change(observation.slots, wanted);
                self.at(rule.interval(), Event::Decide);
            }
        }
    }

    fn change(&mut self, slots: usize, wanted: usize) {
        if wanted == slots {
            return;
        }
        let up = wanted > slots;
        self.outcome.0 += 1;
        if self.last_change.is_some_and(|(at, was_up)| was_up != up && self.now - at < SOON) {
            self.outcome.1 += 1;
        }
        self.last_change = Some((self.now, up));
        for _ in slots..wanted {
            let slot = self.slots.iter().position(|slot| *slot == Slot::Gone).unwrap_or_else(|| {
                self.slots.push(Slot::Gone);
                self.slots.len() - 1
            });
            self.slots[slot] = Slot::Starting;
            self.at(self.model.cold_start, Event::Free(slot));
        }
        for _ in wanted..slots {
            // The idlest first; a busy one ends after its request.
            let of = |state: Slot| self.slots.iter().position(|slot| *slot == state);
            match (of(Slot::Idle), of(Slot::Starting).or(of(Slot::Busy))) {
                (Some(idle), _) => self.slots[idle] = Slot::Gone,
                (None, Some(other)) => self.slots[other] = Slot::Draining,
                (None, None) => {}
            }
        }
    }

    fn outcome(mut self) -> Outcome {
        self.waits.sort_unstable();
        let served = self.waits.len();
        let total: Duration = self.waits.iter().sum();
        let (changes, reversals) = self.outcome;
        Outcome {
            served,
            slot_hours: self.slot_seconds / 3600.0,
            mean_wait: total / u32::try_from(served.max(1)).unwrap_or(u32::MAX),
            p99_wait: self.waits.get(served.saturating_sub(1) * 99 / 100).copied().unwrap_or_default(),
            changes,
            reversals,
        }
    }
}

#[cfg(test)]
mod tests;
