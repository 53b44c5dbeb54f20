//! The arguments of what concerns hosts, slots and the scaler.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use sluice_core::ModelName;
use sluice_core::manifest::{GROUP_RULE, is_group};

/// Run a whole deployment on this machine, in the foreground: a NATS server, which also keeps the models, a host that runs what the scaler
/// says, and the scaler, with one log. Ctrl-C stops it in order.
///
/// Examples:
///   sluice dev --models models
///   sluice dev --folder ~/sluice-dev --port 4222
///   sluice dev --external --broker amqp://127.0.0.1 --models models
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Dev {
    /// A package, or a folder of packages, to deploy at the start
    #[arg(long, value_name = "FOLDER")]
    pub models: Option<PathBuf>,
    /// Where everything is kept; a temporary folder if not given
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// The NATS server's port; a free one if not given
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Use the broker of --broker instead of starting one
    #[arg(long, conflicts_with = "port")]
    pub external: bool,
    /// Keep models there; by default in the broker if it is NATS, else in a folder of one's own
    #[arg(long, value_name = "URL")]
    pub registry: Option<String>,
}

/// Show hosts: their devices, what runs there, how busy they are, and those that fell silent lately. Hosts that follow the scaler can be emptied and filled again.
#[derive(Args)]
pub struct Hosts {
    #[command(subcommand)]
    pub command: Option<HostsCommand>,
    /// Show again every second, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
    /// Print JSON for machines
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum HostsCommand {
    /// Let a host keep what it has, and give it nothing new
    Cordon {
        /// The host
        host: String,
    },
    /// Take everything off a host, and keep it free; holders of its devices are told, and have half a minute
    Drain {
        /// The host
        host: String,
        /// Wait until nothing runs there, and nothing of it is lent
        #[arg(long)]
        wait: bool,
        /// How long to wait
        #[arg(long, default_value = "2m", value_parser = humantime::parse_duration, value_name = "TIME")]
        wait_time: Duration,
    },
    /// Use a host again
    #[command(visible_alias = "uncordon")]
    Open {
        /// The host
        host: String,
    },
}

#[derive(Args)]
pub struct Slots {
    /// Only this model
    pub model: Option<ModelName>,
    /// Show again every second, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
    /// Print JSON for machines
    #[arg(long)]
    pub json: bool,
}

/// Tell why a model has the slots that it has, and how many it may have. What is set is a revision of the model's profile, as by
/// `sluice model profile set MODEL scaling.max_slots=4`, where there is more to set.
#[derive(Args)]
pub struct Scale {
    #[command(subcommand)]
    pub command: ScaleCommand,
    /// Where models are kept, as of `sluice model`
    #[arg(long, global = true, env = "SLUICE_REGISTRY", value_name = "URL", hide_env_values = true)]
    pub registry: Option<String>,
    /// Print JSON for machines
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum ScaleCommand {
    /// Tell why a model has as many slots as it has, with the numbers, and its last changes
    Explain {
        /// The model
        model: ModelName,
        /// Tell again every second, until Ctrl-C
        #[arg(short, long)]
        watch: bool,
    },
    /// Set how many slots a model may have
    #[command(group(clap::ArgGroup::new("bounds").required(true).multiple(true).args(["min", "max"])))]
    Set {
        /// The model
        model: ModelName,
        /// Never fewer
        #[arg(long, value_name = "SLOTS")]
        min: Option<usize>,
        /// Never more
        #[arg(long, value_name = "SLOTS")]
        max: Option<usize>,
    },
    /// Leave a model's slots as they are, whatever waits
    Pause {
        /// The model
        model: ModelName,
    },
    /// Scale a model again
    Resume {
        /// The model
        model: ModelName,
    },
}

/// Lend devices to other work, such as training, and give them back when it ends.
///
/// The scaler drains the slots there and keeps the devices free. If others need them for five seconds and the group has no share left for them,
/// it says so, and takes them 30 s later: a command that runs under the lease gets SIGTERM at once.
///
/// Examples:
///   sluice lease acquire --devices 1 --wait -- python train.py
///   sluice lease acquire --devices 2 --host gpu-7 --group research --for 2h
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Lease {
    #[command(subcommand)]
    pub command: LeaseCommand,
    /// Print JSON for machines
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum LeaseCommand {
    /// Get devices and hold them: while a command runs, or until Ctrl-C
    Acquire(Acquire),
    /// List what is lent
    List,
    /// End a lease that another holds
    Release {
        /// Its name, as `lease list` shows it
        #[arg(value_name = "NAME")]
        id: String,
    },
}

#[derive(Args)]
pub struct Acquire {
    /// How many devices: GPUs, or where there are none, the processors of so many hosts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10000), value_name = "N")]
    pub devices: u32,
    /// Only of this host
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// What kind of device; if not given, GPUs if any host that may be used has one, else processors
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// The group of models whose share it counts to, as `scaling.group` names it
    #[arg(long, default_value = "default", value_parser = group, value_name = "GROUP")]
    pub group: String,
    /// When it ends by itself, such as 2h; counted from when the devices are lent
    #[arg(long = "for", value_parser = some_time, value_name = "TIME")]
    pub time: Option<Duration>,
    /// Wait until devices can be lent
    #[arg(long)]
    pub wait: bool,
    /// What to call the lease, for `lease list` and `lease release`; by default a name of its own
    #[arg(long, value_parser = lease_name, value_name = "NAME")]
    pub name: Option<String>,
    /// Let the command have the environment's SLUICE_... too, the broker's URL and its password among them
    #[arg(long)]
    pub pass_broker: bool,
    /// A command to run under the lease
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Cpu,
    Cuda,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Cpu => "cpu",
            Kind::Cuda => "cuda",
        }
    }
}

fn group(text: &str) -> Result<String, String> {
    if is_group(text) { Ok(text.to_owned()) } else { Err(GROUP_RULE.into()) }
}

fn some_time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() { Err("it would be over at once".into()) } else { Ok(time) }
}

/// It stands in environments and tables.
fn lease_name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err("1 to 64 of A-Z, a-z, 0-9, ., _ and -".into()),
    }
}
