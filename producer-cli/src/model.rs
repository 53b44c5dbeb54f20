//! `sluice model`: models that are deployed, versioned, tuned and rolled back while they serve.

mod backup;
mod change;
mod cli;
mod deploy;
mod desk;
mod elsewhere;
mod profile;
mod show;
mod undeploy;
mod wait;

use std::process::ExitCode;

use anyhow::Result;
use sluice_core::ModelName;

use crate::cli::Global;
use desk::Desk;

pub use cli::Model;
use cli::{ModelCommand, ProfileCommand, Waiting};

pub async fn run(global: &Global, options: Model) -> Result<ExitCode> {
    let desk = Desk::open(global, options.registry.as_deref(), options.json).await?;
    let work = async {
        if let Some(wait) = options.command.changes() {
            elsewhere::check(&desk, wait).await?;
        }
        match options.command {
            ModelCommand::Deploy(options) => deploy::run(&desk, options).await,
            ModelCommand::List => show::list(&desk).await,
            ModelCommand::Show { model } => show::one(&desk, &model).await,
            ModelCommand::History { model } => show::history(&desk, &model).await,
            ModelCommand::Start { model, version, waiting } => change::start(&desk, &model, version, waiting).await,
            ModelCommand::Stop { model, waiting } => change::stop(&desk, &model, waiting).await,
            ModelCommand::Rollback { model, to, waiting } => change::rollback(&desk, &model, to, waiting).await,
            ModelCommand::Profile { command } => match command {
                ProfileCommand::Show { model } => profile::show(&desk, &model).await,
                ProfileCommand::Edit { model, waiting } => profile::edit(&desk, &model, waiting).await,
                ProfileCommand::Set { model, settings, waiting } => {
                    profile::set(&desk, &model, &settings, waiting).await
                }
            },
            ModelCommand::Undeploy(options) => undeploy::run(&desk, options).await,
            ModelCommand::MakeQueue { packages } => desk.make_queues(&packages).await,
            ModelCommand::Export { models, output, overwrite } => {
                backup::export(&desk, models, &output, overwrite).await
            }
            ModelCommand::Import { archive, largest } => {
                backup::import(&desk, &archive, largest.saturating_mul(1024 * 1024)).await
            }
        }
    };
    let done = tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted; `sluice model show MODEL` tells what is true now");
            Ok(ExitCode::from(crate::exit::INTERRUPTED))
        }
    };
    close(&desk).await;
    done
}

/// Tunes a model from another command.
pub async fn set_profile(
    global: &Global,
    registry: Option<&str>,
    json: bool,
    model: &ModelName,
    settings: &[String],
) -> Result<ExitCode> {
    let desk = Desk::open(global, registry, json).await?;
    let done = async {
        elsewhere::check(&desk, false).await?;
        profile::set(&desk, model, settings, Waiting::default()).await
    };
    let done = done.await;
    close(&desk).await;
    done
}

async fn close(desk: &Desk) {
    // The last signal must be on its way before this process ends.
    if let Err(error) = desk.broker.close().await {
        eprintln!("note: the connection did not close in order, and hosts may find out later: {error}");
    }
}
