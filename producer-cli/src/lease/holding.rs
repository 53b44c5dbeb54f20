//! Keeping a lease, and the command that runs under it, until one of them ends.

use std::cell::Cell;
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use sluice_core::broker::Broker;
use sluice_core::clock::unix_ms;
use sluice_core::scaler::{Answer, LeaseRequest, LeaseState, Question};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::named;
use crate::common;
use crate::ends::Group;
use crate::scale::ask;

/// How often it is asked whether the devices are free, while they are waited for.
const LOOK: Duration = Duration::from_millis(300);
/// How often the scaler hears that this lease is still needed.
const RENEWAL: Duration = Duration::from_secs(2);
/// Without the broker for so long, the scaler is about to give the devices to others.
const LOST_AFTER: Duration = Duration::from_secs(12);
/// What a command has to end in order when its lease is already gone.
const GRACE: Duration = Duration::from_secs(3);

/// A lease that is asked for, and kept once its devices are there.
pub struct Holding {
    broker: Arc<dyn Broker>,
    request: LeaseRequest,
    /// How long it lasts, from when the devices are lent.
    time: Option<Duration>,
    /// Whether there is something to give back: the name may be somebody else's.
    lent: Cell<bool>,
    /// Somebody wants the command to end.
    pub stop: CancellationToken,
    /// Somebody wants it to end at once.
    pub hurry: CancellationToken,
}

impl Holding {
    pub fn new(broker: Arc<dyn Broker>, request: LeaseRequest, time: Option<Duration>) -> Self {
        let (stop, hurry) = (CancellationToken::new(), CancellationToken::new());
        Self { broker, request, time, lent: Cell::new(false), stop, hurry }
    }

    /// Whether there is something to give back.
    pub fn is_lent(&self) -> bool {
        self.lent.get()
    }

    /// Asks for the devices until nothing runs on them any more; none if somebody does not want to wait. With `patient` also until they can be
    /// lent at all.
    pub async fn wait_for_devices(&self, patient: bool) -> Result<Option<LeaseState>> {
        let mut said = String::new();
        loop {
            // What is waited for in vain does not count; once the devices are lent, the first word on its end holds.
            let until = self.time.map(|time| unix_ms() + time.as_millis() as u64);
            let request = LeaseRequest { until, ..self.request.clone() };
            let answer = ask(&self.broker, &Question::Acquire(request)).await;
            if matches!(answer, Ok(Answer::Lease(_))) {
                self.lent.set(true);
            }
            match answer {
                Ok(Answer::Lease(lease)) if lease.free => return Ok(Some(lease)),
                Ok(Answer::Lease(lease)) => say_once(&mut said, &format!("waiting until {} drained", named(&lease))),
                Ok(other) => bail!("the scaler answered something else: {other:?}"),
                Err(reason) if patient && !common::is_denied(&reason) => {
                    say_once(&mut said, &format!("waiting: {reason:#}"))
                }
                Err(reason) => return Err(reason.context("nothing is lent; --wait waits until it can be")),
            }
            if self.stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
                return Ok(None);
            }
        }
    }

    /// Keeps the lease as long as [`Self::renew`] does; then ends all that the command has started.
    pub async fn keep(&self, mut child: Option<Group>) -> Result<ExitCode> {
        let done = self.renew(&mut child).await;
        if let Some(group) = &mut child {
            if let Err(reason) = &done {
                eprintln!("{reason:#}: the command is asked to end, and killed in {GRACE:?}");
            }
            // Nothing that the command started goes on once its devices are others'.
            let grace = if self.hurry.is_cancelled() { Duration::ZERO } else { GRACE };
            if !group.end(grace).await {
                eprintln!("note: some of what the command started cannot be ended, and may still use the devices");
            }
        }
        done
    }

    /// Keeps the lease until the command has ended, somebody wants it to, or the lease is gone.
    async fn renew(&self, child: &mut Option<Group>) -> Result<ExitCode> {
        let mut stopping = false;
        // When the command must have ended, and why.
        let mut ending: Option<(Instant, String)> = None;
        let mut heard = Instant::now();
        loop {
            let lost = heard + LOST_AFTER;
            let next = ending.iter().map(|(at, _)| *at).fold(lost.min(Instant::now() + RENEWAL), Instant::min);
            tokio::select! {
                status = ended(child) => return Ok(exit_code(status?)),
                () = self.hurry.cancelled() => return Ok(ExitCode::from(crate::exit::INTERRUPTED)),
                () = self.stop.cancelled(), if !stopping => {
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
                bail!("no scaler has answered for {LOST_AFTER:?}, so lease `{}` has ended by now", self.request.id);
            }
            let renewal = Question::Renew(self.request.id.clone());
            let asking = self.broker.ask(renewal.topic(), serde_json::to_vec(&renewal)?.into(), patience);
            let Some(answer) = self.hurry.run_until_cancelled(asking).await else { continue };
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
            Answer::Lease(lease) if lease.devices.iter().all(|(_, held)| held.holder == self.request.holder) => {
                Ok(lease)
            }
            Answer::Lease(_) => {
                self.lent.set(false);
                bail!("lease `{}` has ended, and the name is somebody else's by now", self.request.id)
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
