//! Dead letters: stored with all of their headers, and why, where and when they were given up.

use std::collections::VecDeque;

use lapin::BasicProperties;

use sluice_core::broker::{BrokerError, DeadLetter, Death, Result};
use sluice_core::{ErrorCode, ModelName, envelope};

use super::connect::Link;
use super::publish::{Published, stored};
use super::{headers, names, stream};

/// Headers must fit into a frame of 128 KiB.
const LONGEST_REASON: usize = 8 * 1024;

pub(super) async fn store(
    link: &Link,
    model: &ModelName,
    original: &BasicProperties,
    body: &[u8],
    death: &Death,
) -> Result<()> {
    let mut table = original.headers().clone().unwrap_or_default();
    let reason: String = death.reason.replace(['\r', '\n'], " ").chars().take(LONGEST_REASON).collect();
    for (name, value) in [
        (envelope::DEAD_CODE, death.code.as_str().to_owned()),
        (envelope::DEAD_REASON, reason),
        (envelope::DEAD_HOST, death.host.clone()),
        (envelope::DEAD_AT, death.at.to_string()),
        (envelope::ATTEMPTS, death.attempts.to_string()),
    ] {
        headers::put(&mut table, name, value);
    }
    let properties = original.clone().with_headers(table);
    match stored(link, names::DEAD, &names::dead_queue(model), body, properties, "storing a dead letter").await? {
        Published::Stored => Ok(()),
        Published::Unroutable | Published::Refused => {
            Err(BrokerError::Unusable(format!("there is no queue `{}` for dead letters", names::dead_queue(model))))
        }
    }
}

pub(super) async fn list(link: &Link, model: &ModelName, limit: usize) -> Result<Vec<DeadLetter>> {
    let mut newest = VecDeque::new();
    stream::scan(link, &names::dead_queue(model), |entry| {
        if newest.len() == limit {
            newest.pop_back();
        }
        newest.push_front(letter(entry));
        false
    })
    .await?;
    Ok(newest.into())
}

fn letter(entry: stream::Entry) -> DeadLetter {
    let mut listed = headers::pairs(&entry.delivery.properties);
    listed.sort();
    let text = |name: &str| {
        listed.iter().find(|(header, _)| header == name).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    DeadLetter {
        sequence: entry.offset,
        id: text(envelope::ID),
        death: Death {
            code: text(envelope::DEAD_CODE).parse().unwrap_or(ErrorCode::Internal),
            reason: text(envelope::DEAD_REASON),
            attempts: text(envelope::ATTEMPTS).parse().unwrap_or(0),
            host: text(envelope::DEAD_HOST),
            at: text(envelope::DEAD_AT).parse().unwrap_or(0),
        },
        headers: listed,
        body: entry.delivery.data.into(),
    }
}
