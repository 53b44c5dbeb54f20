//! The worker's configuration.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_broker::Options;
use sluice_core::ModelName;
use sluice_registry::Location;
use sluice_service::config::ConfigError;
use sluice_service::telemetry::LogFormat;

/// The whole file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How to reach the broker.
    pub broker: Options,
    /// Where deployed models are.
    pub registry: Location,
    /// This host.
    pub worker: WorkerConfig,
}

/// Batches of one model leave gaps that those of others fill; more than a few slots only wait for each other.
const SLOTS_PER_GPU: usize = 4;

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
    /// Operators that models may use though they may reach outside of the model, such as `aten::from_file`: for packages that are trusted as
    /// much as the worker itself.
    pub allow_operators: Vec<String>,
    /// How often the registry is looked at, should the signal that something changed be lost.
    #[serde(with = "humantime_serde")]
    pub registry_poll: Duration,
    /// Where copies of packages are kept; `sluice/packages` in the user's cache folder if empty.
    pub cache: PathBuf,
    /// How much of the disk they may take, in MiB.
    pub cache_mib: u64,
    /// Memory for models in MiB, by device: `{ cpu = 8192, "cuda:0" = 24000 }`. Of the processors' memory the system is asked otherwise.
    pub memory: BTreeMap<String, u64>,
    /// What selectors of models look for: `{ zone = "a", gpu = "a100" }`.
    pub labels: BTreeMap<String, String>,
    /// How much each device can run at once, `{ cpu = 8, "cuda:0" = 4 }`: of processors, threads; of a GPU, slots. Not given: all
    /// processors, and four slots for each GPU.
    pub capacity: BTreeMap<String, usize>,
    /// What to run; if nothing is listed, what the scaler says.
    pub slots: Vec<SlotConfig>,
}

/// One entry of `[[worker.slots]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SlotConfig {
    /// The folder with `model.toml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<PathBuf>,
    /// Or a model of the registry; `*` for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
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

/// Where copies of packages are kept, as far as the configuration and the environment say: what is in a folder that others share, such as
/// that for temporary files, they could change.
fn cache_folder(configured: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, String> {
    if !configured.as_os_str().is_empty() {
        return Ok(configured.to_owned());
    }
    let named = |name| variable(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let folder = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
    let folder = folder.ok_or(
        "`worker.cache` is not set, and neither XDG_CACHE_HOME nor HOME says where this user's cache is: name a folder of \
         this worker's own, such as `/var/cache/sluice/packages`",
    );
    Ok(folder?.join("sluice/packages"))
}

/// What an entry of `[[worker.slots]]` serves.
pub enum Served<'c> {
    /// A folder; it does not change.
    Package(&'c Path),
    /// A model of the registry.
    Model(ModelName),
    /// All models of the registry that no other entry names.
    All,
}

impl SlotConfig {
    /// What it serves.
    pub fn serves(&self) -> Result<Served<'_>, ConfigError> {
        let refuse = |reason: String| ConfigError::new("configuration", vec![format!("`worker.slots` {reason}")]);
        match (self.package.as_deref(), self.model.as_deref()) {
            (Some(package), None) => Ok(Served::Package(package)),
            (None, Some("*")) => Ok(Served::All),
            (None, Some(model)) => Ok(Served::Model(model.parse().map_err(|error| refuse(format!("{error}")))?)),
            _ => Err(refuse("needs either `package`, a folder, or `model`, a name in the registry or `*`".into())),
        }
    }

    /// The device that it names.
    pub fn device(&self) -> Result<Option<crate::engine::Device>, ConfigError> {
        let refuse = |reason| ConfigError::new("configuration", vec![format!("`worker.slots.device` {reason}")]);
        self.device.as_deref().map(crate::engine::Device::parse).transpose().map_err(refuse)
    }
}

impl WorkerConfig {
    /// Where copies of packages are kept.
    pub fn cache_folder(&self) -> Result<PathBuf, ConfigError> {
        cache_folder(&self.cache, |name| std::env::var_os(name))
            .map_err(|fault| ConfigError::new("configuration", vec![fault]))
    }
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
            allow_operators: Vec::new(),
            registry_poll: Duration::from_secs(15),
            cache: PathBuf::new(),
            cache_mib: 20 * 1024,
            memory: BTreeMap::new(),
            labels: BTreeMap::new(),
            capacity: BTreeMap::new(),
            slots: Vec::new(),
        }
    }
}

