//! Tells an operator's command how many slots have no room, so that it can bring more hosts.

use std::collections::BTreeMap;
use std::io;
use std::process::{ExitStatus, Stdio};
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
/// The pause before a run that failed is repeated; it doubles each time.
const AGAIN: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

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

    /// Another leads from now on, and tells what is missing.
    pub(crate) fn rest(&mut self) {
        self.told = None;
        self.text.send_replace(String::new());
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

/// One run after the other, each with what is true by then; one that failed is repeated.
async fn run_at_changes(command: Vec<String>, mut texts: watch::Receiver<String>) {
    let Some((program, arguments)) = command.split_first() else { return };
    let mut pause = AGAIN;
    let mut failed = false;
    loop {
        tokio::select! {
            changed = texts.changed() => match changed {
                Ok(()) => pause = AGAIN,
                Err(_) => return,
            },
            () = tokio::time::sleep(pause), if failed => pause = (pause * 2).min(LONGEST_PAUSE),
        }
        tokio::time::sleep(PAUSE).await;
        let text = texts.borrow_and_update().clone();
        if text.is_empty() {
            failed = false;
            continue;
        }
        let ran = tokio::time::timeout(PATIENCE, run(program, arguments, &text)).await;
        failed = !matches!(&ran, Ok(Ok(status)) if status.success());
        match ran {
            Ok(Ok(status)) if failed => warn!(program, %status, again_in = ?pause, "`scaler.when_short` failed"),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(program, %error, again_in = ?pause, "`scaler.when_short` cannot be run"),
            Err(_) => warn!(program, again_in = ?pause, "`scaler.when_short` did not end within a minute"),
        }
    }
}

async fn run(program: &str, arguments: &[String], text: &str) -> io::Result<ExitStatus> {
    let mut command = tokio::process::Command::new(program);
    let mut child = command.args(arguments).stdin(Stdio::piped()).kill_on_drop(true).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(text.as_bytes()).await {
            // It may not care what is missing.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    child.wait().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_that_failed_is_repeated_and_one_that_reads_nothing_is_fine() {
        let folder = tempfile::tempdir().expect("a folder");
        let runs = folder.path().join("runs");
        // Fails the first time.
        let script = format!("test -e {0} || {{ echo once > {0}; exit 1; }}; echo again >> {0}", runs.display());
        let mut shortage = Shortage::new(vec!["/bin/sh".into(), "-c".into(), script]);
        let large = (0..5_000).map(|at| {
            let model: ModelName = format!("model-{at}").parse().expect("a name");
            (model, Unplaced { slots: 1, reason: "no room".into(), full: true })
        });
        shortage.tell(1, &large.collect());
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        let text = loop {
            let text = std::fs::read_to_string(&runs).unwrap_or_default();
            if text.ends_with("again\n") || tokio::time::Instant::now() > deadline {
                break text;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(text, "once\nagain\n");
    }
}
