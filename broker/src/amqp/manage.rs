//! What AMQP cannot say: RabbitMQ's management API.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use sluice_core::ModelName;
use sluice_core::broker::{BrokerError, Limited, QueueLimits, Result, Stored};

use super::connect::Link;
use super::error::told;
use super::settings;

/// Commands promise an answer within 3 s.
const PATIENCE: Duration = Duration::from_millis(2500);

/// Sets the length of each of a model's lanes by a policy, which can be changed in place.
pub(super) async fn limit(link: &Link, model: &ModelName, limits: &QueueLimits) -> Result<Limited> {
    // As the length, the bytes are of each lane.
    let bytes = settings::current(link).await?.queue_mib << 20;
    let policy = json!({
        "pattern": format!("^infer\\.{model}\\.(high|normal|low)$"),
        "apply-to": "queues",
        // Above those that an operator has for all models.
        "priority": 10,
        "definition": { "max-length": limits.length, "max-length-bytes": bytes },
    });
    let api = Api::of(link).await?;
    let url = format!("{}/api/policies/{}/sluice.{model}", api.base, api.vhost);
    let answer = api.client.put(url).json(&policy).send().await;
    match answer.and_then(reqwest::Response::error_for_status) {
        Ok(_) => Ok(Limited::AsAsked),
        Err(error) => {
            let failed = failed("setting a queue's length", error);
            match link.options.management.is_none() || matches!(failed, BrokerError::Denied(_)) {
                true => Ok(Limited::AsConfigured(told(&failed))),
                false => Err(failed),
            }
        }
    }
}

/// The names of all queues.
pub(super) async fn queues(link: &Link) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Queue {
        name: String,
    }
    let api = Api::of(link).await?;
    let url = format!("{}/api/queues/{}?columns=name&disable_stats=true", api.base, api.vhost);
    let listed = async { api.client.get(url).send().await?.error_for_status()?.json::<Vec<Queue>>().await };
    let listed = listed.await.map_err(|error| failed("listing queues", error))?;
    Ok(listed.into_iter().map(|queue| queue.name).collect())
}

/// The streams whose age is bounded: their names and their `x-max-age`.
pub(super) async fn ages(link: &Link) -> Result<Vec<(String, String)>> {
    #[derive(Deserialize)]
    struct Queue {
        name: String,
        arguments: Value,
    }
    let api = Api::of(link).await?;
    let url = format!("{}/api/queues/{}?columns=name,arguments&disable_stats=true", api.base, api.vhost);
    let listed = async { api.client.get(url).send().await?.error_for_status()?.json::<Vec<Queue>>().await };
    let listed = listed.await.map_err(|error| failed("listing queues", error))?;
    let age = |queue: Queue| Some((queue.name, queue.arguments.get("x-max-age")?.as_str()?.to_owned()));
    Ok(listed.into_iter().filter_map(age).collect())
}

/// What Sluice's queues hold, as far as RabbitMQ counts bytes: of streams it does not.
pub(super) async fn stored(link: &Link) -> Result<Vec<Stored>> {
    #[derive(Deserialize)]
    struct Queue {
        name: String,
        message_bytes: Option<u64>,
        effective_policy_definition: Option<Value>,
    }
    let api = Api::of(link).await?;
    let columns = "name,message_bytes,effective_policy_definition";
    let url = format!("{}/api/queues/{}?columns={columns}", api.base, api.vhost);
    let listed = async { api.client.get(url).send().await?.error_for_status()?.json::<Vec<Queue>>().await };
    let listed = listed.await.map_err(|error| failed("listing queues", error))?;
    let stored = |queue: Queue| {
        let limit = queue.effective_policy_definition.and_then(|policy| policy.get("max-length-bytes")?.as_u64());
        let ours = queue.name.starts_with("infer.");
        Some(Stored { bytes: queue.message_bytes.filter(|_| ours)?, name: queue.name, limit })
    };
    Ok(listed.into_iter().filter_map(stored).collect())
}

