//! Dead letters: stored with all of their headers that there is room for, and why, where and when they were given up.

use std::collections::VecDeque;

use lapin::BasicProperties;

use sluice_core::ModelName;
use sluice_core::broker::{BrokerError, DeadLetter, Death, Result};

use super::connect::Link;
use super::publish::{Published, stored};
use super::{headers, names, stream};

pub(super) async fn store(
    link: &Link,
    model: &ModelName,
    original: &BasicProperties,
    body: &[u8],
    death: &Death,
) -> Result<()> {
    let whole = headers::copied(original, |table| {
        death.write(|name, value| headers::put(table, name, value));
    });
    let properties = match link.refuse_oversize(&whole) {
        Ok(()) => whole,
        Err(error) => {
            let reason = format!("(its headers were too large to be kept: {error}) {}", death.reason);
            headers::in_part(original, &Death { reason, ..death.clone() })
        }
    };
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
