//! The whole worker: connect, load, serve, and the way down.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use prometheus::Registry;
use sluice_broker::Patience;
use sluice_core::Broker;
use sluice_core::manifest::DeviceKind;
use sluice_core::names::describe_topic;
use sluice_service::admin::{self, Readiness};
use sluice_service::tasks::spawn_vital;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::engine::{self, Device};
use crate::metrics::Metrics;
use crate::package::Package;
use crate::serve::{End, Serving};

/// How the worker ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit {
    /// As asked.
    Orderly,
    /// The process is of no more use: a supervisor should start a fresh one.
    Fault,
}

/// Runs until `stop`, or until the process is of no more use. `listening` is told the admin port's address.
pub async fn run(config: Config, stop: CancellationToken, listening: impl FnOnce(SocketAddr)) -> Result<Exit> {
    config.check()?;
    let host = config.host();
    let packages = config
        .worker
        .slots
        .iter()
        .map(|slot| {
            let package = Package::open(&slot.package)?;
            let device = match (&slot.device, package.manifest.resources.device) {
                (Some(device), _) => Device::parse(device).map_err(anyhow::Error::msg)?,
                (None, DeviceKind::Cpu) => Device::Cpu,
                (None, DeviceKind::Cuda) => Device::Cuda(0),
            };
            Ok((Arc::new(package), device, slot.count))
        })
        .collect::<Result<Vec<_>>>()?;

    for (index, (package, ..)) in packages.iter().enumerate() {
        let name = &package.manifest.name;
        if packages[..index].iter().any(|(earlier, ..)| earlier.manifest.name == *name) {
            bail!("two of `worker.slots` serve a model of the name `{name}`: a worker serves one package of a model");
        }
    }

    let registry = Registry::new();
    let metrics = Metrics::new(&registry)?;
    let readiness = Readiness::not_yet("waiting for the broker");
    // The admin port goes last, so that the way down can be watched.
    let admin_stop = CancellationToken::new();
    let address = admin::serve(config.worker.admin, readiness.clone(), registry, admin_stop.clone()).await?;
    listening(address);

    let mut options = config.broker.clone();
    options.patience = Patience::Wait;
    options.name = format!("sluice-worker {host}");
    let Some(broker) = stop.run_until_cancelled(sluice_broker::connect(&options)).await else {
        return Ok(Exit::Orderly);
    };
    let broker = broker?;
    info!(%host, url = broker.url(), "connected");

    readiness.set(Some("models are loading".into()));
    let draining = stop.child_token();
    let mut models = JoinSet::new();
    for (package, device, count) in packages {
        let serving = Serving {
            broker: Arc::clone(&broker),
            metrics: Arc::new(metrics.of_model(&package.manifest.name, &device.to_string())),
            package: Arc::clone(&package),
            device,
            count,
            host: host.clone(),
            stop: draining.clone(),
        };
        let Some(ready) = stop.run_until_cancelled(serving.prepare()).await else {
            broker.close().await?;
            return Ok(Exit::Orderly);
        };
        let ready = ready?;
        describe(&broker, &package, &draining).await?;
        models.spawn(ready.serve());
    }
    readiness.set(None);
    info!("ready");

    let mut exit = Exit::Orderly;
    let served = async {
        while let Some(ended) = models.join_next().await {
            match ended {
                Ok(Ok(End::Drained)) => {}
                Ok(Ok(End::Fault(_))) => exit = Exit::Fault,
                Ok(Err(reason)) => {
                    error!(reason = format!("{reason:#}"), "serving a model failed");
                    exit = Exit::Fault;
                }
                Err(panic) => {
                    error!(reason = %panic, "serving a model panicked");
                    exit = Exit::Fault;
                }
            }
            // One that cannot go on takes the others along: they drain.
            readiness.set(Some("stopping".into()));
            draining.cancel();
        }
    };
    let deadline = async {
        draining.cancelled().await;
        readiness.set(Some("stopping".into()));
        tokio::time::sleep(config.worker.drain_time).await;
    };
    tokio::select! {
        () = served => {}
        () = deadline => {
            warn!(after = ?config.worker.drain_time, "batches still run at the end of the drain time; the broker redelivers them");
        }
    }
    if let Err(error) = broker.close().await {
        warn!(%error, "the broker connection did not close in order");
    }
    engine::release_memory();
    info!("stopped");
    admin_stop.cancel();
    Ok(exit)
}

/// Answers those who ask what the model takes and gives.
async fn describe(broker: &Arc<dyn Broker>, package: &Package, stop: &CancellationToken) -> Result<()> {
    let name = &package.manifest.name;
    let mut questions = broker.listen(&describe_topic(name)).await.context("listening for questions about a model")?;
    let description = bytes::Bytes::from(package.manifest.describe().to_string());
    let token = stop.clone();
    spawn_vital("describe", stop, async move {
        while let Some(question) = token.run_until_cancelled(questions.next()).await {
            if let Some(answer) = question?.answer {
                // Whoever asked asks again.
                if let Err(error) = answer.send(description.clone()).await {
                    warn!(%error, "could not answer what a model takes");
                }
            }
        }
        Ok(())
    });
    Ok(())
}
