//! How many slots a model needs: a pure function of what waits, what arrives, how long a row takes, and the clock.
//!
//! It aims at time. With `w` rows that no slot runs yet, `a` rows arriving per second, `s` seconds a row takes on one slot, and `t` seconds in
//! which the backlog is to be gone, `w * s / t + a * s` slots are busy all the time: the first part clears the backlog, the second keeps up
//! with what arrives meanwhile. Some more are there for what arrives in clusters. If that is more than there are, `t` is shorter by the
//! time that a new slot takes to be ready, but never shorter than one request takes. What runs has its slot already, and asks for no other.

mod reason;

use std::collections::VecDeque;
use std::time::Duration;

use sluice_core::broker::Reading;
pub use sluice_core::manifest::Scaling;

pub use reason::{Bound, Need, Reason, Step};

/// Slots that there are may be over-booked by this share before another is started.
const SLACK: f64 = 0.15;

/// What arrives comes in clusters: of `n` slots' load on average, so many times its square root more are needed to keep the queue short, and to
/// keep each cluster from starting a slot (square-root staffing: Halfin and Whitt, Operations Research 29, 1981). More than half of the root
/// shortens waiting by little, and costs slots.
const HEADROOM: f64 = 0.5;

/// How much work there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// Rows that no slot runs yet, whoever has them.
    pub waiting: u64,
    /// Rows that slots run.
    pub running: u64,
}

/// All that a decision about one model rests on.
#[derive(Debug, Clone)]
pub struct Demand {
    /// What is wanted.
    pub scaling: Scaling,
    /// How much work there is; unknown is not none.
    pub lag: Reading<Lag>,
    /// Rows that arrive per second, as counted lately; exactly 0 if none did.
    pub arrivals: f64,
    /// How long a row takes on one slot; `None` before the first was measured.
    pub row_time: Option<Duration>,
    /// Rows of a request, which one slot runs one after the other.
    pub rows_per_request: f64,
    /// How long a new slot takes until it is ready.
    pub cold_start: Duration,
    /// Slots that serve or are on their way to.
    pub slots: usize,
}

/// What a decision leaves to the next one about the same model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Needs of the last `scale_down_delay`, each with its time: only the largest so far of each moment, so that the first is the
    /// largest of all.
    needs: VecDeque<(Duration, usize)>,
    /// When there was work last.
    last_work: Option<Duration>,
    /// When a slot was taken away last.
    last_down: Option<Duration>,
    /// Since when needs are known without a gap.
    known_since: Option<Duration>,
}

/// How many slots there should be, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// How many.
    pub slots: usize,
    /// With the numbers.
    pub reason: Reason,
}

/// Decides. `now` is the time since any fixed moment, and only grows.
pub fn decide(demand: &Demand, history: &mut History, now: Duration) -> Decision {
    let Demand { scaling, slots, .. } = demand;
    if scaling.paused {
        history.needs.clear();
        history.known_since = None;
        return Decision { slots: *slots, reason: Reason::Paused(*slots) };
    }
    let lag = match &demand.lag {
        Reading::Known(lag) => *lag,
        Reading::Unknown(why) => {
            // What was needed meanwhile is not known either: the delay begins anew.
            history.needs.clear();
            history.known_since = None;
            history.last_work = Some(now);
            return Decision { slots: *slots, reason: Reason::Unknown(*slots, why.clone()) };
        }
    };
    let (need, why) = need(demand, lag);
    if lag.waiting + lag.running > 0 || demand.arrivals > 0.0 {
        history.last_work = Some(now);
    }
    history.note(need, now, scaling.scale_down_delay);
    let allowed = scaling.max_slots.max(scaling.min_slots);
    let bounded = need.clamp(scaling.min_slots, allowed);
    let (bound, slots, step) = if *slots > allowed {
        // Somebody has set it lower: that is no guess about what will be needed, and waits for nothing.
        (Bound::Max(allowed), allowed, Step::Capped(*slots))
    } else if bounded > *slots {
        (Bound::of(need, bounded), bounded, Step::Up(*slots))
    } else if bounded == *slots {
        (Bound::of(need, bounded), bounded, Step::Stay)
    } else {
        let step = down(demand, history, now, bounded);
        (Bound::of(need, bounded), slots - usize::from(matches!(step, Step::Down(..))), step)
    };
    Decision { slots, reason: Reason::Work(why, bound, step) }
}

