//! The state of a model that is served: what was received, what waits, what runs. Nothing here waits for a broker; `serve`
//! tells it what has happened.

mod slots;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use sluice_core::broker::{Consumer, Delivery};
use sluice_core::clock::{self, unix_ms};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::batcher::{Batcher, Entry, Next, Policy, Room};
use crate::engine::{Blame, EngineError};
use crate::intake::{self, Rejection, Request, Ticket};
use crate::reply::{Replier, Verdict};
use crate::serve::{Serving, Tuned};
use crate::slot::{Becomes, Finished, Job, Started, Unanswered, Work};
use slots::Slots;

/// How many batches' worth of requests each slot may hold: one runs, one is prepared, one is on its way.
const BATCHES_PER_SLOT: usize = 3;
/// However small the batches: one request runs, and one per lane is on its way.
const LEAST_CREDIT: usize = 4;
/// Until it is known how large requests are: raising it later costs nothing, lowering it does.
const FIRST_CREDIT: usize = 32;
/// However small the requests, no host holds more.
const MOST_CREDIT: usize = 4096;
/// However many wait to be sent on or answered, no host holds more beside those.
const MOST_WAITING: usize = 1024;

/// The state of a model that is served.
pub struct Station {
    serving: Serving,
    replier: Arc<Replier>,
    slots: Slots,
    batcher: Batcher<Request>,
    /// What slots run now or next, by batch.
    running: HashMap<u64, Running>,
    next_batch: u64,
    /// Requests that slots run, as the meter was told.
    requests_running: u64,
    pub decoding: JoinSet<Result<Request, (Box<Ticket>, Rejection)>>,
    pub replying: TaskTracker,
    /// As seen lately; `None` before the first.
    rows_per_request: Option<f64>,
    /// Each request here that was charged an attempt holds a share of this: one of them may have killed its worker.
    suspects: Arc<()>,
    /// Whether the request received last had not been charged; false before the first.
    unsuspected: bool,
    seconds_per_row: f64,
    /// Set when the process must not go on.
    pub fault: Option<String>,
}

struct Running {
    slot: usize,
    #[expect(clippy::vec_box, reason = "they stay in the boxes in which they came")]
    tickets: Vec<Box<Ticket>>,
    rows: usize,
}

impl Station {
    pub fn new(serving: Serving, started: Started, finished: mpsc::UnboundedSender<Finished>) -> Self {
        let manifest = &serving.package.manifest;
        let policy = Policy {
            max_rows: manifest.batching.max_rows,
            max_delay: manifest.batching.max_delay,
            row_time: Duration::ZERO,
        };
        Self {
            replier: serving.replier(),
            slots: Slots::new(started.slots, started.copies, finished, serving.metrics.slots()),
            serving,
            batcher: Batcher::new(policy),
            running: HashMap::new(),
            next_batch: 0,
            requests_running: 0,
            decoding: JoinSet::new(),
            replying: TaskTracker::new(),
            rows_per_request: None,
            suspects: Arc::default(),
            unsuspected: false,
            seconds_per_row: 0.0,
            fault: None,
        }
    }

    /// The same model with other limits, and perhaps more slots or fewer: what waits is batched by the new limits, what runs ends by the
    /// old ones.
    pub fn tune(&mut self, tuned: Tuned) -> Result<()> {
        let Tuned { package, count } = tuned;
        self.batcher.set_limits(package.manifest.batching.max_rows, package.manifest.batching.max_delay);
        self.serving.package = package;
        self.replier = self.serving.replier();
        self.serving.count = count;
        self.slots.resize(&self.serving.package, count)
    }

    /// Ends the slots, which are idle, and waits until the model is unloaded.
    pub async fn unload(self) {
        self.slots.unload().await;
    }

    pub fn model(&self) -> &str {
        self.serving.package.manifest.name.as_str()
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.decoding.is_empty() && self.batcher.len() == 0
    }

    /// Requests that slots can soon use. Only one while charged requests are here, or more of them may come: should one kill the process,
    /// whatever is held beside it is charged an attempt as well.
    pub fn credit(&self) -> usize {
        if !self.unsuspected || Arc::strong_count(&self.suspects) > 1 {
            return 1 + self.waiting();
        }
        let rows = BATCHES_PER_SLOT * self.slots.staying() * self.serving.package.manifest.batching.max_rows;
        let of_slots = (rows as f64 / self.rows_per_request.unwrap_or(1.0)).ceil() as usize;
        let most = if self.rows_per_request.is_some() { MOST_CREDIT } else { FIRST_CREDIT };
        of_slots.clamp(LEAST_CREDIT, most) + self.waiting()
    }

