//! The storage seam on NATS: records in a key-value bucket, blobs in an object store bucket, so that a deployment over several
//! hosts needs no other storage. It has a connection of its own: a large file does not hold up messages.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context as Poller, Poll};

use async_nats::jetstream::kv::{self, CreateErrorKind};
use async_nats::jetstream::object_store::{self, InfoErrorKind, ObjectStore};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::sync::OnceCell;

use sluice_core::BrokerError;
use sluice_core::store::{Moved, Result, Store, StoreError};

use super::{Nats, room};

const RECORDS: &str = "SLUICE_REGISTRY";
const BLOBS: &str = "SLUICE_PACKAGES";
/// A piece of a blob; well below the payload that every server takes.
const CHUNK: usize = 256 * 1024;

/// Records and blobs in JetStream.
pub(crate) struct NatsStore {
    nats: Nats,
    /// Made when first needed: whoever only reads may not be allowed to make them.
    records: OnceCell<kv::Store>,
    blobs: OnceCell<ObjectStore>,
}

impl NatsStore {
    pub(crate) fn new(nats: Nats) -> Self {
        Self { nats, records: OnceCell::new(), blobs: OnceCell::new() }
    }

    fn failed(&self, what: String, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
        let error = match error.into().downcast::<BrokerError>() {
            Ok(error) => *error,
            Err(source) => super::error::other(what.clone(), source),
        };
        // Whatever this connection asks for lies below one of these.
        let explained = [self.nats.api.prefix(), "$KV.", "$O."]
            .iter()
            .fold(error, |error, subject| self.nats.denials.explain(subject, error));
        match explained {
            BrokerError::Denied(reason) => StoreError::Denied(reason),
            BrokerError::Other { source, .. } => StoreError::Other { what, source },
            other => StoreError::Other { what, source: other.into() },
        }
    }

    /// The bucket of records, for whoever reads: before the first is written there is none.
    async fn written(&self) -> Result<Option<&kv::Store>> {
        if self.records.initialized() {
            return self.records().await.map(Some);
        }
        match self.nats.stream(&format!("KV_{RECORDS}")).await {
            Ok(Some(_)) => self.records().await.map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(self.failed(format!("looking for the bucket `{RECORDS}`"), error)),
        }
    }

    /// The bucket of records, made if it is not there.
    async fn records(&self) -> Result<&kv::Store> {
        let make = || async {
            if let Ok(store) = self.nats.jetstream.get_key_value(RECORDS).await {
                return Ok(store);
            }
            let replicas = self.replicas(RECORDS).await?;
            let config = |mib| kv::Config {
                bucket: RECORDS.into(),
                description: "Sluice: packages' contents and models' revisions".into(),
                num_replicas: replicas,
                max_bytes: room::bytes(mib),
                ..Default::default()
            };
            let operation = format!("STREAM.CREATE.KV_{RECORDS}");
            let make =
                async |mib| self.nats.allowed(&operation, self.nats.jetstream.create_key_value(config(mib))).await;
            let made = match make(room::RECORDS_MIB).await {
                Ok(Err(error)) if room::is_lacking(&error) => make(room::LEAST_RECORDS_MIB).await,
                made => made,
            };
            let made = made.map_err(|error| self.failed(format!("opening the bucket `{RECORDS}`"), error))?;
            made.map_err(|error| self.failed(format!("opening the bucket `{RECORDS}`"), error))
        };
        self.records.get_or_try_init(make).await
    }

    async fn replicas(&self, bucket: &str) -> Result<usize> {
        let settings = super::settings::current(&self.nats).await;
        let settings = settings.map_err(|error| self.failed(format!("opening the bucket `{bucket}`"), error))?;
        Ok(settings.replicas)
    }

    async fn blobs(&self) -> Result<&ObjectStore> {
        let make = || async {
            if let Ok(store) = self.nats.jetstream.get_object_store(BLOBS).await {
                return Ok(store);
            }
            let replicas = self.replicas(BLOBS).await?;
            let config = object_store::Config {
                bucket: BLOBS.into(),
                description: Some("Sluice: files of packages".into()),
                num_replicas: replicas,
                ..Default::default()
            };
            let operation = format!("STREAM.CREATE.OBJ_{BLOBS}");
            let made = self.nats.allowed(&operation, self.nats.jetstream.create_object_store(config)).await;
            let made = made.map_err(|error| self.failed(format!("opening the bucket `{BLOBS}`"), error))?;
            made.map_err(|error| self.failed(format!("opening the bucket `{BLOBS}`"), error))
        };
        self.blobs.get_or_try_init(make).await
    }
}

/// A key's parts become a subject's tokens. What a token cannot hold is written as `=` and two hexadecimal digits.
fn to_subject(key: &str) -> String {
    let mut subject = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'/' => subject.push('.'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => subject.push(byte.into()),
            other => subject.push_str(&format!("={other:02x}")),
        }
    }
    subject
}

