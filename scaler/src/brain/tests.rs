//! Rounds of decisions over hosts that obey at once.

use sluice_core::assignment::Assignment;
use sluice_core::manifest::Manifest;
use sluice_core::report::{DeviceReport, Measured, ModelReport, Report, State};
use sluice_core::scaler::{Answer, Explanation, LeaseRequest};

use super::*;

/// Models, hosts that do as they are told, and a clock.
struct World {
    models: BTreeMap<ModelName, Arc<Entry>>,
    queues: BTreeMap<ModelName, Reading<Queued>>,
    fleet: Fleet,
    brain: Brain,
    now: Duration,
    /// Hosts and the slots that they have room for.
    hosts: BTreeMap<String, usize>,
    /// Hosts on which nothing can be loaded.
    broken: Vec<&'static str>,
    /// Hosts whose memory others have, whatever they say.
    cramped: Vec<&'static str>,
    told: BTreeMap<String, Wanted>,
    /// As hosts measure it.
    rows_per_request: f64,
    memory_mib: u64,
}

fn name(text: &str) -> ModelName {
    text.parse().expect("a name")
}

impl World {
    fn new(hosts: &[(&str, usize)], groups: Vec<Group>) -> Self {
        World {
            models: BTreeMap::new(),
            queues: BTreeMap::new(),
            fleet: Fleet::default(),
            brain: Brain::new(groups),
            now: Duration::ZERO,
            hosts: hosts.iter().map(|(host, room)| (host.to_string(), *room)).collect(),
            broken: Vec::new(),
            cramped: Vec::new(),
            told: BTreeMap::new(),
            rows_per_request: 1.0,
            memory_mib: 0,
        }
    }

    fn deploy(&mut self, model: &str, scaling: &str) {
        let text = format!(
            "name = \"{model}\"\nengine = \"torchscript\"\nfile = \"model.pt\"\n\
             inputs = [{{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }}]\n\
             outputs = [{{ name = \"y\", datatype = \"FP32\", shape = [-1, 4] }}]\n\
             [scaling]\nscale_down_delay = \"5s\"\nidle_to_zero = \"10s\"\n{scaling}\n"
        );
        let manifest = Manifest::parse(&text).expect("a manifest");
        self.models.insert(name(model), Arc::new(Entry { manifest, started: true, revision: 1 }));
        self.wait(model, 0);
    }

    /// So many requests wait from now on; each takes 0.1 s.
    fn wait(&mut self, model: &str, ready: u64) {
        self.queues.insert(name(model), Reading::Known(Queued { ready, in_flight: Some(0) }));
    }

    /// Half a second, in which hosts report that they do what they were told before.
    fn round(&mut self) -> Round {
        self.now += Duration::from_millis(500);
        for (host, capacity) in &self.hosts {
            let wanted = self.told.get(host).cloned().unwrap_or_default();
            let state = match host.as_str() {
                host if self.broken.contains(&host) => State::Failed,
                host if self.cramped.contains(&host) => State::Waiting,
                _ => State::Ready,
            };
            let running = |of: &Assigned| {
                let report = ModelReport::new(of.model.clone(), Some(1), state);
                let (rows_per_request, memory_mib) = (self.rows_per_request, self.memory_mib);
                let measured = Measured { row_seconds: 0.1, rows_per_request, memory_mib, ..Measured::default() };
                let ready = state == State::Ready;
                let (slots, serving) = if ready { (of.slots, Some("1".into())) } else { (0, None) };
                ModelReport { slots, serving, measured, device: of.device.clone(), ..report }
            };
            let models = wanted.slots.iter().map(running).collect();
            let assignment = Assignment {
                host: host.clone(),
                slots: wanted.slots.clone(),
                gate: wanted.gate,
                leases: wanted.leases.clone(),
                ..Assignment::default()
            };
            let report = Report {
                host: host.clone(),
                at: 0,
                started: 1,
                models,
                devices: vec![DeviceReport { name: "cpu".into(), capacity: *capacity, memory_mib: Some(10_000) }],
                labels: BTreeMap::new(),
                assignment: Some(assignment),
                draining: false,
            };
            self.fleet.hear(report, self.now);
        }
        let World { models, queues, fleet, brain, now, .. } = self;
        let round = brain.round(&Seen { models, queues, fleet, clock: now.as_millis() as u64, now: *now });
        self.told = round.wanted.clone();
        round
    }

    fn rounds(&mut self, count: usize) -> Round {
        (0..count).fold(Round::default(), |_, _| self.round())
    }

    /// `a: 2, b: 1`: where a model's slots are.
    fn slots(&self, model: &str) -> String {
        let of = |(host, wanted): (&String, &Wanted)| {
            let slots: usize = wanted.slots.iter().filter(|of| of.model == name(model)).map(|of| of.slots).sum();
            (slots > 0).then(|| format!("{host}: {slots}"))
        };
        self.told.iter().filter_map(of).collect::<Vec<_>>().join(", ")
    }

