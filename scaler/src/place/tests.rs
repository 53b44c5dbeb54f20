//! Placing, by tables and by properties.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use sluice_core::ModelName;
use sluice_core::manifest::{DeviceKind, Sharing};

use super::{Device, Host, Lent, Place, Places, Unplaced, Want};

fn host(name: &str, capacity: usize, memory_mib: u64) -> Host {
    let device = Device { name: "cpu".into(), capacity, memory_mib: Some(memory_mib), lent: None };
    let labels = BTreeMap::from([("zone".into(), name.into())]);
    Host { name: name.into(), labels, takes_more: true, devices: vec![device] }
}

fn want(model: &str, slots: usize) -> Want {
    Want {
        model: model.parse().expect("a name"),
        slots,
        owed: 0,
        waited: Duration::ZERO,
        lacks_first: false,
        needs: usize::MAX,
        idle: Duration::ZERO,
        kind: DeviceKind::Cpu,
        units: 1,
        memory_mib: 100,
        copied: false,
        sharing: Sharing::Shared,
        selector: BTreeMap::new(),
        avoid: BTreeSet::new(),
    }
}

/// Where the slots of models are, by name.
type Placement = BTreeMap<ModelName, Places>;

#[derive(Debug, PartialEq)]
struct Placed {
    placement: Placement,
    unplaced: BTreeMap<ModelName, Unplaced>,
    in_the_way: BTreeSet<String>,
}

fn place(wants: &[Want], hosts: &[Host], now: &Placement, busy: &dyn Fn(&ModelName, &Place) -> f64) -> Placed {
    let now = wants.iter().map(|want| now.get(&want.model).cloned().unwrap_or_default()).collect();
    let placed = super::place(wants, hosts, now, busy);
    let name = |at: usize| wants[at].model.clone();
    Placed {
        placement: placed.places.into_iter().enumerate().map(|(at, places)| (name(at), places)).collect(),
        unplaced: placed.unplaced.into_iter().map(|(at, unplaced)| (name(at), unplaced)).collect(),
        in_the_way: placed.in_the_way,
    }
}

fn idle(_: &ModelName, _: &Place) -> f64 {
    0.0
}

/// `a: 2, b: 1`.
fn of(placed: &Placed, model: &str) -> String {
    let places = placed.placement.get(&model.parse::<ModelName>().expect("a name"));
    let text = places.into_iter().flatten().map(|((host, _), slots)| format!("{host}: {slots}"));
    text.collect::<Vec<_>>().join(", ")
}

#[test]
fn slots_are_spread_and_full_hosts_are_passed_over() {
    let hosts = [host("a", 4, 1000), host("b", 2, 1000), host("c", 4, 50)];
    let placed = place(&[want("m", 5)], &hosts, &Placement::new(), &idle);
    assert_eq!(of(&placed, "m"), "a: 3, b: 2");
    let placed = place(&[want("m", 9)], &hosts, &Placement::new(), &idle);
    assert_eq!(of(&placed, "m"), "a: 4, b: 2");
    let unplaced = placed.unplaced.values().next().expect("not all fit");
    assert_eq!((unplaced.slots, unplaced.full), (3, true), "{}", unplaced.reason);
}

#[test]
fn several_models_share_a_device_by_memory_and_exclusive_ones_do_not() {
    let hosts = [host("a", 8, 250)];
    let placed = place(&[want("l", 2), want("m", 2), want("n", 1)], &hosts, &Placement::new(), &idle);
    assert_eq!((of(&placed, "l"), of(&placed, "m"), of(&placed, "n")), ("a: 2".into(), "a: 2".into(), String::new()));
    let alone = Want { sharing: Sharing::Exclusive, ..want("x", 1) };
    let placed = place(&[alone.clone(), want("m", 1)], &hosts, &Placement::new(), &idle);
    assert_eq!((of(&placed, "x"), of(&placed, "m")), ("a: 1".into(), String::new()));
    let placed = place(&[want("m", 1), alone], &hosts, &Placement::new(), &idle);
    assert!(placed.unplaced.values().next().expect("no room").reason.contains("for itself"));
}

