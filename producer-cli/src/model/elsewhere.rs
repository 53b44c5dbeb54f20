//! Whether the hosts follow another registry than the one that a command works with: then nothing that it does reaches them.

use anyhow::{Result, bail};
use sluice_core::report::{RegistryReport, Report};

use super::desk::Desk;
use crate::common::plain;
use crate::reports::Hosts;

/// Says so if hosts follow another registry. If that is sure, nobody could do what `wait` waits for: an error, before anything is written.
pub async fn check(desk: &Desk, wait: bool) -> Result<()> {
    let (hosts, identity) = tokio::join!(Hosts::gather(&desk.broker), desk.registry.identity());
    let hosts = match hosts {
        Ok(hosts) => hosts,
        Err(error) => {
            eprintln!("note: whether the hosts follow this registry cannot be told: {error:#}");
            return Ok(());
        }
    };
    let ours = RegistryReport { url: desk.registry.url().to_owned(), identity: identity? };
    let (sure, text) = match in_words(&ours, hosts.all()) {
        None => return Ok(()),
        Some(others) => others,
    };
    if wait && sure {
        bail!("{text}; nothing was written, since --wait would wait in vain");
    }
    eprintln!("warning: {text}");
    Ok(())
}

/// The hosts that follow another registry than ours, and which; and whether one of them surely does.
fn in_words<'r>(ours: &RegistryReport, reports: impl Iterator<Item = &'r Report>) -> Option<(bool, String)> {
    let others = reports.filter_map(|report| Some((report.host.as_str(), report.registry.as_ref()?)));
    let others = others.map(|(host, theirs)| (host, theirs, compared(ours, theirs)));
    let others: Vec<_> = others.filter(|(.., compared)| *compared != Compared::Same).collect();
    let sure = |(.., compared): &&(_, _, Compared)| *compared == Compared::Another;
    let (_, theirs, first) = others.iter().find(sure).or(others.first())?;
    let names: Vec<String> = others.iter().map(|(host, ..)| format!("`{}`", plain(host))).collect();
    let follow = if names.len() == 1 { "host {} follows" } else { "hosts {} follow" }.replace("{}", &names.join(", "));
    let sure = *first == Compared::Another;
    let unless =
        if sure { "" } else { ", unless both are one place, which cannot be told before something is deployed there" };
    Some((
        sure,
        format!(
            "{follow} the registry `{}`, and this command works with `{}`: they will not see what it does{unless}. --registry or \
             SLUICE_REGISTRY names theirs",
            plain(&theirs.url),
            plain(&ours.url)
        ),
    ))
}

/// What is known of a host's registry beside ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    Same,
    Another,
    /// It is reached in another way.
    Perhaps,
}

/// By their identities, which last from the first write on. Before that as far as URLs tell: one folder or bucket is mounted and reached
/// in many ways, but is no broker.
fn compared(ours: &RegistryReport, theirs: &RegistryReport) -> Compared {
    match (&ours.identity, &theirs.identity) {
        (Some(ours), Some(theirs)) if ours == theirs => Compared::Same,
        // Ours was looked at just now: what has an identity for longer is not ours.
        (_, Some(_)) if ours.identity.is_some() || !same_place(ours, theirs) => Compared::Another,
        _ if same_place(ours, theirs) => Compared::Same,
        _ if on_broker(ours) != on_broker(theirs) => Compared::Another,
        _ => Compared::Perhaps,
    }
}

fn same_place(ours: &RegistryReport, theirs: &RegistryReport) -> bool {
    place(&ours.url) == place(&theirs.url)
}

fn on_broker(registry: &RegistryReport) -> bool {
    place(&registry.url) == "nats"
}

/// Of a broker only that it is one: it may have several addresses.
fn place(url: &str) -> &str {
    match url.split_once("://") {
        Some(("nats" | "tls", _)) => "nats",
        _ => url.trim_end_matches('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(url: &str, identity: Option<&str>) -> RegistryReport {
        RegistryReport { url: url.into(), identity: identity.map(str::to_owned) }
    }

    #[test]
    fn registries_are_told_apart_by_identity_and_before_that_by_url() {
        let cases = [
            (registry("file:///a", Some("1")), registry("file:///mnt/a", Some("1")), Compared::Same),
            (registry("nats://a:4222", Some("1")), registry("nats://a:4222", Some("2")), Compared::Another),
            (registry("nats://a:4222", Some("1")), registry("nats://b:4222", None), Compared::Same),
            (registry("nats://a:4222", None), registry("file:///dev/registry", None), Compared::Another),
            (registry("file:///a", None), registry("file:///b", Some("2")), Compared::Another),
            (registry("s3://models/sluice/", None), registry("s3://models/sluice", None), Compared::Same),
            // A new one, which hosts mount elsewhere; they may not have looked again since it had an identity.
            (registry("file:///srv/models", None), registry("file:///mnt/models", None), Compared::Perhaps),
            (registry("s3://models", Some("1")), registry("file:///mnt/models", None), Compared::Perhaps),
        ];
        for (ours, theirs, expected) in cases {
            assert_eq!(compared(&ours, &theirs), expected, "{ours:?} and {theirs:?}");
        }
    }

    #[test]
    fn nobody_is_held_up_by_what_is_only_suspected() {
        let report = |host: &str, registry| {
            let report = serde_json::json!({ "host": host, "at": 0, "models": [] });
            Report { registry: Some(registry), ..serde_json::from_value(report).expect("a report") }
        };
        let ours = registry("file:///srv/models", None);
        let mounted = report("a", registry("file:///mnt/models", None));
        let (sure, text) = in_words(&ours, [&mounted].into_iter()).expect("it is told");
        assert!(!sure && text.contains("unless both are one place"), "{text}");
        let other = report("b", registry("file:///other", Some("2")));
        let (sure, text) = in_words(&ours, [&mounted, &other].into_iter()).expect("it is told");
        assert!(sure && text.contains("hosts `a`, `b` follow the registry `file:///other`"), "{text}");
        assert_eq!(in_words(&ours, std::iter::empty()), None);
    }
}
