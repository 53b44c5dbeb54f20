//! Tells an operator's command how many slots have no room, so that it can bring more hosts.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use sluice_core::ModelName;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tracing::warn;

use crate::place::Unplaced;

/// How long the command may run.
const PATIENCE: Duration = Duration::from_secs(60);
/// Changes that follow each other this closely are told at once.
const PAUSE: Duration = Duration::from_secs(1);

/// What the command was told last, if this leader has told it anything.
pub(crate) struct Shortage {
    told: Option<BTreeMap<ModelName, usize>>,
    text: watch::Sender<String>,
}

impl Shortage {
    /// With this program and its arguments; none if empty.
    pub(crate) fn new(command: Vec<String>) -> Self {
        let (text, texts) = watch::channel(String::new());
        tokio::spawn(run_at_changes(command, texts));
        Self { told: None, text }
    }

    /// Another may have led since, and told something else.
    pub(crate) fn forget(&mut self) {
        self.told = None;
    }

    /// Has the command run if what has no room has changed.
    pub(crate) fn tell(&mut self, hosts: usize, unplaced: &BTreeMap<ModelName, Unplaced>) {
        let slots = unplaced.iter().map(|(model, unplaced)| (model.clone(), unplaced.slots)).collect();
        if self.told.as_ref() == Some(&slots) {
            return;
        }
        self.told = Some(slots);
        let missing = |(model, Unplaced { slots, reason, .. }): (&ModelName, &Unplaced)| json!({ "model": model, "slots": slots, "reason": reason });
        let unplaced: Vec<_> = unplaced.iter().map(missing).collect();
        self.text.send_replace(json!({ "hosts": hosts, "unplaced": unplaced }).to_string());
    }
}

/// One run after the other, each with what is true by then.
async fn run_at_changes(command: Vec<String>, mut texts: watch::Receiver<String>) {
    let Some((program, arguments)) = command.split_first() else { return };
    while texts.changed().await.is_ok() {
        tokio::time::sleep(PAUSE).await;
        let text = texts.borrow_and_update().clone();
        let run = async {
            let mut command = tokio::process::Command::new(program);
            let mut child = command.args(arguments).stdin(Stdio::piped()).kill_on_drop(true).spawn()?;
            if let Some(mut input) = child.stdin.take() {
                input.write_all(text.as_bytes()).await?;
            }
            child.wait().await
        };
        match tokio::time::timeout(PATIENCE, run).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => warn!(program, %status, "`scaler.when_short` failed"),
            Ok(Err(error)) => warn!(program, %error, "`scaler.when_short` cannot be run"),
            Err(_) => warn!(program, "`scaler.when_short` did not end within a minute"),
        }
    }
}
