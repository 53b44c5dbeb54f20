//! Dead letters: requests that were given up, and what the headers of one say about that.

use bytes::Bytes;

use crate::clock::UnixMs;
use crate::{ErrorCode, envelope};

/// The longest reason that is kept: brokers bound all headers together, NATS at 64 KiB.
const LONGEST_REASON: usize = 8 * 1024;
/// What is kept of a header where there is no room for all of them.
const KEPT_OF_VALUE: usize = 1024;

/// Why, where and when a request was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// The kind of reason.
    pub code: ErrorCode,
    /// The reason in words.
    pub reason: String,
    /// Attempts charged, this one included.
    pub attempts: u32,
    /// The host that gave up.
    pub host: String,
    /// When.
    pub at: UnixMs,
}

impl Death {
    /// Hands out the headers that a dead letter has beside those of its request.
    pub fn write(&self, mut put: impl FnMut(&'static str, String)) {
        put(envelope::DEAD_CODE, self.code.as_str().to_owned());
        put(envelope::DEAD_REASON, start(&self.reason, LONGEST_REASON).replace(['\r', '\n'], " "));
        put(envelope::DEAD_HOST, self.host.clone());
        put(envelope::DEAD_AT, self.at.to_string());
        put(envelope::ATTEMPTS, self.attempts.to_string());
    }
}

/// What is kept of a request's headers where a dead letter has no room for all of them: those that we read, each once, and of each
/// no more than its beginning.
pub fn shortened<'h>(headers: impl Iterator<Item = (&'h str, &'h str)>) -> Vec<(&'static str, String)> {
    let mut kept: Vec<(&'static str, String)> = Vec::new();
    for (name, value) in headers {
        if let Some(read) = envelope::READ.into_iter().find(|read| *read == name)
            && kept.iter().all(|(known, _)| *known != read)
        {
            kept.push((read, start(value, KEPT_OF_VALUE).to_owned()));
        }
    }
    kept
}

/// At most so many bytes from the beginning of a text.
fn start(text: &str, longest: usize) -> &str {
    let end = (0..=longest.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// A request that was given up, as kept.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its place in the dead letters.
    pub sequence: u64,
    /// The request's id as it stood in the header, even if it was malformed.
    pub id: String,
    /// Why it was given up.
    pub death: Death,
    /// All headers, in order of their names.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl DeadLetter {
    /// Reads one that is stored; what cannot be read is left empty, since a dead letter is looked at by people.
    pub fn read(sequence: u64, mut headers: Vec<(String, String)>, body: Bytes) -> Self {
        headers.sort();
        let text = |name: &str| {
            headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let death = Death {
            code: text(envelope::DEAD_CODE).parse().unwrap_or(ErrorCode::Internal),
            reason: text(envelope::DEAD_REASON),
            attempts: text(envelope::ATTEMPTS).parse().unwrap_or(0),
            host: text(envelope::DEAD_HOST),
            at: text(envelope::DEAD_AT).parse().unwrap_or(0),
        };
        Self { sequence, id: text(envelope::ID), death, headers, body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_dead_letter_has_room_whatever_its_request_says() {
        let long = "\u{e4}".repeat(60_000);
        let mut headers = vec![(envelope::ID, long.as_str()), (envelope::TENANT, &long), ("their-own", &long)];
        headers.extend(std::iter::repeat_n((envelope::ROWS, "0"), 10_000));
        let kept = shortened(headers.into_iter());
        assert_eq!(
            kept.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            [envelope::ID, envelope::TENANT, envelope::ROWS]
        );
        assert!(kept.iter().all(|(_, value)| value.len() <= KEPT_OF_VALUE));
        let death = Death { code: ErrorCode::Internal, reason: long, attempts: 1, host: "a".into(), at: 1 };
        death.write(|name, value| assert!(value.len() <= LONGEST_REASON, "`{name}` is {} bytes long", value.len()));
    }
}
