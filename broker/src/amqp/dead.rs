//! Dead letters: stored with all of their headers, and why, where and when they were given up.

use std::collections::VecDeque;

use lapin::BasicProperties;

use sluice_core::ModelName;
use sluice_core::broker::{BrokerError, DeadLetter, Death, Result};

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
    let reason: String = death.reason.chars().take(LONGEST_REASON).collect();
    let properties = headers::copied(original, |table| {
        Death { reason, ..death.clone() }.write(|name, value| headers::put(table, name, value));
    });
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
        let stream::Entry { offset, delivery } = entry;
        newest.push_front(DeadLetter::read(offset, headers::pairs(&delivery.properties), delivery.data.into()));
        false
    })
    .await?;
    Ok(newest.into())
}
