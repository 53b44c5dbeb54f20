//! What the client's errors mean at the seam.

use std::fmt::Display;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

use sluice_core::broker::BrokerError;

/// Any error of the client in the words of the seam.
pub(super) fn other(what: impl Display, error: lapin::Error) -> BrokerError {
    if let ErrorKind::ProtocolError(refusal) = error.kind()
        && is_denial(&error)
    {
        return BrokerError::Denied(format!("{what}: {}", refusal.get_message()));
    }
    BrokerError::Other { what: what.to_string(), source: error.into() }
}

/// An error and its cause in one line.
pub(super) fn told(error: &BrokerError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

/// Whether it is worth a wait of some seconds: a broker that has just started does not serve everything yet, and one that takes
/// no messages will not within that time.
pub(super) fn may_pass(error: &BrokerError) -> bool {
    error.is_transient() && !matches!(error, BrokerError::Blocked(_))
}

/// Whether these credentials may not do this, or not be there at all.
pub(super) fn is_denial(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(refusal) = error.kind() else { return false };
    matches!(
        refusal.kind(),
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
    )
}

/// Whether the broker says that a queue or an exchange is not there.
pub(super) fn is_not_found(error: &lapin::Error) -> bool {
    is_soft(error, AMQPSoftError::NOTFOUND) && !is_starting(error)
}

/// Whether a queue's node is still starting. That is "not found" too, and only the text tells: "home node ... is down or
/// inaccessible".
pub(super) fn is_starting(error: &lapin::Error) -> bool {
    is_soft(error, AMQPSoftError::NOTFOUND) && error.to_string().contains("inaccessible")
}

/// Whether an error concerns one channel and not the connection.
pub(super) fn is_of_channel(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(refusal) if matches!(refusal.kind(), AMQPErrorKind::Soft(_)))
}

/// Whether a queue is there with other arguments.
pub(super) fn is_mismatch(error: &lapin::Error) -> bool {
    is_soft(error, AMQPSoftError::PRECONDITIONFAILED)
}

/// Whether a queue is another connection's own.
pub(super) fn is_locked(error: &lapin::Error) -> bool {
    is_soft(error, AMQPSoftError::RESOURCELOCKED)
}

fn is_soft(error: &lapin::Error, kind: AMQPSoftError) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(refusal) if *refusal.kind() == AMQPErrorKind::Soft(kind))
}
