//! How the parts of a deployment reach the broker and the registry: what the command line says is handed on to all of them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use sluice_broker::Options;

/// How the parts of the deployment reach the broker and the registry.
pub struct Reached {
    pub broker: String,
    pub registry: String,
    /// What the command line says of a broker that is not this deployment's own.
    pub by: Option<Options>,
}

impl Reached {
    /// For services, which have their configuration in a file.
    pub fn sections(&self) -> Result<String> {
        let mut text = format!("[broker]\nurl = {}\n", quoted(&self.broker));
        for (key, _, value) in self.further()? {
            if let Some(value) = value {
                text += &format!("{key} = {}\n", quoted(&value));
            }
        }
        Ok(text + &format!("[registry]\nurl = {}\n", quoted(&self.registry)))
    }

    /// For the command line; what is `None` must not be there, whatever the surroundings say.
    pub fn environment(&self) -> Result<Vec<(&'static str, Option<String>)>> {
        let both = [("SLUICE_BROKER", &self.broker), ("SLUICE_REGISTRY", &self.registry)];
        let both = both.map(|(name, value)| (name, Some(value.clone())));
        Ok(both.into_iter().chain(self.further()?.into_iter().map(|(_, name, value)| (name, value))).collect())
    }

    /// What else there is to say of the broker: the key, the variable and the value of each.
    fn further(&self) -> Result<[(&'static str, &'static str, Option<String>); 3]> {
        // Those who get it run elsewhere.
        let file = |file: Option<&PathBuf>| -> Result<Option<String>> {
            Ok(file.map(std::path::absolute).transpose()?.map(|file| file.display().to_string()))
        };
        let management = self.by.as_ref().and_then(|broker| broker.management.clone());
        Ok([
            ("management", "SLUICE_MANAGEMENT", management),
            (
                "credentials",
                "SLUICE_CREDENTIALS",
                file(self.by.as_ref().and_then(|broker| broker.credentials.as_ref()))?,
            ),
            ("tls_ca", "SLUICE_TLS_CA", file(self.by.as_ref().and_then(|broker| broker.tls_ca.as_ref()))?),
        ])
    }
}

/// A text in TOML, which quotes and escapes as JSON does.
pub fn quoted(text: impl AsRef<Path>) -> String {
    serde_json::Value::from(text.as_ref().to_string_lossy()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_said_of_a_broker_is_handed_on_but_not_to_one_of_its_own() {
        let broker = Options {
            management: Some("https://host:15671".into()),
            credentials: Some("/etc/user.creds".into()),
            tls_ca: Some("/etc/\"ca\".pem".into()),
            ..Options::new("amqps://a:b@host/", "test")
        };
        let mut reached = Reached { broker: broker.url.clone(), registry: "file:///models".into(), by: Some(broker) };
        assert_eq!(
            reached.sections().expect("paths"),
            "[broker]\nurl = \"amqps://a:b@host/\"\nmanagement = \"https://host:15671\"\ncredentials = \"/etc/user.creds\"\n\
             tls_ca = \"/etc/\\\"ca\\\".pem\"\n[registry]\nurl = \"file:///models\"\n"
        );
        let of = |reached: &Reached, variable: &str| {
            let environment = reached.environment().expect("paths");
            environment.into_iter().find(|(name, _)| *name == variable).and_then(|(_, value)| value)
        };
        assert_eq!(of(&reached, "SLUICE_TLS_CA").as_deref(), Some("/etc/\"ca\".pem"));
        reached.by = None;
        assert_eq!(of(&reached, "SLUICE_TLS_CA"), None);
        assert_eq!(of(&reached, "SLUICE_BROKER").as_deref(), Some("amqps://a:b@host/"));
        assert!(!reached.sections().expect("paths").contains("tls_ca"));
    }
}
