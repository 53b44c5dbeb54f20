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

/// Names a folder that stands for the checkout where there is none, with the files that are needed there.
pub const ROOT: &str = "SLUICE_ROOT";

/// The root of this checkout.
pub fn root() -> PathBuf {
    if let Some(folder) = std::env::var_os(ROOT) {
        return folder.into();
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}
