//! `sluice settings`: what the programs of a deployment hold in common, shown and changed.

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use sluice_core::broker::Broker;
use sluice_core::settings::{Apply, Settings};

use crate::cli::{Global, SettingsCommand, SettingsOptions};
use crate::common;
use crate::table::Table;

pub async fn run(global: &Global, options: SettingsOptions) -> Result<ExitCode> {
    let broker = common::connect(global).await?;
    match &options.command {
        SettingsCommand::Show => show(&*broker, options.json).await?,
        SettingsCommand::Set { settings } => set(&*broker, settings, options.json).await?,
    }
    broker.close().await?;
    Ok(ExitCode::SUCCESS)
}

async fn show(broker: &dyn Broker, json: bool) -> Result<()> {
    let settings = broker.settings().await?;
    // Whoever may not look at all of it still sees the settings.
    let differs = broker.apply_settings(&settings, Apply::Look).await;
    if json {
        let differs = differs.as_ref().map_or(Value::Null, |differs| json!(differs));
        println!("{}", json!({ "settings": as_json(&settings), "differs": differs }));
        return Ok(());
    }
    let mut table = Table::new(["SETTING", "VALUE"]);
    for (key, value) in settings.pairs() {
        table.add_row([key.to_owned(), value]);
    }
    println!("{table}");
    match differs {
        Ok(differs) if differs.is_empty() => {}
        Ok(differs) => {
            println!("not everything is so; `sluice settings set` without a setting makes it so:");
            for difference in differs {
                println!("  {difference}");
            }
        }
        Err(error) => eprintln!("note: whether everything is so cannot be told: {:#}", anyhow!(error)),
    }
    Ok(())
}

async fn set(broker: &dyn Broker, wanted: &[String], json: bool) -> Result<()> {
    let before = broker.settings().await?;
    let settings = changed(&before, wanted)?;
    broker.store_settings(&settings).await?;
    let changes = broker.apply_settings(&settings, Apply::Change).await;
    let changes =
        changes.context("the settings are stored, but not all that exists is so yet: `sluice settings set` goes on")?;
    // Brokers store the newest, whatever it was changed from.
    if let Some(lost) = overruled(&settings, &broker.settings().await?) {
        bail!(
            "somebody else set settings at the same time, and those hold: {lost}; what exists may be so in part: run this again"
        );
    }
    if json {
        println!("{}", json!({ "settings": as_json(&settings), "changed": changes }));
        return Ok(());
    }
    for (key, old, new) in before.differences(&settings) {
        println!("{key}: {old} -> {new}");
    }
    for change in &changes {
        println!("  {change}");
    }
    if changes.is_empty() {
        println!("everything that exists is so");
    }
    Ok(())
}

/// What is otherwise than it was stored just now.
fn overruled(stored: &Settings, now: &Settings) -> Option<String> {
    let differences = stored.differences(now).into_iter();
    let lost: Vec<String> = differences.map(|(key, ours, theirs)| format!("{key} is {theirs}, not {ours}")).collect();
    (!lost.is_empty()).then(|| lost.join(", "))
}

/// All or nothing of what was asked for.
fn changed(before: &Settings, wanted: &[String]) -> Result<Settings> {
    let mut settings = before.clone();
    let mut faults = Vec::new();
    for wanted in wanted {
        match wanted.split_once('=') {
            Some((key, value)) => faults.extend(settings.set(key.trim(), value.trim()).err()),
            None => faults.push(format!("`{wanted}` is not KEY=VALUE, such as replicas=3")),
        }
    }
    match faults.is_empty() {
        true => Ok(settings),
        false => bail!("{}", faults.join("\n  ")),
    }
}

fn as_json(settings: &Settings) -> Value {
    settings
        .pairs()
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_set_at_the_same_time_is_told() {
        let ours = Settings { replicas: 3, ..Settings::default() };
        assert_eq!(overruled(&ours, &ours), None);
        assert_eq!(overruled(&ours, &Settings::default()).as_deref(), Some("replicas is 1, not 3"));
    }

    #[test]
    fn all_faults_are_told_and_nothing_is_half_set() {
        let text = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            changed(&Settings::default(), &wanted)
        };
        let settings = text(&["replicas=3", "results_kept = 2d"]).expect("they can be");
        assert_eq!((settings.replicas, settings.results_kept.as_secs()), (3, 2 * 24 * 3600));
        let error = text(&["replicas=9", "copies=3", "hold_time"]).expect_err("three faults").to_string();
        for fault in ["from 1 to 5", "no setting `copies`", "`hold_time` is not KEY=VALUE"] {
            assert!(error.contains(fault), "{error}");
        }
    }
}
