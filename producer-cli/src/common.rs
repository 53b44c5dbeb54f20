//! What several commands need: the connection, and how things are shown.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use sluice_core::{Broker, BrokerError, print};

use crate::cli::Global;

/// Asks a person; without one there is no way but the flag.
pub fn confirm(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("{question}\nthere is nobody to ask: say --yes to go on");
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Connects, or says within 3 s that nobody answers.
pub async fn connect(global: &Global) -> Result<Arc<dyn Broker>> {
    sluice_broker::connect(&global.options()).await.map_err(|error| {
        let error = match error {
            BrokerError::Unreachable { ref url, ref source } => {
                anyhow!(
                    "no broker answers at `{url}` ({source}): start it, or name another with --broker URL, SLUICE_BROKER or \
                     --config FILE"
                )
            }
            other => other.into(),
        };
        match global.left_out() {
            Some(left_out) => error.context(left_out),
            None => error,
        }
    })
}

/// An error of the broker; one that says no names who may, of the users that are shipped.
pub fn denied(error: BrokerError, what: &str, who: &str) -> anyhow::Error {
    let text = format!("this user may not {what}; of the users in broker-config, {who} may");
    match error {
        BrokerError::Denied(_) => anyhow!(error).context(text),
        other => other.into(),
    }
}

/// Whether waiting is of no use: this user may not.
pub fn is_denied(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(BrokerError::Denied(_)))
}

/// Shows something once, or again every second until Ctrl-C.
pub async fn show_again(again: bool, mut show: impl AsyncFnMut() -> Result<()>) -> Result<std::process::ExitCode> {
    loop {
        if again && std::io::stdout().is_terminal() {
            // Home, and clear what is below.
            print::steer("\x1b[H\x1b[2J");
        }
        show().await?;
        // Nobody looks any more; a full disk is told at the end.
        if !again || print::check().is_err() {
            return Ok(std::process::ExitCode::SUCCESS);
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            _ = tokio::signal::ctrl_c() => return Ok(std::process::ExitCode::SUCCESS),
        }
    }
}

/// `350ms`, `12s`, `3m 5s`.
pub fn short(duration: Duration) -> String {
    let rounded = if duration < Duration::from_secs(1) {
        Duration::from_millis(duration.as_millis() as u64)
    } else {
        Duration::from_secs(duration.as_secs())
    };
    humantime::format_duration(rounded).to_string()
}

/// Text from the outside, without what a terminal would obey.
pub fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// `user@machine`.
pub fn whoami() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "somebody".into());
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", machine.trim())
}

/// Writes a file that only this user may read, in place of what was there: a link is replaced, not followed.
pub fn write_private(file: &Path, content: &[u8]) -> std::io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?.write_all(content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_may_hold_a_password_is_for_its_writer_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, elsewhere) = (folder.path().join("sluice.toml"), folder.path().join("elsewhere"));
        fs::write(&elsewhere, "of another").expect("written");
        std::os::unix::fs::symlink(&elsewhere, &file).expect("a link");
        write_private(&file, b"[broker]").expect("written");
        assert_eq!(fs::symlink_metadata(&file).expect("it is there").mode(), 0o100_600);
        assert_eq!(fs::read_to_string(&file).expect("it is there"), "[broker]");
        assert_eq!(fs::read_to_string(&elsewhere).expect("it is there"), "of another");
    }
}
