//! What a configuration asks a worker to run: folders, which do not change, and models of the registry.

use std::sync::Arc;

use anyhow::{Result, bail};
use sluice_core::ModelName;
use sluice_core::manifest::DeviceKind;
use sluice_core::report::{ModelReport, State};
use sluice_service::describe::Describing;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Served, SlotConfig};
use crate::deployment::Host;
use crate::engine::Device;
use crate::memory::Reservation;
use crate::package::Package;
use crate::serve::{End, Serving, Tuned};

/// What a configuration asks for.
pub struct Plan {
    pub fixed: Vec<Fixed>,
    pub from_registry: Vec<SlotConfig>,
}

/// A package that the configuration names: it does not change.
pub struct Fixed {
    pub package: Arc<Package>,
    device: Device,
    count: usize,
}

impl Plan {
    /// Reads the packages that it names.
    pub fn of(slots: &[SlotConfig]) -> Result<Self> {
        let mut plan = Plan { fixed: Vec::new(), from_registry: Vec::new() };
        let mut names: Vec<ModelName> = Vec::new();
        for slot in slots {
            match slot.serves()? {
                Served::Package(folder) => {
                    let package = Package::open(folder)?;
                    let device = match (slot.device()?, package.manifest.resources.device) {
                        (Some(device), _) => device,
                        (None, DeviceKind::Cpu) => Device::Cpu,
                        (None, DeviceKind::Cuda) => Device::Cuda(0),
                    };
                    names.push(package.manifest.name.clone());
                    plan.fixed.push(Fixed { package: Arc::new(package), device, count: slot.count });
                }
                Served::Model(model) => {
                    names.push(model);
                    plan.from_registry.push(slot.clone());
                }
                Served::All => plan.from_registry.push(slot.clone()),
            }
        }
        names.sort();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                bail!(
                    "two of `worker.slots` serve a model of the name `{}`: a worker serves one package of a model",
                    pair[0]
                )
            }
            None => Ok(plan),
        }
    }
}

impl Fixed {
    /// Loads the package and serves it. One that cannot be served ends the worker: nobody could change that while it runs.
    pub async fn serve(self, host: &Arc<Host>, models: &mut JoinSet<Result<End>>) -> Result<()> {
        let Fixed { package, device, count } = self;
        let manifest = &package.manifest;
        let mut reservation: Reservation = host
            .memory
            .reserve(device, manifest.resources.memory_mib)
            .map_err(|reason| anyhow::anyhow!("model `{}` cannot be served on {device}: {reason}", manifest.name))?;
        let serving = Serving {
            broker: Arc::clone(&host.broker),
            metrics: Arc::new(host.metrics.of_model(&manifest.name, &device.to_string())),
            package: Arc::clone(&package),
            device,
            count,
            host: host.name.clone(),
            stop: host.draining.clone(),
        };
        let ready = serving.prepare(&mut reservation).await?;
        let describing = Describing::start(&host.broker, &manifest.name, &host.draining).await?;
        describing.set(manifest, true);
        let report = ModelReport::new(manifest.name.clone(), None, State::Ready);
        let serving = Some(manifest.version.clone());
        host.board.put(Some(device), ModelReport { serving, slots: count, device: device.to_string(), ..report });
        models.spawn(async move {
            // Nobody tunes it.
            let (_tuned, receiver) = watch::channel(Tuned { package, count });
            let end = ready.serve(receiver).await;
            drop((describing, reservation));
            end
        });
        Ok(())
    }
}
