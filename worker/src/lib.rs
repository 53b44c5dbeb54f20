//! The worker: pulls requests off a queue, batches them, runs them, answers, and only then acknowledges.
//! Modules stand in the order in which work flows.

mod batcher;
pub mod config;
pub mod engine;
mod intake;
mod metrics;
pub mod package;
mod reply;
mod run;
mod serve;
mod slot;
mod station;

pub use run::{Exit, run};
