//! Connects to a message broker. The only crate that names a broker's client library; everyone else
//! holds a `Box<dyn Broker>` and cannot tell which it is.

mod amqp;
mod nats;
mod options;
mod turns;

use std::sync::Arc;

use sluice_core::Broker;
use sluice_core::broker::{BrokerError, Result};

pub use options::{Options, Patience};

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
