//! Places where models do not come to serve, and what models take there.

use super::*;

#[test]
fn a_host_where_it_does_not_load_is_left_for_another_and_tried_again_later() {
    let mut world = World::new(&[("a", 4), ("b", 4)], Vec::new());
    world.states = vec![("a/cpu", Some(State::Failed))];
    world.deploy("m", "min_slots = 1");
    world.rounds(4);
    assert_eq!(world.slots("m"), "b: 1");
    // The only other host goes: the broken one is not tried at once, and the reason is told.
    world.hosts.remove("b");
    world.rounds(12);
    assert_eq!(world.slots("m"), "");
    assert!(
        world.explain("m").trouble.is_some_and(|trouble| trouble.contains("failed to load")),
        "{:?}",
        world.explain("m")
    );
    let mut tries = 0;
    for _ in 0..240 {
        let before = world.slots("m");
        world.round();
        tries += usize::from(before.is_empty() && !world.slots("m").is_empty());
    }
    assert!((2..=5).contains(&tries), "{tries} tries in two minutes: the pause doubles");
    world.states.clear();
    world.rounds(700);
    assert_eq!(world.slots("m"), "a: 1");
}

#[test]
fn one_host_tries_a_model_that_nobody_asks_for_and_why_it_does_not_load_is_known() {
    let mut world = World::new(&[("a", 4), ("b", 4)], Vec::new());
    world.broken_model = Some("broken");
    for model in ["broken", "sound"] {
        world.deploy(model, "");
        world.rounds(3);
        assert_eq!(world.slots(model), "", "nobody asks for it");
        assert_eq!(world.brain.try_loading(&name(model), 2), None, "that revision is not known yet");
        assert_eq!(world.brain.try_loading(&name(model), 1), Some(Answer::Done));
        world.round();
        assert_eq!(world.slots(model), "a: 1", "{}", world.explain(model).reason);
    }
    world.rounds(4);
    let broken = world.explain("broken");
    assert_eq!((world.slots("broken"), world.slots("sound")), (String::new(), "a: 1".into()), "{broken:?}");
    assert!(broken.failure.is_some_and(|failure| failure.starts_with("a/cpu: ")), "where, and why");
    assert!(broken.trouble.is_some_and(|trouble| trouble.contains("does not load")));
    assert_eq!((world.explain("sound").failure, world.explain("sound").trouble), (None, None));
    world.rounds(60);
    assert_eq!(world.slots("sound"), "", "it is taken down as any that nobody asks for");
    // Somebody asks, and it loads by now.
    world.broken_model = None;
    world.wait("broken", 1);
    world.rounds(4);
    assert_eq!((world.slots("broken"), world.explain("broken").failure), ("a: 1".into(), None));
}

#[test]
fn a_trial_that_waits_in_vain_ends_with_its_reason() {
    let mut world = World::new(&[("a", 4)], Vec::new());
    world.states = vec![("a/cpu", Some(State::Waiting))];
    world.deploy("m", "");
    world.rounds(3);
    assert_eq!(world.brain.try_loading(&name("m"), 1), Some(Answer::Done));
    world.rounds(400);
    let explained = world.explain("m");
    assert_eq!((world.slots("m"), explained.wanted), (String::new(), 0), "{explained:?}");
    assert!(explained.failure.is_some_and(|failure| failure.contains("waiting for too long")));
}

#[test]
fn idle_slots_do_not_go_again_and_again_for_what_does_not_load() {
    // The only device there is.
    let mut world = World::new(&[("a", 1)], Vec::new());
    world.deploy_as("sound", "scale_down_delay = \"1h\"\nidle_to_zero = \"1h\"");
    world.broken_model = Some("broken");
    let mut gave_way = 0;
    for minute in 0..20 {
        world.wait("sound", 1);
        world.rounds(4);
        world.wait("sound", 0);
        if minute == 1 {
            world.deploy("broken", "");
            world.wait("broken", 1);
        }
        for _ in 0..116 {
            let went = |(model, changed): &&(ModelName, Changed)| *model == name("sound") && changed.to == 0;
            gave_way += world.round().changes.iter().filter(went).count();
        }
    }
    assert!((1..=3).contains(&gave_way), "{gave_way} times in twenty minutes");
    assert_eq!(world.slots("sound"), "a: 1");
    assert!(world.explain("broken").failure.is_some_and(|failure| failure.starts_with("a/cpu: ")));
}

#[test]
fn a_host_that_waits_for_memory_in_vain_is_left_for_another() {
    let mut world = World::new(&[("a", 4), ("b", 4)], Vec::new());
    world.states = vec![("a/cpu", Some(State::Waiting))];
    world.deploy("m", "min_slots = 1");
    world.rounds(16);
    assert_eq!(world.slots("m"), "a: 1", "what ends there may give memory back in a moment");
    world.rounds(10);
    assert_eq!(world.slots("m"), "b: 1");
}

