//! The command line, as `--help` teaches it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sluice_core::{Lane, ModelName};

use crate::model::Model;

/// Sends requests to models behind a message queue, one by one or by the file, and deploys the models.
///
/// Exit codes: 0 all is well; 1 the command failed; 2 some rows failed, or the model answered with an error;
/// 64 the command line is wrong; 130 interrupted.
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
    /// The message broker: nats://user:password@host:port or tls://..., amqp://user:password@host:port/vhost or amqps://...
    #[arg(
        long,
        global = true,
        env = "SLUICE_BROKER",
        hide_env_values = true,
        default_value = "nats://127.0.0.1:4222",
        value_name = "URL"
    )]
    pub broker: String,
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
            // An answer is always JSON; an error before it is for people.
            Command::Infer(_) | Command::Dev(_) | Command::Completions { .. } => false,
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
///   sluice infer digits --json request.json
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Infer {
    /// The model
    pub model: ModelName,
    /// An input: NAME=FILE.npy, or NAME=JSON with one entry per row
    #[arg(long, value_name = "NAME=VALUE", required_unless_present = "json")]
    pub input: Vec<String>,
    /// A whole Open Inference Protocol request; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    pub json: Option<PathBuf>,
    /// Outputs wanted; all if not given
    #[arg(long, value_name = "NAME")]
    pub output: Vec<String>,
    #[command(flatten)]
    pub routing: Routing,
    /// How long to wait for the answer; past it the request is dropped
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    #[command(flatten)]
    pub takes: Takes,
}

/// Send the rows of files to a model and write the answers to a file.
///
/// Reads CSV, JSON Lines, NPY and NPZ, also compressed (.gz), and standard input (-). Answers come as JSON Lines in the
/// order of the input, one line per row: {"row": 0, "outputs": {...}}. Rows that fail go to a file of their own, with
/// their place and the reason.
///
/// Answers travel by durable results: neither a broker restart nor a closed laptop loses one. An interrupted run goes
/// on with --resume, and asks only for what is not answered yet.
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
    /// Where rows that failed go [default: OUTPUT.errors]
    #[arg(long, value_name = "FILE")]
    pub errors: Option<PathBuf>,
    /// What the files are; told from their names otherwise
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// CSV columns that make the input, by number from 0 or by name: 0-63, or a,b,c; with several inputs NAME=COLUMNS
    #[arg(long, value_name = "COLUMNS")]
    pub columns: Vec<String>,
    /// Whether CSV files begin with names
    #[arg(long, value_enum, default_value = "auto")]
    pub header: Header,
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
    /// Replace an output that is there
    #[arg(long)]
    pub overwrite: bool,
    /// Drop a request that was not answered this long after it was sent
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
pub enum Format {
    Csv,
    Jsonl,
    Npy,
    Npz,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Header {
    Auto,
    Yes,
    No,
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

/// Run a whole deployment on this machine, in the foreground: a NATS server, a registry in a folder, a host that runs what the scaler says,
/// and the scaler, with one log. Ctrl-C stops it in order.
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
    /// Use this registry instead of a folder of one's own
    #[arg(long, value_name = "URL")]
    pub registry: Option<String>,
}

/// Show hosts: their devices, what runs there, how busy they are. Hosts that follow the scaler can be emptied and filled again.
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
    /// Take everything off a host, and keep it free
    Drain {
        /// The host
        host: String,
        /// Wait until nothing runs there
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
    Set {
        /// The model
        model: ModelName,
        /// Never fewer
        #[arg(long, value_name = "SLOTS", required_unless_present = "max")]
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
/// The scaler drains the slots there and keeps the devices free. If others come to need them and the group has no share left for them,
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
        /// Its name
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
    /// What kind of device, whatever there is
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// Whose share it counts to
    #[arg(long, default_value = "default", value_name = "GROUP")]
    pub group: String,
    /// When it ends by itself, such as 2h
    #[arg(long = "for", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub time: Option<Duration>,
    /// Wait until devices can be lent
    #[arg(long)]
    pub wait: bool,
    /// The lease's name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_does_not_contradict_itself() {
        super::Arguments::command().debug_assert();
    }
}
