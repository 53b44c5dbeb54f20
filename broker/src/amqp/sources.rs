//! What a model's requests come by: a consumer for each lane and one for retries, on one channel, each with its share of the
//! credit as prefetch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::Channel;
use lapin::message::Delivery as Message;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::RwLock;
use tracing::warn;

use sluice_core::broker::{BrokerError, Delivery, Result, Settlement};
use sluice_core::{Lane, ModelName};

use super::connect::Link;
use super::error::is_not_found;
use super::queue::waiting;
use super::settle::AmqpHold;
use super::share::{self, SOURCES};
use super::{headers, names};
use crate::turns::Turns;

/// Deliveries come closer together than this, while there are any.
const QUIET: Duration = Duration::from_millis(20);
/// How long the last deliveries of a cancelled consumer may take from the client's connection to here.
const LAST: Duration = Duration::from_secs(1);
/// A source that held all that it may is taken for busy for so long.
const BUSY_FOR: Duration = Duration::from_secs(1);

pub(super) struct Sources {
    link: Arc<Link>,
    model: ModelName,
    /// `None` until it is made, and after it was lost.
    channel: Option<Channel>,
    each: [Source; SOURCES],
    turns: Turns<SOURCES>,
    /// Held while something is acknowledged, and by who must not be disturbed by that.
    acknowledging: Arc<RwLock<()>>,
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

/// What each source is called by; the last one is the retries.
fn queue(model: &ModelName, source: usize) -> String {
    match Lane::ALL.get(source) {
        Some(lane) => names::lane_queue(model, *lane),
        None => names::retried_queue(model),
    }
}

impl Sources {
    pub(super) fn new(link: &Arc<Link>, model: &ModelName) -> Self {
        Self {
            link: Arc::clone(link),
            model: model.clone(),
            channel: None,
            each: Default::default(),
            turns: Turns::new(share::WEIGHT),
            acknowledging: Arc::default(),
            divided: Instant::now(),
        }
    }

    /// How long ago it was last looked whether the shares are right.
    pub(super) fn last_divided(&self) -> Duration {
        self.divided.elapsed()
    }

    /// Waits for something to come, or for the channel's end.
    pub(super) async fn receive(&mut self) {
        let [high, normal, low, retried] = &mut self.each;
        let open = tokio::select! {
            open = high.receive() => open,
            open = normal.receive() => open,
            open = low.receive() => open,
            open = retried.receive() => open,
        };
        if !open {
            self.notice_the_end();
        }
    }

    /// The next request if one has come.
    pub(super) fn ready(&mut self) -> Option<Delivery> {
        let mut lost = false;
        for source in &mut self.each {
            while let Some(open) = source.receive().now_or_never() {
                if !open {
                    lost = true;
                    break;
                }
            }
        }
        if lost {
            self.notice_the_end();
        }
        let source = self.turns.next(self.each.each_ref().map(|source| !source.buffered.is_empty()))?;
        let (message, unsettled) = self.each[source].buffered.pop_front()?;
        Some(self.deliver(source, message, unsettled))
    }

    /// A consumer has ended. It does so with its queue too: then its channel still is of use to the others, and to what came
    /// by it.
    fn notice_the_end(&mut self) {
        if !self.is_connected() {
            self.lose_channel();
        }
    }

    fn is_connected(&self) -> bool {
        self.channel.as_ref().is_some_and(|channel| channel.status().connected())
    }

    /// Stops receiving, and gives back what was not handed out.
    pub(super) async fn stop(&mut self) {
        for source in 0..SOURCES {
            if self.cancel(source).await.is_err() {
                // Its channel is gone, and what it held comes back by itself.
                return;
            }
        }
        for source in 0..SOURCES {
            while let Some((message, unsettled)) = self.each[source].buffered.pop_front() {
                if let Err(error) = self.deliver(source, message, unsettled).hold.settle(Settlement::GiveBack).await {
                    warn!(model = %self.model, %error, "could not give back a request; the broker redelivers it later");
                }
            }
        }
    }

    /// The broker delivers all of it again, and settling what was handed out is of no use.
    pub(super) fn lose_channel(&mut self) {
        self.channel = None;
        self.each = Default::default();
    }

    /// Whether a consumer is missing, or the shares have drifted from what they should be.
    pub(super) fn are_due(&mut self, credit: usize) -> bool {
        self.divided = Instant::now();
        let shares = self.shares(credit);
        let drifted = |(source, share): (&mut Source, usize)| {
            source.consumer.is_none() || share::drifted(source.prefetch, source.room(share))
        };
        self.each.iter_mut().zip(shares).any(drifted)
    }

    fn shares(&mut self, credit: usize) -> [usize; SOURCES] {
        share::divide(credit, self.each.each_mut().map(Source::is_busy))
    }

    /// Makes the channel and the consumers that should be there. Not to be interrupted: what a forgotten consumer receives
    /// would be lost to everyone until its channel ends.
    pub(super) async fn divide(&mut self, credit: usize) -> Result<()> {
        if !self.is_connected() {
            self.lose_channel();
        }
        if self.each.iter().any(|source| source.consumer.is_none())
            && let Err(error) = look_for_queues(&self.link, &self.model).await
        {
            if error.is_of_a_lost_queue() {
                // Nobody is served by halves, and what is here would wait for the queue's return.
                self.stop().await;
            }
            return Err(error);
        }
        for (source, share) in self.shares(credit).into_iter().enumerate() {
            let state = &mut self.each[source];
            if state.consumer.is_some() && share::drifted(state.prefetch, state.room(share)) {
                self.cancel(source).await?;
            }
            let state = &mut self.each[source];
            if state.consumer.is_none() {
                // What it held until now counts as held before.
                let room = state.room(share);
                self.begin(source, room).await?;
            }
        }
        Ok(())
    }