/// How long streams of a kind, `results` or `dead`, are kept by Sluice's policy, and in how many bytes, if there is one.
pub(super) async fn kept(link: &Link, kind: &str) -> Result<Option<(String, Option<u64>)>> {
    let api = Api::of(link).await?;
    let url = format!("{}/api/policies/{}/sluice.kept.{kind}", api.base, api.vhost);
    let read = async {
        let answer = api.client.get(url).send().await?;
        match answer.status().as_u16() {
            404 => Ok(None),
            _ => answer.error_for_status()?.json::<Value>().await.map(Some),
        }
    };
    let policy = read.await.map_err(|error| failed("reading a policy", error))?;
    let read = |policy: Value| {
        let definition = &policy["definition"];
        Some((definition["max-age"].as_str()?.to_owned(), definition["max-length-bytes"].as_u64()))
    };
    Ok(policy.and_then(read))
}

/// Sets that policy.
pub(super) async fn keep(link: &Link, kind: &str, age: &str, bytes: u64) -> Result<()> {
    let policy = json!({
        "pattern": format!("^{kind}\\."),
        "apply-to": "queues",
        "priority": 10,
        "definition": { "max-age": age, "max-length-bytes": bytes },
    });
    let api = Api::of(link).await?;
    let url = format!("{}/api/policies/{}/sluice.kept.{kind}", api.base, api.vhost);
    let answer = api.client.put(url).json(&policy).send().await;
    answer.and_then(reqwest::Response::error_for_status).map(drop).map_err(|error| failed("setting a policy", error))
}

struct Api {
    client: reqwest::Client,
    /// Its address with the credentials.
    base: String,
    vhost: String,
}

impl Api {
    async fn of(link: &Link) -> Result<Self> {
        let url = link.options.urls().into_iter().find_map(|url| url.ok());
        let url = url.ok_or_else(|| BrokerError::Unusable("the broker's URL cannot be read".into()))?;
        let base = match &link.options.management {
            Some(base) => base.trim_end_matches('/').to_owned(),
            None => usual_place(&url),
        };
        let vhost = match url.path().trim_start_matches('/') {
            "" => "%2f".to_owned(),
            vhost => vhost.to_owned(),
        };
        crate::prepare_tls();
        let mut client = reqwest::Client::builder().timeout(PATIENCE);
        if let Some(file) = &link.options.tls_ca {
            let pem = tokio::fs::read(file).await.map_err(|error| unreadable(file, &error.to_string()))?;
            let roots =
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unreadable(file, &error.to_string()))?;
            client = roots.into_iter().fold(client, reqwest::ClientBuilder::add_root_certificate);
        }
        let client = client.build().map_err(|error| failed("preparing", error))?;
        Ok(Self { client, base, vhost })
    }
}

/// Where the API is unless somebody moved it: at the broker's host, with its credentials, on the usual port.
fn usual_place(broker: &url::Url) -> String {
    let (scheme, port) = if broker.scheme() == "amqps" { ("https", 15671) } else { ("http", 15672) };
    let credentials = match (broker.username(), broker.password()) {
        // What the client falls back to as well.
        ("", _) => "guest:guest".to_owned(),
        (user, password) => format!("{user}:{}", password.unwrap_or_default()),
    };
    format!("{scheme}://{credentials}@{}:{port}", broker.host_str().unwrap_or("localhost"))
}

fn unreadable(file: &std::path::Path, reason: &str) -> BrokerError {
    BrokerError::Unusable(format!("cannot use the root certificates in `{}`: {reason}", file.display()))
}

fn failed(what: &str, error: reqwest::Error) -> BrokerError {
    // The URL may hold a password.
    let error = error.without_url();
    if error.status().is_some_and(|status| status == 401 || status == 403) {
        return BrokerError::Denied(format!("{what}: RabbitMQ's management API answers {error}"));
    }
    let what = format!(
        "{what} by RabbitMQ's management API (`broker.management`, or of a command --management, says where it is)"
    );
    BrokerError::Other { what, source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_management_api_is_looked_for_where_it_usually_is() {
        let place = |url: &str| usual_place(&url.parse().expect("a URL"));
        assert_eq!(place("amqp://worker:s%40cret@rabbit:5672/infer"), "http://worker:s%40cret@rabbit:15672");
        assert_eq!(place("amqps://worker:x@rabbit"), "https://worker:x@rabbit:15671");
        assert_eq!(place("amqp://rabbit/%2f"), "http://guest:guest@rabbit:15672");
    }
}
