//! One deployment, one set of settings; and what three copies of everything are good for.

use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sluice_e2e::stack::SOON;
use sluice_e2e::{Stack, fixture};
use xtask::broker::{Kind, Server};

pub async fn a_program_takes_the_deployments_settings_and_says_what_it_would_have_had(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    drop(stack.worker(&[(&package, 1)], "dead_letters_kept = \"2h\"")?);
    let mut other = stack.worker(&[(&package, 1)], "dead_letters_kept = \"3h\"")?;
    let warning = other.process.wait_for_line("dead_letters_kept", SOON)?;
    ensure!(warning.contains("is 3h") && warning.contains("has 2h"), "{warning}");
    // The command line has a file as well, and hears the same.
    let config = stack.file("mine.toml", "[broker]\ndead_letters_kept = '1h'\n[worker]\nhost = 'x'\n")?;
    let run = |arguments: &[&str]| -> Result<(Value, String)> {
        let output = stack.cli_command(arguments)?.env("SLUICE_CONFIG", &config).output()?;
        let told = text(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {told}");
        Ok((serde_json::from_slice(&output.stdout).with_context(|| text(&output.stdout))?, told))
    };
    let (shown, told) = run(&["settings", "show", "--json"])?;
    ensure!(shown["settings"]["dead_letters_kept"] == "2h" && shown["differs"] == Value::Array(vec![]), "{shown}");
    ensure!(told.contains("is 1h") && told.contains("has 2h"), "{told}");
    let (set, _) = run(&["settings", "set", "dead_letters_kept=1h", "--json"])?;
    let changed = set["changed"][0].as_str().unwrap_or_default();
    ensure!(changed.contains("dead") || changed.contains("DEAD"), "{set}");
    let (shown, told) = run(&["settings", "show", "--json"])?;
    ensure!(shown["settings"]["dead_letters_kept"] == "1h" && told.is_empty(), "{shown} {told}");
    let (context, _) = run(&["context", "--json"])?;
    ensure!(context["config"] == config.display().to_string(), "{context}");
    Ok(())
}

/// A command that must work within a while: a cluster that lost a node elects leaders first.
fn until_done(stack: &Stack, role: &str, arguments: &[&str]) -> Result<Output> {
    let deadline = Instant::now() + SOON;
    loop {
        let output = stack.cli_as(role, arguments)?;
        if output.status.success() {
            return Ok(output);
        }
        if Instant::now() > deadline {
            bail!("{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn deploy(stack: &Stack, package: &str) -> Result<()> {
    until_done(stack, "manager", &["model", "deploy", package, "--start", "--wait"]).map(drop)
}

fn asked(stack: &Stack, model: &str) -> Result<()> {
    let answer = until_done(stack, "producer", &["infer", model, "--input", "x=[1,2,3,4]"])?;
    ensure!(text(&answer.stdout).contains("8.0"), "{}", text(&answer.stdout));
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_with_the_node_that_leads_the_registry_and_its_disk() -> Result<()> {
    let mut stack = Stack::cluster()?;
    until_done(&stack, "manager", &["settings", "set", "replicas=3"])?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let _host = stack.host(2)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?.display().to_string();
    deploy(&stack, &package)?;
    asked(&stack, "m")?;

    let Server::Cluster(cluster) = &stack.server else { bail!("not a cluster") };
    let streams = cluster.streams()?;
    for name in [
        "INFER_m",
        "RESULTS",
        "DEAD",
        "GIVEN_BACK",
        "KV_SLUICE_REGISTRY",
        "OBJ_SLUICE_PACKAGES",
        "KV_SLUICE_LEADERS",
        "SLUICE_SETTINGS",
    ] {
        ensure!(streams.iter().any(|(stream, ..)| stream == name), "{name} is not among {streams:?}");
    }
    ensure!(streams.iter().all(|(_, copies, _)| *copies == 3), "{streams:?}");
    let registry = streams.iter().find(|(name, ..)| name == "KV_SLUICE_REGISTRY");
    let leader = registry.map(|(.., leader)| leader.clone()).context("the registry has no leader")?;
    let Server::Cluster(cluster) = &mut stack.server else { bail!("not a cluster") };
    cluster.lose(&leader)?;

    let second = fixture::doubler(stack.folder(), "m", 1, "")?.display().to_string();
    deploy(&stack, &second)?;
    asked(&stack, "m")?;
    let other = fixture::doubler(stack.folder(), "n", 0, "")?.display().to_string();
    until_done(&stack, "manager", &["model", "deploy", &other])?;
    until_done(&stack, "manager", &["model", "start", "n", "--wait"])?;
    asked(&stack, "n")?;
    let back = until_done(&stack, "manager", &["model", "rollback", "m", "1", "--wait"])?;
    ensure!(text(&back.stdout).contains("back to revision 1"), "{}", text(&back.stdout));
    asked(&stack, "m")
}
