//! What the repository does to itself. The library part is shared with the end-to-end harness: where
//! the fetched tools are, and how a server is started and stopped.

pub mod broker;
pub mod cache;
#[cfg(feature = "certificates")]
pub mod certificates;
pub mod cluster;
pub mod fetch;
pub mod http;
pub mod nats;
pub mod process;
pub mod rabbitmq;
pub mod rules;
pub mod setup;

use std::path::{Path, PathBuf};

/// The root of this checkout.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}
