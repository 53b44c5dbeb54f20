//! The names of exchanges, queues and routing keys. A queue's routing key is its own name.
//!
//! What one role may write and another may not has an exchange of its own: RabbitMQ's topic permissions hold no sender, since they
//! look at the routing key of the publish alone, not at what its header `CC` adds or what comes by another exchange.

use std::str::FromStr;
use std::time::Duration;

use lapin::ExchangeKind;

use sluice_core::report::REPORTS as REPORTS_TOPIC;
use sluice_core::scaler::{SCALER as SCALER_TOPIC, SCALER_ORDERS};
use sluice_core::{JobId, Lane, ModelName};

/// Requests, by the name of their queue.
pub(super) const WORK: &str = "sluice.infer";
/// Requests that workers send round again. Not [`WORK`]: who serves may then be denied to submit.
pub(super) const RETRY: &str = "sluice.retry";
/// Requests that were given up.
pub(super) const DEAD: &str = "sluice.dead";
/// Durable results, by job.
pub(super) const RESULTS: &str = "sluice.results";
/// Answers to live callers.
pub(super) const INBOXES: &str = "sluice.inbox";
/// Answers to those who ask signals: whoever answers these need not be able to answer requests.
pub(super) const ANSWERS: &str = "sluice.answers";
/// Tokens of offices.
pub(super) const LEAD: &str = "sluice.leader";
/// Questions about models, which producers ask.
const DESCRIBE: &str = "sluice.describe";
/// What hosts say of themselves.
const REPORTS: &str = "sluice.reports";
/// What the scaler gives hosts to run.
const ASSIGN: &str = "sluice.assign";
/// What the scaler is asked.
const SCALER: &str = "sluice.scaler";
/// What the scaler is told to do.
const ORDERS: &str = "sluice.orders";
/// All other signals.
const CONTROL: &str = "sluice.control";
/// The deployment's settings: an exchange and a stream.
pub(super) const SETTINGS: &str = "sluice.settings";
/// Every inbox begins so: nobody may have an answer sent elsewhere.
const INBOX_PREFIX: &str = "inbox.";

/// All exchanges that a queue's first maker makes, and their kinds. Signals and inboxes go by topic: only for these does RabbitMQ look
/// at what is bound to them, key by key.
pub(super) const EXCHANGES: [(&str, ExchangeKind); 13] = [
    (WORK, ExchangeKind::Direct),
    (RETRY, ExchangeKind::Direct),
    (DEAD, ExchangeKind::Direct),
    (RESULTS, ExchangeKind::Direct),
    (INBOXES, ExchangeKind::Topic),
    (ANSWERS, ExchangeKind::Topic),
    (LEAD, ExchangeKind::Direct),
    (DESCRIBE, ExchangeKind::Topic),
    (REPORTS, ExchangeKind::Topic),
    (ASSIGN, ExchangeKind::Topic),
    (SCALER, ExchangeKind::Topic),
    (ORDERS, ExchangeKind::Topic),
    (CONTROL, ExchangeKind::Topic),
];

pub(super) fn kind_of(exchange: &str) -> ExchangeKind {
    let known = EXCHANGES.iter().find(|(name, _)| *name == exchange);
    known.map_or(ExchangeKind::Direct, |(_, kind)| kind.clone())
}

/// Where a signal goes.
pub(super) fn exchange_of(topic: &str) -> &'static str {
    match topic {
        REPORTS_TOPIC => REPORTS,
        SCALER_TOPIC => SCALER,
        SCALER_ORDERS => ORDERS,
        _ if topic.starts_with("describe.") => DESCRIBE,
        _ if topic.starts_with("assign.") => ASSIGN,
        _ => CONTROL,
    }
}

/// Whether it is another question each time if somebody listens there.
pub(super) fn is_for_signals(exchange: &str) -> bool {
    matches!(exchange, DESCRIBE | REPORTS | ASSIGN | SCALER | ORDERS | CONTROL)
}

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

/// An address of this user: a permission can keep others from listening there, and nobody can guess it.
pub(super) fn new_inbox(user: Option<&str>) -> String {
    let own = user.map(|user| format!("{user}.")).unwrap_or_default();
    format!("{INBOX_PREFIX}{own}{}", uuid::Uuid::new_v4().simple())
}

/// Whether somebody who asks may be answered there.
pub(super) fn is_inbox(address: &str) -> bool {
    address.starts_with(INBOX_PREFIX)
        && !address.contains(|character: char| matches!(character, '*' | '#') || !character.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use sluice_core::assignment::assignment_topic;
    use sluice_core::names::describe_topic;
    use sluice_core::report::{REPORT_NOW, REVISED};

    use super::*;

    #[test]
    fn what_one_role_says_and_another_may_not_has_an_exchange_of_its_own() {
        let model = "digits".parse().expect("a name");
        let each = [
            (describe_topic(&model), "sluice.describe"),
            (REPORTS_TOPIC.to_owned(), "sluice.reports"),
            (assignment_topic("host"), "sluice.assign"),
            (SCALER_TOPIC.to_owned(), "sluice.scaler"),
            (SCALER_ORDERS.to_owned(), "sluice.orders"),
            (REVISED.to_owned(), "sluice.control"),
            (REPORT_NOW.to_owned(), "sluice.control"),
        ];
        for (topic, exchange) in each {
            assert_eq!(exchange_of(&topic), exchange, "{topic}");
            assert!(is_for_signals(exchange) && kind_of(exchange) == ExchangeKind::Topic, "{exchange}");
        }
    }

    #[test]
    fn an_answer_goes_to_an_inbox_or_nowhere() {
        assert!(is_inbox("inbox.b5c2"), "one that a producer chose");
        assert!(is_inbox(&new_inbox(None)));
        let inbox = new_inbox(Some("alice"));
        assert!(is_inbox(&inbox) && inbox.starts_with("inbox.alice."), "{inbox}");
        let elsewhere = [
            "",
            "amq.gen-x",
            "amq.rabbitmq.reply-to.g2dk.x",
            "results.j",
            "inbox.*",
            "inbox.#",
            "inbox.a b",
            "inbox.\n",
        ];
        for address in elsewhere {
            assert!(!is_inbox(address), "{address}");
        }
    }
}