/// The other way.
fn to_key(subject: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(subject.len());
    let mut rest = subject.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'.' => bytes.push(b'/'),
            b'=' => {
                let (digits, after) = rest.split_at_checked(2)?;
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = after;
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[async_trait]
impl Store for NatsStore {
    fn url(&self) -> &str {
        &self.nats.shown_url
    }

    async fn create(&self, key: &str, record: Bytes) -> Result<()> {
        match self.records().await?.create(to_subject(key), record).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Err(StoreError::Exists(key.into())),
            Err(error) => Err(self.failed(format!("writing `{key}`"), error)),
        }
    }

    async fn read(&self, key: &str) -> Result<Option<Bytes>> {
        let Some(records) = self.written().await? else { return Ok(None) };
        let read = records.get(to_subject(key)).await;
        read.map_err(|error| self.failed(format!("reading `{key}`"), error))
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let Some(records) = self.written().await? else { return Ok(Vec::new()) };
        let below = format!("{}{}.>", records.prefix, to_subject(folder));
        let failed =
            |error: Box<dyn std::error::Error + Send + Sync>| self.failed(format!("listing `{folder}`"), error);
        let found = records.stream.info_with_subjects(&below).await.map_err(|error| failed(error.into()))?;
        let subjects: Vec<(String, usize)> = found.try_collect().await.map_err(|error| failed(error.into()))?;
        let key = |(subject, _): &(String, usize)| to_key(subject.strip_prefix(&records.prefix)?);
        Ok(subjects.iter().filter_map(key).collect())
    }

    async fn remove(&self, key: &str) -> Result<()> {
        let records = self.records().await?;
        // A deletion in the bucket's own way would leave a marker that is listed for ever.
        let purged = records.stream.purge().filter(format!("{}{}", records.prefix, to_subject(key))).await;
        purged.map(drop).map_err(|error| self.failed(format!("removing `{key}`"), error))
    }

    async fn upload(&self, key: &str, file: &Path, moved: Moved<'_>) -> Result<()> {
        let source = tokio::fs::File::open(file)
            .await
            .map_err(|source| StoreError::Local { what: format!("cannot read `{}`", file.display()), source })?;
        let mut source = Counted { source, moved };
        let meta = object_store::ObjectMetadata { name: key.into(), chunk_size: Some(CHUNK), ..Default::default() };
        let stored = self.blobs().await?.put(meta, &mut source).await;
        stored.map(drop).map_err(|error| self.failed(format!("uploading `{}`", file.display()), error))
    }

    async fn download(&self, key: &str, file: &Path, moved: Moved<'_>) -> Result<()> {
        let blob = match self.blobs().await?.info(key).await {
            Ok(blob) if !blob.deleted => blob,
            Ok(_) => return Err(StoreError::Missing(key.into())),
            Err(error) if error.kind() == InfoErrorKind::NotFound => return Err(StoreError::Missing(key.into())),
            Err(error) => return Err(self.failed(format!("fetching `{key}`"), error)),
        };
        let local = |source| StoreError::Local { what: format!("cannot write `{}`", file.display()), source };
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| self.failed(format!("fetching `{key}`"), error);
        // Piece by piece: the client's own way takes a consumer, and whoever may make one can have anything sent to anywhere.
        let stream = self.nats.jetstream.get_stream_no_info(format!("OBJ_{BLOBS}")).await;
        let stream = stream.map_err(|error| failed(error.into()))?;
        let operation = format!("DIRECT.GET.OBJ_{BLOBS}");
        let pieces = format!("$O.{BLOBS}.C.{}", blob.nuid);
        let mut target = tokio::fs::File::create(file).await.map_err(local)?;
        let mut next = 1;
        for _ in 0..blob.chunks {
            let piece = self.nats.allowed(&operation, stream.direct_get_next_for_subject(pieces.as_str(), Some(next)));
            let piece = piece.await.map_err(|error| failed(error.into()))?.map_err(|error| failed(error.into()))?;
            next = piece.sequence + 1;
            target.write_all(&piece.payload).await.map_err(local)?;
            moved(piece.payload.len() as u64);
        }
        target.flush().await.map_err(local)
    }

    async fn blob_size(&self, key: &str) -> Result<Option<u64>> {
        match self.blobs().await?.info(key).await {
            Ok(info) => Ok((!info.deleted).then_some(info.size as u64)),
            Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(format!("looking for `{key}`"), error)),
        }
    }

    async fn remove_blob(&self, key: &str) -> Result<()> {
        if self.blob_size(key).await?.is_none() {
            return Ok(());
        }
        let removed = self.blobs().await?.delete(key).await;
        removed.map_err(|error| self.failed(format!("removing `{key}`"), error))
    }
}

/// A file whose bytes are counted as they are read.
struct Counted<'m> {
    source: tokio::fs::File,
    moved: Moved<'m>,
}

impl AsyncRead for Counted<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Poller<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.source).poll_read(context, buffer);
        (self.moved)((buffer.filled().len() - before) as u64);
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_key_is_a_subject_and_comes_back() {
        for key in ["revisions/digits/7", "packages/m/1.2.0-rc_1", "packages/m/a=b", "x/ü"] {
            let subject = to_subject(key);
            assert!(subject.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_=.".contains(&byte)), "{subject}");
            assert_eq!(to_key(&subject).as_deref(), Some(key));
        }
        assert_eq!(to_subject("a.b/c"), "a=2eb.c");
    }
}