#[test]
fn what_runs_stays_and_the_idlest_goes_first() {
    let hosts = [host("a", 4, 1000), host("b", 4, 1000), host("c", 4, 1000)];
    let at = |host: &str| (host.to_owned(), "cpu".to_owned());
    let model: ModelName = "m".parse().expect("a name");
    let now = Placement::from([(model, BTreeMap::from([(at("a"), 1), (at("b"), 2), (at("c"), 1)]))]);
    let busy = |_: &ModelName, place: &Place| if place.0 == "b" { 0.1 } else { 0.9 };
    assert_eq!(of(&place(&[want("m", 4)], &hosts, &now, &busy), "m"), "a: 1, b: 2, c: 1");
    assert_eq!(of(&place(&[want("m", 3)], &hosts, &now, &busy), "m"), "a: 1, b: 1, c: 1");
    assert_eq!(of(&place(&[want("m", 2)], &hosts, &now, &busy), "m"), "a: 1, c: 1");
    assert_eq!(of(&place(&[want("m", 0)], &hosts, &now, &busy), "m"), "");
    // A cordoned host keeps what it has.
    let cordoned = hosts.clone().map(|host| Host { takes_more: host.name == "c", ..host });
    assert_eq!(of(&place(&[want("m", 6)], &cordoned, &now, &busy), "m"), "a: 1, b: 2, c: 3");
    // A host that is gone loses what it had.
    assert_eq!(of(&place(&[want("m", 4)], &hosts[..2], &now, &busy), "m"), "a: 2, b: 2");
}

#[test]
fn labels_failures_and_kinds_of_device_are_kept_apart() {
    let hosts = [host("a", 4, 1000), host("b", 4, 1000)];
    let zone = |zone: &str| BTreeMap::from([("zone".to_owned(), zone.to_owned())]);
    let chosen = Want { selector: zone("b"), ..want("m", 2) };
    assert_eq!(of(&place(&[chosen], &hosts, &Placement::new(), &idle), "m"), "b: 2");
    let reason = |want: Want| {
        place(&[want], &hosts, &Placement::new(), &idle).unplaced.into_values().next().expect("unplaced").reason
    };
    assert_eq!(reason(Want { selector: zone("x"), ..want("m", 1) }), "no host with a cpu has the labels zone=x");
    let avoid = BTreeSet::from([("a".to_owned(), "cpu".to_owned())]);
    assert_eq!(of(&place(&[Want { avoid, ..want("m", 2) }], &hosts, &Placement::new(), &idle), "m"), "b: 2");
    assert_eq!(reason(Want { kind: DeviceKind::Cuda, ..want("m", 1) }), "no host that may be used has a GPU");
    assert!(reason(Want { memory_mib: 5000, ..want("m", 1) }).contains("needs 5000 MiB"));
    // More threads than the host has processors: the whole host.
    assert_eq!(of(&place(&[Want { units: 64, ..want("m", 2) }], &hosts, &Placement::new(), &idle), "m"), "a: 1, b: 1");
}

fn owed(model: &str, slots: usize) -> Want {
    Want { owed: slots, ..want(model, slots) }
}

/// What became of models that ran before others wanted what they are owed.
fn reclaimed(before: &[Want], after: &[Want], hosts: &[Host]) -> Placed {
    let now = place(before, hosts, &Placement::new(), &idle).placement;
    place(after, hosts, &now, &idle)
}

#[test]
fn what_is_owed_comes_before_what_others_have_beyond_that() {
    let hosts = [host("a", 4, 250), host("b", 4, 250)];
    // Memory: two models of 100 MiB on each host leave no room for a third.
    let before = [want("l", 2), want("m", 2)];
    let not_owed = reclaimed(&before, &[want("l", 2), want("m", 2), want("n", 1)], &hosts);
    assert_eq!(of(&not_owed, "n"), "");
    let placed = reclaimed(&before, &[want("l", 2), want("m", 2), owed("n", 1)], &hosts);
    assert_eq!(
        (of(&placed, "l"), of(&placed, "m"), of(&placed, "n")),
        ("a: 1, b: 1".into(), "b: 2".into(), "a: 1".into())
    );
    // Where it goes there is room for the one that had to go, too.
    assert!(placed.unplaced.is_empty(), "{:?}", placed.unplaced);
    // Nobody loses what is owed to it.
    let all_owed = reclaimed(&before, &[owed("l", 2), owed("m", 2), owed("n", 1)], &hosts);
    assert_eq!(
        (of(&all_owed, "l"), of(&all_owed, "m"), of(&all_owed, "n")),
        ("a: 1, b: 1".into(), "a: 1, b: 1".into(), String::new())
    );

    // A device for itself, where one slot less has to go than elsewhere.
    let alone = Want { sharing: Sharing::Exclusive, ..owed("x", 1) };
    let small = [host("a", 2, 1000), host("b", 1, 1000)];
    let placed = reclaimed(&[want("m", 3)], &[want("m", 3), alone.clone()], &small);
    assert_eq!((of(&placed, "m"), of(&placed, "x")), ("a: 2".into(), "b: 1".into()));
    // And one that has it for itself gives it up.
    let placed = reclaimed(&[Want { owed: 0, ..alone.clone() }], &[Want { owed: 0, ..alone }, owed("m", 3)], &small);
    assert_eq!((of(&placed, "m"), of(&placed, "x")), ("a: 2, b: 1".into(), String::new()));

    // Units that lie scattered.
    let whole = Want { units: 4, ..owed("w", 1) };
    let placed = reclaimed(&[want("m", 2)], &[want("m", 2), whole], &hosts);
    assert_eq!((of(&placed, "m"), of(&placed, "w")), ("b: 2".into(), "a: 1".into()));
}

