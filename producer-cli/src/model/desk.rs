//! What every command of `sluice model` works with: the registry, the broker, and a voice.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sluice_core::broker::Limited;
use sluice_core::manifest::Profile;
use sluice_core::report::REVISED;
use sluice_core::{Broker, BrokerError, Manifest, ModelName};
use sluice_registry::{Action, Change, Registry, Revision};

use crate::cli::Global;
use crate::common;

pub struct Desk {
    pub registry: Registry,
    pub broker: Arc<dyn Broker>,
    pub json: bool,
}

impl Desk {
    pub async fn open(global: &Global, registry: Option<&str>, json: bool) -> Result<Self> {
        let broker = common::connect(global).await?;
        let location = global.registry(registry);
        let registry = sluice_registry::open(&location, &global.options()).await.context("--registry")?;
        Ok(Self { registry, broker, json })
    }

    /// A line for people; machines get one object at the end.
    pub fn say(&self, text: impl std::fmt::Display) {
        if !self.json {
            println!("{text}");
        }
    }

    /// Progress over some bytes, on standard error.
    pub fn bytes(&self, total: u64, what: &'static str) -> ProgressBar {
        let template = "{msg} {bar:32} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        self.bar(Some(total), template, what)
    }

    /// Progress of something whose end is not known.
    pub fn spinner(&self, what: &'static str) -> ProgressBar {
        self.bar(None, "{spinner} {msg} {elapsed}", what)
    }

    fn bar(&self, total: Option<u64>, template: &str, what: &'static str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(8));
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    }

    /// Writes the next revision and tells the hosts.
    pub async fn append(&self, model: &ModelName, newest: Option<&Revision>, change: Change) -> Result<Revision> {
        self.identify().await?;
        let revision = self.registry.append(model, newest, change).await?;
        self.make_queue(model, &revision).await?;
        self.tell(model).await;
        Ok(revision)
    }

    /// Gives the registry an identity, if it has none yet: hosts report it.
    pub async fn identify(&self) -> Result<()> {
        self.registry.identify(&uuid::Uuid::new_v4().to_string()).await?;
        Ok(())
    }

    /// Makes the queue of a model that is started, so that requests can wait for the first host; of one that is not, sets the limits of
    /// the queue that is there.
    pub async fn make_queue(&self, model: &ModelName, revision: &Revision) -> Result<()> {
        let waits = || async { revision.action != Action::Stop && self.broker.depth(model).await.is_ok() };
        if revision.started || waits().await {
            let manifest = self.registry.effective(model, &revision.version, &revision.profile).await?;
            match self.broker.ensure_queue(model, &manifest.queue_limits()).await {
                Ok(Limited::AsAsked) => {}
                Ok(Limited::AsConfigured(reason)) => {
                    eprintln!("note: the queue's limits are the broker's own: {reason}")
                }
                Err(BrokerError::Denied(reason)) => {
                    eprintln!("note: the queue is not made, and requests are refused until it is: {reason}");
                }
                Err(error) => return Err(error).context("the revision is written, but its queue could not be made"),
            }
        }
        Ok(())
    }

    /// Makes the queues of packages that no registry knows.
    pub async fn make_queues(&self, packages: &[PathBuf]) -> Result<ExitCode> {
        for package in packages {
            let file = package.join("model.toml");
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
            let manifest = Manifest::parse(&text).with_context(|| format!("`{}`", file.display()))?;
            let limited = self.broker.ensure_queue(&manifest.name, &manifest.queue_limits()).await;
            match limited.map_err(|error| common::denied(error, "make queues", "only `manager`"))? {
                Limited::AsAsked => self.say(format_args!("model `{}` has its queue", manifest.name)),
                Limited::AsConfigured(reason) => self
                    .say(format_args!("model `{}` has a queue, with the broker's own limits: {reason}", manifest.name)),
            }
        }
        if self.json {
            println!("{}", serde_json::json!({ "queues": packages.len() }));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Tells the hosts that something changed. Without it they find out by themselves, later.
    pub async fn tell(&self, model: &ModelName) {
        if let Err(error) = self.broker.signal(REVISED, Bytes::copy_from_slice(model.as_str().as_bytes())).await {
            eprintln!("note: the hosts could not be told, and will find out at their next look: {error}");
        }
    }
}

/// A change of a revision: what is not named stays.
pub fn change(action: Action, version: &str, started: bool, profile: Profile) -> Change {
    Change { by: common::whoami(), action, version: version.to_owned(), started, of: None, profile }
}
