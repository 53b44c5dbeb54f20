//! How many rows arrive per second: what waits more than before, and what was done meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

/// Arrivals are counted over so long: shorter follows chance, longer follows late.
const WINDOW: Duration = Duration::from_secs(10);
/// Less says nothing, since hosts report what they have done every other second.
const LEAST: Duration = Duration::from_secs(2);

/// What has arrived lately.
#[derive(Debug, Clone, Default)]
pub struct Arrivals(VecDeque<(Duration, f64)>);

impl Arrivals {
    /// Rows per second, given the rows that are not done and those that ever were.
    pub fn note(&mut self, backlog: f64, done: u64, now: Duration) -> f64 {
        self.0.push_back((now, backlog + done as f64));
        while self.0.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.0.pop_front();
        }
        let Some((since, before)) = self.0.front() else { return 0.0 };
        let passed = now.saturating_sub(*since);
        if passed < LEAST { 0.0 } else { ((backlog + done as f64 - before) / passed.as_secs_f64()).max(0.0) }
    }

    /// It is not known any more what arrived.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_and_what_was_done_both_count() {
        let mut arrivals = Arrivals::default();
        let mut seen = 0.0;
        for second in 0..20_u64 {
            // 30 arrive, 20 are done.
            seen = arrivals.note(second as f64 * 10.0, second * 20, Duration::from_secs(second));
        }
        assert!((seen - 30.0).abs() < 1e-9, "{seen}");
        for second in 20..40 {
            seen = arrivals.note(200.0, 400, Duration::from_secs(second));
        }
        assert_eq!(seen, 0.0, "nothing came for longer than is looked at");
        arrivals.forget();
        assert_eq!(arrivals.note(1000.0, 400, Duration::from_secs(41)), 0.0, "what is there is not what arrives");
    }
}
