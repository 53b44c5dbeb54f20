//! Ending a request: its answer is stored or sent first, and only then is it settled.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use sluice_core::broker::{Broker, BrokerError, Death, Replied, Reply, Settlement, Submission};
use sluice_core::clock::{UnixMs, unix_ms};
use sluice_core::manifest::Limits;
use sluice_core::{Envelope, ErrorCode, Failure, ModelName, RequestId, codec};
use tracing::{debug, warn};

use crate::engine::{Blame, EngineError};
use crate::intake::{Rejection, Ticket};
use crate::metrics::{ModelMetrics, Outcome};
use crate::onward::{Onward, PATIENCE, PAUSE, Sent};

/// What became of a request.
pub enum Verdict {
    /// The model answered, encoded as the request was.
    Answered(Bytes),
    /// The model answered, and the answer is larger than can be sent: so much was encoded of it.
    TooLarge { size: usize, limit: usize },
    /// It did not get as far as a batch.
    Rejected(Rejection),
    /// Its deadline passed while it waited for a slot.
    ExpiredInBatch,
    /// Running it failed.
    Failed(EngineError),
    /// It is handed back, uncharged.
    GivenBack,
}

/// Ends requests of one model.
pub struct Replier {
    pub broker: Arc<dyn Broker>,
    pub model: ModelName,
    pub limits: Limits,
    pub host: String,
    pub metrics: Arc<ModelMetrics>,
    pub onward: Onward,
}

/// Why an answer cannot be delivered, ever.
struct Undeliverable(Failure);

impl Replier {
    /// Ends a request. What cannot be ended now is left unsettled, and the broker delivers it again.
    pub async fn conclude(self: Arc<Self>, ticket: Box<Ticket>, verdict: Verdict) {
        let lane = ticket.lane;
        let id = ticket.id.clone();
        let outcome = self.settle(ticket, verdict).await;
        self.metrics.ended();
        match outcome {
            Ok(outcome) => self.metrics.count(lane, outcome),
            Err(error) => {
                let id = id.map_or_else(String::new, |id| id.to_string());
                warn!(model = %self.model, id, %error, "could not settle a request; the broker delivers it again");
            }
        }
    }

    async fn settle(&self, ticket: Box<Ticket>, verdict: Verdict) -> Result<Outcome, BrokerError> {
        let late = ticket.deadline.is_some_and(|deadline| deadline <= unix_ms());
        match verdict {
            Verdict::Answered(body) if ticket.then.is_empty() && !late => self.answer(ticket, body).await,
            // Boxed: what is rarer would make the future of each answer several times as large.
            other => Box::pin(self.settle_otherwise(ticket, other, late)).await,
        }
    }

    async fn answer(&self, ticket: Box<Ticket>, body: Bytes) -> Result<Outcome, BrokerError> {
        let sent = self.send(&ticket, None, body).await?;
        self.sent(ticket, sent, Outcome::Ok).await
    }

    /// Settles what was answered or sent on.
    async fn sent(
        &self,
        ticket: Box<Ticket>,
        sent: Result<(), Undeliverable>,
        outcome: Outcome,
    ) -> Result<Outcome, BrokerError> {
        match sent {
            Ok(()) => {
                ticket.hold.settle(Settlement::Done).await?;
                Ok(outcome)
            }
            Err(Undeliverable(failure)) => {
                let attempts = ticket.charged + 1;
                Box::pin(self.bury(ticket, failure, attempts)).await
            }
        }
    }

