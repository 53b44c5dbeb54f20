//! Waiting until the hosts have done as a revision says: `judge` decides, `until_done` listens.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use sluice_core::ModelName;
use sluice_core::print::count;
use sluice_core::report::{ModelReport, State};
use sluice_core::scaler::{Answer, Question};
use sluice_registry::{Action, Revision};

use super::cli::Waiting;
use super::desk::Desk;
use crate::reports::Hosts;

/// How long the scaler may take to answer.
const SCALER_PATIENCE: Duration = Duration::from_secs(1);

/// How far the hosts have come with a revision.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No host has said that it runs the model; what keeps the scaler from having one try it, if that is known.
    Nobody(Option<String>),
    /// No host will: the scaler does not have one try it, for this reason.
    Untried(String),
    /// Some are at it: how many of how many have done it.
    Pending(usize, usize),
    /// All have done it.
    Done,
    /// All have settled, and some could not: each with its reason.
    Failed(Vec<String>),
    /// A newer revision counts.
    Overtaken(u64),
}

/// What the hosts are to come to.
#[derive(Clone, Copy)]
pub struct Wanted {
    /// The revision.
    pub revision: u64,
    /// Whether it lets the model serve.
    pub started: bool,
    /// Whether a host is to load it even if the scaler wants no slots: what was only tuned was loaded before.
    pub tried: bool,
}

impl Wanted {
    pub fn of(revision: &Revision) -> Self {
        let tried = revision.started && revision.action != Action::Profile;
        Self { revision: revision.number, started: revision.started, tried }
    }

    /// Whether a host has come to its end with the revision, and well.
    fn is_met(self, report: &ModelReport) -> bool {
        report.revision == Some(self.revision)
            && report.state == if self.started { State::Ready } else { State::Stopped }
    }
}

/// Judges by what the hosts say.
pub fn judge(wanted: Wanted, reports: &[(&str, &ModelReport)]) -> Verdict {
    let reports: Vec<_> =
        reports.iter().filter_map(|(host, report)| Some((*host, report.revision?, *report))).collect();
    if reports.is_empty() {
        return Verdict::Nobody(None);
    }
    if let Some((_, newer, _)) = reports.iter().find(|(_, revision, _)| *revision > wanted.revision) {
        return Verdict::Overtaken(*newer);
    }
    let settled = |(_, revision, report): &&(&str, u64, &ModelReport)| {
        wanted.is_met(report) || (*revision == wanted.revision && report.state == State::Failed)
    };
    let done = reports.iter().filter(settled).count();
    if done < reports.len() {
        return Verdict::Pending(done, reports.len());
    }
    let failed = reports.iter().filter(|(_, _, report)| report.state == State::Failed);
    let reasons: Vec<String> = failed
        .map(|(host, _, report)| format!("{host}: {}", report.reason.as_deref().unwrap_or("no reason given")))
        .collect();
    if reasons.is_empty() { Verdict::Done } else { Verdict::Failed(reasons) }
}

