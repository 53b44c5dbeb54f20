//! The arguments of what concerns the deployment as a whole.

use clap::{Args, Subcommand};

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
