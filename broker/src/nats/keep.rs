//! Renews the hold on everything that was delivered and not settled, for as long as this process lives.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::{Client, Subject};
use slab::Slab;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// A hold's place among those that are renewed.
pub(super) type Key = usize;

/// The holds of one connection.
pub(super) struct Keeper {
    held: Mutex<Held>,
    hold_time: watch::Sender<Duration>,
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
        let (hold_time, mut periods) = watch::channel(hold_time);
        let keeper = Arc::new(Self { held: Mutex::default(), hold_time, stop: CancellationToken::new() });
        let weak = Arc::downgrade(&keeper);
        let stop = keeper.stop.clone();
        tokio::spawn(async move {
            loop {
                // Looking twice per period, and renewing at the second look, keeps the gap between two renewals within a period.
                let period = *periods.borrow_and_update() / 3;
                let looks = tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(period / 2) => 1,
                    // What was renewed for a longer time is renewed for this one at once.
                    _ = periods.changed() => 2,
                };
                let Some(keeper) = weak.upgrade() else { return };
                for subject in keeper.due(looks) {
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

    /// From now on the broker waits so long.
    pub(super) fn set_hold_time(&self, hold_time: Duration) {
        self.hold_time.send_if_modified(|current| std::mem::replace(current, hold_time) != hold_time);
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    fn due(&self, passed: u64) -> Vec<Subject> {
        let mut held = self.lock();
        held.looks += passed;
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
