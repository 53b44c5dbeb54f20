//! Dead letters: stored with all of their headers that there is room for, and why, where and when they were given up.

use std::collections::VecDeque;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use bytes::Bytes;
use futures_util::StreamExt;

use sluice_core::ModelName;
use sluice_core::broker::{DeadLetter, Death, Result, shortened};

use super::acks::{Acks, NotStored};
use super::error::{self, other};
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
    let failed = |error: NotStored| error::of_stored("storing a dead letter", error);
    let publish = |headers, body| acks.publish(names::dead_subject(model), headers, body);
    let whole = written(kept_whole(original), death, name);
    let mut left_out = String::new();
    let all = match headers::size(&whole) {
        size if size > headers::LARGEST => {
            left_out = format!("its headers of {size} bytes were too large to be kept; ");
            written(kept_in_part(original), death, name)
        }
        _ => whole,
    };
    let size = body.len();
    let first = if left_out.is_empty() { all.clone() } else { explained(all.clone(), death, &left_out) };
    match publish(first, body).await {
        Ok(_) => Ok(()),
        // What is said of it no longer fits beside it: that is worth more than the body.
        Err(error) if error.is_of_size() => {
            left_out += &format!("its body of {size} bytes was too large to be kept; ");
            publish(explained(all, death, &left_out), Bytes::new()).await.map(drop).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn kept_whole(original: &HeaderMap) -> HeaderMap {
    let mut all = HeaderMap::new();
    for (name, values) in original.iter() {
        if !name.to_string().starts_with(NOT_KEPT) {
            for value in values {
                all.append(name.clone(), value.clone());
            }
        }
    }
    all
}

fn kept_in_part(original: &HeaderMap) -> HeaderMap {
    let mut all = HeaderMap::new();
    for (name, value) in shortened(headers::pairs(original)) {
        headers::put(&mut all, name, value);
    }
    all
}

/// What a dead letter says beside its request's headers.
fn written(mut all: HeaderMap, death: &Death, name: &str) -> HeaderMap {
    death.write(|name, value| headers::put(&mut all, name, value));
    // Were we to die before the original is gone, whoever gets it next does not bury it twice.
    headers::put(&mut all, headers::SUBMISSION_ID, name);
    all
}

/// With the reason as it is, and what of the request is not there.
fn explained(mut all: HeaderMap, death: &Death, left_out: &str) -> HeaderMap {
    let reason = format!("({}) {}", left_out.trim_end_matches("; "), death.reason);
    Death { reason, ..death.clone() }.write(|name, value| headers::put(&mut all, name, value));
    all
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
