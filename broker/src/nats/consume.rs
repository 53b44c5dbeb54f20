//! Pulling requests of all lanes over one long-lived inbox, within a credit. `pull` decides how much to ask for;
//! this file asks, receives, and counts.
//!
//! Not the client's `stream()`, which re-pulls whatever is settled or not, nor its `fetch()`, which can lose a
//! wake-up: plain pull requests, counted here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::connection::State;
use async_nats::{Client, Message};
use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, trace, warn};

use sluice_core::broker::{BrokerError, Consumer, Delivery, Result, Settlement};
use sluice_core::{Envelope, Lane, ModelName};

use super::api::Api;
use super::deaf::{Deaf, Why};
use super::error::{Denials, other};
use super::inbox::{self, Inbox, Mode};
use super::pull::{self, LaneState};
use super::settle::{Ack, NatsHold, Settling};
use super::{Nats, headers, names, queue};
use crate::turns::Turns;

/// How long the server keeps a standing order. An order cannot be taken back: unsubscribing its inbox would lose what is
/// on its way, since the client forgets a subscription before the server does. So orders are short-lived, and one that
/// stops, or whose credit shrinks, waits for the end of those that are out.
const ORDER_EXPIRES: Duration = Duration::from_secs(2);
/// An order that has not ended this long after it was sent was lost, perhaps with the server that had it: each lane may
/// have another one.
const ORDER_LOST: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Unsettled deliveries, counted where they end.
#[derive(Default)]
pub(super) struct Unsettled {
    lanes: [AtomicUsize; 3],
    /// Whether orders wait for some to be settled.
    awaited: AtomicBool,
    changed: Notify,
}

impl Unsettled {
    pub(super) fn settled(&self, lane: Lane) {
        self.lanes[lane.index()].fetch_sub(1, Ordering::SeqCst);
        if self.awaited.load(Ordering::SeqCst) {
            self.changed.notify_one();
        }
    }
}

pub(super) struct NatsConsumer {
    settling: Arc<Settling>,
    client: Client,
    api: Api,
    model: ModelName,
    stream: String,
    credit: usize,
    inbox: Inbox,
    /// The inbox before orders were made anew: what was on its way to it still arrives.
    former: Option<Inbox>,
    lanes: [LaneState; 3],
    unsettled: Arc<Unsettled>,
    /// Orders not sent yet: sending one can be interrupted, forgetting one cannot be allowed.
    outbox: Vec<(Lane, usize, Mode)>,
    /// Received and not handed out.
    arrived: [VecDeque<Arrived>; 3],
    turns: Turns<3>,
    /// The one to be handed out next: if it is a redelivered one, its waivers are looked up first.
    chosen: Option<Arrived>,
    connection: watch::Receiver<u64>,
    /// When the last order of each lane was sent.
    ordered: [Instant; 3],
    /// When to look for orders that were lost.
    look: Instant,
    /// Why the orders can no longer be counted; they are then made anew.
    broken: Option<String>,
    deaf: Deaf,
    denials: Arc<Denials>,
}

struct Arrived {
    message: Message,
    ack: Ack,
    lane: Lane,
}

pub(super) async fn open(nats: &Nats, model: &ModelName, credit: usize) -> Result<NatsConsumer> {
    queue::exists(nats, model).await?;
    let mut connection = nats.connection.clone();
    connection.mark_unchanged();
    let inbox = Inbox::open(&nats.client).await?;
    Ok(NatsConsumer {
        settling: Arc::new(Settling::new(nats, model)),
        client: nats.client.clone(),
        api: nats.api,
        model: model.clone(),
        stream: names::work_stream(model),
        credit,
        inbox,
        former: None,
        lanes: Default::default(),
        unsettled: Arc::default(),
        outbox: Vec::new(),
        arrived: Default::default(),
        turns: Turns::new(pull::TURNS),
        chosen: None,
        connection,
        ordered: [Instant::now(); 3],
        look: Instant::now() + LOOK_EVERY,
        broken: None,
        deaf: Deaf::default(),
        denials: Arc::clone(&nats.denials),
    })
}

