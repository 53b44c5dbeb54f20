//! SIGTERM and Ctrl-C: the first asks for an orderly end, a second one ends the process at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The exit code after a second signal.
const IMPATIENT: i32 = 130;

/// A token that is cancelled by the first signal.
pub fn on_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        let mut wait = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let name = wait().await;
        info!(signal = name, "stopping; a second signal ends at once");
        token.cancel();
        let name = wait().await;
        warn!(signal = name, "ending at once; what was held is redelivered");
        std::process::exit(IMPATIENT);
    });
    Ok(stop)
}