    /// Requests that only wait to be sent on or answered, as far as others are taken in their stead.
    pub fn waiting(&self) -> usize {
        self.replier.onward.waiting().min(MOST_WAITING)
    }

    pub fn receive(&mut self, delivery: Delivery) {
        let metrics = &self.serving.metrics;
        metrics.took();
        let now = SystemTime::now();
        let waited = now.duration_since(delivery.queued).unwrap_or_default();
        metrics.queue_seconds[delivery.lane.index()].observe(waited.as_secs_f64());
        let now = clock::unix_ms_of(now);
        self.unsuspected = delivery.charged == 0;
        let received = intake::receive(delivery, &self.serving.package.manifest.limits, now).map(|mut undecoded| {
            undecoded.ticket.suspect = (!self.unsuspected).then(|| Arc::clone(&self.suspects));
            undecoded
        });
        match received {
            Ok(undecoded) if undecoded.is_large() => {
                let package = Arc::clone(&self.serving.package);
                self.decoding.spawn_blocking(move || undecoded.decode(&package.manifest, unix_ms()));
            }
            Ok(undecoded) => {
                let decoded = undecoded.decode(&self.serving.package.manifest, now);
                self.enqueue(decoded);
            }
            Err((ticket, rejection)) => self.conclude(vec![(ticket, Verdict::Rejected(rejection))]),
        }
    }

    pub fn decoded(
        &mut self,
        decoded: Result<Result<Request, (Box<Ticket>, Rejection)>, tokio::task::JoinError>,
    ) -> Result<()> {
        self.enqueue(decoded.context("decoding a request")?);
        Ok(())
    }

    fn enqueue(&mut self, decoded: Result<Request, (Box<Ticket>, Rejection)>) {
        match decoded {
            Ok(mut request) => {
                let rows = request.rows as f64;
                let usual = self.rows_per_request.map_or(rows, |seen| 0.98 * seen + 0.02 * rows);
                self.rows_per_request = Some(usual);
                self.serving.metrics.meter.sized(usual);
                let entry = Entry {
                    rows: request.rows,
                    lane: request.ticket.lane.index(),
                    deadline: request.deadline,
                    arrived: request.fetched,
                    // It may be what killed the worker that had it.
                    alone: request.ticket.charged > 0,
                    shape: std::mem::take(&mut request.shape),
                };
                self.batcher.push(entry, request);
            }
            Err((ticket, rejection)) => self.conclude(vec![(ticket, Verdict::Rejected(rejection))]),
        }
    }

    /// Hands out what is due. Returns when to look again.
    pub fn dispatch(&mut self) -> Result<Option<Instant>> {
        let now = Instant::now();
        let expired = self.batcher.expired(now);
        if !expired.is_empty() {
            self.conclude(expired.into_iter().map(|request| (request.ticket, Verdict::ExpiredInBatch)).collect());
        }
        while let Some((slot, room)) = self.slots.free() {
            match self.batcher.next(room, now) {
                Next::Run(requests) => self.start(slot, room, requests, now)?,
                Next::At(wake) => return Ok(Some(wake)),
                Next::Nothing => return Ok(None),
            }
        }
        Ok(None)
    }

    fn start(&mut self, slot: usize, room: Room, requests: Vec<Request>, now: Instant) -> Result<()> {
        let batch = self.next_batch;
        self.next_batch += 1;
        let mut tickets = Vec::with_capacity(requests.len());
        let mut jobs = Vec::with_capacity(requests.len());
        let mut rows = 0;
        for request in requests {
            let waited = now.saturating_duration_since(request.fetched);
            self.serving.metrics.batch_wait_seconds.observe(waited.as_secs_f64());
            rows += request.rows;
            jobs.push(Job {
                id: request.ticket.id.clone(),
                content_type: request.ticket.content_type,
                inputs: request.inputs,
                outputs: request.outputs,
                becomes: if request.ticket.then.is_empty() { Becomes::Answer } else { Becomes::Request },
            });
            tickets.push(request.ticket);
        }
        self.running.insert(batch, Running { slot, tickets, rows });
        self.count_running();
        let largest_answer = self.serving.broker.largest_message();
        let work = Work { batch, package: Arc::clone(&self.serving.package), jobs, largest_answer, gathered: None };
        self.slots.give(slot, room, work)
    }

