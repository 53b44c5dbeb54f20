//! The deployment's settings: stored as the metadata of a stream that holds nothing else, since everybody may look at a stream, and
//! the server lets one of two founders come first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::OnceCell;
use tracing::{debug, info, warn};

use sluice_core::Lane;
use sluice_core::broker::{BrokerError, Result};
use sluice_core::settings::{SETTINGS, Settings};

use super::error::{api_code, other};
use super::{Nats, names, queue, signal};
use crate::options::{TOLD, tell, unreadable};

/// A change whose signal was lost is noticed after so long.
const LOOK: Duration = Duration::from_secs(60);
/// Looking at what exists is a help, and denied to some.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a connection knows of the settings.
#[derive(Default)]
pub(super) struct State {
    /// What was last compared with this program's own configuration.
    told: Mutex<Option<Settings>>,
    may_not_found: AtomicBool,
    following: OnceCell<()>,
}

/// What is stored, else what is found, else this program's own; changes nothing.
pub(super) async fn read(nats: &Nats) -> Result<Settings> {
    match stored(nats).await? {
        Some(settings) => {
            nats.tell_settings(&settings);
            Ok(settings)
        }
        None => Ok(found(nats).await),
    }
}

/// The settings, for whoever makes something: who comes first stores them.
pub(super) async fn current(nats: &Nats) -> Result<Settings> {
    if let Some(settings) = stored(nats).await? {
        nats.tell_settings(&settings);
        return Ok(settings);
    }
    let settings = found(nats).await;
    if nats.settings.may_not_found.load(Ordering::Relaxed) {
        return Ok(settings);
    }
    let operation = format!("STREAM.CREATE.{}", names::SETTINGS);
    let made = match nats.allowed(&operation, nats.jetstream.create_stream(document(&settings))).await {
        Ok(made) => made,
        Err(BrokerError::Denied(reason)) => {
            warn!(target: TOLD, reason, "the deployment has no settings yet, and this user may not store any");
            nats.settings.may_not_found.store(true, Ordering::Relaxed);
            return Ok(settings);
        }
        Err(error) => return Err(error),
    };
    match made {
        Ok(_) => {
            info!(target: TOLD, ?settings, "the deployment has settings now");
            if settings.replicas == 1 && nats.client.server_info().cluster.is_some() {
                warn!(
                    target: TOLD,
                    "this broker is a cluster, and one copy of everything is kept: `sluice settings set replicas=3` keeps three"
                );
            }
            Ok(settings)
        }
        Err(error) if api_code(&error) == Some(ErrorCode::STREAM_NAME_EXIST) => {
            Ok(stored(nats).await?.unwrap_or(settings))
        }
        Err(error) => Err(nats.explained(other("storing the deployment's settings", error))),
    }
}

/// Renews holds as often as the settings want, from now on. Once per connection.
pub(super) async fn follow(nats: &Nats) -> Result<()> {
    let start = || async {
        let subscribed = nats.client.subscribe(names::control_subject(SETTINGS)).await;
        let mut changes = subscribed.map_err(|error| other("listening to changes of the settings", error))?;
        // The server sees the subscription before this question.
        nats.keeper.set_hold_time(current(nats).await?.hold_time);
        let (keeper, jetstream) = (Arc::downgrade(&nats.keeper), nats.jetstream.clone());
        tokio::spawn(async move {
            loop {
                let told = tokio::time::timeout(LOOK, changes.next()).await;
                let Some(keeper) = keeper.upgrade().filter(|_| !matches!(told, Ok(None))) else { return };
                let looked = jetstream.get_stream(names::SETTINGS).await;
                match looked.map(|stream| parsed(&stream.cached_info().config)) {
                    Ok(Ok(settings)) => keeper.set_hold_time(settings.hold_time),
                    Ok(Err(error)) => debug!(%error, "cannot look at the deployment's settings"),
                    Err(error) => debug!(%error, "cannot look at the deployment's settings"),
                }
            }
        });
        Ok(())
    };
    nats.settings.following.get_or_try_init(start).await.map(drop)
}

