//! The rules that are compared: ours, and two simple ones as they are found elsewhere.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Demand, History, Lag, Model, Observation, Reading, Scaling, decide};

/// Says how many slots there should be.
pub trait Rule {
    /// How often it is asked.
    fn interval(&self) -> Duration;

    /// How many slots there should be now.
    fn slots(&mut self, seen: &Observation) -> usize;
}

/// Ours.
pub struct Sluice {
    scaling: Scaling,
    model: Model,
    history: History,
}

impl Sluice {
    /// With these settings; the model's times are taken as measured.
    pub fn new(scaling: Scaling, model: Model) -> Self {
        Self { scaling, model, history: History::default() }
    }
}

impl Rule for Sluice {
    fn interval(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn slots(&mut self, seen: &Observation) -> usize {
        let demand = Demand {
            scaling: self.scaling.clone(),
            lag: Reading::Known(Lag { waiting: seen.waiting as u64, running: seen.running as u64 }),
            arrivals: seen.arrivals,
            row_time: Some(self.model.service),
            rows_per_request: 1.0,
            cold_start: self.model.cold_start,
            slots: seen.slots,
        };
        decide(&demand, &mut self.history, seen.now).slots
    }
}

/// So many requests of the queue for each slot, asked every 30 s; zero after 300 s without any; fewer only as many as were too many
/// over the last 300 s. The defaults of KEDA's `pollingInterval` and `cooldownPeriod`, and of the Kubernetes autoscaler's
/// `stabilizationWindowSeconds` that it drives.
pub struct QueueThreshold {
    /// Requests per slot.
    pub per_slot: usize,
    /// Never more slots.
    pub max_slots: usize,
    last_active: Duration,
    wanted: VecDeque<(Duration, usize)>,
}

/// Enough slots that each is busy for this share of the time, asked every 15 s, with the Kubernetes autoscaler's defaults: no change
/// within a tenth of the target, fewer only as many as were too many over the last 300 s, never none.
pub struct TargetUtilisation {
    /// The share.
    pub target: f64,
    /// Never more slots.
    pub max_slots: usize,
    wanted: VecDeque<(Duration, usize)>,
}

const STABLE: Duration = Duration::from_secs(300);

/// The largest number that was wanted over the last 300 s.
fn stabilised(wanted: &mut VecDeque<(Duration, usize)>, now: Duration, slots: usize) -> usize {
    wanted.push_back((now, slots));
    while wanted.front().is_some_and(|(at, _)| *at + STABLE < now) {
        wanted.pop_front();
    }
    wanted.iter().map(|(_, slots)| *slots).max().unwrap_or(slots)
}

impl QueueThreshold {
    /// So many requests per slot.
    pub fn new(per_slot: usize, max_slots: usize) -> Self {
        Self { per_slot, max_slots, last_active: Duration::ZERO, wanted: VecDeque::new() }
    }
}

impl Rule for QueueThreshold {
    fn interval(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn slots(&mut self, seen: &Observation) -> usize {
        // What runs is in the queue until it is acknowledged.
        let queue = seen.waiting + seen.running;
        if queue > 0 {
            self.last_active = seen.now;
        }
        let wanted = queue.div_ceil(self.per_slot).clamp(1, self.max_slots);
        let stable = stabilised(&mut self.wanted, seen.now, wanted);
        match (queue, seen.slots) {
            (0, 0) => 0,
            (0, _) if seen.now - self.last_active >= STABLE => {
                self.wanted.clear();
                0
            }
            _ => stable,
        }
    }
}

impl TargetUtilisation {
    /// With this share of the time busy.
    pub fn new(target: f64, max_slots: usize) -> Self {
        Self { target, max_slots, wanted: VecDeque::new() }
    }
}

impl Rule for TargetUtilisation {
    fn interval(&self) -> Duration {
        Duration::from_secs(15)
    }

    fn slots(&mut self, seen: &Observation) -> usize {
        let busy = seen.running as f64 / seen.slots.max(1) as f64;
        let ratio = busy / self.target;
        let wanted = match (ratio - 1.0).abs() <= 0.1 {
            true => seen.slots,
            false => (seen.slots as f64 * ratio).ceil() as usize,
        };
        stabilised(&mut self.wanted, seen.now, wanted.clamp(1, self.max_slots))
    }
}
