//! Removing a model. It drains first; what still waits in its queue is answered that the model is gone, so that nothing that was
//! accepted is lost.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::HumanBytes;
use serde_json::json;
use sluice_core::broker::{BrokerError, Death, Delivery, Limited, QueueLimits, Reply, Settlement};
use sluice_core::clock::unix_ms;
use sluice_core::print::count;
use sluice_core::{ErrorCode, Failure, ModelName, codec};
use sluice_registry::{Action, Revision};

use super::cli::Undeploy;
use super::desk::{Desk, change};
use super::wait::{Verdict, Wanted, until_done};
use crate::reports::Hosts;
use crate::{common, exit};

/// Requests that are taken at once to be refused.
const CREDIT: usize = 64;
/// A queue from which nothing came for so long, and that says it is empty, is.
const QUIET: Duration = Duration::from_millis(500);
/// How long hosts may take to notice that a model is gone; who was not told notices later.
const FORGOTTEN: Duration = Duration::from_secs(5);

pub async fn run(desk: &Desk, options: Undeploy) -> Result<ExitCode> {
    let model = &options.model;
    let newest = desk.registry.deployed(model).await?;
    if newest.started && !options.force {
        bail!(
            "model `{model}` is started: `sluice model stop {model}` first, or --force, which lets it drain and removes it"
        );
    }
    let versions = desk.registry.versions(model).await?;
    let size = HumanBytes(desk.registry.size(model).await?);
    let waiting = waiting(desk, model).await?;
    if !options.yes {
        let requests = match waiting {
            Some(0) | None => String::new(),
            Some(waiting) => format!(
                ", and its queue; {} answered UNAVAILABLE",
                count(waiting, "request that waits is", "requests that wait are")
            ),
        };
        let what = format!(
            "this removes model `{model}`: {} ({size}), {}{requests}. It cannot be undone; `sluice model export` keeps a \
             copy. Go on?",
            count(versions.len(), "version", "versions"),
            count(newest.number, "revision", "revisions")
        );
        if !common::confirm(&what)? {
            desk.say("nothing is changed");
            return Ok(ExitCode::from(exit::SOME_FAILED));
        }
    }
    // Interrupted anywhere from here on, the model is stopped, and undeploying it again goes on.
    let manifest = desk.registry.effective(model, &newest.version, &newest.profile).await;
    drain(desk, model, &newest, options.wait_time).await?;
    let refused = match waiting {
        Some(_) => {
            empty_queue(desk, model, manifest.map_or(Duration::ZERO, |manifest| manifest.limits.retry_delay)).await?
        }
        None => 0,
    };
    desk.registry.remove(model).await?;
    desk.tell(model).await;
    until_forgotten(desk, model).await?;
    desk.say(format_args!(
        "model `{model}` is removed{}",
        match refused {
            0 => String::new(),
            refused => {
                let requests = count(refused, "request that waited was", "requests that waited were");
                format!("; {requests} answered UNAVAILABLE")
            }
        }
    ));
    if desk.json {
        println!("{}", json!({ "model": model, "removed": true, "refused": refused }));
    }
    Ok(ExitCode::SUCCESS)
}

/// Requests in the queue; `None` if there is no queue.
async fn waiting(desk: &Desk, model: &ModelName) -> Result<Option<u64>> {
    match desk.broker.depth(model).await {
        Ok(lanes) => Ok(Some(lanes.into_iter().filter_map(|lane| lane.ready.known()).sum())),
        Err(BrokerError::UnknownModel(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn drain(desk: &Desk, model: &ModelName, newest: &Revision, limit: Duration) -> Result<()> {
    let stopped = match newest.started {
        true => {
            let change = change(Action::Stop, &newest.version, false, newest.profile.clone());
            Wanted::of(&desk.append(model, Some(newest), change).await?)
        }
        false => Wanted::of(newest),
    };
    if Hosts::gather(&desk.broker).await?.of(model).is_empty() {
        // Nobody runs it: there is nothing to drain.
        return Ok(());
    }
    match until_done(desk, model, stopped, limit).await? {
        (Verdict::Done | Verdict::Nobody(_), _) => Ok(()),
        // What cannot be loaded or stopped in order runs nothing.
        (Verdict::Failed(_), hosts) if hosts.iter().all(|host| host["serving"].is_null()) => Ok(()),
        (verdict, _) => {
            bail!("model `{model}` is stopped, but has not drained within {limit:?} ({verdict:?}): it is not removed")
        }
    }
}

/// Waits a moment until no host speaks of the model any more: it may come back under its name at once.
async fn until_forgotten(desk: &Desk, model: &ModelName) -> Result<()> {
    let deadline = Instant::now() + FORGOTTEN;
    while !Hosts::gather(&desk.broker).await?.of(model).is_empty() && Instant::now() < deadline {}
    Ok(())
}

/// Closes the queue, answers what is in it, and removes it. What waits for a retry comes back within `retry_delay`.
async fn empty_queue(desk: &Desk, model: &ModelName, retry_delay: Duration) -> Result<u64> {
    let closed = desk.broker.ensure_queue(model, &QueueLimits::closed()).await.context("cannot close the queue")?;
    if let Limited::AsConfigured(reason) = closed {
        bail!(
            "the queue of model `{model}` cannot be closed, so what arrives while it is removed would be lost: {reason}. Use a user that \
             may set its length"
        );
    }
    let quiet = retry_delay + QUIET;
    let bar = desk.spinner("answering what still waits");
    let mut consumer = desk.broker.consume(model, CREDIT).await.context("cannot empty the queue")?;
    let mut refused = 0;
    loop {
        match tokio::time::timeout(quiet, consumer.next()).await {
            Ok(Err(error)) if error.is_transient() => tokio::time::sleep(QUIET).await,
            Ok(delivery) => {
                refuse(desk, model, delivery?).await?;
                refused += 1;
                bar.set_message(format!("answered {refused} that still waited"));
            }
            Err(_) => {
                let lanes = desk.broker.depth(model).await?;
                let left = |reading: sluice_core::broker::Reading<u64>| reading.known().unwrap_or(0);
                if lanes.into_iter().map(|lane| left(lane.ready) + left(lane.in_flight)).sum::<u64>() == 0 {
                    break;
                }
            }
        }
    }
    consumer.stop().await;
    bar.finish_and_clear();
    desk.broker.remove_queue(model).await.context("cannot remove the queue")?;
    Ok(refused)
}

async fn refuse(desk: &Desk, model: &ModelName, delivery: Delivery) -> Result<()> {
    let failure =
        Failure::new(ErrorCode::Unavailable, format!("model `{model}` was undeployed before this was answered"));
    let (id, reply_to, content_type, traceparent) = match delivery.envelope {
        Ok(envelope) => (Some(envelope.id), envelope.reply_to, envelope.content_type, envelope.traceparent),
        Err(malformed) => (malformed.id, malformed.reply_to, malformed.content_type, None),
    };
    let told = match (&id, &reply_to) {
        (Some(id), Some(to)) => {
            let body = codec::encode_failure(content_type, model.as_str(), id.as_str(), &failure);
            let reply = Reply { id: id.clone(), error: Some(failure.code), content_type, body, traceparent };
            desk.broker.reply(to, &reply).await.is_ok()
        }
        _ => false,
    };
    let settlement = match told {
        true => Settlement::Done,
        false => Settlement::Dead(Death {
            code: failure.code,
            reason: failure.message,
            attempts: delivery.charged,
            host: "sluice model undeploy".into(),
            at: unix_ms(),
        }),
    };
    Ok(delivery.hold.settle(settlement).await?)
}
