//! The storage seam: what the registry needs of an object store, and no more than a folder, S3 and its likes, and NATS all
//! keep. One suite in `registry/tests` proves each promise on what can be had.
//!
//! It holds *records*, small and written once, and *blobs*, files of any size. Keys are paths such as `revisions/digits/7`.

use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;

/// What a store operation may end with.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Told how many more bytes have moved.
pub type Moved<'m> = &'m (dyn Fn(u64) + Send + Sync);

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A record of this key was written before; it stands.
    #[error("`{0}` is there already")]
    Exists(String),
    /// Nothing has this key.
    #[error("`{0}` is not there")]
    Missing(String),
    /// These credentials may not do this.
    #[error("the registry denies this: {0}")]
    Denied(String),
    /// A URL or a key that cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// A file of this machine.
    #[error("{what}")]
    Local {
        /// What was being done.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Anything else; the same call may succeed later.
    #[error("{what}")]
    Other {
        /// What was being done.
        what: String,
        /// What the client saw.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where the registry keeps its things.
#[async_trait]
pub trait Store: Send + Sync {
    /// The URL that it was reached by, without secrets.
    fn url(&self) -> &str;

    /// Writes a record that is not there yet. Of two writers at the same moment one gets [`StoreError::Exists`]; nobody ever
    /// reads half of a record.
    async fn create(&self, key: &str, record: Bytes) -> Result<()>;

    /// A record, if it is there.
    async fn read(&self, key: &str) -> Result<Option<Bytes>>;

    /// The keys of all records below a folder, however deep, in any order.
    async fn list(&self, folder: &str) -> Result<Vec<String>>;

    /// Removes a record. Idempotent.
    async fn remove(&self, key: &str) -> Result<()>;

    /// Stores a file. It is there whole, or not at all.
    async fn upload(&self, key: &str, file: &Path, moved: Moved<'_>) -> Result<()>;

    /// Writes a blob into a file, which it creates or replaces.
    async fn download(&self, key: &str, file: &Path, moved: Moved<'_>) -> Result<()>;

    /// The size of a blob in bytes, if it is there.
    async fn blob_size(&self, key: &str) -> Result<Option<u64>>;

    /// Removes a blob. Idempotent.
    async fn remove_blob(&self, key: &str) -> Result<()>;
}
