//! Leadership: a key that lives for 2 s unless its holder renews it. The revision at which it was created is the
//! term: revisions of a bucket only grow.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::{self, CreateErrorKind, Store};
use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use sluice_core::broker::{BrokerError, Leadership, Result};
use sluice_core::settings::Settings;

use super::error::other;
use super::{Nats, names, room, settings};
use crate::Patience;

/// How long the key outlives its last renewal.
const LEASE: Duration = Duration::from_secs(2);
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_millis(660);
/// How often one that waits tries to take over.
const POLL: Duration = Duration::from_millis(250);
/// The holder stops acting this much before another could take over.
const MARGIN: Duration = Duration::from_millis(300);

/// The bucket of leases, if it is not there yet or has fewer copies than the settings say.
pub(super) async fn ensure_bucket(nats: &Nats, settings: &Settings) -> Result<()> {
    let stream = bucket_stream();
    // Nobody lowers copies in passing.
    let there = match nats.stream(&stream).await {
        Err(BrokerError::Denied(_)) => None,
        found => found?,
    };
    if there.as_ref().is_some_and(|there| there.num_replicas >= settings.replicas) {
        return Ok(());
    }
    let bucket = kv::Config {
        bucket: names::LEADERS.into(),
        max_age: LEASE,
        num_replicas: settings.replicas,
        max_bytes: there.as_ref().map_or(room::bytes(room::LEADERS_MIB), |there| there.max_bytes),
        ..Default::default()
    };
    let operation = format!("STREAM.{}.{stream}", if there.is_some() { "UPDATE" } else { "CREATE" });
    match nats.allowed(&operation, nats.jetstream.create_or_update_key_value(bucket)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(nats.explained(other(format!("making the bucket `{}`", names::LEADERS), error))),
        // It is there, and whoever may change it will.
        Err(BrokerError::Denied(_)) if there.is_some() => Ok(()),
        Err(BrokerError::Denied(reason)) => Err(BrokerError::Denied(format!(
            "the bucket `{}` is not there, and this user may not make it: any `sluice model` or `sluice settings` command that changes \
             something, by the manager's user, does ({reason})",
            names::LEADERS
        ))),
        Err(error) => Err(error),
    }
}

fn bucket_stream() -> String {
    format!("KV_{}", names::LEADERS)
}

pub(super) async fn lead(nats: &Nats, office: &str, holder: &str) -> Result<NatsLeadership> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        nats.explained(other(format!("taking the office `{office}`"), error))
    };
    let mut told = false;
    loop {
        match ensure_bucket(nats, &settings::current(nats).await?).await {
            Err(BrokerError::Denied(reason)) if nats.options.patience == Patience::Wait => {
                if !std::mem::replace(&mut told, true) {
                    warn!(office, reason, "waiting for what leading needs");
                }
                tokio::time::sleep(4 * POLL).await;
            }
            made => break made?,
        }
    }
    let store = nats.jetstream.get_key_value(names::LEADERS).await.map_err(|error| failed(error.into()))?;
    loop {
        let asked = Instant::now();
        match store.create(office, holder.to_owned().into()).await {
            Ok(revision) => return Ok(NatsLeadership::start(store, office, holder, revision, asked)),
            Err(error) => match error.kind() {
                CreateErrorKind::InvalidKey => return Err(failed(error.into())),
                kind => debug!(office, ?kind, "another leads, or the broker does not answer"),
            },
        }
        tokio::time::sleep(POLL).await;
    }
}

pub(super) struct NatsLeadership {
    store: Store,
    office: String,
    term: u64,
    state: Arc<State>,
}

struct State {
    /// When the last renewal that succeeded was asked for, and the revision that it gave.
    renewed: Mutex<(Instant, u64)>,
    /// Cancelled when the lease is lost or given up.
    over: CancellationToken,
}

impl State {
    fn renewed(&self) -> (Instant, u64) {
        *self.renewed.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn holds(&self) -> bool {
        !self.over.is_cancelled() && self.renewed().0.elapsed() < LEASE - MARGIN
    }
}

impl NatsLeadership {
    fn start(store: Store, office: &str, holder: &str, term: u64, asked: Instant) -> Self {
        let state = Arc::new(State { renewed: Mutex::new((asked, term)), over: CancellationToken::new() });
        let renewal = renew(store.clone(), office.to_owned(), holder.to_owned(), Arc::clone(&state));
        tokio::spawn(renewal);
        Self { store, office: office.into(), term, state }
    }
}

async fn renew(store: Store, office: String, holder: String, state: Arc<State>) {
    while state.over.run_until_cancelled(tokio::time::sleep(RENEWAL)).await.is_some() {
        let asked = Instant::now();
        let update = store.update(&office, holder.clone().into(), state.renewed().1);
        match tokio::time::timeout(LEASE, update).await {
            Ok(Ok(revision)) => {
                *state.renewed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = (asked, revision);
            }
            failed => {
                if let Ok(Err(error)) = failed
                    && error.kind() == kv::UpdateErrorKind::WrongLastRevision
                {
                    warn!(office, "another has taken over the lead");
                    state.over.cancel();
                }
            }
        }
        if !state.holds() {
            state.over.cancel();
        }
    }
}

#[async_trait]
impl Leadership for NatsLeadership {
    fn term(&self) -> u64 {
        self.term
    }

    fn holds(&self) -> bool {
        self.state.holds()
    }

    async fn lost(&self) {
        self.state.over.cancelled().await;
    }

    async fn resign(self: Box<Self>) -> Result<()> {
        self.state.over.cancel();
        let (_, revision) = self.state.renewed();
        let deleted = self.store.delete_expect_revision(&self.office, Some(revision)).await;
        deleted.map_err(|error| other(format!("giving up the office `{}`", self.office), error))
    }
}

impl Drop for NatsLeadership {
    fn drop(&mut self) {
        self.state.over.cancel();
    }
}
