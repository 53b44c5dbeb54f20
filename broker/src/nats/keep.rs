//! Renews the hold on everything that was delivered and not settled, for as long as this process lives.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_nats::jetstream::AckKind;
use async_nats::{Client, Subject};
use slab::Slab;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// A hold's place among those that are renewed.
pub(super) type Key = usize;

/// The holds of one connection.
pub(super) struct Keeper {
    held: Mutex<Slab<(Subject, Instant)>>,
    stop: CancellationToken,
}

impl Keeper {
    /// Starts renewing, at a third of the time after which the broker would redeliver.
    pub(super) fn start(client: Client, hold_time: Duration) -> Arc<Self> {
        let keeper = Arc::new(Self { held: Mutex::new(Slab::new()), stop: CancellationToken::new() });
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
        self.lock().insert((subject, Instant::now()))
    }

    pub(super) fn release(&self, key: Key) {
        self.lock().remove(key);
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    fn due(&self, period: Duration) -> Vec<Subject> {
        let now = Instant::now();
        let mut held = self.lock();
        let due = held.iter_mut().filter(|(_, (_, since))| now.duration_since(*since) >= period / 2);
        due.map(|(_, (subject, since))| {
            *since = now;
            subject.clone()
        })
        .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Slab<(Subject, Instant)>> {
        self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
