//! The deployment's settings: the newest message of a stream, which all may read and only those who manage write. And the one place
//! that makes what exists as they say, by policies: a queue's own arguments never change.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use sluice_core::broker::{BrokerError, Result};
use sluice_core::settings::{Apply, Settings};

use super::connect::Link;
use super::error::may_pass;
use super::publish::{Published, stored as publish};
use super::stream::Reader;
use super::{headers, manage, names, queue};
use crate::options::{TOLD, tell, unreadable};

/// What RabbitMQ sees to in its own way: where copies are, and when it delivers again.
const NOT_HERE: [&str; 3] = ["replicas", "hold_time", "dedupe_window"];
/// How long the stream may take to hand out what it has: a broker that has just started is slow.
const PATIENCE: Duration = Duration::from_secs(10);
/// What counts nothing and is silent for so long is empty.
const EMPTY: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// What is stored, else what is found, else this program's own; changes nothing.
pub(super) async fn read(link: &Link) -> Result<Settings> {
    match stored(link).await? {
        Some(settings) => Ok(settings),
        None => Ok(found(link).await),
    }
}

/// The settings, for whoever makes something: who comes first stores them, if that is permitted.
pub(super) async fn current(link: &Link) -> Result<Settings> {
    match stored(link).await {
        Ok(Some(settings)) => return Ok(settings),
        Ok(None) => {}
        Err(error @ BrokerError::Denied(_)) => {
            debug!(target: TOLD, %error, "this user may not read the deployment's settings; its own configuration holds");
            return Ok(link.options.settings(Settings::default()));
        }
        Err(error) => return Err(error),
    }
    if link.may_not_found.load(Ordering::Relaxed) {
        return Ok(link.options.settings(Settings::default()));
    }
    match declare(link).await {
        Ok(()) => {
            let settings = found(link).await;
            write(link, &settings).await?;
            info!(target: TOLD, ?settings, "the deployment has settings now");
            // Of two founders the later one's hold.
            Ok(stored(link).await?.unwrap_or(settings))
        }
        Err(BrokerError::Denied(_)) => {
            link.may_not_found.store(true, Ordering::Relaxed);
            Ok(link.options.settings(Settings::default()))
        }
        Err(error) => Err(error),
    }
}

/// Stores settings.
pub(super) async fn store(link: &Link, settings: &Settings) -> Result<()> {
    for (key, ..) in read(link).await?.differences(settings) {
        if NOT_HERE.contains(&key) {
            return Err(BrokerError::Unusable(format!(
                "`{key}` is nothing to set on RabbitMQ: it sees to copies and to what is delivered again by itself"
            )));
        }
    }
    declare(link).await?;
    write(link, settings).await
}

/// Sets the policies by which what exists goes, or tells what differs. A queue's own argument holds if it is shorter than the policy.
pub(super) async fn apply(link: &Link, settings: &Settings, apply: Apply) -> Result<Vec<String>> {
    let ages = manage::ages(link).await?;
    let mut changes = Vec::new();
    for (kind, kept, mib) in [
        ("results", settings.results_kept, settings.results_mib),
        ("dead", settings.dead_letters_kept, settings.dead_letters_mib),
    ] {
        let wanted = names::age(kept);
        let policy = manage::kept(link, kind).await?;
        let of_kind = || ages.iter().filter(|(name, _)| name.starts_with(&format!("{kind}.")));
        let longer = of_kind().any(|(_, age)| seconds(age).is_none_or(|age| age > kept.as_secs()));
        let other = policy.as_ref().is_some_and(|(age, bytes)| {
            seconds(age).is_some_and(|age| age != kept.as_secs()) || *bytes != Some(mib << 20)
        });
        // Only a policy bounds bytes: without one, the setting is nowhere yet, unless it is the one that nobody has asked for.
        let bounded = policy.is_none() && mib != mib_of(kind, &Settings::default());
        if (policy.is_none() && longer) || other || bounded {
            let of = |age: &str, bytes: Option<u64>| {
                format!("max-age {age}{}", bytes.map_or(String::new(), |bytes| format!(", {} MiB", bytes >> 20)))
            };
            let before = policy.map_or("none".to_owned(), |(age, bytes)| of(&age, bytes));
            changes.push(format!("policy `sluice.kept.{kind}`: {before} -> {}", of(&wanted, Some(mib << 20))));
            if apply == Apply::Change {
                manage::keep(link, kind, &wanted, mib << 20).await?;
            }
        }
        for (name, age) in of_kind() {
            if seconds(age).is_some_and(|age| age < kept.as_secs()) {
                changes.push(format!(
                    "queue `{name}` keeps its messages {age} as before: that was laid down when it was made; made anew it has {wanted}"
                ));
            }
        }
    }
    Ok(changes)
}

