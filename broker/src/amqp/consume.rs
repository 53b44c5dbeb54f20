//! Receiving requests of all lanes over one channel, each lane with its share of the credit as prefetch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::Channel;
use lapin::message::Delivery as Message;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tracing::{debug, warn};

use sluice_core::broker::{BrokerError, Consumer, Delivery, Result, Settlement};
use sluice_core::{Envelope, Lane, ModelName};

use super::connect::Link;
use super::error::{is_not_found, other};
use super::settle::AmqpHold;
use super::share::{self, SOURCES};
use super::{headers, names};
use crate::turns::Turns;

/// The pause before a lost channel is made anew.
const PAUSE: Duration = Duration::from_millis(200);
/// How long opening a consumer is tried.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the credit is divided anew, as long as something is ready.
const DIVIDE: Duration = Duration::from_millis(5);
/// A source that held all that it may is taken for busy for so long.
const BUSY_FOR: Duration = Duration::from_secs(1);

/// What each source is called by; the last one is the retries.
fn queue(model: &ModelName, source: usize) -> String {
    match Lane::ALL.get(source) {
        Some(lane) => names::lane_queue(model, *lane),
        None => names::retried_queue(model),
    }
}

pub(super) struct AmqpConsumer {
    link: Arc<Link>,
    model: ModelName,
    credit: usize,
    /// `None` until it is made, and after it was lost.
    channel: Option<Channel>,
    sources: [Source; SOURCES],
    turns: Turns<SOURCES>,
    /// When the credit was last divided.
    divided: Instant,
}

#[derive(Default)]
struct Source {
    consumer: Option<lapin::Consumer>,
    prefetch: usize,
    /// Received and not handed out, each with the count that it is part of.
    buffered: VecDeque<(Message, Unsettled)>,
    /// What this consumer received and nobody settled.
    unsettled: Unsettled,
    /// The same of the consumers before it, while there is any.
    former: Vec<Unsettled>,
    /// When it last held all that it may.
    full: Option<Instant>,
}

type Unsettled = Arc<AtomicUsize>;

