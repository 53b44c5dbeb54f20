//! The one place that makes streams and consumers as the deployment's settings say.

use std::time::Duration;

use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::jetstream::stream::Config;

use sluice_core::broker::{BrokerError, Result};
use sluice_core::settings::{Apply, Settings};
use sluice_core::{Lane, ModelName};

use super::error::other;
use super::settings::{config_of, streams};
use super::{Nats, names, queue, room};

/// The server takes no longer window than a stream keeps its messages.
const KEPT: [&str; 3] = [names::RESULTS, names::DEAD, names::GIVEN_BACK];

/// Makes every stream and consumer as the settings say, or tells what differs. What is odd does not hold up the others: it is told at the
/// end, with what was done.
pub(super) async fn apply(nats: &Nats, settings: &Settings, apply: Apply) -> Result<Vec<String>> {
    let (mut changes, mut failed) = (Vec::new(), Vec::new());
    for name in streams(nats).await? {
        let Some(config) = config_of(nats, &name).await else { continue };
        let Some(wanted) = as_wanted(&config, settings) else { continue };
        match stream(nats, &config, &wanted, apply).await {
            Ok(change) => changes.extend(change),
            Err(error) => failed.push(error),
        }
        if let Some(model) = names::model_of_stream(&name) {
            match hold(nats, &model, settings.hold_time, apply).await {
                Ok(change) => changes.extend(change),
                Err(error) => failed.push(error),
            }
        }
    }
    match failed.len() {
        0 => Ok(changes),
        1 if changes.is_empty() => Err(failed.remove(0)),
        _ => Err(together(&failed, &changes, apply)),
    }
}

async fn stream(nats: &Nats, config: &Config, wanted: &Config, apply: Apply) -> Result<Option<String>> {
    let Some(change) = told(config, wanted) else { return Ok(None) };
    let name = &config.name;
    if apply == Apply::Change {
        let updated = nats.jetstream.update_stream(wanted).await;
        updated.map_err(|error| match room::is_lacking(&error) {
            true => BrokerError::Unusable(format!(
                "stream `{name}`: the broker has not so much room ({change}): `max_file_store` of its configuration is to be more"
            )),
            false => nats.explained(other(format!("changing stream `{name}`"), error)),
        })?;
    }
    Ok(Some(format!("stream `{name}`: {change}")))
}

/// An error and its cause in one line.
fn in_words(error: &BrokerError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

/// All that failed, and what did not.
fn together(failed: &[BrokerError], changes: &[String], apply: Apply) -> BrokerError {
    let mut text = failed.iter().map(in_words).collect::<Vec<_>>().join("; ");
    if !changes.is_empty() {
        let these = if apply == Apply::Change { "changed" } else { "to change" };
        text += &format!("; {these}: {}", changes.join("; "));
    }
    match failed.iter().all(|error| matches!(error, BrokerError::Denied(_))) {
        true => BrokerError::Denied(text),
        false => BrokerError::Unusable(text),
    }
}

async fn hold(nats: &Nats, model: &ModelName, hold_time: Duration, apply: Apply) -> Result<Option<String>> {
    let stream = names::work_stream(model);
    let failed = |lane: Lane| format!("changing consumer `{lane}` of `{stream}`");
    let mut before = None;
    for lane in Lane::ALL {
        let found = nats.jetstream.get_consumer_from_stream(lane.as_str(), &stream).await;
        let found: Consumer<pull::Config> = found.map_err(|error| nats.explained(other(failed(lane), error)))?;
        let config = &found.cached_info().config;
        if config.ack_wait == hold_time {
            continue;
        }
        before = Some(config.ack_wait);
        if apply == Apply::Change {
            let wanted = queue::lane_consumer(model, lane, hold_time);
            let updated = nats.jetstream.create_consumer_on_stream(wanted, &stream).await;
            updated.map_err(|error| nats.explained(other(failed(lane), error)))?;
        }
    }
    Ok(before.map(|before| format!("stream `{stream}`: hold_time {before:?} -> {hold_time:?}")))
}

/// A stream's configuration as the settings want it; `None` if it is not Sluice's.
fn as_wanted(config: &Config, settings: &Settings) -> Option<Config> {
    let name = config.name.as_str();
    let model = names::model_of_stream(name).is_some();
    if !model && !names::SHARED.contains(&name) {
        return None;
    }
    let mut wanted = room::bounded(Config { num_replicas: settings.replicas, ..config.clone() }, settings);
    match name {
        names::RESULTS => wanted.max_age = settings.results_kept,
        names::DEAD => wanted.max_age = settings.dead_letters_kept,
        _ => {}
    }
    if model {
        wanted.duplicate_window = settings.dedupe_window;
    } else if KEPT.contains(&name) {
        wanted.duplicate_window = settings.dedupe_window.min(wanted.max_age);
    }
    Some(wanted)
}

fn told(before: &Config, after: &Config) -> Option<String> {
    let mut changes = Vec::new();
    if before.num_replicas != after.num_replicas {
        changes.push(format!("copies {} -> {}", before.num_replicas, after.num_replicas));
    }
    if before.max_age != after.max_age {
        changes.push(format!("kept {:?} -> {:?}", before.max_age, after.max_age));
    }
    if before.duplicate_window != after.duplicate_window {
        changes.push(format!("dedupe_window {:?} -> {:?}", before.duplicate_window, after.duplicate_window));
    }
    let room = |config: &Config| match config.max_bytes {
        ..=0 => "unlimited".to_owned(),
        bytes => format!("{} MiB", bytes >> 20),
    };
    if room(before) != room(after) {
        changes.push(format!("room {} -> {}", room(before), room(after)));
    }
    (!changes.is_empty()).then(|| changes.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(name: &str) -> Config {
        let (max_age, duplicate_window) = (Duration::from_secs(3600), Duration::from_secs(120));
        Config { name: name.into(), num_replicas: 1, max_age, duplicate_window, ..Default::default() }
    }

    #[test]
    fn streams_are_made_as_the_settings_say_and_others_are_left_alone() {
        let settings = Settings { replicas: 3, results_kept: Duration::from_secs(60), ..Settings::default() };
        let wanted = as_wanted(&stream(names::RESULTS), &settings).expect("it is ours");
        assert_eq!(
            told(&stream(names::RESULTS), &wanted).as_deref(),
            Some("copies 1 -> 3, kept 3600s -> 60s, dedupe_window 120s -> 60s, room unlimited -> 4096 MiB")
        );
        for (bucket, room) in [
            ("KV_SLUICE_REGISTRY", ""),
            ("OBJ_SLUICE_PACKAGES", ""),
            ("KV_SLUICE_LEADERS", ", room unlimited -> 8 MiB"),
            ("GIVEN_BACK", ", room unlimited -> 16 MiB"),
        ] {
            let wanted = as_wanted(&stream(bucket), &settings).expect("it is ours");
            assert_eq!(told(&stream(bucket), &wanted), Some(format!("copies 1 -> 3{room}")), "{bucket}");
        }
        let model =
            as_wanted(&stream("INFER_m"), &Settings { dedupe_window: Duration::from_secs(9), ..settings.clone() });
        assert_eq!(model.expect("it is ours").duplicate_window, Duration::from_secs(9));
        assert!(as_wanted(&stream("ORDERS"), &settings).is_none());
    }
}
