//! Answers: to a live caller's inbox, or into the stream of a job's durable results.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::message::Delivery as Message;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::warn;

use sluice_core::broker::{BrokerError, Replied, Replies, Reply, Result};
use sluice_core::{JobId, ReplyTo, RequestId, envelope};

use super::connect::Link;
use super::error::other;
use super::publish::{Published, stored as publish};
use super::{headers, names, queue, settings, stream};
use crate::Patience;

const PAUSE: Duration = Duration::from_millis(200);
/// A job whose first answer is long in coming has no stream yet, and the broker logs each time that somebody looks for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a stream of results may be silent before it is read anew from where it was.
const SILENCE: Duration = Duration::from_secs(10);
/// Messages that have come and nobody has asked for.
const BUFFERED: usize = 1024;

pub(super) async fn send(link: &Link, to: &ReplyTo, reply: &Reply) -> Result<Replied> {
    let largest = link.options.largest_message;
    if reply.body.len() as u64 > largest {
        let limit = format!("`broker.largest_message` is {largest} bytes");
        return Err(BrokerError::TooLarge { size: reply.body.len(), limit });
    }
    match to {
        ReplyTo::Inbox(address) => to_inbox(link, address, reply).await,
        ReplyTo::Results { job, inbox } => {
            store(link, job, reply).await?;
            match inbox {
                Some(address) => to_inbox(link, address, reply).await,
                None => Ok(Replied::Sent),
            }
        }
    }
}

async fn to_inbox(link: &Link, address: &str, reply: &Reply) -> Result<Replied> {
    if !names::is_inbox(address) {
        return Err(BrokerError::Unusable(format!("`{address}` is not an inbox of this broker")));
    }
    let channel = link.telling().await?;
    queue::ensure_exchange(link, names::INBOXES).await?;
    let properties = headers::of_reply(reply).with_delivery_mode(1);
    link.refuse_oversize(&properties)?;
    let options = BasicPublishOptions::default();
    let sent = channel.basic_publish(names::INBOXES.into(), address.into(), options, &reply.body, properties);
    sent.await.map_err(|error| other("answering", error))?;
    Ok(Replied::Sent)
}

async fn store(link: &Link, job: &JobId, reply: &Reply) -> Result<Replied> {
    let queue = names::results_queue(job);
    let publish = || publish(link, names::RESULTS, &queue, &reply.body, headers::of_reply(reply), "storing a result");
    let published = match publish().await? {
        // The job's first, or its stream was removed.
        Published::Unroutable => {
            link.forget(&queue);
            ensure_results(link, &queue).await?;
            publish().await?
        }
        published => published,
    };
    match published {
        Published::Stored => Ok(Replied::Sent),
        _ => Err(BrokerError::TimedOut(format!("storing a result: queue `{queue}` does not take it"))),
    }
}

async fn ensure_results(link: &Link, name: &str) -> Result<()> {
    if link.has_seen(name) {
        return Ok(());
    }
    queue::ensure_exchange(link, names::RESULTS).await?;
    let settings = settings::current(link).await?;
    queue::declare(link, names::RESULTS, name, queue::stream(settings.results_kept)).await?;
    link.note_seen(name);
    Ok(())
}

/// A queue that lives as long as its connection, and is made anew under the same address: at once, not only when somebody
/// asks for the next message.
pub(super) struct Listener {
    messages: mpsc::Receiver<Result<Message>>,
    task: JoinHandle<()>,
}

