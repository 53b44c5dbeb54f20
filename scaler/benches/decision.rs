//! One round of decisions for growing fleets: every queue was read, every host has reported.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sluice_core::assignment::{Assigned, Assignment};
use sluice_core::broker::Reading;
use sluice_core::report::{DeviceReport, Measured, ModelReport, Report, State};
use sluice_core::{Manifest, ModelName};
use sluice_scaler::brain::{Brain, Queued, Seen};
use sluice_scaler::catalog::Entry;
use sluice_scaler::fleet::Fleet;

/// `count` models on as many hosts. Half of them lag; each host runs four slots of what it was told.
struct World {
    models: BTreeMap<ModelName, Arc<Entry>>,
    queues: BTreeMap<ModelName, Reading<Queued>>,
    fleet: Fleet,
    brain: Brain,
    now: Duration,
    capacity: usize,
}

fn name(index: usize) -> ModelName {
    format!("model-{index}").parse().expect("a name")
}

fn world(count: usize, capacity: usize) -> World {
    let manifest = |index: usize| {
        let text = format!(
            "name = \"model-{index}\"\nengine = \"torchscript\"\nfile = \"model.pt\"\n\
             inputs = [{{ name = \"x\", datatype = \"FP32\", shape = [-1, 4] }}]\n\
             outputs = [{{ name = \"y\", datatype = \"FP32\", shape = [-1, 4] }}]\n\
             [scaling]\ngroup = \"team-{}/part-{}\"\n[resources]\nmemory_mib = 500\n",
            index % 7,
            index % 21
        );
        Manifest::parse(&text).expect("a manifest")
    };
    let entry = |index| Arc::new(Entry { manifest: manifest(index), started: true, revision: 1, at: 0 });
    let models = (0..count).map(|index| (name(index), entry(index))).collect();
    let queued = |index: usize| Queued { ready: (index as u64 % 2) * (10 + index as u64 % 50), in_flight: Some(2) };
    let queues = (0..count).map(|index| (name(index), Reading::Known(queued(index)))).collect();
    let (fleet, brain) = (Fleet::default(), Brain::new(Vec::new()));
    let mut world = World { models, queues, fleet, brain, now: Duration::ZERO, capacity };
    report(&mut world, count, &BTreeMap::new());
    for _ in 0..3 {
        let wanted = round(&mut world);
        report(&mut world, count, &wanted);
    }
    world
}

fn round(world: &mut World) -> BTreeMap<String, Vec<Assigned>> {
    world.now += Duration::from_millis(500);
    let World { models, queues, fleet, brain, now, .. } = world;
    let round = brain.round(&Seen { models, queues, fleet, clock: now.as_millis() as u64, now: *now });
    round.wanted.into_iter().map(|(host, wanted)| (host, wanted.slots)).collect()
}

/// Every host says that it runs what it was told.
fn report(world: &mut World, count: usize, wanted: &BTreeMap<String, Vec<Assigned>>) {
    for index in 0..count {
        let host = format!("host-{index}");
        let slots = wanted.get(&host).cloned().unwrap_or_default();
        let running = |of: &Assigned| ModelReport {
            slots: of.slots,
            device: of.device.clone(),
            serving: Some("1".into()),
            measured: Measured { row_seconds: 0.1, rows_per_request: 1.0, rows: 100, ..Measured::default() },
            ..ModelReport::new(of.model.clone(), Some(1), State::Ready)
        };
        let report = Report {
            host: host.clone(),
            at: 0,
            started: 1,
            instance: String::new(),
            taken_by: None,
            refuses: None,
            models: slots.iter().map(running).collect(),
            devices: vec![DeviceReport { name: "cpu".into(), capacity: world.capacity, memory_mib: Some(16_000) }],
            labels: BTreeMap::new(),
            assignment: Some(Assignment { host, slots, ..Assignment::default() }),
            registry: None,
            draining: false,
        };
        world.fleet.hear(report, world.now).expect("there is room");
    }
}

fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round");
    group.sample_size(20);
    // With one slot for each host there is not room for all, and shares decide.
    for (name, capacity, count) in [
        ("room", 4, 250),
        ("room", 4, 500),
        ("room", 4, 1000),
        ("room", 4, 2000),
        ("scarce", 1, 500),
        ("scarce", 1, 1000),
    ] {
        let mut world = world(count, capacity);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new(name, count), |bencher| {
            bencher.iter(|| {
                // The clock stands: a host that was heard stays alive.
                world.now -= Duration::from_millis(500);
                black_box(round(&mut world))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decisions);
criterion_main!(benches);
