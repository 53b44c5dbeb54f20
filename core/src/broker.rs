//! The broker seam: what Sluice needs of a message broker, and no more than NATS JetStream and RabbitMQ both
//! keep. One contract suite in `broker/tests` proves each promise on real servers.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use crate::clock::UnixMs;
use crate::codec::ContentType;
use crate::envelope::Malformed;
use crate::settings::{Apply, Settings};
use crate::{Envelope, ErrorCode, JobId, Lane, ModelName, ReplyTo, RequestId};

mod dead;
mod error;

pub use dead::{DeadLetter, Death, shortened};
pub use error::BrokerError;

/// What a broker operation may end with.
pub type Result<T> = std::result::Result<T, BrokerError>;

/// What a model's queue takes before it refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests over all lanes.
    pub length: u64,
    /// Bytes of one request, headers included.
    pub message_bytes: u64,
}

impl QueueLimits {
    /// Nothing is taken any more: the queue is about to be removed.
    pub fn closed() -> Self {
        Self { length: 0, message_bytes: 1 }
    }
}

/// What became of a queue's limits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Limited {
    /// They hold.
    AsAsked,
    /// Those that the broker's operator has set hold instead, for this reason.
    AsConfigured(String),
}

/// A request on its way to a queue.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Which model is asked.
    pub model: ModelName,
    /// Names this attempt to publish; repeating it within the broker's window stores nothing twice. See [`Submission::again`].
    pub submission_id: String,
    /// The headers.
    pub envelope: Envelope,
    /// The body.
    pub body: Bytes,
}

impl Submission {
    /// A first submission of a request. Its submission id is nobody else's to guess: a publish under the same one would swallow it.
    pub fn new(model: ModelName, envelope: Envelope, body: Bytes) -> Self {
        Self { model, submission_id: Uuid::new_v4().to_string(), envelope, body }
    }

    /// The first of the four looks at a deadline; the others are the worker's.
    pub fn refuse_expired(&self, now: UnixMs) -> Result<()> {
        match self.envelope.expired(now) {
            true => Err(BrokerError::Expired(self.envelope.id.clone())),
            false => Ok(()),
        }
    }

    /// The same request asked again because its answer was lost, for the `n`-th time. It needs a submission id of its
    /// own: a broker swallows a repeated one even though the original is long done, and no answer would ever come.
    /// Look for a stored result first.
    pub fn again(&self, n: u32) -> Self {
        Self { submission_id: format!("{}.{n}", self.submission_id), ..self.clone() }
    }
}

/// The broker has stored a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// It is queued.
    Queued,
    /// The same submission was accepted earlier, and has perhaps been answered.
    Duplicate,
}

/// An answer, as a worker sends and a caller receives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The request's id.
    pub id: RequestId,
    /// `None` if the body is a response, else the error's code.
    pub error: Option<ErrorCode>,
    /// The encoding of the body.
    pub content_type: ContentType,
    /// The body.
    pub body: Bytes,
    /// W3C Trace Context of the request.
    pub traceparent: Option<String>,
}

/// What became of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replied {
    /// Handed to a live caller, or stored.
    Sent,
    /// A result under this id was stored before; that one stands.
    AlreadyStored,
}

/// What a worker received.
pub struct Delivery {
    /// The headers, if they can be served.
    pub envelope: std::result::Result<Envelope, Box<Malformed>>,
    /// The lane of the queue that it came by.
    pub lane: Lane,
    /// The body.
    pub body: Bytes,
    /// Attempts charged to it before this one.
    pub charged: u32,
    /// When the broker stored it.
    pub queued: SystemTime,
    /// The claim on it. While this lives, it is renewed as often as the broker wants; dropped unsettled, the broker
    /// delivers the request again after a while and charges an attempt.
    pub hold: Box<dyn Hold>,
}

/// The claim on a delivery. Settling consumes it: a second settle cannot be written.
#[async_trait]
pub trait Hold: Send + Sync {
    /// Ends the claim.
    async fn settle(self: Box<Self>, settlement: Settlement) -> Result<()>;
}

/// How a delivery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Its reply is stored: remove it.
    Done,
    /// Deliver it again after a delay; an attempt is charged.
    Retry(Duration),
    /// Deliver it again at once, to anyone; no attempt is charged, and it keeps its place where the broker can.
    GiveBack,
    /// Store it as a dead letter, then remove it.
    Dead(Death),
}

