//! What hosts say of themselves, gathered by asking all at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use sluice_core::ModelName;
use sluice_core::broker::{Broker, BrokerError, Signals};
use sluice_core::report::{ModelReport, REPORT_NOW, REPORTS, Report};

use crate::common;

/// How long the first host may take to report when asked.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// How long all of them may take together.
const LONGEST: Duration = Duration::from_secs(2);
/// How long each further one may take.
const QUIET: Duration = Duration::from_millis(150);

fn denied(error: BrokerError) -> anyhow::Error {
    common::denied(error, "ask the hosts what they run", "`monitoring`, `manager` and `gateway`")
}

/// The newest report of each host.
pub struct Hosts {
    signals: Box<dyn Signals>,
    /// By name and process: two processes may report under one name.
    reports: BTreeMap<(String, String), Report>,
}

impl Hosts {
    /// Begins to listen, and asks all hosts to report.
    pub async fn ask(broker: &Arc<dyn Broker>) -> Result<Self> {
        let signals = broker.listen(REPORTS).await.map_err(denied)?;
        broker.signal(REPORT_NOW, Bytes::new()).await.map_err(denied)?;
        Ok(Self { signals, reports: BTreeMap::new() })
    }

    /// All that report in the next moment.
    pub async fn gather(broker: &Arc<dyn Broker>) -> Result<Self> {
        let mut hosts = Self::ask(broker).await?;
        let end = tokio::time::Instant::now() + LONGEST;
        let mut patience = PATIENCE;
        while let Ok(next) =
            tokio::time::timeout_at(end.min(tokio::time::Instant::now() + patience), hosts.next()).await
        {
            next?;
            patience = QUIET;
        }
        if hosts.reports.is_empty() {
            // By now the broker has said whether this may be asked at all.
            broker.signal(REPORT_NOW, Bytes::new()).await.map_err(denied)?;
        }
        Ok(hosts)
    }

    /// Waits for the next report.
    pub async fn next(&mut self) -> Result<()> {
        loop {
            let signal = self.signals.next().await.map_err(denied)?;
            // What is no report is not for us.
            if let Ok(mut report) = serde_json::from_slice::<Report>(&signal.payload)
                && report.check().is_ok()
            {
                // Whatever its devices are: only what cannot be is left out.
                report.within(&BTreeMap::new());
                self.reports.insert((report.host.clone(), report.instance.clone()), report);
                return Ok(());
            }
        }
    }

    /// What each host says, sorted by name.
    pub fn all(&self) -> impl Iterator<Item = &Report> {
        self.reports.values()
    }

    /// What the hosts say of one model.
    pub fn of(&self, model: &ModelName) -> Vec<(&str, &ModelReport)> {
        let reports = self.reports.values();
        let found = reports.flat_map(|report| {
            report.models.iter().filter(|found| found.model == *model).map(|found| (report.host.as_str(), found))
        });
        found.collect()
    }
}
