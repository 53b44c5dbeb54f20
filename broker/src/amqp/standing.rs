//! What the broker has said of this connection as a whole: that it takes no messages for now, that it denied something. Every
//! call goes through here, so that none waits for what will not come.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use sluice_core::broker::{BrokerError, Result};

use super::error::other;
use super::names;

/// How long the broker may take for what it does at once when it is well: while it starts, it may leave a call unanswered.
const PATIENCE: Duration = Duration::from_secs(5);
/// What was on its way when the broker said that it takes nothing may still be answered.
const ON_ITS_WAY: Duration = Duration::from_millis(300);
/// How long a refusal is in the way: whoever is refused tries again within this.
const DENIED: Duration = Duration::from_secs(10);
/// How often it is made sure that what is told without a confirm is taken.
const SURE: Duration = Duration::from_secs(1);

/// What is known of a connection.
#[derive(Default)]
pub(super) struct Standing {
    /// Why the broker takes no messages, while it does not.
    blocked: watch::Sender<Option<String>>,
    /// What it denied last, and when.
    denied: Mutex<Option<(Instant, String)>>,
    sure: Mutex<Option<Instant>>,
}

impl Standing {
    /// The broker takes no messages for this reason, or takes them again.
    pub(super) fn set_blocked(&self, reason: Option<String>) {
        self.blocked.send_replace(reason);
    }

    /// A new connection: nothing is known of it.
    pub(super) fn forget(&self) {
        self.set_blocked(None);
        *self.sure.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// An error at once instead of a wait for nobody knows how long.
    pub(super) fn refuse_while_blocked(&self) -> Result<()> {
        match &*self.blocked.borrow() {
            Some(reason) => Err(BrokerError::Blocked(reason.clone())),
            None => Ok(()),
        }
    }

    /// Whether the next message that is told without a confirm should have one: only a publish makes the broker say that it
    /// takes none.
    pub(super) fn is_unsure(&self) -> bool {
        let mut sure = self.sure.lock().unwrap_or_else(PoisonError::into_inner);
        let unsure = sure.is_none_or(|sure| sure.elapsed() > SURE);
        if unsure {
            *sure = Some(Instant::now());
        }
        unsure
    }

    /// Notes what the broker denied, and says whether it is trouble. What a worker never needs is none: a step of a pipeline that nobody
    /// granted, settings and queues that only a manager may make.
    pub(super) fn note_denial(&self, refusal: &str) -> bool {
        let quoted = |name: &str| refusal.contains(&format!("'{name}'"));
        // Whoever uses a queue waits for the answer and is told; only what is sent without a confirm is refused unheard.
        let of_queue = refusal.contains("access to queue '");
        if of_queue || refusal.contains("configure access") || quoted(names::WORK) || quoted(names::SETTINGS) {
            return false;
        }
        *self.denied.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), refusal.to_owned()));
        true
    }

    /// What the broker denied within the last seconds.
    pub(super) fn denied_lately(&self) -> Option<String> {
        let denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        denied.as_ref().filter(|(when, _)| when.elapsed() < DENIED).map(|(_, refusal)| refusal.clone())
    }

    /// Waits until the broker takes nothing, and until what was on its way then would have been answered.
    pub(super) async fn until_blocked(&self) -> BrokerError {
        // The sender lives as long as this does.
        let mut blocked = self.blocked.subscribe();
        let reason = blocked.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        tokio::time::sleep(ON_ITS_WAY).await;
        BrokerError::Blocked(reason.unwrap_or_default())
    }

    /// What a call gives, or an error if the broker takes nothing, or takes too long.
    pub(super) async fn in_time<T>(&self, what: impl Display, call: impl Future<Output = T>) -> Result<T> {
        tokio::select! {
            biased;
            done = call => Ok(done),
            error = self.until_blocked() => Err(error),
            () = tokio::time::sleep(PATIENCE) => Err(BrokerError::TimedOut(what.to_string())),
        }
    }

    /// What a call gives, and its error in the words of the seam.
    pub(super) async fn within<T>(
        &self,
        what: impl Display,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T> {
        self.in_time(&what, call).await?.map_err(|error| other(what, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_trouble_only_of_what_a_worker_needs() {
        let standing = Standing::default();
        for harmless in [
            "ACCESS_REFUSED - write access to exchange 'sluice.infer' in vhost '/' refused for user 'worker'",
            "ACCESS_REFUSED - configure access to exchange 'sluice.settings' in vhost '/' refused for user 'worker'",
            // RabbitMQ 3 does not say which access, 4 does.
            "ACCESS_REFUSED - access to queue 'infer.m.high' in vhost '/' refused for user 'worker'",
            "ACCESS_REFUSED - configure access to queue 'infer.m.high' in vhost '/' refused for user 'worker'",
        ] {
            assert!(!standing.note_denial(harmless));
            assert_eq!(standing.denied_lately(), None);
        }
        assert!(
            standing.note_denial("ACCESS_REFUSED - write access to exchange 'sluice.results' in vhost '/' refused")
        );
        assert!(standing.denied_lately().is_some());
    }
}