/// The slots that the work needs, whatever is allowed.
fn need(demand: &Demand, lag: Lag) -> (usize, Need) {
    let Lag { waiting, running } = lag;
    if waiting + running == 0 && demand.arrivals <= 0.0 {
        return (0, Need::None);
    }
    let Some(row_time) = demand.row_time else {
        // One slot tells how long a row takes; more before that would be a guess.
        return (1, Need::Unmeasured { rows: waiting + running });
    };
    let seconds = row_time.as_secs_f64();
    // However many slots there are, what runs there now takes so long to make room.
    let request = seconds * demand.rows_per_request.max(1.0);
    let target = demand.scaling.target_wait.as_secs_f64().max(request);
    let load = demand.arrivals * seconds;
    let needed_within = |time: f64| waiting as f64 * seconds / time + load + HEADROOM * load.sqrt();
    let of = |slots: f64| (slots - 1e-9).ceil().max(0.0) as usize;
    let mut within = target;
    let mut slots = of(needed_within(within));
    if slots > demand.slots && needed_within(within) <= demand.slots as f64 * (1.0 + SLACK) {
        // What arrives comes and goes by chance. If it is really more, the backlog grows and says so.
        slots = demand.slots;
    }
    if slots > demand.slots {
        // Whoever is started now comes late: less than half of the time is never counted on.
        within = (target - demand.cold_start.as_secs_f64()).max(target / 2.0).max(request);
        slots = of(needed_within(within));
    }
    // Something waits or runs: one at least.
    slots = slots.max(usize::from(waiting + running > 0));
    (slots, Need::Slots { waiting, running, row_time, arrivals: demand.arrivals, within, slots })
}

impl History {
    fn note(&mut self, need: usize, now: Duration, kept: Duration) {
        self.known_since.get_or_insert(now);
        while self.needs.back().is_some_and(|(_, earlier)| *earlier <= need) {
            self.needs.pop_back();
        }
        self.needs.push_back((now, need));
        // One that is older stays until a younger one is as old: it counts to the end of the time.
        while self.needs.front().is_some_and(|(at, _)| now.saturating_sub(*at) > kept) {
            self.needs.pop_front();
        }
    }

    /// The most that was needed lately.
    fn most(&self) -> usize {
        self.needs.front().map_or(0, |(_, need)| *need)
    }
}

