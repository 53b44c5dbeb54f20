//! What the hosts say: the newest report of each, how long ago it came, and what follows from all of them about a model.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use sluice_core::ModelName;
use sluice_core::assignment::Gate;
use sluice_core::bounds::HOSTS;
use sluice_core::clock::UnixMs;
use sluice_core::report::{DeviceReport, ModelReport, Report, SIGN_OF_LIFE, State};
use sluice_core::scaler::Silent;

use crate::place::{Device, Host, Lent, Place};

/// A host that has not reported for so long is dead; with the round that finds it out, its slots are elsewhere within three reports' time.
pub const DEAD_AFTER: Duration = SIGN_OF_LIFE.saturating_mul(5).checked_div(2).expect("2 is not 0");
/// What is known of a silent host is kept for so long, to be shown.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// A process that begins under the name of one that lived just now has succeeded it, if that says nothing for so long.
const SUCCEEDS_AFTER: Duration = SIGN_OF_LIFE.saturating_mul(5).checked_div(4).expect("4 is not 0");
const PRUNED_EVERY: Duration = Duration::from_secs(30);
/// Beyond so many requests, what a host says of their size weighs no more.
const ENOUGH_REQUESTS: f64 = 100.0;

/// The hosts.
#[derive(Debug, Default)]
pub struct Fleet {
    hosts: BTreeMap<String, Heard>,
    /// Other processes that report under the name of one of these, by that name.
    twins: BTreeMap<String, Twin>,
    /// Of each host's process, when it began and the rows that are counted of each model, which may come and go meanwhile.
    counted: BTreeMap<String, (UnixMs, RowsOf)>,
    /// Rows that were run of each model since this began to listen.
    done: BTreeMap<ModelName, u64>,
    /// By model, the revision that did not load, where that was tried last, and why.
    failed: BTreeMap<ModelName, (u64, String)>,
    /// When silent hosts were last forgotten.
    pruned: Duration,
}

/// A process that reports under the name of another.
#[derive(Debug)]
struct Twin {
    heard: Heard,
    /// Whether both were heard since both began: else the first may have ended without a word.
    proven: bool,
    /// When it was heard again after neither was: the first may still follow.
    back: Option<Duration>,
}

/// Rows by model and device.
type RowsOf = BTreeMap<(ModelName, String), u64>;

/// What a host said.
#[derive(Debug)]
pub struct Heard {
    /// Its newest report.
    pub report: Report,
    /// When it came.
    pub at: Duration,
}

impl Heard {
    fn lives(&self, now: Duration) -> bool {
        now.saturating_sub(self.at) < DEAD_AFTER
    }
}

/// What was measured of a model on all hosts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measured {
    /// Requests in hand.
    pub held: u64,
    /// Of these, those that slots run.
    pub running: u64,
    /// Rows of a request.
    pub rows_per_request: Option<f64>,
    /// Seconds that a row takes on a slot.
    pub row_seconds: Option<f64>,
    /// The longest time that one took to load.
    pub cold_start: Option<Duration>,
    /// MiB that it takes where it takes most.
    pub memory_mib: u64,
    /// Whether each slot has a copy of it.
    pub copied: bool,
    /// Slots that serve.
    pub serving: usize,
    /// Hosts that serve it and cannot receive its requests.
    pub deaf: usize,
    /// Of these, on hosts whose configuration says what they run.
    pub listed: usize,
}

