//! The whole worker: connect, load, serve, and the way down.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use prometheus::Registry;
use sluice_broker::Patience;
use sluice_core::ModelName;
use sluice_core::clock::unix_ms;
use sluice_core::report::State;
use sluice_service::admin::{self, Readiness};
use sluice_service::tasks::spawn_vital;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::board::{self, Board};
use crate::config::Config;
use crate::deployment::Host;
use crate::engine;
use crate::following::{Following, follow_registry};
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::plan::Plan;
use crate::serve::End;

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
    let plan = Plan::of(&config.worker.slots)?;
    let registry = Registry::new();
    let metrics = Metrics::new(&registry)?;
    let readiness = Readiness::not_yet("waiting for the broker");
    // The admin port goes last, so that the way down can be watched.
    let admin_stop = CancellationToken::new();
    let address = admin::serve(config.worker.admin, readiness.clone(), registry, admin_stop.clone())
        .await
        .context("`worker.admin` (or SLUICE_WORKER__ADMIN) names the address: :0 takes any free port")?;
    listening(address);

    let mut options = config.broker.clone();
    options.patience = Patience::Wait;
    options.name = format!("sluice-worker {}", config.host());
    let Some(broker) = stop.run_until_cancelled(sluice_broker::connect(&options)).await else {
        return Ok(Exit::Orderly);
    };
    let broker = broker?;
    info!(host = config.host(), url = broker.url(), "connected");

    readiness.set(Some("models are loading".into()));
    let memory = Memory::new(config.worker.memory.clone());
    let board = Board::new(board::Host {
        name: config.host(),
        labels: config.worker.labels.clone(),
        capacity: config.capacity(),
        memory: Arc::clone(&memory),
        meters: metrics.meters(),
        started: unix_ms(),
        instance: instance(),
    });
    let (name, draining) = (config.host(), stop.child_token());
    let host = Arc::new(Host { name, broker: Arc::clone(&broker), metrics, memory, board, draining });
    let mut models = JoinSet::new();
    let mut found = None;
    let starting = async {
        let reserved: Vec<ModelName> = plan.fixed.iter().map(|fixed| fixed.package.manifest.name.clone()).collect();
        spawn_vital(
            "reports",
            &host.draining,
            Arc::clone(&host.board).publish(Arc::clone(&broker), host.draining.clone()),
        );
        for fixed in plan.fixed {
            fixed.serve(&host, &mut models).await?;
        }
        let follows = !plan.from_registry.is_empty() || config.worker.slots.is_empty();
        if follows {
            found = Some(follow_registry(&config, &options, plan.from_registry, reserved, &host).await?);
        }
        anyhow::Ok(())
    };
    let started = stop.run_until_cancelled(starting).await.unwrap_or(Ok(()));
    if started.is_err() || stop.is_cancelled() {
        // What serves already drains.
        host.draining.cancel();
    }
    let mut exit = serve(&config, &host, &mut models, found, &readiness).await;
    if !stop.is_cancelled() {
        // Nobody asked for it: something that the worker cannot do without has failed, and was logged.
        exit = Exit::Fault;
    }
    if let Err(error) = broker.close().await {
        warn!(%error, "the broker connection did not close in order");
    }
    engine::release_memory();
    info!("stopped");
    admin_stop.cancel();
    started.map(|()| exit)
}

/// Serves until everything has drained.
async fn serve(
    config: &Config,
    host: &Arc<Host>,
    models: &mut JoinSet<Result<End>>,
    mut found: Option<Following>,
    readiness: &Readiness,
) -> Exit {
    let mut exit = Exit::Orderly;
    let mut looked = found.as_ref().map(|following| following.looked.clone());
    let ready = async {
        if let Some(looked) = &mut looked {
            // It fails only when the worker stops.
            let _ = looked.wait_for(|looked| *looked).await;
        }
        // What waits or has failed is told by reports; it does not keep the others from serving.
        host.board.wait_until(|model| model.state.is_settled() || model.state == State::Waiting).await;
    };
    let ready = async {
        ready.await;
        info!("ready");
        // From now on it is ready as long as what it serves can be received.
        host.metrics.meters().tell_troubles(|trouble| readiness.set(trouble)).await;
        std::future::pending::<()>().await;
    };
    let deadline = async {
        host.draining.cancelled().await;
        readiness.set(Some("stopping".into()));
        tokio::time::sleep(config.worker.drain_time).await;
    };
    tokio::pin!(ready, deadline);
    while !(host.draining.is_cancelled() && models.is_empty()) {
        let next_found = async {
            match &mut found {
                Some(following) => following.next(host).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = &mut deadline => {
                warn!(after = ?config.worker.drain_time, "batches still run at the end of the drain time; the broker redelivers them");
                break;
            }
            () = host.draining.cancelled(), if models.is_empty() => {}
            next = next_found, if !host.draining.is_cancelled() => match next {
                Ok(deployments) => {
                    for (deployment, revisions) in deployments {
                        models.spawn(deployment.follow(revisions));
                    }
                }
                Err(reason) => {
                    error!(reason = format!("{reason:#}"), "cannot follow what this host should run");
                    exit = Exit::Fault;
                    host.draining.cancel();
                }
            },
            Some(ended) = models.join_next() => {
                match ended {
                    Ok(Ok(End::Drained)) => {}
                    Ok(Ok(End::Idle(place))) => {
                        let anew = found.as_mut().and_then(|following| following.forget(host, &place));
                        if let Some((deployment, revisions)) = anew {
                            models.spawn(deployment.follow(revisions));
                        }
                        continue;
                    }
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
                host.draining.cancel();
            }
            // Once it stops, that is what is said.
            () = &mut ready, if !host.draining.is_cancelled() => {}
        }
    }
    readiness.set(Some("stopping".into()));
    exit
}

/// Tells this process from every other that may have the host's name, here or on another machine.
fn instance() -> String {
    // The standard library's hashers begin with what the system gives of chance.
    let chance = std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), unix_ms());
    format!("{}-{chance:016x}", std::process::id())
}
