//! What the client's errors mean at the seam. NATS reports a missing permission beside the call that it
//! concerns, which then only times out: the two are brought together here.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, DeleteStreamError, DeleteStreamErrorKind,
};
use async_nats::jetstream::{self, ErrorCode};
use tokio::sync::broadcast;

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

/// What the server refused lately, and whoever waits to hear of it.
pub(super) struct Denials {
    lately: Mutex<VecDeque<(Instant, String)>>,
    news: broadcast::Sender<Arc<str>>,
}

/// What is refused from now on.
pub(super) struct Refusals(broadcast::Receiver<Arc<str>>);

/// What a client does with a subject, in the server's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Publish,
    Subscribe,
}

impl Act {
    /// How a refusal of this subject, or of any that begins so if it ends with a dot, reads in the server's text.
    fn refused(self, subject: &str) -> String {
        let end = if subject.ends_with('.') { "" } else { "\"" };
        match self {
            Act::Publish => format!("Publish to \"{subject}{end}"),
            Act::Subscribe => format!("Subscription to \"{subject}{end}"),
        }
    }
}

/// How long a refusal explains a time-out: longer than the client's own time limit of 5 s.
const REMEMBERED: Duration = Duration::from_secs(15);

impl Default for Denials {
    fn default() -> Self {
        // Whoever is slower than so many has missed some, and runs into its own time limit.
        Self { lately: Mutex::default(), news: broadcast::channel(256).0 }
    }
}

impl Denials {
    /// Notes an error that the server sent of its own accord.
    pub(super) fn note(&self, text: &str) {
        if !text.to_ascii_lowercase().contains("permissions violation") {
            return;
        }
        let _ = self.news.send(text.into());
        let mut denials = self.lately.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
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
        let denials = self.lately.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let quoted = format!("\"{subject}");
        match denials.iter().rev().find(|(when, text)| when.elapsed() < REMEMBERED && text.contains(&quoted)) {
            Some((_, text)) => BrokerError::Denied(text.clone()),
            None => error,
        }
    }

    /// Begins to listen to what is refused: before that is done which may be.
    pub(super) fn follow(&self) -> Refusals {
        Refusals(self.news.subscribe())
    }

    /// Whether this was refused lately.
    pub(super) fn lately(&self, act: Act, subject: &str) -> Option<BrokerError> {
        let denials = self.lately.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let refused = act.refused(subject);
        let found = denials.iter().rev().find(|(when, text)| when.elapsed() < REMEMBERED && text.contains(&refused));
        found.map(|(_, text)| BrokerError::Denied(text.clone()))
    }
}

impl Refusals {
    /// Waits until this is refused. Cancel-safe.
    pub(super) async fn of(&mut self, act: Act, subject: &str) -> BrokerError {
        let refused = act.refused(subject);
        loop {
            let text = self.next().await;
            if text.contains(&refused) {
                return BrokerError::Denied(text.to_string());
            }
        }
    }

    /// The next refusal of anything. Cancel-safe.
    pub(super) async fn next(&mut self) -> Arc<str> {
        loop {
            match self.0.recv().await {
                Ok(text) => return text,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                // Only a connection that is gone refuses nothing any more.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

/// What it means that a stream did not take a message. What it will never take is told apart from what may pass.
pub(super) fn of_stored(what: impl Display, error: NotStored) -> BrokerError {
    match error {
        NotStored::Denied(reason) => BrokerError::Denied(reason),
        error if error.is_of_size() || error.code() == Some(ErrorCode::STREAM_SEALED) => {
            BrokerError::Refused(format!("{what}: {error}"))
        }
        error => other(what, error),
    }
}

/// What a refused publish to a model's queue means.
pub(super) fn of_submit(error: NotStored, model: &ModelName, size: usize, max_payload: usize) -> BrokerError {
    match error {
        NotStored::Denied(reason) => BrokerError::Denied(reason),
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
            _ => of_stored(format!("submitting to model `{model}`"), error),
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
