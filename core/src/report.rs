//! What a host runs: said by every worker at each change, every few seconds as its sign of life, and whenever somebody
//! asks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ModelName;
use crate::assignment::Assignment;
use crate::clock::UnixMs;

/// The topic of [`Report`]s, as JSON.
pub const REPORTS: &str = "reports";
/// The topic on which anybody asks all hosts to report at once.
pub const REPORT_NOW: &str = "report-now";
/// The topic on which whoever wrote a revision names its model, so that nobody has to wait for the next look.
pub const REVISED: &str = "revised";
/// How often a host reports though nothing has changed.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// What one host runs now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The host's name.
    pub host: String,
    /// When this was true, by the host's clock.
    pub at: UnixMs,
    /// When its process began, which tells one that was started anew.
    #[serde(default)]
    pub started: UnixMs,
    /// Tells its process from every other: two that report under one name are two hosts. Empty if it is older than this.
    #[serde(default)]
    pub instance: String,
    /// The process that does the work under this name, since another does; this one takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_by: Option<String>,
    /// Its models, sorted by name.
    pub models: Vec<ModelReport>,
    /// What models can run on.
    #[serde(default)]
    pub devices: Vec<DeviceReport>,
    /// What it is known by to selectors.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The assignment that it follows, the default one before the first; `None` if its configuration says what it runs.
    #[serde(default)]
    pub assignment: Option<Assignment>,
    /// Why it refuses what was sent to it as an assignment, since it last followed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuses: Option<String>,
    /// The registry that it follows; `None` if it follows none, or does not say.
    #[serde(default)]
    pub registry: Option<RegistryReport>,
    /// Whether it is about to end.
    #[serde(default)]
    pub draining: bool,
}

/// Which registry is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryReport {
    /// Its URL, without secrets. One registry may have several.
    pub url: String,
    /// What it is told by whatever its URL; `None` before anything was written there.
    pub identity: Option<String>,
}

/// A device of a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// `cpu` or `cuda:N`.
    pub name: String,
    /// How much it can run at once: of processors, threads; of a GPU, slots.
    pub capacity: usize,
    /// Memory for models, if that is known.
    pub memory_mib: Option<u64>,
}

/// One model on one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Which.
    pub model: ModelName,
    /// The revision that the host last acted upon; none for a package that its configuration names.
    pub revision: Option<u64>,
    /// How far it has come with that revision.
    pub state: State,
    /// Why it has come no further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether it cannot receive requests just now; the reason says why.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub receives_nothing: bool,
    /// The version that answers now, if one does; not that of the revision while that one loads or has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<String>,
    /// Slots that serve.
    pub slots: usize,
    /// Where they are; empty while that is open.
    #[serde(default)]
    pub device: String,
    /// What was measured of it.
    #[serde(default)]
    pub measured: Measured,
}

impl ModelReport {
    /// One of which nothing more is known.
    pub fn new(model: ModelName, revision: Option<u64>, state: State) -> Self {
        let (reason, serving, device) = (None, None, String::new());
        let measured = Measured::default();
        Self { model, revision, state, reason, receives_nothing: false, serving, slots: 0, device, measured }
    }
}

/// What a host measures of a model, on one device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// Rows run since the host's process began.
    pub rows: u64,
    /// Requests in hand: waiting in batches, running, or about to be answered.
    pub requests_held: u64,
    /// Of these, those that slots run now.
    pub requests_running: u64,
    /// Rows of a request, lately; 0 before the first.
    pub rows_per_request: f64,
    /// Seconds that a row takes on a slot, lately; 0 before the first.
    pub row_seconds: f64,
    /// The share of the slots' time in which they ran, since the report before.
    pub busy: f64,
    /// Seconds from being told to load it until it was ready; 0 before that was seen.
    pub cold_start_seconds: f64,
    /// MiB that loading it took; 0 where that could not be told.
    pub memory_mib: u64,
    /// Whether each slot has a copy of it, and takes as much again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub copied: bool,
}

/// How far a host has come with a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It loads, and warms up.
    Loading,
    /// It waits for memory, or for a broker or a registry that is away: see the reason.
    Waiting,
    /// It serves as the revision says.
    Ready,
    /// It cannot do what the revision says; what served before still does. See the reason.
    Failed,
    /// Slots end as the revision says; batches still run.
    Draining,
    /// Nothing runs, as the revision says.
    Stopped,
}

impl State {
    /// Whether nothing more will happen by itself.
    pub fn is_settled(self) -> bool {
        matches!(self, State::Ready | State::Failed | State::Stopped)
    }

    /// The word on the wire and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Loading => "loading",
            State::Waiting => "waiting",
            State::Ready => "ready",
            State::Failed => "failed",
            State::Draining => "draining",
            State::Stopped => "stopped",
        }
    }
}