#[test]
fn those_that_matter_least_go_first_and_those_that_waited_longest_come_first() {
    let hosts = [host("a", 2, 1000)];
    // In the order of priority.
    let placed = reclaimed(&[want("l", 1), want("m", 1)], &[want("l", 1), want("m", 1), owed("n", 1)], &hosts);
    assert_eq!((of(&placed, "l"), of(&placed, "m"), of(&placed, "n")), ("a: 1".into(), String::new(), "a: 1".into()));
    let waits = |model: &str, seconds| Want { waited: Duration::from_secs(seconds), ..owed(model, 1) };
    let placed = reclaimed(&[want("l", 2)], &[want("l", 2), waits("m", 30), waits("n", 40), waits("o", 50)], &hosts);
    assert_eq!((of(&placed, "m"), of(&placed, "n"), of(&placed, "o")), (String::new(), "a: 1".into(), "a: 1".into()));
}

#[test]
fn nobody_goes_for_nothing_and_what_is_owed_in_part_gives_the_rest() {
    let hosts = [host("a", 12, 1000)];
    // The one of lowest priority has little memory: that the large one goes is enough.
    let mib = |memory_mib, want| Want { memory_mib, ..want };
    let before = [mib(900, want("large", 1)), mib(10, want("small", 8))];
    let after = [before[0].clone(), before[1].clone(), mib(800, owed("n", 1))];
    let placed = reclaimed(&before, &after, &hosts);
    assert_eq!(
        (of(&placed, "large"), of(&placed, "small"), of(&placed, "n")),
        (String::new(), "a: 8".into(), "a: 1".into())
    );
    // One has memory and is owed a slot of its many; the other must go for its memory. Units come from both.
    let before = [mib(300, want("many", 9)), mib(600, want("other", 3))];
    let whole = Want { units: 8, ..mib(500, owed("n", 1)) };
    let after = [Want { owed: 1, ..before[0].clone() }, before[1].clone(), whole];
    let placed = reclaimed(&before, &after, &hosts);
    assert_eq!(
        (of(&placed, "many"), of(&placed, "other"), of(&placed, "n")),
        ("a: 4".into(), String::new(), "a: 1".into())
    );
}

#[test]
fn a_lease_gives_way_to_what_is_owed_and_fits_nowhere_else() {
    let mut hosts = [host("a", 4, 1000), host("b", 4, 1000)];
    let lend = |owed: bool| Some(Lent { lease: "training".into(), owed });
    hosts[1].devices[0].lent = lend(false);
    let there = |want: Want| Want { selector: BTreeMap::from([("zone".into(), "b".into())]), ..want };
    let placed = |want: Want, hosts: &[Host]| place(&[want], hosts, &Placement::new(), &idle);
    let waiting = placed(there(want("m", 1)), &hosts);
    assert_eq!((of(&waiting, "m"), waiting.in_the_way.len()), (String::new(), 0));
    let unplaced = waiting.unplaced.values().next().expect("it is lent");
    assert!(unplaced.full && unplaced.reason.contains("lent"), "{unplaced:?}");
    assert_eq!(placed(there(owed("m", 1)), &hosts).in_the_way, BTreeSet::from(["training".to_owned()]));
    // Elsewhere there is room.
    let elsewhere = placed(owed("m", 1), &hosts);
    assert_eq!((of(&elsewhere, "m"), elsewhere.in_the_way.len()), ("a: 1".into(), 0));
    hosts[1].devices[0].lent = lend(true);
    assert!(placed(there(owed("m", 1)), &hosts).in_the_way.is_empty(), "it is owed to the lease's group");
}

