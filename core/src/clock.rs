//! Wall-clock time as it travels in headers. Everything that decides takes `now` as an argument instead.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub type UnixMs = u64;

/// The wall clock now.
pub fn unix_ms() -> UnixMs {
    unix_ms_of(SystemTime::now())
}

/// A time of the wall clock.
pub fn unix_ms_of(time: SystemTime) -> UnixMs {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as UnixMs)
}
