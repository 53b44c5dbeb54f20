//! Submitting a request: a publish whose ack is awaited.

use sluice_core::broker::{BrokerError, Receipt, Result, Submission};
use sluice_core::clock::unix_ms;

use super::acks::Stored;
use super::{Nats, error, headers, names, queue};

pub(super) async fn submit(nats: &Nats, submission: Submission) -> Result<Receipt> {
    submission.refuse_expired(unix_ms())?;
    let Submission { model, submission_id, envelope, body } = submission;
    let mut all = headers::of_envelope(&envelope);
    headers::put(&mut all, headers::SUBMISSION_ID, submission_id);
    let subject = names::work_subject(&model, envelope.lane);
    let size = body.len();
    match nats.acks.publish(subject, all, body).await {
        Ok(Stored::New) => Ok(Receipt::Queued),
        Ok(Stored::Before) => Ok(Receipt::Duplicate),
        Err(error) => {
            let mut error = error::of_submit(error, &model, size, nats.client.max_payload());
            if matches!(error, BrokerError::TooLarge { .. }) && queue::is_closed(nats, &model).await {
                error = BrokerError::QueueFull(model.clone());
            }
            Err(nats.denials.explain(&names::work_subject(&model, envelope.lane), error))
        }
    }
}
