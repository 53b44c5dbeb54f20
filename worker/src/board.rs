//! What this host runs, for all who ask: reports to everyone who listens, at each change and as a sign of life, and descriptions of its
//! models.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use sluice_core::broker::Broker;
use sluice_core::clock::unix_ms;
use sluice_core::names::describe_topic;
use sluice_core::report::{ModelReport, REPORT_NOW, REPORTS, Report, State};
use sluice_core::{Manifest, ModelName};
use sluice_service::tasks::spawn_vital;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How often a host reports though nothing has changed.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// Changes that follow each other this closely make one report.
const PAUSE: Duration = Duration::from_millis(20);

/// What this host runs.
pub struct Board {
    host: String,
    models: Mutex<BTreeMap<ModelName, ModelReport>>,
    /// Grows at each change.
    changes: watch::Sender<u64>,
}

impl Board {
    /// An empty board.
    pub fn new(host: String) -> Arc<Self> {
        Arc::new(Self { host, models: Mutex::default(), changes: watch::channel(0).0 })
    }

    /// Puts a model's state up.
    pub fn put(&self, report: ModelReport) {
        let before = self.models().insert(report.model.clone(), report.clone());
        if before.as_ref() != Some(&report) {
            debug!(model = %report.model, revision = report.revision, state = report.state.as_str(), reason = report.reason, "state");
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Puts up that a model will load, unless something is known of it: until then this host is not ready.
    pub fn expect(&self, model: &ModelName, revision: u64) {
        if !self.models().contains_key(model) {
            let (revision, state) = (Some(revision), State::Loading);
            self.put(ModelReport { model: model.clone(), revision, state, reason: None, serving: None, slots: 0 });
        }
    }

    /// What is up of a model, with another version that serves.
    pub fn put_serving(&self, model: &ModelName, serving: Option<String>, slots: usize) {
        let report = self.models().get(model).cloned();
        if let Some(report) = report {
            self.put(ModelReport { serving, slots, ..report });
        }
    }

    /// Takes a model down.
    pub fn remove(&self, model: &ModelName) {
        if self.models().remove(model).is_some() {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    /// Waits until `fits` is true of all models.
    pub async fn wait_until(&self, fits: impl Fn(&ModelReport) -> bool) {
        let mut changes = self.changes.subscribe();
        while !self.models().values().all(&fits) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn report(&self) -> Report {
        Report { host: self.host.clone(), at: unix_ms(), models: self.models().values().cloned().collect() }
    }

    fn models(&self) -> MutexGuard<'_, BTreeMap<ModelName, ModelReport>> {
        self.models.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Reports until `stop`.
    pub async fn publish(self: Arc<Self>, broker: Arc<dyn Broker>, stop: CancellationToken) -> Result<()> {
        let mut asked = broker.listen(REPORT_NOW).await.context("listening for those who ask for a report")?;
        let mut changes = self.changes.subscribe();
        loop {
            let text = serde_json::to_vec(&self.report()).context("writing a report")?;
            // The next one says the same.
            if let Err(error) = broker.signal(REPORTS, text.into()).await {
                debug!(%error, "could not report");
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = changes.changed() => tokio::time::sleep(PAUSE).await,
                asked = asked.next() => { asked.context("listening for those who ask for a report")?; }
                () = tokio::time::sleep(SIGN_OF_LIFE) => {}
            }
        }
    }
}

/// Answers those who ask what a model takes and gives, for as long as it lives.
pub struct Describing {
    text: watch::Sender<Option<Bytes>>,
    _stop: tokio_util::sync::DropGuard,
}

impl Describing {
    /// Begins to listen.
    pub async fn start(broker: &Arc<dyn Broker>, model: &ModelName, stop: &CancellationToken) -> Result<Self> {
        let mut questions =
            broker.listen(&describe_topic(model)).await.context("listening for questions about a model")?;
        let (text, current) = watch::channel(None::<Bytes>);
        let token = stop.child_token();
        let guard = token.clone().drop_guard();
        spawn_vital("describe", stop, async move {
            while let Some(question) = token.run_until_cancelled(questions.next()).await {
                let description = current.borrow().clone();
                if let (Some(answer), Some(description)) = (question?.answer, description) {
                    // Whoever asked asks again.
                    if let Err(error) = answer.send(description).await {
                        warn!(%error, "could not answer what a model takes");
                    }
                }
            }
            Ok(())
        });
        Ok(Self { text, _stop: guard })
    }

    /// What to answer from now on. `stopped` models say what becomes of requests.
    pub fn set(&self, manifest: &Manifest, started: bool) {
        let mut description = manifest.describe();
        if !started {
            description["parameters"]["stopped"] = serde_json::json!(manifest.serving.while_stopped);
        }
        self.text.send_replace(Some(description.to_string().into()));
    }

    /// Says nothing from now on: the model is not deployed any more.
    pub fn clear(&self) {
        self.text.send_replace(None);
    }
}
