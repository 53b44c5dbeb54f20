//! Messages of those who mean no good.

use serde_json::{Value, json};

use super::*;
use crate::assignment::Assigned;

fn lease_request() -> LeaseRequest {
    let (id, group, holder) = ("l".to_owned(), "research/vision".to_owned(), "ada@desk (process 7)".to_owned());
    LeaseRequest { id, devices: 1, host: None, kind: None, group, holder, until: None }
}

fn report() -> Report {
    serde_json::from_value(json!({
        "host": "gpu-1.example.com", "at": 0, "instance": "77-ab", "labels": {"zone": "b"},
        "devices": [{"name": "cpu", "capacity": 4, "memory_mib": null}, {"name": "cuda:0", "capacity": 8, "memory_mib": 80_000}],
        "models": [{"model": "m", "revision": 1, "state": "ready", "slots": 2, "device": "cpu"}],
        "assignment": {"host": "gpu-1.example.com", "generation": {"term": 1, "counter": 1}, "slots": []},
    }))
    .expect("a report")
}

#[test]
fn a_lease_is_checked_when_it_is_asked_for() {
    assert_eq!(lease_request().check(), Ok(()));
    for (change, told) in [
        (LeaseRequest { group: ["a"; 100_000].join("/"), ..lease_request() }, "is no group"),
        (LeaseRequest { group: "a/b/c/d/e".into(), ..lease_request() }, "up to four levels"),
        (LeaseRequest { id: "x".repeat(300), ..lease_request() }, "a lease's id has 300 bytes"),
        (LeaseRequest { id: String::new(), ..lease_request() }, "a lease's id is empty"),
        (LeaseRequest { holder: "ada\u{1b}[2J".into(), ..lease_request() }, "control characters"),
        (LeaseRequest { host: Some("h".repeat(1_000_000)), ..lease_request() }, "a host's name has 1000000 bytes"),
        (LeaseRequest { devices: usize::MAX, ..lease_request() }, "1024 at most"),
        (LeaseRequest { devices: 0, ..lease_request() }, "one device or more"),
    ] {
        let reason = change.check().expect_err(told);
        assert!(reason.contains(told) && reason.len() < 200, "{reason}");
    }
}

#[test]
fn a_report_is_checked_before_it_is_used() {
    assert_eq!(report().check(), Ok(()));
    for (path, value, told) in [
        ("/host", json!("a".repeat(256)), "a host's name has 256 bytes"),
        ("/host", json!("a\u{1b}[2J"), "control characters"),
        ("/labels", json!({"zone": "b".repeat(1000)}), "1000 bytes has a label"),
        ("/devices/0/name", json!("tpu:0"), "`tpu:0` is no device"),
        ("/models/0/device", json!("cuda:x"), "`cuda:x` is no device"),
        ("/devices", json!(vec![json!({"name": "cpu", "capacity": 1, "memory_mib": null}); 65]), "64 at most"),
        ("/instance", json!("a\nb"), "a process's name has control characters"),
        (
            "/models",
            json!(vec![json!({"model": "m", "revision": 1, "state": "ready", "slots": 1}); MODELS + 1]),
            "10001 models are reported",
        ),
    ] {
        let mut text = serde_json::to_value(report()).expect("JSON");
        *text.pointer_mut(path).expect(path) = value;
        let reason = serde_json::from_value::<Report>(text).expect("a report").check().expect_err(told);
        assert!(reason.contains(told), "{path}: {reason}");
    }
}

#[test]
fn no_host_counts_for_more_than_the_largest_may() {
    let largest = BTreeMap::from([("cpu".to_owned(), 512), ("cuda".to_owned(), 8)]);
    let mut honest = report();
    assert_eq!(honest.within(&largest), None);
    assert_eq!(honest, report());
    let mut absurd = report();
    absurd.devices[1].capacity = usize::MAX;
    absurd.devices[1].memory_mib = Some(u64::MAX);
    absurd.models[0].slots = usize::MAX;
    absurd.models[0].reason = Some("ä".repeat(100_000));
    absurd.models[0].serving = Some("1".repeat(100_000));
    absurd.refuses = Some("no".repeat(100_000));
    absurd.models[0].measured = Measured { row_seconds: f64::MAX, busy: -3.0, ..Measured::default() };
    let slots = vec![Assigned { model: "m".parse().expect("a name"), device: "cuda:0".into(), slots: usize::MAX }];
    absurd.assignment.as_mut().expect("it follows one").slots = slots;
    let told = absurd.within(&largest).expect("it is told");
    assert!(told.contains("`cuda:0`") && told.contains("8 are counted"), "{told}");
    assert_eq!((absurd.devices[0].capacity, absurd.devices[1].capacity), (4, 8));
    assert_eq!(absurd.devices[1].memory_mib, Some(MEMORY_MIB));
    assert_eq!(absurd.models[0].slots, 4);
    for (text, most) in
        [(&absurd.models[0].reason, REASON), (&absurd.models[0].serving, NAME), (&absurd.refuses, REASON)]
    {
        assert_eq!(text.as_ref().map(String::len), Some(most));
    }
    assert_eq!((absurd.models[0].measured.row_seconds, absurd.models[0].measured.busy), (1e6, 0.0));
    assert_eq!(absurd.assignment.expect("it follows one").slots[0].slots, 8);
}

