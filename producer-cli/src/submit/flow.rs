//! The window: chunks are submitted while earlier ones are under way, answers are written in order.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::stream::{FuturesUnordered, StreamExt};
use sluice_core::broker::{Broker, BrokerError, Receipt, Replies, Reply, Submission};
use sluice_core::clock::unix_ms;
use sluice_core::print::count;
use sluice_core::{Envelope, ErrorCode, Failure, JobId, ModelName, RequestId, codec};

use super::chunk::Reader;
use super::journal::Journal;
use super::output::Output;
use super::progress::{Progress, Summary, Tally};
use super::waiting::{Entry, Waiting};
use crate::cli::{ReplyMode, Routing};

/// After so long without an answer it is said that there is none.
const SILENT: Duration = Duration::from_secs(10);
/// How often the state is kept and progress shown.
const TICK: Duration = Duration::from_millis(500);
/// The pause before a submission is repeated that the broker did not take.
const PAUSE: Duration = Duration::from_millis(250);
/// An answer that went straight back and has not come by then may be lost.
const PERHAPS_LOST: Duration = Duration::from_secs(20);

/// What a run needs.
pub struct Flow<'o> {
    pub broker: Arc<dyn Broker>,
    pub model: ModelName,
    pub job: JobId,
    pub routing: &'o Routing,
    pub deadline: Option<Duration>,
    pub window: usize,
    pub mode: ReplyMode,
    pub body_bytes: Option<u64>,
    /// The chunk that an earlier run stopped before: it may have asked for this one and some after it.
    pub resumed_at: Option<u64>,
}

/// How a run ended.
pub enum Ended {
    Complete,
    Interrupted,
}

/// What became of a submission.
enum Sent {
    Queued,
    Refused(BrokerError),
}

