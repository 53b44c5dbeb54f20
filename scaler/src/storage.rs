//! What the broker stores and may store, while this scaler leads: shown as metrics, and told before it is full. What fills is no business of
//! decisions: nothing else here knows of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use prometheus::{Gauge, GaugeVec};
use sluice_core::broker::{Broker, Stored};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Each look asks the broker once for each queue.
const LOOK: Duration = Duration::from_secs(15);
/// Of what it may hold, this share is told of; once it holds less than the second, that is over.
const TOLD: f64 = 0.8;
const OVER: f64 = 0.7;

/// Looks at what the broker stores.
pub(crate) struct Storage {
    pub broker: Arc<dyn Broker>,
    /// 1 while this scaler leads.
    pub leads: Gauge,
    pub bytes: GaugeVec,
    pub limits: GaugeVec,
}

impl Storage {
    /// Until `stop`.
    pub(crate) async fn watch(self, stop: CancellationToken) -> Result<()> {
        let mut full = BTreeSet::new();
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let stored = match self.leads.get() {
                1.0 => self.broker.storage().await,
                _ => Ok(Vec::new()),
            };
            // What is gone is not shown any more.
            self.bytes.reset();
            self.limits.reset();
            match stored {
                Ok(stored) => {
                    self.show(&stored);
                    tell(&mut full, &stored);
                }
                Err(error) => debug!(%error, "what the broker stores is not known"),
            }
        }
        Ok(())
    }

    fn show(&self, stored: &[Stored]) {
        for Stored { name, bytes, limit } in stored {
            self.bytes.with_label_values(&[name]).set(*bytes as f64);
            if let Some(limit) = limit {
                self.limits.with_label_values(&[name]).set(*limit as f64);
            }
        }
    }
}

/// Tells what has become nearly full, and what is so no more.
fn tell(full: &mut BTreeSet<String>, stored: &[Stored]) {
    let (filled, over) = news(full, stored);
    for of in filled {
        let limit = of.limit.unwrap_or_default();
        warn!(
            store = of.name,
            mib = of.bytes >> 20,
            limit_mib = limit >> 20,
            "what the broker may store here is nearly full: a full queue refuses requests, of results and dead letters the oldest are removed \
             before their time; `sluice settings set` allows more"
        );
    }
    for name in over {
        info!(store = name, "there is room again");
    }
}

/// What is nearly full and was not, and what was and is not.
fn news<'s>(full: &mut BTreeSet<String>, stored: &'s [Stored]) -> (Vec<&'s Stored>, Vec<String>) {
    let share = |of: &Stored| of.limit.map_or(0.0, |limit| of.bytes as f64 / limit.max(1) as f64);
    let over: Vec<String> = full
        .iter()
        .filter(|name| stored.iter().find(|of| of.name == **name).is_none_or(|of| share(of) < OVER))
        .cloned()
        .collect();
    over.iter().for_each(|name| _ = full.remove(name));
    let filled = stored.iter().filter(|of| share(of) >= TOLD && full.insert(of.name.clone())).collect();
    (filled, over)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fills_is_told_once_and_when_it_is_over() {
        let stored = |bytes| {
            [
                Stored { name: "RESULTS".into(), bytes, limit: Some(100) },
                Stored { name: "PACKAGES".into(), bytes: 1 << 40, limit: None },
            ]
        };
        let mut full = BTreeSet::new();
        let mut told = |bytes| {
            let stored = stored(bytes);
            let (filled, over) = news(&mut full, &stored);
            (filled.iter().map(|of| of.name.clone()).collect::<Vec<_>>(), over)
        };
        let results = || vec!["RESULTS".to_owned()];
        assert_eq!(told(79), (vec![], vec![]));
        assert_eq!(told(80), (results(), vec![]));
        assert_eq!(told(100), (vec![], vec![]), "once");
        assert_eq!(told(75), (vec![], vec![]), "not at each change about the limit");
        assert_eq!(told(60), (vec![], results()));
        assert_eq!(told(90), (results(), vec![]));
    }
}
