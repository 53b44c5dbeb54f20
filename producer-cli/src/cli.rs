//! The command line, as `--help` teaches it.

mod deployment;
mod files;
mod fleet;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sluice_core::{Lane, ModelName};

use crate::context::Configured;
use crate::model::Model;
pub use deployment::{BrokerConfig, BrokerKind, Context, SettingsCommand, SettingsOptions};
#[cfg(test)]
pub use files::quote;
pub use files::{Files, Format, Header, Numbers};
pub use fleet::{Acquire, Dev, Hosts, HostsCommand, Lease, LeaseCommand, Scale, ScaleCommand, Slots};

/// Sends requests to models behind a message queue, one by one or by the file, and deploys the models.
///
/// Exit codes: 0 all is well; 1 the command failed; 2 some rows failed, or the model answered with an error;
/// 64 the command line is wrong; 130 interrupted; 141 whoever read the answers of `submit` left before the end.
#[derive(Parser)]
#[command(name = "sluice", version, max_term_width = 110)]
pub struct Arguments {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
pub struct Global {
    /// The configuration file, the same as the services'; flags and environment go over it [default: sluice.toml in your
    /// configuration folder, if it is there]. `sluice context` tells what is used
    #[arg(long, global = true, env = "SLUICE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The message broker: nats://user:password@host:port or tls://..., amqp://user:password@host:port/vhost or amqps://...
    /// [default: what the configuration says, else nats://127.0.0.1:4222]
    #[arg(long, global = true, env = "SLUICE_BROKER", hide_env_values = true, value_name = "URL")]
    pub broker: Option<String>,
    /// RabbitMQ's management API, such as http://user:password@host:15672, if it is not at the broker's host and the usual
    /// port
    #[arg(long, global = true, env = "SLUICE_MANAGEMENT", value_name = "URL", hide_env_values = true)]
    pub management: Option<String>,
    /// A NATS credentials file
    #[arg(long, global = true, env = "SLUICE_CREDENTIALS", value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    /// A file of root certificates for TLS
    #[arg(long, global = true, env = "SLUICE_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// What the configuration says.
    #[arg(skip)]
    pub configured: Configured,
}

impl Command {
    /// Whether errors are to be JSON too.
    pub fn json(&self) -> bool {
        match self {
            Command::Submit(options) => options.json,
            Command::Queue(options) => options.json,
            Command::Dead(options) => options.json,
            Command::Model(options) => options.json,
            Command::Hosts(options) => options.json,
            Command::Slots(options) => options.json,
            Command::Scale(options) => options.json,
            Command::Lease(options) => options.json,
            Command::Context(options) => options.json,
            Command::Settings(options) => options.json,
            // An answer is always JSON; an error before it is for people.
            Command::Infer(_) | Command::Dev(_) | Command::BrokerConfig(_) | Command::Completions { .. } => false,
        }
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Ask a model once and print its answer
    Infer(Infer),
    /// Send the rows of files to a model and write the answers to a file
    Submit(Submit),
    /// Show what waits and runs, per lane
    Queue(Queue),
    /// Look at requests that were given up
    Dead(Dead),
    /// Deploy models, and change them while they serve
    Model(Model),
    /// Show hosts, and keep slots off them
    Hosts(Hosts),
    /// Show which slots run where
    Slots(Slots),
    /// Tell why a model has the slots that it has, and how many it may have
    Scale(Scale),
    /// Lend devices to other work, such as training
    Lease(Lease),
    /// Show and change what all programs of the deployment hold in common
    Settings(SettingsOptions),
    /// Tell which configuration, broker and registry commands use
    Context(Context),
    /// Print the configuration of a broker's users: one for each producer and each worker
    BrokerConfig(BrokerConfig),
    /// Run a whole deployment on this machine, in the foreground
    Dev(Dev),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Ask a model once and print its answer as an Open Inference Protocol response.
///
/// Examples:
///   sluice infer digits --input image=one-image.npy
///   sluice infer digits --input 'image=[[0,0,5,13,...]]'
///   sluice infer digits --request request.json
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Infer {
    /// The model
    pub model: ModelName,
    /// An input: NAME=FILE.npy, or NAME=JSON with one entry per row
    #[arg(long, value_name = "NAME=VALUE", required_unless_present = "request")]
    pub input: Vec<String>,
    /// A whole Open Inference Protocol request; - for standard input
    #[arg(long, alias = "json", value_name = "FILE", conflicts_with = "input")]
    pub request: Option<PathBuf>,
    /// Outputs wanted; all if not given
    #[arg(long, value_name = "NAME")]
    pub output: Vec<String>,
    #[command(flatten)]
    pub routing: Routing,
    /// How long to wait for the answer; past it the request is dropped
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    #[command(flatten)]
    pub numbers: Numbers,
    #[command(flatten)]
    pub takes: Takes,
}

/// Send the rows of files to a model and write the answers to a file.
///
/// Reads CSV, JSON Lines, JSON, NPY and NPZ, also compressed (.gz), and standard input (-). Answers come as JSON Lines in the
/// order of the input, one line per row: {"row": 0, "outputs": {...}}. Rows that fail go to a file of their own, with
/// their place and the reason.
///
/// Answers travel by durable results: neither a broker restart nor a closed laptop loses one. An interrupted run goes
/// on with --resume, and asks only for what is not answered yet. Until all is written, it is in OUTPUT.partial, and the
/// state of the run in OUTPUT.job.
///
/// One bad row costs its neighbours nothing: the rows of a message that failed are asked for again, in parts.
///
/// docs/files.md says what files look like, to the letter.
///
/// Examples:
///   sluice submit digits digits.csv.gz --columns 0-63 -o answers.jsonl
///   sluice submit bert texts.jsonl -o vectors.jsonl --rows-per-message 8
///   zcat huge.csv.gz | sluice submit digits - --format csv --columns 0-63 -o answers.jsonl
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Submit {
    /// The model
    pub model: ModelName,
    /// The files, in order; - for standard input
    #[arg(required = true, value_name = "FILES")]
    pub files: Vec<PathBuf>,
    /// Where answers go; - for standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Where rows that failed go, if any do [default: OUTPUT.errors, or sluice.errors]
    #[arg(long, value_name = "FILE")]
    pub errors: Option<PathBuf>,
    #[command(flatten)]
    pub reading: Files,
    /// Rows per message: more cost less each, fewer are spread more evenly
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65536), value_name = "N")]
    pub rows_per_message: u32,
    /// Messages under way at once
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=16384), value_name = "N")]
    pub window: u32,
    /// How answers travel
    #[arg(long, value_enum, default_value = "durable")]
    pub reply: ReplyMode,
    /// Go on with an interrupted run that wrote the same output
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Replace what is there: the output, the errors and the state of an interrupted run
    #[arg(long)]
    pub overwrite: bool,
    /// Drop a request that was not answered this long after it was sent: its rows fail
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub deadline: Option<Duration>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub routing: Routing,
    #[command(flatten)]
    pub takes: Takes,
}

