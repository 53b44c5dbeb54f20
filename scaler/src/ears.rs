//! Listens to the hosts: what each says is checked before it counts. What is no report, and what claims too much, is told now and then: whoever
//! forges reports is not to fill the log too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use sluice_core::broker::{Broker, Signal};
use sluice_core::report::{REPORT_NOW, REPORTS, Report};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::fleet::Fleet;
use crate::run::lock;

/// From one word on what is wrong with reports to the next.
const SELDOM: Duration = Duration::from_secs(10);

/// What it takes to listen.
pub(crate) struct Ears {
    pub broker: Arc<dyn Broker>,
    pub fleet: Arc<Mutex<Fleet>>,
    /// What a device of each kind counts for at most.
    pub largest: BTreeMap<String, usize>,
    pub began: Instant,
}

impl Ears {
    /// Until `stop`.
    pub(crate) async fn hear(self, stop: CancellationToken) -> Result<()> {
        let mut reports = self.broker.listen(REPORTS).await.context("listening to hosts")?;
        self.broker.signal(REPORT_NOW, Bytes::new()).await.context("asking hosts to report")?;
        let mut told: Option<Instant> = None;
        while let Some(signal) = stop.run_until_cancelled(reports.next()).await {
            let wrong = self.take(&signal.context("listening to hosts")?);
            if let Some(wrong) = wrong
                && told.is_none_or(|told| told.elapsed() >= SELDOM)
            {
                warn!(reason = wrong, "a report is wrong");
                told = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// Takes a report; gives what is wrong with it.
    fn take(&self, signal: &Signal) -> Option<String> {
        let mut report: Report = match serde_json::from_slice(&signal.payload) {
            Ok(report) => report,
            Err(error) => return Some(format!("it cannot be read: {error}")),
        };
        if let Err(reason) = report.check() {
            return Some(format!("it does not count: {reason}"));
        }
        let host = report.host.clone();
        let told = report.within(&self.largest).map(|told| format!("host `{host}`: {told}"));
        match lock(&self.fleet).hear(report, self.began.elapsed()) {
            Ok(()) => told,
            Err(reason) => Some(format!("host `{host}`: {reason}")),
        }
    }
}