/// A stream of deliveries over all lanes of a model.
#[async_trait]
pub trait Consumer: Send {
    /// The next delivery. Through outages it waits. An error says that nothing, or not everything, can be received before
    /// somebody acts, such as that the queue is gone; once that is mended, the same consumer goes on. Cancel-safe.
    async fn next(&mut self) -> Result<Delivery>;

    /// Why nothing, or not everything, can be received now, as far as is known here; `None` while it can. Known only to a
    /// consumer that is asked for deliveries meanwhile.
    fn trouble(&self) -> Option<String>;

    /// A delivery that is here already, without waiting. `None` says nothing about what [`Consumer::next`] would give.
    fn ready(&mut self) -> Option<Delivery>;

    /// Sets how many unsettled deliveries there may be. What was asked for under a larger credit may still come.
    fn set_credit(&mut self, credit: usize);

    /// Asks for no more. What the broker had sent already is given back.
    async fn stop(self: Box<Self>);
}

/// A number, or why it is not known. Unknown is not zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading<T> {
    /// As the broker said.
    Known(T),
    /// The reason.
    Unknown(String),
}

impl<T> Reading<T> {
    /// The number, if known.
    pub fn known(self) -> Option<T> {
        match self {
            Reading::Known(value) => Some(value),
            Reading::Unknown(_) => None,
        }
    }
}

/// How far one lane of a model lags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneDepth {
    /// Which lane.
    pub lane: Lane,
    /// Requests that nobody has taken yet.
    pub ready: Reading<u64>,
    /// Requests taken and not settled; on NATS those waiting for a retry are among them.
    pub in_flight: Reading<u64>,
    /// The age of the oldest request that is not settled; zero if there is none.
    pub oldest: Reading<Duration>,
    /// When this was read.
    pub read_at: SystemTime,
}

/// What something that stores messages holds, and may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its name on the broker.
    pub name: String,
    /// Bytes that it holds.
    pub bytes: u64,
    /// Bytes that it may hold; `None` if nothing bounds it.
    pub limit: Option<u64>,
}

/// A caller's end: replies as they arrive.
#[async_trait]
pub trait Replies: Send {
    /// What to put into a request so that its answer comes here.
    fn reply_to(&self) -> ReplyTo;

    /// The next reply. Waits through outages. Cancel-safe.
    async fn next(&mut self) -> Result<Reply>;
}

/// A control message, and where an answer to it goes.
pub struct Signal {
    /// What it says.
    pub payload: Bytes,
    /// Answers it; `None` if nobody waits for an answer.
    pub answer: Option<Box<dyn Answer>>,
}

/// The way back to one that asked.
#[async_trait]
pub trait Answer: Send {
    /// Sends the answer.
    async fn send(self: Box<Self>, payload: Bytes) -> Result<()>;
}

/// Control messages of one topic.
#[async_trait]
pub trait Signals: Send {
    /// The next one. Those sent while nobody listened are gone. Cancel-safe.
    async fn next(&mut self) -> Result<Signal>;
}

/// A leadership lease. Dropping it stops the renewal.
#[async_trait]
pub trait Leadership: Send + Sync {
    /// Grows at each takeover.
    fn term(&self) -> u64;

    /// Whether the lease is still held, by this machine's own clock: a holder that was paused gets `false` before
    /// it can act. Ask right before each act.
    fn holds(&self) -> bool;

    /// Waits until the lease is lost.
    async fn lost(&self);

    /// Gives the lease up, so that another takes over at once.
    async fn resign(self: Box<Self>) -> Result<()>;
}