impl Flow<'_> {
    /// Runs to the end, or until Ctrl-C.
    pub async fn run(
        self,
        mut reader: Reader,
        mut replies: Box<dyn Replies>,
        mut output: Output,
        progress: &Progress,
        journal: &mut Option<(PathBuf, Journal)>,
    ) -> Result<(Ended, Summary)> {
        let mut tally = Tally::start();
        let mut waiting = Waiting::default();
        let mut submitting = FuturesUnordered::new();
        let mut more = true;
        let mut stored = self.stored().await?;
        let mut upcoming = self.resumed_at.unwrap_or(0);
        let mut tick = tokio::time::interval(TICK);
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let mut consumed = 0;
        let ended = loop {
            while let Some(done) = waiting.pop() {
                output.write(&done.chunk, done.reply.as_ref())?;
                consumed = done.chunk.consumed;
            }
            if !more && waiting.len() == 0 {
                break Ended::Complete;
            }
            tokio::select! {
                biased;
                _ = &mut interrupted => break Ended::Interrupted,
                reply = replies.next() => {
                    let reply = reply?;
                    match self.index_of(&reply.id) {
                        // An earlier run asked for it, and this one has not come so far.
                        Some(index) if index >= upcoming => drop(stored.insert(index, reply)),
                        _ => self.answered(reply, &mut waiting, &mut tally),
                    }
                }
                Some((index, sent)) = submitting.next() => match sent {
                    Sent::Queued => {}
                    Sent::Refused(error) => self.refused(index, error, &mut waiting, &mut tally)?,
                },
                chunk = reader.chunks.recv(), if more && waiting.len() < self.window => match chunk {
                    None => more = false,
                    Some(chunk) => {
                        let chunk = chunk?;
                        let (index, good, body) = (chunk.index, chunk.good, chunk.body.clone());
                        waiting.push(chunk);
                        upcoming = index + 1;
                        if let Some(reply) = stored.remove(&index) {
                            self.answered(reply, &mut waiting, &mut tally);
                        } else if let Some(body) = body {
                            submitting.push(self.submit(index, self.submission(index, good, body, &*replies)?));
                        }
                    }
                },
                _ = tick.tick() => {
                    if self.mode == ReplyMode::Inbox && self.nothing_waits_for(&mut waiting).await {
                        for entry in waiting.open() {
                            entry.again += 1;
                            entry.sent = Instant::now();
                            if let Some(body) = entry.chunk.body.clone() {
                                let submission = self.submission(entry.chunk.index, entry.chunk.good, body, &*replies)?;
                                submitting.push(self.submit(entry.chunk.index, submission.again(entry.again)));
                            }
                        }
                    }
                    output.flush()?;
                    self.keep(journal, &output)?;
                    let waited = waiting.open().map(|entry| entry.sent.elapsed()).max().unwrap_or_default();
                    let note = match (waiting.unanswered(), tally.silent().min(waited)) {
                        (0, _) => String::new(),
                        _ if tally.requests == 0 => "waiting for a worker".into(),
                        (open, silent) if silent >= SILENT => {
                            let open = count(open, "request waits", "requests wait");
                            format!("{open}, and none was answered for {} s", silent.as_secs())
                        }
                        _ => String::new(),
                    };
                    progress.show(consumed, output.written.rows, tally.rate(), output.written.failed, &note);
                }
            }
        };
        output.flush()?;
        self.keep(journal, &output)?;
        Ok((ended, tally.summary(output.written.rows, output.written.failed)))
    }

    fn keep(&self, journal: &mut Option<(PathBuf, Journal)>, output: &Output) -> Result<()> {
        if let Some((path, journal)) = journal {
            journal.written = output.written;
            journal.save(path)?;
        }
        Ok(())
    }

    /// What an earlier run asked for and did not write: it had no more under way than a window.
    async fn stored(&self) -> Result<HashMap<u64, Reply>> {
        let Some(first) = self.resumed_at else { return Ok(HashMap::new()) };
        let ids: Vec<RequestId> =
            (first..first + 2 * self.window as u64).map(|index| self.request_id(index)).collect::<Result<_>>()?;
        let replies = self.broker.stored_results(&self.job, &ids).await?;
        Ok(replies.into_iter().filter_map(|reply| Some((self.index_of(&reply.id)?, reply))).collect())
    }

    fn request_id(&self, index: u64) -> Result<RequestId> {
        Ok(format!("{}-{index}", self.job).parse()?)
    }

    fn index_of(&self, id: &RequestId) -> Option<u64> {
        id.as_str().strip_prefix(self.job.as_str())?.strip_prefix('-')?.parse().ok()
    }

    fn submission(&self, index: u64, rows: u32, body: bytes::Bytes, replies: &dyn Replies) -> Result<Submission> {
        let deadline = self.deadline.map(|deadline| unix_ms() + deadline.as_millis() as u64);
        let envelope = Envelope {
            reply_to: Some(replies.reply_to()),
            lane: self.routing.lane,
            then: self.routing.then.clone(),
            version: self.routing.model_version.clone(),
            tenant: self.routing.tenant.clone(),
            rows,
            deadline,
            source: Some("/sluice/submit".into()),
            ..Envelope::new(self.request_id(index)?)
        };
        Ok(Submission::new(self.model.clone(), envelope, body))
    }

    /// Submits until the broker has it or refuses it for good. A full queue and an outage are waited out.
    fn submit(&self, index: u64, submission: Submission) -> impl Future<Output = (u64, Sent)> + use<> {
        let broker = Arc::clone(&self.broker);
        let body_bytes = self.body_bytes;
        async move {
            let size = submission.body.len();
            if let Some(limit) = body_bytes.filter(|limit| size as u64 > *limit) {
                let limit = format!("the queue takes {limit} bytes; lower --rows-per-message");
                return (index, Sent::Refused(BrokerError::TooLarge { size, limit }));
            }
            loop {
                match broker.submit(submission.clone()).await {
                    Ok(Receipt::Queued | Receipt::Duplicate) => return (index, Sent::Queued),
                    Err(error) if error.is_transient() => tokio::time::sleep(PAUSE).await,
                    Err(error) => return (index, Sent::Refused(error)),
                }
            }
        }
    }

    fn answered(&self, reply: Reply, waiting: &mut Waiting, tally: &mut Tally) {
        let Some(index) = self.index_of(&reply.id) else { return };
        if let Some(entry) = waiting.answer(index, reply) {
            tally.answered(entry.chunk.good, entry.sent.elapsed());
        }
    }

    /// A message that is too large or too late costs its own rows; anything else would fail for all alike.
    fn refused(&self, index: u64, error: BrokerError, waiting: &mut Waiting, tally: &mut Tally) -> Result<()> {
        let code = match error {
            BrokerError::TooLarge { .. } => ErrorCode::InvalidArgument,
            BrokerError::Expired(_) => ErrorCode::DeadlineExceeded,
            other => return Err(other.into()),
        };
        let failure = Failure::new(code, error.to_string());
        let id = self.request_id(index)?;
        let content_type = codec::ContentType::default();
        let body = codec::encode_failure(content_type, id.as_str(), &failure);
        self.answered(Reply { id, error: Some(failure.code), content_type, body, traceparent: None }, waiting, tally);
        Ok(())
    }

    /// Whether answers are overdue and the queue is empty: then they were lost on the way.
    async fn nothing_waits_for(&self, waiting: &mut Waiting) -> bool {
        // Each time twice as long: not every broker tells what still runs.
        let overdue = |entry: &Entry| entry.sent.elapsed() > PERHAPS_LOST * 2_u32.saturating_pow(entry.again);
        let mut open = waiting.open().map(|entry| overdue(entry)).peekable();
        if open.peek().is_none() || !open.all(|overdue| overdue) {
            return false;
        }
        let Ok(lanes) = self.broker.depth(&self.model).await else { return false };
        lanes
            .iter()
            .all(|lane| lane.ready.clone().known() == Some(0) && lane.in_flight.clone().known().unwrap_or(0) == 0)
    }
}
