//! What tells one registry from another, however it is reached: an identity that is written once, by the first who changes something.

use bytes::Bytes;
use sluice_core::StoreError;

use crate::{Registry, RegistryError, Result};

const KEY: &str = "identity";

impl Registry {
    /// The identity; none before anything was written here.
    pub async fn identity(&self) -> Result<Option<String>> {
        let Some(record) = self.store.read(KEY).await? else { return Ok(None) };
        match std::str::from_utf8(&record) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) => Err(RegistryError::Unreadable { key: KEY.into(), reason: error.to_string() }),
        }
    }

    /// The identity, which is `fresh` if there was none. Of two who write it at once one is the first.
    pub async fn identify(&self, fresh: &str) -> Result<String> {
        if let Some(identity) = self.identity().await? {
            return Ok(identity);
        }
        match self.store.create(KEY, Bytes::copy_from_slice(fresh.as_bytes())).await {
            Ok(()) => Ok(fresh.to_owned()),
            Err(StoreError::Exists(key)) => self.identity().await?.ok_or_else(|| StoreError::Missing(key).into()),
            Err(error) => Err(error.into()),
        }
    }
}
