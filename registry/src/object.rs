//! The storage seam on a folder, S3, Google Cloud Storage and Azure, by the `object_store` crate. Records and blobs are objects of
//! one bucket.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, WriteMultipart};
use sluice_core::shown;
use sluice_core::store::{Moved, Result, Store, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use url::Url;

use crate::Location;

/// Multipart uploads to S3 have at most 10,000 parts of at least 5 MiB: this takes files up to 156 GiB.
const PART: usize = 16 * 1024 * 1024;
/// Parts under way at once.
const PARTS: usize = 4;

/// A folder or a bucket.
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// For people.
    url: String,
}

impl Objects {
    /// Opens what the URL names. A folder is made if it is not there. The location's options go over the environment.
    pub(crate) fn open(location: &Location) -> Result<Self> {
        let shown = location.shown_url();
        let unusable =
            |reason: String| StoreError::Unusable(format!("registry URL `{shown}` cannot be used: {reason}"));
        let parsed = Url::parse(location.url.trim()).map_err(|error| unusable(error.to_string()))?;
        let store: Arc<dyn ObjectStore> = if parsed.scheme() == "file" {
            let folder = parsed.to_file_path().map_err(|()| unusable("it names no absolute path".into()))?;
            std::fs::create_dir_all(&folder)
                .map_err(|source| StoreError::Local { what: format!("cannot make `{}`", folder.display()), source })?;
            Arc::new(LocalFileSystem::new_with_prefix(&folder).map_err(|error| unusable(error.to_string()))?)
        } else {
            sluice_broker::prepare_tls();
            // Only what is meant: the crate would take a bare TOKEN or ENDPOINT too.
            let environment = std::env::vars_os().filter_map(|(name, value)| {
                let name = name.to_str()?.to_ascii_lowercase();
                let ours = ["aws_", "google_", "azure_"].iter().any(|prefix| name.starts_with(prefix));
                Some((name, value.into_string().ok()?)).filter(|_| ours)
            });
            let options = environment.chain(location.options.clone());
            let (store, prefix) = object_store::parse_url_opts(&parsed, options)
                .map_err(|error| unusable(in_words(&error, &parsed, &shown, location)))?;
            Arc::new(PrefixStore::new(store, prefix))
        };
        Ok(Self { store, url: shown })
    }

    fn failed(&self, what: String, error: object_store::Error) -> StoreError {
        match error {
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                StoreError::Denied(format!("{what}: {error}"))
            }
            other => StoreError::Other { what: format!("{what} ({})", self.url), source: other.into() },
        }
    }
}

fn key(text: &str) -> Result<Key> {
    Key::parse(text).map_err(|error| StoreError::Unusable(format!("`{text}` is not a key: {error}")))
}

#[async_trait]
impl Store for Objects {
    fn url(&self) -> &str {
        &self.url
    }

    async fn create(&self, text: &str, record: Bytes) -> Result<()> {
        match self.store.put_opts(&key(text)?, record.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Err(StoreError::Exists(text.into()))
            }
            Err(error) => Err(self.failed(format!("writing `{text}`"), error)),
        }
    }

    async fn read(&self, text: &str) -> Result<Option<Bytes>> {
        let found = async { self.store.get(&key(text)?).await.map(Some).or_else(none_if_missing(self, text)) }.await?;
        match found {
            Some(found) => {
                found.bytes().await.map(Some).map_err(|error| self.failed(format!("reading `{text}`"), error))
            }
            None => Ok(None),
        }
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let listed: Vec<_> = self
            .store
            .list(Some(&key(folder)?))
            .try_collect()
            .await
            .map_err(|error| self.failed(format!("listing `{folder}`"), error))?;
        Ok(listed.into_iter().map(|found| found.location.to_string()).collect())
    }

    async fn remove(&self, text: &str) -> Result<()> {
        match self.store.delete(&key(text)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(format!("removing `{text}`"), error)),
        }
    }

    async fn upload(&self, text: &str, file: &Path, moved: Moved<'_>) -> Result<()> {
        let failed = |error| self.failed(format!("uploading `{}`", file.display()), error);
        let local = |source| StoreError::Local { what: format!("cannot read `{}`", file.display()), source };
        let mut source = tokio::fs::File::open(file).await.map_err(local)?;
        let mut upload = None;
        let mut piece = Vec::with_capacity(PART);
        loop {
            piece.clear();
            let read = (&mut source).take(PART as u64).read_to_end(&mut piece).await.map_err(local)?;
            let last = read < PART;
            if last && upload.is_none() {
                self.store.put(&key(text)?, Bytes::copy_from_slice(&piece).into()).await.map_err(failed)?;
                moved(read as u64);
                return Ok(());
            }
            if upload.is_none() {
                let parts = self.store.put_multipart(&key(text)?).await.map_err(failed)?;
                upload = Some(WriteMultipart::new_with_chunk_size(parts, PART));
            }
            if let Some(parts) = &mut upload {
                parts.wait_for_capacity(PARTS).await.map_err(failed)?;
                parts.write(&piece);
                moved(read as u64);
            }
            if last {
                break;
            }
        }
        match upload {
            Some(parts) => parts.finish().await.map(drop).map_err(failed),
            None => Ok(()),
        }
    }

    async fn download(&self, text: &str, file: &Path, moved: Moved<'_>) -> Result<()> {
        let found = self.store.get(&key(text)?).await.map(Some).or_else(none_if_missing(self, text))?;
        let Some(found) = found else { return Err(StoreError::Missing(text.into())) };
        let local = |source| StoreError::Local { what: format!("cannot write `{}`", file.display()), source };
        let mut target = tokio::fs::File::create(file).await.map_err(local)?;
        let mut stream = found.into_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| self.failed(format!("fetching `{text}`"), error))?;
            target.write_all(&piece).await.map_err(local)?;
            moved(piece.len() as u64);
        }
        target.flush().await.map_err(local)
    }

    async fn blob_size(&self, text: &str) -> Result<Option<u64>> {
        let found = self.store.head(&key(text)?).await.map(Some).or_else(none_if_missing(self, text))?;
        Ok(found.map(|meta| meta.size))
    }

    async fn remove_blob(&self, text: &str) -> Result<()> {
        self.remove(text).await
    }
}

/// The crate's errors may repeat the URL and options as they are.
fn in_words(error: &object_store::Error, url: &Url, shown: &str, location: &Location) -> String {
    let text = error.to_string().replace(url.as_str(), shown);
    location.options.iter().fold(text, |text, (name, value)| match shown::option(name, value) {
        hidden if hidden != *value && !value.is_empty() => text.replace(value.as_str(), &hidden),
        _ => text,
    })
}

fn none_if_missing<T>(objects: &Objects, text: &str) -> impl FnOnce(object_store::Error) -> Result<Option<T>> {
    move |error| match error {
        object_store::Error::NotFound { .. } => Ok(None),
        error => Err(objects.failed(format!("reading `{text}`"), error)),
    }
}
