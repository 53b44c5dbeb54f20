//! `sluice broker-config`: the shipped configuration of a broker's users, with a user for each producer and each worker.

mod nats;

use std::process::ExitCode;

use anyhow::{Result, bail};
use sluice_core::JobId;

use crate::cli::{BrokerConfig, BrokerKind};

/// Users that the shipped files have beside producers and workers.
const TAKEN: [&str; 6] = ["scaler", "manager", "gateway", "monitoring", "staging", "admin"];

pub fn run(options: &BrokerConfig) -> Result<ExitCode> {
    check(options)?;
    match options.kind {
        BrokerKind::Nats => print!("{}", nats::roles(&options.producers, &options.workers)),
        BrokerKind::RabbitMq => {
            bail!("for RabbitMQ, copy the user `producer` of broker-config/rabbitmq/definitions.json")
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Each name stands in subjects, patterns and names of queues.
fn check(options: &BrokerConfig) -> Result<()> {
    let mut seen = TAKEN.map(str::to_owned).to_vec();
    for name in options.producers.iter().chain(&options.workers) {
        if JobId::of(Some(name), "-").is_err() {
            bail!("`{name}` cannot be a user here: 1 to 64 of A-Z, a-z, 0-9, _ and -");
        }
        if seen.contains(name) {
            bail!("there would be two users `{name}`: each has a name of its own, and {} are taken", TAKEN.join(", "));
        }
        seen.push(name.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_mean_something_else_are_refused() {
        let check = |producers: &[&str]| {
            let producers = producers.iter().map(|&name| name.to_owned()).collect();
            check(&BrokerConfig { kind: BrokerKind::Nats, producers, workers: vec!["worker".into()] })
        };
        assert!(check(&["web", "batch-2"]).is_ok());
        for bad in [&["a.b"][..], &["*"], &[">"], &[""], &["a b"], &["manager"], &["worker"], &["a", "a"]] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
