//! End to end: real servers, real binaries.

mod answers;
mod engine;
mod faults;
mod files;
mod operations;
