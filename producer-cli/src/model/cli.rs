//! The arguments of `sluice model`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use sluice_core::ModelName;

/// Deploy models, and change them while they serve.
///
/// A package is a folder with a model.toml and the model file. Deploying it publishes an immutable version. What serves is said by
/// the model's newest revision: which version, with which profile, started or stopped. Every change writes a revision; workers act on it
/// within a second, the new being ready before the old drains. A rollback is a revision that takes up an earlier one.
///
/// A package is code, and every host runs it with the rights of its worker: deploy and import only what you trust that far.
///
/// Examples:
///   sluice model deploy models/digits --start --wait
///   sluice model profile set digits batching.max_rows=64 batching.max_delay=2ms
///   sluice model rollback digits --version 1 --wait
///   sluice model export -o backup.tar
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Model {
    #[command(subcommand)]
    pub command: ModelCommand,
    /// Where models are kept: file:///folder, s3://bucket/folder, gs://..., az://... or nats://...; by default in the broker, if
    /// it is NATS
    #[arg(long, global = true, env = "SLUICE_REGISTRY", value_name = "URL", hide_env_values = true)]
    pub registry: Option<String>,
    /// Print JSON for machines
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum ModelCommand {
    /// Publish a package as a version, and make it the one that serves
    Deploy(Deploy),
    /// List the models that are deployed
    List,
    /// Show a model: its newest revision, its versions, and what its hosts say
    Show {
        /// The model
        model: ModelName,
    },
    /// List a model's revisions, the newest last
    History {
        /// The model
        model: ModelName,
    },
    /// Let a model serve
    Start {
        /// The model
        model: ModelName,
        /// The version that serves; the one that it had if not given
        #[arg(long, value_name = "VERSION")]
        version: Option<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Let a model's slots drain; it stays deployed. Requests wait or are refused, as its profile says
    Stop {
        /// The model
        model: ModelName,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Look at a model's settings and tune them
    Profile {
        #[command(subcommand)]
        command: ProfileCommand,
    },
    /// Take up an earlier revision's version and profile: the newest that differs from today's. Again, it goes further back
    Rollback {
        /// The model
        model: ModelName,
        #[command(flatten)]
        to: Target,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Remove a model with its versions, its history and its queue
    Undeploy(Undeploy),
    /// Make the queues of models that hosts serve by their own configuration (`worker.slots`) instead of from the registry.
    /// Deployed models get theirs when they are started
    MakeQueue {
        /// The packages: folders with a model.toml
        #[arg(required = true, value_name = "PACKAGE")]
        packages: Vec<PathBuf>,
    },
    /// Write models with all versions and their history into an archive
    Export {
        /// The models; all if none is given
        models: Vec<ModelName>,
        /// The archive
        #[arg(short, long, value_name = "FILE.tar")]
        output: PathBuf,
        /// Replace an archive that is there
        #[arg(long)]
        overwrite: bool,
    },
    /// Bring back the models of an archive that `export` wrote. They are code that runs on your hosts: only from whom you trust
    Import {
        /// The archive
        #[arg(value_name = "FILE.tar")]
        archive: PathBuf,
        /// What its files may have together, in MiB
        #[arg(long, default_value_t = 32 * 1024, value_name = "MIB")]
        largest: u64,
    },
}

impl ModelCommand {
    /// Whether it changes something, and if so, whether it waits until hosts have done it.
    pub fn changes(&self) -> Option<bool> {
        match self {
            ModelCommand::Deploy(options) => Some(options.waiting.wait),
            ModelCommand::Start { waiting, .. }
            | ModelCommand::Stop { waiting, .. }
            | ModelCommand::Rollback { waiting, .. }
            | ModelCommand::Profile {
                command: ProfileCommand::Edit { waiting, .. } | ProfileCommand::Set { waiting, .. },
            } => Some(waiting.wait),
            ModelCommand::Undeploy(_) | ModelCommand::Import { .. } => Some(false),
            ModelCommand::List
            | ModelCommand::Show { .. }
            | ModelCommand::History { .. }
            | ModelCommand::MakeQueue { .. }
            | ModelCommand::Profile { command: ProfileCommand::Show { .. } }
            | ModelCommand::Export { .. } => None,
        }
    }
}

/// What a rollback goes back to.
#[derive(Args)]
pub struct Target {
    /// The revision, by its number in `sluice model history`
    #[arg(value_name = "REVISION")]
    pub revision: Option<u64>,
    /// The newest revision of this version
    #[arg(long, value_name = "VERSION", conflicts_with = "revision")]
    pub version: Option<String>,
}

#[derive(Args)]
pub struct Deploy {
    /// The package: a folder, or an archive of one (.tar, .tar.gz)
    pub package: PathBuf,
    /// The version's name; by default what model.toml says, or the next number
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,
    /// Let it serve. A model that serves already goes over to the new version anyway
    #[arg(long)]
    pub start: bool,
    /// What an archive may unpack to, in MiB
    #[arg(long, default_value_t = 32 * 1024, value_name = "MIB")]
    pub largest: u64,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Args)]
pub struct Undeploy {
    /// The model
    pub model: ModelName,
    /// Also if it is started: it drains first
    #[arg(long)]
    pub force: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// How long draining may take
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub wait_time: Duration,
}

#[derive(Subcommand)]
pub enum ProfileCommand {
    /// Show every setting, and which are tuned
    Show {
        /// The model
        model: ModelName,
    },
    /// Tune settings in your editor ($VISUAL or $EDITOR)
    Edit {
        /// The model
        model: ModelName,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Tune settings: KEY=VALUE; KEY= returns to the package's own value
    Set {
        /// The model
        model: ModelName,
        /// Such as batching.max_rows=64
        #[arg(required = true, value_name = "KEY=VALUE")]
        settings: Vec<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
}

#[derive(Args, Clone, Copy, Default)]
pub struct Waiting {
    /// Wait until the hosts have done it
    #[arg(long)]
    pub wait: bool,
    /// How long to wait
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub wait_time: Duration,
}
