//! What the client's errors mean at the seam. NATS reports a missing permission beside the call that it
//! concerns, which then only times out: the two are brought together here.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt::Display;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, DeleteStreamError, DeleteStreamErrorKind,
};
use async_nats::jetstream::{self, ErrorCode};

use sluice_core::ModelName;
use sluice_core::broker::BrokerError;

use super::acks::NotStored;

/// Any error of the client in the words of the seam.
pub(super) fn other(what: impl Display, source: impl Into<Box<dyn Error + Send + Sync>>) -> BrokerError {
    let source = source.into();
    let text = source.to_string();
    if text.contains("timed out") || text.contains("no responders") {
        return BrokerError::TimedOut(what.to_string());
    }
    BrokerError::Other { what: what.to_string(), source }
}

/// What the server refused lately.
#[derive(Default)]
pub(super) struct Denials(Mutex<VecDeque<(Instant, String)>>);

/// How long a refusal explains a time-out: longer than the client's own time limit of 5 s.
const REMEMBERED: Duration = Duration::from_secs(15);

impl Denials {
    /// Notes an error that the server sent of its own accord.
    pub(super) fn note(&self, text: &str) {
        if !text.to_ascii_lowercase().contains("permissions violation") {
            return;
        }
        let mut denials = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        denials.retain(|(when, _)| when.elapsed() < REMEMBERED);
        if denials.len() >= 64 {
            denials.pop_front();
        }
        denials.push_back((Instant::now(), text.to_owned()));
    }

    /// Replaces a time-out by the refusal that caused it.
    pub(super) fn explain(&self, subject: &str, error: BrokerError) -> BrokerError {
        if !matches!(error, BrokerError::TimedOut(_)) {
            return error;
        }
        let denials = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let quoted = format!("\"{subject}");
        match denials.iter().rev().find(|(when, text)| when.elapsed() < REMEMBERED && text.contains(&quoted)) {
            Some((_, text)) => BrokerError::Denied(text.clone()),
            None => error,
        }
    }
}

/// What a refused publish to a model's queue means.
pub(super) fn of_submit(error: NotStored, model: &ModelName, size: usize, max_payload: usize) -> BrokerError {
    match error {
        NotStored::NoStream => BrokerError::UnknownModel(model.clone()),
        NotStored::TimedOut => BrokerError::TimedOut(format!("submitting to model `{model}`")),
        NotStored::TooLarge => {
            BrokerError::TooLarge { size, limit: format!("the broker takes {max_payload} bytes, headers included") }
        }
        _ => match error.code() {
            Some(ErrorCode::STREAM_STORE_FAILED) => BrokerError::QueueFull(model.clone()),
            Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM) => BrokerError::TooLarge {
                size,
                limit: format!("the queue of model `{model}` takes less (`limits.body_bytes` of its manifest)"),
            },
            _ => other(format!("submitting to model `{model}`"), error),
        },
    }
}

/// The JetStream error code at the root of an error.
pub(super) fn api_code(error: &(dyn Error + 'static)) -> Option<ErrorCode> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // Some errors carry it in their kind instead of as their source.
        if let Some(error) = error.downcast_ref::<CreateStreamError>()
            && let CreateStreamErrorKind::JetStream(api) = error.kind()
        {
            return Some(api.error_code());
        }
        if let Some(error) = error.downcast_ref::<DeleteStreamError>()
            && let DeleteStreamErrorKind::JetStream(api) = error.kind()
        {
            return Some(api.error_code());
        }
        if let Some(api) = error.downcast_ref::<jetstream::Error>() {
            return Some(api.error_code());
        }
        cause = error.source();
    }
    None
}
