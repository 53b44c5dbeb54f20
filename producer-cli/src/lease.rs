//! `sluice lease`: devices lent to other work, such as training, until it ends.

use std::cell::Cell;
use std::io::ErrorKind;
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, bail};
use serde_json::json;
use sluice_core::broker::Broker;
use sluice_core::clock::unix_ms;
use sluice_core::scaler::{Answer, LeaseRequest, LeaseState, Question};
use tokio::process::Command;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cli::{Acquire, Global, Lease, LeaseCommand};
use crate::common::{self, plain};
use crate::ends::{Ends, Group};
use crate::scale::ask;

/// How often the scaler hears that this lease is still needed.
const RENEWAL: Duration = Duration::from_secs(2);
/// Shorter, while devices are waited for.
const LOOK: Duration = Duration::from_millis(300);
/// Without the broker for so long, the scaler is about to give the devices to others.
const LOST_AFTER: Duration = Duration::from_secs(12);
/// What a command has to end in order when its lease is already gone.
const GRACE: Duration = Duration::from_secs(3);

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
    let (stop, hurry) = (CancellationToken::new(), CancellationToken::new());
    // Whether there is something to give back: the name may be somebody else's.
    let lent = Cell::new(false);
    let signals = Signals { stop: stop.clone(), hurry: hurry.clone() };
    let work = held(broker, &options, &id, json, &signals, &lent);
    let mut work = Box::pin(work);
    let mut count = 0;
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            () = ends.next() => {}
        }
        // The first lets the command end in order, the second kills it, and the third does not wait for that.
        count += 1;
        match count {
            1 => stop.cancel(),
            2 => hurry.cancel(),
            _ => break Ok(ExitCode::from(crate::exit::INTERRUPTED)),
        }
    };
    drop(work);
    // If nobody hears it: a lease whose holder is silent ends by itself.
    if lent.get()
        && let Err(error) = ask(broker, &Question::Release(id)).await
    {
        eprintln!("note: the lease could not be given back in order, and ends by itself in some seconds: {error:#}");
    }
    broker.close().await?;
    done
}

/// What a person at the keyboard wants.
struct Signals {
    /// That the command ends.
    stop: CancellationToken,
    /// That it ends at once.
    hurry: CancellationToken,
}

async fn held(
    broker: &Arc<dyn Broker>,
    options: &Acquire,
    id: &str,
    json: bool,
    signals: &Signals,
    lent: &Cell<bool>,
) -> Result<ExitCode> {
    let request = LeaseRequest {
        id: id.to_owned(),
        devices: options.devices as usize,
        host: options.host.clone(),
        kind: options.kind.map(|kind| kind.as_str().to_owned()),
        group: options.group.clone(),
        // Of its own, so that a second one is not taken for the first that asks again.
        holder: format!("{} (process {})", common::whoami(), std::process::id()),
        until: options.time.map(|time| unix_ms() + time.as_millis() as u64),
    };
    let mut said = String::new();
    let lease = loop {
        let answer = ask(broker, &Question::Acquire(request.clone())).await;
        if matches!(answer, Ok(Answer::Lease(_))) {
            lent.set(true);
        }
        match answer {
            Ok(Answer::Lease(lease)) if lease.free => break lease,
            Ok(Answer::Lease(lease)) => say_once(&mut said, &format!("waiting until {} drained", named(&lease))),
            Ok(other) => bail!("the scaler answered something else: {other:?}"),
            Err(reason) if options.wait => say_once(&mut said, &format!("waiting: {reason:#}")),
            Err(reason) => return Err(reason.context("nothing is lent; --wait waits until it can be")),
        }
        if signals.stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
            return Ok(ExitCode::from(crate::exit::INTERRUPTED));
        }
    };
    let environment = environment(&lease);
    // Standard output is the command's, if there is one.
    let say = |text: String| if options.command.is_empty() { println!("{text}") } else { eprintln!("{text}") };
    if json {
        let environment: serde_json::Map<_, _> = environment.iter().cloned().collect();
        say(json!({ "lease": lease, "environment": environment }).to_string());
    } else {
        say(format!("lease `{id}`: {} free", named(&lease)));
        environment.iter().for_each(|(name, value)| say(format!("{name}={}", value.as_str().unwrap_or_default())));
    }
    let mut child = match options.command.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command.envs(environment.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap_or_default())));
            match Group::start(command) {
                Ok(group) => Some(group),
                Err(error) => {
                    // As shells say it.
                    let code = if error.kind() == ErrorKind::NotFound { 127 } else { 126 };
                    eprintln!("error: cannot run `{program}`: {error}");
                    return Ok(ExitCode::from(code));
                }
            }
        }
        None => {
            if !json {
                println!(
                    "held until Ctrl-C{}",
                    options.time.map_or(String::new(), |time| format!(", for {}", common::short(time)))
                );
            }
            None
        }
    };
    let holding = Holding { broker, id, holder: &request.holder, lent };
    let done = holding.renew(&mut child, signals).await;
    if let Some(group) = &mut child {
        if let Err(reason) = &done {
            eprintln!("{reason:#}: the command is asked to end, and killed in {GRACE:?}");
        }
        // Nothing that the command started goes on once its devices are others'.
        let grace = if signals.hurry.is_cancelled() { Duration::ZERO } else { GRACE };
        if !group.end(grace).await {
            eprintln!("note: some of what the command started cannot be ended, and may still use the devices");
        }
    }
    done
}