#[test]
fn what_no_leader_said_is_not_taken_up_from_hosts() {
    let lease =
        |group: &str| json!({"id": "l", "device": "cpu", "group": group, "holder": "x", "since": 0, "until": null});
    let mut text = serde_json::to_value(report()).expect("JSON");
    text["assignment"]["leases"] = json!([lease("research"), lease(&["a"; 100_000].join("/"))]);
    text["assignment"]["slots"] =
        json!([{"model": "m", "device": "cpu", "slots": 2}, {"model": "n", "device": "tpu", "slots": 1}]);
    let mut report: Report = serde_json::from_value(text).expect("a report");
    assert_eq!(report.check(), Ok(()), "the host itself is one");
    let told = report.within(&BTreeMap::new()).expect("it is told");
    assert!(told.contains("a lease that it carries is not taken up") && told.len() < 200, "{told}");
    let kept = report.assignment.expect("it follows one");
    assert_eq!((kept.leases.len(), kept.slots.len()), (1, 1), "{kept:?}");
}

#[test]
fn a_host_runs_no_more_slots_than_its_devices_have_room_for() {
    let slots = |device: &str, slots| Assigned { model: "m".parse().expect("a name"), device: device.into(), slots };
    let capacity = BTreeMap::from([("cpu".to_owned(), 4), ("cuda:0".to_owned(), 0)]);
    let mut assignment = Assignment { slots: vec![slots("cpu", 4), slots("cuda:0", 1)], ..Assignment::default() };
    let before = assignment.clone();
    assert_eq!((assignment.within(&capacity), &assignment), (None, &before), "one that refuses requests takes no room");
    assignment.slots = vec![slots("cpu", 1_000_000), slots("cuda:7", 1)];
    let told = assignment.within(&capacity).expect("it is told");
    assert!(told.contains("1000000 slots of `m` on `cpu`, which has room for 4"), "{told}");
    assert_eq!(assignment.slots, [slots("cpu", 4)]);
}

#[test]
fn an_assignment_is_checked_before_it_is_followed() {
    let sound = json!({
        "host": "gpu-1.example.com", "generation": {"term": 1, "counter": 1},
        "slots": [{"model": "m", "device": "cpu", "slots": 1}],
        "leases": [{"id": "l", "device": "cpu", "group": "research", "holder": "x", "since": 0, "until": null}],
    });
    let check = |text: &Value| serde_json::from_value::<Assignment>(text.clone()).expect("an assignment").check();
    assert_eq!(check(&sound), Ok(()));
    for (path, value, told) in [
        ("/slots/0/device", json!("tpu"), "`tpu` is no device"),
        ("/slots", json!(vec![sound["slots"][0].clone(); MODELS + 1]), "10001 models are assigned"),
        ("/leases/0/id", json!(""), "a lease's id is empty"),
        ("/leases/0/holder", json!("ada\u{1b}[2J"), "a lease's holder has control characters"),
        ("/leases/0/group", json!("a/b/c/d/e"), "is no group"),
        ("/leases/0/device", json!("cuda:x"), "`cuda:x` is no device"),
        ("/leases", json!(vec![sound["leases"][0].clone(); LEASED + 1]), "1025 devices are lent"),
        ("/instance", json!("a\nb"), "a process's name has control characters"),
        ("/twin", json!("a".repeat(256)), "a process's name has 256 bytes"),
    ] {
        let mut text = sound.clone();
        for key in ["instance", "twin"] {
            text[key] = json!("77-ab");
        }
        *text.pointer_mut(path).expect(path) = value;
        let reason = check(&text).expect_err(told);
        assert!(reason.contains(told) && reason.len() < 200, "{path}: {reason}");
    }
}

#[test]
fn a_forged_term_locks_no_later_leader_out() {
    let generation = |term, counter| Generation { term, counter };
    let followed = generation(40, 3);
    for fine in [generation(40, 4), generation(41, 0), generation(40 + TERM_LEAP, 9)] {
        assert_eq!(followed.may_become(fine), Ok(()));
    }
    for forged in [generation(u64::MAX, 0), generation(41 + TERM_LEAP, 0), generation(41, u64::MAX)] {
        assert!(followed.may_become(forged).is_err(), "{forged}");
    }
    assert!(generation(LAST_TERM, 0).may_become(generation(LAST_TERM + 1, 0)).is_err());
    // Whatever was followed before the last term, the one that leads has the next word, and hosts follow it.
    for followed in
        [followed, generation(40 + TERM_LEAP, 9), generation(40, LAST_TERM), generation(LAST_TERM - 1, LAST_TERM)]
    {
        let next = followed.outbid(41, 7);
        assert!(next > followed, "{next} after {followed}");
        assert_eq!(followed.may_become(next), Ok(()));
    }
    assert_eq!(generation(40, 3).outbid(41, 7), generation(41, 7), "its own where that is enough");
}
