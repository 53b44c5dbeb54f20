//! Synthetic traffic.

use std::time::Duration;

use super::Case;

/// Four hours of traffic of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Trace {
    /// What it is called.
    pub name: &'static str,
    /// Requests per second at a time in seconds.
    pub(super) rate: fn(f64) -> f64,
}

pub(super) const HOURS: f64 = 4.0;

/// The kinds of traffic that a rule must cope with.
pub const TRACES: [Trace; 6] = [
    Trace { name: "steady", rate: |_| 25.0 },
    Trace { name: "bursty", rate: |at| if at % 600.0 < 20.0 { 60.0 } else { 4.0 } },
    Trace { name: "on/off", rate: |at| if at % 1200.0 < 600.0 { 30.0 } else { 0.0 } },
    Trace { name: "noisy", rate: |at| 20.0 * (1.0 + 0.6 * (at / 7.0).sin() * (at / 31.0).cos()) },
    Trace { name: "daily", rate: |at| 20.0 * (1.0 - (at * std::f64::consts::TAU / (3600.0 * HOURS)).cos()) },
    Trace { name: "rare", rate: |at| if at % 1800.0 < 5.0 { 2.0 } else { 0.0 } },
];

impl Trace {
    /// The arrivals, as many as are asked of this model: a Poisson process whose rate changes, by thinning (Lewis and Shedler, 1979).
    pub fn arrivals(&self, case: &Case) -> Vec<Duration> {
        let mut chance = Chance(0x5eed);
        let end = HOURS * 3600.0;
        let rate = |at: f64| (self.rate)(at) * case.scale;
        let largest = (0..(end as u64)).map(|at| rate(at as f64)).fold(0.0, f64::max).max(1e-9) * 1.05;
        let mut arrivals = Vec::new();
        let mut at = 0.0;
        loop {
            at -= (1.0 - chance.next()).ln() / largest;
            if at >= end {
                return arrivals;
            }
            if chance.next() * largest < rate(at) {
                arrivals.push(Duration::from_secs_f64(at));
            }
        }
    }
}

/// Numbers from 0 to 1 (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}