#[test]
fn what_a_model_was_seen_to_take_counts_where_less_was_declared() {
    let mut world = World::new(&[("a", 9), ("b", 9)], Vec::new());
    world.memory_mib = 6_000;
    for model in ["m", "n"] {
        world.deploy(model, "min_slots = 1");
        world.rounds(4);
    }
    assert_eq!((world.slots("m"), world.slots("n")), ("a: 1".into(), "b: 1".into()));
    // Each host has room for more slots, but no memory for another model of what these were seen to take.
    world.wait("m", 60);
    world.rounds(4);
    assert_eq!(world.slots("m"), "a: 8", "{}", world.explain("m").reason);
}

#[test]
fn a_high_reading_does_not_keep_a_model_from_everywhere() {
    let mut world = World::new(&[("a", 9), ("b", 9)], Vec::new());
    world.deploy("n", "min_slots = 1");
    world.rounds(4);
    assert_eq!(world.slots("n"), "a: 1");
    // More than any host has: by chance, something else grew while it was loaded.
    world.memory_mib = 20_000;
    world.deploy("m", "min_slots = 1");
    world.rounds(4);
    world.memory_mib = 0;
    world.hosts.remove("b");
    world.rounds(20);
    assert_eq!(world.slots("m"), "", "the host is not empty: {:?}", world.explain("m"));
    // Until it is forgotten they can only take turns.
    world.rounds(1300);
    assert_eq!((world.slots("m"), world.slots("n")), ("a: 1".into(), "a: 1".into()));
}

#[test]
fn a_device_that_fails_is_left_for_another_of_its_host() {
    let mut world = World::new(&[], Vec::new());
    for gpu in ["cuda:0", "cuda:1", "cuda:2"] {
        world.device("a", gpu, 1);
    }
    world.states = vec![("a/cuda:1", Some(State::Failed))];
    world.deploy("m", "min_slots = 2\nmax_slots = 2\n[resources]\ndevice = \"cuda\"");
    world.rounds(3);
    let mut lost = 0;
    for _ in 0..400 {
        world.round();
        let serving = world.told["a"].slots.iter().filter(|of| of.device != "cuda:1").count();
        lost += usize::from(serving < 2);
    }
    assert_eq!(lost, 0, "what serves goes on, and the bad device is not taken for another again");
}

#[test]
fn a_place_of_which_nothing_is_heard_is_left_for_another() {
    for (state, still, gone) in [(None, 100, 130), (Some(State::Loading), 560, 610)] {
        let mut world = World::new(&[("a", 4), ("b", 4)], Vec::new());
        world.states = vec![("a/cpu", state)];
        world.deploy("m", "min_slots = 1");
        world.rounds(still);
        assert_eq!(world.slots("m"), "a: 1", "{state:?}: it may come yet");
        world.rounds(gone - still);
        assert_eq!(world.slots("m"), "b: 1", "{state:?}");
        // With no other host left, the reason is told.
        world.states.push(("b/cpu", Some(State::Failed)));
        world.rounds(3);
        let trouble = world.explain("m").trouble.unwrap_or_default();
        assert!(trouble.contains("a/cpu"), "{trouble}");
    }
}

#[test]
fn a_host_that_says_it_serves_and_takes_nothing_is_left_for_another() {
    let mut world = World::new(&[("a", 4), ("b", 4)], Vec::new());
    world.idlers = vec!["a"];
    world.deploy("m", "min_slots = 1\nmax_slots = 1");
    world.rounds(400);
    assert_eq!(world.slots("m"), "a: 1", "nothing waits: nobody can tell");
    world.wait("m", 5);
    world.rounds(100);
    assert_eq!(world.slots("m"), "a: 1", "it may be about to");
    world.rounds(30);
    assert_eq!(world.slots("m"), "b: 1", "{:?}", world.explain("m"));
    // It says again and again that it serves: with no other host, it is tried less and less often, and why is told.
    world.hosts.remove("b");
    world.rounds(20);
    let trouble = |world: &World| world.explain("m").trouble.unwrap_or_default();
    let (mut on, mut told) = (0, 0);
    for _ in 0..2400 {
        world.round();
        on += usize::from(!world.slots("m").is_empty());
        told += usize::from(trouble(&world).contains("takes none of the requests that wait"));
    }
    assert!((300..1200).contains(&on) && told > 1000, "{on} rounds on it, told in {told}");
    // It has begun to work.
    world.idlers.clear();
    world.rounds(600);
    assert_eq!(world.slots("m"), "a: 1");
}

#[test]
fn a_host_that_gets_nothing_done_is_left_for_another() {
    let mut world = World::new(&[("a", 4), ("b", 4)], Vec::new());
    world.deploy("m", "min_slots = 1\nmax_slots = 1");
    world.wait("m", 5);
    world.rounds(590);
    assert_eq!(world.slots("m"), "a: 1", "a row may take long");
    world.rounds(30);
    assert_eq!(world.slots("m"), "b: 1");
}
