//! Idle slots make room for a model that has none.

use super::*;

/// Two units of processors, whose slots two models keep though they are idle, one since earlier than the other; requests for a third.
fn two_idle_ones(of_first: &str) -> World {
    let mut world = World::new(&[("a", 2)], Vec::new());
    let delays = "scale_down_delay = \"10m\"\nidle_to_zero = \"10m\"";
    for (model, more) in [("first", of_first), ("second", "")] {
        world.deploy_as(model, &format!("{delays}\n{more}"));
        world.wait(model, 1);
        world.rounds(3);
        world.wait(model, 0);
    }
    world.rounds(10);
    assert_eq!((world.slots("first"), world.slots("second")), ("a: 1".into(), "a: 1".into()));
    world
}

#[test]
fn the_longest_idle_slot_makes_room_at_once_for_a_model_that_has_none() {
    let mut world = two_idle_ones("");
    world.deploy("third", "priority = -1");
    world.wait("third", 1000);
    let changes = world.round().changes;
    assert_eq!((world.slots("third"), world.slots("second")), ("a: 1".into(), "a: 1".into()), "{changes:?}");
    let (model, changed) = changes.iter().find(|(_, changed)| changed.to == 0).expect("one went");
    assert!(*model == name("first") && changed.reason.contains("made room for `third`"), "{changes:?}");
    // One that serves already waits for its share: the other's delay holds.
    world.rounds(20);
    assert_eq!((world.slots("third"), world.slots("second")), ("a: 1".into(), "a: 1".into()));
    let trouble = world.explain("third").trouble.unwrap_or_default();
    assert!(trouble.contains("the room is held by `second` (1 slot, idle for "), "{trouble}");
    assert_eq!(world.explain("first").trouble, None, "it wants nothing");
}

#[test]
fn a_lease_has_devices_that_only_idle_slots_keep_until_somebody_asks_for_one() {
    let mut world = World::new(&[("a", 2)], Vec::new());
    world.deploy_as("m", "scale_down_delay = \"10m\"\nidle_to_zero = \"10m\"");
    world.wait("m", 1);
    world.rounds(3);
    assert!(matches!(world.acquire(&request("training")), Answer::Refused(_)), "it is asked just now");
    world.wait("m", 0);
    world.rounds(10);
    assert_eq!(world.slots("m"), "a: 1", "its delays keep it");
    assert!(matches!(world.acquire(&request("training")), Answer::Lease(_)));
    for _ in 0..40 {
        let ended = world.round().ended;
        assert!(ended.is_empty() && world.slots("m").is_empty(), "{ended:?}, {}", world.slots("m"));
        let Answer::Lease(lease) = world.brain.renew("training", &world.fleet, world.now) else { panic!("it is held") };
        assert!(lease.ending.is_none(), "{:?}", lease.ending);
    }
    // Models come first.
    world.wait("m", 1);
    let mut ended = Vec::new();
    for _ in 0..200 {
        world.brain.renew("training", &world.fleet, world.now);
        ended.extend(world.round().ended);
    }
    assert_eq!((ended.len(), world.slots("m")), (1, "a: 1".into()), "{ended:?}");
}

#[test]
fn whoever_is_asked_just_now_or_is_guaranteed_its_slots_keeps_them() {
    let mut world = two_idle_ones("min_slots = 1");
    world.deploy("third", "");
    world.wait("second", 1);
    world.wait("third", 1000);
    world.rounds(20);
    assert_eq!(world.slots("third"), "", "one keeps a slot at all times, the other has a request");
    let trouble = world.explain("third").trouble.unwrap_or_default();
    assert!(trouble.contains("`first` (1 slot), `second` (1 slot)"), "{trouble}");
    world.wait("second", 0);
    world.rounds(6);
    assert_eq!((world.slots("first"), world.slots("third")), ("a: 1".into(), "a: 1".into()));
}

#[test]
fn a_device_for_itself_becomes_free_of_idle_slots_only_where_that_is_enough() {
    let mut world = two_idle_ones("");
    world.deploy("third", "min_slots = 1\n[resources]\nsharing = \"exclusive\"");
    world.rounds(2);
    assert_eq!((world.slots("first"), world.slots("second"), world.slots("third")).2, "a: 1");
    let mut world = two_idle_ones("min_slots = 1");
    world.deploy("third", "min_slots = 1\n[resources]\nsharing = \"exclusive\"");
    world.rounds(6);
    assert_eq!(
        (world.slots("second"), world.slots("third")),
        ("a: 1".into(), String::new()),
        "that would not be enough"
    );
}
