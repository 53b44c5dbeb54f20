//! A model's queue: one work-queue stream with a durable pull consumer per lane; and the streams that all
//! models share.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use futures_util::TryStreamExt;

use sluice_core::broker::{BrokerError, Limited, QueueLimits, Result};
use sluice_core::settings::Settings;
use sluice_core::{Lane, ModelName};

use super::error::{api_code, other};
use super::{Nats, lead, names, room, settings};

type PullConsumer = async_nats::jetstream::consumer::Consumer<pull::Config>;

/// Retries that wait for their time count as unacknowledged, so this bounds no host: credit does that.
const MAX_ACK_PENDING: i64 = 1_000_000;
/// Pulls that may wait at once: several per host.
const MAX_WAITING: i64 = 16_384;
/// A waiver that is older than this is forgotten; the request is then charged one attempt more.
const WAIVERS_KEPT: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn ensure(nats: &Nats, model: &ModelName, limits: &QueueLimits) -> Result<Limited> {
    let settings = settings::current(nats).await?;
    ensure_shared(nats, &settings).await?;
    let work = Config {
        name: names::work_stream(model),
        subjects: Lane::ALL.iter().map(|lane| names::work_subject(model, *lane)).collect(),
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        max_messages: i64::try_from(limits.length).unwrap_or(i64::MAX),
        max_message_size: i32::try_from(limits.message_bytes).unwrap_or(i32::MAX),
        duplicate_window: settings.dedupe_window,
        ..durable(&settings)
    };
    let stream = work.name.clone();
    let limited =
        ensure_stream(nats, room::bounded(work, &settings)).await.map_err(|error| only_a_manager(error, model))?;
    for lane in Lane::ALL {
        ensure_consumer(nats, &stream, lane_consumer(model, lane, settings.hold_time))
            .await
            .map_err(|error| only_a_manager(error, model))?;
    }
    Ok(limited)
}

/// Whoever makes streams can read and write through them whatever there is, so in production only a manager may.
fn only_a_manager(error: BrokerError, model: &ModelName) -> BrokerError {
    match error {
        BrokerError::Denied(reason) => BrokerError::Denied(format!(
            "the queue of model `{model}` is not there or not whole, and this user may not make it: `sluice model make-queue` by the \
             manager's user does, as does `sluice model start` ({reason})"
        )),
        error => error,
    }
}

/// Makes a consumer that is not there, or holds requests for another time. Whoever may not change one takes it as it is.
async fn ensure_consumer(nats: &Nats, stream: &str, config: pull::Config) -> Result<()> {
    let lane = config.durable_name.clone().unwrap_or_default();
    let look = nats.jetstream.get_consumer_from_stream(&lane, stream);
    let found: Result<std::result::Result<PullConsumer, _>> =
        nats.allowed(&format!("CONSUMER.INFO.{stream}.{lane}"), look).await;
    let there = found.ok().and_then(|found| found.ok()).map(|found| found.cached_info().config.clone());
    if there.as_ref().is_some_and(|there| there.ack_wait == config.ack_wait) {
        return Ok(());
    }
    let operation = format!("CONSUMER.CREATE.{stream}.{lane}.{}", config.filter_subject);
    match nats.allowed(&operation, nats.jetstream.create_consumer_on_stream(config, stream)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(nats.explained(other(format!("creating consumer `{lane}` of `{stream}`"), error))),
        Err(BrokerError::Denied(_)) if there.is_some() => Ok(()),
        Err(denied) => Err(denied),
    }
}

/// The consumer of a lane.
pub(super) fn lane_consumer(model: &ModelName, lane: Lane, hold_time: Duration) -> pull::Config {
    pull::Config {
        durable_name: Some(lane.as_str().into()),
        filter_subject: names::work_subject(model, lane),
        ack_policy: AckPolicy::Explicit,
        ack_wait: hold_time,
        // The worker decides when a request has failed too often: past the broker's own limit a message would
        // stay in the stream and never be delivered to anyone.
        max_deliver: -1,
        max_ack_pending: MAX_ACK_PENDING,
        max_waiting: MAX_WAITING,
        ..Default::default()
    }
}

