//! Dead letters: requests that were given up, and what the headers of one say about that.

use bytes::Bytes;

use crate::clock::UnixMs;
use crate::{ErrorCode, envelope};

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
        put(envelope::DEAD_REASON, self.reason.replace(['\r', '\n'], " "));
        put(envelope::DEAD_HOST, self.host.clone());
        put(envelope::DEAD_AT, self.at.to_string());
        put(envelope::ATTEMPTS, self.attempts.to_string());
    }
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
