//! What several commands need: the connection, and how things are shown.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use sluice_broker::Options;
use sluice_core::{Broker, BrokerError};

use crate::cli::Global;

/// Connects, or says within 3 s that nobody answers.
pub async fn connect(global: &Global) -> Result<Arc<dyn Broker>> {
    let options = Options {
        credentials: global.credentials.clone(),
        tls_ca: global.tls_ca.clone(),
        management: global.management.clone(),
        ..Options::new(&global.broker, "sluice (command line)")
    };
    sluice_broker::connect(&options).await.map_err(|error| match error {
        BrokerError::Unreachable { ref url, ref source } => {
            anyhow!(
                "no broker answers at `{url}` ({source}): start it, or name another with --broker URL or SLUICE_BROKER"
            )
        }
        other => other.into(),
    })
}

/// `350ms`, `12s`, `3m 5s`.
pub fn short(duration: Duration) -> String {
    let rounded = if duration < Duration::from_secs(1) {
        Duration::from_millis(duration.as_millis() as u64)
    } else {
        Duration::from_secs(duration.as_secs())
    };
    humantime::format_duration(rounded).to_string()
}

/// Text from the outside, without what a terminal would obey.
pub fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}
