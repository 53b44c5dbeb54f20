//! From one version to another: loaded beside it, or in its place where memory is short, and back if that fails.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use sluice_core::Manifest;
use sluice_core::manifest::{DeviceKind, IfMemoryIsShort};
use sluice_core::report::State;
use sluice_registry::Revision;
use tokio::sync::watch;
use tracing::{info, warn};

use super::now::{Ended, Now, Outcome, Running};
use super::{AGAIN, Deployment};
use crate::engine::Device;
use crate::memory::Reservation;
use crate::meter::Meter;
use crate::package::Package;
use crate::serve::{End, Ready, Tuned};

impl Deployment {
    /// Loads what is wanted beside what runs, lets it serve, and lets the old drain. If memory is short, as the profile says.
    pub(super) async fn switch(
        &self,
        revision: &Revision,
        package: &Arc<Package>,
        now: &mut Now,
        revisions: &mut watch::Receiver<Option<Revision>>,
    ) -> Result<Outcome> {
        let device = self.device_of(&package.manifest)?;
        let mib = package.manifest.resources.memory_mib;
        let mut reservation = loop {
            let freed = self.host.memory.freed();
            let reason = match self.host.memory.reserve(device, mib) {
                Ok(reservation) => break reservation,
                Err(reason) => reason,
            };
            let unload = package.manifest.serving.if_memory_is_short == IfMemoryIsShort::Unload;
            // Nothing is given up for what would not fit even then.
            let room = now.running.as_ref().filter(|running| running.device == device).is_some_and(|running| {
                let copies = if self.meter(device).read().copied { running.tuned.borrow().count as u64 } else { 1 };
                let given_back = running.package.manifest.resources.memory_mib.saturating_mul(copies);
                self.host.memory.would_fit(device, mib, given_back)
            });
            if unload && room {
                info!(model = %self.model, reason, "memory is short: the old version is unloaded first");
                now.unloaded = now.running.as_ref().map(|running| (Arc::clone(&running.package), running.device));
                now.retire();
                self.put(revision, State::Loading, Some("the old version is unloaded first".into()), now);
                match now.drained().await {
                    Ok(End::Drained) => continue,
                    other => return Ok(Outcome::Ended(other)),
                }
            }
            self.put(revision, State::Waiting, Some(format!("not enough memory: {reason}")), now);
            let mut count = self.count.clone();
            tokio::select! {
                Ok(_) = count.wait_for(|count| *count == 0) => return Ok(Outcome::Overtaken),
                () = self.host.draining.cancelled() => return Ok(Outcome::Overtaken),
                _ = revisions.changed() => return Ok(Outcome::Overtaken),
                () = freed => {}
                // Memory of the machine comes back without a word.
                () = tokio::time::sleep(AGAIN) => {}
                ended = now.ended() => if let Ended::ForGood(end) = ended { return Ok(Outcome::Ended(end)) },
            }
        };
        self.put(revision, State::Loading, None, now);
        let cold = now.running.is_none();
        let began = Instant::now();
        let prepared = tokio::select! {
            biased;
            () = self.host.draining.cancelled() => return Ok(Outcome::Overtaken),
            // To its end, whatever comes meanwhile: a thread that loads cannot be stopped, and its memory is held.
            prepared = self.serving(Arc::clone(package), device).prepare(&mut reservation) => prepared,
            ended = now.ended_for_good() => return Ok(Outcome::Ended(ended)),
        };
        let ready = prepared?;
        if cold {
            self.meter(device).started(began.elapsed());
        }
        now.retire();
        now.unloaded = None;
        now.running = Some(self.start(ready, Arc::clone(package), device, reservation));
        Ok(Outcome::Settled)
    }

    fn start(&self, ready: Ready, package: Arc<Package>, device: Device, reservation: Reservation) -> Running {
        let stop = ready.stop();
        // As many as were prepared: if more or fewer are wanted by now, tuning finds the difference.
        let (tuned, receiver) = watch::channel(Tuned { package: Arc::clone(&package), count: ready.count() });
        let task = tokio::spawn(async move {
            let end = ready.serve(receiver).await;
            // Only now is the model unloaded.
            drop(reservation);
            end
        });
        Running { package, device, tuned, stop, task }
    }

    /// Loads what was unloaded for something that failed.
    pub(super) async fn load_again(&self, now: &mut Now) {
        let Some((old, device)) = now.unloaded.clone() else { return };
        let mut reservation = match self.host.memory.reserve(device, old.manifest.resources.memory_mib) {
            Ok(reservation) => reservation,
            Err(reason) => {
                warn!(model = %self.model, reason, "the old version has no room any more; trying again");
                return;
            }
        };
        let preparing = self.serving(Arc::clone(&old), device).prepare(&mut reservation);
        match self.host.draining.run_until_cancelled(preparing).await {
            Some(Ok(ready)) => {
                warn!(model = %self.model, version = old.manifest.version, "the old version serves again");
                now.unloaded = None;
                now.running = Some(self.start(ready, old, device, reservation));
                self.host.board.put_serving(&self.place(), now.serving(), self.count());
            }
            Some(Err(error)) => {
                warn!(model = %self.model, reason = format!("{error:#}"), "the old version does not load any more; trying again");
            }
            None => {}
        }
    }

    fn meter(&self, device: Device) -> Arc<Meter> {
        self.host.metrics.meters().of(&self.model, &device.to_string())
    }

    fn device_of(&self, manifest: &Manifest) -> Result<Device> {
        Ok(self.device.unwrap_or(match manifest.resources.device {
            DeviceKind::Cpu => Device::Cpu,
            DeviceKind::Cuda => Device::Cuda(0),
        }))
    }
}
