//! The policy by tables, and the promise that every request leaves exactly once.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn policy(max_rows: usize, max_delay: Duration) -> Policy {
    Policy { max_rows, max_delay, row_time: Duration::ZERO }
}

fn entry(rows: usize, arrived: Instant) -> Entry {
    Entry { rows, lane: 1, deadline: None, arrived, alone: false, shape: vec![] }
}

fn run<T>(next: Next<T>) -> Vec<T> {
    match next {
        Next::Run(batch) => batch,
        Next::At(_) => panic!("it waits"),
        Next::Nothing => panic!("it does nothing"),
    }
}

#[test]
fn an_idle_slot_takes_what_there_is_at_once() {
    let now = Instant::now();
    let mut batcher = Batcher::new(policy(8, Duration::ZERO));
    batcher.push(entry(1, now), "a");
    batcher.push(entry(2, now), "b");
    assert_eq!(run(batcher.next(Room::IdleSlot, now)), ["a", "b"]);
    assert_eq!((batcher.len(), batcher.rows), (0, 0));
}

#[test]
fn with_a_delay_it_waits_from_the_first_request_on_or_until_the_batch_is_full() {
    let now = Instant::now();
    let mut batcher = Batcher::new(policy(4, 10 * MS));
    batcher.push(entry(1, now), "a");
    batcher.push(entry(1, now + 6 * MS), "b");
    match batcher.next(Room::IdleSlot, now + 7 * MS) {
        Next::At(at) => assert_eq!(at, now + 10 * MS, "counted from the first, not from the last"),
        _ => panic!("it should wait"),
    }
    assert_eq!(run(batcher.next(Room::IdleSlot, now + 10 * MS)), ["a", "b"]);
    batcher.push(entry(3, now), "c");
    batcher.push(entry(1, now), "d");
    assert_eq!(run(batcher.next(Room::IdleSlot, now)), ["c", "d"], "full");
}

#[test]
fn a_batch_closes_in_time_for_its_earliest_deadline() {
    let now = Instant::now();
    let mut batcher = Batcher::new(Policy { row_time: 5 * MS, ..policy(8, 100 * MS) });
    batcher.push(Entry { deadline: Some(now + 50 * MS), ..entry(2, now) }, "a");
    match batcher.next(Room::IdleSlot, now) {
        Next::At(at) => assert_eq!(at, now + 40 * MS, "two rows take 10 ms"),
        _ => panic!("it should wait"),
    }
    assert_eq!(run(batcher.next(Room::IdleSlot, now + 40 * MS)), ["a"]);
}

#[test]
fn while_slots_run_only_a_full_batch_is_prepared() {
    let now = Instant::now();
    let mut batcher = Batcher::new(policy(4, Duration::ZERO));
    for name in ["a", "b", "c"] {
        batcher.push(entry(1, now), name);
    }
    assert!(matches!(batcher.next(Room::NextBatch, now), Next::Nothing), "it may still grow");
    batcher.push(entry(1, now), "d");
    assert_eq!(run(batcher.next(Room::NextBatch, now)).len(), 4);
}

#[test]
fn the_urgent_lane_goes_first_then_the_earliest_deadline_then_arrival() {
    let now = Instant::now();
    let mut batcher = Batcher::new(policy(2, Duration::ZERO));
    let far = Some(now + Duration::from_secs(9));
    let near = Some(now + Duration::from_secs(1));
    batcher.push(Entry { lane: 2, ..entry(1, now) }, "low");
    batcher.push(entry(1, now), "no deadline");
    batcher.push(Entry { deadline: far, ..entry(1, now) }, "far");
    batcher.push(Entry { deadline: near, ..entry(1, now) }, "near");
    batcher.push(Entry { lane: 0, ..entry(1, now) }, "high");
    let mut order = Vec::new();
    while batcher.len() > 0 {
        order.extend(run(batcher.next(Room::IdleSlot, now)));
    }
    assert_eq!(order, ["high", "near", "far", "no deadline", "low"]);
}

#[test]
fn no_lane_is_starved() {
    let start = Instant::now();
    let mut batcher = Batcher::new(policy(1, Duration::ZERO));
    batcher.push(Entry { lane: 2, ..entry(1, start) }, "low");
    let mut now = start;
    for _ in 0..2000 {
        // More urgent work never ends.
        batcher.push(Entry { lane: 0, ..entry(1, now) }, "high");
        if run(batcher.next(Room::IdleSlot, now)) == ["low"] {
            return;
        }
        now += 10 * MS;
    }
    panic!("the low lane did not get a turn in 20 s");
}

