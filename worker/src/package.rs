//! A package on disk: a folder with `model.toml` and the model file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use sluice_core::Manifest;
use sluice_registry::Pinned;

/// A package that was read and checked.
#[derive(Debug, Clone)]
pub struct Package {
    /// What `model.toml` says.
    pub manifest: Manifest,
    /// Where the model file is.
    pub file: PathBuf,
    /// What the files are, if they come from the registry.
    pub fingerprint: Option<String>,
    /// Keeps them in the cache.
    pub pinned: Option<Arc<Pinned>>,
}

impl Package {
    /// Reads the package in `folder`.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("model.toml");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read `{}`: a package is a folder with a model.toml", path.display()))?;
        let manifest = Manifest::parse(&text).with_context(|| format!("`{}` cannot be used", path.display()))?;
        let file = folder.join(&manifest.file);
        if !file.is_file() {
            bail!("`file` of `{}` names `{}`, which is not there", path.display(), file.display());
        }
        Ok(Self { manifest, file, fingerprint: None, pinned: None })
    }
}
