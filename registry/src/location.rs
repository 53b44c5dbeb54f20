//! Where a registry is: one match over its URL's scheme.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluice_broker::Options;
use sluice_core::{BrokerError, Store, StoreError};

use crate::object::Objects;
use crate::{Registry, RegistryError, Result};

/// The `[registry]` section of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Location {
    /// `file:///folder`, `s3://bucket/folder`, `gs://bucket/folder`, `az://container/folder`, or `nats://...`; if empty, the
    /// broker's own store, which NATS has. Credentials of S3, GCS and Azure come from their usual environment variables.
    pub url: String,
    /// What S3, GCS and Azure need beyond their environment variables, by the names that those have in lower case, such as
    /// `aws_endpoint` and `aws_allow_http`.
    pub options: BTreeMap<String, String>,
}

impl Location {
    /// A location that needs no options of its own.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), options: BTreeMap::new() }
    }

    /// What cannot be right, for a check of the configuration.
    pub fn fault(&self) -> Option<String> {
        let scheme = self.url.trim().split_once("://").map_or("", |(scheme, _)| scheme);
        let known = SCHEMES.contains(&scheme) || self.url.trim().is_empty();
        (!known).then(|| format!("`registry.url`: {}", unknown(&self.shown_url())))
    }

    /// The URL for people, logs and errors: passwords and tokens are left out.
    pub fn shown_url(&self) -> String {
        sluice_core::shown::url(&self.url)
    }
}

const SCHEMES: [&str; 6] = ["file", "s3", "gs", "az", "nats", "tls"];

fn unknown(url: &str) -> String {
    format!("registry URL `{url}` does not begin with file://, s3://, gs://, az://, nats:// or tls://")
}

/// Opens the registry. `broker` says how to reach the broker, for credentials and for a deployment that needs no other store.
pub async fn open(location: &Location, broker: &Options) -> Result<Registry> {
    let url = location.url.trim();
    let on_broker = |options: Options| async move {
        sluice_broker::open_store(&options).await.map_err(|error| match error {
            BrokerError::Unusable(reason) => RegistryError::Unusable(format!(
                "{reason}: name a registry, such as file:///srv/sluice or s3://bucket/sluice"
            )),
            other => StoreError::Other { what: "cannot open the registry".into(), source: other.into() }.into(),
        })
    };
    let store: Arc<dyn Store> = match url.split_once("://").map_or("", |(scheme, _)| scheme) {
        "" if url.is_empty() => on_broker(broker.clone()).await?,
        "nats" | "tls" => on_broker(Options { url: url.to_owned(), ..broker.clone() }).await?,
        "file" | "s3" | "gs" | "az" => Arc::new(Objects::open(location)?),
        _ => return Err(RegistryError::Unusable(unknown(&location.shown_url()))),
    };
    Ok(Registry::new(store))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_password_of_a_url_is_shown() {
        let urls = [
            "http://user:hunter2@host/models",
            "nat://user:hunter2@host",
            "user:hunter2@host",
            "s3://key:hunter2@bucket:x/folder",
        ];
        for url in urls {
            let location = Location::new(url);
            let error = open(&location, &Options::default()).await.err().expect("it cannot be opened");
            let told = format!("{error} {error:?} {:?}", location.fault());
            assert!(told.contains("registry") && !told.contains("hunter2"), "{told}");
        }
        let opened =
            open(&Location::new("s3://key:hunter2@bucket/folder"), &Options::default()).await.expect("a client");
        assert_eq!(opened.url(), "s3://key:***@bucket/folder");
        let location = Location {
            url: "gs://bucket/folder".into(),
            options: [("google_service_account_key".to_owned(), "hunter2".to_owned())].into(),
        };
        let error = open(&location, &Options::default()).await.err().expect("it is no key");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}
