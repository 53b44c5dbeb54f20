//! Settings: shown and tuned.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sluice_core::manifest::{Profile, Setting};
use sluice_core::{Manifest, ModelName};
use sluice_registry::{Action, Revision};

use super::cli::Waiting;
use super::desk::{Desk, change};
use super::wait::conclude;
use crate::table::Table;

pub async fn show(desk: &Desk, model: &ModelName) -> Result<ExitCode> {
    let (newest, manifest) = current(desk, model).await?;
    let settings = newest.profile.settings(&manifest);
    if desk.json {
        let settings: Vec<_> = settings
            .iter()
            .map(|setting| json!({ "key": setting.key, "value": as_json(&setting.value), "tuned": setting.tuned }))
            .collect();
        println!(
            "{}",
            json!({ "model": model, "revision": newest.number, "version": newest.version, "settings": settings })
        );
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["SETTING", "VALUE", "FROM"]);
    for setting in settings {
        let from = if setting.tuned { "tuned" } else { "package" };
        table.add_row([setting.key, setting.value, from.into()]);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

pub async fn set(desk: &Desk, model: &ModelName, settings: &[String], waiting: Waiting) -> Result<ExitCode> {
    let (newest, manifest) = current(desk, model).await?;
    let mut profile = newest.profile.clone();
    for setting in settings {
        let Some((key, value)) = setting.split_once('=') else {
            bail!("`{setting}` is not KEY=VALUE, such as batching.max_rows=64");
        };
        profile.set(key.trim(), Some(value.trim()).filter(|value| !value.is_empty()), &manifest)?;
    }
    write(desk, model, &newest, &manifest, profile, waiting).await
}

pub async fn edit(desk: &Desk, model: &ModelName, waiting: Waiting) -> Result<ExitCode> {
    let (newest, manifest) = current(desk, model).await?;
    let file = tempfile::Builder::new().suffix(".toml").tempfile().context("cannot make a temporary file")?;
    std::fs::write(file.path(), as_text(model, &newest.profile, &manifest))?;
    let editor = std::env::var("VISUAL").or_else(|_| std::env::var("EDITOR")).unwrap_or_else(|_| "vi".into());
    loop {
        // An editor may come with arguments, as `code --wait`.
        let status = Command::new("sh").args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(file.path()).status();
        if !status.with_context(|| format!("cannot run the editor `{editor}`: set EDITOR"))?.success() {
            bail!("the editor `{editor}` ended with an error: nothing is changed");
        }
        let edited = Profile::parse(&std::fs::read_to_string(file.path())?)
            .and_then(|profile| profile.apply(&manifest).map(|_| profile));
        match edited {
            Ok(profile) => return write(desk, model, &newest, &manifest, profile, waiting).await,
            Err(error) if again(&error.to_string())? => {}
            Err(error) => return Err(error).context("nothing is changed"),
        }
    }
}

/// What is wrong, and whether to edit again.
fn again(fault: &str) -> Result<bool> {
    eprintln!("that cannot be: {fault}");
    crate::common::confirm("edit again?")
}

async fn write(
    desk: &Desk,
    model: &ModelName,
    newest: &Revision,
    manifest: &Manifest,
    profile: Profile,
    waiting: Waiting,
) -> Result<ExitCode> {
    if profile == newest.profile {
        desk.say("nothing is changed");
        return conclude(desk, model, newest, waiting).await;
    }
    changes(&newest.profile.settings(manifest), &profile.settings(manifest)).iter().for_each(|line| desk.say(line));
    let change = change(Action::Profile, &newest.version, newest.started, profile);
    let revision = desk.append(model, Some(newest), change).await?;
    conclude(desk, model, &revision, waiting).await
}

async fn current(desk: &Desk, model: &ModelName) -> Result<(Revision, Manifest)> {
    let newest = desk.registry.deployed(model).await?;
    let manifest = desk.registry.contents(model, &newest.version).await?.manifest(&newest.version)?;
    Ok((newest, manifest))
}

/// What a setting was and what it becomes, one line for each that differs.
fn changes(before: &[Setting], after: &[Setting]) -> Vec<String> {
    let pairs = before.iter().zip(after).filter(|(before, after)| before != after);
    let line = |(before, after): (&Setting, &Setting)| {
        let own = if after.tuned { "" } else { ", as the package says" };
        format!("{}: {} -> {}{own}", before.key, before.value, after.value)
    };
    pairs.map(line).collect()
}

/// A setting's value, which is TOML, as JSON.
fn as_json(value: &str) -> Value {
    // Texts are quoted in both, and TOML's other quotes stand for nothing else.
    let literal = value.strip_prefix('\'').and_then(|text| text.strip_suffix('\''));
    match literal {
        Some(text) => text.into(),
        None => serde_json::from_str(value).unwrap_or_else(|_| value.into()),
    }
}

/// Every setting, by section: tuned ones as they are, the others as comments.
fn as_text(model: &ModelName, profile: &Profile, manifest: &Manifest) -> String {
    let mut text = format!(
        "# Settings of model `{model}`. Those that are tuned stand as they are; the package's own values are comments.\n\
         # Take the # away to tune one, delete a line to return to the package's value.\n"
    );
    let mut section = "";
    let settings = profile.settings(manifest);
    for setting in &settings {
        let Some((own, name)) = setting.key.split_once('.') else { continue };
        if own != section {
            text += &format!("\n[{own}]\n");
            section = own;
        }
        let comment = if setting.tuned { "" } else { "# " };
        text += &format!("{comment}{name} = {}\n", setting.value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_with_what_was_before_and_values_are_json() {
        let setting = |value: &str, tuned| Setting { key: "batching.max_rows".into(), value: value.into(), tuned };
        assert_eq!(changes(&[setting("8", false)], &[setting("64", true)]), ["batching.max_rows: 8 -> 64"]);
        assert_eq!(
            changes(&[setting("64", true)], &[setting("8", false)]),
            ["batching.max_rows: 64 -> 8, as the package says"]
        );
        assert!(changes(&[setting("8", false)], &[setting("8", false)]).is_empty());
        assert_eq!((as_json("64"), as_json("\"0s\""), as_json("'a\"b'")), (64.into(), "0s".into(), "a\"b".into()));
        assert_eq!(as_json("{ zone = \"a\" }"), Value::from("{ zone = \"a\" }"));
    }
}
