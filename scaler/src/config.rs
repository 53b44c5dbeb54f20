//! The scaler's configuration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_broker::Options;
use sluice_core::manifest::is_group;
use sluice_registry::Location;
use sluice_service::config::ConfigError;
use sluice_service::telemetry::LogFormat;

use crate::share::Group;

/// The whole file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How to reach the broker.
    pub broker: Options,
    /// Where deployed models are.
    pub registry: Location,
    /// The scaler.
    pub scaler: ScalerConfig,
}

/// The `[scaler]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct ScalerConfig {
    /// This scaler's name in logs, and as the holder of the lead; the machine's name and the process's number if empty.
    pub name: String,
    /// Where `/live`, `/ready` and `/metrics` are served.
    pub admin: SocketAddr,
    /// A `tracing` filter.
    pub log: String,
    /// `text` or `json`.
    pub log_format: LogFormat,
    /// From one round of decisions to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// How often the registry is looked at, should the signal that something changed be lost.
    #[serde(with = "humantime_serde")]
    pub registry_poll: Duration,
    /// Shares of groups of models; one that is not here has weight 1 and no minimum.
    pub groups: Vec<Group>,
    /// A command, with its arguments, that is told as JSON on its standard input what slots fit nowhere whenever that changes: it may add
    /// hosts.
    pub when_short: Vec<String>,
    /// What a device counts for at most, whatever its host says: of `cpu`, threads; of `cuda`, each GPU's slots.
    pub max_capacity: BTreeMap<String, usize>,
}

/// More than a machine has, and no more than a few of them.
const MAX_CAPACITY: [(&str, usize); 2] = [("cpu", 1024), ("cuda", 64)];

impl Default for ScalerConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            admin: SocketAddr::from(([127, 0, 0, 1], 9465)),
            // RabbitMQ's client logs as errors what its caller handles.
            log: "info,lapin=off".into(),
            log_format: LogFormat::default(),
            interval: Duration::from_millis(500),
            registry_poll: Duration::from_secs(15),
            groups: Vec::new(),
            when_short: Vec::new(),
            max_capacity: MAX_CAPACITY.map(|(kind, most)| (kind.to_owned(), most)).into(),
        }
    }
}

impl Config {
    /// Checks what types cannot; all faults at once.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut faults = self.broker.faults();
        faults.extend(self.registry.fault());
        if self.scaler.interval < Duration::from_millis(50) {
            faults.push(format!("`scaler.interval` is {:?}: 50ms or more", self.scaler.interval));
        }
        for kind in self.scaler.max_capacity.keys().filter(|kind| MAX_CAPACITY.iter().all(|(known, _)| known != kind)) {
            faults.push(format!("`scaler.max_capacity.{kind}`: there are `cpu` and `cuda`"));
        }
        for (index, group) in self.scaler.groups.iter().enumerate() {
            if !is_group(&group.name) {
                faults.push(format!(
                    "`scaler.groups[{index}].name` is `{}`: names of a-z, 0-9 and -, up to four levels apart by /",
                    group.name
                ));
            }
            if !(group.weight > 0.0 && group.weight.is_finite()) {
                faults.push(format!("`scaler.groups[{index}].weight` is {}: more than 0", group.weight));
            }
            if self.scaler.groups[..index].iter().any(|earlier| earlier.name == group.name) {
                faults.push(format!("`scaler.groups[{index}].name`: `{}` is listed twice", group.name));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::new("configuration", faults)) }
    }

    /// What a device of each kind counts for at most.
    pub fn max_capacity(&self) -> BTreeMap<String, usize> {
        let mut most = ScalerConfig::default().max_capacity;
        most.extend(self.scaler.max_capacity.clone());
        most
    }

    /// This scaler's name.
    pub fn name(&self) -> String {
        if !self.scaler.name.is_empty() {
            return self.scaler.name.clone();
        }
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("{}-{}", machine.trim(), std::process::id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_port_is_for_this_machine_unless_somebody_says_otherwise() {
        assert!(ScalerConfig::default().admin.ip().is_loopback());
    }
}
