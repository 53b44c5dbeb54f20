//! How many bytes each stream may hold. The server sets aside what a stream is allowed: so what nobody sees to fills its own room, and never
//! that of leases, of the registry, or of what others do.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::stream::Config;
use futures_util::stream::{StreamExt, iter};
use tracing::warn;

use sluice_core::broker::{BrokerError, Result, Stored};
use sluice_core::settings::{LEAST_MIB, Settings};

use super::error::{api_code, other};
use super::settings::streams;
use super::{Nats, names};

/// Leases are a hundred bytes each, and one is kept of each office.
pub(super) const LEADERS_MIB: u64 = 8;
/// Records are some kilobytes for each revision of a model. What is there is never bounded later: that could remove the first of them.
pub(super) const RECORDS_MIB: u64 = 256;
/// Where there is not so much.
pub(super) const LEAST_RECORDS_MIB: u64 = 16;
/// A waiver is a hundred bytes, kept for a day. Without it a request is charged one attempt more.
const GIVEN_BACK_MIB: u64 = 16;
/// Where there is not room for all that is wanted, what is made first leaves most of it to what comes later.
const SHARE: i64 = 4;
/// Streams that are looked at at the same time.
const AT_ONCE: usize = 16;

/// What a stream of Sluice's may hold; `None` if nothing bounds it, as what only a manager writes.
pub(super) fn mib_of(stream: &str, settings: &Settings) -> Option<u64> {
    match stream {
        names::RESULTS => Some(settings.results_mib),
        names::DEAD => Some(settings.dead_letters_mib),
        names::GIVEN_BACK => Some(GIVEN_BACK_MIB),
        "KV_SLUICE_LEADERS" => Some(LEADERS_MIB),
        _ if names::model_of_stream(stream).is_some() => Some(settings.queue_mib),
        _ => None,
    }
}

/// MiB as a configuration says it.
pub(super) fn bytes(mib: u64) -> i64 {
    i64::try_from(mib).unwrap_or(i64::MAX).saturating_mul(1 << 20)
}

/// A configuration with the room that its stream should have.
pub(super) fn bounded(config: Config, settings: &Settings) -> Config {
    let max_bytes = mib_of(&config.name, settings).map_or(config.max_bytes, bytes);
    Config { max_bytes, ..config }
}

/// Whether the server has not so much room to set aside.
pub(super) fn is_lacking(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        text += &error.to_string();
        cause = error.source();
    }
    // A cluster says of its nodes why none takes the stream.
    api_code(error) == Some(ErrorCode::STORAGE_RESOURCES_EXCEEDED) || text.contains("insufficient storage")
}

/// Makes a stream. Where the server has not the room that it should have, with a part of what there is: better a small store than one that
/// takes the room of all others.
pub(super) async fn make(nats: &Nats, mut config: Config) -> Result<()> {
    let wanted = config.max_bytes;
    let failed = |error| nats.explained(other(format!("creating stream `{}`", config.name), error));
    loop {
        let operation = format!("STREAM.CREATE.{}", config.name);
        match nats.allowed(&operation, nats.jetstream.create_stream(config.clone())).await? {
            Ok(_) => break,
            // Another was first.
            Err(error) if api_code(&error) == Some(ErrorCode::STREAM_NAME_EXIST) => return Ok(()),
            Err(error) if is_lacking(&error) && config.max_bytes / 2 >= bytes(LEAST_MIB) => config.max_bytes /= 2,
            Err(error) if is_lacking(&error) => {
                return Err(BrokerError::Unusable(format!(
                    "the broker has no room left for `{}`: more (`max_file_store` of its configuration), or less for others (`queue_mib`, \
                     `results_mib` and `dead_letters_mib` of `sluice settings`)",
                    config.name
                )));
            }
            Err(error) => return Err(failed(error)),
        }
    }
    if config.max_bytes < wanted {
        config.max_bytes = (config.max_bytes / SHARE).max(bytes(LEAST_MIB));
        let updated = nats.jetstream.update_stream(config.clone()).await;
        updated
            .map_err(|error| nats.explained(other(format!("making room beside stream `{}`", config.name), error)))?;
        warn!(
            stream = config.name,
            wanted_mib = wanted >> 20,
            mib = config.max_bytes >> 20,
            "the broker has not so much room (`max_file_store` of its configuration): the stream may hold less than the settings say"
        );
    }
    Ok(())
}

/// What each of Sluice's streams holds.
pub(super) async fn read(nats: &Nats) -> Result<Vec<Stored>> {
    let all = streams(nats).await?;
    let ours = |name: &String| names::model_of_stream(name).is_some() || names::SHARED.contains(&name.as_str());
    let look = async |name: String| {
        let stream = nats.jetstream.get_stream(&name).await.ok()?;
        let info = stream.cached_info();
        let limit = u64::try_from(info.config.max_bytes).ok().filter(|limit| *limit > 0);
        Some(Stored { name, bytes: info.state.bytes, limit })
    };
    let mut found: Vec<Stored> = iter(all.into_iter().filter(ours))
        .map(look)
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}
