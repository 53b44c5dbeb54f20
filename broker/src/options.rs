//! How to reach a broker: the `[broker]` section of every binary's configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_core::settings::Settings;
use sluice_core::{BrokerError, JobId};
use tracing::warn;
use url::Url;

/// How to reach a broker.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `nats://user:password@host:port` or `tls://...` for NATS, `amqp://user:password@host:port/vhost` or `amqps://...` for
    /// RabbitMQ; several, separated by commas, for a cluster.
    pub url: String,
    /// The name that this client has in the broker's lists.
    pub name: String,
    /// A NATS credentials file (`.creds`).
    pub credentials: Option<PathBuf>,
    /// A file of root certificates, beside those of the system.
    pub tls_ca: Option<PathBuf>,
    /// This client's certificate chain.
    pub tls_certificate: Option<PathBuf>,
    /// This client's private key.
    pub tls_key: Option<PathBuf>,
    /// This and the next seven are the deployment's ([`Settings`]): what is said here counts if this program is the first to come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<usize>,
    /// See [`Settings::hold_time`].
    #[serde(with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    pub hold_time: Option<Duration>,
    /// See [`Settings::dedupe_window`].
    #[serde(with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    pub dedupe_window: Option<Duration>,
    /// See [`Settings::results_kept`].
    #[serde(with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    pub results_kept: Option<Duration>,
    /// See [`Settings::dead_letters_kept`].
    #[serde(with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    pub dead_letters_kept: Option<Duration>,
    /// See [`Settings::results_mib`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub results_mib: Option<u64>,
    /// See [`Settings::dead_letters_mib`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letters_mib: Option<u64>,
    /// See [`Settings::queue_mib`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_mib: Option<u64>,
    /// RabbitMQ's management API, `http://user:password@host:15672`: AMQP alone can neither list queues nor set their lengths.
    /// By default it is looked for at the broker's host with its credentials, on port 15672 (`amqps`: https on 15671).
    pub management: Option<String>,
    /// The largest body in bytes that RabbitMQ takes (`max_message_size`): it tells nobody, and closes the channel.
    pub largest_message: u64,
    /// What to do while nothing answers at the URL.
    #[serde(skip)]
    pub patience: Patience,
}

/// What to do while nothing answers at the URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Give up after this time: for commands.
    GiveUpAfter(Duration),
    /// Keep trying, and say so in the log: for services, which may start before their broker.
    Wait,
}

impl Default for Patience {
    fn default() -> Self {
        // Commands promise an answer within 3 s.
        Patience::GiveUpAfter(Duration::from_millis(2500))
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".into(),
            name: "sluice".into(),
            credentials: None,
            tls_ca: None,
            tls_certificate: None,
            tls_key: None,
            replicas: None,
            hold_time: None,
            dedupe_window: None,
            results_kept: None,
            dead_letters_kept: None,
            results_mib: None,
            dead_letters_mib: None,
            queue_mib: None,
            management: None,
            largest_message: 8 * 1024 * 1024,
            patience: Patience::default(),
        }
    }
}

impl Options {
    /// Options with all defaults but the URL and the client's name.
    pub fn new(url: impl Into<String>, name: impl Into<String>) -> Self {
        Self { url: url.into(), name: name.into(), ..Self::default() }
    }

    /// Each URL of a comma-separated list, parsed.
    pub(crate) fn urls(&self) -> Vec<Result<Url, url::ParseError>> {
        self.url.split(',').map(|url| Url::parse(url.trim())).collect()
    }

    /// The user that the URL names beside a password, if it can be the owner of a job.
    pub(crate) fn user(&self) -> Option<String> {
        let named = self.urls().into_iter().flatten().find(|url| url.password().is_some())?;
        let user = percent_encoding::percent_decode_str(named.username()).decode_utf8().ok()?;
        JobId::of(Some(&user), "-").is_ok().then(|| user.into_owned())
    }

    /// The deployment's settings where nobody stored any: this program's own over these.
    pub(crate) fn settings(&self, over: Settings) -> Settings {
        Settings {
            replicas: self.replicas.unwrap_or(over.replicas),
            hold_time: self.hold_time.unwrap_or(over.hold_time),
            dedupe_window: self.dedupe_window.unwrap_or(over.dedupe_window),
            results_kept: self.results_kept.unwrap_or(over.results_kept),
            dead_letters_kept: self.dead_letters_kept.unwrap_or(over.dead_letters_kept),
            results_mib: self.results_mib.unwrap_or(over.results_mib),
            dead_letters_mib: self.dead_letters_mib.unwrap_or(over.dead_letters_mib),
            queue_mib: self.queue_mib.unwrap_or(over.queue_mib),
        }
    }

    /// Whether every broker of `url` is one that this URL names, whatever users they name: what is said of these, such as credentials,
    /// holds there too.
    pub fn names(&self, url: &str) -> bool {
        let own = self.urls();
        let is_own = |other: &Url| own.iter().flatten().any(|own| address(own) == address(other));
        Options::new(url, "").urls().iter().all(|url| url.as_ref().is_ok_and(is_own))
    }

