//! `model.toml`, the manifest of a package: what the model takes and gives, and how it is served.

mod check;
mod dimension;
mod profile;
mod scaling;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::broker::QueueLimits;
use crate::{Datatype, ModelName};

pub use check::{ManifestError, VERSION_RULE, is_version};
pub use dimension::{Dimension, Padding, Sizes};
pub use profile::{Profile, Setting, UnknownSetting};
pub use scaling::{GROUP_RULE, Scaling, is_group};

/// A whole `model.toml`. docs/model-package.md explains every key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The model's name, and that of its queue.
    pub name: ModelName,
    /// Told in every answer. The registry gives published packages their own.
    #[serde(default = "default_version")]
    pub version: String,
    /// What runs it.
    pub engine: EngineKind,
    /// The model file, relative to the manifest.
    pub file: String,
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// In the order of the model's arguments.
    pub inputs: Vec<TensorSpec>,
    /// In the order of the model's results, if these have no names.
    pub outputs: Vec<TensorSpec>,
    /// How named dimensions are padded so that requests of different sizes share a batch.
    #[serde(default)]
    pub padding: BTreeMap<String, Padding>,
    /// What is known of the sizes of named dimensions.
    #[serde(default)]
    pub sizes: BTreeMap<String, Sizes>,
    /// How batches are formed.
    #[serde(default)]
    pub batching: Batching,
    /// What requests may cost.
    #[serde(default)]
    pub limits: Limits,
    /// Where it runs.
    #[serde(default)]
    pub resources: Resources,
    /// How it comes, changes and goes once it is deployed.
    #[serde(default)]
    pub serving: Serving,
    /// How many slots it has.
    #[serde(default)]
    pub scaling: Scaling,
}

fn default_version() -> String {
    "1".into()
}

/// What can run a model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// A TorchScript file, by libtorch.
    TorchScript,
}

/// A named input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Its name in requests and answers.
    pub name: String,
    /// Its element type.
    pub datatype: Datatype,
    /// Its dimensions; the first is -1, the rows.
    pub shape: Vec<Dimension>,
}

/// How batches are formed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batching {
    /// No batch has more rows; a larger request is run in pieces.
    pub max_rows: usize,
    /// How long an idle slot waits for more, counted from a batch's first request. 0: not at all.
    #[serde(with = "humantime_serde")]
    pub max_delay: Duration,
}

impl Default for Batching {
    fn default() -> Self {
        Self { max_rows: 32, max_delay: Duration::ZERO }
    }
}

/// What requests may cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// A batch that runs longer is taken for hung: the worker gives everything back and starts afresh.
    #[serde(with = "humantime_serde")]
    pub batch_time: Duration,
    /// Requests that may wait or run, over all lanes.
    pub queue_length: u64,
    /// Bytes of one request, headers included.
    pub body_bytes: u64,
    /// Tries before a request becomes a dead letter.
    pub attempts: u32,
    /// How long a retry waits.
    #[serde(with = "humantime_serde")]
    pub retry_delay: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            batch_time: Duration::from_secs(30),
            queue_length: 100_000,
            body_bytes: 1024 * 1024,
            attempts: 3,
            retry_delay: Duration::from_secs(1),
        }
    }
}

/// Where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// The kind of device it wants.
    pub device: DeviceKind,
    /// Memory that one loaded copy takes, with its largest batch, in MiB; 0 if not known.
    pub memory_mib: u64,
    /// Intra-op threads per slot.
    pub threads: usize,
    /// Whether other models may run on the same device.
    pub sharing: Sharing,
}

impl Default for Resources {
    fn default() -> Self {
        Self { device: DeviceKind::Cpu, memory_mib: 0, threads: 1, sharing: Sharing::Shared }
    }
}

/// How a deployed model comes, changes and goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Serving {
    /// What happens to requests while the model is stopped.
    pub while_stopped: WhileStopped,
    /// What happens if a new version does not fit into memory beside the old one.
    pub if_memory_is_short: IfMemoryIsShort,
}

/// What happens to requests while a model is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhileStopped {
    /// They wait in the queue until it is started.
    #[default]
    Wait,
    /// They are answered `UNAVAILABLE` by the hosts that would serve it.
    Refuse,
}

/// What happens if a new version does not fit into memory beside the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IfMemoryIsShort {
    /// The old one serves until there is room.
    #[default]
    Wait,
    /// The old one is unloaded first: requests wait meanwhile. If the new one fails, the old one is loaded again.
    Unload,
}

/// Whether other models may run on the same device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// As many as fit.
    #[default]
    Shared,
    /// It has the device for itself.
    Exclusive,
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The host's processors.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl Manifest {
    /// Reads and checks a `model.toml`; all faults are reported at once, by their keys.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let manifest: Self = toml::from_str(text).map_err(ManifestError::syntax)?;
        check::check(&manifest)?;
        Ok(manifest)
    }

    /// The least that a named dimension has.
    pub fn smallest_size(&self, dimension: &str) -> i64 {
        self.sizes.get(dimension).map_or(1, |sizes| sizes.smallest)
    }

    /// The size of a named dimension while nothing is known of a request: what the manifest says, or 8, or more where padding or the smallest is.
    pub fn example_size(&self, dimension: &str) -> i64 {
        let said = self.sizes.get(dimension).and_then(|sizes| sizes.example);
        let multiple = self.padding.get(dimension).map_or(1, |padding| i64::from(padding.multiple_of.max(1)));
        said.unwrap_or_else(|| self.smallest_size(dimension).max(8).max(multiple))
    }

    /// The limits of its queue.
    pub fn queue_limits(&self) -> QueueLimits {
        QueueLimits { length: self.limits.queue_length, message_bytes: self.limits.body_bytes }
    }

    /// Model metadata as the Open Inference Protocol v2 describes it, for callers that know only the name.
    pub fn describe(&self) -> serde_json::Value {
        let specs = |specs: &[TensorSpec]| {
            let one = |spec: &TensorSpec| {
                let shape: Vec<i64> = spec.shape.iter().map(|dimension| dimension.size().unwrap_or(-1)).collect();
                serde_json::json!({ "name": spec.name, "datatype": spec.datatype.as_str(), "shape": shape })
            };
            specs.iter().map(one).collect::<Vec<_>>()
        };
        serde_json::json!({
            "name": self.name.as_str(),
            "versions": [self.version],
            "platform": "torchscript",
            "inputs": specs(&self.inputs),
            "outputs": specs(&self.outputs),
            "parameters": { "body_bytes": self.limits.body_bytes, "max_rows": self.batching.max_rows },
        })
    }
}

impl TensorSpec {
    /// `FP32 [-1, tokens, 384]`.
    pub fn signature(&self) -> String {
        let shape: Vec<_> = self.shape.iter().map(Dimension::to_string).collect();
        format!("{} [{}]", self.datatype, shape.join(", "))
    }

    /// Whether a tensor of this shape fits; the first dimension is not looked at.
    pub fn fits(&self, shape: &[i64]) -> bool {
        shape.len() == self.shape.len()
            && self.shape.iter().zip(shape).skip(1).all(|(dimension, size)| match dimension.size() {
                Some(fixed) => fixed == *size,
                None => *size > 0,
            })
    }
}
