//! What a host runs: said by every worker at each change, every few seconds as its sign of life, and whenever somebody
//! asks.

use serde::{Deserialize, Serialize};

use crate::ModelName;
use crate::clock::UnixMs;

/// The topic of [`Report`]s, as JSON.
pub const REPORTS: &str = "reports";
/// The topic on which anybody asks all hosts to report at once.
pub const REPORT_NOW: &str = "report-now";
/// The topic on which whoever wrote a revision names its model, so that nobody has to wait for the next look.
pub const REVISED: &str = "revised";

/// What one host runs now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The host's name.
    pub host: String,
    /// When this was true, by the host's clock.
    pub at: UnixMs,
    /// Its models, sorted by name.
    pub models: Vec<ModelReport>,
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
    /// The version that answers now, if one does; not that of the revision while that one loads or has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<String>,
    /// Slots that serve.
    pub slots: usize,
}

/// How far a host has come with a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It loads, and warms up.
    Loading,
    /// It waits for memory: see the reason.
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
