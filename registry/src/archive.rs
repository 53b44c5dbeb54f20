//! Backup: models with all their versions and histories in one archive, and back. An index comes first; nothing is taken that it
//! does not name, and everything is checked against its checksums.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sluice_core::store::Moved;
use sluice_core::{ModelName, StoreError};

use crate::contents::{self, sha256_of, write_record};
use crate::unpack::each_file;
use crate::{Contents, Registry, RegistryError, Result, Revision, history};

const INDEX: &str = "index.toml";
/// Larger indices are hardly a registry's.
const LARGEST_INDEX: u64 = 64 * 1024 * 1024;
const FORMAT: u32 = 1;
/// More files and folders than this are hardly a registry.
const MOST_ENTRIES: usize = 1_000_000;

#[derive(Serialize, Deserialize)]
struct Index {
    format: u32,
    models: BTreeMap<ModelName, Deployed>,
}

#[derive(Serialize, Deserialize)]
struct Deployed {
    history: Vec<Revision>,
    versions: BTreeMap<String, Contents>,
}

impl Index {
    /// Each file once: its size by its path in the archive.
    fn files(&self) -> BTreeMap<String, u64> {
        let deployed = self.models.iter();
        let files = deployed.flat_map(|(model, deployed)| {
            let files = deployed.versions.values().flat_map(|contents| &contents.files);
            files.map(move |file| (contents::blob_key(model, &file.sha256), file.size))
        });
        files.collect()
    }
}

/// Writes models into an archive (`.tar`). `moved` is told the bytes of files.
pub async fn export(registry: &Registry, models: &[ModelName], archive: &Path, moved: Moved<'_>) -> Result<()> {
    let mut index = Index { format: FORMAT, models: BTreeMap::new() };
    for model in models {
        let history = registry.history(model).await?;
        let mut versions = BTreeMap::new();
        for version in registry.versions(model).await? {
            let contents = registry.contents(model, &version).await?;
            versions.insert(version, contents);
        }
        index.models.insert(model.clone(), Deployed { history, versions });
    }
    let writing = |error| RegistryError::local(format!("cannot write `{}`", archive.display()))(error);
    let unfinished = unfinished_beside(archive)?;
    let mut builder = tar::Builder::new(unfinished.reopen().map_err(writing)?);
    let text = write_record(&index);
    append(&mut builder, INDEX, text.len() as u64, &mut &text[..]).map_err(writing)?;
    let blob = unfinished_beside(archive)?;
    for (key, size) in index.files() {
        registry.store.download(&key, blob.path(), moved).await?;
        let mut file = File::open(blob.path()).map_err(writing)?;
        append(&mut builder, &key, size, &mut file).map_err(writing)?;
    }
    builder.finish().map_err(writing)?;
    unfinished.persist(archive).map(drop).map_err(|error| writing(error.error))
}

impl Registry {
    /// The bytes of all files of a model's versions, which is what an export moves.
    pub async fn size(&self, model: &ModelName) -> Result<u64> {
        let mut files = BTreeMap::new();
        for version in self.versions(model).await? {
            for file in self.contents(model, &version).await?.files {
                files.insert(file.sha256, file.size);
            }
        }
        Ok(files.values().sum())
    }
}

/// Reads an archive that [`export`] wrote. Models that are deployed already are left alone, and are an error before anything is
/// written, as is an archive whose files have more than `largest` bytes together. Returns the models.
pub async fn import(registry: &Registry, archive: &Path, largest: u64, moved: Moved<'_>) -> Result<Vec<ModelName>> {
    let refuse = |reason: String| RegistryError::Archive { archive: archive.to_owned(), reason };
    let reading = |error| RegistryError::local(format!("cannot read `{}`", archive.display()))(error);
    let folder = tempfile::tempdir().map_err(reading)?;
    let (source, into) = (archive.to_owned(), folder.path().to_owned());
    let index = tokio::task::spawn_blocking(move || unpack_checked(&source, &into, largest))
        .await
        .map_err(|panic| refuse(panic.to_string()))??;
    for model in index.models.keys() {
        if registry.newest(model).await?.is_some() {
            return Err(refuse(format!("model `{model}` is deployed already: undeploy it first")));
        }
    }
    for key in index.files().keys() {
        registry.store.upload(key, &folder.path().join(key), moved).await?;
    }
    for (model, deployed) in &index.models {
        for (version, contents) in &deployed.versions {
            keep_same(registry, &contents::key(model, version), write_record(contents)).await?;
        }
        for revision in &deployed.history {
            keep_same(registry, &history::key(model, revision.number), write_record(revision)).await?;
        }
    }
    Ok(index.models.into_keys().collect())
}