    /// What cannot be right whatever the broker says, each with its key, for a check of the configuration.
    pub fn faults(&self) -> Vec<String> {
        const SCHEMES: [(&str, &str); 4] = [("nats", "nats"), ("tls", "nats"), ("amqp", "amqp"), ("amqps", "amqp")];
        let mut faults = Vec::new();
        let mut protocols = Vec::new();
        for url in self.urls() {
            let scheme = url.as_ref().map_or("", Url::scheme);
            match SCHEMES.iter().find(|(known, _)| *known == scheme) {
                Some((_, protocol)) => protocols.push(*protocol),
                None => faults.push(format!(
                    "`broker.url` is `{}`: it does not begin with nats://, tls://, amqp:// or amqps://",
                    self.shown_url()
                )),
            }
        }
        if protocols.windows(2).any(|pair| pair[0] != pair[1]) {
            faults.push("`broker.url` names brokers of two kinds: several URLs are the nodes of one".into());
        }
        let files = [
            ("credentials", &self.credentials),
            ("tls_ca", &self.tls_ca),
            ("tls_certificate", &self.tls_certificate),
            ("tls_key", &self.tls_key),
        ];
        for (key, file) in files {
            if let Some(file) = file
                && let Err(error) = std::fs::File::open(file)
            {
                faults.push(format!("`broker.{key}` is `{}`, which cannot be read: {error}", file.display()));
            }
        }
        if self.tls_certificate.is_some() != self.tls_key.is_some() {
            faults.push("`broker.tls_certificate` and `broker.tls_key` are of use only together".into());
        }
        let management = self.management.as_deref().map(Url::parse);
        if management.is_some_and(|url| url.map_or(true, |url| !matches!(url.scheme(), "http" | "https"))) {
            faults.push("`broker.management` is not a URL that begins with http:// or https://".into());
        }
        let settings = self.settings(Settings::default()).faults();
        faults.extend(settings.into_iter().map(|fault| format!("`[broker]`: {fault}")));
        faults
    }

    /// The URL for logs and errors: passwords and tokens are left out.
    pub fn shown_url(&self) -> String {
        sluice_core::shown::url(&self.url)
    }
}

/// Where a broker is, and whether by TLS.
fn address(url: &Url) -> (&str, Option<&str>, Option<u16>) {
    let usual = match url.scheme() {
        "nats" | "tls" => Some(4222),
        "amqp" => Some(5672),
        "amqps" => Some(5671),
        _ => None,
    };
    (url.scheme(), url.host_str(), url.port().or(usual))
}

/// Who shows only errors still shows what goes by this name.
pub(crate) const TOLD: &str = "sluice::settings";

/// Warns where this program's own configuration says otherwise than the deployment's settings, which hold. `not_here` are those that
/// this broker has not.
pub(crate) fn tell(options: &Options, stored: &Settings, not_here: &[&str]) {
    for (key, own, stored) in options.settings(stored.clone()).differences(stored) {
        if !not_here.contains(&key) {
            warn!(
                target: TOLD,
                "`broker.{key}` is {own} in this program's configuration; the deployment has {stored}, which holds: \
                 `sluice settings set {key}={}` changes it", own.replace(' ', "")
            );
        }
    }
}

/// The deployment's settings cannot be read, and nobody guesses.
pub(crate) fn unreadable(place: &str, faults: &str) -> BrokerError {
    BrokerError::Unusable(format!(
        "the deployment's settings ({place}) cannot be read: {faults}. If it is removed, the next program to come stores them anew"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_right_is_told_with_its_key() {
        let faults = |options: Options| options.faults().join("; ");
        for good in ["nats://a:1", "tls://a,nats://b", "amqps://u:p@a/v"] {
            assert_eq!(faults(Options::new(good, "test")), "", "{good}");
        }
        for bad in ["xyz://1", "localhost:4222", "", "nats://a,", "nats://a,amqp://b"] {
            assert!(faults(Options::new(bad, "test")).contains("`broker.url`"), "{bad}");
        }
        let options = Options { tls_ca: Some("/nowhere/ca.pem".into()), ..Options::default() };
        assert!(faults(options).contains("`broker.tls_ca` is `/nowhere/ca.pem`, which cannot be read"));
        let options = Options { tls_key: Some("/dev/null".into()), ..Options::default() };
        assert!(faults(options).contains("only together"));
        let options = Options { management: Some("localhost:15672".into()), ..Options::default() };
        assert!(faults(options).contains("`broker.management`"));
    }

    #[test]
    fn one_broker_has_several_spellings() {
        let configured = Options::new("nats://a,nats://user:password@b:4222", "test");
        for same in ["nats://a:4222", "nats://me:mine@b", "nats://b, nats://a/"] {
            assert!(configured.names(same), "{same}");
        }
        for another in ["nats://c", "nats://a,nats://c", "tls://a", "nats://a:4223", "amqp://a", "", "a"] {
            assert!(!configured.names(another), "{another}");
        }
        assert!(Options::new("amqp://a:b@host:5672/%2f", "test").names("amqp://host/staging"));
    }
}