    pub fn finish(&mut self, done: Finished) {
        let Finished { slot, batch, answers, executions, took } = done;
        self.slots.done(slot);
        let Some(Running { tickets, rows, .. }) = self.running.remove(&batch) else { return };
        self.count_running();
        let metrics = &self.serving.metrics;
        metrics.compute_seconds.observe(took.as_secs_f64());
        for rows in &executions {
            metrics.batch_rows.observe(*rows as f64);
        }
        let pieces = tickets.len() == 1;
        if executions.len() > 1 && !pieces {
            metrics.batches_split.inc()
        } else {
            metrics.batches_ok.inc()
        }
        metrics.rows.inc_by(rows as u64);
        let measured = took.as_secs_f64() / rows.max(1) as f64;
        self.seconds_per_row =
            if self.seconds_per_row == 0.0 { measured } else { 0.9 * self.seconds_per_row + 0.1 * measured };
        self.batcher.set_row_time(Duration::from_secs_f64(self.seconds_per_row));
        self.serving.metrics.meter.ran(rows, self.seconds_per_row);
        let mut verdicts = Vec::with_capacity(tickets.len());
        for (ticket, answer) in tickets.into_iter().zip(answers) {
            let verdict = match answer {
                Ok(body) => Verdict::Answered(body),
                Err(Unanswered::TooLarge { size, limit }) => Verdict::TooLarge { size, limit },
                Err(Unanswered::Failed(error)) => {
                    if error.blame == Blame::Process {
                        self.fault = Some(error.detail.clone());
                    }
                    Verdict::Failed(error)
                }
            };
            verdicts.push((ticket, verdict));
        }
        self.conclude(verdicts);
    }

    /// Tells the meter how many requests run: of what a slot was given, the oldest batch.
    fn count_running(&mut self) {
        let mut oldest: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for (batch, running) in &self.running {
            let this = (*batch, running.tickets.len() as u64);
            oldest.entry(running.slot).and_modify(|oldest| *oldest = this.min(*oldest)).or_insert(this);
        }
        let now = oldest.values().map(|(_, requests)| requests).sum();
        self.serving.metrics.meter.runs(self.requests_running, now);
        self.requests_running = now;
    }

    /// Ends requests, without waiting for it.
    fn conclude(&self, verdicts: Vec<(Box<Ticket>, Verdict)>) {
        // Most are ended at the first poll. The others all at once, since a durable answer takes a round trip.
        let unfinished = FuturesUnordered::new();
        for (ticket, verdict) in verdicts {
            let mut ending = Box::pin(Arc::clone(&self.replier).conclude(ticket, verdict));
            if ending.as_mut().now_or_never().is_none() {
                unfinished.push(ending);
            }
        }
        if !unfinished.is_empty() {
            self.replying.spawn(unfinished.collect::<()>());
        }
    }

    /// Stops intake and hands back what waits. What runs goes on.
    pub async fn drain(&mut self, consumer: Option<Box<dyn Consumer>>) {
        let waiting = self.batcher.drain();
        debug!(model = self.model(), waiting = waiting.len(), running = self.running.len(), "draining");
        if let Some(consumer) = consumer {
            consumer.stop().await;
        }
        self.conclude(waiting.into_iter().map(|request| (request.ticket, Verdict::GivenBack)).collect());
    }

    /// Looks for an execution that has taken longer than the model allows. Its thread cannot be stopped, so the process
    /// has to end; the requests that it ran are charged an attempt.
    pub fn watch(&mut self) {
        let limit = self.serving.package.manifest.limits.batch_time;
        let Some(slot) = self.slots.hung(limit) else { return };
        let reason = format!("an execution of model `{}` has not ended within {limit:?}", self.model());
        let oldest = self.running.iter().filter(|(_, running)| running.slot == slot).map(|(batch, _)| *batch).min();
        if let Some(running) = oldest.and_then(|batch| self.running.remove(&batch)) {
            let error = EngineError::new(Blame::Process, reason.clone());
            self.conclude(running.tickets.into_iter().map(|ticket| (ticket, Verdict::Failed(error.clone()))).collect());
        }
        // What was to run next on that slot never will.
        let next: Vec<u64> =
            self.running.iter().filter(|(_, running)| running.slot == slot).map(|(batch, _)| *batch).collect();
        for batch in next {
            if let Some(running) = self.running.remove(&batch) {
                self.conclude(running.tickets.into_iter().map(|ticket| (ticket, Verdict::GivenBack)).collect());
            }
        }
        self.fault = Some(reason);
    }
}