fn mib_of(kind: &str, settings: &Settings) -> u64 {
    if kind == "results" { settings.results_mib } else { settings.dead_letters_mib }
}

/// `90s`, as Sluice writes it.
fn seconds(age: &str) -> Option<u64> {
    age.strip_suffix('s')?.parse().ok()
}

/// What an older deployment has, as far as the management API tells; else this program's own.
async fn found(link: &Link) -> Settings {
    let own = link.options.settings(Settings::default());
    let dead = match manage::ages(link).await {
        Ok(ages) => ages.iter().filter(|(name, _)| name.starts_with("dead.")).filter_map(|(_, age)| seconds(age)).max(),
        Err(_) => None,
    };
    let dead_letters_kept = dead.map_or(own.dead_letters_kept, Duration::from_secs);
    Settings { dead_letters_kept, ..own }
}

async fn stored(link: &Link) -> Result<Option<Settings>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match newest(link).await {
            Ok(newest) => {
                if let Some(settings) = &newest {
                    tell_once(link, settings);
                }
                return Ok(newest);
            }
            Err(error) if !may_pass(&error) || Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn newest(link: &Link) -> Result<Option<Settings>> {
    // The broker counts what a stream has only now and then: that tells neither where the newest is, nor surely that there is none.
    let Some(count) = queue::waiting(link, names::SETTINGS).await? else { return Ok(None) };
    let mut reader = Reader::at_the_last(link, names::SETTINGS).await?;
    let patience = if count == 0 { EMPTY } else { PATIENCE };
    let entry = match tokio::time::timeout(patience, reader.next()).await {
        Ok(Some(entry)) => entry,
        // Its founder ended before he had written.
        Err(_) if count == 0 => return Ok(None),
        _ => return Err(BrokerError::TimedOut("reading the deployment's settings".into())),
    };
    let pairs: HashMap<String, String> = serde_json::from_slice(&entry.delivery.data).unwrap_or_default();
    let read = Settings::read(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())));
    read.map(Some).map_err(|faults| unreadable(&format!("stream `{}`", names::SETTINGS), &faults))
}

fn tell_once(link: &Link, settings: &Settings) {
    let mut told = link.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if told.as_ref() != Some(settings) {
        tell(&link.options, settings, &NOT_HERE);
        *told = Some(settings.clone());
    }
}

/// The exchange and the stream.
async fn declare(link: &Link) -> Result<()> {
    queue::ensure_exchange(link, names::SETTINGS).await?;
    queue::declare(link, names::SETTINGS, names::SETTINGS, queue::forever()).await
}

async fn write(link: &Link, settings: &Settings) -> Result<()> {
    let pairs: HashMap<&str, String> = settings.pairs().into();
    let body = serde_json::to_vec(&pairs).unwrap_or_default();
    let what = "storing the deployment's settings";
    match publish(link, names::SETTINGS, names::SETTINGS, &body, headers::durable(), what).await? {
        Published::Stored => Ok(()),
        _ => Err(BrokerError::TimedOut(what.into())),
    }
}