/// One slot less, if as many were not needed for long enough; none at all only if nobody has asked for long enough.
fn down(demand: &Demand, history: &mut History, now: Duration, bounded: usize) -> Step {
    let Demand { scaling, slots, .. } = demand;
    let known_for = history.known_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
    let delay = scaling.scale_down_delay;
    let most = history.most().max(bounded);
    if known_for < delay || most >= *slots {
        return Step::NotYet(*slots, delay);
    }
    if *slots == 1 {
        let idle = history.last_work.map_or(known_for, |at| now.saturating_sub(at));
        if idle < scaling.idle_to_zero {
            return Step::LastStays(scaling.idle_to_zero);
        }
    }
    // One step at a time, so that each shows what the next would cost; the more there are too many, the faster.
    let pause = delay / u32::try_from(*slots - most).unwrap_or(u32::MAX).max(1);
    if history.last_down.is_some_and(|at| now.saturating_sub(at) < pause) {
        return Step::Paced;
    }
    history.last_down = Some(now);
    Step::Down(*slots, most, delay)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn demand(waiting: u64, arrivals: f64, slots: usize) -> Demand {
        let scaling = Scaling { scale_down_delay: seconds(15), idle_to_zero: seconds(60), ..Scaling::default() };
        Demand {
            scaling,
            lag: Reading::Known(Lag { waiting, running: 0 }),
            arrivals,
            row_time: Some(Duration::from_millis(100)),
            rows_per_request: 1.0,
            cold_start: Duration::from_millis(500),
            slots,
        }
    }

    fn once(demand: &Demand) -> usize {
        decide(demand, &mut History::default(), seconds(100)).slots
    }

    #[test]
    fn the_backlog_and_what_arrives_decide_together() {
        let cases = [
            ("nothing", demand(0, 0.0, 0), 0),
            ("the first request", demand(1, 0.0, 0), 1),
            ("20 rows of 0.1 s in 2 s", demand(20, 0.0, 1), 1),
            ("arrivals alone: 25 per second", demand(0, 25.0, 3), 3),
            ("arrivals alone: 36 per second, and 0.95 slots for clusters", demand(0, 36.0, 0), 5),
            ("1 for the backlog, 2 for arrivals and 0.7 for clusters", demand(20, 20.0, 4), 4),
            ("a little over-booked", demand(2, 25.0, 3), 3),
            ("no longer a little", demand(6, 25.0, 3), 4),
            ("1.5 s are left once new slots are ready", demand(60, 0.0, 1), 4),
            ("no more than allowed", demand(10_000, 0.0, 1), 8),
        ];
        for (what, demand, slots) in cases {
            assert_eq!(once(&demand), slots, "{what}");
        }
        assert_eq!(once(&demand(10_000, 0.0, 20)), 8, "a bound set lower holds at once");
        let kept = Demand { scaling: Scaling { min_slots: 2, ..Scaling::default() }, ..demand(0, 0.0, 0) };
        assert_eq!(once(&kept), 2);
        let unmeasured = Demand { row_time: None, ..demand(500, 50.0, 0) };
        assert_eq!(once(&unmeasured), 1);
    }

    #[test]
    fn what_runs_asks_for_no_slot_and_nothing_is_hurried_beyond_what_a_request_takes() {
        let slow = |waiting, running, arrivals, slots| {
            let scaling = Scaling { max_slots: 64, ..Scaling::default() };
            let lag = Reading::Known(Lag { waiting, running });
            let (row_time, cold_start) = (Some(seconds(3)), seconds(30));
            Demand { scaling, lag, row_time, cold_start, ..demand(0, arrivals, slots) }
        };
        let cases = [
            ("8 run on their slots", slow(0, 8, 0.0, 8), 8),
            ("2 a second are 6 slots' load, and 1.2 for clusters", slow(0, 6, 2.0, 6), 8),
            (
                "what waits is begun within the 3 s of a request, not within the 1 s of half an aim",
                slow(6, 8, 0.0, 1),
                6,
            ),
            ("the last runs", slow(0, 1, 0.0, 0), 1),
            ("12 s, since requests have four rows", Demand { rows_per_request: 4.0, ..slow(12, 0, 0.0, 1) }, 3),
        ];
        for (what, demand, slots) in cases {
            assert_eq!(once(&demand), slots, "{what}");
        }
    }

    #[test]
    fn unknown_lag_holds_what_there_is_and_the_delay_begins_anew() {
        let mut history = History::default();
        let unknown = Demand { lag: Reading::Unknown("the broker is away".into()), ..demand(0, 0.0, 5) };
        for at in 0..1000 {
            let decision = decide(&unknown, &mut history, seconds(at));
            assert_eq!(decision.slots, 5);
            assert!(decision.reason.to_string().contains("the broker is away"));
        }
        let idle = demand(0, 0.0, 5);
        assert_eq!(decide(&idle, &mut history, seconds(1000)).slots, 5, "it was not known to be idle before");
        assert_eq!(decide(&idle, &mut history, seconds(1016)).slots, 4);
    }

    /// The times at which the number of slots changes, if each decision is carried out at once.
    fn changes(demand: &mut Demand, history: &mut History, from: u64, to: u64) -> Vec<(u64, usize)> {
        let mut changes = Vec::new();
        for at in from..to {
            let slots = decide(demand, history, seconds(at)).slots;
            if slots != demand.slots {
                changes.push((at, slots));
                demand.slots = slots;
            }
        }
        changes
    }

    #[test]
    fn down_comes_late_in_steps_and_zero_last() {
        let mut history = History::default();
        let mut busy = demand(0, 25.0, 3);
        assert_eq!(changes(&mut busy, &mut history, 0, 60), []);
        let mut idle = Demand { slots: 3, ..demand(0, 0.0, 3) };
        // Nothing before 15 s without need; the last after a minute without a request, which came at 59 s.
        let seen = changes(&mut idle, &mut history, 60, 200);
        assert_eq!(seen.iter().map(|(_, slots)| *slots).collect::<Vec<_>>(), [2, 1, 0]);
        assert!(seen[0].0 >= 75 && seen[1].0 > seen[0].0 && seen[2].0 == 119, "{seen:?}");
    }

    #[test]
    fn a_short_lull_takes_nothing_away() {
        let mut history = History::default();
        for round in 0..20 {
            let from = round * 20;
            assert_eq!(changes(&mut demand(0, 25.0, 3), &mut history, from, from + 10), []);
            assert_eq!(changes(&mut demand(0, 0.0, 3), &mut history, from + 10, from + 20), []);
        }
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds_and_goes_down_by_one_at_most(
            steps in prop::collection::vec((0..500_u64, 0.0..200.0_f64, any::<bool>()), 1..200),
            min in 0..4_usize,
            spread in 0..10_usize,
        ) {
            let scaling = Scaling { min_slots: min, max_slots: min + spread, ..Scaling::default() };
            let mut history = History::default();
            let mut slots = min;
            for (at, (waiting, arrivals, known)) in steps.into_iter().enumerate() {
                let lag = match known {
                    true => Reading::Known(Lag { waiting, running: 0 }),
                    false => Reading::Unknown("no answer".into()),
                };
                let demand = Demand { scaling: scaling.clone(), lag, ..demand(0, arrivals, slots) };
                let decision = decide(&demand, &mut history, seconds(at as u64));
                prop_assert!(decision.slots >= min && decision.slots <= min + spread);
                prop_assert!(decision.slots + 1 >= slots, "{} slots after {slots}", decision.slots);
                if !known {
                    prop_assert_eq!(decision.slots, slots);
                }
                if known && waiting > 0 && spread + min > 0 {
                    prop_assert!(decision.slots > 0, "something waits");
                }
                slots = decision.slots;
            }
        }
    }
}