/// Which promises a broker keeps that another cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// A submission id that is repeated within the window is stored once.
    pub drops_repeated_submissions: bool,
    /// A second result under an id is refused. Where it is not, readers pass it over: the first stands all the same.
    pub first_result_stands: bool,
    /// A request that is given back keeps its place in the queue.
    pub keeps_the_place: bool,
    /// A consumer's credit is never exceeded. Where it is not exact, a few more may come than it says.
    pub exact_credit: bool,
    /// A queue refuses at exactly its length. Where it does not, a few more may be taken before it does.
    pub exact_length: bool,
    /// Each queue has its own limit of a message's size. Where it has not, workers refuse what is too large.
    pub limits_message_size_per_queue: bool,
    /// [`LaneDepth::in_flight`] is known.
    pub counts_in_flight: bool,
    /// [`LaneDepth::oldest`] is known.
    pub tells_age: bool,
    /// [`Broker::results`] hands out all that is stored, from the job's first. Where it does not, it hands out what is stored from
    /// now on, and may miss some of that through an outage: [`Broker::stored_results`] has them.
    pub reads_results_from_the_first: bool,
}

/// A message broker.
#[async_trait]
pub trait Broker: Send + Sync {
    /// The URL that it was reached by, without secrets.
    fn url(&self) -> &str;

    /// The broker's user that this connection logged in as, if by a name that can be the owner of a job.
    fn user(&self) -> Option<&str>;

    /// What this broker can do.
    fn capabilities(&self) -> Capabilities;

    /// About how many bytes a message may have: nothing larger can be sent, so nothing larger need be made.
    fn largest_message(&self) -> usize;

    /// Creates a model's queue, or changes its limits in place. Idempotent.
    async fn ensure_queue(&self, model: &ModelName, limits: &QueueLimits) -> Result<Limited>;

    /// Removes a model's queue and what waits in it. Idempotent.
    async fn remove_queue(&self, model: &ModelName) -> Result<()>;

    /// The models that have queues, sorted.
    async fn queues(&self) -> Result<Vec<ModelName>>;

    /// Returns once the request is stored. A full queue, an unknown model and too large a message are three distinct
    /// errors, at once.
    async fn submit(&self, submission: Submission) -> Result<Receipt>;

    /// Takes requests, at most `credit` unsettled ones, the high lane preferred without starving the others.
    async fn consume(&self, model: &ModelName, credit: usize) -> Result<Box<dyn Consumer>>;

    /// Sends an answer; a durable one is stored when this returns.
    async fn reply(&self, to: &ReplyTo, reply: &Reply) -> Result<Replied>;

    /// What Sluice's queues, results and records hold, as far as the broker tells this user.
    async fn storage(&self) -> Result<Vec<Stored>>;

    /// How far each lane lags.
    async fn depth(&self, model: &ModelName) -> Result<Vec<LaneDepth>>;

    /// A live caller's address. Answers that come while it is not connected are lost.
    async fn inbox(&self) -> Result<Box<dyn Replies>>;

    /// The durable results of a job; see [`Capabilities::reads_results_from_the_first`].
    async fn results(&self, job: &JobId) -> Result<Box<dyn Replies>>;

    /// Those of these durable results that are stored, in any order.
    async fn stored_results(&self, job: &JobId, ids: &[RequestId]) -> Result<Vec<Reply>>;

    /// Forgets a job's durable results where they take more than their time to go.
    async fn remove_results(&self, job: &JobId) -> Result<()>;

    /// The newest dead letters of a model, the newest first.
    async fn dead_letters(&self, model: &ModelName, limit: usize) -> Result<Vec<DeadLetter>>;

    /// Tells everyone who listens to `topic` now.
    async fn signal(&self, topic: &str, payload: Bytes) -> Result<()>;

    /// Listens to `topic`; when this returns, what is sent arrives.
    async fn listen(&self, topic: &str) -> Result<Box<dyn Signals>>;

    /// Asks one of those who listen to `topic`; `None` if nobody answers in time.
    async fn ask(&self, topic: &str, payload: Bytes, limit: Duration) -> Result<Option<Bytes>>;

    /// Waits until this holder leads `office`.
    async fn lead(&self, office: &str, holder: &str) -> Result<Box<dyn Leadership>>;

    /// The deployment's settings: as they are stored, else as they are found, else this program's own.
    async fn settings(&self) -> Result<Settings>;

    /// Stores the deployment's settings. What exists stays as it is until they are applied.
    async fn store_settings(&self, settings: &Settings) -> Result<()>;

    /// Makes all that exists as these settings say, or only looks; one line for each difference.
    async fn apply_settings(&self, settings: &Settings, apply: Apply) -> Result<Vec<String>>;

    /// Sends what is still on its way out, then disconnects.
    async fn close(&self) -> Result<()>;
}
