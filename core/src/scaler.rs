//! What one may ask the scaler that leads, and what it answers.

use serde::{Deserialize, Serialize};

use crate::ModelName;
use crate::assignment::{Gate, Lease};
use crate::clock::UnixMs;
use crate::report::Report;

/// The topic of [`Question`]s that change nothing, as JSON; the scaler that leads answers with an [`Answer`].
pub const SCALER: &str = "scaler";
/// The topic of those that change something: a broker's permissions tell the two apart.
pub const SCALER_ORDERS: &str = "scaler-orders";

/// What one may ask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Why a model has the slots that it has.
    Explain(ModelName),
    /// Keep new slots off a host, take everything off it, or use it again.
    Gate {
        /// Which host.
        host: String,
        /// What it may have.
        gate: Gate,
    },
    /// Which hosts were heard lately and are silent now.
    Silent,
    /// Which devices are lent.
    Leases,
    /// Lend devices.
    Acquire(LeaseRequest),
    /// How a lease stands; asking also says that its holder is alive.
    Renew(String),
    /// A lease is not needed any more.
    Release(String),
    /// Have one host load a model's newest revision even if nobody asks for it, to find out whether it can be.
    Try {
        /// Which model.
        model: ModelName,
        /// Its newest revision, as whoever asks knows it.
        revision: u64,
    },
}

impl Question {
    /// Where it is asked.
    pub fn topic(&self) -> &'static str {
        match self {
            Question::Explain(_) | Question::Silent | Question::Leases => SCALER,
            Question::Gate { .. }
            | Question::Acquire(_)
            | Question::Renew(_)
            | Question::Release(_)
            | Question::Try { .. } => SCALER_ORDERS,
        }
    }
}

/// Devices that are wanted for other work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Names the lease; whoever asks chooses it, so that asking twice is asking once.
    pub id: String,
    /// How many devices.
    pub devices: usize,
    /// Only of this host.
    pub host: Option<String>,
    /// `cpu` or `cuda`; GPUs if there are any, if not said.
    pub kind: Option<String>,
    /// Whose share it counts to.
    pub group: String,
    /// Who asks, for people.
    pub holder: String,
    /// When it ends by itself.
    pub until: Option<UnixMs>,
}

/// What the scaler answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Why a model has the slots that it has.
    Explained(Explanation),
    /// Which hosts were heard lately and are silent now.
    Silent(Vec<Silent>),
    /// It is done.
    Done,
    /// Which devices are lent.
    Leases(Vec<LeaseState>),
    /// One lease.
    Lease(LeaseState),
    /// It cannot be done, for this reason.
    Refused(String),
}

/// A host that was heard lately and is silent now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Silent {
    /// What it said last.
    #[serde(flatten)]
    pub report: Report,
    /// How long ago it did.
    pub silent_seconds: u64,
}

/// How a lease stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaseState {
    /// Its name.
    pub id: String,
    /// Its devices, each with its host.
    pub devices: Vec<(String, Lease)>,
    /// Whether nothing of Sluice runs there any more.
    pub free: bool,
    /// When it ends though its holder still wants it, and why.
    pub ending: Option<(UnixMs, String)>,
}

/// Why a model has the slots that it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Which model.
    pub model: ModelName,
    /// The revision that was decided by.
    pub revision: u64,
    /// How many slots it should have.
    pub wanted: usize,
    /// How many its group's share allows.
    pub granted: usize,
    /// How many are on hosts, or on their way there.
    pub placed: usize,
    /// How many serve.
    pub serving: usize,
    /// In words, with the numbers.
    pub reason: String,
    /// Why fewer are placed than wanted, or what is wrong.
    pub trouble: Option<String>,
    /// Where it was tried last, and why it did not load; none once it serves anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The hosts, with how many slots each should have.
    pub hosts: Vec<(String, usize)>,
    /// The last changes, the newest first.
    pub changes: Vec<Changed>,
}

/// A change of a model's slots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// When.
    pub at: UnixMs,
    /// From how many.
    pub from: usize,
    /// To how many.
    pub to: usize,
    /// Why.
    pub reason: String,
}
