//! A model's history: revisions that say which version serves, with which profile, started or stopped. Append-only; the newest is
//! the truth.

use std::fmt;

use serde::{Deserialize, Serialize};
use sluice_core::clock::{UnixMs, unix_ms};
use sluice_core::manifest::{Profile, VERSION_RULE, is_version};
use sluice_core::{Manifest, ModelName, StoreError};

use crate::contents::{read_record, write_record};
use crate::{Registry, RegistryError, Result};

/// One entry of a model's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// Counts from 1.
    pub number: u64,
    /// When it was written.
    pub at: UnixMs,
    /// Who wrote it.
    pub by: String,
    /// Why.
    pub action: Action,
    /// Which version serves.
    pub version: String,
    /// Whether it serves.
    pub started: bool,
    /// Of a rollback, the revision that it took up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    /// What was tuned.
    #[serde(default, skip_serializing_if = "Profile::is_empty")]
    pub profile: Profile,
}

impl Revision {
    /// Whether this can be a revision. It may come from anywhere: its version becomes a path on hosts.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        if is_version(&self.version) {
            Ok(())
        } else {
            Err(format!("version `{}`: {VERSION_RULE}", self.version.escape_debug()))
        }
    }
}

/// Why a revision was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A version was deployed.
    Deploy,
    /// It was started.
    Start,
    /// It was stopped.
    Stop,
    /// It was tuned.
    Profile,
    /// An earlier revision was taken up again.
    Rollback,
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Action::Deploy => "deploy",
            Action::Start => "start",
            Action::Stop => "stop",
            Action::Profile => "profile",
            Action::Rollback => "rollback",
        })
    }
}

/// What a new revision says.
#[derive(Debug, Clone)]
pub struct Change {
    /// Who wants it.
    pub by: String,
    /// Why.
    pub action: Action,
    /// Which version is to serve.
    pub version: String,
    /// Whether it is to serve.
    pub started: bool,
    /// Of a rollback, the revision that it takes up again.
    pub of: Option<u64>,
    /// What is tuned.
    pub profile: Profile,
}

/// The key of a revision's record.
pub(crate) fn key(model: &ModelName, number: u64) -> String {
    format!("revisions/{model}/{number}.toml")
}

impl Registry {
    pub(crate) async fn revision_numbers(&self, model: &ModelName) -> Result<Vec<u64>> {
        let folder = format!("revisions/{model}/");
        let keys = self.store.list(folder.trim_end_matches('/')).await?;
        let number = |key: &String| key.strip_prefix(&folder)?.strip_suffix(".toml")?.parse().ok();
        let mut numbers: Vec<u64> = keys.iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The newest revision, if the model is deployed.
    pub async fn newest(&self, model: &ModelName) -> Result<Option<Revision>> {
        match self.revision_numbers(model).await?.last() {
            // Just written, and not yet where this was read: a copy of the store may lag behind.
            Some(number) => match self.find_revision(model, *number).await? {
                Some(revision) => Ok(Some(revision)),
                None => Err(StoreError::Other {
                    what: format!("revision {number} of model `{model}` is listed and cannot be read yet"),
                    source: "try again".into(),
                }
                .into()),
            },
            None => Ok(None),
        }
    }

    /// The newest revision of a model that must be deployed.
    pub async fn deployed(&self, model: &ModelName) -> Result<Revision> {
        self.newest(model).await?.ok_or_else(|| RegistryError::NotDeployed(model.clone()))
    }

    /// All revisions, the oldest first.
    pub async fn history(&self, model: &ModelName) -> Result<Vec<Revision>> {
        let mut history = Vec::new();
        for number in self.revision_numbers(model).await? {
            history.extend(self.find_revision(model, number).await?);
        }
        if history.is_empty() { Err(RegistryError::NotDeployed(model.clone())) } else { Ok(history) }
    }

    async fn find_revision(&self, model: &ModelName, number: u64) -> Result<Option<Revision>> {
        let key = key(model, number);
        let Some(bytes) = self.store.read(&key).await? else { return Ok(None) };
        let revision: Revision = read_record(&key, &bytes)?;
        revision.check().map_err(|reason| RegistryError::Unreadable { key, reason })?;
        Ok(Some(revision))
    }

    /// Writes the revision after `newest`, which is what the writer knew when it decided. If another was faster, that is a conflict.
    pub async fn append(&self, model: &ModelName, newest: Option<&Revision>, change: Change) -> Result<Revision> {
        let Change { by, action, version, started, of, profile } = change;
        // What cannot be served is not written: the profile must fit the version.
        self.effective(model, &version, &profile).await?;
        let number = newest.map_or(1, |newest| newest.number + 1);
        let revision = Revision { number, at: unix_ms(), by, action, version, started, of, profile };
        match self.store.create(&key(model, number), write_record(&revision)).await {
            Ok(()) => Ok(revision),
            Err(StoreError::Exists(key)) => match self.newest(model).await? {
                Some(newest) => Err(RegistryError::Conflict { model: model.clone(), newest: Box::new(newest) }),
                None => Err(StoreError::Exists(key).into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// The manifest that a version serves under with a profile.
    pub async fn effective(&self, model: &ModelName, version: &str, profile: &Profile) -> Result<Manifest> {
        let manifest = self.contents(model, version).await?.manifest(version)?;
        let tuned = profile.apply(&manifest);
        tuned.map_err(|error| RegistryError::Unusable(format!("the profile does not fit version `{version}`: {error}")))
    }
}
