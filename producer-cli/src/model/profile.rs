//! Settings: shown and tuned.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sluice_core::manifest::Profile;
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
            .map(|setting| json!({ "key": setting.key, "value": setting.value, "tuned": setting.tuned }))
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
    write(desk, model, &newest, profile, waiting).await
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
            Ok(profile) => return write(desk, model, &newest, profile, waiting).await,
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
    profile: Profile,
    waiting: Waiting,
) -> Result<ExitCode> {
    if profile == newest.profile {
        desk.say("nothing is changed");
        return conclude(desk, model, newest, waiting).await;
    }
    let change = change(Action::Profile, &newest.version, newest.started, profile);
    let revision = desk.append(model, Some(newest), change).await?;
    conclude(desk, model, &revision, waiting).await
}

async fn current(desk: &Desk, model: &ModelName) -> Result<(Revision, Manifest)> {
    let newest = desk.registry.deployed(model).await?;
    let manifest = desk.registry.contents(model, &newest.version).await?.manifest(&newest.version)?;
    Ok((newest, manifest))
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
