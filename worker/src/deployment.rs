//! One model of the registry on this host: makes what runs equal to the newest revision. The new is ready before the old drains;
//! what cannot be done leaves the old serving, and is reported.

mod now;
mod switch;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use sluice_core::broker::Broker;
use sluice_core::manifest::{Profile, WhileStopped};
use sluice_core::report::{ModelReport, State};
use sluice_core::{BrokerError, Manifest, ModelName};
use sluice_registry::{Cache, Registry, RegistryError, Revision};
use sluice_service::describe::Describing;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::board::{Board, Place};
use crate::engine::Device;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::package::Package;
use crate::refuse::refuse;
use crate::serve::{End, Serving, Tuned};
use now::{Ended, Now, Outcome, must_reload};

/// A model of which no slots were wanted for so long is not followed any more.
const IDLE: Duration = Duration::from_secs(30);
/// After this, what a broker or a store was asked in vain is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// What all models of a host share.
pub struct Host {
    pub name: String,
    pub broker: Arc<dyn Broker>,
    pub metrics: Metrics,
    pub memory: Arc<Memory>,
    pub board: Arc<Board>,
    /// Cancelled to drain everything.
    pub draining: CancellationToken,
}

/// One model of the registry on this host.
pub struct Deployment {
    pub host: Arc<Host>,
    pub registry: Registry,
    pub cache: Arc<Cache>,
    pub model: ModelName,
    /// Instead of what the package asks for.
    pub device: Option<Device>,
    /// How many slots; none while the scaler wants none here.
    pub count: watch::Receiver<usize>,
}

