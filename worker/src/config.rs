//! The worker's configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_broker::Options;
use sluice_service::config::ConfigError;
use sluice_service::telemetry::LogFormat;

/// The whole file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How to reach the broker.
    pub broker: Options,
    /// This host.
    pub worker: WorkerConfig,
}

/// The `[worker]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerConfig {
    /// The host's name in dead letters and logs; the machine's name if empty.
    pub host: String,
    /// Where `/live`, `/ready` and `/metrics` are served.
    pub admin: SocketAddr,
    /// A `tracing` filter.
    pub log: String,
    /// `text` or `json`.
    pub log_format: LogFormat,
    /// How long an orderly end may take.
    #[serde(with = "humantime_serde")]
    pub drain_time: Duration,
    /// libtorch's profiling executor: slower first calls; some models with control flow run faster after them.
    pub jit_profiling: bool,
    /// What to run.
    pub slots: Vec<SlotConfig>,
}

/// One entry of `[[worker.slots]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SlotConfig {
    /// The folder with `model.toml`.
    pub package: PathBuf,
    /// `cpu` or `cuda:N`; what the package asks for if not given.
    #[serde(default)]
    pub device: Option<String>,
    /// How many slots; they share one copy of the weights.
    #[serde(default = "one")]
    pub count: usize,
}

fn one() -> usize {
    1
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            host: String::new(),
            admin: SocketAddr::from(([127, 0, 0, 1], 9464)),
            // RabbitMQ's client logs as errors what its caller handles.
            log: "info,lapin=off".into(),
            log_format: LogFormat::default(),
            drain_time: Duration::from_secs(30),
            jit_profiling: false,
            slots: Vec::new(),
        }
    }
}

impl Config {
    /// Checks what types cannot; all faults at once.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        if self.worker.slots.is_empty() {
            faults.push("`worker.slots` is empty: add a `[[worker.slots]]` with `package = \"models/digits\"`".into());
        }
        for (index, slot) in self.worker.slots.iter().enumerate() {
            if slot.count == 0 || slot.count > 256 {
                faults.push(format!("`worker.slots[{index}].count` is {}: 1 to 256", slot.count));
            }
            if let Some(Err(reason)) = slot.device.as_deref().map(crate::engine::Device::parse) {
                faults.push(format!("`worker.slots[{index}].device` {reason}"));
            }
            if self.worker.slots[..index].iter().any(|earlier| earlier.package == slot.package) {
                faults.push(format!(
                    "`worker.slots[{index}].package` is listed twice: raise the `count` of the first entry instead"
                ));
            }
        }
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::new("configuration", faults)) }
    }

    /// The host's name.
    pub fn host(&self) -> String {
        if !self.worker.host.is_empty() {
            return self.worker.host.clone();
        }
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        if name.trim().is_empty() { "unnamed-host".into() } else { name.trim().into() }
    }
}