impl Fleet {
    /// Takes a report; an error if it is of one host too many.
    pub fn hear(&mut self, report: Report, now: Duration) -> Result<(), String> {
        // At once where room is lacking: whoever makes hosts up is not to keep real ones out for long.
        let full = self.hosts.len() >= HOSTS && !self.hosts.contains_key(&report.host);
        if full || now.saturating_sub(self.pruned) >= PRUNED_EVERY {
            self.prune(if full { DEAD_AFTER } else { FORGOTTEN_AFTER }, now);
        }
        if full && self.hosts.len() >= HOSTS {
            return Err(format!("{HOSTS} hosts report already: more are not counted"));
        }
        let Some(report) = self.of_twins(report, now) else { return Ok(()) };
        let known = self.counted.contains_key(&report.host);
        let (started, counted) = self.counted.entry(report.host.clone()).or_default();
        let before = std::mem::replace(started, report.started);
        if before != report.started {
            counted.clear();
        }
        // Of a process that began later all is new; one that comes back did most of it before.
        let known = known && report.started >= before;
        for model in &report.models {
            match (&model.serving, model.state, model.revision) {
                (Some(_), ..) => _ = self.failed.remove(&model.model),
                (None, State::Failed, Some(revision)) => {
                    let device = if model.device.is_empty() { String::new() } else { format!("/{}", model.device) };
                    let reason = model.reason.as_deref().unwrap_or("no reason given");
                    let failed = (revision, format!("{}{device}: {reason}", report.host));
                    self.failed.insert(model.model.clone(), failed);
                }
                _ => {}
            }
            let rows = model.measured.rows;
            let before = counted.insert((model.model.clone(), model.device.clone()), rows);
            // What a host did before it was first heard is old.
            let before = before.unwrap_or(if known { 0 } else { rows });
            let done = self.done.entry(model.model.clone()).or_default();
            *done = done.saturating_add(rows.saturating_sub(before));
        }
        self.hosts.insert(report.host.clone(), Heard { report, at: now });
        Ok(())
    }

    /// Forgets who was not heard for so long. Now and then: looking at all for each report would cost their number squared.
    fn prune(&mut self, after: Duration, now: Duration) {
        // Of many that are one too many in a moment, the first has looked.
        if after < FORGOTTEN_AFTER && now.saturating_sub(self.pruned) < DEAD_AFTER {
            return;
        }
        self.pruned = now;
        self.hosts.retain(|_, heard| now.saturating_sub(heard.at) < after);
        self.counted.retain(|host, _| self.hosts.contains_key(host));
    }

    /// Of two processes under one name, the one that began first does the work; the reports of the other are kept apart.
    fn of_twins(&mut self, report: Report, now: Duration) -> Option<Report> {
        let Some(first) = self.hosts.get(&report.host) else { return Some(report) };
        if first.report.instance == report.instance {
            if let Some(twin) = self.twins.get_mut(&report.host).filter(|twin| twin.heard.lives(now)) {
                twin.proven = true;
            }
            return Some(report);
        }
        let began = |report: &Report| (report.started, report.instance.clone());
        let twin = self.twins.remove(&report.host).filter(|twin| twin.heard.report.instance == report.instance);
        let proven = twin.as_ref().is_some_and(|twin| twin.proven);
        // What silenced both, such as the broker's end, is over: whoever of them is heard first says nothing of the other.
        let back = twin.and_then(|twin| if twin.heard.lives(now) { twin.back } else { Some(now) });
        let waits_for_first = proven && back.is_some_and(|back| now.saturating_sub(back) < SUCCEEDS_AFTER);
        if waits_for_first && !first.lives(now) && began(&report) > began(&first.report) && !report.draining {
            let heard = Heard { report, at: now };
            self.twins.insert(heard.report.host.clone(), Twin { heard, proven, back });
            return None;
        }
        if !first.lives(now) || first.report.draining || first.report.instance.is_empty() {
            return Some(report);
        }
        if began(&report) < began(&first.report) {
            // It has reported, so it has not ended; whoever was taken for its successor is another.
            let first = self.hosts.remove(&report.host)?;
            self.twins.insert(report.host.clone(), Twin { heard: first, proven: true, back: None });
            return Some(report);
        }
        if !proven && now.saturating_sub(first.at) >= SUCCEEDS_AFTER {
            return Some(report);
        }
        if !report.draining {
            let heard = Heard { report, at: now };
            self.twins.insert(heard.report.host.clone(), Twin { heard, proven, back: None });
        }
        None
    }

    /// The process that reports under the name of one that lives, if there is one.
    pub fn twin(&self, host: &str, now: Duration) -> Option<&Report> {
        let twin = self.twins.get(host).filter(|twin| twin.proven && twin.heard.lives(now))?;
        Some(&twin.heard.report)
    }

    /// Those that live.
    pub fn alive(&self, now: Duration) -> impl Iterator<Item = &Report> {
        self.remembered(now).filter(|(_, lives)| *lives).map(|(report, _)| report)
    }

    /// Forgets what was counted of models that are not deployed any more.
    pub fn forget(&mut self, deployed: impl Fn(&ModelName) -> bool) {
        self.done.retain(|model, _| deployed(model));
        self.failed.retain(|model, _| deployed(model));
    }

