//! Which lanes cannot be received from, since their consumer is gone or does not answer: when to ask again, and when to tell.
//! Knows nothing of messages.

use std::time::Duration;

use tokio::time::Instant;

use sluice_core::Lane;

/// How long a lane may be deaf before anybody is told: a consumer that changes its leader is, for a moment.
const MOMENT: Duration = Duration::from_secs(1);
/// The pause between two orders to a consumer that is gone.
const AGAIN: Duration = Duration::from_millis(250);
/// How often it is told as long as it lasts.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Why a lane cannot be received from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Nobody is there who takes orders.
    Gone,
    /// Orders were not answered.
    Silent,
}

#[derive(Debug, Clone, Copy)]
struct Lost {
    since: Instant,
    /// When it was found so last.
    found: Instant,
    /// Not asked before this.
    again: Instant,
    why: Why,
}

/// The lanes that cannot be received from.
#[derive(Debug, Default)]
pub(super) struct Deaf {
    lanes: [Option<Lost>; 3],
    told: Option<Instant>,
}

impl Deaf {
    /// An order was refused, or lost.
    pub(super) fn lost(&mut self, lane: Lane, why: Why, now: Instant) {
        let place = &mut self.lanes[lane.index()];
        let since = place.map_or(now, |lost| lost.since);
        let pause = if why == Why::Gone { AGAIN } else { Duration::ZERO };
        *place = Some(Lost { since, found: now, again: now + pause, why });
    }

    /// An order was answered.
    pub(super) fn heard(&mut self, lane: Lane) {
        self.lanes[lane.index()] = None;
    }

    /// Whether a lane may be asked.
    pub(super) fn may_ask(&self, lane: Lane, now: Instant) -> bool {
        self.lanes[lane.index()].is_none_or(|lost| lost.again <= now)
    }

    /// When a lane that may not be asked now may be.
    pub(super) fn next_try(&self, now: Instant) -> Option<Instant> {
        self.lanes.iter().flatten().map(|lost| lost.again).filter(|again| *again > now).min()
    }

    /// The lane that has been deaf for longest, if that is more than a moment.
    pub(super) fn longest(&self, now: Instant) -> Option<(Lane, Why)> {
        let deaf = Lane::ALL.into_iter().filter_map(|lane| Some((lane, self.lanes[lane.index()]?)));
        let (lane, lost) = deaf.min_by_key(|(_, lost)| lost.since)?;
        (now - lost.since >= MOMENT).then_some((lane, lost.why))
    }

    /// The same, if it is to be told now.
    pub(super) fn news(&mut self, now: Instant) -> Option<(Lane, Why)> {
        let found = self.longest(now)?;
        // An order that is out since then may be answered later than that.
        let is_out = self.lanes[found.0.index()].is_none_or(|lost| now - lost.found > 2 * AGAIN);
        if is_out || self.told.is_some_and(|told| now - told < TOLD_EVERY) {
            return None;
        }
        self.told = Some(now);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_not_told_and_what_lasts_is_told_each_second_until_it_is_heard_of() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut deaf = Deaf::default();
        deaf.lost(Lane::Low, Why::Gone, at(0));
        assert!(!deaf.may_ask(Lane::Low, at(100)) && deaf.may_ask(Lane::High, at(100)));
        assert_eq!(deaf.next_try(at(100)), Some(at(250)));
        assert!(deaf.may_ask(Lane::Low, at(250)));
        assert_eq!(deaf.news(at(900)), None, "a change of leader");
        deaf.lost(Lane::Low, Why::Gone, at(900));
        assert_eq!(deaf.news(at(1000)), Some((Lane::Low, Why::Gone)), "it counts from the first");
        assert_eq!(deaf.news(at(1500)), None);
        assert_eq!(deaf.longest(at(1500)), Some((Lane::Low, Why::Gone)));
        assert_eq!(deaf.news(at(2000)), None, "it was asked since, and has not refused");
        deaf.lost(Lane::Low, Why::Gone, at(2000));
        assert_eq!(deaf.news(at(2100)), Some((Lane::Low, Why::Gone)));
        deaf.heard(Lane::Low);
        assert_eq!((deaf.longest(at(2500)), deaf.next_try(at(2500))), (None, None));
    }
}
