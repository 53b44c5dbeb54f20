//! Where JetStream's API is: an account that has streams of its own has it under the usual name; one that works with the streams of
//! another account has what that account lends to it under a name of its own (`broker-config/nats/roles.conf`).

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::Config;
use async_nats::{Client, Request};
use serde::Deserialize;

use sluice_core::broker::{BrokerError, Result};

use super::Nats;
use super::error::{Act, Denials, other};

/// JetStream's own (NATS JetStream wire API reference).
const OWN: &str = "$JS.API";
/// The same where another account lends it. It cannot be lent under its own name: the server has that for each account by itself.
const LENT: &str = "sluice.api";
/// What a healthy server tells in a millisecond.
const PATIENCE: Duration = Duration::from_secs(2);

/// The name before JetStream's operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Api(&'static str);

/// What matters of the answer to `INFO`.
#[derive(Deserialize)]
struct Info {
    error: Option<async_nats::jetstream::Error>,
}

impl Api {
    /// Asks the server whether this account has streams. Whoever may not ask belongs to the account that has.
    pub(super) async fn of(client: &Client, denials: &Denials) -> Self {
        let subject = format!("{OWN}.INFO");
        let mut refusals = denials.follow();
        let asked = client.send_request(subject.clone(), Request::new().timeout(Some(PATIENCE)));
        let answer = tokio::select! {
            answer = asked => answer,
            _ = refusals.of(Act::Publish, &subject) => return Self(OWN),
        };
        match answer.map(|message| serde_json::from_slice::<Info>(&message.payload)) {
            Ok(Ok(Info { error: Some(error) }))
                if error.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT =>
            {
                Self(LENT)
            }
            _ => Self(OWN),
        }
    }

    pub(super) fn prefix(self) -> &'static str {
        self.0
    }

    /// The subject of an operation, such as `STREAM.INFO.RESULTS`.
    pub(super) fn subject(self, operation: impl std::fmt::Display) -> String {
        format!("{}.{operation}", self.0)
    }
}

impl Nats {
    /// Replaces a time-out by the refusal of an operation of the API that caused it.
    pub(super) fn explained(&self, error: BrokerError) -> BrokerError {
        self.denials.explain(&self.api.subject(""), error)
    }

    /// Waits for an operation, or for the word that this user may not do it: the server says that beside the call, which then only
    /// times out.
    pub(super) async fn allowed<T>(&self, operation: &str, work: impl Future<Output = T>) -> Result<T> {
        let subject = self.api.subject(operation);
        let mut refusals = self.denials.follow();
        tokio::select! {
            done = work => Ok(done),
            denied = refusals.of(Act::Publish, &subject) => Err(denied),
        }
    }

    /// How a stream is configured; `None` if it is not there.
    pub(super) async fn stream(&self, name: &str) -> Result<Option<Config>> {
        let found = self.allowed(&format!("STREAM.INFO.{name}"), self.jetstream.get_stream(name)).await?;
        match found {
            Ok(stream) => Ok(Some(stream.cached_info().config.clone())),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(api) if api.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
                _ => Err(self.explained(other(format!("looking at stream `{name}`"), error))),
            },
        }
    }
}