#[async_trait]
impl Consumer for NatsConsumer {
    async fn next(&mut self) -> Result<Delivery> {
        loop {
            if self.broken.is_none() {
                self.order().await?;
            }
            self.take_in();
            let now = Instant::now();
            // First: as long as the other lanes have a backlog there is always something to hand out.
            if now >= self.look {
                self.look = now + LOOK_EVERY;
                self.look_for_lost_orders();
            }
            if let Some((lane, why)) = self.deaf.news(now) {
                return Err(self.cannot_receive(lane, why));
            }
            if let Some(delivery) = self.hand_out().await? {
                return Ok(delivery);
            }
            let next_try = self.deaf.next_try(now);
            if self.broken.is_some() {
                tokio::time::sleep(Duration::from_millis(100)).await;
                self.start_over().await?;
                continue;
            }
            tokio::select! {
                biased;
                Some((_, message)) = inbox::next_of(&mut self.former) => drop(self.keep(message)),
                message = self.inbox.next() => match message {
                    Some((mode, message)) => self.receive(mode, message),
                    None => return Err(other("receiving requests", "the connection was closed")),
                },
                () = self.unsettled.changed.notified() => {}
                changed = self.connection.changed() => {
                    if changed.is_ok() {
                        self.broken = Some("the connection was made anew".into());
                    }
                }
                () = tokio::time::sleep_until(self.look) => {}
                () = sleep_until(next_try) => {}
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        if self.client.connection_state() != State::Connected {
            return Some("the connection to the broker is lost".into());
        }
        let (lane, why) = self.deaf.longest(Instant::now())?;
        Some(self.cannot_receive(lane, why).to_string())
    }

    fn ready(&mut self) -> Option<Delivery> {
        self.choose();
        if self.chosen.is_none() {
            self.take_in();
            self.choose();
        }
        // A redelivered one takes a look at its waivers.
        let chosen = self.chosen.take_if(|chosen| chosen.ack.delivered == 1)?;
        Some(self.deliver(chosen, 0))
    }

    fn set_credit(&mut self, credit: usize) {
        self.credit = credit;
    }

    async fn stop(mut self: Box<Self>) {
        // Unsubscribing cancels the orders; what was on its way still arrives before the subscription ends.
        let deadline = Instant::now() + 2 * ORDER_EXPIRES;
        loop {
            self.take_in();
            self.choose();
            while let Some(chosen) = self.chosen.take() {
                // Reading how often it was given back costs one call, in a rare case.
                let waived = match chosen.ack.delivered {
                    1 => 0,
                    _ => self.settling.waived(chosen.ack.sequence).await.unwrap_or(0),
                };
                if let Err(error) = self.deliver(chosen, waived).hold.settle(Settlement::GiveBack).await {
                    warn!(model = %self.model, %error, "could not give back a request; the broker redelivers it later");
                }
                self.choose();
            }
            let on_order: usize = self.lanes.iter().map(LaneState::asked).sum();
            if on_order == 0 || self.broken.is_some() {
                return;
            }
            match tokio::time::timeout_at(deadline, self.inbox.next()).await {
                Ok(Some((mode, message))) => self.receive(mode, message),
                _ => return,
            }
        }
    }
}

impl NatsConsumer {
    /// Sends the orders that `pull` says are due.
    async fn order(&mut self) -> Result<()> {
        if self.outbox.is_empty() {
            // Before they are counted: what is settled from here on is told.
            self.unsettled.awaited.store(true, Ordering::SeqCst);
            for (lane, state) in self.lanes.iter_mut().enumerate() {
                state.unsettled = self.unsettled.lanes[lane].load(Ordering::SeqCst);
            }
            for (lane, order) in Lane::ALL.into_iter().zip(pull::plan(self.credit, &self.lanes)) {
                if order.backlog > 0 {
                    self.outbox.push((lane, order.backlog, Mode::Backlog));
                }
                if order.standing > 0 {
                    self.outbox.push((lane, order.standing, Mode::Standing));
                }
            }
            let now = Instant::now();
            self.outbox.retain(|(lane, ..)| self.deaf.may_ask(*lane, now));
        }
        if self.outbox.is_empty() && !pull::waits_for_settlements(self.credit, &self.lanes) {
            self.unsettled.awaited.store(false, Ordering::SeqCst);
        }
        while let Some((lane, amount, mode)) = self.outbox.last().copied() {
            let request = match mode {
                Mode::Standing => format!(r#"{{"batch":{amount},"expires":{}}}"#, ORDER_EXPIRES.as_nanos()),
                Mode::Backlog => format!(r#"{{"batch":{amount},"no_wait":true}}"#),
            };
            let subject = self.api.subject(format_args!("CONSUMER.MSG.NEXT.{}.{lane}", self.stream));
            let inbox = format!("{}.{}.{lane}", self.inbox.address, mode.token());
            self.client
                .publish_with_reply(subject, inbox, request.into())
                .await
                .map_err(|error| other("asking for requests", error))?;
            // No await between sending and counting.
            self.outbox.pop();
            *self.asked(mode, lane) += amount;
            self.ordered[lane.index()] = Instant::now();
        }
        Ok(())
    }

    fn look_for_lost_orders(&mut self) {
        let lost =
            |lane: &Lane| self.lanes[lane.index()].asked() > 0 && self.ordered[lane.index()].elapsed() > ORDER_LOST;
        let lost: Vec<Lane> = Lane::ALL.into_iter().filter(lost).collect();
        for lane in lost {
            self.deaf.lost(lane, Why::Silent, Instant::now());
            self.broken = Some(format!("orders of lane `{lane}` were lost"));
        }
    }

    /// In the words of the seam.
    fn cannot_receive(&self, lane: Lane, why: Why) -> BrokerError {
        let consumer = format!("consumer `{lane}` of stream `{}`", self.stream);
        match why {
            Why::Gone => BrokerError::Incomplete(self.model.clone(), format!("there is no {consumer}")),
            Why::Silent => {
                let subject = self.api.subject(format_args!("CONSUMER.MSG.NEXT.{}.{lane}", self.stream));
                self.denials.explain(&subject, BrokerError::TimedOut(format!("taking requests from {consumer}")))
            }
        }
    }

    fn asked(&mut self, mode: Mode, lane: Lane) -> &mut usize {
        let state = &mut self.lanes[lane.index()];
        match mode {
            Mode::Standing => &mut state.standing,
            Mode::Backlog => &mut state.backlog,
        }
    }

    /// Keeps a request until its turn and returns its lane; anything else is handed back.
    fn keep(&mut self, message: Message) -> std::result::Result<Lane, Message> {
        let (Some(lane), Some(ack)) = (names::lane_of(&message.subject), Ack::parse(&message)) else {
            return Err(message);
        };
        // Counted here, before anything can interrupt the way to a hold.
        self.unsettled.lanes[lane.index()].fetch_add(1, Ordering::AcqRel);
        self.lanes[lane.index()].pending = ack.pending;
        self.arrived[lane.index()].push_back(Arrived { message, ack, lane });
        Ok(lane)
    }

    /// Takes in all that has come, without waiting.
    fn take_in(&mut self) {
        while let Some(Some((mode, message))) = self.inbox.next().now_or_never() {
            self.receive(mode, message);
        }
    }

    /// Takes in what came: a request is kept until its turn, a status corrects the count.
    fn receive(&mut self, mode: Mode, message: Message) {
        let message = match self.keep(message) {
            Ok(lane) => {
                let asked = self.asked(mode, lane);
                *asked = asked.saturating_sub(1);
                self.deaf.heard(lane);
                return;
            }
            Err(message) => message,
        };
        let Some(lane) = names::lane_of(&message.subject) else { return };
        let status = message.status.map_or(0, |status| status.as_u16());
        let unfilled = message
            .headers
            .as_ref()
            .and_then(|headers| headers::get(headers, "Nats-Pending-Messages"))
            .and_then(|text| text.parse::<usize>().ok());
        if status == 404 || status == 408 {
            self.deaf.heard(lane);
        }
        let description = message.description.unwrap_or_default();
        match (status, mode, unfilled) {
            // Nobody takes orders, or no longer: all that this lane had on order is void.
            // Without a status it is a refusal by the server itself.
            (0 | 503, ..) => self.lose_consumer(lane),
            (409, ..) if description.contains("Deleted") => self.lose_consumer(lane),
            // An order from the backlog ends with its last request, or with the word that there is no more.
            (404 | 408, Mode::Backlog, _) => {
                self.lanes[lane.index()].backlog = 0;
                self.lanes[lane.index()].pending = 0;
            }
            (_, Mode::Standing, Some(unfilled)) => {
                let standing = self.asked(mode, lane);
                *standing = standing.saturating_sub(unfilled);
            }
            _ => {
                self.broken = Some(format!("an order ended with status {status}: {description}"));
            }
        }
    }

    fn lose_consumer(&mut self, lane: Lane) {
        let state = &mut self.lanes[lane.index()];
        (state.standing, state.backlog) = (0, 0);
        self.deaf.lost(lane, Why::Gone, Instant::now());
    }

    /// Chooses whose turn it is, unless one was chosen and not handed out yet.
    fn choose(&mut self) {
        if self.chosen.is_none() {
            let lane = self.turns.next(self.arrived.each_ref().map(|lane| !lane.is_empty()));
            self.chosen = lane.and_then(|lane| self.arrived[lane].pop_front());
        }
    }

    /// What is next, as a delivery.
    async fn hand_out(&mut self) -> Result<Option<Delivery>> {
        self.choose();
        let Some(chosen) = &self.chosen else { return Ok(None) };
        let waived = match chosen.ack.delivered {
            1 => 0,
            _ => self.settling.waived(chosen.ack.sequence).await?,
        };
        Ok(self.chosen.take().map(|chosen| self.deliver(chosen, waived)))
    }

    fn deliver(&mut self, arrived: Arrived, waived: u32) -> Delivery {
        let Arrived { message, ack, lane } = arrived;
        trace!(model = %self.model, sequence = ack.sequence, delivered = ack.delivered, waived, "delivered");
        let headers = message.headers.iter().flat_map(headers::pairs);
        let envelope = Envelope::read(lane, headers);
        Delivery {
            envelope,
            lane,
            body: message.payload.clone(),
            charged: (ack.delivered - 1).saturating_sub(waived),
            queued: UNIX_EPOCH.checked_add(Duration::from_nanos(ack.published)).unwrap_or_else(SystemTime::now),
            hold: Box::new(NatsHold::new(
                Arc::clone(&self.settling),
                Arc::clone(&self.unsettled),
                lane,
                message,
                ack,
                waived,
            )),
        }
    }

    /// Makes all orders anew, with a new inbox: those for the old one were lost, or cannot be counted any more.
    async fn start_over(&mut self) -> Result<()> {
        let fresh = Inbox::open(&self.client).await?;
        // Not in the call below, whose arguments are evaluated only where that level is logged.
        let why = self.broken.take();
        debug!(model = %self.model, why, "asking anew");
        self.former = Some(std::mem::replace(&mut self.inbox, fresh));
        self.outbox.clear();
        for lane in &mut self.lanes {
            // What waits is not forgotten: asking once too often costs one word of the server.
            lane.standing = 0;
            lane.backlog = 0;
        }
        Ok(())
    }
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
