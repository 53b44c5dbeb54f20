//! What every long-running binary needs: configuration, telemetry, an admin port, and a way to stop.

pub mod admin;
pub mod config;
pub mod describe;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;
