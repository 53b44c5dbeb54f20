//! The scaler: watches queues and hosts, decides how many slots each model needs and where, and tells the hosts. Also a simulation that
//! compares the decision with simpler rules over hours of traffic. Modules stand in the order in which a round goes through them.

pub mod arrivals;
pub mod assign;
pub mod brain;
pub mod catalog;
pub mod config;
mod decide;
mod ears;
pub mod fleet;
pub mod lease;
mod metrics;
pub mod place;
mod queues;
pub mod record;
mod run;
pub mod share;
mod shortage;
pub mod simulation;
mod storage;

pub use decide::{Bound, Decision, Demand, History, Lag, Need, Reason, Scaling, Step, decide};
pub use run::run;
