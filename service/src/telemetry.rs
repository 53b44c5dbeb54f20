//! Logs: fields and a short message, for people or for machines, to standard error.

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. `filter` is a `tracing` filter such as `info` or `sluice_worker=debug`; `RUST_LOG` goes over it.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(own) if !own.is_empty() => EnvFilter::try_new(own)?,
        // The client libraries report through errors as well.
        _ => EnvFilter::try_new(format!("async_nats=error,{filter}"))?,
    };
    // A log that nobody reads any more must not end what works: reporting that it cannot be written would panic.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_ansi(sluice_core::print::colours()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
