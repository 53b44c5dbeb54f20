//! How many slots a model wants, from round to round.

use super::*;

#[test]
fn slots_come_with_the_first_request_and_go_when_nobody_asks() {
    let mut world = World::new(&[("a", 2), ("b", 2)], Vec::new());
    world.deploy("m", "");
    world.rounds(4);
    assert_eq!(world.slots("m"), "");
    world.wait("m", 1);
    world.round();
    assert_eq!(world.slots("m"), "a: 1");
    world.wait("m", 60);
    world.rounds(2);
    assert_eq!(world.slots("m"), "a: 2, b: 2", "{}", world.explain("m").reason);
    world.wait("m", 0);
    world.rounds(120);
    assert_eq!(world.slots("m"), "");
    let changes: Vec<usize> = world.explain("m").changes.iter().map(|changed| changed.to).collect();
    assert_eq!(changes.first(), Some(&0));
}

#[test]
fn an_outage_or_a_missing_queue_changes_nothing_and_is_said_once() {
    let mut world = World::new(&[("a", 8)], Vec::new());
    world.deploy("m", "");
    world.wait("m", 40);
    world.rounds(4);
    let before = world.slots("m");
    assert!(!before.is_empty());
    world.queues.insert(name("m"), Reading::Unknown("its queue is missing".into()));
    let mut told = 0;
    for _ in 0..1000 {
        told += world.round().troubles.len();
        assert_eq!(world.slots("m"), before);
    }
    assert_eq!(told, 1);
    assert!(world.explain("m").trouble.is_some_and(|trouble| trouble.contains("its queue is missing")));
    // With the hosts away as well, nobody is told anything, and what is known comes back with them.
    world.hosts.clear();
    world.rounds(100);
    world.host("a", 8);
    world.wait("m", 40);
    world.rounds(3);
    assert_eq!(world.slots("m"), before);
}

#[test]
fn a_paused_model_has_its_slots_again_when_its_host_is_back() {
    let mut world = World::new(&[("a", 4)], Vec::new());
    world.deploy("m", "min_slots = 2");
    world.rounds(3);
    world.deploy("m", "min_slots = 2\npaused = true");
    world.hosts.clear();
    world.rounds(20);
    assert_eq!(world.slots("m"), "");
    world.host("a", 4);
    world.rounds(3);
    assert_eq!(world.slots("m"), "a: 2");
}

#[test]
fn finding_out_how_large_requests_are_is_no_arrival() {
    let mut world = World::new(&[("a", 8)], Vec::new());
    world.rows_per_request = 16.0;
    world.deploy("m", "max_slots = 8\ntarget_wait = \"1h\"");
    // They wait for long; only then does a slot come and tell that each is of 16 rows.
    world.wait("m", 100);
    world.rounds(8);
    assert_eq!(world.slots("m"), "a: 1", "{}", world.explain("m").reason);
}
