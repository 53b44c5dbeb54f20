//! Answers: to a live caller's inbox, or into the stream of durable results, where the first stands.

use async_nats::Subscriber;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::stream::DirectGetErrorKind;
use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use tracing::warn;

use sluice_core::broker::{BrokerError, Replied, Replies, Reply, Result};
use sluice_core::{JobId, ReplyTo, RequestId};

use super::acks::NotStored;
use super::error::{of_stored, other};
use super::{Nats, headers, names, signal};

/// Results looked up at the same time.
const LOOKUPS: usize = 64;

pub(super) async fn send(nats: &Nats, to: &ReplyTo, reply: &Reply) -> Result<Replied> {
    match to {
        ReplyTo::Inbox(address) => to_inbox(nats, address, reply).await,
        // Boxed: it would make the future of each answer to an inbox several times as large.
        ReplyTo::Results { job, inbox } => Box::pin(store(nats, job, inbox.as_deref(), reply)).await,
    }
}

async fn to_inbox(nats: &Nats, address: &str, reply: &Reply) -> Result<Replied> {
    if !signal::is_inbox(address) {
        return Err(BrokerError::Unusable(format!("`{}` is not an inbox of this broker", address.escape_debug())));
    }
    let sent = nats.client.publish_with_headers(address.to_owned(), headers::of_reply(reply), reply.body.clone()).await;
    match sent {
        Ok(()) => Ok(Replied::Sent),
        Err(error) if error.to_string().contains("payload") => Err(too_large(nats, reply)),
        Err(error) => Err(other("answering", error)),
    }
}

async fn store(nats: &Nats, job: &JobId, inbox: Option<&str>, reply: &Reply) -> Result<Replied> {
    if let Some(address) = inbox.filter(|address| !signal::is_inbox(address)) {
        return Err(BrokerError::Unusable(format!("`{}` is not an inbox of this broker", address.escape_debug())));
    }
    let subject = names::result_subject(job, &reply.id);
    let mut all = headers::of_reply(reply);
    // "No message under this subject yet": the first result stands.
    headers::put(&mut all, headers::EXPECTED_LAST_ON_SUBJECT, "0");
    match nats.acks.publish(subject.clone(), all, reply.body.clone()).await {
        Ok(_) => {}
        Err(NotStored::TooLarge) => return Err(too_large(nats, reply)),
        // Whoever waits for that one finds it where it is stored: what it says is not known here.
        Err(error) if error.code() == Some(ErrorCode::STREAM_WRONG_LAST_SEQUENCE) => return Ok(Replied::AlreadyStored),
        Err(error) => return Err(nats.denials.explain(&subject, of_stored("storing a result", error))),
    }
    match inbox {
        Some(address) => to_inbox(nats, address, reply).await,
        None => Ok(Replied::Sent),
    }
}

fn too_large(nats: &Nats, reply: &Reply) -> BrokerError {
    BrokerError::TooLarge {
        size: reply.body.len(),
        limit: format!("the broker takes answers of {} bytes, headers included", nats.client.max_payload()),
    }
}

pub(super) struct Inbox {
    address: String,
    subscriber: Subscriber,
}

pub(super) async fn inbox(nats: &Nats) -> Result<Inbox> {
    let address = nats.client.new_inbox();
    let subscriber =
        nats.client.subscribe(address.clone()).await.map_err(|error| other("subscribing to an inbox", error))?;
    // From here on an answer may come from any connection: the server must know of the subscription.
    signal::round_trip(&nats.client).await;
    Ok(Inbox { address, subscriber })
}

#[async_trait]
impl Replies for Inbox {
    fn reply_to(&self) -> ReplyTo {
        ReplyTo::Inbox(self.address.clone())
    }

    async fn next(&mut self) -> Result<Reply> {
        while let Some(message) = self.subscriber.next().await {
            match message.headers.as_ref().and_then(|all| headers::to_reply(all, message.payload.clone())) {
                Some(reply) => return Ok(reply),
                None => warn!("something that is not an answer came to an inbox; it was passed over"),
            }
        }
        Err(other("waiting for answers", "the connection was closed"))
    }
}

/// Copies of what is stored, as it is stored: reading the stream would take a consumer, and whoever may make one can have anything
/// sent to anywhere.
pub(super) struct Results {
    job: JobId,
    copies: Inbox,
}

pub(super) async fn results(nats: &Nats, job: &JobId) -> Result<Results> {
    // Whoever may not read them is told now, and not when nothing comes.
    stored_one(nats, job, "-".parse().map_err(|error| other("looking for results", error))?).await?;
    Ok(Results { job: job.clone(), copies: inbox(nats).await? })
}

#[async_trait]
impl Replies for Results {
    fn reply_to(&self) -> ReplyTo {
        ReplyTo::Results { job: self.job.clone(), inbox: Some(self.copies.address.clone()) }
    }

    async fn next(&mut self) -> Result<Reply> {
        self.copies.next().await
    }
}

pub(super) async fn stored(nats: &Nats, job: &JobId, ids: &[RequestId]) -> Result<Vec<Reply>> {
    let lookups =
        futures_util::stream::iter(ids.to_vec()).map(|id| stored_one(nats, job, id)).buffer_unordered(LOOKUPS);
    lookups.try_filter_map(|found| std::future::ready(Ok(found))).try_collect().await
}

async fn stored_one(nats: &Nats, job: &JobId, id: RequestId) -> Result<Option<Reply>> {
    let subject = names::result_subject(job, &id);
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        nats.explained(other(format!("looking up the result `{subject}`"), error))
    };
    let stream = nats.jetstream.get_stream_no_info(names::RESULTS).await.map_err(|error| failed(error.into()))?;
    let operation = format!("DIRECT.GET.{}.{subject}", names::RESULTS);
    match nats.allowed(&operation, stream.direct_get_last_for_subject(&subject)).await? {
        Ok(found) => Ok(headers::to_reply(&found.headers, found.payload)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}
