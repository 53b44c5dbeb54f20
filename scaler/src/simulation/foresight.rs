//! A rule that nobody can have: it knows the rate of arrivals beforehand, and spends a given number of slot-hours where they save most
//! waiting. What real rules are measured by.

use std::collections::BinaryHeap;
use std::time::Duration;

use super::trace::{HOURS, Trace};
use super::{Case, Observation, Rule};

/// The rate is looked at this often.
const STEP: f64 = 1.0;

/// Slots by time, as planned.
pub struct Foresight {
    plan: Vec<usize>,
    cold_start: Duration,
}

/// What one slot more at a step saves.
struct Saving {
    seconds: f64,
    step: usize,
}

impl Foresight {
    /// A plan for a trace that spends so many slot-hours.
    pub fn new(trace: &Trace, case: &Case, slot_hours: f64) -> Self {
        let Case { model, max_slots, scale } = *case;
        let rates: Vec<f64> =
            (0..(HOURS * 3600.0 / STEP) as usize).map(|step| (trace.rate)(step as f64 * STEP) * scale).collect();
        let wait = |rate: f64, slots: usize| rate * mean_wait(rate, model.service.as_secs_f64(), slots);
        let saving = |plan: &[usize], step: usize| Saving {
            seconds: wait(rates[step], plan[step]) - wait(rates[step], plan[step] + 1),
            step,
        };
        // As many as keep up; then each where it saves most.
        let keeps_up = |rate: &f64| usize::from(*rate > 0.0) + (rate * model.service.as_secs_f64()) as usize;
        let mut plan: Vec<usize> = rates.iter().map(|rate| keeps_up(rate).min(max_slots)).collect();
        let spent: usize = plan.iter().sum();
        let mut left = (slot_hours * 3600.0 / STEP) as usize;
        left = left.saturating_sub(spent);
        let open = |plan: &[usize], step: usize| plan[step] > 0 && plan[step] < max_slots;
        let mut savings: BinaryHeap<Saving> =
            (0..plan.len()).filter(|step| open(&plan, *step)).map(|step| saving(&plan, step)).collect();
        while left > 0
            && let Some(Saving { step, .. }) = savings.pop()
        {
            plan[step] += 1;
            left -= 1;
            if open(&plan, step) {
                savings.push(saving(&plan, step));
            }
        }
        Self { plan, cold_start: model.cold_start }
    }
}

impl Rule for Foresight {
    fn interval(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn slots(&mut self, seen: &Observation) -> usize {
        let at = |time: Duration| self.plan.get((time.as_secs_f64() / STEP) as usize).copied().unwrap_or(0);
        // Started early enough to be ready in time, and never fewer than have work.
        let planned = at(seen.now).max(at(seen.now + self.cold_start + self.interval()));
        planned.max(usize::from(seen.waiting > 0))
    }
}

/// The mean time that requests wait for one of `slots`, if they arrive at random and each takes `service` seconds: Erlang's C formula, and
/// for service that always takes as long the approximation of Cosmetatos (INFOR 13, 1975).
fn mean_wait(rate: f64, service: f64, slots: usize) -> f64 {
    let (load, count) = (rate * service, slots as f64);
    if load <= 0.0 {
        return 0.0;
    }
    let used = load / count;
    if used >= 1.0 {
        return f64::from(u32::MAX) / count;
    }
    let (mut term, mut sum) = (1.0, 1.0);
    for below in 1..slots {
        term *= load / below as f64;
        sum += term;
    }
    let all_busy = term * load / count / (1.0 - used);
    let random = all_busy / (sum + all_busy) * service / (count - load);
    let evenness = (1.0 - used) * (count - 1.0) * ((4.0 + 5.0 * count).sqrt() - 2.0) / (16.0 * used * count);
    random / 2.0 * (1.0 + evenness)
}

impl PartialEq for Saving {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Saving {}

impl PartialOrd for Saving {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Saving {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.seconds.total_cmp(&other.seconds).then(other.step.cmp(&self.step))
    }
}