    fn explain(&self, model: &str) -> Explanation {
        match self.brain.explain(&name(model)) {
            Answer::Explained(explanation) => explanation,
            other => panic!("{other:?}"),
        }
    }
}

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
    world.hosts.insert("a".into(), 8);
    world.wait("m", 40);
    world.rounds(3);
    assert_eq!(world.slots("m"), before);
}

#[test]
fn a_host_where_it_does_not_load_is_left_for_another_and_tried_again_later() {
    let mut world = World::new(&[("a", 4), ("b", 4)], Vec::new());
    world.broken = vec!["a"];
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
    world.broken.clear();
    world.rounds(700);
    assert_eq!(world.slots("m"), "a: 1");
}

#[test]
fn a_host_that_waits_for_memory_in_vain_is_left_for_another() {
    let mut world = World::new(&[("a", 4), ("b", 4)], Vec::new());
    world.cramped = vec!["a"];
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
    world.hosts.insert("b".into(), 4);
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
fn a_new_leader_begins_where_the_old_one_ended() {
    let mut world = World::new(&[("a", 4), ("b", 4)], Vec::new());
    world.deploy("m", "min_slots = 3");
    world.rounds(3);
    let request = LeaseRequest {
        id: "training".into(),
        devices: 1,
        host: Some("b".into()),
        kind: None,
        group: "research".into(),
        holder: "ada".into(),
        until: None,
    };
    assert!(matches!(world.brain.acquire(&request, &world.fleet, 0, world.now), Answer::Lease(_)));
    world.rounds(2);
    assert_eq!(world.slots("m"), "a: 3", "a lent device is left");
    let Answer::Lease(lease) = world.brain.renew("training", &world.fleet, world.now) else { panic!("it is held") };
    assert!(lease.free && lease.ending.is_none());
    // The hosts carry everything over.
    world.brain = Brain::new(Vec::new());
    world.round();
    assert_eq!(world.slots("m"), "a: 3");
    assert!(matches!(world.brain.renew("training", &world.fleet, world.now), Answer::Lease(_)));
    world.brain.release("training");
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
    let request = LeaseRequest {
        id: "x".into(),
        devices: 2,
        host: None,
        kind: None,
        group: "g".into(),
        holder: String::new(),
        until: None,
    };
    assert!(refused(world.brain.acquire(&request, &world.fleet, 0, world.now)).contains("1 could be lent"));
    assert!(refused(world.brain.release("z")).contains("no lease `z`"));
    let elsewhere = LeaseRequest { host: Some("z".into()), ..request };
    assert!(refused(world.brain.acquire(&elsewhere, &world.fleet, 0, world.now)).contains("no host `z`"));
    // Asking twice is asking once, but for nobody else.
    let request = LeaseRequest { devices: 1, host: None, holder: "ada".into(), ..elsewhere };
    for _ in 0..2 {
        assert!(matches!(world.brain.acquire(&request, &world.fleet, 0, world.now), Answer::Lease(_)));
    }
    let other = LeaseRequest { holder: "bob".into(), ..request };
    assert!(refused(world.brain.acquire(&other, &world.fleet, 0, world.now)).contains("held by ada"));
    assert!(matches!(world.brain.renew("x", &world.fleet, world.now), Answer::Lease(_)), "it is still ada's");
    assert!(matches!(world.brain.release("x"), Answer::Done));
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
fn a_paused_model_has_its_slots_again_when_its_host_is_back() {
    let mut world = World::new(&[("a", 4)], Vec::new());
    world.deploy("m", "min_slots = 2");
    world.rounds(3);
    world.deploy("m", "min_slots = 2\npaused = true");
    world.hosts.clear();
    world.rounds(20);
    assert_eq!(world.slots("m"), "");
    world.hosts.insert("a".into(), 4);
    world.rounds(3);
    assert_eq!(world.slots("m"), "a: 2");
}

#[test]
fn two_leases_between_rounds_cannot_both_have_the_last_of_a_share() {
    let mut world = World::new(&[("a", 2), ("b", 2)], Vec::new());
    world.deploy("m", "min_slots = 2");
    world.rounds(3);
    let request = |id: &str| LeaseRequest {
        id: id.into(),
        devices: 1,
        host: None,
        kind: None,
        group: "research".into(),
        holder: String::new(),
        until: None,
    };
    assert!(matches!(world.brain.acquire(&request("one"), &world.fleet, 0, world.now), Answer::Lease(_)));
    assert!(matches!(world.brain.acquire(&request("two"), &world.fleet, 0, world.now), Answer::Refused(_)));
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
