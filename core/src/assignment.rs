//! What a host should run: said by the scaler, whole each time, so that a lost, repeated or late one does no harm.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ModelName;
use crate::clock::UnixMs;

/// Orders assignments: those of a later leader are greater than all of an earlier one. Hosts refuse what is not greater than what
/// they follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation {
    /// The term of the leader that sent it.
    pub term: u64,
    /// Grows with each that it sends.
    pub counter: u64,
}

impl fmt::Display for Generation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.term, self.counter)
    }
}

/// Everything that one host should run now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Which host.
    pub host: String,
    /// Which of the processes that report under this name; any if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Another process that reports under this name, and has to take no work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin: Option<String>,
    /// Its place in the order.
    pub generation: Generation,
    /// What it runs, by model and device; whatever is not here drains.
    pub slots: Vec<Assigned>,
    /// Whether an operator wants nothing more, or nothing at all, to run here.
    #[serde(default)]
    pub gate: Gate,
    /// Devices that are lent to other work. They are here so that a new leader learns of them from the hosts.
    #[serde(default)]
    pub leases: Vec<Lease>,
}

/// What an operator lets a host have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    /// Whatever fits.
    #[default]
    Open,
    /// What it has, and nothing new.
    Cordoned,
    /// Nothing: what runs there drains.
    Drained,
}

impl Gate {
    /// The word on the wire and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Gate::Open => "open",
            Gate::Cordoned => "cordoned",
            Gate::Drained => "drained",
        }
    }
}

/// Slots of one model on one device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Assigned {
    /// Which model.
    pub model: ModelName,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// How many, at least one.
    pub slots: usize,
}

/// A device that is lent to work outside Sluice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Names the lease; one lease may be of several devices.
    pub id: String,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Whose share it counts to.
    pub group: String,
    /// Who has it, for people.
    pub holder: String,
    /// When it was asked for.
    pub since: UnixMs,
    /// When it ends by itself.
    pub until: Option<UnixMs>,
}

/// The topic on which a host hears its assignments, as JSON. Letters that a topic must not have become `_`; an assignment names its host
/// besides.
pub fn assignment_topic(host: &str) -> String {
    let allowed = |letter: char| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' };
    format!("assign.{}", host.chars().map(allowed).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_leader_is_greater_whatever_was_counted() {
        let generation = |term, counter| Generation { term, counter };
        assert!(generation(2, 0) > generation(1, 1000) && generation(2, 1) > generation(2, 0));
        assert!(generation(1, 1) > Generation::default());
    }

    #[test]
    fn a_hosts_name_cannot_widen_its_topic() {
        assert_eq!(assignment_topic("gpu-1.example.com"), "assign.gpu-1_example_com");
        assert_eq!(assignment_topic("a b.>"), "assign.a_b__");
    }
}
