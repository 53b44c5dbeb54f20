//! The registry: packages of models, immutable once published, and each model's append-only history of revisions, in an object
//! store. docs/registry.md says what is where. Knows nothing of engines or queues. Modules stand in the order of their use.

mod archive;
mod cache;
mod contents;
mod error;
mod folder;
mod history;
mod identity;
mod location;
mod object;
mod private;
mod publish;
mod unpack;

pub use archive::{export, import};
pub use cache::{Cache, Pinned};
pub use contents::{Contents, FileEntry};
pub use error::RegistryError;
pub use folder::Folder;
pub use history::{Action, Change, Revision};
pub use location::{Location, open};
pub use publish::Published;
pub use unpack::unpack;

use std::sync::Arc;

use sluice_core::{ModelName, Store};

/// What a registry operation may end with.
pub type Result<T> = std::result::Result<T, RegistryError>;

/// The registry of a deployment.
#[derive(Clone)]
pub struct Registry {
    store: Arc<dyn Store>,
}

impl Registry {
    /// The registry that this store holds.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// What it is kept in, for those who look after that.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Where it is, without secrets.
    pub fn url(&self) -> &str {
        self.store.url()
    }

    /// The models that are deployed, sorted.
    pub async fn models(&self) -> Result<Vec<ModelName>> {
        let keys = self.store.list("revisions").await?;
        let mut models: Vec<ModelName> = keys.iter().filter_map(|key| key.split('/').nth(1)?.parse().ok()).collect();
        models.sort();
        models.dedup();
        Ok(models)
    }

    /// Removes a model that is stopped. Interrupted, it can be done again: the newest revision goes last, so that until then the model is
    /// stopped and nothing else; and no version is there whose files are not.
    pub async fn remove(&self, model: &ModelName) -> Result<()> {
        let mut blobs = std::collections::BTreeSet::new();
        let versions = self.versions(model).await?;
        for version in &versions {
            blobs.extend(self.contents(model, version).await?.files.into_iter().map(|file| file.sha256));
        }
        for version in &versions {
            self.store.remove(&contents::key(model, version)).await?;
        }
        for sha256 in blobs {
            self.store.remove_blob(&contents::blob_key(model, &sha256)).await?;
        }
        for number in self.revision_numbers(model).await? {
            self.store.remove(&history::key(model, number)).await?;
        }
        Ok(())
    }
}
