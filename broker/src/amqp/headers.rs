//! Envelopes and replies as AMQP properties and headers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use sluice_core::broker::Reply;
use sluice_core::clock::unix_ms;
use sluice_core::codec::ContentType;
use sluice_core::envelope::{self, Envelope};
use sluice_core::{ErrorCode, Lane};

/// When a request was submitted, in Unix milliseconds: the broker does not say, and the property `timestamp` counts seconds.
pub(super) const SUBMITTED: &str = "sluice-submitted";
/// How often RabbitMQ has delivered a message of a quorum queue before.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// Kept on disk.
const PERSISTENT: u8 = 2;

/// A message's headers as text.
pub(super) type Pairs = Vec<(String, String)>;

pub(super) fn durable() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(PERSISTENT)
}

pub(super) fn of_envelope(envelope: &Envelope, submission_id: String) -> BasicProperties {
    let mut table = FieldTable::default();
    let mut properties = durable().with_message_id(submission_id.into());
    envelope.write(|name, value| match name {
        envelope::CONTENT_TYPE => properties = properties.clone().with_content_type(value.into_owned().into()),
        _ => put(&mut table, name, value.into_owned()),
    });
    put(&mut table, SUBMITTED, unix_ms().to_string());
    properties.with_headers(table)
}

pub(super) fn put(table: &mut FieldTable, name: &str, value: String) {
    table.insert(ShortString::from(name), AMQPValue::LongString(LongString::from(value)));
}

/// All headers that are text or numbers, the content type among them.
pub(super) fn pairs(properties: &BasicProperties) -> Pairs {
    let mut pairs = Vec::new();
    if let Some(content_type) = properties.content_type() {
        pairs.push((envelope::CONTENT_TYPE.to_owned(), content_type.to_string()));
    }
    for (name, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        if let Some(text) = text(value) {
            pairs.push((name.to_string(), text));
        }
    }
    pairs
}

fn text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        AMQPValue::ByteArray(bytes) => Some(String::from_utf8_lossy(bytes.as_slice()).into_owned()),
        AMQPValue::Boolean(value) => Some(value.to_string()),
        other => number(other).map(|number| number.to_string()),
    }
}

fn number(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(number) => Some((*number).into()),
        AMQPValue::ShortShortUInt(number) => Some((*number).into()),
        AMQPValue::ShortInt(number) => Some((*number).into()),
        AMQPValue::ShortUInt(number) => Some((*number).into()),
        AMQPValue::LongInt(number) => Some((*number).into()),
        AMQPValue::LongUInt(number) => Some((*number).into()),
        AMQPValue::LongLongInt(number) => Some(*number),
        AMQPValue::Timestamp(seconds) => i64::try_from(*seconds).ok(),
        _ => None,
    }
}

fn header<'p>(properties: &'p BasicProperties, name: &str) -> Option<&'p AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

pub(super) fn text_of(properties: &BasicProperties, name: &str) -> Option<String> {
    header(properties, name).and_then(text)
}

/// Attempts charged so far: what we wrote, and deliveries since then that ended with their consumer's death.
pub(super) fn charged(properties: &BasicProperties) -> u32 {
    let written = text_of(properties, envelope::ATTEMPTS).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    let since = header(properties, DELIVERY_COUNT).and_then(number).unwrap_or(0);
    written.saturating_add(u32::try_from(since).unwrap_or(0))
}

/// The lane of a request that came by the retried queue.
pub(super) fn lane(properties: &BasicProperties) -> Lane {
    text_of(properties, envelope::LANE).and_then(|text| text.parse().ok()).unwrap_or_default()
}

pub(super) fn submitted(properties: &BasicProperties) -> SystemTime {
    let written = text_of(properties, SUBMITTED).and_then(|text| text.parse::<u64>().ok()).map(Duration::from_millis);
    let since_epoch = written.or_else(|| properties.timestamp().map(Duration::from_secs));
    since_epoch.and_then(|time| UNIX_EPOCH.checked_add(time)).unwrap_or_else(SystemTime::now)
}

/// The same message once more, with this much charged: what the broker counted concerns the one that it replaces.
pub(super) fn again(properties: &BasicProperties, lane: Lane, charged: u32) -> BasicProperties {
    copied(properties, |table| {
        put(table, envelope::ATTEMPTS, charged.to_string());
        put(table, envelope::LANE, lane.to_string());
    })
}

/// The same message for another queue: all that its sender says of it, and nothing that the broker would obey, such as an
/// expiration, a user who is not us, or further addresses.
pub(super) fn copied(properties: &BasicProperties, change: impl FnOnce(&mut FieldTable)) -> BasicProperties {
    let obeyed = |name: &ShortString| name.as_str().starts_with("x-") || matches!(name.as_str(), "CC" | "BCC");
    let mut table = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        if !obeyed(name) {
            table.insert(name.clone(), value.clone());
        }
    }
    change(&mut table);
    let mut copy = durable().with_headers(table);
    if let Some(content_type) = properties.content_type() {
        copy = copy.with_content_type(content_type.clone());
    }
    if let Some(id) = properties.message_id() {
        copy = copy.with_message_id(id.clone());
    }
    if let Some(timestamp) = properties.timestamp() {
        copy = copy.with_timestamp(*timestamp);
    }
    copy
}

pub(super) fn of_reply(reply: &Reply) -> BasicProperties {
    let mut table = FieldTable::default();
    put(&mut table, envelope::ID, reply.id.to_string());
    if let Some(code) = reply.error {
        put(&mut table, envelope::ERROR, code.as_str().into());
    }
    if let Some(traceparent) = &reply.traceparent {
        put(&mut table, envelope::TRACEPARENT, traceparent.clone());
    }
    let mut properties = durable().with_headers(table);
    if reply.content_type != ContentType::default() {
        properties = properties.with_content_type(reply.content_type.as_str().into());
    }
    properties
}

/// Reads a reply; `None` if it is none.
pub(super) fn to_reply(properties: &BasicProperties, body: Vec<u8>) -> Option<Reply> {
    let content_type = match properties.content_type() {
        Some(content_type) => content_type.as_str().parse().ok()?,
        None => ContentType::default(),
    };
    Some(Reply {
        id: text_of(properties, envelope::ID)?.parse().ok()?,
        error: text_of(properties, envelope::ERROR).map(|code| code.parse().unwrap_or(ErrorCode::Internal)),
        content_type,
        body: Bytes::from(body),
        traceparent: text_of(properties, envelope::TRACEPARENT),
    })
}
