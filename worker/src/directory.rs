//! Follows the registry: which revision of each model is the newest. A signal says that there is a new one; should it be lost, a slow
//! look finds it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use sluice_core::broker::{Broker, Signals};
use sluice_core::report::{REVISED, RegistryReport};
use sluice_core::{ModelName, store::StoreError};
use sluice_registry::{Registry, RegistryError, Revision};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::board::Board;

/// The pause before the registry is asked again that could not be reached.
const PAUSE: Duration = Duration::from_secs(2);

/// A model that was found, and its newest revision from now on; none while it is not deployed.
pub type Found = (ModelName, watch::Receiver<Option<Revision>>);

/// Follows the registry.
pub struct Directory {
    pub registry: Registry,
    pub broker: Arc<dyn Broker>,
    /// Where it is put up which registry this is.
    pub board: Arc<Board>,
    /// Whether models that will load are put up there: those of the registry do without being asked for.
    pub expected: bool,
    /// Between two looks at everything.
    pub poll: Duration,
    /// Whether models count that nobody named.
    pub all: bool,
    /// Models that are served from a folder, and do not count.
    pub reserved: Vec<ModelName>,
    /// Told each model once.
    pub found: mpsc::Sender<Found>,
}

impl Directory {
    /// Looks once at everything, tells `looked`, and follows until `stop`.
    pub async fn follow(
        self,
        named: Vec<ModelName>,
        mut asked: mpsc::UnboundedReceiver<ModelName>,
        looked: watch::Sender<bool>,
        stop: CancellationToken,
    ) -> Result<()> {
        let mut signals = self.broker.listen(REVISED).await.context("listening for new revisions")?;
        let mut known = BTreeMap::new();
        for model in named {
            self.add(&mut known, model).await;
        }
        loop {
            let poll = match self.look_at_all(&mut known).await {
                Ok(()) => {
                    looked.send_replace(true);
                    self.poll
                }
                Err(error) => {
                    warn!(%error, reason = cause(&error), "cannot read the registry; what runs goes on");
                    PAUSE
                }
            };
            if self.serve_signals(&mut *signals, &mut asked, &mut known, poll, &stop).await?.is_none() {
                return Ok(());
            }
        }
    }

    /// Looks at what is signalled until it is time to look at everything; `None` once stopped.
    async fn serve_signals(
        &self,
        signals: &mut dyn Signals,
        asked: &mut mpsc::UnboundedReceiver<ModelName>,
        known: &mut BTreeMap<ModelName, watch::Sender<Option<Revision>>>,
        poll: Duration,
        stop: &CancellationToken,
    ) -> Result<Option<()>> {
        let next_look = tokio::time::sleep(poll);
        tokio::pin!(next_look);
        loop {
            let model = tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = &mut next_look => return Ok(Some(())),
                Some(model) = asked.recv() => {
                    // One that nobody followed any more is found anew.
                    known.retain(|_, revision| !revision.is_closed());
                    self.add(known, model.clone()).await;
                    model
                }
                signal = signals.next() => {
                    let payload = signal.context("listening for new revisions")?.payload;
                    self.tell_registry().await;
                    let name = std::str::from_utf8(&payload).ok().and_then(|name| name.parse::<ModelName>().ok());
                    match name.filter(|model| self.all || known.contains_key(model)) {
                        Some(model) => model,
                        None => continue,
                    }
                }
            };
            if self.all {
                self.add(known, model.clone()).await;
            }
            if let Err(error) = self.look(known, &model).await {
                warn!(%model, %error, "cannot read a new revision; looking again soon");
                return Ok(Some(()));
            }
        }
    }

    async fn add(&self, known: &mut BTreeMap<ModelName, watch::Sender<Option<Revision>>>, model: ModelName) {
        if !known.contains_key(&model) && !self.reserved.contains(&model) {
            let (sender, receiver) = watch::channel(None);
            known.insert(model.clone(), sender);
            // Nobody listens any more once the worker stops.
            let _ = self.found.send((model, receiver)).await;
        }
    }

    async fn look_at_all(
        &self,
        known: &mut BTreeMap<ModelName, watch::Sender<Option<Revision>>>,
    ) -> Result<(), RegistryError> {
        self.tell_registry().await;
        known.retain(|_, revision| !revision.is_closed());
        if self.all {
            for model in self.registry.models().await? {
                self.add(known, model).await;
            }
        }
        let models: Vec<ModelName> = known.keys().cloned().collect();
        for model in models {
            self.look(known, &model).await?;
        }
        Ok(())
    }

    /// Puts up which registry this is, until that is known for good. It only helps people: models are followed all the same.
    async fn tell_registry(&self) {
        if self.board.knows_registry() {
            return;
        }
        match self.registry.identity().await {
            Ok(identity) => {
                self.board.put_registry(RegistryReport { url: self.registry.url().to_owned(), identity });
            }
            Err(error) => warn!(%error, reason = cause(&error), "cannot read which registry this is"),
        }
    }

    async fn look(
        &self,
        known: &BTreeMap<ModelName, watch::Sender<Option<Revision>>>,
        model: &ModelName,
    ) -> Result<(), RegistryError> {
        let newest = match self.registry.newest(model).await {
            // One bad record must not hide the other models.
            Err(RegistryError::Unreadable { key, reason }) => {
                warn!(%model, key, reason, "a revision cannot be read; what runs goes on");
                return Ok(());
            }
            newest => newest?,
        };
        let Some(current) = known.get(model) else { return Ok(()) };
        current.send_if_modified(|current| {
            let differs = *current != newest;
            if differs {
                match &newest {
                    Some(revision) => info!(%model, revision = revision.number, version = revision.version,
                        started = revision.started, by = revision.by, "a new revision"),
                    None => info!(%model, "it is not deployed any more"),
                }
                if let Some(revision) = newest.as_ref().filter(|_| self.expected) {
                    self.board.expect(model, revision.number);
                }
                *current = newest.clone();
            }
            differs
        });
        Ok(())
    }
}

fn cause(error: &RegistryError) -> String {
    match error {
        RegistryError::Store(StoreError::Other { source, .. }) => source.to_string(),
        _ => String::new(),
    }
}