    async fn settle_otherwise(
        &self,
        ticket: Box<Ticket>,
        verdict: Verdict,
        late: bool,
    ) -> Result<Outcome, BrokerError> {
        match verdict {
            Verdict::Answered(_) if late => self.refuse_late(ticket, Outcome::ExpiredReply).await,
            Verdict::Answered(body) => {
                match self.forward(&ticket, body).await? {
                    // As of a request that names a version or a deadline of its own: whoever asked is told, and nothing is kept.
                    Sent::Never(failure) if failure.code == ErrorCode::NotFound => {
                        self.refuse(ticket, failure, Outcome::Invalid).await
                    }
                    Sent::Never(failure) if failure.code == ErrorCode::DeadlineExceeded => {
                        self.refuse(ticket, failure, Outcome::ExpiredReply).await
                    }
                    Sent::Never(failure) => self.sent(ticket, Err(Undeliverable(failure)), Outcome::Forwarded).await,
                    Sent::Full(reason) => self.failed(ticket, EngineError::new(Blame::Circumstances, reason)).await,
                    Sent::On => self.sent(ticket, Ok(()), Outcome::Forwarded).await,
                }
            }
            Verdict::TooLarge { size, limit } => {
                let reason = format!(
                    "its answer cannot be sent: a message of {size} bytes or more is too large: the broker takes {limit}"
                );
                let attempts = ticket.charged + 1;
                self.bury(ticket, Failure::new(ErrorCode::ResourceExhausted, reason), attempts).await
            }
            Verdict::Rejected(Rejection::Refused(failure)) => self.refuse(ticket, failure, Outcome::Invalid).await,
            Verdict::Rejected(Rejection::Expired) => self.refuse_late(ticket, Outcome::ExpiredFetch).await,
            Verdict::ExpiredInBatch => self.refuse_late(ticket, Outcome::ExpiredBatch).await,
            Verdict::Rejected(Rejection::Exhausted) => {
                let attempts = ticket.charged;
                let reason =
                    format!("given up after {attempts} attempts: each time its worker died, hung or lost the broker");
                self.bury(ticket, Failure::new(ErrorCode::Aborted, reason), attempts).await
            }
            Verdict::Failed(error) => self.failed(ticket, error).await,
            Verdict::GivenBack => {
                ticket.hold.settle(Settlement::GiveBack).await?;
                Ok(Outcome::GivenBack)
            }
        }
    }

    /// Tells the sender, and removes the request. Without a way to tell, it becomes a dead letter.
    async fn refuse(&self, ticket: Box<Ticket>, failure: Failure, outcome: Outcome) -> Result<Outcome, BrokerError> {
        let Some(id) = ticket.id.as_ref().filter(|_| ticket.reply_to.is_some()) else {
            let attempts = ticket.charged;
            return self.bury(ticket, failure, attempts).await;
        };
        let body = self.encode(&ticket, id, &failure);
        match self.send(&ticket, Some(failure.code), body).await? {
            Ok(()) => {
                ticket.hold.settle(Settlement::Done).await?;
                Ok(outcome)
            }
            Err(Undeliverable(reason)) => {
                let attempts = ticket.charged;
                let failure = Failure {
                    message: format!("{}; and its sender cannot be told: {}", failure.message, reason.message),
                    ..failure
                };
                self.bury(ticket, failure, attempts).await
            }
        }
    }

    async fn refuse_late(&self, ticket: Box<Ticket>, outcome: Outcome) -> Result<Outcome, BrokerError> {
        let failure = expired(ticket.deadline);
        self.refuse(ticket, failure, outcome).await
    }

    async fn failed(&self, ticket: Box<Ticket>, error: EngineError) -> Result<Outcome, BrokerError> {
        let attempts = ticket.charged + 1;
        let code = match error.blame {
            Blame::Request => ErrorCode::ModelFailed,
            Blame::Circumstances => ErrorCode::ResourceExhausted,
            Blame::Process => ErrorCode::Aborted,
        };
        let id = ticket.id.as_ref().map_or("", |id| id.as_str());
        if error.blame != Blame::Request && attempts < self.limits.attempts {
            debug!(model = %self.model, id, attempts, reason = error.detail, "a request is tried again later");
            ticket.hold.settle(Settlement::Retry(self.limits.retry_delay)).await?;
            return Ok(Outcome::Retried);
        }
        warn!(model = %self.model, id, attempts, %code, reason = error.detail, "a request failed for good");
        self.bury(ticket, Failure::new(code, error.message), attempts).await
    }

    fn encode(&self, ticket: &Ticket, id: &RequestId, failure: &Failure) -> Bytes {
        codec::encode_failure(ticket.content_type, self.model.as_str(), id.as_str(), failure)
    }

