//! A harness that starts real brokers and the real binaries in temporary folders, and talks to them.

pub mod binaries;
pub mod fixture;
pub mod load;
pub mod proxy;
pub mod stack;

pub use stack::{Stack, Worker};
