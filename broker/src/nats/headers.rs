//! Envelopes and replies as NATS headers. Header names are case-sensitive on NATS.

use std::borrow::Cow;

use async_nats::{HeaderMap, HeaderName};
use bytes::Bytes;

use sluice_core::ErrorCode;
use sluice_core::broker::Reply;
use sluice_core::codec::ContentType;
use sluice_core::envelope::{self, Envelope};

/// NATS drops a repeated publish with this header within the stream's window.
pub(super) const SUBMISSION_ID: &str = "Nats-Msg-Id";
/// NATS stores a publish with this header only if it is the sequence number of the subject's last message.
pub(super) const EXPECTED_LAST_ON_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence";

/// The largest headers that a stream stores (nats-server's error 10097).
pub(super) const LARGEST: usize = u16::MAX as usize;

/// Headers as they are sent: `NATS/1.0`, a line for each, an empty line (NATS ADR-4).
pub(super) fn size(headers: &HeaderMap) -> usize {
    let lines: usize = pairs(headers).map(|(name, value)| name.len() + ": ".len() + value.len() + "\r\n".len()).sum();
    "NATS/1.0\r\n".len() + lines + "\r\n".len()
}

pub(super) fn of_envelope(envelope: &Envelope) -> HeaderMap {
    let mut headers = HeaderMap::new();
    envelope.write(|name, value| put(&mut headers, name, value));
    headers
}

/// Inserts a header. A value with a line break cannot stand in a header: it is written without.
pub(super) fn put<'v>(headers: &mut HeaderMap, name: &'static str, value: impl Into<Cow<'v, str>>) {
    let mut value = value.into();
    if value.bytes().any(|byte| matches!(byte, b'\r' | b'\n')) {
        value = value.replace(['\r', '\n'], " ").into();
    }
    headers.insert(HeaderName::from_static(name), value.into_owned());
}

pub(super) fn get<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).map(|value| value.as_str())
}

/// All headers, one after the other: cheaper than looking each up by its name.
pub(super) fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers.iter().flat_map(|(name, values)| values.iter().map(|value| (name.as_ref(), value.as_str())))
}

pub(super) fn of_reply(reply: &Reply) -> HeaderMap {
    let mut headers = HeaderMap::new();
    put(&mut headers, envelope::ID, reply.id.as_str());
    if let Some(code) = reply.error {
        put(&mut headers, envelope::ERROR, code.as_str());
    }
    if reply.content_type != ContentType::default() {
        put(&mut headers, envelope::CONTENT_TYPE, reply.content_type.as_str());
    }
    if let Some(traceparent) = &reply.traceparent {
        put(&mut headers, envelope::TRACEPARENT, traceparent);
    }
    headers
}

/// Reads a reply; `None` if it is none.
pub(super) fn to_reply(headers: &HeaderMap, body: Bytes) -> Option<Reply> {
    let (mut id, mut error, mut traceparent) = (None, None, None);
    let mut content_type = ContentType::default();
    for (name, value) in pairs(headers) {
        match name {
            envelope::ID => id = value.parse().ok(),
            envelope::ERROR => error = Some(value.parse().unwrap_or(ErrorCode::Internal)),
            envelope::CONTENT_TYPE => content_type = value.parse().ok()?,
            envelope::TRACEPARENT => traceparent = Some(value.to_owned()),
            _ => {}
        }
    }
    Some(Reply { id: id?, error, content_type, body, traceparent })
}
