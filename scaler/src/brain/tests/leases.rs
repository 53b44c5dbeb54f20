//! What a leader is asked, and what it learns from hosts: leases and gates.

use super::*;

#[test]
fn a_new_leader_begins_where_the_old_one_ended() {
    let mut world = World::new(&[("a", 4), ("b", 4)], Vec::new());
    world.deploy("m", "min_slots = 3");
    world.rounds(3);
    let request = LeaseRequest { host: Some("b".into()), ..request("training") };
    assert!(matches!(world.acquire(&request), Answer::Lease(_)));
    world.rounds(2);
    assert_eq!(world.slots("m"), "a: 3", "a lent device is left");
    let Answer::Lease(lease) = world.brain.renew("training", &world.fleet, world.now) else { panic!("it is held") };
    assert!(lease.free && lease.ending.is_none());
    // The hosts carry everything over.
    world.brain = Brain::new(Vec::new());
    world.round();
    assert_eq!(world.slots("m"), "a: 3");
    assert!(matches!(world.brain.renew("training", &world.fleet, world.now), Answer::Lease(_)));
    world.brain.release("training", &world.fleet, world.now);
    world.deploy("m", "min_slots = 6");
    world.rounds(2);
    assert_eq!(world.slots("m"), "a: 3, b: 3");
}

#[test]
fn what_is_wrong_with_a_question_is_said() {
    let mut world = World::new(&[("a", 4)], Vec::new());
    world.round();
    let refused = |answer: Answer| match answer {
        Answer::Refused(reason) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(world.brain.explain(&name("m"))).contains("model `m` is not deployed"));
    assert!(refused(world.brain.set_gate("z", Gate::Drained, &world.fleet, world.now)).contains("no host `z`"));
    assert!(refused(world.brain.renew("z", &world.fleet, world.now)).contains("has ended"));
    let request = LeaseRequest { devices: 2, ..request("x") };
    assert!(refused(world.acquire(&request)).contains("1 could be lent"));
    assert!(refused(world.brain.release("z", &world.fleet, world.now)).contains("no lease `z`"));
    let elsewhere = LeaseRequest { host: Some("z".into()), ..request };
    assert!(refused(world.acquire(&elsewhere)).contains("no host `z`"));
    // What is too much is refused before anything of it is used.
    let deep = LeaseRequest { group: ["a"; 100_000].join("/"), ..elsewhere.clone() };
    assert!(refused(world.acquire(&deep)).contains("is no group"));
    // Asking twice is asking once, but for nobody else.
    let request = LeaseRequest { devices: 1, host: None, ..elsewhere };
    for _ in 0..2 {
        assert!(matches!(world.acquire(&request), Answer::Lease(_)));
    }
    let other = LeaseRequest { holder: "bob".into(), ..request };
    assert!(refused(world.acquire(&other)).contains("held by ada"));
    assert!(matches!(world.brain.renew("x", &world.fleet, world.now), Answer::Lease(_)), "it is still ada's");
    assert!(matches!(world.brain.release("x", &world.fleet, world.now), Answer::Done));
}

#[test]
fn two_leases_between_rounds_cannot_both_have_the_last_of_a_share() {
    let mut world = World::new(&[("a", 2), ("b", 2)], Vec::new());
    world.deploy("m", "min_slots = 2");
    world.rounds(3);
    assert!(matches!(world.acquire(&request("one")), Answer::Lease(_)));
    assert!(matches!(world.acquire(&request("two")), Answer::Refused(_)));
    // Nor does whoever comes after the first wait for the next round.
    assert!(matches!(world.brain.release("one", &world.fleet, world.now), Answer::Done));
    assert!(matches!(world.acquire(&request("two")), Answer::Lease(_)));
}

#[test]
fn a_lease_ends_for_a_model_that_can_run_nowhere_else() {
    let mut world = World::new(&[("a", 2), ("b", 2)], Vec::new());
    let request = LeaseRequest { host: Some("b".into()), ..request("training") };
    world.round();
    assert!(matches!(world.acquire(&request), Answer::Lease(_)));
    world.deploy("m", "min_slots = 1\nselector = { name = \"b\" }");
    world.rounds(20);
    assert!(world.explain("m").trouble.is_some_and(|trouble| trouble.contains("lent")), "{:?}", world.explain("m"));
    let mut ended = Vec::new();
    for _ in 0..200 {
        world.brain.renew("training", &world.fleet, world.now);
        ended.extend(world.round().ended);
    }
    assert_eq!((ended.len(), world.slots("m")), (1, "b: 1".into()), "{ended:?}");
}

#[test]
fn a_lease_that_a_guaranteed_minimum_covers_does_not() {
    let research = Group { name: "research".into(), weight: 1.0, minimum: 2 };
    let mut world = World::new(&[("a", 2), ("b", 2)], vec![research]);
    let request = LeaseRequest { host: Some("b".into()), ..request("training") };
    world.round();
    assert!(matches!(world.acquire(&request), Answer::Lease(_)));
    world.deploy("m", "min_slots = 1\nselector = { name = \"b\" }");
    for _ in 0..300 {
        world.brain.renew("training", &world.fleet, world.now);
        assert!(world.round().ended.is_empty());
    }
    assert_eq!(world.slots("m"), "");
}

#[test]
fn draining_a_host_ends_the_leases_of_its_devices_and_no_other() {
    let mut world = World::new(&[("a", 2), ("b", 2)], Vec::new());
    world.round();
    for (id, host) in [("one", "a"), ("two", "b")] {
        assert!(matches!(world.acquire(&LeaseRequest { host: Some(host.into()), ..request(id) }), Answer::Lease(_)));
    }
    world.round();
    assert!(matches!(world.brain.set_gate("a", Gate::Drained, &world.fleet, world.now), Answer::Done));
    let mut ended = Vec::new();
    for _ in 0..100 {
        world.brain.renew("one", &world.fleet, world.now);
        world.brain.renew("two", &world.fleet, world.now);
        ended.extend(world.round().ended);
    }
    let [(id, reason)] = &ended[..] else { panic!("{ended:?}") };
    assert!(id == "one" && reason.contains("drained"), "{reason}");
}

#[test]
fn a_gate_is_kept_while_its_host_is_silent_and_forgotten_with_it() {
    let mut world = World::new(&[("a", 2), ("b", 2)], Vec::new());
    world.deploy("m", "min_slots = 4");
    world.rounds(3);
    assert!(matches!(world.brain.set_gate("a", Gate::Drained, &world.fleet, world.now), Answer::Done));
    world.rounds(2);
    let a = world.hosts.remove("a").expect("it is there");
    // A new leader, who listened before it led.
    world.rounds(10);
    world.brain = Brain::new(Vec::new());
    world.rounds(4);
    world.hosts.insert("a".into(), a.clone());
    world.rounds(4);
    assert_eq!(world.slots("m"), "b: 2", "it is drained still");
    // For so long that it is another host of the same name.
    world.hosts.remove("a");
    world.rounds(1300);
    world.told.remove("a");
    world.hosts.insert("a".into(), a);
    world.rounds(4);
    assert_eq!(world.slots("m"), "a: 2, b: 2");
}