#[test]
fn each_slot_that_has_a_copy_takes_memory_of_its_own() {
    let copied = |slots| Want { memory_mib: 300, copied: true, ..want("m", slots) };
    let hosts = [host("a", 8, 1000), host("b", 8, 1000)];
    let placed = place(&[copied(7)], &hosts, &Placement::new(), &idle);
    assert_eq!(of(&placed, "m"), "a: 3, b: 3");
    assert_eq!(placed.unplaced.values().map(|unplaced| unplaced.slots).collect::<Vec<_>>(), [1]);
    // What others can have is what the copies leave, and what those that go leave behind.
    let beside = Want { memory_mib: 600, ..want("n", 1) };
    let placed = place(&[copied(2), beside], &hosts[..1], &placed.placement, &idle);
    assert_eq!((of(&placed, "m"), of(&placed, "n")), ("a: 2".into(), String::new()));
    let placed = reclaimed(&[copied(3)], &[copied(3), Want { memory_mib: 900, ..owed("n", 1) }], &hosts[..1]);
    assert_eq!((of(&placed, "m"), of(&placed, "n")), (String::new(), "a: 1".into()));
}

/// Slots, units, memory, slots that are owed, whether it wants its devices for itself, and whether slots have copies.
fn any_want() -> impl Strategy<Value = Want> {
    (0..6_usize, 1..4_usize, 0..300_u64, 0..3_usize, prop::bool::weighted(0.2), prop::bool::weighted(0.3)).prop_map(
        |(slots, units, memory_mib, owed, alone, copied)| {
            let sharing = if alone { Sharing::Exclusive } else { Sharing::Shared };
            Want { units, memory_mib, copied, sharing, owed: owed.min(slots), ..want("m", slots) }
        },
    )
}

fn count(placed: &Placed, want: &Want) -> usize {
    placed.placement.get(&want.model).into_iter().flatten().map(|(_, slots)| slots).sum()
}

proptest! {
    #[test]
    fn nothing_is_over_booked_and_nobody_loses_what_it_is_owed(
        wants in prop::collection::vec(any_want(), 1..10),
        capacities in prop::collection::vec((1..8_usize, 100..800_u64), 1..6),
    ) {
        let hosts: Vec<Host> =
            capacities.iter().enumerate().map(|(at, (units, mib))| host(&format!("h{at}"), *units, *mib)).collect();
        let wants: Vec<Want> = wants
            .into_iter()
            .enumerate()
            .map(|(at, of)| Want { model: format!("m{at}").parse().expect("a name"), ..of })
            .collect();
        // Before anything was owed, and in another order.
        let unowed: Vec<Want> = wants.iter().rev().map(|want| Want { owed: 0, ..want.clone() }).collect();
        let before = place(&unowed, &hosts, &Placement::new(), &idle);
        let mut after = place(&wants, &hosts, &before.placement, &idle);
        for placed in [&before, &after] {
            for (host, (units, mib)) in hosts.iter().zip(&capacities) {
                let there: Vec<(&Want, usize)> = wants
                    .iter()
                    .filter_map(|want| {
                        Some((want, *placed.placement.get(&want.model)?.get(&(host.name.clone(), "cpu".into()))?))
                    })
                    .collect();
                prop_assert!(there.iter().map(|(want, slots)| want.units.min(*units) * slots).sum::<usize>() <= *units);
                let taken = |(want, slots): &(&Want, usize)| want.memory_mib * if want.copied { *slots as u64 } else { 1 };
                prop_assert!(there.iter().map(taken).sum::<u64>() <= *mib);
                prop_assert!(there.len() < 2 || there.iter().all(|(want, _)| want.sharing == Sharing::Shared));
            }
            for want in &wants {
                let missing = placed.unplaced.get(&want.model).map_or(0, |unplaced| unplaced.slots);
                prop_assert_eq!(count(placed, want) + missing, want.slots);
            }
        }
        for want in &wants {
            prop_assert!(count(&after, want) >= want.owed.min(count(&before, want)));
        }
        // Those who had to go may leave a better place behind; then nothing moves without need.
        for _ in 0..4 {
            after = place(&wants, &hosts, &after.placement, &idle);
        }
        prop_assert_eq!(&place(&wants, &hosts, &after.placement, &idle), &after);
    }
}