    /// The newest report of each that is remembered, silent ones too, and whether it lives.
    pub fn remembered(&self, now: Duration) -> impl Iterator<Item = (&Report, bool)> {
        self.hosts.values().map(move |heard| (&heard.report, heard.lives(now)))
    }

    /// Those that were heard in the last ten minutes and do not live now, unless they said that they were about to end.
    pub fn silent(&self, now: Duration) -> Vec<Silent> {
        let silent = self.hosts.values().filter(|heard| !heard.lives(now) && !heard.report.draining);
        let since = |heard: &Heard| now.saturating_sub(heard.at).as_secs();
        silent.map(|heard| Silent { report: heard.report.clone(), silent_seconds: since(heard) }).collect()
    }

    /// Whether a host was heard in the last ten minutes.
    pub fn remembers(&self, name: &str) -> bool {
        self.hosts.contains_key(name)
    }

    /// One that lives.
    pub fn host(&self, name: &str, now: Duration) -> Option<&Report> {
        let heard = self.hosts.get(name)?;
        heard.lives(now).then_some(&heard.report)
    }

    /// Rows run of a model, only ever growing.
    pub fn done(&self, model: &ModelName) -> u64 {
        self.done.get(model).copied().unwrap_or(0)
    }

    /// Where a model's revision was tried last and did not load, and why; none if any host serves the model.
    pub fn failure(&self, model: &ModelName, revision: u64, now: Duration) -> Option<&str> {
        let (_, failure) = self.failed.get(model).filter(|(failed, _)| *failed == revision)?;
        let mut reports = self.alive(now).flat_map(|report| &report.models);
        let served = reports.any(|report| report.model == *model && report.serving.is_some());
        (!served).then_some(failure)
    }

    /// What is known of each model, in one look at all reports.
    pub fn measure(&self, now: Duration) -> HashMap<&ModelName, Measured> {
        let mut all: HashMap<&ModelName, (Measured, Mean, Mean)> = HashMap::new();
        for report in self.alive(now) {
            for model in &report.models {
                let (measured, row_seconds, rows_per_request) = all.entry(&model.model).or_default();
                let seen = &model.measured;
                measured.held = measured.held.saturating_add(seen.requests_held);
                measured.running = measured.running.saturating_add(seen.requests_running);
                measured.serving = measured.serving.saturating_add(model.slots);
                measured.deaf += usize::from(model.receives_nothing);
                measured.memory_mib = measured.memory_mib.max(seen.memory_mib);
                measured.copied |= seen.copied && model.serving.is_some();
                if report.assignment.is_none() {
                    measured.listed = measured.listed.saturating_add(model.slots);
                }
                if seen.cold_start_seconds > 0.0 {
                    let took = Duration::try_from_secs_f64(seen.cold_start_seconds).unwrap_or_default();
                    measured.cold_start = Some(measured.cold_start.unwrap_or_default().max(took));
                }
                // Each slot counts once; of sizes, each request that was seen, so that one odd request of a new host says little.
                row_seconds.add(seen.row_seconds, model.slots.max(1) as f64);
                let requests = seen.rows as f64 / seen.rows_per_request.max(1.0);
                rows_per_request.add(seen.rows_per_request, requests.clamp(1.0, ENOUGH_REQUESTS));
            }
        }
        let mean = |(model, (measured, row_seconds, rows_per_request)): (_, (Measured, Mean, Mean))| {
            let (row_seconds, rows_per_request) = (row_seconds.value(), rows_per_request.value());
            (model, Measured { row_seconds, rows_per_request, ..measured })
        };
        all.into_iter().map(mean).collect()
    }

    /// What a host that lives says of a model on a device; `Some(None)` if it says nothing of it.
    pub fn said(&self, model: &ModelName, (host, device): &Place, now: Duration) -> Option<Option<&ModelReport>> {
        let report = self.host(host, now)?;
        Some(report.models.iter().find(|of| of.device == *device && of.model == *model))
    }
}

