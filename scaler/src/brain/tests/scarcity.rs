//! What happens when there is not room for all.

use std::collections::BTreeSet;

use super::*;

#[test]
fn a_model_that_fits_nowhere_says_so_once() {
    let mut world = World::new(&[("a", 4)], Vec::new());
    world.deploy("m", "min_slots = 1\nselector = { zone = \"north\" }");
    let troubles: Vec<String> = (0..10).flat_map(|_| world.round().troubles).map(|(_, trouble)| trouble).collect();
    assert_eq!(troubles.len(), 1);
    assert!(troubles[0].contains("no host with a cpu has the labels zone=north"), "{troubles:?}");
    assert_eq!(world.round().unplaced.len(), 1);
    // However long it waits, others have all the room.
    world.deploy("other", "min_slots = 4");
    world.rounds(100);
    assert_eq!(world.slots("other"), "a: 4");
}

#[test]
fn slots_without_room_are_counted_until_there_are_hosts() {
    let mut world = World::new(&[("a", 4)], Vec::new());
    world.deploy("m", "min_slots = 7\nmax_slots = 8");
    world.deploy("other", "min_slots = 1");
    world.rounds(4);
    let missing = |round: Round| round.unplaced.values().map(|unplaced| unplaced.slots).sum::<usize>();
    assert_eq!(missing(world.round()), 4);
    world.host("b", 4);
    world.rounds(4);
    assert_eq!(missing(world.round()), 0);
    assert_eq!(world.explain("m").trouble, None);
}

#[test]
fn what_a_group_does_not_use_is_lent_and_reclaimed() {
    let groups =
        vec![Group { name: "a".into(), weight: 3.0, minimum: 0 }, Group { name: "b".into(), weight: 1.0, minimum: 0 }];
    let mut world = World::new(&[("x", 4)], groups);
    world.deploy("mine", "group = \"a\"");
    world.deploy("theirs", "group = \"b\"");
    world.wait("theirs", 1000);
    world.rounds(4);
    assert_eq!(world.slots("theirs"), "x: 4", "nobody else wants anything");
    world.wait("mine", 1000);
    world.rounds(4);
    assert_eq!((world.slots("mine"), world.slots("theirs")), ("x: 3".into(), "x: 1".into()));
    assert!(world.explain("theirs").trouble.is_some_and(|trouble| trouble.contains("shares of groups")));
    world.wait("mine", 0);
    world.rounds(80);
    assert_eq!((world.slots("mine"), world.slots("theirs")), (String::new(), "x: 4".into()));
}

#[test]
fn whoever_is_starved_serves_for_a_while_once_it_has_its_turn() {
    let mut world = World::new(&[("x", 4)], Vec::new());
    world.deploy("strong", "priority = 1");
    world.deploy("weak", "");
    world.wait("strong", 100_000);
    world.rounds(20);
    world.wait("weak", 1000);
    let mut longest = 0;
    let mut lasted = 0;
    for _ in 0..400 {
        world.round();
        lasted = if world.slots("weak").is_empty() { 0 } else { lasted + 1 };
        longest = longest.max(lasted);
    }
    assert!(longest >= 60, "it had {longest} rounds of half a second");
}

#[test]
fn hosts_that_are_not_there_are_not_blamed_on_shares() {
    let mut world = World::new(&[("a", 4)], Vec::new());
    world.deploy("m", "min_slots = 1\n[resources]\ndevice = \"cuda\"");
    world.deploy("n", "min_slots = 1");
    world.rounds(2);
    assert!(world.explain("m").trouble.is_some_and(|trouble| trouble.contains("has a GPU")));
    assert_eq!(world.explain("n").trouble, None);
    assert!(matches!(world.brain.set_gate("a", Gate::Drained, &world.fleet, world.now), Answer::Done));
    world.rounds(2);
    assert!(world.explain("n").trouble.is_some_and(|trouble| trouble.contains("all are drained")));
}

#[test]
fn a_slot_that_wants_more_than_a_host_has_takes_a_whole_host() {
    let mut world = World::new(&[("a", 2), ("b", 2)], Vec::new());
    world.deploy("m", "min_slots = 2\n[resources]\nthreads = 64");
    world.rounds(3);
    assert_eq!(world.slots("m"), "a: 1, b: 1", "{:?}", world.explain("m"));
}

