//! Rounds of decisions over hosts that obey at once.

use sluice_core::assignment::Assignment;
use sluice_core::manifest::Manifest;
use sluice_core::report::{DeviceReport, Measured, ModelReport, Report, State};
use sluice_core::scaler::{Answer, Explanation, LeaseRequest};

use super::*;

mod demand;
mod failures;
mod idle;
mod leases;
mod scarcity;

/// Models, hosts that do as they are told, and a clock.
struct World {
    models: BTreeMap<ModelName, Arc<Entry>>,
    queues: BTreeMap<ModelName, Reading<Queued>>,
    fleet: Fleet,
    brain: Brain,
    now: Duration,
    /// Hosts and their devices.
    hosts: BTreeMap<String, Vec<DeviceReport>>,
    /// Devices, as in `a/cpu`, on which nothing comes to serve, and what is said of it there instead.
    states: Vec<(&'static str, Option<State>)>,
    /// Hosts that say they serve, and take no request.
    idlers: Vec<&'static str>,
    /// A model that loads nowhere.
    broken_model: Option<&'static str>,
    told: BTreeMap<String, Wanted>,
    /// As hosts measure it.
    rows_per_request: f64,
    memory_mib: u64,
}

fn name(text: &str) -> ModelName {
    text.parse().expect("a name")
}

/// For one device of any host.
fn request(id: &str) -> LeaseRequest {
    LeaseRequest {
        id: id.into(),
        devices: 1,
        host: None,
        kind: None,
        group: "research".into(),
        holder: "ada".into(),
        until: None,
    }
}

impl World {
    fn new(hosts: &[(&str, usize)], groups: Vec<Group>) -> Self {
        let mut world = World {
            models: BTreeMap::new(),
            queues: BTreeMap::new(),
            fleet: Fleet::default(),
            brain: Brain::new(groups),
            now: Duration::ZERO,
            hosts: BTreeMap::new(),
            states: Vec::new(),
            idlers: Vec::new(),
            broken_model: None,
            told: BTreeMap::new(),
            rows_per_request: 1.0,
            memory_mib: 0,
        };
        hosts.iter().for_each(|(host, room)| world.host(host, *room));
        world
    }

    /// A host whose processors have room for so many slots.
    fn host(&mut self, host: &str, room: usize) {
        self.device(host, "cpu", room);
    }

    fn device(&mut self, host: &str, name: &str, capacity: usize) {
        let device = DeviceReport { name: name.into(), capacity, memory_mib: Some(10_000) };
        self.hosts.entry(host.into()).or_default().push(device);
    }

    fn deploy(&mut self, model: &str, scaling: &str) {
        self.deploy_as(model, &format!("scale_down_delay = \"5s\"\nidle_to_zero = \"10s\"\n{scaling}"));
    }

    fn deploy_as(&mut self, model: &str, scaling: &str) {
        let text = format!(
            "name = \"{model}\"\nengine = \"torchscript\"\nfile = \"model.pt\"\n\
             inputs = [{{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }}]\n\
             outputs = [{{ name = \"y\", datatype = \"FP32\", shape = [-1, 4] }}]\n\
             [scaling]\n{scaling}\n"
        );
        let manifest = Manifest::parse(&text).expect("a manifest");
        self.models.insert(name(model), Arc::new(Entry { manifest, started: true, revision: 1, at: 0 }));
        self.wait(model, 0);
    }

    /// So many requests wait from now on; each takes 0.1 s.
    fn wait(&mut self, model: &str, ready: u64) {
        self.queues.insert(name(model), Reading::Known(Queued { ready, in_flight: Some(0) }));
    }

    /// Half a second, in which hosts report that they do what they were told before.
    fn round(&mut self) -> Round {
        self.now += Duration::from_millis(500);
        for (host, devices) in &self.hosts {
            let wanted = self.told.get(host).cloned().unwrap_or_default();
            let running = |of: &Assigned| {
                let place = format!("{host}/{}", of.device);
                let state =
                    self.states.iter().find(|(at, _)| *at == place).map_or(Some(State::Ready), |(_, state)| *state);
                let broken = self.broken_model.is_some_and(|broken| of.model == name(broken));
                let state = if broken { Some(State::Failed) } else { state };
                let report = ModelReport::new(of.model.clone(), Some(1), state?);
                let (rows_per_request, memory_mib) = (self.rows_per_request, self.memory_mib);
                let requests_held = u64::from(!self.idlers.contains(&host.as_str()));
                let measured =
                    Measured { row_seconds: 0.1, rows_per_request, memory_mib, requests_held, ..Measured::default() };
                let ready = state == Some(State::Ready);
                let (slots, serving) = if ready { (of.slots, Some("1".into())) } else { (0, None) };
                Some(ModelReport { slots, serving, measured, device: of.device.clone(), ..report })
            };
            let models = wanted.slots.iter().filter_map(running).collect();
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
                instance: String::new(),
                taken_by: None,
                refuses: None,
                models,
                devices: devices.clone(),
                labels: BTreeMap::from([("name".to_owned(), host.clone())]),
                assignment: Some(assignment),
                registry: None,
                draining: false,
            };
            self.fleet.hear(report, self.now).expect("there is room");
        }
        let World { models, queues, fleet, brain, now, .. } = self;
        fleet.forget(|model| models.contains_key(model));
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

    fn acquire(&mut self, request: &LeaseRequest) -> Answer {
        self.brain.acquire(request, &self.fleet, 0, self.now)
    }

    fn explain(&self, model: &str) -> Explanation {
        match self.brain.explain(&name(model)) {
            Answer::Explained(explanation) => explanation,
            other => panic!("{other:?}"),
        }
    }
}