/// Those of these hosts, in the order of their names, on which slots may be placed as their gates let them, and which of their devices are lent.
pub fn open(told: &[(&Report, Gate)], lent: &BTreeMap<Place, Lent>) -> Vec<Host> {
    let device = |device: &DeviceReport| Device {
        name: device.name.clone(),
        capacity: device.capacity,
        memory_mib: device.memory_mib,
        lent: None,
    };
    let host = |(report, gate): &(&Report, Gate)| Host {
        name: report.host.clone(),
        labels: report.labels.clone(),
        takes_more: *gate == Gate::Open,
        devices: report.devices.iter().map(device).collect(),
    };
    let takes = |(report, gate): &&(&Report, Gate)| !report.draining && *gate != Gate::Drained;
    let mut hosts: Vec<Host> = told.iter().filter(takes).map(host).collect();
    for ((host, device), lent) in lent {
        if let Ok(at) = hosts.binary_search_by(|of| of.name.cmp(host))
            && let Some(device) = hosts[at].devices.iter_mut().find(|of| of.name == *device)
        {
            device.lent = Some(lent.clone());
        }
    }
    hosts
}

/// A weighted mean of what is above zero.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64, weight: f64) {
        if value > 0.0 && value.is_finite() {
            self.sum += value * weight;
            self.weight += weight;
        }
    }

    fn value(self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(fleet: &mut Fleet, report: Report, now: Duration) {
        fleet.hear(report, now).expect("there is room");
    }

    fn report(host: &str, started: u64, rows: u64, row_seconds: f64) -> Report {
        let model = ModelReport::new("m".parse().expect("a name"), Some(1), State::Ready);
        let measured = sluice_core::report::Measured { rows, row_seconds, requests_held: 2, ..Default::default() };
        Report {
            host: host.into(),
            at: 0,
            started,
            instance: format!("{host}-{started}"),
            taken_by: None,
            refuses: None,
            models: vec![ModelReport { slots: 1, measured, device: "cpu".into(), ..model }],
            devices: Vec::new(),
            labels: BTreeMap::new(),
            assignment: Some(Default::default()),
            registry: None,
            draining: false,
        }
    }

    #[test]
    fn one_odd_request_of_a_host_says_little() {
        let mut fleet = Fleet::default();
        for (host, rows, rows_per_request) in [("old", 5_000, 2.0), ("new", 512, 512.0)] {
            let mut report = report(host, 1, rows, 0.1);
            report.models[0].measured.rows_per_request = rows_per_request;
            hear(&mut fleet, report, Duration::ZERO);
        }
        let rows = fleet.measure(Duration::ZERO).into_values().next().and_then(|of| of.rows_per_request);
        assert!(rows.is_some_and(|rows| (2.0..10.0).contains(&rows)), "{rows:?}");
    }

    #[test]
    fn of_two_processes_under_one_name_the_first_works_and_the_other_succeeds_it() {
        let ms = Duration::from_millis;
        let mut fleet = Fleet::default();
        let (first, second) = (report("a", 1, 0, 0.1), report("a", 2, 0, 0.1));
        let works = |fleet: &Fleet, now| fleet.host("a", now).map(|report| report.started);
        let twin = |fleet: &Fleet, now| fleet.twin("a", now).map(|report| report.started);
        hear(&mut fleet, first.clone(), ms(0));
        hear(&mut fleet, second.clone(), ms(1000));
        assert_eq!((works(&fleet, ms(1000)), twin(&fleet, ms(1000))), (Some(1), None), "the first may have ended");
        hear(&mut fleet, first.clone(), ms(2000));
        assert_eq!((works(&fleet, ms(2000)), twin(&fleet, ms(2000))), (Some(1), Some(2)), "it has not");
        hear(&mut fleet, second.clone(), ms(3000));
        hear(&mut fleet, second.clone(), ms(5000));
        assert_eq!((works(&fleet, ms(5000)), twin(&fleet, ms(5000))), (Some(1), Some(2)), "late is not dead");
        hear(&mut fleet, second.clone(), ms(7000));
        assert_eq!((works(&fleet, ms(7000)), twin(&fleet, ms(7000))), (Some(2), None), "now it is");
        // Neither was heard for a while, and the other comes back first; and then the first does not.
        let mut away = Fleet::default();
        for (report, at) in [(&first, 0), (&second, 1000), (&first, 2000), (&second, 3000)] {
            hear(&mut away, report.clone(), ms(at));
        }
        hear(&mut away, second.clone(), ms(10_000));
        assert_eq!(works(&away, ms(10_000)), None, "the first may follow");
        hear(&mut away, first.clone(), ms(10_500));
        assert_eq!((works(&away, ms(10_500)), twin(&away, ms(10_500))), (Some(1), Some(2)));
        for at in [20_000, 22_000, 24_000] {
            hear(&mut away, second.clone(), ms(at));
        }
        assert_eq!((works(&away, ms(24_000)), twin(&away, ms(24_000))), (Some(2), None), "it has ended");
        // It was only cut off.
        hear(&mut fleet, first.clone(), ms(7500));
        assert_eq!((works(&fleet, ms(7500)), twin(&fleet, ms(7500))), (Some(1), Some(2)));
        // One that comes back has done nothing lately.
        let model: ModelName = "m".parse().expect("a name");
        let mut fleet = Fleet::default();
        hear(&mut fleet, report("a", 1, 1_000_000, 0.1), ms(0));
        hear(&mut fleet, second.clone(), ms(7000));
        hear(&mut fleet, report("a", 1, 1_000_005, 0.1), ms(7500));
        assert_eq!(fleet.done(&model), 0);
        // One that was started anew, by a supervisor after a crash.
        let mut fleet = Fleet::default();
        hear(&mut fleet, first, ms(0));
        hear(&mut fleet, second.clone(), ms(500));
        hear(&mut fleet, second, ms(2500));
        assert_eq!((works(&fleet, ms(2500)), twin(&fleet, ms(2500))), (Some(2), None));
    }

    #[test]
    fn hosts_that_are_made_up_take_no_more_than_so_much() {
        let mut fleet = Fleet::default();
        let seconds = Duration::from_secs;
        hear(&mut fleet, report("real", 1, 0, 0.1), seconds(40));
        for number in 1..HOSTS {
            hear(&mut fleet, report(&format!("made-up-{number}"), 1, 0, 0.1), seconds(40));
        }
        assert!(fleet.hear(report("late", 1, 0, 0.1), seconds(41)).is_err_and(|told| told.contains("10000 hosts")));
        hear(&mut fleet, report("real", 1, 0, 0.1), seconds(44));
        hear(&mut fleet, report("late", 1, 0, 0.1), seconds(46));
        assert_eq!(fleet.alive(seconds(46)).count(), 2, "those that say nothing more have made room");
    }

    #[test]
    fn hosts_that_receive_nothing_are_counted() {
        let mut fleet = Fleet::default();
        for (host, deaf) in [("a", true), ("b", false)] {
            let mut report = report(host, 1, 1, 0.1);
            report.models[0].receives_nothing = deaf;
            hear(&mut fleet, report, Duration::ZERO);
        }
        assert_eq!(fleet.measure(Duration::ZERO).into_values().next().map(|of| of.deaf), Some(1));
    }

    #[test]
    fn rows_are_counted_over_restarts_and_silent_hosts_are_dead() {
        let model: ModelName = "m".parse().expect("a name");
        let mut fleet = Fleet::default();
        let seconds = Duration::from_secs;
        hear(&mut fleet, report("a", 1, 100, 0.1), seconds(0));
        hear(&mut fleet, report("a", 1, 150, 0.1), seconds(2));
        hear(&mut fleet, report("b", 1, 10, 0.3), seconds(2));
        assert_eq!(fleet.done(&model), 50);
        // Started anew, and the one before has said that it ends: it counts from zero.
        hear(&mut fleet, Report { draining: true, ..report("a", 1, 150, 0.1) }, seconds(4));
        hear(&mut fleet, report("a", 2, 5, 0.1), seconds(4));
        assert_eq!(fleet.done(&model), 55);
        let measured = fleet.measure(seconds(5))[&model];
        assert_eq!((measured.held, measured.serving, measured.row_seconds), (4, 2, Some(0.2)));
        assert_eq!(fleet.alive(seconds(7)).count(), 1, "b was heard at 2 s");
        assert_eq!(fleet.alive(seconds(9)).count(), 0);
        hear(&mut fleet, Report { draining: true, ..report("c", 1, 0, 0.1) }, seconds(4));
        let silent = fleet.silent(seconds(15));
        let silent: Vec<(&str, u64)> = silent.iter().map(|of| (of.report.host.as_str(), of.silent_seconds)).collect();
        assert_eq!(silent, [("a", 11), ("b", 13)], "c has ended in order");
        assert_eq!(fleet.done(&model), 55, "what was done stays done");
    }
}
