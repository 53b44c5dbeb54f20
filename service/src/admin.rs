//! The admin port: `/live`, `/ready` and `/metrics`. It tells; it changes nothing.

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::{Encoder, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Whether the process can do its work, and if not, why.
#[derive(Clone)]
pub struct Readiness(Arc<RwLock<Option<String>>>);

impl Readiness {
    /// Not ready, for this reason.
    pub fn not_yet(reason: impl Into<String>) -> Self {
        Self(Arc::new(RwLock::new(Some(reason.into()))))
    }

    /// `None`: ready.
    pub fn set(&self, reason: Option<String>) {
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = reason;
    }

    fn reason(&self) -> Option<String> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

#[derive(Clone)]
struct Shared {
    readiness: Readiness,
    registry: Registry,
}

/// Serves until `stop`; returns the address once it listens.
pub async fn serve(
    address: SocketAddr,
    readiness: Readiness,
    registry: Registry,
    stop: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} for the admin port"))?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/live", get(|| async { "alive\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Shared { readiness, registry });
    let token = stop.clone();
    crate::tasks::spawn_vital("admin port", &stop, async move {
        axum::serve(listener, router).with_graceful_shutdown(token.cancelled_owned()).await.context("the admin port")
    });
    info!(%address, "admin port: /live /ready /metrics");
    Ok(address)
}

async fn ready(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.readiness.reason() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&shared.registry.gather(), &mut text) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], error.to_string().into_bytes())
        }
    }
}