impl Deployment {
    /// Follows the model's revisions until the worker drains, or until the process is of no more use.
    pub async fn follow(mut self, mut revisions: watch::Receiver<Option<Revision>>) -> Result<End> {
        let Some(describing) = self.describe().await else { return Ok(End::Drained) };
        let mut now = Now::default();
        loop {
            let wanted = revisions.borrow_and_update().clone();
            let outcome = match &wanted {
                // The scaler wants it elsewhere, or nowhere.
                Some(revision) if *self.count.borrow_and_update() == 0 => {
                    self.leave(revision, &mut now, &describing).await
                }
                Some(revision) => self.apply(revision, &mut now, &describing, &mut revisions).await,
                None => self.remove(&mut now, &describing).await,
            };
            if let (Some(revision), Outcome::Settled | Outcome::TryAgain) = (&wanted, &outcome)
                && revision.started
                && self.count() > 0
                && now.running.is_none()
                && now.unloaded.is_some()
            {
                self.load_again(&mut now).await;
            }
            if now.running.is_none() && matches!(outcome, Outcome::Settled | Outcome::TryAgain) && now.does_not_load {
                // Others may serve it: the scaler, which hears of all, tells callers if nobody does.
                describing.clear();
            }
            if let (Some(revision), Some((state, reason))) = (&wanted, now.failed.take()) {
                self.put(revision, state, Some(reason), &now);
            }
            let settled = matches!(outcome, Outcome::Settled) && now.unloaded.is_none();
            let again = match outcome {
                // It waits for memory, or for the broker.
                Outcome::Settled if now.unloaded.is_some() => Some(AGAIN),
                Outcome::Settled if self.count() == 0 => Some(IDLE),
                Outcome::Settled => None,
                Outcome::TryAgain => Some(AGAIN),
                Outcome::Overtaken => Some(Duration::ZERO),
                Outcome::Ended(end) => return end,
            };
            if !self.host.draining.is_cancelled() {
                let next_try = async {
                    match again {
                        Some(pause) => tokio::time::sleep(pause).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = self.host.draining.cancelled() => {}
                    _ = revisions.changed() => {}
                    Ok(()) = self.count.changed() => {}
                    // Should it be wanted just now, whoever hears of this end starts it anew.
                    () = next_try => if settled && self.count() == 0 { return Ok(End::Idle(self.place())) },
                    ended = now.ended() => if let Ended::ForGood(end) = ended { return end },
                }
            }
            if self.host.draining.is_cancelled() {
                return self.drain(&mut now).await;
            }
        }
    }

    /// Listens to those who ask what the model takes, as soon as the broker lets it; `None` once stopped.
    async fn describe(&self) -> Option<Describing> {
        loop {
            let starting = Describing::start(&self.host.broker, &self.model, &self.host.draining);
            match self.host.draining.run_until_cancelled(starting).await? {
                Ok(describing) => return Some(describing),
                Err(error) => warn!(model = %self.model, reason = format!("{error:#}"), "cannot listen; trying again"),
            }
            self.host.draining.run_until_cancelled(tokio::time::sleep(AGAIN)).await?;
        }
    }

    /// Waits until everything has drained.
    async fn drain(&self, now: &mut Now) -> Result<End> {
        now.accept().await;
        now.unloaded = None;
        now.retire();
        now.drained().await
    }

    /// Lets everything drain, since no slots are wanted here.
    async fn leave(&self, revision: &Revision, now: &mut Now, describing: &Describing) -> Outcome {
        if now.running.is_some() {
            info!(model = %self.model, device = self.place_name(), "no slots are wanted here any more");
            self.put(revision, State::Draining, None, now);
        }
        self.remove(now, describing).await
    }

    async fn remove(&self, now: &mut Now, describing: &Describing) -> Outcome {
        describing.clear();
        match self.drain(now).await {
            Ok(End::Drained) => {
                self.host.board.remove(&self.place());
                Outcome::Settled
            }
            other => Outcome::Ended(other),
        }
    }

    /// Does as a revision says.
    async fn apply(
        &self,
        revision: &Revision,
        now: &mut Now,
        describing: &Describing,
        revisions: &mut watch::Receiver<Option<Revision>>,
    ) -> Outcome {
        let put = |state, reason: Option<String>, now: &Now| self.put(revision, state, reason, now);
        now.does_not_load = false;
        if !revision.started {
            put(State::Draining, None, now);
            now.unloaded = None;
            if let Err(error) = self.stop(revision, now, describing).await {
                return self.report_failure(revision, error, now);
            }
            if let end @ (Ok(End::Fault(_)) | Err(_)) = now.drained().await {
                return Outcome::Ended(end);
            }
            put(State::Stopped, None, now);
            return Outcome::Settled;
        }
        now.accept().await;
        if now.serving().as_deref() != Some(&revision.version) {
            put(State::Loading, None, now);
        }
        let loaded = now.running.as_ref().map(|running| Arc::clone(&running.package));
        let fetching = async {
            let contents = self.registry.contents(&self.model, &revision.version).await?;
            let manifest = self.effective(&revision.version, &revision.profile).await?;
            let fingerprint = Some(contents.fingerprint());
            if let Some(loaded) = &loaded {
                let same =
                    Package { manifest: manifest.clone(), fingerprint: fingerprint.clone(), ..(**loaded).clone() };
                if !must_reload(loaded, &same) {
                    return anyhow::Ok(Arc::new(same));
                }
            }
            let pinned = self.cache.package(&self.registry, &self.model, &revision.version).await?;
            let file = pinned.folder().join(&manifest.file);
            Ok(Arc::new(Package { manifest, file, fingerprint, pinned: Some(Arc::new(pinned)) }))
        };
        let mut count = self.count.clone();
        let package = tokio::select! {
            biased;
            () = self.host.draining.cancelled() => return Outcome::Overtaken,
            _ = revisions.changed() => return Outcome::Overtaken,
            Ok(_) = count.wait_for(|count| *count == 0) => return Outcome::Overtaken,
            fetched = fetching => match fetched {
                Ok(package) => package,
                Err(error) => return self.report_failure(revision, error, now),
            },
            ended = now.ended_for_good() => return Outcome::Ended(ended),
        };
        if now.running.is_none() {
            describing.set(&package.manifest, true);
        }
        if let Some(running) = &now.running
            && !must_reload(&running.package, &package)
        {
            if let Err(error) = self.tune(&package, now).await {
                return self.report_failure(revision, error, now);
            }
        } else {
            match self.switch(revision, &package, now, revisions).await {
                Ok(Outcome::Settled) => {}
                Ok(other) => return other,
                Err(error) => return self.report_failure(revision, error, now),
            }
        }
        describing.set(&package.manifest, true);
        if !now.retiring.is_empty() {
            put(State::Draining, None, now);
        }
        let mut count = self.count.clone();
        loop {
            if now.retiring.is_empty() {
                put(State::Ready, None, now);
                return Outcome::Settled;
            }
            tokio::select! {
                _ = revisions.changed() => return Outcome::Overtaken,
                Ok(()) = count.changed() => return Outcome::Overtaken,
                ended = now.ended() => match ended {
                    Ended::Drained => {}
                    Ended::ForGood(end) => return Outcome::Ended(end),
                },
            }
        }
    }

    /// Lets everything drain; requests wait, or are refused from now on.
    async fn stop(&self, revision: &Revision, now: &mut Now, describing: &Describing) -> Result<()> {
        now.retire();
        let manifest = self.effective(&revision.version, &revision.profile).await?;
        describing.set(&manifest, false);
        now.accept().await;
        if manifest.serving.while_stopped == WhileStopped::Refuse {
            _ = self.host.broker.ensure_queue(&self.model, &manifest.queue_limits()).await?;
            let package = Arc::new(Package { manifest, file: Default::default(), fingerprint: None, pinned: None });
            let stop = self.host.draining.child_token();
            let replier = self.serving(package, self.device.unwrap_or(Device::Cpu)).replier();
            now.refusing = Some((stop.clone(), tokio::spawn(refuse(replier, stop))));
        }
        Ok(())
    }

    /// Other limits for what runs.
    async fn tune(&self, package: &Arc<Package>, now: &mut Now) -> Result<()> {
        let Some(running) = &mut now.running else { return Ok(()) };
        let tuned = Tuned { package: Arc::clone(package), count: self.count() };
        if running.package.manifest == package.manifest && running.tuned.borrow().count == tuned.count {
            return Ok(());
        }
        if running.package.manifest.queue_limits() != package.manifest.queue_limits() {
            _ = self.host.broker.ensure_queue(&self.model, &package.manifest.queue_limits()).await?;
        }
        running.package = Arc::clone(package);
        info!(model = %self.model, slots = tuned.count, "tuned");
        running.tuned.send_replace(tuned);
        Ok(())
    }

    fn serving(&self, package: Arc<Package>, device: Device) -> Serving {
        Serving {
            broker: Arc::clone(&self.host.broker),
            metrics: Arc::new(self.host.metrics.of_model(&self.model, &device.to_string())),
            package,
            device,
            count: self.count().max(1),
            host: self.host.name.clone(),
            stop: self.host.draining.child_token(),
        }
    }

    async fn effective(&self, version: &str, profile: &Profile) -> Result<Manifest> {
        Ok(self.registry.effective(&self.model, version, profile).await?)
    }

    fn report_failure(&self, revision: &Revision, error: anyhow::Error, now: &mut Now) -> Outcome {
        // A store or a broker may be back in a moment; a model that does not load will not load then either.
        let passing = error.chain().any(|cause| {
            cause.downcast_ref::<BrokerError>().is_some_and(BrokerError::is_transient)
                || cause.downcast_ref::<RegistryError>().is_some_and(RegistryError::is_transient)
        });
        let reason = format!("{error:#}");
        warn!(model = %self.model, revision = revision.number, version = revision.version, reason,
            serving = now.serving(), "cannot do as the revision says");
        now.does_not_load = now.running.is_none() && revision.started && !passing;
        let state = if passing { State::Waiting } else { State::Failed };
        let first_line = reason.lines().next().unwrap_or_default().to_owned();
        if now.running.is_none() && now.unloaded.is_some() {
            // Told once the old version serves again, or cannot: whoever waits is to hear what became of it.
            now.failed = Some((state, first_line));
        } else {
            self.put(revision, state, Some(first_line), now);
        }
        if passing { Outcome::TryAgain } else { Outcome::Settled }
    }

    fn put(&self, revision: &Revision, state: State, reason: Option<String>, now: &Now) {
        let serving = now.serving();
        let slots = if serving.is_some() { self.count() } else { 0 };
        let device = now.running.as_ref().map_or_else(|| self.place_name(), |running| running.device.to_string());
        let report = ModelReport::new(self.model.clone(), Some(revision.number), state);
        self.host.board.put(self.device, ModelReport { reason, serving, slots, device, ..report });
    }

    fn count(&self) -> usize {
        *self.count.borrow()
    }

    fn place(&self) -> Place {
        (self.model.clone(), self.device)
    }

    fn place_name(&self) -> String {
        self.device.map_or_else(String::new, |device| device.to_string())
    }
}
