//! The arguments of what concerns the deployment as a whole.

use clap::{Args, Subcommand, ValueEnum};

/// Tell which configuration file, broker and registry commands use, and who says so. Passwords are masked.
#[derive(Args)]
pub struct Context {
    /// Where models are kept, as of `sluice model`
    #[arg(long, env = "SLUICE_REGISTRY", value_name = "URL", hide_env_values = true)]
    pub registry: Option<String>,
    /// Print JSON for machines
    #[arg(long)]
    pub json: bool,
}

/// Show and change the deployment's settings: copies, how long requests are held, and how long results and dead letters are kept. They
/// are stored once, in the broker; every program takes them, whatever its own configuration says.
///
/// Examples:
///   sluice settings show
///   sluice settings set replicas=3 results_kept=7d
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct SettingsOptions {
    #[command(subcommand)]
    pub command: SettingsCommand,
    /// Print JSON for machines
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum SettingsCommand {
    /// Show the settings, and what is not as they say
    Show,
    /// Change settings and what exists, and tell what was changed; with none, only what exists
    Set {
        /// Such as replicas=3, hold_time=30s, dedupe_window=2m, results_kept=1d or dead_letters_kept=14d
        #[arg(value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
}

/// Print the configuration of a broker's users and what each may do, with a user for each producer and each worker. None of them can read,
/// forge or swallow what another does; docs/security.md has what that means on each broker.
///
/// Examples:
///   sluice broker-config nats --producers web,batch --workers gpu-1,gpu-2 > roles.conf
///   sluice broker-config rabbitmq --producers web,batch > definitions.json
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct BrokerConfig {
    /// Which broker
    #[arg(value_name = "BROKER")]
    pub kind: BrokerKind,
    /// The producers' users, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "producer")]
    pub producers: Vec<String>,
    /// The workers' users, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "worker")]
    pub workers: Vec<String>,
}

/// The brokers that Sluice works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BrokerKind {
    /// roles.conf, to be included by nats-server's configuration; passwords come from the environment
    Nats,
    /// definitions.json; passwords come from the environment, as for NATS, and new ones are printed to standard error
    #[value(name = "rabbitmq")]
    RabbitMq,
}
