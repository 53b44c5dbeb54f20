//! Logs: fields and a short message, for people or for machines, to standard error.

use serde::{Deserialize, Serialize};
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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

/// Libraries that tell at level DEBUG what they connect to and send, passwords and signatures included.
const INDISCREET: [&str; 6] = ["async_nats::connector", "h2", "hyper", "hyper_util", "reqwest", "rustls"];

/// Whether something may be logged, whatever `RUST_LOG` says: nothing that shows a password.
pub fn is_discreet(event: &Metadata<'_>) -> bool {
    let of = |library: &str| {
        event.target().strip_prefix(library).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    *event.level() <= Level::INFO || !INDISCREET.iter().any(|library| of(library))
}

/// Starts logging to standard error by a filter of `tracing`, as far as it [`is_discreet`].
pub fn log(filter: EnvFilter, format: LogFormat) {
    // A log that nobody reads any more must not end what works: reporting that it cannot be written would panic.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => {
            builder.with_ansi(sluice_core::print::colours()).finish().with(filter_fn(is_discreet)).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).finish().with(filter_fn(is_discreet)).init(),
    }
}

/// Starts logging. `filter` is a `tracing` filter such as `info` or `sluice_worker=debug`; `RUST_LOG` goes over it.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(own) if !own.is_empty() => EnvFilter::try_new(own)?,
        // The client libraries report through errors as well.
        _ => EnvFilter::try_new(format!("async_nats=error,{filter}"))?,
    };
    log(filter, format);
    Ok(())
}
