//! Archives with packages and history.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use indicatif::HumanBytes;
use serde_json::json;
use sluice_core::ModelName;
use sluice_core::print::count;

use super::desk::Desk;

pub async fn export(desk: &Desk, models: Vec<ModelName>, output: &Path, overwrite: bool) -> Result<ExitCode> {
    if output.exists() && !overwrite {
        bail!("`{}` is there already: replace it by --overwrite, or choose another name", output.display());
    }
    let models = if models.is_empty() { desk.registry.models().await? } else { models };
    if models.is_empty() {
        bail!("no model is deployed: there is nothing to export");
    }
    let mut size = 0;
    for model in &models {
        desk.registry.deployed(model).await?;
        size += desk.registry.size(model).await?;
    }
    let bar = desk.bytes(size, "exporting");
    let exported = sluice_registry::export(&desk.registry, &models, output, &|bytes| bar.inc(bytes)).await;
    bar.finish_and_clear();
    exported?;
    desk.say(format_args!(
        "wrote {}, {}, into {}",
        count(models.len(), "model", "models"),
        HumanBytes(size),
        output.display()
    ));
    if desk.json {
        println!("{}", json!({ "models": models, "bytes": size, "archive": output }));
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn import(desk: &Desk, archive: &Path, largest: u64) -> Result<ExitCode> {
    let size = std::fs::metadata(archive).map_or(0, |meta| meta.len());
    let bar = desk.bytes(size, "importing");
    let imported = sluice_registry::import(&desk.registry, archive, largest, &|bytes| bar.inc(bytes)).await;
    bar.finish_and_clear();
    let models = imported?;
    desk.identify().await?;
    for model in &models {
        desk.tell(model).await;
    }
    let names: Vec<&str> = models.iter().map(ModelName::as_str).collect();
    desk.say(format_args!("brought back {}; they serve, or not, as their histories say", names.join(", ")));
    if desk.json {
        println!("{}", json!({ "models": models }));
    }
    Ok(ExitCode::SUCCESS)
}
