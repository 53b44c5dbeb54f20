//! Renews the hold on everything that was delivered and not settled, for as long as this process lives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_nats::jetstream::AckKind;
use async_nats::{Client, Subject};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub(super) type Key = u64;

/// The holds of one connection.
pub(super) struct Keeper {
    held: Mutex<Held>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Held {
    next: Key,
    since: HashMap<Key, (Subject, Instant)>,
}

impl Keeper {
    /// Starts renewing, at a third of the time after which the broker would redeliver.
    pub(super) fn start(client: Client, hold_time: Duration) -> Arc<Self> {
        let keeper = Arc::new(Self { held: Mutex::default(), stop: CancellationToken::new() });
        let weak = Arc::downgrade(&keeper);
        let stop = keeper.stop.clone();
        let period = hold_time / 3;
        tokio::spawn(async move {
            // Looking twice per period keeps the gap between two renewals below half of the hold time.
            while stop.run_until_cancelled(tokio::time::sleep(period / 2)).await.is_some() {
                let Some(keeper) = weak.upgrade() else { return };
                for subject in keeper.due(period) {
                    if let Err(error) = client.publish(subject, AckKind::Progress.into()).await {
                        warn!(%error, "could not renew the hold on a request; the broker may deliver it again");
                    }
                }
            }
        });
        keeper
    }

    pub(super) fn keep(&self, subject: Subject) -> Key {
        let mut held = self.lock();
        let key = held.next;
        held.next += 1;
        held.since.insert(key, (subject, Instant::now()));
        key
    }

    pub(super) fn release(&self, key: Key) {
        self.lock().since.remove(&key);
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    fn due(&self, period: Duration) -> Vec<Subject> {
        let now = Instant::now();
        let mut held = self.lock();
        let due = held.since.values_mut().filter(|(_, since)| now.duration_since(*since) >= period / 2);
        due.map(|(subject, since)| {
            *since = now;
            subject.clone()
        })
        .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
