//! Renews the hold on everything that was delivered and not settled, for as long as this process lives.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Client, Subject};
use slab::Slab;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// A hold's place among those that are renewed.
pub(super) type Key = usize;

/// The holds of one connection.
pub(super) struct Keeper {
    held: Mutex<Held>,
    stop: CancellationToken,
}

/// Time is counted in looks: asking the clock for each hold would cost more than all the rest here.
#[derive(Default)]
struct Held {
    looks: u64,
    /// What to renew, and the look before which that was done last.
    holds: Slab<(Subject, u64)>,
}

impl Keeper {
    /// Starts renewing, at a third of the time after which the broker would redeliver.
    pub(super) fn start(client: Client, hold_time: Duration) -> Arc<Self> {
        let keeper = Arc::new(Self { held: Mutex::default(), stop: CancellationToken::new() });
        let weak = Arc::downgrade(&keeper);
        let stop = keeper.stop.clone();
        let period = hold_time / 3;
        tokio::spawn(async move {
            // Looking twice per period, and renewing at the second look, keeps the gap between two renewals within a period.
            while stop.run_until_cancelled(tokio::time::sleep(period / 2)).await.is_some() {
                let Some(keeper) = weak.upgrade() else { return };
                for subject in keeper.due() {
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
        let looks = held.looks;
        held.holds.insert((subject, looks))
    }

    pub(super) fn release(&self, key: Key) {
        self.lock().holds.remove(key);
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    fn due(&self) -> Vec<Subject> {
        let mut held = self.lock();
        held.looks += 1;
        let looks = held.looks;
        let due = held.holds.iter_mut().filter(|(_, (_, since))| looks - since >= 2);
        due.map(|(_, (subject, since))| {
            *since = looks;
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