pub(super) async fn open(link: &Arc<Link>, model: &ModelName, credit: usize) -> Result<AmqpConsumer> {
    let mut consumer = AmqpConsumer {
        link: Arc::clone(link),
        model: model.clone(),
        credit,
        channel: None,
        sources: Default::default(),
        turns: Turns::new(share::WEIGHT),
        divided: Instant::now(),
    };
    // A broker that has just started needs a moment until its queues have leaders.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match consumer.settle_in().await {
            Ok(()) => return Ok(consumer),
            Err(error) if !error.is_transient() || Instant::now() > deadline => return Err(error),
            Err(error) => debug!(%model, %error, "cannot consume yet; trying again"),
        }
        consumer.lose_channel();
        tokio::time::sleep(PAUSE).await;
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next(&mut self) -> Result<Delivery> {
        loop {
            // With a backlog there is always something ready, and the shares must follow all the same.
            if self.divided.elapsed() < DIVIDE
                && let Some(delivery) = self.ready()
            {
                return Ok(delivery);
            }
            match self.settle_in().await {
                Ok(()) => {}
                Err(error @ (BrokerError::Denied(_) | BrokerError::UnknownModel(_))) => return Err(error),
                Err(error) => {
                    debug!(model = %self.model, %error, "cannot consume; trying again");
                    self.lose_channel();
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
            if let Some(delivery) = self.ready() {
                return Ok(delivery);
            }
            let [high, normal, low, retried] = &mut self.sources;
            tokio::select! {
                open = high.receive() => self.note(open),
                open = normal.receive() => self.note(open),
                open = low.receive() => self.note(open),
                open = retried.receive() => self.note(open),
                // A changed credit is looked at now and then.
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    fn ready(&mut self) -> Option<Delivery> {
        let mut lost = false;
        for source in &mut self.sources {
            while let Some(open) = source.receive().now_or_never() {
                if !open {
                    lost = true;
                    break;
                }
            }
        }
        if lost {
            self.lose_channel();
        }
        let source = self.turns.next(self.sources.each_ref().map(|source| !source.buffered.is_empty()))?;
        let (message, unsettled) = self.sources[source].buffered.pop_front()?;
        Some(self.deliver(source, message, unsettled))
    }

    fn set_credit(&mut self, credit: usize) {
        self.credit = credit;
    }

    async fn stop(mut self: Box<Self>) {
        for source in 0..SOURCES {
            let cancelled = self.cancel(source).await;
            if cancelled.is_err() {
                // Its channel is gone, and what it held comes back by itself.
                return;
            }
        }
        for source in 0..SOURCES {
            while let Some((message, unsettled)) = self.sources[source].buffered.pop_front() {
                if let Err(error) = self.deliver(source, message, unsettled).hold.settle(Settlement::GiveBack).await {
                    warn!(model = %self.model, %error, "could not give back a request; the broker redelivers it later");
                }
            }
        }
    }
}

impl Source {
    /// What the consumers before this one still hold.
    fn held_before(&mut self) -> usize {
        self.former.retain(|unsettled| unsettled.load(Ordering::Acquire) > 0);
        self.former.iter().map(|unsettled| unsettled.load(Ordering::Acquire)).sum()
    }

    fn is_busy(&mut self) -> bool {
        if self.consumer.is_some() && self.unsettled.load(Ordering::Acquire) >= self.prefetch {
            self.full = Some(Instant::now());
        }
        self.full.is_some_and(|full| full.elapsed() < BUSY_FOR)
    }

    fn take_in(&mut self, message: Message) {
        self.unsettled.fetch_add(1, Ordering::AcqRel);
        self.buffered.push_back((message, Arc::clone(&self.unsettled)));
    }

    /// Takes in one message. Says whether the consumer still lives; waits for ever if there is none.
    async fn receive(&mut self) -> bool {
        let Some(consumer) = &mut self.consumer else { return std::future::pending().await };
        match consumer.next().await {
            Some(Ok(message)) => {
                self.take_in(message);
                true
            }
            Some(Err(_)) | None => false,
        }
    }
}

impl AmqpConsumer {
    fn note(&mut self, open: bool) {
        if !open {
            self.lose_channel();
        }
    }

    /// The broker delivers all of it again, and settling what was handed out is of no use.
    fn lose_channel(&mut self) {
        self.channel = None;
        self.sources = Default::default();
    }

    /// Makes the channel and the consumers that should be there.
    async fn settle_in(&mut self) -> Result<()> {
        self.divided = Instant::now();
        let busy = self.sources.each_mut().map(Source::is_busy);
        for (source, should) in share::divide(self.credit, busy).into_iter().enumerate() {
            let state = &mut self.sources[source];
            // Never none: a source that holds more than its share may still be the only one that has more to give.
            let room = should.saturating_sub(state.held_before()).max(1);
            if state.consumer.is_some() && share::drifted(state.prefetch, room) {
                self.cancel(source).await?;
                // What it holds now counts as held before.
                let room = should.saturating_sub(self.sources[source].held_before()).max(1);
                self.begin(source, room).await?;
            } else if state.consumer.is_none() {
                self.begin(source, room).await?;
            }
        }
        Ok(())
    }

    /// Ends a source's consumer; what it had received stays.
    async fn cancel(&mut self, source: usize) -> Result<()> {
        let channel = self.channel.clone();
        let state = &mut self.sources[source];
        let (Some(channel), Some(consumer)) = (channel, &mut state.consumer) else { return Ok(()) };
        let tag = consumer.tag();
        channel
            .basic_cancel(tag, BasicCancelOptions::default())
            .await
            .map_err(|error| other("changing the credit", error))?;
        // The confirmation came after the last delivery.
        let mut received = Vec::new();
        while let Some(Some(Ok(message))) = consumer.next().now_or_never() {
            received.push(message);
        }
        state.consumer = None;
        received.into_iter().for_each(|message| state.take_in(message));
        state.former.push(std::mem::take(&mut state.unsettled));
        Ok(())
    }

    async fn begin(&mut self, source: usize, prefetch: usize) -> Result<()> {
        let channel = match self.channel.as_ref().filter(|channel| channel.status().connected()) {
            Some(channel) => channel.clone(),
            None => {
                self.lose_channel();
                self.channel.insert(self.link.channel().await?).clone()
            }
        };
        let queue = queue(&self.model, source);
        let failed = |error: lapin::Error| match is_not_found(&error) {
            true => BrokerError::UnknownModel(self.model.clone()),
            false => other(format!("consuming from `{queue}`"), error),
        };
        let count = u16::try_from(prefetch).unwrap_or(u16::MAX);
        channel.basic_qos(count, BasicQosOptions::default()).await.map_err(failed)?;
        let consumer = channel
            .basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
            .await
            .map_err(failed)?;
        let state = &mut self.sources[source];
        state.consumer = Some(consumer);
        state.prefetch = prefetch;
        Ok(())
    }

    fn deliver(&mut self, source: usize, message: Message, unsettled: Unsettled) -> Delivery {
        let Message { properties, data, acker, .. } = message;
        let lane = Lane::ALL.get(source).copied().unwrap_or_else(|| headers::lane(&properties));
        let pairs = headers::pairs(&properties);
        let envelope = Envelope::read(lane, pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let body = Bytes::from(data);
        let charged = headers::charged(&properties);
        Delivery {
            envelope,
            lane,
            body: body.clone(),
            charged,
            queued: headers::submitted(&properties),
            hold: Box::new(AmqpHold {
                link: Arc::clone(&self.link),
                model: self.model.clone(),
                lane,
                unsettled,
                _channel: self.channel.clone(),
                acker: Some(acker),
                properties,
                body,
                charged,
            }),
        }
    }
}
