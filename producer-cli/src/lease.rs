//! `sluice lease`: devices lent to other work, such as training, until it ends.

mod holding;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, bail};
use serde_json::json;
use sluice_core::broker::Broker;
use sluice_core::clock::unix_ms;
use sluice_core::scaler::{Answer, LeaseRequest, LeaseState, Question};
use tokio::process::Command;

use crate::cli::{Acquire, Global, Lease, LeaseCommand};
use crate::common::{self, plain};
use crate::ends::{Ends, Group};
use crate::scale::ask;
use holding::Holding;

pub async fn run(global: &Global, options: Lease) -> Result<ExitCode> {
    let broker = common::connect(global).await?;
    match options.command {
        LeaseCommand::List => list(&broker, options.json).await,
        LeaseCommand::Release { id } => {
            ask(&broker, &Question::Release(id.clone())).await?;
            println!("lease `{}` is given back", plain(&id));
            Ok(ExitCode::SUCCESS)
        }
        LeaseCommand::Acquire(acquire) => hold(&broker, acquire, options.json).await,
    }
}

async fn list(broker: &Arc<dyn Broker>, json: bool) -> Result<ExitCode> {
    let Answer::Leases(leases) = ask(broker, &Question::Leases).await? else {
        bail!("the scaler answered something else")
    };
    if json {
        println!("{}", serde_json::to_string(&leases)?);
        return Ok(ExitCode::SUCCESS);
    }
    if leases.is_empty() {
        println!("nothing is lent");
    }
    for lease in leases {
        let held = lease.devices.first().map(|(_, held)| held.clone());
        let Some(held) = held else { continue };
        let since = (UNIX_EPOCH + Duration::from_millis(held.since)).elapsed().unwrap_or_default();
        let mut line = format!(
            "{}  {}  group {}  {}  for {}",
            plain(&lease.id),
            named(&lease),
            held.group,
            plain(&held.holder),
            common::short(since)
        );
        if let Some((at, why)) = &lease.ending {
            line += &format!(
                "  ends in {}: {}",
                common::short(Duration::from_millis(at.saturating_sub(unix_ms()))),
                plain(why)
            );
        }
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

/// `gpu-1/cuda:0, gpu-1/cuda:1`.
fn named(lease: &LeaseState) -> String {
    let devices = lease.devices.iter().map(|(host, held)| format!("{}/{}", plain(host), held.device));
    devices.collect::<Vec<_>>().join(", ")
}

/// Gets the devices, keeps them while the command runs or until it is interrupted, and gives them back whatever happens.
async fn hold(broker: &Arc<dyn Broker>, options: Acquire, json: bool) -> Result<ExitCode> {
    let mut ends = Ends::listen()?;
    let id = options.name.clone().unwrap_or_else(|| format!("lease-{}", uuid::Uuid::now_v7().simple()));
    let request = LeaseRequest {
        id: id.clone(),
        devices: options.devices as usize,
        host: options.host.clone(),
        kind: options.kind.map(|kind| kind.as_str().to_owned()),
        group: options.group.clone(),
        // Of its own, so that a second one is not taken for the first that asks again.
        holder: format!("{} (process {})", common::whoami(), std::process::id()),
        until: None,
    };
    let holding = Holding::new(Arc::clone(broker), request, options.time);
    let mut work = Box::pin(work_under(&holding, &options, json));
    let mut count = 0;
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            () = ends.next() => {}
        }
        // The first lets the command end in order, the second kills it, and the third does not wait for that.
        count += 1;
        match count {
            1 => holding.stop.cancel(),
            2 => holding.hurry.cancel(),
            _ => break Ok(ExitCode::from(crate::exit::INTERRUPTED)),
        }
    };
    drop(work);
    // If nobody hears it: a lease whose holder is silent ends by itself.
    if holding.is_lent()
        && let Err(error) = ask(broker, &Question::Release(id)).await
    {
        eprintln!("note: the lease could not be given back in order, and ends by itself in some seconds: {error:#}");
    }
    broker.close().await?;
    done
}

async fn work_under(holding: &Holding, options: &Acquire, json: bool) -> Result<ExitCode> {
    let Some(lease) = holding.wait_for_devices(options.wait).await? else {
        return Ok(ExitCode::from(crate::exit::INTERRUPTED));
    };
    let environment = environment(&lease);
    // Standard output is the command's, if there is one.
    let say = |text: String| if options.command.is_empty() { println!("{text}") } else { eprintln!("{text}") };
    if json {
        let environment: serde_json::Map<_, _> = environment.iter().cloned().collect();
        say(json!({ "lease": lease, "environment": environment }).to_string());
    } else {
        say(format!("lease `{}`: {} free", plain(&lease.id), named(&lease)));
        environment.iter().for_each(|(name, value)| say(format!("{name}={}", value.as_str().unwrap_or_default())));
    }
    let Some((program, arguments)) = options.command.split_first() else {
        if !json {
            let limit = options.time.map_or(String::new(), |time| format!(", for {}", common::short(time)));
            println!("held until Ctrl-C{limit}");
        }
        return holding.keep(None).await;
    };
    let mut command = Command::new(program);
    command.args(arguments);
    if !options.pass_broker {
        kept_back(std::env::vars_os().map(|(name, _)| name)).for_each(|name| _ = command.env_remove(name));
    }
    command.envs(environment.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap_or_default())));
    match Group::start(command) {
        Ok(group) => holding.keep(Some(group)).await,
        Err(error) => {
            // As shells say it.
            let code = if error.kind() == ErrorKind::NotFound { 127 } else { 126 };
            eprintln!("error: cannot run `{program}`: {error}");
            Ok(ExitCode::from(code))
        }
    }
}

/// What of an environment says how to reach the broker and the registry, passwords included: work outside Sluice has no use for it.
fn kept_back(names: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    names.filter(|name| name.as_encoded_bytes().starts_with(b"SLUICE_"))
}

/// What programs look at to find their devices.
fn environment(lease: &LeaseState) -> Vec<(String, serde_json::Value)> {
    let gpus: Vec<&str> = lease.devices.iter().filter_map(|(_, held)| held.device.strip_prefix("cuda:")).collect();
    let mut environment = vec![
        ("SLUICE_LEASE".to_owned(), lease.id.clone().into()),
        ("SLUICE_LEASE_DEVICES".to_owned(), named(lease).replace(", ", ",").into()),
    ];
    if !gpus.is_empty() {
        environment.push(("CUDA_VISIBLE_DEVICES".to_owned(), gpus.join(",").into()));
    }
    environment
}
