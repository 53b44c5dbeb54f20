//! A slot: one OS thread that runs batches of one model, one after the other, and encodes the answers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use sluice_core::codec::{self, ContentType};
use sluice_core::{InferRequest, InferResponse, ModelName, RequestId, Tensor};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::engine::{self, Blame, Device, EngineError, Gathered, Loaded, Model, run_requests};
use crate::memory::{Copies, Reservation};
use crate::package::Package;

/// The pause before a copy of a model is loaded again that could not be loaded, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How soon a thread that waits for that notices that its slot is taken back.
const LOOK: Duration = Duration::from_millis(100);

/// libtorch's forward overflows a small stack, which aborts the process.
pub const STACK: usize = 16 * 1024 * 1024;

/// A request, as far as a slot needs it.
pub struct Job {
    pub id: Option<RequestId>,
    pub content_type: ContentType,
    pub inputs: Vec<Tensor>,
    /// Outputs wanted; empty for all.
    pub outputs: Vec<usize>,
    pub becomes: Becomes,
}

/// What outputs are encoded as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Becomes {
    /// An answer to whoever asked.
    Answer,
    /// A request to the next model of a pipeline.
    Request,
}

/// A batch for a slot.
pub struct Work {
    /// The number under which its tickets are kept.
    pub batch: u64,
    /// As it was when the batch was cut: a model may be tuned while it serves.
    pub package: Arc<Package>,
    pub jobs: Vec<Job>,
    /// Nothing larger can be sent, so no more of an answer is encoded.
    pub largest_answer: usize,
    /// Its tensors, if they were filled while the batch before it ran.
    pub gathered: Option<Gathered>,
}

/// Why a request of a batch has no answer.
pub enum Unanswered {
    /// Running it failed.
    Failed(EngineError),
    /// It would be larger than `limit`: encoding ended at `size`.
    TooLarge { size: usize, limit: usize },
}

/// A batch that was run.
pub struct Finished {
    pub slot: usize,
    pub batch: u64,
    /// One encoded answer or error per request.
    pub answers: Vec<Result<Bytes, Unanswered>>,
    /// Rows of each execution: more than one if the batch was split or run in pieces.
    pub executions: Vec<usize>,
    pub took: Duration,
}

/// A running slot.
pub struct Slot {
    // Not the standard library's channel, which wakes the receiver while it holds a lock that the receiver needs next.
    work: mpsc::UnboundedSender<Work>,
    model: Arc<dyn Model>,
    clock: Arc<Clock>,
    ready: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// When the current execution began, readable from outside the thread.
struct Clock {
    base: Instant,
    /// Nanoseconds since `base`, plus one; 0 while nothing runs.
    started: AtomicU64,
}

impl Clock {
    fn start(&self) {
        self.started.store(self.base.elapsed().as_nanos() as u64 + 1, Ordering::Release);
    }

    fn stop(&self) {
        self.started.store(0, Ordering::Release);
    }

