//! Starting, stopping and rolling back.

use std::process::ExitCode;

use anyhow::{Context, Result};
use sluice_core::ModelName;
use sluice_core::broker::Reading;
use sluice_core::manifest::WhileStopped;
use sluice_registry::{Action, Change, Revision};

use super::cli::{Target, Waiting};
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

pub async fn rollback(desk: &Desk, model: &ModelName, to: Target, waiting: Waiting) -> Result<ExitCode> {
    let history = desk.registry.history(model).await?;
    let newest = history.last().context("a history has at least one revision")?;
    let target = earlier(&history, &to).with_context(|| {
        format!("model `{model}` stays as it is (`sluice model history {model}` lists its revisions)")
    })?;
    if serves_the_same(target, newest) {
        let (number, version) = (target.number, &target.version);
        let already = "which is what its newest revision says already";
        desk.say(format_args!("back to revision {number}: version {version}{}, {already}", tuned(target)));
        return conclude(desk, model, newest, waiting).await;
    }
    let change = change(Action::Rollback, &target.version, newest.started, target.profile.clone());
    let change = Change { of: Some(target.number), ..change };
    desk.say(format_args!("back to revision {}: version {}{}", target.number, target.version, tuned(target)));
    let revision = desk.append(model, Some(newest), change).await?;
    conclude(desk, model, &revision, waiting).await
}

fn tuned(revision: &Revision) -> String {
    if revision.profile.is_empty() { String::new() } else { format!(", tuned {}", revision.profile) }
}

fn serves_the_same(one: &Revision, other: &Revision) -> bool {
    (&one.version, &one.profile) == (&other.version, &other.profile)
}

/// The revision that was named, the newest of the version that was named, or the one before today's.
fn earlier<'h>(history: &'h [Revision], to: &Target) -> Result<&'h Revision> {
    let newest = history.last().context("a history has at least one revision")?;
    let mut newest_first = history.iter().rev();
    match (to.revision, &to.version) {
        (Some(number), _) => newest_first
            .find(|revision| revision.number == number)
            .with_context(|| format!("there is no revision {number}: the newest is {}", newest.number)),
        (None, Some(version)) => newest_first.find(|revision| revision.version == *version).with_context(|| {
            format!("version `{version}` has never been deployed; `sluice model start --version` lets one serve that was published")
        }),
        (None, None) => before(history).with_context(|| match newest.of {
            Some(of) => format!("revision {of}, which it went back to, has nothing before it that differs: name a revision, or --version"),
            None => "it has always been as it is: there is nothing to go back to".into(),
        }),
    }
}

/// The newest revision before the one that holds today and that differs in what serves. What a rollback took up holds since before what it
/// rolled back, so a second one goes further back instead of returning.
fn before(history: &[Revision]) -> Option<&Revision> {
    let mut at = history.len().checked_sub(1)?;
    loop {
        let revision = &history[at];
        let taken_up = revision.of.and_then(|of| history[..at].iter().rposition(|earlier| earlier.number == of));
        match taken_up {
            Some(earlier) => at = earlier,
            None if at > 0 && serves_the_same(&history[at - 1], revision) => at -= 1,
            None => break,
        }
    }
    history[..at].last()
}

#[cfg(test)]
mod tests {
    use sluice_core::manifest::Profile;

    use super::*;

    fn revision(number: u64, version: &str, started: bool, profile: &str) -> Revision {
        let (profile, by) = (Profile::parse(profile).expect("a profile"), String::new());
        Revision { number, at: 0, by, action: Action::Deploy, version: version.into(), started, of: None, profile }
    }

    fn to(history: &[Revision], revision: Option<u64>, version: Option<&str>) -> Option<u64> {
        let target = Target { revision, version: version.map(str::to_owned) };
        earlier(history, &target).ok().map(|found| found.number)
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
        assert_eq!(to(&history, None, None), Some(3), "stopping is nothing to go back from");
        assert_eq!(to(&history[..3], None, None), Some(2));
        assert_eq!(to(&history[..2], None, None), None);
        assert_eq!(to(&history, Some(1), None), Some(1));
        assert_eq!(to(&history, Some(9), None), None);
        assert_eq!(to(&history, None, Some("1")), Some(2), "the newest of that version");
        assert_eq!(to(&history, None, Some("3")), None);
    }

    #[test]
    fn a_second_rollback_goes_further_back() {
        let taken_up = |number, of: u64, version| Revision { of: Some(of), ..revision(number, version, true, "") };
        let mut history = vec![revision(1, "1", true, ""), revision(2, "2", true, ""), revision(3, "3", true, "")];
        history.push(taken_up(4, 2, "2"));
        assert_eq!(to(&history, None, None), Some(1), "not to version 3, which it came from");
        history.push(revision(5, "2", false, ""));
        assert_eq!(to(&history, None, None), Some(1), "stopping it meanwhile changes nothing of that");
        history.push(taken_up(6, 1, "1"));
        assert_eq!(to(&history, None, None), None, "there is nothing before the first");
        history.push(revision(7, "4", true, ""));
        assert_eq!(to(&history, None, None), Some(6), "a version that came later goes back to what it followed");
    }
}
