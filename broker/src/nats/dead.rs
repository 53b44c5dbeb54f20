//! Dead letters: stored with all of their headers, and why, where and when they were given up.

use std::collections::VecDeque;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use bytes::Bytes;
use futures_util::StreamExt;

use sluice_core::broker::{DeadLetter, Death, Result};
use sluice_core::{ModelName, envelope};

use super::acks::{Acks, NotStored};
use super::error::other;
use super::{Nats, headers, names};

/// Headers that NATS would obey: they concerned the original.
const NOT_KEPT: &str = "Nats-";

pub(super) async fn store(
    acks: &Acks,
    model: &ModelName,
    original: &HeaderMap,
    body: Bytes,
    death: &Death,
    name: &str,
) -> Result<()> {
    let mut all = HeaderMap::new();
    for (name, values) in original.iter() {
        if !name.to_string().starts_with(NOT_KEPT) {
            for value in values {
                all.append(name.clone(), value.clone());
            }
        }
    }
    death.write(|name, value| headers::put(&mut all, name, value));
    // Were we to die before the original is gone, whoever gets it next does not bury it twice.
    headers::put(&mut all, headers::SUBMISSION_ID, name);
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| other("storing a dead letter", error);
    let publish = |headers, body| acks.publish(names::dead_subject(model), headers, body);
    let size = body.len();
    match publish(all.clone(), body).await {
        Ok(_) => Ok(()),
        // What is said of it no longer fits beside it: that is worth more than the body.
        Err(NotStored::TooLarge) => {
            let reason = format!("{} (its body of {size} bytes was too large to be kept)", death.reason);
            headers::put(&mut all, envelope::DEAD_REASON, &reason);
            publish(all, Bytes::new()).await.map(drop).map_err(|error| failed(error.into()))
        }
        Err(error) => Err(failed(error.into())),
    }
}

pub(super) async fn list(nats: &Nats, model: &ModelName, limit: usize) -> Result<Vec<DeadLetter>> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        nats.explained(other(format!("reading the dead letters of model `{model}`"), error))
    };
    let config = pull::OrderedConfig { filter_subject: names::dead_subject(model), ..Default::default() };
    let made = nats.jetstream.create_consumer_on_stream(config, names::DEAD);
    let made = nats.allowed(&format!("CONSUMER.CREATE.{}.", names::DEAD), made).await?;
    let mut consumer = made.map_err(|error| failed(error.into()))?;
    let total = consumer.info().await.map_err(|error| failed(error.into()))?.num_pending;
    let mut newest = VecDeque::new();
    if total > 0 {
        let mut messages = consumer.messages().await.map_err(|error| failed(error.into()))?;
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| failed(error.into()))?;
            let info = message.info().map_err(failed)?;
            let (sequence, pending) = (info.stream_sequence, info.pending);
            if newest.len() == limit {
                newest.pop_back();
            }
            let pairs = message.headers.iter().flat_map(headers::pairs);
            let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            newest.push_front(DeadLetter::read(sequence, pairs, message.payload.clone()));
            if pending == 0 {
                break;
            }
        }
    }
    Ok(newest.into())
}
