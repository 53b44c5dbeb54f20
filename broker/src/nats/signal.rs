//! Control messages over core NATS: at most once, only to those who listen now.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, Request, Subject, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tracing::warn;

use sluice_core::broker::{Answer, Result, Signal, Signals};

use super::error::{Act, Refusals, other};
use super::{Nats, names};

pub(super) async fn send(nats: &Nats, topic: &str, payload: Bytes) -> Result<()> {
    let subject = names::control_subject(topic);
    let sent = nats.client.publish(subject.clone(), payload).await;
    sent.map_err(|error| other(format!("signalling `{topic}`"), error))?;
    // Of this one nobody knows yet; of one a moment ago the server may have said so.
    nats.denials.lately(Act::Publish, &subject).map_or(Ok(()), Err)
}

pub(super) async fn listen(nats: &Nats, topic: &str) -> Result<NatsSignals> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| other(format!("listening to `{topic}`"), error);
    let subject = names::control_subject(topic);
    let refusals = nats.denials.follow();
    let subscriber = nats.client.subscribe(subject.clone()).await.map_err(|error| failed(error.into()))?;
    round_trip(&nats.client).await;
    Ok(NatsSignals { client: nats.client.clone(), subscriber, subject, refusals })
}

/// Returns once the server has seen all that was sent before, subscriptions above all: it works off a connection in order,
/// and answers at once that nobody listens here. Flushing only waits for the socket.
pub(super) async fn round_trip(client: &Client) {
    let request = Request::new().timeout(Some(Duration::from_secs(2)));
    // Whether nobody answers or nothing comes, there is nothing more to wait for.
    let _ = client.send_request(names::control_subject("describe.-"), request).await;
}

pub(super) async fn ask(nats: &Nats, topic: &str, payload: Bytes, limit: Duration) -> Result<Option<Bytes>> {
    let request = Request::new().payload(payload).timeout(Some(limit));
    let subject = names::control_subject(topic);
    let mut refusals = nats.denials.follow();
    let answer = tokio::select! {
        answer = nats.client.send_request(subject.clone(), request) => answer,
        denied = refusals.of(Act::Publish, &subject) => return Err(denied),
    };
    match answer {
        Ok(message) => Ok(Some(message.payload)),
        Err(error) => match error.kind() {
            RequestErrorKind::NoResponders | RequestErrorKind::TimedOut => Ok(None),
            _ => Err(other(format!("asking `{topic}`"), error)),
        },
    }
}

pub(super) struct NatsSignals {
    client: Client,
    subscriber: Subscriber,
    subject: String,
    refusals: Refusals,
}

#[async_trait]
impl Signals for NatsSignals {
    async fn next(&mut self) -> Result<Signal> {
        let message = tokio::select! {
            message = self.subscriber.next() => message,
            denied = self.refusals.of(Act::Subscribe, &self.subject) => return Err(denied),
        };
        let Some(message) = message else {
            return Err(other("listening", "the connection was closed"));
        };
        let client = self.client.clone();
        let to = message.reply.filter(|to| {
            let may = to.starts_with(IMPORTED) || is_inbox(to);
            if !may {
                warn!(subject = self.subject, to = %to.escape_debug(), "someone asks who would be answered elsewhere than at an inbox");
            }
            may
        });
        let answer = to.map(|to| Box::new(NatsAnswer { client, to }) as Box<dyn Answer>);
        Ok(Signal { payload: message.payload, answer })
    }
}

/// Where an asker listens: whoever asks or requests chooses where its answer goes, so this keeps it from choosing, say, another model's
/// queue or an operation of JetStream.
const INBOX: &str = "_INBOX.";
/// Where the server itself takes answers to what another account asked (a service import), on the way to an inbox there.
const IMPORTED: &str = "_R_.";

/// Whether an answer may go there.
pub(super) fn is_inbox(address: &str) -> bool {
    address.starts_with(INBOX)
        && !address.contains(['*', '>'])
        && !address.contains(|character: char| character.is_whitespace() || character.is_control())
}

struct NatsAnswer {
    client: Client,
    to: Subject,
}

#[async_trait]
impl Answer for NatsAnswer {
    async fn send(self: Box<Self>, payload: Bytes) -> Result<()> {
        self.client.publish(self.to, payload).await.map_err(|error| other("answering a signal", error))
    }
}
