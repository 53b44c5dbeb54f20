//! Answers: to a live caller's inbox, or into the stream of durable results, where the first stands.

use async_nats::Subscriber;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::stream::DirectGetErrorKind;
use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use tracing::{debug, warn};

use sluice_core::broker::{BrokerError, Replied, Replies, Reply, Result};
use sluice_core::{JobId, ReplyTo, RequestId};

use super::acks::NotStored;
use super::error::other;
use super::{Nats, headers, names, signal};

/// A request chooses where its answer goes, so this keeps it from choosing, say, another model's queue.
const INBOX_PREFIX: &str = "_INBOX.";
/// Results looked up at the same time.
const LOOKUPS: usize = 64;

pub(super) async fn send(nats: &Nats, to: &ReplyTo, reply: &Reply) -> Result<Replied> {
    match to {
        ReplyTo::Inbox(address) => {
            if !address.starts_with(INBOX_PREFIX) || address.contains(['*', '>', ' ', '\t', '\r', '\n']) {
                return Err(BrokerError::Unusable(format!("`{address}` is not an inbox of this broker")));
            }
            let sent =
                nats.client.publish_with_headers(address.clone(), headers::of_reply(reply), reply.body.clone()).await;
            match sent {
                Ok(()) => Ok(Replied::Sent),
                Err(error) if error.to_string().contains("payload") => Err(too_large(nats, reply)),
                Err(error) => Err(other("answering", error)),
            }
        }
        // Boxed: it would make the future of each answer to an inbox several times as large.
        ReplyTo::Results(job) => Box::pin(store(nats, job, reply)).await,
    }
}

async fn store(nats: &Nats, job: &JobId, reply: &Reply) -> Result<Replied> {
    let subject = names::result_subject(job, &reply.id);
    let mut all = headers::of_reply(reply);
    // "No message under this subject yet": the first result stands.
    headers::put(&mut all, headers::EXPECTED_LAST_ON_SUBJECT, "0");
    match nats.acks.publish(subject.clone(), all, reply.body.clone()).await {
        Ok(_) => Ok(Replied::Sent),
        Err(NotStored::TooLarge) => Err(too_large(nats, reply)),
        Err(error) if error.code() == Some(ErrorCode::STREAM_WRONG_LAST_SEQUENCE) => Ok(Replied::AlreadyStored),
        Err(error) => Err(nats.denials.explain(&subject, other("storing a result", error))),
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

pub(super) struct Results {
    job: JobId,
    stream: pull::Ordered,
}

pub(super) async fn results(nats: &Nats, job: &JobId) -> Result<Results> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        nats.denials.explain("$JS.API.", other(format!("opening the results of job `{job}`"), error))
    };
    // The stream is there once a worker has made a queue.
    let config = pull::OrderedConfig {
        filter_subject: names::results_of(job),
        deliver_policy: DeliverPolicy::All,
        replay_policy: ReplayPolicy::Instant,
        ..Default::default()
    };
    let consumer =
        nats.jetstream.create_consumer_on_stream(config, names::RESULTS).await.map_err(|error| failed(error.into()))?;
    let stream = consumer.messages().await.map_err(|error| failed(error.into()))?;
    Ok(Results { job: job.clone(), stream })
}

#[async_trait]
impl Replies for Results {
    fn reply_to(&self) -> ReplyTo {
        ReplyTo::Results(self.job.clone())
    }

    async fn next(&mut self) -> Result<Reply> {
        loop {
            match self.stream.next().await {
                Some(Ok(message)) => {
                    if let Some(reply) =
                        message.headers.as_ref().and_then(|all| headers::to_reply(all, message.payload.clone()))
                    {
                        return Ok(reply);
                    }
                }
                // An ordered consumer makes itself anew and goes on where it was.
                Some(Err(error)) => {
                    debug!(%error, "reading results was interrupted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                None => return Err(other("waiting for results", "the connection was closed")),
            }
        }
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
        nats.denials.explain("$JS.API.DIRECT.GET", other(format!("looking up the result `{subject}`"), error))
    };
    let stream = nats.jetstream.get_stream_no_info(names::RESULTS).await.map_err(|error| failed(error.into()))?;
    match stream.direct_get_last_for_subject(&subject).await {
        Ok(found) => Ok(headers::to_reply(&found.headers, found.payload)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}
