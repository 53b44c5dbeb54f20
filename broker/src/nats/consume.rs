//! Pulling requests of all lanes over one long-lived inbox, within a credit. `pull` decides how much to ask for;
//! this file asks, receives, and counts.
//!
//! Not the client's `stream()`, which re-pulls whatever is settled or not, nor its `fetch()`, which can lose a
//! wake-up: plain pull requests, counted here.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{Client, Message, Subscriber};
use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use sluice_core::broker::{Consumer, Delivery, Hold, Result, Settlement};
use sluice_core::{Envelope, Lane, ModelName};

use super::error::other;
use super::pull::{self, LaneState};
use super::settle::{Ack, NatsHold};
use super::{Nats, headers, names, queue};

/// How long the server keeps a standing order.
const ORDER_EXPIRES: Duration = Duration::from_secs(30);
/// How often it shows that it still has it.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Silence after which the orders are taken for lost and made anew.
const SILENCE: Duration = Duration::from_secs(12);

/// Unsettled deliveries, counted where they end.
#[derive(Default)]
pub(super) struct Unsettled {
    lanes: [AtomicUsize; 3],
    changed: Notify,
}

impl Unsettled {
    pub(super) fn settled(&self, lane: Lane) {
        self.lanes[lane.index()].fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_one();
    }
}

pub(super) struct NatsConsumer {
    settling: super::settle::Settling,
    client: Client,
    model: ModelName,
    stream: String,
    credit: usize,
    inbox: Inbox,
    /// Former inboxes whose orders were cancelled: what was on its way still arrives there.
    former: SelectAll<Subscriber>,
    lanes: [LaneState; 3],
    unsettled: Arc<Unsettled>,
    /// Orders not sent yet: sending one can be interrupted, forgetting one cannot be allowed.
    outbox: Vec<(Lane, usize, Mode)>,
    /// A redelivered request whose waivers are still to be looked up.
    parked: Option<Message>,
    connection: watch::Receiver<u64>,
    heard: Instant,
    /// Why the orders can no longer be counted; they are then made anew.
    broken: Option<String>,
}

/// Where deliveries come in. A delivery does not say which order it fills, but its subscription does.
struct Inbox {
    address: String,
    standing: Subscriber,
    backlog: Subscriber,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Standing,
    Backlog,
}

impl Mode {
    /// The token in the inbox's subjects.
    fn token(self) -> &'static str {
        match self {
            Mode::Standing => "standing",
            Mode::Backlog => "backlog",
        }
    }
}

pub(super) async fn open(nats: &Nats, model: &ModelName, credit: usize) -> Result<NatsConsumer> {
    queue::exists(nats, model).await?;
    let mut connection = nats.connection.clone();
    connection.mark_unchanged();
    let inbox = Inbox::open(&nats.client).await?;
    Ok(NatsConsumer {
        settling: super::settle::Settling::new(nats, model),
        client: nats.client.clone(),
        model: model.clone(),
        stream: names::work_stream(model),
        credit,
        inbox,
        former: SelectAll::new(),
        lanes: Default::default(),
        unsettled: Arc::default(),
        outbox: Vec::new(),
        parked: None,
        connection,
        heard: Instant::now(),
        broken: None,
    })
}

impl Inbox {
    async fn open(client: &Client) -> Result<Self> {
        let address = client.new_inbox();
        let open = async |mode: Mode| {
            let subject = format!("{address}.{}.*", mode.token());
            client.subscribe(subject).await.map_err(|error| other("subscribing to an inbox", error))
        };
        Ok(Self { standing: open(Mode::Standing).await?, backlog: open(Mode::Backlog).await?, address })
    }

    async fn next(&mut self) -> Option<(Mode, Message)> {
        tokio::select! {
            message = self.backlog.next() => message.map(|message| (Mode::Backlog, message)),
            message = self.standing.next() => message.map(|message| (Mode::Standing, message)),
        }
    }
}

#[async_trait]
impl Consumer for NatsConsumer {
    async fn next(&mut self) -> Result<Delivery> {
        loop {
            if let Some(delivery) = self.unpark().await? {
                return Ok(delivery);
            }
            if self.broken.is_some() {
                tokio::time::sleep(Duration::from_millis(100)).await;
                debug!(model = %self.model, why = self.broken, "asking anew");
                self.cancel_orders().await?;
                self.broken = None;
                self.heard = Instant::now();
            }
            if self.lanes.iter().map(|lane| lane.standing + lane.backlog).sum::<usize>()
                > self.credit.max(pull::LEAST_CREDIT)
            {
                self.cancel_orders().await?;
            }
            self.order().await?;
            tokio::select! {
                biased;
                Some(message) = self.former.next() => self.take(message),
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
                () = tokio::time::sleep_until(self.heard + SILENCE) => self.broken = Some("the broker was silent".into()),
            }
        }
    }

    fn set_credit(&mut self, credit: usize) {
        self.credit = credit;
    }

