//! Which of a model's slots nobody needs now, whatever the delays keep, and since when.

use std::time::Duration;

/// What is remembered of it.
#[derive(Debug, Default)]
pub(super) struct Idle {
    /// Rows that were done when this was looked at last.
    done: u64,
    spare: usize,
    /// Since when there is any.
    since: Option<Duration>,
    /// Slots that are needed now.
    needed: usize,
}

impl Idle {
    /// Takes up whether anything waits or runs, the rows done so far, the slots that the work needs if that is known, and those that there are.
    pub(super) fn note(
        &mut self,
        works: bool,
        done: u64,
        needed: Option<usize>,
        has: usize,
        min_slots: usize,
        now: Duration,
    ) {
        let works = works || std::mem::replace(&mut self.done, done) != done;
        self.done = done;
        // What came lately and is done is no reason to keep a slot from whoever waits.
        self.needed = match (needed, works) {
            (None, _) => usize::MAX,
            (Some(_), false) => 0,
            (Some(needed), true) => needed.max(1),
        }
        .max(min_slots);
        self.spare = has.saturating_sub(self.needed);
        self.since = if self.spare > 0 { self.since.or(Some(now)) } else { None };
    }

    /// How many there are, and for how long there have been any.
    pub(super) fn spare(&self, now: Duration) -> (usize, Duration) {
        (self.spare, self.since.map_or(Duration::ZERO, |since| now.saturating_sub(since)))
    }

    /// Slots that are needed now, or are to be there at all times.
    pub(super) fn needed(&self) -> usize {
        self.needed
    }
}
