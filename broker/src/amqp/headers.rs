//! Envelopes and replies as AMQP properties and headers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use sluice_core::broker::{Death, Reply, shortened};
use sluice_core::clock::unix_ms;
use sluice_core::codec::ContentType;
use sluice_core::envelope::{self, Envelope, Malformed};
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

/// A request's headers, each read by its type; one that cannot be is refused by its name.
pub(super) fn to_envelope(properties: &BasicProperties, lane: Lane) -> Result<Envelope, Box<Malformed>> {
    let content_type = properties.content_type().as_ref().map(|value| (envelope::CONTENT_TYPE, value.to_string()));
    let mut pairs: Vec<(&str, String)> = content_type.into_iter().collect();
    let mut faults = Vec::new();
    for (name, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        let name = name.as_str();
        if !envelope::READ.contains(&name) {
            continue;
        }
        match by_type(name, value) {
            Ok(text) => pairs.push((name, text)),
            Err(reason) => faults.push((name, reason)),
        }
    }
    Envelope::read_beside(lane, faults, pairs.iter().map(|(name, value)| (*name, value.as_str())))
}

/// What a header says, by its type; else the reason.
fn by_type(name: &str, value: &AMQPValue) -> Result<String, String> {
    let utf8 = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err("is not UTF-8".to_owned()),
    };
    let is = match value {
        AMQPValue::LongString(text) => return utf8(text.as_bytes()),
        AMQPValue::ShortString(text) => return Ok(text.to_string()),
        AMQPValue::ByteArray(bytes) => return utf8(bytes.as_slice()),
        AMQPValue::Timestamp(seconds) if name == envelope::DEADLINE => {
            return Ok(seconds.saturating_mul(1000).to_string());
        }
        AMQPValue::Timestamp(_) => "a timestamp",
        AMQPValue::Boolean(_) => "a boolean",
        AMQPValue::Float(_) | AMQPValue::Double(_) => "a floating-point number",
        AMQPValue::DecimalValue(_) => "a decimal number",
        AMQPValue::FieldArray(_) => "a list",
        AMQPValue::FieldTable(_) => "a table",
        AMQPValue::Void => "empty",
        other => match number(other) {
            Some(number) => return Ok(number.to_string()),
            None => "of a type that is not known here",
        },
    };
    Err(match name {
        envelope::DEADLINE => {
            format!("is {is}: write Unix time in milliseconds as an integer or as text, or an AMQP timestamp")
        }
        _ => format!("is {is}: write it as text"),
    })
}

/// All headers that are text or numbers, the content type among them, for people to look at.
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
        AMQPValue::Float(number) => Some(number.to_string()),
        AMQPValue::Double(number) => Some(number.to_string()),
        AMQPValue::Timestamp(seconds) => Some(seconds.to_string()),
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
        _ => None,
    }
}

fn header<'p>(properties: &'p BasicProperties, name: &str) -> Option<&'p AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

pub(super) fn text_of(properties: &BasicProperties, name: &str) -> Option<String> {
    header(properties, name).and_then(text)
}

/// Where a message comes from, and so whose headers are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// A lane's queue: what a producer says of attempts is not so.
    Producer,
    /// The queue for retries, into which only workers publish.
    Worker,
}

/// Attempts charged so far: what a worker wrote, and deliveries since then that ended with their consumer's death. The broker
/// counts these only in what it delivers again; on a first delivery such a header is the producer's.
pub(super) fn charged(properties: &BasicProperties, from: Writer, redelivered: bool) -> u32 {
    let written = match from {
        Writer::Producer => 0,
        Writer::Worker => {
            text_of(properties, envelope::ATTEMPTS).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0)
        }
    };
    let since = header(properties, DELIVERY_COUNT).filter(|_| redelivered).and_then(number).unwrap_or(0);
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
    copied(properties, |table| counted(table, lane, charged))
}

/// The same request with the headers that are read of it and no others, where there is no room for what we add; `None` if it is none
/// that can be served.
pub(super) fn again_in_part(properties: &BasicProperties, lane: Lane, charged: u32) -> Option<BasicProperties> {
    let envelope = to_envelope(properties, lane).ok()?;
    let mut table = FieldTable::default();
    let submission_id = properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
    let written = of_envelope(&envelope, submission_id);
    for (name, value) in written.headers().iter().flat_map(|table| table.inner()) {
        table.insert(name.clone(), value.clone());
    }
    let at = submitted(properties).duration_since(UNIX_EPOCH).unwrap_or_default();
    put(&mut table, SUBMITTED, at.as_millis().to_string());
    counted(&mut table, lane, charged);
    Some(written.with_headers(table))
}

