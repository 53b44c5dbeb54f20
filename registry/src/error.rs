//! Why the registry did not do what was asked.

use std::path::PathBuf;

use sluice_core::{ModelName, StoreError};

use crate::Revision;

/// Why the registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A package that cannot be published; every fault.
    #[error("`{}` cannot be deployed:\n  {}", .package.display(), .faults.join("\n  "))]
    Unfit {
        /// Its folder or archive.
        package: PathBuf,
        /// Each with its key or file.
        faults: Vec<String>,
    },
    /// No such model.
    #[error("model `{0}` is not deployed: `sluice model list` shows those that are")]
    NotDeployed(ModelName),
    /// No such version.
    #[error("model `{model}` has no version `{version}`; it has {}", listed(.known))]
    NoVersion {
        /// The model.
        model: ModelName,
        /// What was asked for.
        version: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The version was published with other contents.
    #[error(
        "version `{version}` of model `{model}` was published before, with other contents: a version never changes; name another"
    )]
    VersionTaken {
        /// The model.
        model: ModelName,
        /// The version.
        version: String,
    },
    /// Another writer was faster.
    #[error("model `{model}` was changed by another meanwhile: revision {} ({}) by {}; look at it, then try again", .newest.number, .newest.action, .newest.by)]
    Conflict {
        /// The model.
        model: ModelName,
        /// What the other wrote.
        newest: Box<Revision>,
    },
    /// A file is not what was published, and a second fetch did not help.
    #[error(
        "file `{file}` of model `{model}` version `{version}` is damaged in the registry: its SHA-256 is {found}, published was {expected}"
    )]
    Damaged {
        /// The model.
        model: ModelName,
        /// Its version.
        version: String,
        /// Its path in the package.
        file: String,
        /// As published.
        expected: String,
        /// As fetched.
        found: String,
    },
    /// A record that cannot be read.
    #[error("record `{key}` of the registry cannot be read: {reason}")]
    Unreadable {
        /// Its key.
        key: String,
        /// Why.
        reason: String,
    },
    /// An archive that cannot be used.
    #[error("archive `{}`: {reason}", .archive.display())]
    Archive {
        /// The file.
        archive: PathBuf,
        /// Why.
        reason: String,
    },
    /// A URL that cannot be used.
    #[error("{0}")]
    Unusable(String),
}

impl RegistryError {
    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            // A copy of the store may lag behind what was just published; a disk may have room again.
            Self::Store(StoreError::Other { .. } | StoreError::Missing(_) | StoreError::Local { .. }) => true,
            Self::NoVersion { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn local(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Store(StoreError::Local { what, source })
    }
}

fn listed(versions: &[String]) -> String {
    if versions.is_empty() { "none".into() } else { versions.join(", ") }
}
