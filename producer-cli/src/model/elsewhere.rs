//! Whether the hosts follow another registry than the one that a command works with: then nothing that it does reaches them.

use anyhow::{Result, bail};
use sluice_core::report::{RegistryReport, Report};

use super::desk::Desk;
use crate::common::plain;
use crate::reports::Hosts;

/// Says so if hosts follow another registry. With `wait`, nobody could do what is waited for: that is an error, before anything is written.
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
    match in_words(&ours, hosts.all()) {
        None => Ok(()),
        Some(text) if wait => bail!("{text}; nothing was written, since --wait would wait in vain"),
        Some(text) => {
            eprintln!("warning: {text}");
            Ok(())
        }
    }
}

/// The hosts that follow another registry than ours, and which.
fn in_words<'r>(ours: &RegistryReport, reports: impl Iterator<Item = &'r Report>) -> Option<String> {
    let others = reports.filter_map(|report| Some((report.host.as_str(), report.registry.as_ref()?)));
    let others: Vec<_> = others.filter(|(_, theirs)| is_another(ours, theirs)).collect();
    let (_, theirs) = others.first()?;
    let names: Vec<String> = others.iter().map(|(host, _)| format!("`{}`", plain(host))).collect();
    let follow = if names.len() == 1 { "host {} follows" } else { "hosts {} follow" }.replace("{}", &names.join(", "));
    Some(format!(
        "{follow} the registry `{}`, and this command works with `{}`: they will not see what it does. --registry or SLUICE_REGISTRY \
         names theirs",
        plain(&theirs.url),
        ours.url
    ))
}

/// By their identities; before both are known, as far as URLs tell.
fn is_another(ours: &RegistryReport, theirs: &RegistryReport) -> bool {
    match (&ours.identity, &theirs.identity) {
        (Some(ours), Some(theirs)) => ours != theirs,
        _ => place(&ours.url) != place(&theirs.url),
    }
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
            (registry("file:///a", Some("1")), registry("file:///mnt/a", Some("1")), false),
            (registry("nats://a:4222", Some("1")), registry("nats://a:4222", Some("2")), true),
            (registry("nats://a:4222", Some("1")), registry("nats://b:4222", None), false),
            (registry("nats://a:4222", None), registry("file:///dev/registry", Some("2")), true),
            (registry("s3://models/sluice/", None), registry("s3://models/sluice", None), false),
        ];
        for (ours, theirs, another) in cases {
            assert_eq!(is_another(&ours, &theirs), another, "{ours:?} and {theirs:?}");
        }
    }
}