#[test]
fn what_a_group_is_guaranteed_does_not_wait_for_memory_that_others_have() {
    let ours = Group { name: "ours".into(), weight: 1.0, minimum: 1 };
    let mut world = World::new(&[("a", 9)], vec![ours]);
    world.deploy("theirs", "min_slots = 2\n[resources]\nmemory_mib = 6000");
    world.rounds(4);
    assert_eq!(world.slots("theirs"), "a: 2");
    world.deploy("mine", "min_slots = 1\ngroup = \"ours\"\n[resources]\nmemory_mib = 6000");
    world.rounds(4);
    assert_eq!((world.slots("mine"), world.slots("theirs")), ("a: 1".into(), String::new()));
    // Units are enough for both, so nobody's share is to blame.
    world.rounds(400);
    assert_eq!(world.slots("mine"), "a: 1", "what is guaranteed has no turns");
}

#[test]
fn models_that_want_the_same_device_for_themselves_take_turns() {
    let mut world = World::new(&[("a", 9)], Vec::new());
    let names = ["l", "m", "n", "o"];
    for (priority, model) in names.iter().enumerate() {
        let resources = if *model == "o" { "memory_mib = 9000" } else { "sharing = \"exclusive\"" };
        world.deploy(model, &format!("min_slots = 1\npriority = {priority}\n[resources]\n{resources}"));
    }
    let mut served = BTreeMap::new();
    let mut shortest: Option<(usize, String)> = None;
    let mut turn: (String, usize) = Default::default();
    for _ in 0..2000 {
        world.round();
        let now = names.iter().find(|model| !world.slots(model).is_empty()).map_or("", |model| *model);
        *served.entry(now).or_insert(0) += 1;
        if turn.0 == now {
            turn.1 += 1;
            continue;
        }
        if !turn.0.is_empty() && shortest.as_ref().is_none_or(|(shortest, _)| turn.1 < *shortest) {
            shortest = Some((turn.1, turn.0.clone()));
        }
        turn = (now.to_owned(), 1);
    }
    assert!(names.iter().all(|model| served.get(model).is_some_and(|rounds| *rounds > 300)), "{served:?}");
    assert!(shortest.as_ref().is_some_and(|(rounds, _)| *rounds >= 60), "a turn is of 30 s at least: {shortest:?}");
}

#[test]
fn free_room_of_a_cordoned_host_counts_for_nobody() {
    let mut world = World::new(&[("a", 4), ("b", 4)], Vec::new());
    world.deploy("low", "min_slots = 4\nmax_slots = 4\nselector = { name = \"b\" }");
    world.rounds(3);
    assert!(matches!(world.brain.set_gate("a", Gate::Cordoned, &world.fleet, world.now), Answer::Done));
    // With the other host's four, there would be room for all.
    world.deploy("high", "min_slots = 3\nmax_slots = 3\npriority = 1");
    world.rounds(8);
    assert_eq!(
        (world.slots("high"), world.slots("low")),
        ("b: 3".into(), "b: 1".into()),
        "{:?}",
        world.explain("high")
    );
}

#[test]
fn a_model_that_comes_to_serve_nowhere_does_not_drain_one_host_after_the_other() {
    let hosts: Vec<String> = (0..40).map(|at| format!("h{at:02}")).collect();
    let mut world = World::new(&[], Vec::new());
    hosts.iter().for_each(|host| world.host(host, 1));
    world.deploy("busy", "min_slots = 40\nmax_slots = 40");
    world.rounds(3);
    world.broken_model = Some("broken");
    world.deploy("broken", "min_slots = 1");
    let serving = |world: &World| -> BTreeSet<String> { world.slots("busy").split(", ").map(str::to_owned).collect() };
    let mut drained = 0;
    let mut before = serving(&world);
    for _ in 0..2400 {
        world.round();
        let now = serving(&world);
        drained += before.difference(&now).count();
        before = now;
    }
    assert!((1..=12).contains(&drained), "{drained} healthy slots drained in twenty minutes");
}
