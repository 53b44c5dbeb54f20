//! Publishing a package and making it the one that serves.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use indicatif::HumanBytes;
use sluice_core::print::count;
use sluice_registry::{Action, Folder, unpack};
use tempfile::TempDir;

use super::cli::Deploy;
use super::desk::{Desk, change};
use super::wait::conclude;

pub async fn run(desk: &Desk, options: Deploy) -> Result<ExitCode> {
    let (package, _unpacked) = read(desk, &options).await?;
    let model = package.manifest.name.clone();
    let size: u64 = package.files.iter().map(|file| file.size).sum();
    let bar = desk.bytes(size, "uploading");
    let published = desk.registry.publish(&package, options.version.as_deref(), &|bytes| bar.inc(bytes)).await;
    bar.finish_and_clear();
    let published = published?;
    desk.say(match published.new {
        true => {
            let files = count(package.files.len(), "file", "files");
            format!("published version {} of model `{model}` ({files}, {})", published.version, HumanBytes(size))
        }
        false => {
            format!("version {} of model `{model}` was published before, with the same contents", published.version)
        }
    });
    let newest = desk.registry.newest(&model).await?;
    let started = options.start || newest.as_ref().is_some_and(|newest| newest.started);
    let profile = newest.as_ref().map(|newest| newest.profile.clone()).unwrap_or_default();
    if let Some(newest) = &newest
        && newest.version == published.version
        && newest.started == started
    {
        desk.say("that is what its newest revision says already");
        return conclude(desk, &model, newest, options.waiting).await;
    }
    let change = change(Action::Deploy, &published.version, started, profile);
    let revision = desk.append(&model, newest.as_ref(), change).await?;
    if !started {
        desk.say(format_args!("it does not serve yet: `sluice model start {model}`"));
    }
    conclude(desk, &model, &revision, options.waiting).await
}

/// Reads the folder, or unpacks the archive first.
async fn read(desk: &Desk, options: &Deploy) -> Result<(Folder, Option<TempDir>)> {
    let bar = desk.spinner("checking the package");
    let (path, largest) = (options.package.clone(), options.largest.saturating_mul(1024 * 1024));
    let read = tokio::task::spawn_blocking(move || {
        if path.is_dir() {
            return Ok((Folder::read(&path)?, None));
        }
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        unpack(&path, folder.path(), largest)?;
        anyhow::Ok((Folder::read(&root_of(folder.path()))?, Some(folder)))
    });
    let read = read.await.context("reading the package")?;
    bar.finish_and_clear();
    read
}

/// An archive often holds one folder that holds everything.
fn root_of(folder: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    match (entries.next(), entries.next()) {
        (Some(only), None) if only.path().is_dir() => only.path(),
        _ => folder.to_owned(),
    }
}
