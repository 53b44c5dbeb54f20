//! Why a request was not answered with tensors: a closed set of codes, and the words for its sender.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The codes that a reply may carry. The names are those of gRPC where gRPC has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The request is malformed or does not fit the model. Sending it again will not help.
    InvalidArgument,
    /// No such model or version.
    NotFound,
    /// The deadline passed before the request was run.
    DeadlineExceeded,
    /// A limit was reached: the queue is full, or memory ran out on every attempt.
    ResourceExhausted,
    /// The model itself failed on this input. It is kept as a dead letter.
    ModelFailed,
    /// The model is stopped or was removed. Sending it again helps once it is started.
    Unavailable,
    /// The workers that ran it died or hung each time. It is kept as a dead letter.
    Aborted,
    /// A fault of Sluice or its set-up. It is kept as a dead letter.
    Internal,
}

impl ErrorCode {
    /// All codes.
    pub const ALL: [ErrorCode; 8] = [
        ErrorCode::InvalidArgument,
        ErrorCode::NotFound,
        ErrorCode::DeadlineExceeded,
        ErrorCode::ResourceExhausted,
        ErrorCode::ModelFailed,
        ErrorCode::Unavailable,
        ErrorCode::Aborted,
        ErrorCode::Internal,
    ];

    /// The code on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::InvalidArgument => "INVALID_ARGUMENT",
            ErrorCode::NotFound => "NOT_FOUND",
            ErrorCode::DeadlineExceeded => "DEADLINE_EXCEEDED",
            ErrorCode::ResourceExhausted => "RESOURCE_EXHAUSTED",
            ErrorCode::ModelFailed => "MODEL_FAILED",
            ErrorCode::Unavailable => "UNAVAILABLE",
            ErrorCode::Aborted => "ABORTED",
            ErrorCode::Internal => "INTERNAL",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for ErrorCode {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        ErrorCode::ALL.into_iter().find(|code| code.as_str() == text).ok_or(())
    }
}

/// A code and a sentence for the request's sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{code}: {message}")]
pub struct Failure {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What, where, and what would be right.
    pub message: String,
}

impl Failure {
    /// A failure of the given kind.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The sender's fault.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }
}
