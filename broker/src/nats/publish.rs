//! Submitting a request: a JetStream publish whose ack is awaited.

use async_nats::jetstream::message::PublishMessage;

use sluice_core::broker::{BrokerError, Receipt, Result, Submission};
use sluice_core::clock::unix_ms;

use super::{Nats, error, headers, names};

pub(super) async fn submit(nats: &Nats, submission: Submission) -> Result<Receipt> {
    submission.refuse_expired(unix_ms())?;
    let Submission { model, submission_id, envelope, body } = submission;
    let mut all = headers::of_envelope(&envelope);
    headers::put(&mut all, headers::SUBMISSION_ID, submission_id);
    let subject = names::work_subject(&model, envelope.lane);
    let size = body.len();
    let publish = PublishMessage::build().payload(body).headers(all);
    let refused = |error| error::of_submit(error, &model, size, nats.client.max_payload());
    let stored = match nats.jetstream.send_publish(subject.clone(), publish).await {
        Ok(ack) => ack.await.map_err(refused),
        Err(error) => Err(refused(error)),
    };
    match stored {
        Ok(ack) if ack.duplicate => Ok(Receipt::Duplicate),
        Ok(_) => Ok(Receipt::Queued),
        Err(error @ BrokerError::TimedOut(_)) => Err(nats.denials.explain(&subject, error)),
        Err(error) => Err(error),
    }
}