/// An import that was interrupted goes on; what is there must be the same.
async fn keep_same(registry: &Registry, key: &str, record: bytes::Bytes) -> Result<()> {
    match registry.store.create(key, record.clone()).await {
        Ok(()) => Ok(()),
        Err(StoreError::Exists(_)) if registry.store.read(key).await?.as_ref() == Some(&record) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn unpack_checked(archive: &Path, into: &Path, largest: u64) -> Result<Index> {
    let refuse = |reason: String| RegistryError::Archive { archive: archive.to_owned(), reason };
    let mut index: Option<Index> = None;
    let mut expected = BTreeMap::new();
    // The index says which there are; it does not name folders.
    each_file(archive, MOST_ENTRIES, |path, size, content| {
        if index.is_none() {
            if path != Path::new(INDEX) || size > LARGEST_INDEX {
                return Err("it does not begin with an index: `sluice model export` wrote it not".into());
            }
            let mut text = String::new();
            content.read_to_string(&mut text).map_err(|error| format!("{INDEX}: {error}"))?;
            let read: Index = toml::from_str(&text).map_err(|error| format!("{INDEX}: {error}"))?;
            if read.format != FORMAT {
                return Err(format!("it has format {}; this program reads {FORMAT}", read.format));
            }
            for (model, deployed) in &read.models {
                for revision in &deployed.history {
                    let place = format!("{INDEX}: revision {} of `{model}`", revision.number);
                    revision.check().map_err(|reason| format!("{place}: {reason}"))?;
                }
                for (version, contents) in &deployed.versions {
                    if !sluice_core::manifest::is_version(version) {
                        return Err(format!("{INDEX}: `{version}` is not a version"));
                    }
                    contents
                        .check(model)
                        .map_err(|reason| format!("{INDEX}: version `{version}` of `{model}`: {reason}"))?;
                }
            }
            expected = read.files();
            let whole = expected.values().fold(0_u64, |sum, size| sum.saturating_add(*size));
            if whole > largest {
                return Err(format!(
                    "its files have {whole} bytes, more than the {largest} that are allowed: --largest raises that"
                ));
            }
            index = Some(read);
            return Ok(());
        }
        let key = path.to_string_lossy().into_owned();
        match expected.remove(&key) {
            Some(wanted) if wanted == size => {}
            Some(wanted) => return Err(format!("entry `{key}` has {size} bytes; the index says {wanted}")),
            None => return Err(format!("entry `{key}` is not in the index")),
        }
        let target = into.join(path);
        let mut write = || -> io::Result<String> {
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent)?;
            }
            io::copy(content, &mut File::create_new(&target)?)?;
            sha256_of(&target)
        };
        let found = write().map_err(|error| format!("entry `{key}`: {error}"))?;
        match key.ends_with(&found) {
            true => Ok(()),
            false => Err(format!("entry `{key}` is damaged: its SHA-256 is {found}")),
        }
    })?;
    match (index, expected.keys().next()) {
        (Some(_), Some(missing)) => Err(refuse(format!("entry `{missing}` is missing: the archive was cut short"))),
        (Some(index), None) => Ok(index),
        (None, _) => Err(refuse("it is empty".into())),
    }
}

fn unfinished_beside(archive: &Path) -> Result<tempfile::NamedTempFile> {
    let folder = archive.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::NamedTempFile::new_in(folder)
        .map_err(RegistryError::local(format!("cannot write into `{}`", folder.display())))
}

fn append(builder: &mut tar::Builder<File>, path: &str, size: u64, content: &mut dyn Read) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    builder.append_data(&mut header, path, content)
}
