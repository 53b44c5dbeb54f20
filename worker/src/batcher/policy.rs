//! When a batch is cut and what goes into it: a pure function of what waits, where there is room, and the clock.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

/// What the manifest and the measurements say.
#[derive(Debug, Clone)]
pub struct Policy {
    /// No batch has more rows.
    pub max_rows: usize,
    /// How long an idle slot waits for more, from the batch's first request on.
    pub max_delay: Duration,
    /// How long a row takes to run.
    pub row_time: Duration,
}

/// A request that has waited this long goes before others of a more urgent lane, so that none is starved. One entry
/// per lane; the high lane needs none.
const PATIENCE: [Duration; 3] = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(10)];

/// A request, as far as the policy knows it.
#[derive(Debug, Clone)]
pub struct Waiting {
    pub rows: usize,
    pub lane: usize,
    pub deadline: Option<Instant>,
    pub arrived: Instant,
    pub alone: bool,
    pub shape: Vec<i64>,
    /// The order of arrival, for ties.
    pub sequence: u64,
}

/// Where a batch could go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// A slot is idle: it takes what there is, after `max_delay` at most.
    IdleSlot,
    /// All slots run, and one can have its next batch prepared meanwhile: only a full one, since a batch that is not
    /// full still grows.
    NextBatch,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Run these, by their places in what was given.
    Cut(Vec<usize>),
    /// An idle slot waits until then for the batch to grow.
    WaitUntil(Instant),
    /// Nothing, until something changes.
    Nothing,
}

/// Decides on the next batch.
pub fn decide<'w>(policy: &Policy, waiting: impl Iterator<Item = &'w Waiting>, room: Room, now: Instant) -> Decision {
    let waiting: Vec<&Waiting> = waiting.collect();
    let mut order: Vec<usize> = (0..waiting.len()).collect();
    order.sort_by_key(|index| urgency(waiting[*index], now));
    let Some((&lead, rest)) = order.split_first() else { return Decision::Nothing };
    let lead_request = waiting[lead];
    let mut chosen = vec![lead];
    // One that is larger than a batch is run in pieces, by itself.
    if lead_request.alone || lead_request.rows >= policy.max_rows {
        return Decision::Cut(chosen);
    }
    let mut rows = lead_request.rows;
    let mut full = false;
    for &index in rest {
        let request = waiting[index];
        if request.alone || request.shape != lead_request.shape {
            continue;
        }
        if rows + request.rows > policy.max_rows {
            // A smaller one further back may still fit.
            full = true;
            continue;
        }
        rows += request.rows;
        chosen.push(index);
        if rows == policy.max_rows {
            full = true;
            break;
        }
    }
    if full {
        return Decision::Cut(chosen);
    }
    if room == Room::NextBatch {
        return Decision::Nothing;
    }
    let close = close_at(policy, chosen.iter().map(|index| waiting[*index]), rows);
    if close <= now { Decision::Cut(chosen) } else { Decision::WaitUntil(close) }
}

/// The most urgent first: the lane, or its patience being at an end; within a lane the earliest deadline, those
/// without one last, by arrival.
fn urgency(request: &Waiting, now: Instant) -> (Reverse<bool>, usize, bool, Option<Instant>, u64) {
    let waited = now.saturating_duration_since(request.arrived);
    let overdue = request.lane > 0 && waited >= PATIENCE.get(request.lane).copied().unwrap_or_default();
    let lane = if overdue { 0 } else { request.lane };
    (Reverse(overdue), lane, request.deadline.is_none(), request.deadline, request.sequence)
}

/// When a batch that is not full closes: `max_delay` after its first request, or in time for its earliest deadline.
fn close_at<'w>(policy: &Policy, batch: impl Iterator<Item = &'w Waiting>, rows: usize) -> Instant {
    let run_time = policy.row_time * u32::try_from(rows).unwrap_or(u32::MAX);
    let limits = batch.map(|request| {
        let patient = request.arrived + policy.max_delay;
        match request.deadline.and_then(|deadline| deadline.checked_sub(run_time)) {
            Some(latest_start) => patient.min(latest_start),
            None if request.deadline.is_some() => request.arrived,
            None => patient,
        }
    });
    limits.min().unwrap_or_else(Instant::now)
}
