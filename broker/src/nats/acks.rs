//! Publishing into streams, each publish acknowledged by the server. All acks come to one inbox and are told apart by
//! a number; one clock times them out. The client has a publish of its own, with a random inbox, a timer and two
//! attempts at the JSON for each message: too much for every request and every durable answer.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, HeaderMap, Message, PublishErrorKind, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use sluice_core::broker::Result;

use super::error::{Denials, Refusals, other};

/// How long an ack may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// As a new one.
    New,
    /// It was already: the stream dropped a repetition.
    Before,
}

/// Why a message is not stored, as far as is known.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotStored {
    #[error("no stream takes it")]
    NoStream,
    #[error("timed out")]
    TimedOut,
    #[error("{0}")]
    Denied(String),
    #[error("it is larger than the server takes")]
    TooLarge,
    #[error(transparent)]
    Refused(#[from] jetstream::Error),
    #[error(transparent)]
    Unsent(#[from] async_nats::PublishError),
    #[error("the server's ack cannot be read")]
    Unreadable(#[from] serde_json::Error),
}

impl NotStored {
    /// Whether this message is too large, in one way or the other: without its body or with fewer headers it may be taken.
    pub(super) fn is_of_size(&self) -> bool {
        matches!(self, NotStored::TooLarge)
            || matches!(
                self.code(),
                Some(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM)
            )
    }

    /// JetStream's code, if it was JetStream that refused.
    pub(super) fn code(&self) -> Option<ErrorCode> {
        match self {
            NotStored::Refused(error) => Some(error.error_code()),
            _ => None,
        }
    }
}

type Answer = std::result::Result<Stored, NotStored>;

/// The acks awaited on one connection.
pub(super) struct Acks {
    client: Client,
    inbox: String,
    awaited: Arc<Mutex<Awaited>>,
    stop: CancellationToken,
}

/// Who waits for which ack: the first stands for number `first`, and so on. Old ones that are gone leave at the front.
#[derive(Default)]
struct Awaited {
    first: u64,
    acks: VecDeque<Option<Waiting>>,
}

/// Whoever waits for an ack.
struct Waiting {
    since: Instant,
    /// Of the subject, which the server names when it refuses a publish instead of acknowledging it.
    hash: u64,
    answer: oneshot::Sender<Answer>,
}

impl Acks {
    pub(super) async fn start(client: &Client, denials: &Denials) -> Result<Arc<Self>> {
        let refusals = denials.follow();
        let inbox = client.new_inbox();
        let subscriber =
            client.subscribe(format!("{inbox}.*")).await.map_err(|error| other("subscribing to an inbox", error))?;
        let awaited = Arc::new(Mutex::default());
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(hand_out(subscriber, refusals, Arc::clone(&awaited))));
        Ok(Arc::new(Self { client: client.clone(), inbox, awaited, stop }))
    }

    /// Publishes a message and waits until a stream has stored it.
    pub(super) async fn publish(&self, subject: String, headers: HeaderMap, body: Bytes) -> Answer {
        let (number, ack) = lock(&self.awaited).expect(Instant::now(), hash_of(&subject));
        let inbox = format!("{}.{number}", self.inbox);
        // Boxed: it is needed for a moment, and would make whatever waits for its ack several times as large.
        let sent = Box::pin(self.client.publish_with_reply_and_headers(subject, inbox, headers, body)).await;
        if let Err(error) = sent {
            lock(&self.awaited).take(number);
            return Err(match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => NotStored::TooLarge,
                _ => NotStored::Unsent(error),
            });
        }
        ack.await.unwrap_or(Err(NotStored::TimedOut))
    }
}

impl Drop for Acks {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Awaited {
    fn expect(&mut self, now: Instant, hash: u64) -> (u64, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        self.acks.push_back(Some(Waiting { since: now, hash, answer }));
        (self.first + self.acks.len() as u64 - 1, receiver)
    }

    /// Whoever waits for an ack; nobody if it came twice or too late.
    fn take(&mut self, number: u64) -> Option<oneshot::Sender<Answer>> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let answer = self.acks.get_mut(index)?.take()?.answer;
        while let Some(None) = self.acks.front() {
            self.acks.pop_front();
            self.first += 1;
        }
        Some(answer)
    }

