//! Ending a delivery.
//!
//! Giving back costs no attempt, but on NATS every redelivery raises the delivery count, and headers cannot be
//! changed in place. So a waiver is stored first, under the message's sequence number; whoever receives the request
//! next subtracts the waivers from the count. Publishing the request anew with a count in its headers would need no
//! lookup, but loses its place in the queue.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::DirectGetErrorKind;
use async_nats::jetstream::{AckKind, Context};
use async_nats::{Client, HeaderMap, Message, Subject};
use async_trait::async_trait;
use tracing::trace;

use sluice_core::broker::{BrokerError, Death, Hold, Result, Settlement};
use sluice_core::{Lane, ModelName};

use super::acks::Acks;
use super::consume::Unsettled;
use super::error::other;
use super::keep::{Keeper, Key};
use super::{Nats, dead, names};

/// What a delivery's reply subject says: `$JS.ACK.<domain>.<account>.<stream>.<consumer>.<delivered>.<stream
/// sequence>.<consumer sequence>.<published, ns>.<pending>[...]`, or without domain and account (NATS ADR-15).
#[derive(Clone, Copy)]
pub(super) struct Ack {
    pub delivered: u32,
    pub sequence: u64,
    pub published: u64,
    pub pending: u64,
}

impl Ack {
    pub(super) fn parse(message: &Message) -> Option<Self> {
        let mut tokens = [""; 12];
        let mut count = 0;
        for token in message.reply.as_ref()?.as_str().strip_prefix("$JS.ACK.")?.split('.').take(tokens.len()) {
            tokens[count] = token;
            count += 1;
        }
        let tokens = if count == 7 { &tokens[2..7] } else { tokens.get(4..9).filter(|_| count >= 9)? };
        Some(Self {
            delivered: tokens[0].parse().ok()?,
            sequence: tokens[1].parse().ok()?,
            published: tokens[3].parse().ok()?,
            pending: tokens[4].parse().ok()?,
        })
    }
}

/// What settling needs of the connection; shared by all deliveries of a consumer.
pub(super) struct Settling {
    client: Client,
    jetstream: Context,
    acks: Arc<Acks>,
    keeper: Arc<Keeper>,
    model: ModelName,
}

impl Settling {
    pub(super) fn new(nats: &Nats, model: &ModelName) -> Self {
        Self {
            client: nats.client.clone(),
            jetstream: nats.jetstream.clone(),
            acks: Arc::clone(&nats.acks),
            keeper: Arc::clone(&nats.keeper),
            model: model.clone(),
        }
    }

    /// How often a request was given back without a charge.
    pub(super) async fn waived(&self, sequence: u64) -> Result<u32> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            other("reading how often a request was given back", error)
        };
        let waivers =
            self.jetstream.get_stream_no_info(names::GIVEN_BACK).await.map_err(|error| failed(error.into()))?;
        match waivers.direct_get_last_for_subject(names::given_back_subject(&self.model, sequence)).await {
            Ok(found) => Ok(std::str::from_utf8(&found.payload).ok().and_then(|text| text.parse().ok()).unwrap_or(0)),
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(0),
            Err(error) => Err(failed(error.into())),
        }
    }

    async fn waive(&self, sequence: u64, times: u32) -> Result<()> {
        let failed =
            |error: Box<dyn std::error::Error + Send + Sync>| other("noting that a request is given back", error);
        let subject = names::given_back_subject(&self.model, sequence);
        let stored =
            self.jetstream.publish(subject, times.to_string().into()).await.map_err(|error| failed(error.into()))?;
        stored.await.map_err(|error| failed(error.into()))?;
        Ok(())
    }
}

pub(super) struct NatsHold {
    settling: Arc<Settling>,
    unsettled: Arc<Unsettled>,
    lane: Lane,
    kept: Key,
    reply: Subject,
    headers: HeaderMap,
    body: bytes::Bytes,
    ack: Ack,
    waived: u32,
}

impl NatsHold {
    pub(super) fn new(
        settling: Arc<Settling>,
        unsettled: Arc<Unsettled>,
        lane: Lane,
        message: Message,
        ack: Ack,
        waived: u32,
    ) -> Self {
        let reply = message.reply.unwrap_or_else(|| Subject::from_static(""));
        let kept = settling.keeper.keep(reply.clone());
        let headers = message.headers.unwrap_or_default();
        Self { settling, unsettled, lane, kept, reply, headers, body: message.payload, ack, waived }
    }

    /// Plain acknowledgements: a confirmed one costs a round trip each, and a lost one only a second run.
    async fn send(&self, kind: AckKind) -> Result<()> {
        let sent = self.settling.client.publish(self.reply.clone(), kind.into()).await;
        sent.map_err(|error| other("settling a request", error))
    }

    async fn give_back(&self) -> Result<()> {
        let waived = self.settling.waive(self.ack.sequence, self.waived + 1).await;
        // Even without the waiver it must go back now; it is then charged one attempt.
        self.send(AckKind::Nak(None)).await?;
        waived
    }

    async fn bury(&self, death: &Death) -> Result<()> {
        let settling = &self.settling;
        // The same at each try, and another for a queue that was made anew.
        let name = format!("{}.{}.{}", settling.model, self.ack.sequence, self.ack.published);
        dead::store(&settling.acks, &settling.model, &self.headers, self.body.clone(), death, &name).await?;
        // Only now may the original go, and its going is confirmed.
        let removal = settling.client.request(self.reply.clone(), AckKind::Term.into());
        match tokio::time::timeout(Duration::from_secs(5), removal).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(other("removing a request that is kept as a dead letter", error)),
            Err(_) => Err(BrokerError::TimedOut("removing a request that is kept as a dead letter".into())),
        }
    }
}

#[async_trait]
impl Hold for NatsHold {
    async fn settle(self: Box<Self>, settlement: Settlement) -> Result<()> {
        let Ack { sequence, delivered, .. } = self.ack;
        trace!(model = %self.settling.model, sequence, delivered, ?settlement, "settled");
        match settlement {
            Settlement::Done => self.send(AckKind::Ack).await,
            Settlement::Retry(after) => self.send(AckKind::Nak(Some(after))).await,
            // Boxed: what is rare would make the future of each settlement several times as large.
            Settlement::GiveBack => Box::pin(self.give_back()).await,
            Settlement::Dead(death) => Box::pin(self.bury(&death)).await,
        }
    }
}

impl Drop for NatsHold {
    fn drop(&mut self) {
        self.settling.keeper.release(self.kept);
        self.unsettled.settled(self.lane);
    }
}
