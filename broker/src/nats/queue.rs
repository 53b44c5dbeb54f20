//! A model's queue: one work-queue stream with a durable pull consumer per lane; and the streams that all
//! models share.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use futures_util::TryStreamExt;

use sluice_core::broker::{BrokerError, QueueLimits, Result};
use sluice_core::settings::Settings;
use sluice_core::{Lane, ModelName};

use super::error::{api_code, other};
use super::{Nats, names, settings};

/// Retries that wait for their time count as unacknowledged, so this bounds no host: credit does that.
const MAX_ACK_PENDING: i64 = 1_000_000;
/// Pulls that may wait at once: several per host.
const MAX_WAITING: i64 = 16_384;
/// A waiver that is older than this is forgotten; the request is then charged one attempt more.
const WAIVERS_KEPT: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn ensure(nats: &Nats, model: &ModelName, limits: &QueueLimits) -> Result<()> {
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
    ensure_stream(nats, work).await?;
    for lane in Lane::ALL {
        nats.jetstream
            .create_consumer_on_stream(lane_consumer(model, lane, settings.hold_time), &stream)
            .await
            .map_err(|error| explained(nats, other(format!("creating consumer `{lane}` of `{stream}`"), error)))?;
    }
    Ok(())
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
async fn ensure_shared(nats: &Nats, settings: &Settings) -> Result<()> {
    let kept = |name: &str, subject: &str, max_age: Duration| Config {
        name: name.into(),
        subjects: vec![subject.into()],
        max_age,
        duplicate_window: settings.dedupe_window.min(max_age),
        ..durable(settings)
    };
    ensure_stream(nats, kept(names::RESULTS, "results.>", settings.results_kept)).await?;
    ensure_stream(nats, kept(names::DEAD, "dead.>", settings.dead_letters_kept)).await?;
    let waivers = Config { max_messages_per_subject: 1, ..kept(names::GIVEN_BACK, "givenback.>", WAIVERS_KEPT) };
    ensure_stream(nats, waivers).await
}

fn durable(settings: &Settings) -> Config {
    Config { storage: StorageType::File, num_replicas: settings.replicas, allow_direct: true, ..Default::default() }
}

async fn ensure_stream(nats: &Nats, config: Config) -> Result<()> {
    let name = config.name.clone();
    match nats.jetstream.create_stream(config.clone()).await {
        Ok(_) => Ok(()),
        // It is there with other limits: change them in place.
        Err(error) if api_code(&error) == Some(ErrorCode::STREAM_NAME_EXIST) => {
            let wanted = match settings::config_of(nats, &name).await {
                Some(there) => settings::no_less(config, &there),
                None => config,
            };
            match nats.jetstream.update_stream(wanted).await {
                Ok(_) => Ok(()),
                Err(error) => Err(explained(nats, other(format!("updating stream `{name}`"), error))),
            }
        }
        Err(error) => Err(explained(nats, other(format!("creating stream `{name}`"), error))),
    }
}

fn explained(nats: &Nats, error: BrokerError) -> BrokerError {
    nats.denials.explain("$JS.API.", error)
}

pub(super) async fn remove(nats: &Nats, model: &ModelName) -> Result<()> {
    let stream = names::work_stream(model);
    match nats.jetstream.delete_stream(&stream).await {
        Ok(_) => Ok(()),
        Err(error) if api_code(&error) == Some(ErrorCode::STREAM_NOT_FOUND) => Ok(()),
        Err(error) => Err(explained(nats, other(format!("deleting stream `{stream}`"), error))),
    }
}

pub(super) async fn list(nats: &Nats) -> Result<Vec<ModelName>> {
    let names: Vec<String> = nats
        .jetstream
        .stream_names()
        .try_collect()
        .await
        .map_err(|error| explained(nats, other("listing streams", error)))?;
    let mut models: Vec<_> = names.iter().filter_map(|name| names::model_of_stream(name)).collect();
    models.sort();
    Ok(models)
}

/// The stream of a model, if the broker has it.
pub(super) async fn exists(nats: &Nats, model: &ModelName) -> Result<()> {
    match nats.jetstream.get_stream(names::work_stream(model)).await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(api) if api.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Err(BrokerError::UnknownModel(model.clone()))
            }
            _ => Err(explained(nats, other(format!("looking for the queue of model `{model}`"), error))),
        },
    }
}

/// Whether a queue takes nothing any more, as [`QueueLimits::closed`] says it; the server calls everything too large then.
pub(super) async fn is_closed(nats: &Nats, model: &ModelName) -> bool {
    let stream = nats.jetstream.get_stream(names::work_stream(model)).await;
    stream.is_ok_and(|stream| (0..=1).contains(&stream.cached_info().config.max_message_size))
}
