//! A model's queues: one per lane, one for retries whose delay is over, one per delay, and its dead letters; and the
//! exchanges that all models share.

use std::time::{Duration, Instant};

use lapin::Channel;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};

use sluice_core::broker::{BrokerError, Limited, QueueLimits, Result};
use sluice_core::{Lane, ModelName};

use super::connect::Link;
use super::error::{is_locked, is_mismatch, is_not_found, is_starting, other};
use super::{manage, names, settings};

/// RabbitMQ 4 drops a message that was delivered more often than its queue's limit, 20 if none is set. The worker
/// decides when a request has failed too often.
const DELIVERY_LIMIT: i64 = 1_000_000;
/// A broker that has just started serves its queues a little later.
const STARTING: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(250);

pub(super) async fn ensure(link: &Link, model: &ModelName, limits: &QueueLimits) -> Result<Limited> {
    for (name, _) in names::EXCHANGES {
        // Somebody may have removed it since it was seen.
        link.forget(name);
        ensure_exchange(link, name).await?;
    }
    match make(link, model).await {
        // With the production files a worker uses queues, and who manages makes them.
        Err(BrokerError::Denied(refusal)) => look_for(link, model, &refusal).await?,
        made => made?,
    }
    manage::limit(link, model, limits).await
}

async fn make(link: &Link, model: &ModelName) -> Result<()> {
    let settings = settings::current(link).await?;
    for lane in Lane::ALL {
        let reject = ("x-overflow", AMQPValue::LongString("reject-publish".into()));
        declare(link, names::WORK, &names::lane_queue(model, lane), quorum(&[reject])).await?;
    }
    declare(link, names::RETRY, &names::retried_queue(model), quorum(&[])).await?;
    declare(link, names::DEAD, &names::dead_queue(model), stream(settings.dead_letters_kept)).await
}

/// For whoever may not make queues: whether all are there.
async fn look_for(link: &Link, model: &ModelName, refusal: &str) -> Result<()> {
    let lanes = Lane::ALL.iter().map(|lane| names::lane_queue(model, *lane));
    for queue in lanes.chain([names::retried_queue(model), names::dead_queue(model)]) {
        if waiting(link, &queue).await?.is_none() {
            return Err(BrokerError::Denied(format!(
                "there is no queue `{queue}`, and this user may not make it: `sluice model start {model}` by the user who manages \
                 does ({refusal})"
            )));
        }
    }
    Ok(())
}

/// An exchange, for whoever comes first. Looked for before it is made: only making needs the permission to configure.
pub(super) async fn ensure_exchange(link: &Link, name: &str) -> Result<()> {
    if link.has_seen(name) {
        return Ok(());
    }
    let what = format!("declaring exchange `{name}`");
    // Of many that come at once, one declares it.
    let _declaring = link.standing.in_time(&what, link.declaring.lock()).await?;
    if link.has_seen(name) {
        return Ok(());
    }
    let kind = names::kind_of(name);
    let declare = async |passive: bool| {
        let channel = link.channel().await?;
        let options = ExchangeDeclareOptions { durable: true, passive, ..Default::default() };
        let declared = channel.exchange_declare(name.into(), kind.clone(), options, FieldTable::default());
        match link.standing.in_time(&what, declared).await? {
            Ok(()) => Ok(true),
            Err(error) if passive && is_not_found(&error) => Ok(false),
            Err(error) => Err(other(&what, error)),
        }
    };
    if !declare(true).await? {
        declare(false).await?;
    }
    link.note_seen(name);
    Ok(())
}

/// A durable queue that its name leads to.
pub(super) async fn declare(link: &Link, exchange: &str, queue: &str, arguments: FieldTable) -> Result<()> {
    let deadline = Instant::now() + STARTING;
    loop {
        // A channel of its own: a refusal closes it.
        let channel = link.channel().await?;
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        let what = format!("declaring queue `{queue}`");
        match link.standing.in_time(&what, channel.queue_declare(queue.into(), options, arguments.clone())).await? {
            Ok(_) => return bind(link, &channel, exchange, queue, queue).await,
            Err(error) if is_starting(&error) && Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
            // It was made under other settings, and its arguments stay: policies change what can be changed.
            Err(error) if is_mismatch(&error) && error.to_string().contains("x-max-age") => {
                return bind(link, &link.channel().await?, exchange, queue, queue).await;
            }
            Err(error) if is_mismatch(&error) => {
                return Err(BrokerError::Unusable(format!(
                    "queue `{queue}` is there with other arguments; remove it or rename the model: {error}"
                )));
            }
            Err(error) if is_locked(&error) => {
                return Err(BrokerError::Unusable(format!(
                    "queue `{queue}` belongs to somebody's connection: {error}"
                )));
            }
            Err(error) => return Err(other(what, error)),
        }
    }
}

pub(super) async fn bind(link: &Link, channel: &Channel, exchange: &str, queue: &str, key: &str) -> Result<()> {
    let bound = channel.queue_bind(
        queue.into(),
        exchange.into(),
        key.into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    link.standing.within(format!("binding queue `{queue}` to `{exchange}`"), bound).await
}

fn quorum(more: &[(&str, AMQPValue)]) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    for (name, value) in more {
        arguments.insert((*name).into(), value.clone());
    }
    arguments
}

/// Where retries wait out a delay. At-least-once: a retry is not lost on its way back.
pub(super) fn retry(model: &ModelName, delay: Duration) -> FieldTable {
    let text = |value: &str| AMQPValue::LongString(value.into());
    quorum(&[
        ("x-message-ttl", AMQPValue::LongLongInt(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX))),
        ("x-dead-letter-exchange", text(names::RETRY)),
        ("x-dead-letter-routing-key", text(&names::retried_queue(model))),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ])
}

/// A queue that can be read again and again.
pub(super) fn forever() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    arguments
}

/// One that forgets what is old.
pub(super) fn stream(kept: Duration) -> FieldTable {
    let mut arguments = forever();
    arguments.insert("x-max-age".into(), AMQPValue::LongString(names::age(kept).into()));
    arguments
}

/// Deletes the model's queues, and those of its retries as far as the broker lists them.
pub(super) async fn remove(link: &Link, model: &ModelName) -> Result<()> {
    let mut queues: Vec<String> = Lane::ALL.iter().map(|lane| names::lane_queue(model, *lane)).collect();
    queues.push(names::retried_queue(model));
    if let Ok(listed) = manage::queues(link).await {
        queues.extend(listed.into_iter().filter(|queue| names::is_of_model(queue, model)));
    }
    let channel = link.channel().await?;
    for queue in queues {
        // Deleting what is not there is fine.
        let deleted = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
        link.standing.within(format!("deleting queue `{queue}`"), deleted).await?;
    }
    Ok(())
}

pub(super) async fn list(link: &Link) -> Result<Vec<ModelName>> {
    let mut models: Vec<_> =
        manage::queues(link).await?.iter().filter_map(|queue| names::model_of_queue(queue)).collect();
    models.sort();
    Ok(models)
}

/// How many messages wait in a queue; `None` if there is no such queue.
pub(super) async fn waiting(link: &Link, queue: &str) -> Result<Option<u64>> {
    // A channel of its own: asking for what is not there closes it.
    let channel = link.channel().await?;
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let what = format!("looking at queue `{queue}`");
    let counted = match link
        .standing
        .in_time(&what, channel.queue_declare(queue.into(), options, FieldTable::default()))
        .await?
    {
        Ok(found) => Ok(Some(u64::from(found.message_count()))),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(other(what, error)),
    };
    let _ = channel.close(200, "done".into()).await;
    counted
}
