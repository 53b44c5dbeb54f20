//! Which models are simulated.

use std::time::Duration;

use super::Model;
use crate::decide::Scaling;

/// The load that traces have of a quick model is that of so many slots' worth for one slot of a slow one.
const LARGER: f64 = 4.0;

/// A model, how many slots it may have, and how much is asked of it.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The model.
    pub model: Model,
    /// Never more slots.
    pub max_slots: usize,
    /// Requests for each one of a trace.
    pub(super) scale: f64,
}

/// A request takes 0.1 s.
pub const QUICK: Case = Case::slow(Duration::from_millis(100), Duration::from_secs(1), 8, 1.0);

/// A request takes 1 s, 3 s and 30 s, and a slot up to a minute to start: four times as many slots' worth of load.
pub const SLOW: [Case; 3] = [
    Case::slow(Duration::from_secs(1), Duration::from_secs(5), 32, 0.1 * LARGER),
    Case::slow(Duration::from_secs(3), Duration::from_secs(30), 64, 0.1 / 3.0 * LARGER),
    Case::slow(Duration::from_secs(30), Duration::from_secs(60), 64, 0.1 / 30.0 * LARGER),
];

impl Case {
    /// With arrivals as they are.
    pub fn new(service: Duration, cold_start: Duration, max_slots: usize) -> Self {
        Self::slow(service, cold_start, max_slots, 1.0)
    }

    const fn slow(service: Duration, cold_start: Duration, max_slots: usize, scale: f64) -> Self {
        Self { model: Model { service, cold_start }, max_slots, scale }
    }

    /// The settings: the defaults, with as many slots.
    pub fn scaling(&self) -> Scaling {
        Scaling { max_slots: self.max_slots, ..Scaling::default() }
    }

    /// Requests of the queue that a slot works off within `target_wait`: one at least.
    pub fn per_slot(&self) -> usize {
        ((self.scaling().target_wait.as_secs_f64() / self.model.service.as_secs_f64()) as usize).max(1)
    }
}