/// Reports a change that was written, and if asked to, waits until the hosts have done it. Ends with what is true then.
pub async fn conclude(desk: &Desk, model: &ModelName, revision: &Revision, waiting: Waiting) -> Result<ExitCode> {
    let state = if revision.started { "started" } else { "stopped" };
    desk.say(format_args!("model `{model}`: revision {}, version {}, {state}", revision.number, revision.version));
    let verdict = match waiting.wait {
        true => Some(until_done(desk, model, Wanted::of(revision), waiting.wait_time).await?),
        false => None,
    };
    let (code, words) = match &verdict {
        None => (ExitCode::SUCCESS, None),
        Some((Verdict::Done, hosts)) => {
            let what = if revision.started { "ready" } else { "stopped" };
            let words = match hosts.is_empty() {
                true if revision.started => "the scaler starts slots with the first request".to_owned(),
                true => "stopped: no host has slots of it".to_owned(),
                false => format!("{what} on {}", named(hosts)),
            };
            (ExitCode::SUCCESS, Some(words))
        }
        Some((Verdict::Nobody(Some(trouble)) | Verdict::Untried(trouble), _)) => (
            ExitCode::FAILURE,
            Some(format!("no host has tried to load it: {trouble}; the revision is written and stands")),
        ),
        Some((Verdict::Nobody(None), _)) => (
            ExitCode::FAILURE,
            Some(
                "no worker has taken it up: start a `sluice-scaler` and hosts that follow it, or a worker whose configuration has `[[worker.slots]]` with `model = \"*\"` or this model's \
                 name; the revision is written and stands"
                    .into(),
            ),
        ),
        Some((Verdict::Pending(done, all), hosts)) => {
            let waits: Vec<String> = hosts
                .iter()
                .filter(|host| host["done"] != true)
                .map(|host| {
                    let reason = host["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
                    format!("{} is {}{reason}", host["host"].as_str().unwrap_or_default(), host["state"].as_str().unwrap_or_default())
                })
                .collect();
            (ExitCode::FAILURE, Some(format!("{done} of {} done it so far; {}", count(all, "host has", "hosts have"), waits.join("; "))))
        }
        Some((Verdict::Failed(reasons), hosts)) => {
            let failed = hosts.iter().filter(|host| host["done"] != true);
            let serving: Vec<&str> = failed.filter_map(|host| host["serving"].as_str()).collect();
            let still = serving.first().map(|version| format!("\nversion {version} still serves")).unwrap_or_default();
            (ExitCode::FAILURE, Some(format!("it failed on {}{still}", reasons.join("\n  "))))
        }
        Some((Verdict::Overtaken(newer), _)) => {
            (ExitCode::FAILURE, Some(format!("revision {newer} came meanwhile: that one counts")))
        }
    };
    if desk.json {
        let hosts = verdict.as_ref().map(|(_, hosts)| hosts.clone());
        println!(
            "{}",
            json!({ "model": model, "revision": revision, "hosts": hosts, "done": verdict.map(|(verdict, _)| verdict == Verdict::Done), "message": words })
        );
    } else if let Some(words) = words {
        match code == ExitCode::SUCCESS {
            true => println!("{words}"),
            false => eprintln!("error: {words}"),
        }
    }
    Ok(code)
}

fn named(hosts: &[Value]) -> String {
    let names: Vec<&str> = hosts.iter().filter_map(|host| host["host"].as_str()).collect();
    match names.len() {
        1 => names[0].to_owned(),
        count => format!("{count} hosts: {}", names.join(", ")),
    }
}

/// Waits until all hosts have settled; the verdict when that is so, or when the time is over, and what each host said last.
pub async fn until_done(
    desk: &Desk,
    model: &ModelName,
    wanted: Wanted,
    limit: Duration,
) -> Result<(Verdict, Vec<Value>)> {
    let bar = desk.spinner("waiting for hosts");
    let deadline = tokio::time::Instant::now() + limit;
    // Hosts that report a moment later must be heard before anything is done.
    let mut hosts = Hosts::gather(&desk.broker).await?;
    loop {
        let mut verdict = judge(wanted, &hosts.of(model));
        if matches!(verdict, Verdict::Overtaken(_))
            && desk.registry.newest(model).await?.is_none_or(|newest| newest.number <= wanted.revision)
        {
            // A host that still speaks of a model of this name that was removed.
            verdict = Verdict::Pending(0, hosts.of(model).len());
        }
        if verdict == Verdict::Nobody(None) {
            verdict = without_hosts(desk, model, wanted, &hosts).await?;
        }
        match &verdict {
            Verdict::Nobody(_) => bar.set_message("waiting for a worker that takes it up"),
            Verdict::Pending(done, all) => {
                bar.set_message(format!("{done} of {} done it", count(*all, "host has", "hosts have")))
            }
            _ => {
                bar.finish_and_clear();
                return Ok((verdict, as_json(wanted, &hosts.of(model))));
            }
        }
        match tokio::time::timeout_at(deadline, hosts.next()).await {
            Ok(next) => next?,
            Err(_) => {
                bar.finish_and_clear();
                return Ok((verdict, as_json(wanted, &hosts.of(model))));
            }
        }
    }
}

/// What is true of a model that no host reports. If the scaler wants no slots until somebody asks, there is nothing that hosts should do, but
/// for one that loads a new version to find out whether it can be.
async fn without_hosts(desk: &Desk, model: &ModelName, wanted: Wanted, hosts: &Hosts) -> Result<Verdict> {
    if !hosts.all().any(|report| report.assignment.is_some()) {
        return Ok(Verdict::Nobody(None));
    }
    let Some(Answer::Explained(explanation)) = ask(desk, &Question::Explain(model.clone())).await? else {
        return Ok(Verdict::Nobody(None));
    };
    if explanation.revision != wanted.revision {
        return Ok(Verdict::Nobody(None));
    }
    if let Some(failure) = explanation.failure.filter(|_| wanted.started) {
        return Ok(Verdict::Failed(vec![failure]));
    }
    let rests = explanation.wanted == 0 && explanation.placed == 0;
    if !wanted.tried || !rests {
        return Ok(if rests { Verdict::Done } else { Verdict::Nobody(explanation.trouble) });
    }
    // Asking twice is asking once: a new leader has not heard of it.
    Ok(match ask(desk, &Question::Try { model: model.clone(), revision: wanted.revision }).await? {
        Some(Answer::Refused(reason)) => Verdict::Untried(why_not(reason)),
        Some(_) => Verdict::Nobody(explanation.trouble),
        None => Verdict::Nobody(Some("the scaler does not answer".into())),
    })
}

/// Why a scaler has no host try it. One that is older than the question says that it does not understand it.
fn why_not(reason: String) -> String {
    match reason.contains("does not understand the question") {
        true => "the scaler that leads is older than this command and cannot have a host try it: replace it, or send a request and see".into(),
        false => reason,
    }
}

/// Asks the scaler that leads, if there is one.
async fn ask(desk: &Desk, question: &Question) -> Result<Option<Answer>> {
    let text = serde_json::to_vec(question)?;
    let answer = desk.broker.ask(question.topic(), text.into(), SCALER_PATIENCE).await?;
    Ok(answer.and_then(|answer| serde_json::from_slice(&answer).ok()))
}

fn as_json(wanted: Wanted, reports: &[(&str, &ModelReport)]) -> Vec<Value> {
    let one = |(host, report): &(&str, &ModelReport)| {
        let done = wanted.is_met(report);
        json!({ "host": host, "state": report.state, "reason": report.reason, "serving": report.serving,
            "revision": report.revision, "slots": report.slots, "done": done })
    };
    reports.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(revision: u64, state: State) -> ModelReport {
        let reason = (state == State::Failed).then(|| "it does not load".to_owned());
        ModelReport { reason, slots: 1, ..ModelReport::new("m".parse().expect("a name"), Some(revision), state) }
    }

    #[test]
    fn an_older_scaler_is_told_as_such() {
        // As it answers what it cannot read.
        let unknown = serde_json::from_str::<Question>(r#"{"never_heard_of":{}}"#).expect_err("it is none");
        let why = why_not(format!("the scaler does not understand the question: {unknown}"));
        assert!(why.starts_with("the scaler that leads is older than this command"), "{why}");
        assert_eq!(why_not("its scaling is paused".into()), "its scaling is paused");
    }

    #[test]
    fn it_is_done_when_every_host_has_settled_at_the_revision() {
        let (old, loading, ready) = (report(1, State::Ready), report(2, State::Loading), report(2, State::Ready));
        let (failed, newer) = (report(2, State::Failed), report(3, State::Ready));
        let stopped = report(2, State::Stopped);
        let cases = [
            (vec![], Verdict::Nobody(None)),
            (vec![("a", &old)], Verdict::Pending(0, 1)),
            (vec![("a", &ready), ("b", &old)], Verdict::Pending(1, 2)),
            (vec![("a", &ready), ("b", &loading)], Verdict::Pending(1, 2)),
            (vec![("a", &ready), ("b", &ready)], Verdict::Done),
            // Of a model that was removed and came back under its name.
            (vec![("a", &stopped)], Verdict::Pending(0, 1)),
            (vec![("a", &failed), ("b", &loading)], Verdict::Pending(1, 2)),
            (vec![("a", &failed), ("b", &ready)], Verdict::Failed(vec!["a: it does not load".into()])),
            (vec![("a", &ready), ("b", &newer)], Verdict::Overtaken(3)),
        ];
        for (reports, verdict) in cases {
            assert_eq!(judge(Wanted { revision: 2, started: true, tried: true }, &reports), verdict, "{reports:?}");
        }
    }
}
