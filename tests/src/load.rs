//! Asking a model as fast as it answers, and what that shows.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde::Deserialize;
use sluice_core::broker::Submission;
use sluice_core::{Envelope, ModelName, codec};

use crate::Stack;

/// One run's measurement.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct Measured {
    /// Answered.
    pub requests: u64,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Half of them took no longer, from submission to answer.
    pub p50_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// Processors' time per request, of all that took part.
    #[serde(default)]
    pub cpu_us: f64,
}

impl Measured {
    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// Asks a model for so many seconds with `window` requests under way, through the same seam that the command line uses. `pids` are the
/// processes whose time counts beside this one's.
pub async fn measure(
    stack: &Stack,
    model: &str,
    window: usize,
    seconds: f64,
    body: bytes::Bytes,
    pids: &[u32],
) -> Result<Measured> {
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    let reply_to = inbox.reply_to();
    let model: ModelName = model.parse()?;
    let prefix = uuid::Uuid::now_v7().simple().to_string();
    let cpu = cpu_of(pids)? + cpu_of(&[std::process::id()])?;
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(seconds);
    let mut open: HashMap<u64, Instant> = HashMap::new();
    let mut submitting = FuturesUnordered::new();
    let mut latencies = Vec::new();
    let mut next = 0_u64;
    loop {
        let now = Instant::now();
        while open.len() < window && now < until {
            let envelope =
                Envelope { reply_to: Some(reply_to.clone()), ..Envelope::new(format!("{prefix}-{next}").parse()?) };
            let submission = Submission::new(model.clone(), envelope, body.clone());
            open.insert(next, Instant::now());
            next += 1;
            submitting.push(broker.submit(submission));
        }
        if open.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            reply = inbox.next() => {
                let reply = reply?;
                if reply.error.is_some() {
                    bail!("{}", codec::decode_failure(reply.content_type, &reply.body));
                }
                let number: u64 = reply.id.as_str()[prefix.len() + 1..].parse()?;
                let sent = open.remove(&number).context("an answer comes once")?;
                latencies.push(sent.elapsed().as_micros() as u64);
            }
            Some(receipt) = submitting.next() => drop(receipt?),
        }
    }
    let elapsed = began.elapsed().as_secs_f64();
    while let Some(receipt) = submitting.next().await {
        receipt?;
    }
    let cpu = cpu_of(pids)? + cpu_of(&[std::process::id()])? - cpu;
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    let requests = latencies.len() as u64;
    Ok(Measured { requests, seconds: elapsed, p50_ms: at(0.5), p99_ms: at(0.99), cpu_us: cpu * 1e6 / requests as f64 })
}

/// User and system time of running processes, in seconds.
pub fn cpu_of(pids: &[u32]) -> Result<f64> {
    // SAFETY: sysconf only reads a constant.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let mut sum = 0.0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        sum += (fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / ticks;
    }
    Ok(sum)
}
