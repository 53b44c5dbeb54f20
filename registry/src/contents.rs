//! The record of a published version: its manifest, and every file with its checksum. The files are blobs under their checksum, so
//! that versions share what they have in common.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sluice_core::clock::UnixMs;
use sluice_core::{Manifest, ModelName};

use crate::{Registry, RegistryError, Result};

/// A published version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contents {
    /// When it was published.
    pub published: UnixMs,
    /// The text of `model.toml`.
    pub manifest: String,
    /// All files, `model.toml` among them, sorted by path.
    pub files: Vec<FileEntry>,
}

/// A file of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Inside the package, with `/`.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// In hexadecimal.
    pub sha256: String,
}

impl Contents {
    /// The manifest, with the version that it was published under.
    pub fn manifest(&self, version: &str) -> Result<Manifest> {
        let parsed = Manifest::parse(&self.manifest);
        let manifest = parsed.map_err(|error| RegistryError::Unreadable {
            key: format!("model.toml of version `{version}`"),
            reason: error.to_string(),
        })?;
        Ok(Manifest { version: version.to_owned(), ..manifest })
    }

    /// Whether this can be the record of a version of `model`. It may come from anywhere: its paths become paths on hosts.
    pub(crate) fn check(&self, model: &ModelName) -> std::result::Result<(), String> {
        for file in &self.files {
            let path = Path::new(&file.path);
            let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
            if !inside || file.path.is_empty() || file.path.split('/').any(|part| part.starts_with('.')) {
                return Err(format!("file `{}` is not a plain path inside a package", file.path));
            }
            if file.sha256.len() != 64 || !file.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(format!("file `{}` has the SHA-256 `{}`, which is none", file.path, file.sha256));
            }
        }
        match Manifest::parse(&self.manifest) {
            Ok(manifest) if manifest.name == *model => Ok(()),
            Ok(manifest) => Err(format!("its model.toml is that of model `{}`", manifest.name)),
            Err(error) => Err(format!("model.toml: {error}")),
        }
    }

    /// What the files are, whatever the version is called.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for file in &self.files {
            hash.update(format!("{} {}\n", file.sha256, file.path));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// The key of a version's record.
pub(crate) fn key(model: &ModelName, version: &str) -> String {
    format!("packages/{model}/{version}.toml")
}

/// The key of a file's blob.
pub(crate) fn blob_key(model: &ModelName, sha256: &str) -> String {
    format!("blobs/{model}/{sha256}")
}

/// A file's SHA-256 in hexadecimal. Reads it all: not for the runtime's threads.
pub(crate) fn sha256_of(file: &Path) -> std::io::Result<String> {
    let mut source = File::open(file)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hash.update(&buffer[..read]),
        }
    }
}

impl Registry {
    /// A model's published versions, the oldest first.
    pub async fn versions(&self, model: &ModelName) -> Result<Vec<String>> {
        let folder = format!("packages/{model}");
        let keys = self.store.list(&folder).await?;
        let mut versions = Vec::new();
        for key in &keys {
            let name = key.strip_prefix(&folder).and_then(|rest| rest.strip_prefix('/')?.strip_suffix(".toml"));
            if let Some(version) = name {
                versions.push((self.contents(model, version).await?.published, version.to_owned()));
            }
        }
        versions.sort();
        Ok(versions.into_iter().map(|(_, version)| version).collect())
    }

    /// What a version holds.
    pub async fn contents(&self, model: &ModelName, version: &str) -> Result<Contents> {
        match self.find_contents(model, version).await? {
            Some(contents) => Ok(contents),
            None => Err(RegistryError::NoVersion {
                model: model.clone(),
                version: version.into(),
                known: Box::pin(self.versions(model)).await?,
            }),
        }
    }

    pub(crate) async fn find_contents(&self, model: &ModelName, version: &str) -> Result<Option<Contents>> {
        if !sluice_core::manifest::is_version(version) {
            return Ok(None);
        }
        let key = key(model, version);
        let Some(bytes) = self.store.read(&key).await? else { return Ok(None) };
        let contents: Contents = read_record(&key, &bytes)?;
        contents.check(model).map_err(|reason| RegistryError::Unreadable { key, reason })?;
        Ok(Some(contents))
    }
}

/// Reads a record's TOML.
pub(crate) fn read_record<T: serde::de::DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    let unreadable = |reason: String| RegistryError::Unreadable { key: key.to_owned(), reason };
    let text = std::str::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?;
    toml::from_str(text).map_err(|error| unreadable(error.to_string()))
}

/// Writes a record's TOML.
pub(crate) fn write_record(record: &impl Serialize) -> bytes::Bytes {
    toml::to_string(record).expect("records consist of what TOML can say").into()
}
