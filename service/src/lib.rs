//! What every long-running binary needs: configuration, telemetry, an admin port, and a way to stop.

// Printing does not panic: a pipe may be closed, a disk full.
#[macro_use(print)]
extern crate sluice_core;

pub mod admin;
pub mod command;
pub mod config;
pub mod describe;
pub mod shutdown;
pub mod stack;
pub mod tasks;
pub mod telemetry;
