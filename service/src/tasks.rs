//! Spawning tasks whose end means something: a panic in a task is never silent.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tracing::error;

/// Spawns a task that the process cannot do without. If it fails or panics, that is logged and `stop` is cancelled.
pub fn spawn_vital<F>(name: &'static str, stop: &CancellationToken, task: F)
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let stop = stop.clone();
    let handle = tokio::spawn(task);
    tokio::spawn(async move {
        match handle.await {
            Ok(Ok(())) => return,
            Ok(Err(reason)) => error!(task = name, reason = format!("{reason:#}"), "a vital task failed"),
            Err(panic) => error!(task = name, reason = %panic, "a vital task panicked"),
        }
        stop.cancel();
    });
}
