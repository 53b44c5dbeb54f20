//! What waits for a slot. Holds the requests; `policy` decides.

mod policy;

use std::time::{Duration, Instant};

use policy::{Decision, Waiting};
pub use policy::{Policy, Room};

/// Requests that wait, and the policy by which they leave.
pub struct Batcher<T> {
    policy: Policy,
    waiting: Vec<(Waiting, T)>,
    next_sequence: u64,
    rows: usize,
    /// No deadline passes before this.
    earliest_deadline: Option<Instant>,
}

/// What the policy needs to know of a request.
pub struct Entry {
    /// Its rows.
    pub rows: usize,
    /// 0 for the most urgent lane.
    pub lane: usize,
    /// When nobody wants the answer any more.
    pub deadline: Option<Instant>,
    /// When it came.
    pub arrived: Instant,
    /// Whether it must not share a batch: it was with a worker that died.
    pub alone: bool,
    /// Requests share a batch only if these agree.
    pub shape: Vec<i64>,
}

/// What to do next.
pub enum Next<T> {
    /// Run these together.
    Run(Vec<T>),
    /// Ask again then, unless something changes first.
    At(Instant),
    /// Nothing until something changes.
    Nothing,
}

impl<T> Batcher<T> {
    /// Empty.
    pub fn new(policy: Policy) -> Self {
        Self { policy, waiting: Vec::new(), next_sequence: 0, rows: 0, earliest_deadline: None }
    }

    /// Adds a request.
    pub fn push(&mut self, entry: Entry, item: T) {
        let Entry { rows, lane, deadline, arrived, alone, shape } = entry;
        let waiting = Waiting { rows, lane, deadline, arrived, alone, shape, sequence: self.next_sequence };
        self.next_sequence += 1;
        self.rows += rows;
        self.earliest_deadline = [self.earliest_deadline, deadline].into_iter().flatten().min();
        self.waiting.push((waiting, item));
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What a person tunes.
    pub fn set_limits(&mut self, max_rows: usize, max_delay: Duration) {
        self.policy.max_rows = max_rows;
        self.policy.max_delay = max_delay;
    }

    /// How long a row takes to run, as measured lately; for closing a batch in time for its earliest deadline.
    pub fn set_row_time(&mut self, row_time: Duration) {
        self.policy.row_time = row_time;
    }

    /// Takes out what is past its deadline.
    pub fn expired(&mut self, now: Instant) -> Vec<T> {
        if self.earliest_deadline.is_none_or(|deadline| deadline > now) {
            return Vec::new();
        }
        let past = |waiting: &Waiting| waiting.deadline.is_some_and(|deadline| deadline <= now);
        let indices: Vec<usize> = (0..self.waiting.len()).filter(|index| past(&self.waiting[*index].0)).collect();
        let expired = self.take(&indices);
        self.earliest_deadline = self.waiting.iter().filter_map(|(waiting, _)| waiting.deadline).min();
        expired
    }

    /// The next batch, if it is time for one. Call [`Batcher::expired`] first.
    pub fn next(&mut self, room: Room, now: Instant) -> Next<T> {
        // The usual case under load, told apart before anything is sorted: slots are busy and no batch is full.
        if self.waiting.is_empty() || (room == Room::NextBatch && self.rows < self.policy.max_rows) {
            return self.at_next_deadline();
        }
        match policy::decide(&self.policy, self.waiting.iter().map(|(waiting, _)| waiting), room, now) {
            Decision::Cut(indices) => Next::Run(self.take(&indices)),
            Decision::WaitUntil(until) => match self.earliest_deadline {
                Some(deadline) => Next::At(until.min(deadline)),
                None => Next::At(until),
            },
            Decision::Nothing => self.at_next_deadline(),
        }
    }

    /// Takes out everything, in no particular order.
    pub fn drain(&mut self) -> Vec<T> {
        self.rows = 0;
        self.earliest_deadline = None;
        self.waiting.drain(..).map(|(_, item)| item).collect()
    }

    fn at_next_deadline(&self) -> Next<T> {
        self.earliest_deadline.map_or(Next::Nothing, Next::At)
    }

    /// Takes out the given ones, in the given order.
    fn take(&mut self, indices: &[usize]) -> Vec<T> {
        let mut chosen: Vec<Option<T>> = indices.iter().map(|_| None).collect();
        let mut order: Vec<(usize, usize)> =
            indices.iter().copied().enumerate().map(|(place, index)| (index, place)).collect();
        order.sort_unstable_by(|one, other| other.cmp(one));
        for (index, place) in order {
            let (waiting, item) = self.waiting.swap_remove(index);
            self.rows -= waiting.rows;
            chosen[place] = Some(item);
        }
        chosen.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests;