#[test]
fn shapes_do_not_mix_and_what_fell_out_of_favour_runs_alone() {
    let now = Instant::now();
    let mut batcher = Batcher::new(policy(8, Duration::ZERO));
    batcher.push(Entry { shape: vec![7], ..entry(1, now) }, "seven");
    batcher.push(Entry { shape: vec![9], ..entry(1, now) }, "nine");
    batcher.push(Entry { shape: vec![7], ..entry(1, now) }, "also seven");
    batcher.push(Entry { alone: true, shape: vec![7], ..entry(1, now) }, "alone");
    assert_eq!(run(batcher.next(Room::IdleSlot, now)), ["seven", "also seven"]);
    assert_eq!(run(batcher.next(Room::IdleSlot, now)), ["nine"]);
    assert_eq!(run(batcher.next(Room::IdleSlot, now)), ["alone"]);
}

#[test]
fn what_is_past_its_deadline_is_never_run() {
    let now = Instant::now();
    let mut batcher = Batcher::new(policy(8, Duration::ZERO));
    batcher.push(Entry { deadline: Some(now + 5 * MS), ..entry(1, now) }, "late");
    batcher.push(entry(1, now), "patient");
    assert!(batcher.expired(now).is_empty());
    match batcher.next(Room::NextBatch, now) {
        Next::At(at) => assert_eq!(at, now + 5 * MS, "it asks to be woken to answer at once"),
        _ => panic!("it should wait"),
    }
    assert_eq!(batcher.expired(now + 5 * MS), ["late"]);
    assert_eq!(run(batcher.next(Room::IdleSlot, now + 5 * MS)), ["patient"]);
}

proptest! {
    /// Whatever comes in whatever order, each request leaves exactly once, and no batch is too large or mixed.
    #[test]
    fn every_request_leaves_exactly_once(
        requests in prop::collection::vec(
            (1..40_usize, 0..3_usize, prop::option::of(0..200_u32), any::<bool>(), 0..3_i64, 0..20_u32), 1..120),
        max_rows in 1..33_usize,
        max_delay in 0..20_u32,
        idle in prop::collection::vec(any::<bool>(), 1..16),
    ) {
        let start = Instant::now();
        let mut now = start;
        let mut batcher = Batcher::new(policy(max_rows, max_delay * MS));
        let mut left = vec![0; requests.len()];
        let mut turn = 0;
        let mut step = |batcher: &mut Batcher<usize>, now: Instant| -> Result<bool, TestCaseError> {
            for item in batcher.expired(now) {
                left[item] += 1;
                prop_assert!(requests[item].2.is_some(), "only what has a deadline expires");
            }
            turn += 1;
            let room = if idle[turn % idle.len()] { Room::IdleSlot } else { Room::NextBatch };
            if let Next::Run(batch) = batcher.next(room, now) {
                prop_assert!(!batch.is_empty());
                let rows: usize = batch.iter().map(|item| requests[*item].0).sum();
                prop_assert!(rows <= max_rows || batch.len() == 1, "{rows} rows of {max_rows}");
                for item in &batch {
                    left[*item] += 1;
                    prop_assert_eq!(requests[*item].4, requests[batch[0]].4, "shapes are mixed");
                    prop_assert!(!requests[*item].3 || batch.len() == 1, "one that must run alone does not");
                }
            }
            Ok(batcher.len() == 0)
        };
        for (index, (rows, lane, deadline, alone, shape, pause)) in requests.iter().cloned().enumerate() {
            now += pause * MS;
            let deadline = deadline.map(|deadline| now + deadline * MS);
            batcher.push(Entry { rows, lane, deadline, arrived: now, alone, shape: vec![shape] }, index);
            step(&mut batcher, now)?;
        }
        for _ in 0..2000 {
            now += 5 * MS;
            if step(&mut batcher, now)? && batcher.len() == 0 {
                break;
            }
            if !idle.contains(&true) {
                // Without an idle slot only full batches leave: end as a drain does.
                for item in batcher.drain() {
                    left[item] += 1;
                }
                break;
            }
        }
        prop_assert!(left.iter().all(|times| *times == 1), "{left:?}");
        prop_assert_eq!(batcher.rows, 0);
    }
}