    /// Tells all who wait for an ack of a publish that was refused.
    fn refuse(&mut self, text: &str) {
        let Some((_, subject)) = text.split_once("Publish to \"") else { return };
        let hash = hash_of(subject.split('"').next().unwrap_or_default());
        for ack in &mut self.acks {
            if let Some(refused) = ack.take_if(|waiting| waiting.hash == hash) {
                let _ = refused.answer.send(Err(NotStored::Denied(text.to_owned())));
            }
        }
    }

    /// Forgets those that have waited for too long, which tells them so.
    fn forget(&mut self, now: Instant) {
        let is_over = |ack: &Option<Waiting>| ack.as_ref().is_none_or(|waiting| now - waiting.since >= PATIENCE);
        while self.acks.front().is_some_and(is_over) {
            self.acks.pop_front();
            self.first += 1;
        }
    }
}

fn hash_of(subject: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    subject.hash(&mut hasher);
    hasher.finish()
}

fn lock(awaited: &Mutex<Awaited>) -> MutexGuard<'_, Awaited> {
    awaited.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

async fn hand_out(mut acks: Subscriber, mut refusals: Refusals, awaited: Arc<Mutex<Awaited>>) {
    let mut clock = tokio::time::interval(PATIENCE / 10);
    loop {
        tokio::select! {
            // Once the connection is closed there are no more, but whoever still waits is to be told.
            Some(ack) = acks.next() => {
                let number = ack.subject.rsplit('.').next().and_then(|number| number.parse().ok());
                if let Some(waiting) = number.and_then(|number| lock(&awaited).take(number)) {
                    // Nobody may be waiting any more.
                    let _ = waiting.send(read(&ack));
                }
            }
            text = refusals.next() => lock(&awaited).refuse(&text),
            _ = clock.tick() => lock(&awaited).forget(Instant::now()),
        }
    }
}

/// What the server sends (NATS ADR-7, `PubAck`).
#[derive(Deserialize)]
struct Ack {
    error: Option<jetstream::Error>,
    #[serde(default)]
    duplicate: bool,
}

fn read(message: &Message) -> Answer {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(NotStored::NoStream);
    }
    match serde_json::from_slice(&message.payload)? {
        Ack { error: Some(error), .. } => Err(error.into()),
        Ack { duplicate: true, .. } => Ok(Stored::Before),
        Ack { duplicate: false, .. } => Ok(Stored::New),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_find_whoever_waits_in_any_order_and_late_ones_nobody() {
        let now = Instant::now();
        let mut awaited = Awaited::default();
        let (one, _first) = awaited.expect(now, 0);
        let (two, mut second) = awaited.expect(now, 0);
        let (three, mut third) = awaited.expect(now + PATIENCE, 0);
        assert_eq!((one, two, three), (0, 1, 2));
        awaited.take(two).expect("it waits").send(Ok(Stored::New)).expect("it listens");
        assert!(second.try_recv().expect("it was told").is_ok());
        assert!(awaited.take(two).is_none(), "an ack that comes twice is for nobody");
        awaited.forget(now + PATIENCE);
        assert!(awaited.take(one).is_none(), "an ack that comes too late is for nobody");
        assert!(third.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty), "it still waits");
        assert!(awaited.take(three).is_some());
        assert!(awaited.acks.is_empty(), "nothing is kept of those that are over");
        assert_eq!(awaited.expect(now, 0).0, 3, "no number is given twice");
    }

    #[test]
    fn a_refused_publish_is_told_at_once_and_no_other() {
        let now = Instant::now();
        let mut awaited = Awaited::default();
        let (_, mut refused) = awaited.expect(now, hash_of("infer.rank.normal"));
        let (_, mut other) = awaited.expect(now, hash_of("infer.ranks.normal"));
        awaited.refuse("Permissions Violation for Publish to \"infer.rank.normal\"");
        assert!(matches!(refused.try_recv(), Ok(Err(NotStored::Denied(_)))));
        assert!(other.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty), "it still waits");
    }
}