    async fn stop(mut self: Box<Self>) {
        // Unsubscribing cancels the orders; what was on its way still arrives before the subscription ends.
        let mut held = Vec::new();
        if let Some(parked) = self.parked.take() {
            let lane = names::lane_of(&parked.subject).unwrap_or_default();
            self.unsettled.lanes[lane.index()].fetch_sub(1, Ordering::AcqRel);
            held.push(parked);
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        if let Err(error) = self.cancel_orders().await {
            debug!(model = %self.model, %error, "cannot cancel orders; the broker redelivers what was on its way");
        }
        while let Ok(Some(message)) = tokio::time::timeout_at(deadline, self.former.next()).await {
            held.push(message);
        }
        for message in held {
            if let Some(ack) = Ack::parse(&message) {
                let lane = names::lane_of(&message.subject).unwrap_or_default();
                self.unsettled.lanes[lane.index()].fetch_add(1, Ordering::AcqRel);
                // Not yet looked up how often it was given back: reading it costs one call in this rare case.
                let waived = if ack.delivered > 1 { self.settling.waived(ack.sequence).await.unwrap_or(0) } else { 0 };
                let hold: Box<dyn Hold> = Box::new(self.hold(message, ack, lane, waived));
                if let Err(error) = hold.settle(Settlement::GiveBack).await {
                    warn!(model = %self.model, %error, "could not give back a request; the broker redelivers it later");
                }
            }
        }
    }
}

impl NatsConsumer {
    /// Sends the orders that `pull` says are due.
    async fn order(&mut self) -> Result<()> {
        if self.outbox.is_empty() {
            for (lane, state) in self.lanes.iter_mut().enumerate() {
                state.unsettled = self.unsettled.lanes[lane].load(Ordering::Acquire);
            }
            for (lane, order) in Lane::ALL.into_iter().zip(pull::plan(self.credit, &self.lanes)) {
                if order.backlog > 0 {
                    self.outbox.push((lane, order.backlog, Mode::Backlog));
                }
                if order.standing > 0 {
                    self.outbox.push((lane, order.standing, Mode::Standing));
                }
            }
        }
        while let Some((lane, amount, mode)) = self.outbox.last().copied() {
            let request = match mode {
                Mode::Standing => format!(
                    r#"{{"batch":{amount},"expires":{},"idle_heartbeat":{}}}"#,
                    ORDER_EXPIRES.as_nanos(),
                    HEARTBEAT.as_nanos()
                ),
                Mode::Backlog => format!(r#"{{"batch":{amount},"no_wait":true}}"#),
            };
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{lane}", self.stream);
            let inbox = format!("{}.{}.{lane}", self.inbox.address, mode.token());
            self.client
                .publish_with_reply(subject, inbox, request.into())
                .await
                .map_err(|error| other("asking for requests", error))?;
            // No await between sending and counting.
            self.outbox.pop();
            *self.asked(mode, lane) += amount;
        }
        Ok(())
    }

    fn asked(&mut self, mode: Mode, lane: Lane) -> &mut usize {
        let state = &mut self.lanes[lane.index()];
        match mode {
            Mode::Standing => &mut state.standing,
            Mode::Backlog => &mut state.backlog,
        }
    }

    /// Parks a request; anything else is passed over.
    fn take(&mut self, message: Message) {
        if let Some(lane) = names::lane_of(&message.subject).filter(|_| Ack::parse(&message).is_some()) {
            // Counted here, before anything can interrupt the way to a hold.
            self.unsettled.lanes[lane.index()].fetch_add(1, Ordering::AcqRel);
            self.parked = Some(message);
        }
    }

    /// Takes in what came: a request is parked for `unpark`, a status corrects the count.
    fn receive(&mut self, mode: Mode, message: Message) {
        self.heard = Instant::now();
        let Some(lane) = names::lane_of(&message.subject) else { return };
        if Ack::parse(&message).is_some() {
            let asked = self.asked(mode, lane);
            *asked = asked.saturating_sub(1);
            self.take(message);
            return;
        }
        let status = message.status.map_or(0, |status| status.as_u16());
        let unfilled = message
            .headers
            .as_ref()
            .and_then(|headers| headers::get(headers, "Nats-Pending-Messages"))
            .and_then(|text| text.parse::<usize>().ok());
        match (status, mode, unfilled) {
            (100, ..) => {}
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
                let reason = message.description.unwrap_or_default();
                self.broken = Some(format!("an order ended with status {status}: {reason}"));
            }
        }
    }

    /// The parked request as a delivery.
    async fn unpark(&mut self) -> Result<Option<Delivery>> {
        let Some(message) = &self.parked else { return Ok(None) };
        let Some(ack) = Ack::parse(message) else {
            self.parked = None;
            return Ok(None);
        };
        let waived = if ack.delivered > 1 { self.settling.waived(ack.sequence).await? } else { 0 };
        let Some(message) = self.parked.take() else { return Ok(None) };
        let lane = names::lane_of(&message.subject).unwrap_or_default();
        self.lanes[lane.index()].pending = ack.pending;
        let envelope = Envelope::read(lane, |name| message.headers.as_ref().and_then(|all| headers::get(all, name)));
        Ok(Some(Delivery {
            envelope,
            lane,
            body: message.payload.clone(),
            charged: (ack.delivered - 1).saturating_sub(waived),
            queued: UNIX_EPOCH.checked_add(Duration::from_nanos(ack.published)).unwrap_or_else(SystemTime::now),
            hold: Box::new(self.hold(message, ack, lane, waived)),
        }))
    }

    fn hold(&self, message: Message, ack: Ack, lane: Lane, waived: u32) -> NatsHold {
        NatsHold::new(self.settling.clone(), Arc::clone(&self.unsettled), lane, message, ack.sequence, waived)
    }

    /// Cancels every order, by unsubscribing: the server drops orders whose inbox is gone. What it had sent by then
    /// still arrives. New orders go to a new inbox.
    async fn cancel_orders(&mut self) -> Result<()> {
        let fresh = Inbox::open(&self.client).await?;
        let former = std::mem::replace(&mut self.inbox, fresh);
        self.forget_orders();
        for mut subscriber in [former.standing, former.backlog] {
            subscriber.drain().await.map_err(|error| other("ending a subscription", error))?;
            self.former.push(subscriber);
        }
        Ok(())
    }

    fn forget_orders(&mut self) {
        self.outbox.clear();
        for lane in &mut self.lanes {
            // What waits is not forgotten: asking once too often costs one word of the server.
            lane.standing = 0;
            lane.backlog = 0;
        }
    }
}
