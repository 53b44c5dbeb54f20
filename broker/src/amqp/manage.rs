//! What AMQP cannot say: RabbitMQ's management API, if `broker.management` names it.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use sluice_core::ModelName;
use sluice_core::broker::{BrokerError, QueueLimits, Result};

use super::connect::Link;

const PATIENCE: Duration = Duration::from_secs(5);

/// Sets the length of each of a model's lanes by a policy, which can be changed in place.
pub(super) async fn limit(link: &Link, model: &ModelName, limits: &QueueLimits) -> Result<()> {
    let policy = json!({
        "pattern": format!("^infer\\.{model}\\.(high|normal|low)$"),
        "apply-to": "queues",
        // Above those that an operator has for all models.
        "priority": 10,
        "definition": { "max-length": limits.length },
    });
    let (client, base, vhost) = api(link)?;
    let url = format!("{base}/api/policies/{vhost}/sluice.{model}");
    let answer = client.put(url).json(&policy).send().await;
    answer.and_then(reqwest::Response::error_for_status).map_err(|error| failed("setting a queue's length", error))?;
    Ok(())
}

/// The names of all queues.
pub(super) async fn queues(link: &Link) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Queue {
        name: String,
    }
    let (client, base, vhost) = api(link)?;
    let url = format!("{base}/api/queues/{vhost}?columns=name&disable_stats=true");
    let listed = async { client.get(url).send().await?.error_for_status()?.json::<Vec<Queue>>().await };
    let listed = listed.await.map_err(|error| failed("listing queues", error))?;
    Ok(listed.into_iter().map(|queue| queue.name).collect())
}

/// A client, the API's address with the credentials, and the virtual host.
fn api(link: &Link) -> Result<(reqwest::Client, String, String)> {
    let Some(base) = &link.options.management else {
        let text = "RabbitMQ's management API is needed for this: set `broker.management` to its URL, such as http://user:password@host:15672";
        return Err(BrokerError::Unusable(text.into()));
    };
    let client = reqwest::Client::builder().timeout(PATIENCE).build().map_err(|error| failed("preparing", error))?;
    let path = link.options.urls().into_iter().find_map(|url| url.ok()).map(|url| url.path().to_owned());
    let vhost = match path.as_deref().map(|path| path.trim_start_matches('/')) {
        None | Some("") => "%2f".to_owned(),
        Some(vhost) => vhost.to_owned(),
    };
    Ok((client, base.trim_end_matches('/').to_owned(), vhost))
}

fn failed(what: &str, error: reqwest::Error) -> BrokerError {
    // The URL may hold a password.
    let error = error.without_url();
    if error.status().is_some_and(|status| status == 401 || status == 403) {
        return BrokerError::Denied(format!("{what}: RabbitMQ's management API answers {error}"));
    }
    BrokerError::Other { what: format!("{what} by RabbitMQ's management API"), source: error.into() }
}
