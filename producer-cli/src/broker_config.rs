//! `sluice broker-config`: the shipped configuration of a broker's users, with a user for each producer and each worker.

mod nats;
mod rabbitmq;

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
            let definitions = rabbitmq::definitions(&options.producers, &options.workers, secret);
            println!("{}", serde_json::to_string_pretty(&definitions)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The environment variable that holds a user's password.
fn variable(user: &str) -> String {
    format!("SLUICE_{}_PASSWORD", user.to_uppercase().replace('-', "_"))
}

/// The password that the environment has for a user, or a new one, which is told beside the file: that holds its hash alone.
fn secret(user: &str) -> rabbitmq::Secret {
    let variable = variable(user);
    let password = std::env::var(&variable).ok().filter(|password| !password.is_empty()).unwrap_or_else(|| {
        let password = uuid::Uuid::new_v4().simple().to_string();
        eprintln!("{variable}={password}");
        password
    });
    let [a, b, c, d, ..] = uuid::Uuid::new_v4().into_bytes();
    rabbitmq::Secret { password, salt: [a, b, c, d] }
}

/// Each name stands in subjects, patterns and names of queues.
fn check(options: &BrokerConfig) -> Result<()> {
    let mut seen = TAKEN.map(str::to_owned).to_vec();
    for name in options.producers.iter().chain(&options.workers) {
        if JobId::of(Some(name), "-").is_err() {
            bail!("`{name}` cannot be a user here: 1 to 64 of A-Z, a-z, 0-9, _ and -");
        }
        if let Some(other) = seen.iter().find(|other| variable(other) == variable(name)) {
            bail!(
                "users `{other}` and `{name}` would have one password, `{}`: each needs a name of its own, whatever its case, and {} are taken",
                variable(name),
                TAKEN.join(", ")
            );
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
        for bad in [
            &["a.b"][..],
            &["*"],
            &[">"],
            &[""],
            &["a b"],
            &["manager"],
            &["worker"],
            &["a", "a"],
            &["a", "A"],
            &["a-1", "a_1"],
            &["Worker"],
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
