//! Requests: made, submitted until the broker has them, asked again, and given up.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use sluice_core::broker::{BrokerError, Receipt, Reply, Submission};
use sluice_core::clock::unix_ms;
use sluice_core::{Envelope, ErrorCode, Failure, codec};

use super::super::divide::part;
use super::super::waiting::{Key, Sent, Waiting};
use super::{Flow, Submitted, UnderWay};
use crate::cli::ReplyMode;
use crate::common;

/// The pause before a submission is repeated that the broker did not take.
const PAUSE: Duration = Duration::from_millis(250);
/// Marks the submission id of a request whose first one was taken.
const COLLIDED: u32 = u32::MAX;
/// Answers looked up at once: a look must not hold up what comes by itself.
const LOOKED_UP: usize = 256;
/// An answer that went straight back and has not come by then may be lost.
const PERHAPS_LOST: Duration = Duration::from_secs(20);
/// How long after its deadline a request may still be answered: workers say themselves that it has passed, if there are any.
const GRACE: Duration = Duration::from_secs(2);

impl Flow<'_> {
    /// The request for these rows, with the time that is left for it; none if their chunk is gone.
    pub(super) fn submission(
        &self,
        key: &Key,
        rows: &Range<u32>,
        left: Option<Duration>,
        now: &UnderWay,
    ) -> Result<Option<Submission>> {
        let Some(chunk) = now.waiting.entry(key.chunk).map(|entry| &entry.chunk) else { return Ok(None) };
        let Some(body) = &chunk.body else { return Ok(None) };
        let body: Bytes = match key.is_part() {
            true => part(body, rows).map_err(|failure| anyhow::anyhow!(failure.message))?,
            false => body.clone(),
        };
        let deadline = left.map(|left| unix_ms() + left.as_millis() as u64);
        let envelope = Envelope {
            reply_to: Some(now.replies.reply_to()),
            lane: self.routing.lane,
            then: self.routing.then.clone(),
            version: self.routing.model_version.clone(),
            tenant: self.routing.tenant.clone(),
            rows: rows.len() as u32,
            deadline,
            source: Some("/sluice/submit".into()),
            ..Envelope::new(self.ids.request(key)?)
        };
        let submission_id = self.ids.submission(key);
        Ok(Some(Submission { submission_id, ..Submission::new(self.model.clone(), envelope, body) }))
    }

    /// Submits until the broker has it or refuses it for good. A full queue and an outage are waited out.
    pub(super) fn submit(&self, key: Key, mut submission: Submission) -> BoxFuture<'static, (Key, Submitted)> {
        let broker = Arc::clone(&self.broker);
        let body_bytes = self.body_bytes;
        // An earlier run may have submitted it.
        let mut new = self.resumed_at.is_none();
        Box::pin(async move {
            let size = submission.body.len();
            if let Some(limit) = body_bytes.filter(|limit| size as u64 > *limit) {
                let limit = format!("the queue takes {limit} bytes; lower --rows-per-message");
                return (key, Submitted::Refused(BrokerError::TooLarge { size, limit }));
            }
            loop {
                match broker.submit(submission.clone()).await {
                    // Nobody but this run knows the id, and this run has not used it: the request would be swallowed.
                    Ok(Receipt::Duplicate) if new => {
                        eprintln!("note: the broker had a submission of this id; it is submitted under another");
                        submission = submission.again(COLLIDED);
                    }
                    Ok(Receipt::Queued) => return (key, Submitted::Queued),
                    Ok(Receipt::Duplicate) => return (key, Submitted::Before),
                    Err(error) if error.is_transient() => tokio::time::sleep(PAUSE).await,
                    Err(error) => return (key, Submitted::Refused(error)),
                }
                new = false;
            }
        })
    }

    /// A message that is too large or too late costs its own rows; anything else would fail for all alike.
    pub(super) fn refused(&self, key: Key, error: BrokerError, now: &mut UnderWay) -> Result<()> {
        let code = match error {
            BrokerError::TooLarge { .. } => ErrorCode::InvalidArgument,
            BrokerError::Expired(_) => ErrorCode::DeadlineExceeded,
            other => return Err(other.into()),
        };
        self.failed(key, &Failure::new(code, error.to_string()), now)
    }

    /// As if a worker had answered this.
    fn failed(&self, key: Key, failure: &Failure, now: &mut UnderWay) -> Result<()> {
        let id = self.ids.request(&key)?;
        let content_type = codec::ContentType::default();
        let body = codec::encode_failure(content_type, self.model.as_str(), id.as_str(), failure);
        self.answered(key, Reply { id, error: Some(failure.code), content_type, body, traceparent: None }, now)
    }

    /// Nobody need be there to say that a deadline has passed: the model may be stopped, and its requests wait.
    pub(super) fn give_up_late(&self, now: &mut UnderWay) -> Result<()> {
        let Some(deadline) = self.deadline else { return Ok(()) };
        let at = Instant::now();
        let open = now.waiting.open();
        let late = open.filter(|(_, _, sent)| sent.left(deadline + GRACE, at).is_zero());
        let late: Vec<Key> = late.map(|(key, ..)| key.clone()).collect();
        let reason = format!("no answer came within the deadline of {}", common::short(deadline));
        let failure = Failure::new(ErrorCode::DeadlineExceeded, reason);
        late.into_iter().try_for_each(|key| self.failed(key, &failure, now))
    }

    /// Looks where answers are stored for those that have not come: word of one may be lost, its answer is not.
    pub(super) fn look_up(&self, now: &mut UnderWay) -> Result<()> {
        let told = self.broker.capabilities().reads_results_from_the_first;
        if self.mode != ReplyMode::Durable || told || now.looking.is_some() {
            return Ok(());
        }
        let at = Instant::now();
        let open = now.waiting.open().filter(|(_, _, sent)| sent.is_to_be_looked_up(at)).take(LOOKED_UP);
        let due = open.map(|(key, _, sent)| {
            sent.looked_up(at);
            self.ids.request(key)
        });
        let ids = due.collect::<Result<Vec<_>>>()?;
        if !ids.is_empty() {
            let (broker, job) = (Arc::clone(&self.broker), self.ids.job.clone());
            now.looking = Some(Box::pin(async move { broker.stored_results(&job, &ids).await }));
        }
        Ok(())
    }

    /// What a look found.
    pub(super) fn found(&self, found: Result<Vec<Reply>, BrokerError>, now: &mut UnderWay) -> Result<()> {
        let replies = match found {
            Ok(replies) => replies,
            // The next look comes.
            Err(error) if error.is_transient() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for reply in replies {
            if let Some(key) = self.ids.key(&reply.id) {
                self.answered(key, reply, now)?;
            }
        }
        Ok(())
    }

    /// What went straight back and was lost is asked for once more.
    pub(super) async fn ask_again(&self, now: &mut UnderWay) -> Result<()> {
        if self.mode != ReplyMode::Inbox || !self.nothing_waits_for(&mut now.waiting).await {
            return Ok(());
        }
        let at = Instant::now();
        let lost = now.waiting.open().map(|(key, rows, sent)| {
            sent.again(at);
            (key.clone(), rows.clone(), *sent)
        });
        for (key, rows, sent) in lost.collect::<Vec<_>>() {
            let left = self.deadline.map(|deadline| sent.left(deadline, at));
            if let Some(submission) = self.submission(&key, &rows, left, now)? {
                now.submitting.push(self.submit(key, submission.again(sent.again)));
            }
        }
        Ok(())
    }

    /// Whether answers are overdue and the queue is empty: then they were lost on the way.
    async fn nothing_waits_for(&self, waiting: &mut Waiting) -> bool {
        // Each time twice as long: not every broker tells what still runs.
        let at = Instant::now();
        let overdue = |sent: &Sent| sent.waits(at) > PERHAPS_LOST * 2_u32.saturating_pow(sent.again);
        let mut open = waiting.open().map(|(_, _, sent)| overdue(sent)).peekable();
        if open.peek().is_none() || !open.all(|overdue| overdue) {
            return false;
        }
        let Ok(lanes) = self.broker.depth(&self.model).await else { return false };
        lanes
            .iter()
            .all(|lane| lane.ready.clone().known() == Some(0) && lane.in_flight.clone().known().unwrap_or(0) == 0)
    }
}
