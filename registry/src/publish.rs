//! Publishing a version: its files first, each under its checksum, and its record last. A version is there whole or not at all, and
//! an interrupted upload goes on where it was.

use sluice_core::clock::unix_ms;
use sluice_core::manifest::VERSION_RULE;
use sluice_core::store::Moved;
use sluice_core::{ModelName, StoreError};

use crate::contents::{self, Contents, sha256_of, write_record};
use crate::{Folder, Registry, RegistryError, Result};

/// What became of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The version that it has.
    pub version: String,
    /// Whether it was published now, and not before.
    pub new: bool,
}

impl Registry {
    /// Publishes a package. Without a `version`, that of its `model.toml`; if that names none, the version with the same contents,
    /// or the next number.
    pub async fn publish(&self, folder: &Folder, version: Option<&str>, moved: Moved<'_>) -> Result<Published> {
        let model = &folder.manifest.name;
        let wanted = version.or(folder.names_version.then_some(folder.manifest.version.as_str()));
        let version = match wanted {
            Some(version) => version.to_owned(),
            None => match self.unnamed(model, folder).await? {
                Unnamed::Same(version) => {
                    self.upload_missing(model, folder, moved).await?;
                    return Ok(Published { version, new: false });
                }
                Unnamed::Next(version) => version,
            },
        };
        if !sluice_core::manifest::is_version(&version) {
            return Err(RegistryError::Unusable(format!("version `{version}`: {VERSION_RULE}")));
        }
        if let Some(earlier) = self.find_contents(model, &version).await? {
            let same = same_or_taken(model, version, &earlier, folder)?;
            self.upload_missing(model, folder, moved).await?;
            return Ok(same);
        }
        self.upload_missing(model, folder, moved).await?;
        let record = Contents { published: unix_ms(), manifest: folder.text.clone(), files: folder.files.clone() };
        match self.store.create(&contents::key(model, &version), write_record(&record)).await {
            Ok(()) => Ok(Published { version, new: true }),
            Err(StoreError::Exists(_)) => {
                let earlier = self.contents(model, &version).await?;
                same_or_taken(model, version, &earlier, folder)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Uploads the files that are not there.
    async fn upload_missing(&self, model: &ModelName, folder: &Folder, moved: Moved<'_>) -> Result<()> {
        for file in &folder.files {
            let key = contents::blob_key(model, &file.sha256);
            if self.store.blob_size(&key).await? == Some(file.size) {
                moved(file.size);
                continue;
            }
            let path = folder.path.join(&file.path);
            self.store.upload(&key, &path, moved).await?;
            let (read, expected) = (path.clone(), file.sha256.clone());
            let unchanged = tokio::task::spawn_blocking(move || Ok(sha256_of(&read)? == expected)).await;
            let unchanged = unchanged.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
            if !unchanged.map_err(RegistryError::local(format!("cannot read `{}`", path.display())))? {
                self.store.remove_blob(&key).await?;
                let faults = vec![format!("`{}` changed while it was uploaded", file.path)];
                return Err(RegistryError::Unfit { package: folder.path.clone(), faults });
            }
        }
        Ok(())
    }

    async fn unnamed(&self, model: &ModelName, folder: &Folder) -> Result<Unnamed> {
        let versions = self.versions(model).await?;
        for version in versions.iter().rev() {
            if self.contents(model, version).await?.files == folder.files {
                return Ok(Unnamed::Same(version.clone()));
            }
        }
        let largest = versions.iter().filter_map(|version| version.parse::<u64>().ok()).max();
        Ok(Unnamed::Next((largest.unwrap_or(0) + 1).to_string()))
    }
}

/// The version of a package that names none.
enum Unnamed {
    Same(String),
    Next(String),
}

fn same_or_taken(model: &ModelName, version: String, earlier: &Contents, folder: &Folder) -> Result<Published> {
    if earlier.files == folder.files {
        Ok(Published { version, new: false })
    } else {
        Err(RegistryError::VersionTaken { model: model.clone(), version })
    }
}
