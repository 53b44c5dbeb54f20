//! Answers to those who ask what a model takes and gives.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use sluice_core::broker::Broker;
use sluice_core::names::describe_topic;
use sluice_core::{Manifest, ModelName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::tasks::spawn_vital;

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
        self.set_failed(manifest, started, None);
    }

    /// The same of a model that no host could load, and why.
    pub fn set_failed(&self, manifest: &Manifest, started: bool, failed: Option<&str>) {
        let mut description = manifest.describe();
        if !started {
            description["parameters"]["stopped"] = serde_json::json!(manifest.serving.while_stopped);
        }
        if let Some(reason) = failed {
            description["parameters"]["failed"] = reason.into();
        }
        self.text.send_replace(Some(description.to_string().into()));
    }

    /// Says nothing from now on: the model is not deployed any more.
    pub fn clear(&self) {
        self.text.send_replace(None);
    }
}