    /// Ends a source's consumer; what it had received stays.
    async fn cancel(&mut self, source: usize) -> Result<()> {
        let channel = self.channel.clone();
        let state = &mut self.each[source];
        let (Some(channel), Some(consumer)) = (channel, &mut state.consumer) else { return Ok(()) };
        // What is on its way to a consumer that is cancelled meanwhile goes back, and counts as a delivery. So nothing is
        // acknowledged for a moment, until no more can come or nothing does.
        let _paused = self.acknowledging.write().await;
        let mut received = Vec::new();
        let mut ended = false;
        while !ended && state.unsettled.load(Ordering::Acquire) + received.len() < state.prefetch {
            match tokio::time::timeout(QUIET, consumer.next()).await {
                Ok(Some(Ok(message))) => received.push(message),
                // With its queue, for instance. Asked again, it would never say so.
                Ok(Some(Err(_)) | None) => ended = true,
                Err(_) => break,
            }
        }
        let mut cancelled = Ok(());
        if !ended {
            let tag = consumer.tag();
            cancelled = self
                .link
                .standing
                .within("changing the credit", channel.basic_cancel(tag, BasicCancelOptions::default()))
                .await;
            // What was on its way comes first, then the stream's end.
            while let Ok(Some(Ok(message))) = tokio::time::timeout(LAST, consumer.next()).await {
                received.push(message);
            }
        }
        received.into_iter().for_each(|message| state.take_in(message));
        state.end();
        cancelled
    }

    async fn begin(&mut self, source: usize, prefetch: usize) -> Result<()> {
        let channel = match &self.channel {
            Some(channel) if channel.status().connected() => channel.clone(),
            _ => {
                self.lose_channel();
                self.channel.insert(self.link.channel().await?).clone()
            }
        };
        let queue = queue(&self.model, source);
        let what = format!("consuming from `{queue}`");
        let count = u16::try_from(prefetch).unwrap_or(u16::MAX);
        self.link.standing.within(&what, channel.basic_qos(count, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
        // That there is no such queue is for the caller to know.
        let consumer = match self.link.standing.within(&what, consumer.map(none_if_not_found)).await? {
            Some(consumer) => consumer,
            None => return Err(BrokerError::UnknownModel(self.model.clone())),
        };
        let state = &mut self.each[source];
        state.consumer = Some(consumer);
        state.prefetch = prefetch;
        Ok(())
    }

    fn deliver(&mut self, source: usize, message: Message, unsettled: Unsettled) -> Delivery {
        let Message { properties, data, acker, redelivered, .. } = message;
        let lane = Lane::ALL.get(source).copied().unwrap_or_else(|| headers::lane(&properties));
        let envelope = headers::to_envelope(&properties, lane);
        let body = Bytes::from(data);
        let from = if source < Lane::ALL.len() { headers::Writer::Producer } else { headers::Writer::Worker };
        let charged = headers::charged(&properties, from, redelivered);
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
                channel: self.channel.clone(),
                acker: Some(acker),
                acknowledging: Arc::clone(&self.acknowledging),
                properties,
                body,
                charged,
            }),
        }
    }
}

/// Looks whether all queues are there, before anything is received from one of them: asking for one that is not closes the
/// channel, and what had come by it would be charged an attempt, again and again.
async fn look_for_queues(link: &Link, model: &ModelName) -> Result<()> {
    let mut missing = Vec::new();
    for source in 0..SOURCES {
        let name = queue(model, source);
        if waiting(link, &name).await?.is_none() {
            missing.push(format!("`{name}`"));
        }
    }
    match missing.len() {
        0 => Ok(()),
        SOURCES => Err(BrokerError::UnknownModel(model.clone())),
        _ => Err(BrokerError::Incomplete(model.clone(), format!("there is no queue {}", missing.join(", ")))),
    }
}

fn none_if_not_found<T>(outcome: lapin::Result<T>) -> lapin::Result<Option<T>> {
    match outcome {
        Err(error) if is_not_found(&error) => Ok(None),
        outcome => outcome.map(Some),
    }
}

impl Source {
    /// What the consumers before this one still hold.
    fn held_before(&mut self) -> usize {
        self.former.retain(|unsettled| unsettled.load(Ordering::Acquire) > 0);
        self.former.iter().map(|unsettled| unsettled.load(Ordering::Acquire)).sum()
    }

    /// What it may receive of a share.
    fn room(&mut self, share: usize) -> usize {
        // Never none: a source that holds more than its share may still be the only one that has more to give.
        share.saturating_sub(self.held_before()).max(1)
    }

    fn is_busy(&mut self) -> bool {
        if self.consumer.is_some() && self.unsettled.load(Ordering::Acquire) >= self.prefetch {
            self.full = Some(Instant::now());
        }
        self.full.is_some_and(|full| full.elapsed() < BUSY_FOR)
    }

    /// Its consumer is no more; what it received stays.
    fn end(&mut self) {
        self.consumer = None;
        self.former.push(std::mem::take(&mut self.unsettled));
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
            Some(Err(_)) | None => {
                self.end();
                false
            }
        }
    }
}
