//! The names of exchanges, queues and routing keys. A queue's routing key is its own name.

use std::str::FromStr;
use std::time::Duration;

use sluice_core::{JobId, Lane, ModelName};

/// Requests, by the name of their queue.
pub(super) const WORK: &str = "sluice.infer";
/// Requests that workers send round again. Not [`WORK`]: who serves may then be denied to submit.
pub(super) const RETRY: &str = "sluice.retry";
/// Requests that were given up.
pub(super) const DEAD: &str = "sluice.dead";
/// Durable results, by job.
pub(super) const RESULTS: &str = "sluice.results";
/// Answers to live callers, and to those who ask signals.
pub(super) const INBOXES: &str = "sluice.inbox";
/// Tokens of offices.
pub(super) const LEAD: &str = "sluice.leader";
/// Signals, by topic.
pub(super) const CONTROL: &str = "sluice.control";
/// The deployment's settings: an exchange and a stream.
pub(super) const SETTINGS: &str = "sluice.settings";
/// Every inbox begins so: a request may not send its answer elsewhere.
pub(super) const INBOX_PREFIX: &str = "inbox.";

pub(super) fn lane_queue(model: &ModelName, lane: Lane) -> String {
    ["infer.", model.as_str(), ".", lane.as_str()].concat()
}

/// Where retries come when their delay is over; unbounded, since what waits there was accepted long ago.
pub(super) fn retried_queue(model: &ModelName) -> String {
    format!("infer.{model}.retried")
}

/// Where retries wait: one queue for each delay, since a message that waits longer holds up those behind it.
pub(super) fn retry_queue(model: &ModelName, delay: Duration) -> String {
    format!("infer.{model}.retry.{}", delay.as_millis())
}

/// All queues that requests of a model may stand in.
pub(super) fn is_of_model(queue: &str, model: &ModelName) -> bool {
    queue
        .strip_prefix("infer.")
        .and_then(|rest| rest.strip_prefix(model.as_str()))
        .is_some_and(|rest| rest.starts_with('.'))
}

pub(super) fn model_of_queue(queue: &str) -> Option<ModelName> {
    let model = queue.strip_prefix("infer.")?.strip_suffix(".normal")?;
    ModelName::from_str(model).ok()
}

pub(super) fn dead_queue(model: &ModelName) -> String {
    format!("dead.{model}")
}

pub(super) fn results_queue(job: &JobId) -> String {
    format!("results.{job}")
}

pub(super) fn leader_queue(office: &str) -> String {
    format!("sluice.leader.{office}")
}

/// A time as `x-max-age` and `max-age` have it.
pub(super) fn age(kept: Duration) -> String {
    format!("{}s", kept.as_secs().max(1))
}

pub(super) fn new_inbox() -> String {
    format!("{INBOX_PREFIX}{}", uuid::Uuid::new_v4().simple())
}
