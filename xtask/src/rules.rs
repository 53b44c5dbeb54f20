//! The dependency rules: which packages of this workspace may name which crates. Read from `cargo metadata`.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// A crate, the only packages that may depend on it, and why.
const RULES: &[(&str, &[&str], &str)] = &[
    ("async-nats", &["sluice-broker"], "nothing outside broker/ knows which broker it talks to"),
    ("lapin", &["sluice-broker"], "nothing outside broker/ knows which broker it talks to"),
    ("tch", &["sluice-worker"], "the command line, the scaler and the gateway build and run without libtorch"),
    ("torch-sys", &["sluice-worker"], "the command line, the scaler and the gateway build and run without libtorch"),
    (
        "tokio",
        &[
            "sluice-broker",
            "sluice-registry",
            "sluice-service",
            "sluice-worker",
            "sluice-scaler",
            "sluice",
            "sluice-e2e",
        ],
        "core/ holds words and decisions: no runtime",
    ),
    ("sluice-worker", &[], "it links libtorch; others talk to it over the broker"),
    ("sluice-e2e", &[], "nothing is built on the tests"),
    ("object_store", &["sluice-registry"], "everyone else sees the storage seam"),
    ("xtask", &["sluice-broker", "sluice-registry", "sluice-e2e"], "it serves the repository, not the product"),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
}

/// Checks this workspace; the error lists every breach.
pub fn check() -> Result<()> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(crate::root())
        .output()
        .context("cannot run `cargo metadata`")?;
    if !output.status.success() {
        bail!("`cargo metadata` failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    let breaches = breaches(&metadata);
    if breaches.is_empty() {
        return Ok(());
    }
    bail!("dependency rules are broken:\n  {}", breaches.join("\n  "));
}

fn breaches(metadata: &Metadata) -> Vec<String> {
    let mut found = Vec::new();
    for package in &metadata.packages {
        for dependency in &package.dependencies {
            let rule = RULES.iter().find(|(name, ..)| *name == dependency.name);
            if let Some((name, allowed, reason)) = rule
                && !allowed.contains(&package.name.as_str())
            {
                found.push(format!("`{}` depends on `{name}`: {reason}", package.name));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_names_a_broker_client_or_libtorch_is_reported() {
        let package = |name: &str, dependencies: &[&str]| Package {
            name: name.into(),
            dependencies: dependencies.iter().map(|name| Dependency { name: name.to_string() }).collect(),
        };
        let good =
            Metadata { packages: vec![package("sluice-broker", &["async-nats"]), package("sluice-worker", &["tch"])] };
        assert!(breaches(&good).is_empty());
        let bad = Metadata { packages: vec![package("sluice", &["async-nats", "tch", "serde"])] };
        let found = breaches(&bad);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("`sluice` depends on `async-nats`"), "{found:?}");
    }
}