/// A lease that is kept.
struct Holding<'l> {
    broker: &'l Arc<dyn Broker>,
    id: &'l str,
    /// Who this is; others may have had the name since.
    holder: &'l str,
    /// Whether there is something to give back.
    lent: &'l Cell<bool>,
}

impl Holding<'_> {
    /// Keeps the lease until the command has ended, somebody wants it to, or the lease is gone.
    async fn renew(&self, child: &mut Option<Group>, signals: &Signals) -> Result<ExitCode> {
        let mut stopping = false;
        // When the command must have ended, and why.
        let mut ending: Option<(Instant, String)> = None;
        let mut heard = Instant::now();
        loop {
            let lost = heard + LOST_AFTER;
            let next = ending.iter().map(|(at, _)| *at).fold(lost.min(Instant::now() + RENEWAL), Instant::min);
            tokio::select! {
                status = ended(child) => return Ok(exit_code(status?)),
                () = signals.hurry.cancelled() => return Ok(ExitCode::from(crate::exit::INTERRUPTED)),
                () = signals.stop.cancelled(), if !stopping => {
                    stopping = true;
                    match child {
                        Some(child) => child.terminate(),
                        None => return Ok(ExitCode::from(crate::exit::INTERRUPTED)),
                    }
                }
                () = tokio::time::sleep_until(next) => {}
            }
            if let Some((_, why)) = ending.as_ref().filter(|(at, _)| *at <= Instant::now()) {
                // By itself: the name may be somebody else's before this could say so.
                self.lent.set(false);
                bail!("the lease ends now: {why}");
            }
            let asked = Instant::now();
            let patience = RENEWAL.min(lost.saturating_duration_since(asked));
            if patience.is_zero() {
                self.lent.set(false);
                bail!("no scaler has answered for {LOST_AFTER:?}, so lease `{}` has ended by now", self.id);
            }
            let renewal = Question::Renew(self.id.to_owned());
            let asking = self.broker.ask(renewal.topic(), serde_json::to_vec(&renewal)?.into(), patience);
            let Some(answer) = signals.hurry.run_until_cancelled(asking).await else { continue };
            match answer {
                Ok(Some(answer)) => {
                    let lease = self.lease(serde_json::from_slice(&answer)?)?;
                    heard = asked;
                    if let (Some((at, why)), None) = (&lease.ending, &ending) {
                        let left = Duration::from_millis(at.saturating_sub(unix_ms()));
                        ending = Some((Instant::now() + left.saturating_sub(GRACE), why.clone()));
                        eprintln!("the lease ends in {}: {why}", common::short(left));
                        match child {
                            Some(child) => child.terminate(),
                            None => return Ok(ExitCode::SUCCESS),
                        }
                    }
                }
                // The broker says at once that nobody leads: hosts keep what they have, and the next leader learns of the lease from
                // them. If nothing comes until the limit, this holder may be cut off, and others have its devices soon.
                Ok(None) if asked.elapsed() < patience / 2 => heard = asked,
                // It is asked again until the limit.
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// The lease as the scaler says it is; an error if it is not this holder's any more.
    fn lease(&self, answer: Answer) -> Result<LeaseState> {
        match answer {
            Answer::Lease(lease) if lease.devices.iter().all(|(_, held)| held.holder == self.holder) => Ok(lease),
            Answer::Lease(_) => {
                self.lent.set(false);
                bail!("lease `{}` has ended, and the name is somebody else's by now", self.id)
            }
            Answer::Refused(reason) => {
                self.lent.set(false);
                bail!("{reason}")
            }
            other => bail!("the scaler answered something else: {other:?}"),
        }
    }
}

fn say_once(said: &mut String, text: &str) {
    if said != text {
        eprintln!("{text}");
        *said = text.to_owned();
    }
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

async fn ended(child: &mut Option<Group>) -> std::io::Result<ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

/// The command's own, or 128 and the signal that ended it, as shells say it.
fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