impl Listener {
    pub(super) async fn start(link: &Arc<Link>, exchange: &'static str, key: String) -> Result<Self> {
        queue::ensure_exchange(link, exchange).await?;
        let mut open = listen(link, exchange, &key).await?;
        let link = Arc::clone(link);
        let (sender, messages) = mpsc::channel(BUFFERED);
        let task = tokio::spawn(async move {
            loop {
                while let Some(Ok(message)) = open.1.next().await {
                    if sender.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
                open = loop {
                    match listen(&link, exchange, &key).await {
                        Ok(open) => break open,
                        Err(error @ BrokerError::Denied(_)) if link.options.patience != Patience::Wait => {
                            let _ = sender.send(Err(error)).await;
                            return;
                        }
                        // A service does not end since something was withdrawn for a while.
                        Err(_) => tokio::time::sleep(PAUSE).await,
                    }
                };
            }
        });
        Ok(Self { messages, task })
    }

    /// The next message; waits through outages.
    pub(super) async fn next(&mut self) -> Result<Message> {
        let ended = || Err(BrokerError::Unusable("this address is no longer listened to".into()));
        self.messages.recv().await.unwrap_or_else(ended)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(link: &Link, exchange: &str, key: &str) -> Result<(Channel, Consumer)> {
    let channel = link.channel().await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let queue =
        link.standing.within("listening", channel.queue_declare("".into(), options, FieldTable::default())).await?;
    queue::bind(link, &channel, exchange, queue.name().as_str(), key).await?;
    let options = BasicConsumeOptions { no_ack: true, exclusive: true, ..Default::default() };
    let consumer = channel.basic_consume(queue.name().clone(), "".into(), options, FieldTable::default());
    Ok((channel.clone(), link.standing.within("listening", consumer).await?))
}

pub(super) struct Inbox {
    address: String,
    listener: Listener,
}

pub(super) async fn inbox(link: &Arc<Link>) -> Result<Inbox> {
    let address = names::new_inbox(link.user.as_deref());
    let listener = Listener::start(link, names::INBOXES, address.clone()).await?;
    Ok(Inbox { address, listener })
}

#[async_trait]
impl Replies for Inbox {
    fn reply_to(&self) -> ReplyTo {
        ReplyTo::Inbox(self.address.clone())
    }

    async fn next(&mut self) -> Result<Reply> {
        loop {
            let message = self.listener.next().await?;
            match headers::to_reply(&message.properties, message.data) {
                Some(reply) => return Ok(reply),
                None => warn!("something that is not an answer came to an inbox; it was passed over"),
            }
        }
    }
}

/// Read by a task of its own: whoever asks for the next one may stop asking at any time, and none must be lost by that.
pub(super) struct Results {
    job: JobId,
    replies: mpsc::Receiver<Result<Reply>>,
    task: JoinHandle<()>,
}

pub(super) async fn results(link: &Arc<Link>, job: &JobId) -> Result<Results> {
    let queue = names::results_queue(job);
    // The first worker that answers makes the stream: who reads needs no right to.
    let mut opened = match stream::Reader::open(link, &queue, 0).await {
        Ok(reader) => Some(reader),
        Err(error @ (BrokerError::Denied(_) | BrokerError::Unreachable { .. } | BrokerError::Blocked(_))) => {
            return Err(error);
        }
        Err(_) => None,
    };
    let link = Arc::clone(link);
    let (sender, replies) = mpsc::channel(BUFFERED);
    let task = tokio::spawn(async move {
        let mut first = First::default();
        // The place of the next one.
        let mut next = 0;
        let mut pause = PAUSE;
        loop {
            let found = match opened.take() {
                Some(reader) => Ok(reader),
                None => stream::Reader::open(&link, &queue, next).await,
            };
            let mut reader = match found {
                Ok(reader) => reader,
                Err(error @ BrokerError::Denied(_)) if link.options.patience != Patience::Wait => {
                    let _ = sender.send(Err(error)).await;
                    return;
                }
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
            };
            pause = PAUSE;
            // A broker that was slow to start may have forgotten a reader that it accepted: after a silence it is asked anew.
            while let Ok(Some(stream::Entry { offset, delivery })) = tokio::time::timeout(SILENCE, reader.next()).await
            {
                // A stream is read from the chunk that holds the place.
                if offset < next {
                    continue;
                }
                next = offset + 1;
                if let Some(reply) = headers::to_reply(&delivery.properties, delivery.data)
                    && first.is(&reply.id)
                    && sender.send(Ok(reply)).await.is_err()
                {
                    return;
                }
            }
            drop(reader);
            tokio::time::sleep(PAUSE).await;
        }
    });
    Ok(Results { job: job.clone(), replies, task })
}

/// RabbitMQ stores a second result as well; the first stands. A second run follows the first within minutes, so only so many
/// ids are remembered.
#[derive(Default)]
struct First {
    ids: HashSet<RequestId>,
    order: VecDeque<RequestId>,
}

impl First {
    const REMEMBERED: usize = 100_000;

    fn is(&mut self, id: &RequestId) -> bool {
        if !self.ids.insert(id.clone()) {
            return false;
        }
        self.order.push_back(id.clone());
        if self.order.len() > Self::REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

#[async_trait]
impl Replies for Results {
    fn reply_to(&self) -> ReplyTo {
        ReplyTo::Results { job: self.job.clone(), inbox: None }
    }

    async fn next(&mut self) -> Result<Reply> {
        let ended = || Err(BrokerError::Unusable("these results are no longer read".into()));
        self.replies.recv().await.unwrap_or_else(ended)
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One pass over the job's stream, however many are looked for.
pub(super) async fn stored(link: &Link, job: &JobId, ids: &[RequestId]) -> Result<Vec<Reply>> {
    let mut wanted: HashSet<&str> = ids.iter().map(RequestId::as_str).collect();
    let mut found = Vec::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    stream::scan(link, &names::results_queue(job), |entry| {
        let properties = &entry.delivery.properties;
        if headers::text_of(properties, envelope::ID).is_some_and(|id| wanted.remove(id.as_str())) {
            found.extend(headers::to_reply(properties, entry.delivery.data));
        }
        wanted.is_empty()
    })
    .await?;
    Ok(found)
}

/// A stream that nothing is stored in any more would stay for ever, though empty.
pub(super) async fn remove_results(link: &Link, job: &JobId) -> Result<()> {
    let queue = names::results_queue(job);
    let channel = link.channel().await?;
    let deleted = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await;
    link.forget(&queue);
    deleted.map(drop).map_err(|error| other(format!("removing queue `{queue}`"), error))
}
