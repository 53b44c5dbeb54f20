//! A host's copies of packages: fetched once, verified at each load, the least recently used ones removed when there are too many.

use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sluice_core::ModelName;
use sluice_core::manifest::{VERSION_RULE, is_version};
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::contents::{self, Contents, FileEntry, read_record, sha256_of, write_record};
use crate::{Registry, RegistryError, Result, private};

/// What the folder holds; its time of change says when the package was last used.
const CONTENTS: &str = ".contents.toml";
/// Where files are that are not whole yet.
const UNFINISHED: &str = ".unfinished";
/// Another process's unfinished file of this age was left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(24 * 3600);

/// A folder with copies of packages.
pub struct Cache {
    folder: PathBuf,
    /// In bytes.
    limit: u64,
    /// One fetch at a time: the network is the bottleneck, and nobody may remove what another verifies.
    busy: Mutex<()>,
    pinned: Arc<std::sync::Mutex<Vec<PathBuf>>>,
}

/// A package's folder, which stays in the cache while this lives.
#[derive(Debug)]
pub struct Pinned {
    folder: PathBuf,
    pinned: Arc<std::sync::Mutex<Vec<PathBuf>>>,
}

impl Pinned {
    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut pinned = self.pinned.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(at) = pinned.iter().position(|folder| *folder == self.folder) {
            pinned.swap_remove(at);
        }
    }
}

impl Cache {
    /// A cache in `folder` that keeps at most `limit` bytes, besides the packages in use.
    /// The folder is this user's alone, or is refused.
    pub fn open(folder: PathBuf, limit: u64) -> Result<Self> {
        private::folder(&folder)?;
        Ok(Self { folder, limit, busy: Mutex::new(()), pinned: Arc::default() })
    }

    /// A version's folder, complete and verified. While the registry cannot be reached, a copy that is here serves.
    pub async fn package(&self, registry: &Registry, model: &ModelName, version: &str) -> Result<Pinned> {
        if !is_version(version) {
            return Err(RegistryError::Unusable(format!("version `{}`: {VERSION_RULE}", version.escape_debug())));
        }
        let _busy = self.busy.lock().await;
        // It may have been removed meanwhile, and made by another.
        private::folder(&self.folder)?;
        let folder = self.folder.join(model.as_str()).join(version);
        let contents = match registry.contents(model, version).await {
            Ok(contents) => contents,
            Err(RegistryError::Store(error)) => match known_here(&folder) {
                Some(contents) => {
                    warn!(%model, version, %error, "the registry cannot be reached; using the copy on this host");
                    contents
                }
                None => return Err(error.into()),
            },
            Err(error) => return Err(error),
        };
        make(&folder)?;
        for file in &contents.files {
            self.complete(registry, model, version, &folder, file).await?;
        }
        let record = folder.join(CONTENTS);
        replace(&record, &write_record(&contents)).map_err(writing(&record))?;
        let pinned = Pinned { folder: folder.clone(), pinned: Arc::clone(&self.pinned) };
        self.pinned().push(folder);
        self.trim();
        Ok(pinned)
    }

    /// Makes sure of one file. One that is damaged is fetched again, once.
    async fn complete(
        &self,
        registry: &Registry,
        model: &ModelName,
        version: &str,
        folder: &Path,
        file: &FileEntry,
    ) -> Result<()> {
        let target = folder.join(&file.path);
        if fs::symlink_metadata(&target).is_ok_and(|found| !found.is_file()) {
            let reason = format!("`{}` is no plain file: remove it", target.display());
            return Err(RegistryError::Unusable(reason));
        }
        match hash(&target).await {
            Ok(found) if found == file.sha256 => return Ok(()),
            Ok(_) => warn!(%model, version, file = file.path, "a file in the cache is damaged; fetching it again"),
            Err(_) => {}
        }
        let unfinished = self.folder.join(UNFINISHED);
        make(&unfinished)?;
        // Of a name that nobody knows before.
        let partial = tempfile::NamedTempFile::new_in(&unfinished).map_err(writing(&unfinished))?.into_temp_path();
        let mut found = String::new();
        // The copy may have been damaged on its way.
        for _ in 0..2 {
            let key = contents::blob_key(model, &file.sha256);
            registry.store.download(&key, &partial, &|_| ()).await?;
            found =
                hash(&partial).await.map_err(RegistryError::local(format!("cannot read `{}`", partial.display())))?;
            if found == file.sha256 {
                if let Some(parent) = target.parent() {
                    make(parent)?;
                }
                partial.persist(&target).map_err(|error| writing(&target)(error.error))?;
                info!(%model, version, file = file.path, bytes = file.size, "fetched");
                return Ok(());
            }
        }
        Err(RegistryError::Damaged {
            model: model.clone(),
            version: version.into(),
            file: file.path.clone(),
            expected: file.sha256.clone(),
            found,
        })
    }

    fn pinned(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        self.pinned.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Removes the least recently used packages, but none that is pinned.
    fn trim(&self) {
        let mut packages = Vec::new();
        for folder in folders(&self.folder).iter().flat_map(|model| folders(model)) {
            let used = fs::metadata(folder.join(CONTENTS)).and_then(|meta| meta.modified());
            packages.push((used.unwrap_or(SystemTime::UNIX_EPOCH), size_of(&folder), folder));
        }
        packages.sort();
        let mut total: u64 = packages.iter().map(|(_, size, _)| size).sum();
        for (_, size, folder) in packages {
            if total <= self.limit {
                break;
            }
            if self.pinned().contains(&folder) {
                continue;
            }
            info!(package = %folder.display(), "removed from the cache, which is full");
            match fs::remove_dir_all(&folder) {
                Ok(()) => total = total.saturating_sub(size),
                Err(error) => warn!(package = %folder.display(), %error, "could not remove it from the cache"),
            }
        }
        for entry in fs::read_dir(self.folder.join(UNFINISHED)).into_iter().flatten().flatten() {
            let age = entry.metadata().and_then(|meta| meta.modified()).map(|at| at.elapsed().unwrap_or_default());
            if age.is_ok_and(|age| age > LEFT_BEHIND) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn known_here(folder: &Path) -> Option<Contents> {
    let path = folder.join(CONTENTS);
    read_record(&path.display().to_string(), &fs::read(&path).ok()?).ok()
}

async fn hash(file: &Path) -> std::io::Result<String> {
    let file: Arc<Path> = file.into();
    tokio::task::spawn_blocking(move || sha256_of(&file)).await.map_err(std::io::Error::other)?
}

/// Writes a file beside and renames it: what was there is replaced, not written into.
fn replace(file: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut fresh = tempfile::NamedTempFile::new_in(file.parent().unwrap_or(Path::new(".")))?;
    fresh.write_all(content)?;
    fresh.persist(file)?;
    Ok(())
}

fn make(folder: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(RegistryError::local(format!("cannot make `{}`", folder.display())))
}

fn writing(file: &Path) -> impl FnOnce(std::io::Error) -> RegistryError {
    RegistryError::local(format!("cannot write `{}`", file.display()))
}

/// The folders in a folder that are not hidden.
fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    let visible = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    visible.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}
