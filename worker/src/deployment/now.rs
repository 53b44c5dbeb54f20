//! What runs of one model on this host, and what has to end.

use std::sync::Arc;

use anyhow::{Context, Result};
use futures_util::stream::{FuturesUnordered, StreamExt};
use sluice_core::report::State;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::engine::Device;
use crate::package::Package;
use crate::serve::{End, Tuned};

/// Slots that serve.
pub struct Running {
    pub package: Arc<Package>,
    pub device: Device,
    pub tuned: watch::Sender<Tuned>,
    pub stop: CancellationToken,
    pub task: JoinHandle<Result<End>>,
}

/// What runs now.
#[derive(Default)]
pub struct Now {
    pub running: Option<Running>,
    /// Those that drain.
    pub retiring: FuturesUnordered<JoinHandle<Result<End>>>,
    /// What refuses requests, and how to end it.
    pub refusing: Option<(CancellationToken, JoinHandle<Result<()>>)>,
    /// What was unloaded to make room, until something serves again.
    pub unloaded: Option<(Arc<Package>, Device)>,
    /// How the revision stands that could not be carried out, and why, until it is told.
    pub failed: Option<(State, String)>,
    /// The revision cannot be carried out, and nothing else serves here.
    pub does_not_load: bool,
}

/// What came of trying to do as a revision says.
pub enum Outcome {
    /// Done, or there is nothing more to try.
    Settled,
    /// It may succeed later.
    TryAgain,
    /// There is a newer revision, or the worker stops: this one does not matter any more.
    Overtaken,
    /// The process must not go on.
    Ended(Result<End>),
}

impl Now {
    /// Waits until something that should go on has ended, or something that drains has.
    pub async fn ended(&mut self) -> Ended {
        let running = async {
            match &mut self.running {
                Some(running) => (&mut running.task).await,
                None => std::future::pending().await,
            }
        };
        let retired = async {
            match self.retiring.next().await {
                Some(end) => end,
                None => std::future::pending().await,
            }
        };
        let end = tokio::select! {
            end = running => {
                self.running = None;
                end
            }
            end = retired => end,
        };
        match end.context("serving a model panicked").and_then(|end| end) {
            Ok(End::Drained) => Ended::Drained,
            other => Ended::ForGood(other),
        }
    }

    /// Waits until the process must not go on.
    pub async fn ended_for_good(&mut self) -> Result<End> {
        loop {
            if let Ended::ForGood(end) = self.ended().await {
                return end;
            }
        }
    }

    /// Waits until nothing drains any more.
    pub async fn drained(&mut self) -> Result<End> {
        while !self.retiring.is_empty() {
            if let Ended::ForGood(end) = self.ended().await {
                return end;
            }
        }
        Ok(End::Drained)
    }

    /// Lets what runs drain.
    pub fn retire(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop.cancel();
            self.retiring.push(running.task);
        }
    }

    /// No longer refuses requests; what was taken is ended first.
    pub async fn accept(&mut self) {
        if let Some((stop, task)) = self.refusing.take() {
            stop.cancel();
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(reason = format!("{error:#}"), "refusing requests had failed"),
                Err(panic) => warn!(reason = %panic, "refusing requests had panicked"),
            }
        }
    }

    pub fn serving(&self) -> Option<String> {
        self.running.as_ref().map(|running| running.package.manifest.version.clone())
    }
}

/// What an end means.
pub enum Ended {
    Drained,
    ForGood(Result<End>),
}

/// Whether a change from one to the other needs the model to be loaded anew.
pub fn must_reload(now: &Package, wanted: &Package) -> bool {
    // The files decide, not what the version is called: the same ones only change their name, and a name that was removed may have
    // come back with others.
    now.fingerprint != wanted.fingerprint || now.manifest.resources != wanted.manifest.resources
}
