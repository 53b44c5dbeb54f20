//! Looking at what is deployed.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use indicatif::HumanBytes;
use serde_json::{Value, json};
use sluice_core::ModelName;
use sluice_core::print::count;
use sluice_core::report::{ModelReport, State};
use sluice_registry::Revision;

use super::desk::Desk;
use crate::common::plain;
use crate::reports::Hosts;
use crate::table::Table;
use crate::takes::why_it_does_not_load;

pub async fn list(desk: &Desk) -> Result<ExitCode> {
    let hosts = Hosts::gather(&desk.broker).await?;
    let mut rows = Vec::new();
    for model in desk.registry.models().await? {
        // Removed since it was listed.
        if let Some(newest) = desk.registry.newest(&model).await? {
            rows.push((model, newest));
        }
    }
    if desk.json {
        let row = |(model, newest): &(ModelName, Revision)| json!({ "model": model, "newest": newest, "hosts": hosts_json(&hosts.of(model)) });
        println!("{}", rows.iter().map(row).collect::<Value>());
        return Ok(ExitCode::SUCCESS);
    }
    if rows.is_empty() {
        println!("no model is deployed: `sluice model deploy FOLDER --start`");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["MODEL", "VERSION", "STATE", "HOSTS", "SLOTS", "REVISION", "CHANGED", "BY"]);
    for (model, newest) in &rows {
        let reports = hosts.of(model);
        let slots: usize = reports.iter().map(|(_, report)| report.slots).sum();
        table.add_row([
            model.to_string(),
            newest.version.clone(),
            state(newest, &reports),
            reports.iter().filter(|(_, report)| report.serving.is_some()).count().to_string(),
            slots.to_string(),
            newest.number.to_string(),
            when(newest.at),
            plain(&newest.by),
        ]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

pub async fn one(desk: &Desk, model: &ModelName) -> Result<ExitCode> {
    let newest = desk.registry.deployed(model).await?;
    let hosts = Hosts::gather(&desk.broker).await?;
    let reports = hosts.of(model);
    let mut versions = Vec::new();
    for version in desk.registry.versions(model).await? {
        let contents = desk.registry.contents(model, &version).await?;
        versions.push((version, contents.published, contents.size(), contents.files.len()));
    }
    // One whose slots have all failed is on no host any more; only the scaler remembers why.
    let failure = match reports.is_empty() {
        true => why_it_does_not_load(&desk.broker, model).await,
        false => None,
    };
    if desk.json {
        let versions: Vec<_> = versions
            .iter()
            .map(|(version, published, size, files)| json!({ "version": version, "published": published, "bytes": size, "files": files }))
            .collect();
        println!(
            "{}",
            json!({ "model": model, "newest": newest, "versions": versions, "hosts": hosts_json(&reports), "failure": failure })
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!("model     {model}");
    println!("state     {}", state(&newest, &reports));
    println!("version   {}", newest.version);
    println!("revision  {} ({} by {}, {})", newest.number, newest.action, plain(&newest.by), when(newest.at));
    if !newest.profile.is_empty() {
        println!("tuned     {}", newest.profile);
    }
    let mut table_of_versions = Table::new(["VERSION", "PUBLISHED", "FILES", "SIZE"]);
    for (version, published, size, files) in versions {
        table_of_versions.add_row([version, when(published), files.to_string(), HumanBytes(size).to_string()]);
    }
    println!("{table_of_versions}");
    if reports.is_empty() {
        println!("no host runs it or waits for it now");
        if let Some(reason) = failure {
            println!("it did not load where it was tried last: {}", plain(&reason));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["HOST", "STATE", "REVISION", "SERVES", "SLOTS", "WHY"]);
    for (host, report) in reports {
        table.add_row([
            plain(host),
            report.state.as_str().into(),
            report.revision.map_or("-".into(), |revision| revision.to_string()),
            report.serving.clone().unwrap_or_else(|| "-".into()),
            report.slots.to_string(),
            plain(report.reason.as_deref().unwrap_or_default()),
        ]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

pub async fn history(desk: &Desk, model: &ModelName) -> Result<ExitCode> {
    let history = desk.registry.history(model).await?;
    if desk.json {
        println!("{}", serde_json::to_string(&history)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["REVISION", "WHEN", "ACTION", "VERSION", "STATE", "TUNED", "BY"]);
    for revision in history {
        table.add_row([
            revision.number.to_string(),
            when(revision.at),
            revision.action.to_string(),
            revision.version.clone(),
            if revision.started { "started" } else { "stopped" }.into(),
            revision.profile.to_string(),
            plain(&revision.by),
        ]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// What is asked for, and how far the hosts are with it.
fn state(newest: &Revision, reports: &[(&str, &ModelReport)]) -> String {
    let wanted = if newest.started { "started" } else { "stopped" };
    let at_it =
        reports.iter().filter(|(_, report)| report.revision != Some(newest.number) || !report.state.is_settled());
    let failed = reports.iter().filter(|(_, report)| report.state == State::Failed).count();
    match (failed, at_it.count()) {
        (0, 0) => wanted.into(),
        (0, changing) => format!("{wanted}, {}", count(changing, "host is changing", "hosts are changing")),
        (failed, _) => format!("{wanted}, failed on {failed} of {}", count(reports.len(), "host", "hosts")),
    }
}

fn hosts_json(reports: &[(&str, &ModelReport)]) -> Value {
    reports.iter().map(|(host, report)| json!({ "host": host, "report": report })).collect()
}

/// `2026-11-24 10:49:32`, UTC.
fn when(at: u64) -> String {
    let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(at)).to_string();
    text.replace('T', " ").replace('Z', "")
}
