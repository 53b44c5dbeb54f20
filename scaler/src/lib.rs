//! The scaler's decisions: how many slots a model needs, as a pure function, and the simulation that compares it with simpler
//! rules over hours of traffic.

mod decide;
pub mod simulation;

pub use decide::{Decision, Demand, History, Lag, Scaling, decide};
