//! Which models are deployed, and with which settings: follows the registry. It also tells callers what they take, since no host does that
//! for a model without slots.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sluice_core::broker::Broker;
use sluice_core::clock::UnixMs;
use sluice_core::report::REVISED;
use sluice_core::{Manifest, ModelName};
use sluice_registry::{Registry, RegistryError, Revision};
use sluice_service::describe::Describing;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::fleet::Fleet;
use crate::run::lock;

/// The pause before a registry is asked again that could not be reached.
const PAUSE: Duration = Duration::from_secs(2);
/// How often hosts' failures are looked at.
const FAILURES: Duration = Duration::from_millis(250);

/// The deployed models.
#[derive(Default)]
pub struct Catalog {
    models: Mutex<BTreeMap<ModelName, Arc<Entry>>>,
    looked: AtomicBool,
}

/// A deployed model.
#[derive(Debug, Clone)]
pub struct Entry {
    /// With the profile over it.
    pub manifest: Manifest,
    /// Whether it serves.
    pub started: bool,
    /// The number of its newest revision.
    pub revision: u64,
    /// When that was written: a model that was removed and deployed anew counts from 1 again.
    pub at: UnixMs,
}

impl Entry {
    /// Tells its newest revision from every other.
    pub fn identity(&self) -> (u64, UnixMs) {
        (self.revision, self.at)
    }
}

/// Follows the registry.
pub struct Follower {
    /// What it fills.
    pub catalog: Arc<Catalog>,
    /// What it follows.
    pub registry: Registry,
    /// Where callers ask.
    pub broker: Arc<dyn Broker>,
    /// Between two looks at everything.
    pub poll: Duration,
    /// What hosts say: callers are told of a model that does not load.
    pub fleet: Arc<Mutex<Fleet>>,
    /// The moment from which its times count.
    pub began: Instant,
}

/// A model of the catalogue.
struct Followed {
    describing: Describing,
    revision: Revision,
    /// Why it does not load, as callers are told.
    failure: Option<String>,
}

impl Catalog {
    /// All models as they are now.
    pub fn read(&self) -> BTreeMap<ModelName, Arc<Entry>> {
        self.models().clone()
    }

    /// Whether everything was looked at once: before that, a model that is not here may yet be deployed.
    pub fn is_complete(&self) -> bool {
        self.looked.load(Ordering::Relaxed)
    }

    fn models(&self) -> MutexGuard<'_, BTreeMap<ModelName, Arc<Entry>>> {
        self.models.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Follower {
    /// Follows until `stop`.
    pub async fn follow(self, stop: CancellationToken) -> Result<()> {
        let mut signals = self.broker.listen(REVISED).await.context("listening for new revisions")?;
        let mut followed = BTreeMap::new();
        loop {
            let pause = match self.look_at_all(&mut followed, &stop).await {
                Ok(()) => {
                    self.catalog.looked.store(true, Ordering::Relaxed);
                    self.poll
                }
                Err(reason) => {
                    let passes = reason.downcast_ref::<RegistryError>().is_none_or(RegistryError::is_transient);
                    if !passes {
                        // One bad model must not keep the others from being scaled.
                        self.catalog.looked.store(true, Ordering::Relaxed);
                    }
                    warn!(reason = format!("{reason:#}"), "cannot read the registry; what is known of models stays");
                    PAUSE
                }
            };
            let next = tokio::time::sleep(pause);
            tokio::pin!(next);
            loop {
                let signal = tokio::select! {
                    () = tokio::time::sleep(FAILURES) => {
                        self.tell_failures(&mut followed);
                        continue;
                    }
                    () = stop.cancelled() => return Ok(()),
                    () = &mut next => break,
                    signal = signals.next() => signal.context("listening for new revisions")?,
                };
                let name = std::str::from_utf8(&signal.payload).ok().and_then(|name| name.parse::<ModelName>().ok());
                if let Some(model) = name
                    && let Err(reason) = self.look(&model, &mut followed, &stop).await
                {
                    warn!(%model, reason = format!("{reason:#}"), "cannot read a new revision; looking again soon");
                    break;
                }
            }
        }
    }

    /// Tells callers of models that do not load, and of those that do by now.
    fn tell_failures(&self, followed: &mut BTreeMap<ModelName, Followed>) {
        let models = self.catalog.read();
        let fleet = lock(&self.fleet);
        for (model, known) in followed {
            let Some(entry) = models.get(model) else { continue };
            let failure = fleet.failure(model, entry.revision, self.began.elapsed());
            if known.failure.as_deref() != failure {
                known.failure = failure.map(str::to_owned);
                known.describing.set_failed(&entry.manifest, entry.started, known.failure.as_deref());
            }
        }
    }

    async fn look_at_all(&self, followed: &mut BTreeMap<ModelName, Followed>, stop: &CancellationToken) -> Result<()> {
        let models = self.registry.models().await?;
        let known: Vec<ModelName> = self.catalog.models().keys().cloned().collect();
        for gone in known.iter().filter(|known| !models.contains(known)) {
            self.forget(gone, followed);
        }
        let mut failed = Ok(());
        for model in &models {
            if let Err(reason) = self.look(model, followed, stop).await {
                // An outage would be one for each.
                let passes = reason.downcast_ref::<RegistryError>().is_none_or(RegistryError::is_transient);
                failed = Err(reason.context(format!("model `{model}`")));
                if passes {
                    break;
                }
            }
        }
        failed
    }

    async fn look(
        &self,
        model: &ModelName,
        followed: &mut BTreeMap<ModelName, Followed>,
        stop: &CancellationToken,
    ) -> Result<()> {
        let newest = match self.registry.newest(model).await {
            // One bad record must not hide the other models.
            Err(RegistryError::Unreadable { key, reason }) => {
                warn!(%model, key, reason, "a revision cannot be read; what is known of the model stays");
                return Ok(());
            }
            newest => newest?,
        };
        let Some(revision) = newest else {
            self.forget(model, followed);
            return Ok(());
        };
        // The whole, not its number: a model that was removed and deployed anew counts from 1 again.
        if followed.get(model).is_some_and(|known| known.revision == revision) {
            return Ok(());
        }
        let Revision { number, at, version, started, profile, .. } = &revision;
        let manifest = self.registry.effective(model, version, profile).await?;
        info!(%model, revision = number, version, started, "a new revision");
        let describing = match followed.remove(model) {
            Some(known) => known.describing,
            None => Describing::start(&self.broker, model, stop).await?,
        };
        describing.set(&manifest, *started);
        let entry = Entry { manifest, started: *started, revision: *number, at: *at };
        self.catalog.models().insert(model.clone(), Arc::new(entry));
        followed.insert(model.clone(), Followed { describing, revision, failure: None });
        Ok(())
    }

    fn forget(&self, model: &ModelName, followed: &mut BTreeMap<ModelName, Followed>) {
        if self.catalog.models().remove(model).is_some() {
            info!(%model, "it is not deployed any more");
        }
        followed.remove(model);
    }
}
