//! Starting, stopping and rolling back.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use sluice_core::ModelName;
use sluice_core::broker::Reading;
use sluice_core::manifest::WhileStopped;
use sluice_registry::{Action, Revision};

use super::cli::Waiting;
use super::desk::{Desk, change};
use super::wait::conclude;

pub async fn start(desk: &Desk, model: &ModelName, version: Option<String>, waiting: Waiting) -> Result<ExitCode> {
    let newest = desk.registry.deployed(model).await?;
    let version = version.unwrap_or_else(|| newest.version.clone());
    if newest.started && newest.version == version {
        desk.say(format_args!("model `{model}` is started already"));
        // Unless somebody has removed it.
        desk.make_queue(model, &newest).await?;
        return conclude(desk, model, &newest, waiting).await;
    }
    let change = change(Action::Start, &version, true, newest.profile.clone());
    let revision = desk.append(model, Some(&newest), change).await?;
    conclude(desk, model, &revision, waiting).await
}

pub async fn stop(desk: &Desk, model: &ModelName, waiting: Waiting) -> Result<ExitCode> {
    let newest = desk.registry.deployed(model).await?;
    if !newest.started {
        desk.say(format_args!("model `{model}` is stopped already"));
        return conclude(desk, model, &newest, waiting).await;
    }
    let change = change(Action::Stop, &newest.version, false, newest.profile.clone());
    let revision = desk.append(model, Some(&newest), change).await?;
    let manifest = desk.registry.effective(model, &revision.version, &revision.profile).await?;
    desk.say(match manifest.serving.while_stopped {
        WhileStopped::Wait => format!("{} wait until it is started", waiting_requests(desk, model).await),
        WhileStopped::Refuse => {
            format!("{} are refused with UNAVAILABLE until it is started", waiting_requests(desk, model).await)
        }
    });
    conclude(desk, model, &revision, waiting).await
}

/// `requests (12 in the queue now)`.
async fn waiting_requests(desk: &Desk, model: &ModelName) -> String {
    let lanes = desk.broker.depth(model).await.unwrap_or_default();
    let ready: Vec<u64> = lanes
        .iter()
        .filter_map(|lane| match lane.ready {
            Reading::Known(ready) => Some(ready),
            Reading::Unknown(_) => None,
        })
        .collect();
    if ready.is_empty() {
        "requests".into()
    } else {
        format!("requests ({} in the queue now)", ready.iter().sum::<u64>())
    }
}

pub async fn rollback(desk: &Desk, model: &ModelName, to: Option<u64>, waiting: Waiting) -> Result<ExitCode> {
    let history = desk.registry.history(model).await?;
    let newest = history.last().context("a history has at least one revision")?;
    let target = earlier(&history, to)?;
    let Some(target) = target else {
        bail!(
            "model `{model}` has always been as it is: there is nothing to go back to (`sluice model history {model}`)"
        );
    };
    let change = change(Action::Rollback, &target.version, newest.started, target.profile.clone());
    desk.say(format_args!("back to revision {}: version {}{}", target.number, target.version, tuned(target)));
    let revision = desk.append(model, Some(newest), change).await?;
    conclude(desk, model, &revision, waiting).await
}

fn tuned(revision: &Revision) -> String {
    if revision.profile.is_empty() { String::new() } else { format!(", tuned {}", revision.profile) }
}

/// The revision that was named, or the newest that differs from today's in what serves.
fn earlier(history: &[Revision], number: Option<u64>) -> Result<Option<&Revision>> {
    let Some((newest, before)) = history.split_last() else { return Ok(None) };
    match number {
        Some(number) => match history.iter().find(|revision| revision.number == number) {
            Some(revision) => Ok(Some(revision)),
            None => bail!("there is no revision {number}: the newest is {}", newest.number),
        },
        None => {
            let differs =
                |revision: &&Revision| (&revision.version, &revision.profile) != (&newest.version, &newest.profile);
            Ok(before.iter().rev().find(differs))
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_core::manifest::Profile;

    use super::*;

    fn revision(number: u64, version: &str, started: bool, profile: &str) -> Revision {
        let profile = Profile::parse(profile).expect("a profile");
        Revision { number, at: 0, by: String::new(), action: Action::Deploy, version: version.into(), started, profile }
    }

    #[test]
    fn a_rollback_goes_to_the_newest_that_differs_in_what_serves() {
        let tuned = "[batching]\nmax_rows = 8";
        let history = [
            revision(1, "1", false, ""),
            revision(2, "1", true, ""),
            revision(3, "2", true, ""),
            revision(4, "2", true, tuned),
            revision(5, "2", false, tuned),
        ];
        let to = |history: &[Revision], number| earlier(history, number).map(|found| found.map(|found| found.number));
        assert_eq!(to(&history, None).expect("found"), Some(3), "stopping is nothing to go back from");
        assert_eq!(to(&history[..3], None).expect("found"), Some(2));
        assert_eq!(to(&history[..2], None).expect("none"), None);
        assert_eq!(to(&history, Some(1)).expect("found"), Some(1));
        assert!(to(&history, Some(9)).is_err());
    }
}