    fn running_for(&self) -> Option<Duration> {
        match self.started.load(Ordering::Acquire) {
            0 => None,
            started => Some(self.base.elapsed().saturating_sub(Duration::from_nanos(started - 1))),
        }
    }
}

/// Starts `count` slots. The first loads the model and warms it up; the others share it, or have copies where running it writes into it.
/// Also returns how long a row took. `loaded` is told that the first is ready, and says where copies take their memory.
pub async fn start_all(
    package: &Arc<Package>,
    device: Device,
    count: usize,
    finished: &mpsc::UnboundedSender<Finished>,
    loaded: impl FnOnce(&dyn Model) -> Copies,
) -> Result<Started> {
    let (sender, first) = oneshot::channel();
    let (work, receiver) = mpsc::unbounded_channel();
    let clock = Arc::new(Clock { base: Instant::now(), started: AtomicU64::new(0) });
    let thread = Thread {
        index: 0,
        package: Arc::clone(package),
        receiver,
        finished: finished.clone(),
        clock: Arc::clone(&clock),
    };
    let thread = thread.start(move |package| {
        let loaded = catch_unwind(AssertUnwindSafe(|| engine::load(package, device)))
            .unwrap_or_else(|_| Err(EngineError::new(Blame::Process, "the engine panicked while loading")));
        // Its memory is reserved for as long as the model is served, whichever slots there are.
        let own = loaded.as_ref().ok().map(|loaded| Own { model: Arc::clone(&loaded.model), _memory: None });
        // Nobody waits any more if the worker is stopping.
        let _ = sender.send(loaded);
        own
    })?;
    let Loaded { model, row_time } = first.await.context("the slot's thread ended while loading")??;
    let copies = loaded(&*model);
    let mut slots =
        vec![Slot { work, model: Arc::clone(&model), clock, ready: Arc::new(AtomicBool::new(true)), thread }];
    for index in 1..count {
        slots.push(start(package, Arc::clone(&model), &copies, index, finished)?);
    }
    Ok(Started { slots, row_time, copies })
}

/// Slots that were started.
pub struct Started {
    pub slots: Vec<Slot>,
    /// How long a row took.
    pub row_time: Duration,
    /// For more of them.
    pub copies: Copies,
}

/// The model of a slot, and the memory that is reserved for it alone.
struct Own {
    model: Arc<dyn Model>,
    _memory: Option<Reservation>,
}

/// Starts a slot of a model that is loaded.
pub fn start(
    package: &Arc<Package>,
    model: Arc<dyn Model>,
    copies: &Copies,
    index: usize,
    finished: &mpsc::UnboundedSender<Finished>,
) -> Result<Slot> {
    let (work, receiver) = mpsc::unbounded_channel();
    let clock = Arc::new(Clock { base: Instant::now(), started: AtomicU64::new(0) });
    let thread =
        Thread { index, package: Arc::clone(package), receiver, finished: finished.clone(), clock: Arc::clone(&clock) };
    let model = model.for_another_slot();
    let ready = Arc::new(AtomicBool::new(false));
    let (own, of_slot, copies) = (Arc::clone(&model), Arc::downgrade(&ready), copies.clone());
    let thread = thread.start(move |package| make_ready(own, &copies, &package.manifest.name, &of_slot))?;
    Ok(Slot { work, model, clock, ready, thread })
}

/// Makes a slot's model ready, however often that takes: there may be memory for it later. `None` if the slot is taken back meanwhile.
fn make_ready(model: Arc<dyn Model>, copies: &Copies, name: &ModelName, slot: &Weak<AtomicBool>) -> Option<Own> {
    let mut pause = FIRST_PAUSE;
    loop {
        let made = catch_unwind(AssertUnwindSafe(|| make(&model, copies)))
            .unwrap_or_else(|_| Err(EngineError::new(Blame::Process, "the engine panicked while loading")));
        let error = match made {
            Ok(memory) => {
                slot.upgrade()?.store(true, Ordering::Release);
                return Some(Own { model, _memory: memory });
            }
            Err(error) => error,
        };
        warn!(model = %name, reason = error.message, again_in = ?pause, "a copy for another slot cannot be loaded; the slot takes no work");
        let until = Instant::now() + pause;
        while Instant::now() < until {
            std::thread::sleep(LOOK);
            slot.upgrade()?;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Loads a copy where there is memory for it. What is shared is there already, and takes none.
fn make(model: &Arc<dyn Model>, copies: &Copies) -> Result<Option<Reservation>, EngineError> {
    let mut memory = match model.writes().is_empty() {
        true => None,
        false => Some(copies.reserve().map_err(|reason| EngineError::new(Blame::Circumstances, reason))?),
    };
    Arc::clone(model).make_ready()?;
    if let Some(memory) = &mut memory {
        _ = memory.loaded(0);
    }
    Ok(memory)
}

impl Slot {
    /// What it runs.
    pub fn model(&self) -> Arc<dyn Model> {
        Arc::clone(&self.model)
    }

    /// Whether it has its model: a copy takes its time to load.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Runs a batch now.
    pub fn run(&self, work: Work) -> Result<()> {
        self.work.send(work).ok().context("the slot's thread has ended")
    }

    /// Fills a batch's tensors while the slot still runs the one before, then queues it.
    pub fn prepare(&self, mut work: Work) {
        let model = Arc::clone(&self.model);
        let queue = self.work.clone();
        tokio::task::spawn_blocking(move || {
            let inputs: Vec<&[Tensor]> = work.jobs.iter().map(|job| job.inputs.as_slice()).collect();
            // If it fails, the slot tries again, and finds the request that makes it fail.
            work.gathered = catch_unwind(AssertUnwindSafe(|| model.gather(&inputs))).ok().and_then(Result::ok);
            // The thread ends only after this sender is gone.
            let _ = queue.send(work);
        });
    }

    /// Ends the slot after what it was given, and hands out its thread to be waited for. The last slot's end unloads the model.
    pub fn end(self) -> JoinHandle<()> {
        self.thread
    }

    /// How long the current execution has run.
    pub fn running_for(&self) -> Option<Duration> {
        self.clock.running_for()
    }
}

struct Thread {
    index: usize,
    package: Arc<Package>,
    receiver: mpsc::UnboundedReceiver<Work>,
    finished: mpsc::UnboundedSender<Finished>,
    clock: Arc<Clock>,
}

impl Thread {
    fn start(mut self, model: impl FnOnce(&Package) -> Option<Own> + Send + 'static) -> Result<JoinHandle<()>> {
        let name = format!("slot-{}-{}", self.package.manifest.name, self.index);
        let threads = self.package.manifest.resources.threads;
        let body = move || {
            let _guard = engine::prepare_thread(threads);
            if let Some(own) = model(&self.package) {
                self.serve(&own.model);
            }
        };
        std::thread::Builder::new().name(name).stack_size(STACK).spawn(body).context("cannot start a slot's thread")
    }

    fn serve(&mut self, model: &Arc<dyn Model>) {
        while let Some(mut work) = self.receiver.blocking_recv() {
            let began = Instant::now();
            let batch = work.batch;
            let count = work.jobs.len();
            let mut executions = Vec::with_capacity(1);
            let run = catch_unwind(AssertUnwindSafe(|| {
                let mut note = |rows| {
                    executions.push(rows);
                    self.clock.start();
                };
                let outcomes = execute(model, &mut work, &mut note);
                // Encoding is bounded by itself: what takes its time there is no hung model.
                self.clock.stop();
                encode(&work, outcomes)
            }));
            self.clock.stop();
            let answers = run.unwrap_or_else(|_| {
                let error = EngineError::new(Blame::Request, "the engine panicked");
                (0..count).map(|_| Err(Unanswered::Failed(error.clone()))).collect()
            });
            let finished = Finished { slot: self.index, batch, answers, executions, took: began.elapsed() };
            if self.finished.send(finished).is_err() {
                return;
            }
        }
    }
}

fn execute(
    model: &Arc<dyn Model>,
    work: &mut Work,
    note: &mut dyn FnMut(usize),
) -> Vec<Result<Vec<Tensor>, EngineError>> {
    let inputs: Vec<&[Tensor]> = work.jobs.iter().map(|job| job.inputs.as_slice()).collect();
    run_requests(model, &inputs, work.gathered.take(), work.package.manifest.batching.max_rows, note)
}

fn encode(work: &Work, outcomes: Vec<Result<Vec<Tensor>, EngineError>>) -> Vec<Result<Bytes, Unanswered>> {
    let manifest = &work.package.manifest;
    let limit = work.largest_answer;
    let too_large = |codec::Oversize(size)| Unanswered::TooLarge { size, limit };
    let encode = |(job, outcome): (&Job, Result<Vec<Tensor>, EngineError>)| {
        let mut outputs = outcome.map_err(Unanswered::Failed)?;
        if !job.outputs.is_empty() {
            outputs = job.outputs.iter().filter_map(|index| outputs.get(*index).cloned()).collect();
        }
        if job.becomes == Becomes::Request {
            let request = InferRequest { inputs: outputs, outputs: Vec::new() };
            return codec::encode_request_within(limit, job.content_type, &request).map_err(too_large);
        }
        let response = InferResponse {
            model_name: manifest.name.as_str().into(),
            model_version: manifest.version.as_str().into(),
            id: job.id.as_ref().map_or("", |id| id.as_str()).into(),
            outputs,
        };
        codec::encode_response_within(limit, job.content_type, &response).map_err(too_large)
    };
    work.jobs.iter().zip(outcomes).map(encode).collect()
}

#[cfg(test)]
mod tests;