#[derive(Args)]
pub struct Routing {
    /// The priority: high, normal or low
    #[arg(long, default_value = "normal")]
    pub lane: Lane,
    /// A model that the outputs go to before the answer comes back; may be repeated, for a pipeline
    #[arg(long, value_name = "MODEL")]
    pub then: Vec<ModelName>,
    /// The model version that must answer
    #[arg(long, value_name = "VERSION")]
    pub model_version: Option<String>,
    /// Whose requests these are
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
}

#[derive(Args)]
pub struct Takes {
    /// What the model takes, if no worker runs that could tell: NAME:DATATYPE:SIZES, such as image:FP32:64 or
    /// ids:INT64:? with ? for a size that varies
    #[arg(long, value_name = "SPEC")]
    pub takes: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReplyMode {
    /// Stored by the broker until read: nothing is lost
    Durable,
    /// Straight back: faster, and asked again if lost
    Inbox,
}

#[derive(Args)]
pub struct Queue {
    /// Only this model
    pub model: Option<ModelName>,
    /// Show again every second, until Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
    /// Print JSON for machines
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Dead {
    #[command(subcommand)]
    pub command: DeadCommand,
    /// Print JSON for machines
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum DeadCommand {
    /// List the newest requests of a model that were given up
    List {
        /// The model
        model: ModelName,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show one: its reason, headers and body
    Show {
        /// The model
        model: ModelName,
        /// Its number in the list, or the request's id; the newest if not given
        which: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_does_not_contradict_itself() {
        super::Arguments::command().debug_assert();
    }
}
