//! Leadership: a token in a quorum queue whose single active consumer leads. The broker hands it on when the holder's
//! connection ends, and counts how often it was handed on: that count is the term.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::Channel;
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use sluice_core::broker::{BrokerError, Leadership, Result};

use super::connect::Link;
use super::error::other;
use super::publish::{Published, stored};
use super::{headers, names, queue};

/// How long a holder acts after it last heard the broker: less than it takes the broker to give the token to another,
/// which is two missed heartbeats of two seconds.
const LEASE: Duration = Duration::from_millis(1800);
/// How often the holder makes sure that the broker is there.
const CHECK: Duration = Duration::from_millis(600);
const PAUSE: Duration = Duration::from_millis(250);

pub(super) async fn lead(link: &Arc<Link>, office: &str, holder: &str) -> Result<AmqpLeadership> {
    loop {
        match wait_for_token(link, office, holder).await {
            Ok(leadership) => return Ok(leadership),
            Err(error) if error.is_transient() => debug!(office, %error, "cannot wait for the office; trying again"),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn wait_for_token(link: &Arc<Link>, office: &str, holder: &str) -> Result<AmqpLeadership> {
    let name = names::leader_queue(office);
    let failed = |error| other(format!("waiting for `{name}`"), error);
    let channel = link.channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(i64::from(i32::MAX)));
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    let what = format!("waiting for `{name}`");
    let declared = link.standing.within(&what, channel.queue_declare(name.as_str().into(), options, arguments)).await?;
    queue::ensure_exchange(link, names::LEAD).await?;
    queue::bind(link, &channel, names::LEAD, &name, &name).await?;
    // The first to come puts the token there. Were two to do so at once, the second token would never be looked at: it
    // stands behind the first, which goes back to the head.
    if declared.message_count() == 0 && declared.consumer_count() == 0 {
        let founded =
            stored(link, names::LEAD, &name, holder.as_bytes(), headers::durable(), "founding an office").await?;
        if !matches!(founded, Published::Stored) {
            return Err(BrokerError::TimedOut("founding an office".into()));
        }
    }
    link.standing.within(&what, channel.basic_qos(1, BasicQosOptions::default())).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(name.as_str().into(), "".into(), options, FieldTable::default());
    let mut consumer = link.standing.within(&what, consumer).await?;
    let token = match consumer.next().await {
        Some(token) => token.map_err(failed)?,
        None => return Err(BrokerError::TimedOut(format!("waiting for `{name}`"))),
    };
    let term = u64::from(headers::charged(&token.properties, headers::Writer::Worker, token.redelivered)) + 1;
    // It may have come while this process was stopped: only a fresh round trip says that it is still ours.
    let asked = Instant::now();
    link.standing.within(&what, check(&channel, &name)).await?;
    Ok(AmqpLeadership::start(channel, consumer, &name, term, asked))
}

async fn check(channel: &Channel, queue: &str) -> lapin::Result<()> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await.map(drop)
}

pub(super) struct AmqpLeadership {
    term: u64,
    state: Arc<State>,
    channel: Channel,
}

struct State {
    /// When the last question was asked that the broker answered.
    heard: Mutex<Instant>,
    over: CancellationToken,
}

impl State {
    fn holds(&self) -> bool {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        !self.over.is_cancelled() && heard.elapsed() < LEASE
    }
}

impl AmqpLeadership {
    fn start(channel: Channel, mut consumer: lapin::Consumer, queue: &str, term: u64, asked: Instant) -> Self {
        let state = Arc::new(State { heard: Mutex::new(asked), over: CancellationToken::new() });
        let (watched, checked, name) = (Arc::clone(&state), channel.clone(), queue.to_owned());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = watched.over.cancelled() => break,
                    // Nothing more is delivered while the token is held: this ends with the channel.
                    ended = consumer.next() => if !matches!(ended, Some(Ok(_))) { break },
                    () = tokio::time::sleep(CHECK) => {
                        let asked = Instant::now();
                        match tokio::time::timeout(LEASE, check(&checked, &name)).await {
                            Ok(Ok(())) => *watched.heard.lock().unwrap_or_else(PoisonError::into_inner) = asked,
                            _ => break,
                        }
                    }
                }
            }
            watched.over.cancel();
            // The token goes back to the queue with its channel.
            if checked.status().connected() {
                let _ = checked.close(200, "no longer leading".into()).await;
            }
        });
        Self { term, state, channel }
    }
}

#[async_trait]
impl Leadership for AmqpLeadership {
    fn term(&self) -> u64 {
        self.term
    }

    fn holds(&self) -> bool {
        self.state.holds()
    }

    async fn lost(&self) {
        self.state.over.cancelled().await;
    }

    async fn resign(self: Box<Self>) -> Result<()> {
        // The token goes back to the queue with its channel; were it only sent back, it would come here again.
        let closed = self.channel.close(200, "resigned".into()).await;
        self.state.over.cancel();
        closed.map_err(|error| other("giving up an office", error))
    }
}

impl Drop for AmqpLeadership {
    fn drop(&mut self) {
        self.state.over.cancel();
    }
}
