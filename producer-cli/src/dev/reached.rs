//! How the parts of a deployment reach the broker and the registry: what the command line says is handed on to all of them.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value};
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
        for (key, value) in self.by.as_ref().map(said).transpose()?.unwrap_or_default() {
            // As JSON has texts and numbers, TOML has them.
            text += &format!("{key} = {value}\n");
        }
        Ok(text + &format!("[registry]\nurl = {}\n", quoted(&self.registry)))
    }

    /// For the command line; what is `None` must not be there, whatever the surroundings say.
    pub fn environment(&self) -> Result<Vec<(&'static str, Option<String>)>> {
        let both = [("SLUICE_BROKER", &self.broker), ("SLUICE_REGISTRY", &self.registry)];
        let both = both.map(|(name, value)| (name, Some(value.clone())));
        let said = self.by.as_ref().map(said).transpose()?.unwrap_or_default();
        // What has no variable stands in the file alone.
        let further = ["management", "credentials", "tls_ca"].into_iter().zip(VARIABLES);
        let further = further.map(|(key, name)| (name, said.get(key).and_then(Value::as_str).map(str::to_owned)));
        Ok(both.into_iter().chain(further).collect())
    }
}

const VARIABLES: [&str; 3] = ["SLUICE_MANAGEMENT", "SLUICE_CREDENTIALS", "SLUICE_TLS_CA"];

/// All that is said of a broker but its URL, by key.
fn said(broker: &Options) -> Result<Map<String, Value>> {
    let mut broker = broker.clone();
    let Options { credentials, tls_ca, tls_certificate, tls_key, .. } = &mut broker;
    for file in [credentials, tls_ca, tls_certificate, tls_key].into_iter().flatten() {
        // Those who get it run elsewhere.
        *file = std::path::absolute(&*file)?;
    }
    let Value::Object(mut said) = serde_json::to_value(broker)? else { return Ok(Map::new()) };
    // Each program has a name of its own.
    said.retain(|key, value| !["url", "name"].contains(&key.as_str()) && !value.is_null());
    Ok(said)
}

/// A text in TOML, which quotes and escapes as JSON does.
pub fn quoted(text: impl AsRef<Path>) -> String {
    Value::from(text.as_ref().to_string_lossy()).to_string()
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
            tls_certificate: Some("/etc/own.pem".into()),
            tls_key: Some("/etc/own.key".into()),
            results_kept: Some(std::time::Duration::from_secs(7200)),
            largest_message: 1 << 20,
            ..Options::new("amqps://a:b@host/", "test")
        };
        let mut reached = Reached { broker: broker.url.clone(), registry: "file:///models".into(), by: Some(broker) };
        assert_eq!(
            reached.sections().expect("paths"),
            "[broker]\nurl = \"amqps://a:b@host/\"\ncredentials = \"/etc/user.creds\"\nlargest_message = 1048576\n\
             management = \"https://host:15671\"\nresults_kept = \"2h\"\ntls_ca = \"/etc/\\\"ca\\\".pem\"\n\
             tls_certificate = \"/etc/own.pem\"\ntls_key = \"/etc/own.key\"\n[registry]\nurl = \"file:///models\"\n"
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