/// The streams for results, dead letters and waivers.
pub(super) async fn ensure_shared(nats: &Nats, settings: &Settings) -> Result<()> {
    let kept = |name: &str, subject: &str, max_age: Duration| Config {
        name: name.into(),
        subjects: vec![subject.into()],
        max_age,
        duplicate_window: settings.dedupe_window.min(max_age),
        ..durable(settings)
    };
    let waivers = Config { max_messages_per_subject: 1, ..kept(names::GIVEN_BACK, "givenback.>", WAIVERS_KEPT) };
    for stream in [
        kept(names::RESULTS, "results.>", settings.results_kept),
        kept(names::DEAD, "dead.>", settings.dead_letters_kept),
        waivers,
    ] {
        // Of these, limits are the settings' business: whoever changes these applies them.
        _ = ensure_stream(nats, room::bounded(stream, settings)).await?;
    }
    match lead::ensure_bucket(nats, settings).await {
        // No business of whoever serves.
        Err(BrokerError::Denied(_)) => Ok(()),
        made => made,
    }
}

fn durable(settings: &Settings) -> Config {
    Config { storage: StorageType::File, num_replicas: settings.replicas, allow_direct: true, ..Default::default() }
}

/// Makes a stream, or changes one that is there with other limits. Whoever may not change it takes it as it is.
async fn ensure_stream(nats: &Nats, config: Config) -> Result<Limited> {
    let name = config.name.clone();
    let there = match nats.stream(&name).await {
        Err(BrokerError::Denied(_)) => None,
        found => found?,
    };
    let Some(there) = there else {
        room::make(nats, config).await?;
        return Ok(Limited::AsAsked);
    };
    let wanted = settings::no_less(config, &there);
    if is_as(&there, &wanted) {
        return Ok(Limited::AsAsked);
    }
    let updated = nats.allowed(&format!("STREAM.UPDATE.{name}"), nats.jetstream.update_stream(wanted)).await;
    match updated {
        Ok(Ok(_)) => Ok(Limited::AsAsked),
        Ok(Err(error)) => Err(nats.explained(other(format!("updating stream `{name}`"), error))),
        Err(BrokerError::Denied(reason)) => Ok(Limited::AsConfigured(format!(
            "stream `{name}` holds other limits, and this user may not change them ({reason})"
        ))),
        Err(error) => Err(error),
    }
}

/// Whether a stream is as it is wanted, in what Sluice asks for.
fn is_as(there: &Config, wanted: &Config) -> bool {
    // Where nothing is asked for, the server says -1.
    let or_none = |limit: i64| if limit <= 0 { -1 } else { limit };
    let asked = |config: &Config| {
        let limits =
            [config.max_messages, config.max_message_size.into(), config.max_messages_per_subject, config.max_bytes];
        let kept = (config.max_age, config.duplicate_window, config.num_replicas.max(1));
        (config.subjects.clone(), limits.map(or_none), kept, config.retention, config.discard, config.allow_direct)
    };
    asked(there) == asked(wanted)
}

pub(super) async fn remove(nats: &Nats, model: &ModelName) -> Result<()> {
    let stream = names::work_stream(model);
    match nats.allowed(&format!("STREAM.DELETE.{stream}"), nats.jetstream.delete_stream(&stream)).await? {
        Ok(_) => Ok(()),
        Err(error) if api_code(&error) == Some(ErrorCode::STREAM_NOT_FOUND) => Ok(()),
        Err(error) => Err(nats.explained(other(format!("deleting stream `{stream}`"), error))),
    }
}

pub(super) async fn list(nats: &Nats) -> Result<Vec<ModelName>> {
    let names: Vec<String> = nats
        .allowed("STREAM.NAMES", nats.jetstream.stream_names().try_collect())
        .await?
        .map_err(|error| nats.explained(other("listing streams", error)))?;
    let mut models: Vec<_> = names.iter().filter_map(|name| names::model_of_stream(name)).collect();
    models.sort();
    Ok(models)
}

/// The stream of a model, if the broker has it.
pub(super) async fn exists(nats: &Nats, model: &ModelName) -> Result<()> {
    match nats.stream(&names::work_stream(model)).await? {
        Some(_) => Ok(()),
        None => Err(BrokerError::UnknownModel(model.clone())),
    }
}

/// Whether a queue takes nothing any more, as [`QueueLimits::closed`] says it; the server calls everything too large then.
pub(super) async fn is_closed(nats: &Nats, model: &ModelName) -> bool {
    let config = nats.stream(&names::work_stream(model)).await;
    matches!(config, Ok(Some(config)) if (0..=1).contains(&config.max_message_size))
}
