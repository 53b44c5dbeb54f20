//! Connects to a message broker. The only crate that names a broker's client library; everyone else
//! holds a `Box<dyn Broker>` and cannot tell which it is.

mod amqp;
mod nats;
mod options;
mod turns;

use std::sync::Arc;

use sluice_core::broker::{BrokerError, Result};
use sluice_core::{Broker, Store};

pub use options::{Options, Patience};

/// TLS by ring for clients that leave the choice to the process.
pub fn prepare_tls() {
    // If somebody chose before, that stands.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The storage that the broker at this URL has, over a connection of its own: only NATS has any.
pub async fn open_store(options: &Options) -> Result<Arc<dyn Store>> {
    if !options.url.starts_with("nats://") && !options.url.starts_with("tls://") {
        return Err(BrokerError::Unusable(format!("the broker `{}` stores no packages", options.shown_url())));
    }
    Ok(Arc::new(nats::NatsStore::new(nats::connect(options).await?)))
}

/// Connects to the broker that the URL's scheme names: `nats://` or `tls://` for NATS, `amqp://` or `amqps://` for RabbitMQ.
pub async fn connect(options: &Options) -> Result<Arc<dyn Broker>> {
    let scheme = options.url.split_once("://").map_or("", |(scheme, _)| scheme);
    match scheme {
        "nats" | "tls" => Ok(Arc::new(nats::connect(options).await?)),
        "amqp" | "amqps" => Ok(Arc::new(amqp::connect(options).await?)),
        _ => Err(BrokerError::Unusable(format!(
            "broker URL `{}` does not begin with nats://, tls://, amqp:// or amqps://",
            options.shown_url()
        ))),
    }
}
