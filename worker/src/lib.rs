//! The worker: pulls requests off a queue, batches them, runs them, answers, and only then acknowledges.
//! Modules stand in the order in which work flows.

mod batcher;
mod board;
pub mod check;
pub mod config;
mod deployment;
mod directory;
pub mod engine;
mod following;
mod intake;
mod memory;
mod meter;
mod metrics;
mod onward;
pub mod package;
mod plan;
mod reception;
mod refuse;
mod reply;
mod run;
mod serve;
mod slot;
mod station;

pub use run::{Exit, run};