/// Stores settings and tells everybody.
pub(super) async fn store(nats: &Nats, settings: &Settings) -> Result<()> {
    let failed = |error| nats.explained(other("storing the deployment's settings", error));
    match nats.jetstream.create_stream(document(settings)).await {
        Ok(_) => {}
        Err(error) if api_code(&error) == Some(ErrorCode::STREAM_NAME_EXIST) => {
            nats.jetstream.update_stream(document(settings)).await.map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    // Whoever may store them may make what all share, and others may not.
    queue::ensure_shared(nats, settings).await?;
    signal::send(nats, SETTINGS, Bytes::new()).await
}

/// The stream whose metadata the settings are.
fn document(settings: &Settings) -> Config {
    Config {
        name: names::SETTINGS.into(),
        description: Some("Sluice: the deployment's settings are this stream's metadata".into()),
        // It needs one, and takes no message.
        subjects: vec!["sluice.settings".into()],
        discard: DiscardPolicy::New,
        max_messages: 1,
        max_message_size: 1,
        storage: StorageType::File,
        num_replicas: settings.replicas,
        metadata: settings.pairs().map(|(key, value)| (key.to_owned(), value)).into(),
        ..Default::default()
    }
}

async fn stored(nats: &Nats) -> Result<Option<Settings>> {
    match nats.stream(names::SETTINGS).await? {
        Some(config) => parsed(&config).map(Some),
        None => Ok(None),
    }
}

fn parsed(document: &Config) -> Result<Settings> {
    let read = Settings::read(document.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    read.map_err(|faults| unreadable(&format!("stream `{}`", names::SETTINGS), &faults))
}

/// What an older deployment has, and of what it has not, this program's own. Of two values the safer.
async fn found(nats: &Nats) -> Settings {
    let mut settings = nats.options.settings(Settings::default());
    let mut streams: Vec<String> = names::SHARED.map(String::from).into();
    if let Ok(Ok(listed)) = tokio::time::timeout(PATIENCE, self::streams(nats)).await {
        streams.extend(listed.into_iter().filter(|name| !names::SHARED.contains(&name.as_str())));
    }
    let (mut copies, mut window, mut hold_time, mut queue_mib) = (None, None, None, None);
    // What is not bounded yet is to be.
    let mib = |bytes: i64| u64::try_from(bytes).ok().filter(|bytes| *bytes > 0).map(|bytes| bytes >> 20);
    for name in streams {
        let Some(config) = config_of(nats, &name).await else { continue };
        copies = copies.max(Some(config.num_replicas));
        match name.as_str() {
            names::RESULTS => {
                settings.results_kept = config.max_age;
                settings.results_mib = mib(config.max_bytes).unwrap_or(settings.results_mib);
            }
            names::DEAD => {
                settings.dead_letters_kept = config.max_age;
                settings.dead_letters_mib = mib(config.max_bytes).unwrap_or(settings.dead_letters_mib);
            }
            _ if names::model_of_stream(&name).is_some() => {
                window = window.max(Some(config.duplicate_window));
                queue_mib = queue_mib.max(mib(config.max_bytes));
                let consumer = nats.jetstream.get_consumer_from_stream(Lane::Normal.as_str(), &name);
                let consumer: Option<Consumer<pull::Config>> =
                    tokio::time::timeout(PATIENCE, consumer).await.ok().and_then(|consumer| consumer.ok());
                hold_time = hold_time.max(consumer.map(|consumer| consumer.cached_info().config.ack_wait));
            }
            _ => {}
        }
    }
    settings.replicas = copies.unwrap_or(settings.replicas);
    settings.queue_mib = queue_mib.unwrap_or(settings.queue_mib);
    settings.dedupe_window = window.unwrap_or(settings.dedupe_window);
    settings.hold_time = hold_time.unwrap_or(settings.hold_time);
    settings.within_bounds()
}

pub(super) async fn streams(nats: &Nats) -> Result<Vec<String>> {
    let listed = nats.allowed("STREAM.NAMES", nats.jetstream.stream_names().try_collect::<Vec<_>>()).await?;
    let mut listed = listed.map_err(|error| nats.explained(other("listing streams", error)))?;
    listed.sort();
    Ok(listed)
}

/// `None` if it is not there, or may not be looked at.
pub(super) async fn config_of(nats: &Nats, stream: &str) -> Option<Config> {
    nats.stream(stream).await.ok().flatten()
}

/// What somebody asks for in passing, but for what would lower copies or shorten how long something is kept.
pub(super) fn no_less(wanted: Config, there: &Config) -> Config {
    let max_age = match wanted.max_age.is_zero() || there.max_age.is_zero() {
        // Zero keeps for ever.
        true => Duration::ZERO,
        false => wanted.max_age.max(there.max_age),
    };
    // Less room removes what is stored, and more may not be there.
    Config { num_replicas: wanted.num_replicas.max(there.num_replicas), max_age, max_bytes: there.max_bytes, ..wanted }
}

impl Nats {
    /// Warns if this program's own configuration says otherwise, once for each settings.
    fn tell_settings(&self, settings: &Settings) {
        let mut told = self.settings.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref() != Some(settings) {
            tell(&self.options, settings, &[]);
            *told = Some(settings.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(name: &str) -> Config {
        let (max_age, duplicate_window) = (Duration::from_secs(3600), Duration::from_secs(120));
        Config { name: name.into(), num_replicas: 1, max_age, duplicate_window, ..Default::default() }
    }

    #[test]
    fn nobody_lowers_copies_or_retention_in_passing() {
        let there = Config { num_replicas: 3, ..stream(names::DEAD) };
        let lower = Config { max_age: Duration::from_secs(5), ..stream(names::DEAD) };
        let kept = no_less(lower, &there);
        assert_eq!((kept.num_replicas, kept.max_age), (3, Duration::from_secs(3600)));
        let longer = Config { max_age: Duration::from_secs(9999), num_replicas: 5, ..stream(names::DEAD) };
        assert_eq!(no_less(longer.clone(), &there), longer);
        let bounded = Config { max_bytes: 1 << 20, ..stream(names::DEAD) };
        assert_eq!(no_less(bounded.clone(), &there).max_bytes, there.max_bytes, "what is stored is not removed");
        assert_eq!(no_less(stream(names::DEAD), &bounded).max_bytes, 1 << 20);
        let forever = Config { max_age: Duration::ZERO, ..there };
        assert_eq!(no_less(stream(names::DEAD), &forever).max_age, Duration::ZERO);
    }
}