    /// Tells the sender if that can be done, and keeps the request as a dead letter.
    async fn bury(&self, ticket: Box<Ticket>, failure: Failure, attempts: u32) -> Result<Outcome, BrokerError> {
        if let Some(id) = ticket.id.as_ref().filter(|_| ticket.reply_to.is_some()) {
            let told = Failure { message: format!("{} (kept as a dead letter)", failure.message), ..failure.clone() };
            let body = self.encode(&ticket, id, &told);
            if let Err(Undeliverable(reason)) = self.send(&ticket, Some(failure.code), body).await? {
                debug!(model = %self.model, id = %id, reason = reason.message, "the sender of a dead letter cannot be told");
            }
        }
        let death =
            Death { code: failure.code, reason: failure.message, attempts, host: self.host.clone(), at: unix_ms() };
        ticket.hold.settle(Settlement::Dead(death)).await?;
        Ok(Outcome::Dead)
    }

    /// Submits the outputs to the next model of a pipeline.
    async fn forward(&self, ticket: &Ticket, body: Bytes) -> Result<Sent, BrokerError> {
        let (Some((model, then)), Some(id)) = (ticket.then.split_first(), &ticket.id) else {
            return Ok(Sent::Never(Failure::invalid("it has no next model")));
        };
        let envelope = Envelope {
            content_type: ticket.content_type,
            reply_to: ticket.reply_to.clone(),
            then: then.to_vec(),
            deadline: ticket.deadline,
            lane: ticket.lane,
            tenant: ticket.tenant.clone(),
            source: ticket.source.clone(),
            traceparent: ticket.traceparent.clone(),
            ..Envelope::new(id.clone())
        };
        // Not the request's id: asked again because its answer was lost, it would be swallowed here as a repetition. Nor the time alone:
        // a pipeline may come back to a queue within a millisecond, and what tells its steps apart is how many are left.
        let submission_id = format!("{id}.{}.{}", then.len(), unix_ms());
        let submission = Submission { submission_id, ..Submission::new(model.clone(), envelope, body) };
        self.onward.submit(submission, |submission| self.broker.submit(submission)).await
    }

    /// Sends an answer, and again while the broker is away.
    async fn send(
        &self,
        ticket: &Ticket,
        error: Option<ErrorCode>,
        body: Bytes,
    ) -> Result<Result<(), Undeliverable>, BrokerError> {
        let (Some(to), Some(id)) = (&ticket.reply_to, &ticket.id) else {
            return Ok(Err(Undeliverable(Failure::invalid("it says not where its answer goes"))));
        };
        let reply = Reply {
            id: id.clone(),
            error,
            content_type: ticket.content_type,
            body,
            traceparent: ticket.traceparent.clone(),
        };
        let began = Instant::now();
        let mut waiting = None;
        loop {
            match self.broker.reply(to, &reply).await {
                Ok(Replied::Sent) => return Ok(Ok(())),
                Ok(Replied::AlreadyStored) => {
                    debug!(model = %self.model, id = %id, "a result was stored before; that one stands");
                    return Ok(Ok(()));
                }
                Err(failed @ BrokerError::TooLarge { .. }) => {
                    let failure =
                        Failure::new(ErrorCode::ResourceExhausted, format!("its answer cannot be sent: {failed}"));
                    return Ok(Err(Undeliverable(failure)));
                }
                Err(failed @ (BrokerError::Unusable(_) | BrokerError::Denied(_) | BrokerError::Refused(_))) => {
                    return Ok(Err(Undeliverable(Failure::invalid(format!("its answer cannot be sent: {failed}")))));
                }
                Err(failed) => {
                    // Then it is left to be delivered again.
                    if began.elapsed() >= PATIENCE {
                        return Err(failed);
                    }
                    waiting.get_or_insert_with(|| self.onward.wait());
                    debug!(model = %self.model, id = %id, error = %failed, "an answer is sent again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Before this many milliseconds, in March 1973, lie no deadlines; seconds since 1970 do until the year 5138.
const NO_DEADLINE_BEFORE: UnixMs = 100_000_000_000;

fn expired(deadline: Option<UnixMs>) -> Failure {
    let mut reason = "the deadline passed before the request was answered".to_owned();
    if let Some(deadline) = deadline.filter(|deadline| *deadline < NO_DEADLINE_BEFORE) {
        reason += &format!(
            ": header `sluice-deadline` is `{deadline}`, which are seconds; it counts milliseconds since 1970"
        );
    }
    Failure::new(ErrorCode::DeadlineExceeded, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_in_seconds_is_told_from_one_that_has_passed() {
        assert!(expired(Some(1_795_453_611)).message.contains("counts milliseconds"));
        assert!(!expired(Some(1_795_453_611_269)).message.contains("milliseconds"));
    }
}