impl Config {
    /// Checks what types cannot; all faults at once.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut faults = self.broker.faults();
        faults.extend(self.registry.fault());
        let devices = [
            ("memory", self.worker.memory.keys().collect::<Vec<_>>()),
            ("capacity", self.worker.capacity.keys().collect()),
        ];
        for (key, devices) in devices {
            for reason in devices.into_iter().filter_map(|device| crate::engine::Device::parse(device).err()) {
                faults.push(format!("`worker.{key}`: the device {reason}"));
            }
        }
        for (index, slot) in self.worker.slots.iter().enumerate() {
            if slot.count == 0 || slot.count > 256 {
                faults.push(format!("`worker.slots[{index}].count` is {}: 1 to 256", slot.count));
            }
            if let Some(Err(reason)) = slot.device.as_deref().map(crate::engine::Device::parse) {
                faults.push(format!("`worker.slots[{index}].device` {reason}"));
            }
            if let Err(error) = slot.serves() {
                faults.push(format!("`worker.slots[{index}]`: {error}"));
            }
            let same = |earlier: &SlotConfig| earlier.package == slot.package && earlier.model == slot.model;
            if self.worker.slots[..index].iter().any(same) {
                faults.push(format!(
                    "`worker.slots[{index}]` is listed twice: raise the `count` of the first entry instead"
                ));
            }
        }
        let fetches = self.worker.slots.is_empty() || self.worker.slots.iter().any(|slot| slot.model.is_some());
        if let Err(fault) = cache_folder(&self.worker.cache, |name| std::env::var_os(name))
            && fetches
        {
            faults.push(fault);
        }
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::new("configuration", faults)) }
    }

    /// How much each device can run at once.
    pub fn capacity(&self) -> BTreeMap<String, usize> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let gpus = 0..crate::engine::gpus();
        let mut capacity: BTreeMap<String, usize> = gpus.map(|gpu| (format!("cuda:{gpu}"), SLOTS_PER_GPU)).collect();
        capacity.insert("cpu".into(), processors);
        capacity.extend(self.worker.capacity.clone());
        capacity
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_port_is_for_this_machine_unless_somebody_says_otherwise() {
        assert!(WorkerConfig::default().admin.ip().is_loopback());
    }

    #[test]
    fn copies_of_packages_are_kept_in_the_users_own_folder_and_nowhere_else() {
        let found = |configured: &str, variables: &[(&str, &str)]| {
            let variable =
                |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            cache_folder(Path::new(configured), variable).map(|folder| folder.display().to_string())
        };
        let (home, own, shared) = (("HOME", "/home/a"), ("XDG_CACHE_HOME", "/c"), ("TMPDIR", "/tmp"));
        assert_eq!(found("/var/cache/sluice", &[home]).as_deref(), Ok("/var/cache/sluice"));
        assert_eq!(found("", &[home, own]).as_deref(), Ok("/c/sluice/packages"));
        assert_eq!(found("", &[home, ("XDG_CACHE_HOME", "")]).as_deref(), Ok("/home/a/.cache/sluice/packages"));
        for nowhere in
            [&[shared][..], &[shared, ("HOME", "")], &[shared, ("HOME", "here"), ("XDG_CACHE_HOME", "there")]]
        {
            let told = found("", nowhere).expect_err("there is no such folder");
            assert!(told.contains("`worker.cache` is not set"), "{told}");
        }
    }
}
