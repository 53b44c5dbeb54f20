//! What a broker operation may fail with, and whether trying again may help.

use crate::{ModelName, RequestId};

/// Why a broker did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No connection.
    #[error("no broker answers at `{url}`")]
    Unreachable {
        /// The URL, without secrets.
        url: String,
        /// What the client saw.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The model's queue holds as much as its limits allow. Submit again later.
    #[error("the queue of model `{0}` is full: submit again later")]
    QueueFull(ModelName),
    /// There is no queue for this model.
    #[error("there is no model `{0}`: no queue of that name exists on this broker")]
    UnknownModel(ModelName),
    /// A part of the model's queue is gone, so that not all requests can be received: making the queue again mends it.
    #[error("the queue of model `{0}` is not whole: {1}")]
    Incomplete(ModelName, String),
    /// The message is larger than the queue or the broker takes.
    #[error("a message of {size} bytes is too large: {limit}")]
    TooLarge {
        /// Body and headers.
        size: usize,
        /// Who says so, and how much is taken.
        limit: String,
    },
    /// Its deadline passed before it could be submitted: it would be refused by whoever took it.
    #[error("the deadline of request `{0}` passed before it was submitted")]
    Expired(RequestId),
    /// The broker takes no messages for now: it is short of memory or disk.
    #[error("the broker takes no messages for now: {0}")]
    Blocked(String),
    /// These credentials may not do this.
    #[error("the broker denies this: {0}")]
    Denied(String),
    /// The broker will not have this message, however often it is sent.
    #[error("the broker refuses this: {0}")]
    Refused(String),
    /// The broker did not answer in time; whether it did what was asked is not known.
    #[error("the broker did not answer in time: {0}")]
    TimedOut(String),
    /// An address, a URL or a limit that cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// Anything else.
    #[error("{what}")]
    Other {
        /// What was being done.
        what: String,
        /// What the client saw.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BrokerError {
    /// Whether making the model's queue again mends it.
    pub fn is_of_a_lost_queue(&self) -> bool {
        matches!(self, BrokerError::UnknownModel(_) | BrokerError::Incomplete(..))
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            BrokerError::Unreachable { .. }
            | BrokerError::QueueFull(_)
            | BrokerError::Blocked(_)
            | BrokerError::TimedOut(_)
            | BrokerError::Other { .. } => true,
            BrokerError::UnknownModel(_)
            | BrokerError::Incomplete(..)
            | BrokerError::TooLarge { .. }
            | BrokerError::Expired(_)
            | BrokerError::Denied(_)
            | BrokerError::Refused(_)
            | BrokerError::Unusable(_) => false,
        }
    }
}