fn counted(table: &mut FieldTable, lane: Lane, charged: u32) {
    put(table, envelope::ATTEMPTS, charged.to_string());
    put(table, envelope::LANE, lane.to_string());
}

/// The same message for another queue: all that its sender says of it, and nothing that the broker would obey, such as an
/// expiration, a user who is not us, or further addresses.
pub(super) fn copied(properties: &BasicProperties, change: impl FnOnce(&mut FieldTable)) -> BasicProperties {
    let obeyed = |name: &ShortString| name.as_str().starts_with("x-") || matches!(name.as_str(), "CC" | "BCC");
    let ours = |name: &ShortString| matches!(name.as_str(), envelope::ATTEMPTS | envelope::LANE);
    let mut table = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(|table| table.inner()) {
        if !obeyed(name) && !ours(name) {
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

/// A dead letter that has no room for all that its sender says.
pub(super) fn in_part(properties: &BasicProperties, death: &Death) -> BasicProperties {
    let mut table = FieldTable::default();
    let pairs = pairs(properties);
    let mut copy = durable();
    for (name, value) in shortened(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))) {
        match ShortString::try_new(value.as_str()) {
            Ok(value) if name == envelope::CONTENT_TYPE => copy = copy.with_content_type(value),
            _ => put(&mut table, name, value),
        }
    }
    death.write(|name, value| put(&mut table, name, value));
    copy.with_headers(table)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn with(headers: &[(&str, AMQPValue)]) -> BasicProperties {
        let mut table = FieldTable::default();
        put(&mut table, envelope::ID, "r1".into());
        put(&mut table, envelope::REPLY_TO, "inbox:inbox.x".into());
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        BasicProperties::default().with_headers(table)
    }

    #[test]
    fn each_header_is_read_by_its_type_or_refused_by_its_name() {
        let read = |name: &str, value: AMQPValue| to_envelope(&with(&[(name, value)]), Lane::Normal);
        let deadline = |value| read(envelope::DEADLINE, value).map(|envelope| envelope.deadline);
        assert_eq!(deadline(AMQPValue::LongLongInt(1_700_000_000_123)), Ok(Some(1_700_000_000_123)));
        assert_eq!(deadline(AMQPValue::Timestamp(1_700_000_000)), Ok(Some(1_700_000_000_000)), "it counts seconds");
        let version = read(envelope::VERSION, AMQPValue::ShortShortUInt(9)).expect("a number");
        assert_eq!(version.version.as_deref(), Some("9"));
        let refused = [
            (envelope::DEADLINE, AMQPValue::Double(1.7e12), "floating-point"),
            (envelope::DEADLINE, AMQPValue::LongInt(-5), "milliseconds"),
            (envelope::VERSION, AMQPValue::Float(9.5), "floating-point"),
            (envelope::TENANT, AMQPValue::Boolean(true), "boolean"),
            (envelope::SOURCE, AMQPValue::Void, "empty"),
            (envelope::THEN, AMQPValue::FieldArray(Default::default()), "list"),
            (envelope::VERSION, AMQPValue::LongString(vec![0xff].into()), "UTF-8"),
            (envelope::ID, AMQPValue::Double(1.5), "floating-point"),
        ];
        for (name, value, reason) in refused {
            let malformed = read(name, value).expect_err(name);
            assert!(malformed.reason.contains(&format!("header `{name}`")), "{}", malformed.reason);
            assert!(malformed.reason.contains(reason), "{}", malformed.reason);
            assert!(!malformed.reason.contains("missing"), "{}", malformed.reason);
            assert!(malformed.reply_to.is_some(), "the way back is kept");
        }
        assert!(read("their-own", AMQPValue::Double(1.5)).is_ok(), "what is not ours may be anything");
    }

    #[test]
    fn attempts_are_believed_only_from_whoever_counts_them() {
        let count = (DELIVERY_COUNT, AMQPValue::LongLongInt(7));
        let written = (envelope::ATTEMPTS, AMQPValue::LongString("3".into()));
        let message = with(&[count, written]);
        assert_eq!(charged(&message, Writer::Producer, false), 0, "a first delivery: both are a producer's");
        assert_eq!(charged(&message, Writer::Producer, true), 7);
        assert_eq!(charged(&message, Writer::Worker, false), 3);
        assert_eq!(charged(&message, Writer::Worker, true), 10);
        assert_eq!(charged(&copied(&message, |_| ()), Writer::Worker, true), 0, "it does not go into the next message");
    }
}
