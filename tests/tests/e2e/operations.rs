//! What an operator sees.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;
use sluice_core::broker::Submission;
use sluice_e2e::stack::{SOON, envelope, next, rows};
use sluice_e2e::{Stack, binaries, fixture};
use xtask::broker::Kind;

pub async fn a_worker_may_start_before_its_broker_and_says_what_it_waits_for(kind: Kind) -> Result<()> {
    let mut stack = Stack::alone(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    stack.server.stop()?;
    let mut worker = stack.launch(&[(&package, 1)], "")?;
    worker.process.wait_for_line("waiting for the broker", SOON)?;
    assert_eq!(worker.admin("/live")?.0, 200);
    let (status, reason) = worker.admin("/ready")?;
    assert_eq!((status, reason.as_str()), (503, "not ready: waiting for the broker\n"));
    stack.server.restart()?;
    worker.process.wait_for_line(": ready", SOON)?;
    assert_eq!(worker.admin("/ready")?.0, 200);
    let broker = stack.connect().await?;
    let mut inbox = broker.inbox().await?;
    broker.submit(Submission::new("m".parse()?, envelope("r1", &*inbox), rows(&[[1.0; 4]]))).await?;
    assert_eq!(next(&mut inbox).await?.error, None);
    Ok(())
}

pub async fn the_queue_command_counts_what_waits(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    drop(stack.worker(&[(&package, 1)], "")?);
    let broker = stack.connect().await?;
    let inbox = broker.inbox().await?;
    for index in 0..3 {
        broker
            .submit(Submission::new("m".parse()?, envelope(&format!("r{index}"), &*inbox), rows(&[[1.0; 4]])))
            .await?;
    }
    let run = stack.cli(&["queue", "--json"])?;
    let shown: Value = serde_json::from_slice(&run.stdout)?;
    assert_eq!((&shown[0]["model"], &shown[0]["lanes"][1]["ready"]), (&"m".into(), &3.into()), "{shown}");
    let table = String::from_utf8(stack.cli(&["queue", "m"])?.stdout)?;
    assert!(table.contains("normal") && table.contains('3'), "{table}");
    Ok(())
}

pub async fn the_python_producer_of_the_documentation_gets_its_answers(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let package = fixture::doubler(stack.folder(), "m", 0, "")?;
    let _worker = stack.worker(&[(&package, 1)], "")?;
    let packages = xtask::setup::python_packages()?;
    let example = match kind {
        Kind::Nats => "docs/examples/producer_nats.py",
        Kind::RabbitMq => "docs/examples/producer_amqp.py",
    };
    let run = |rows: &str| {
        let mut python = std::process::Command::new("python3");
        python.arg(binaries::root().join(example)).args([&stack.server.url(), "m", "x", rows]);
        python.env("PYTHONPATH", &packages).output()
    };
    let output = run("[[1,2,3,4],[5,6,7,8]]")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    let answers: Vec<Value> = out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(answers.len(), 2, "one by MessagePack and inbox, one by JSON and durable results: {out}");
    for answer in answers {
        let data = &answer[0]["data"];
        assert_eq!(data, &serde_json::json!([2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]), "{answer}");
    }
    let refused = run("[[1,2,3]]")?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && text.contains("INVALID_ARGUMENT"), "{text}");
    Ok(())
}

pub async fn configuration_faults_are_told_with_their_keys(kind: Kind) -> Result<()> {
    let stack = Stack::start(kind)?;
    let worker = binaries::path("sluice-worker")?;
    let run = |config: &str| -> Result<String> {
        let file = stack.file("worker.toml", config)?;
        let output = std::process::Command::new(&worker).arg("--check-config").arg("-c").arg(file).output()?;
        assert!(!output.status.success());
        Ok(String::from_utf8(output.stderr)?)
    };
    let text = run("[worker]\nadmin = '127.0.0.1:0'\nadmim = 1\n[broker]\nurll = 'x'\n")?;
    assert!(text.contains("`worker.admim`") && text.contains("`broker.urll`"), "{text}");
    let text = run("[[worker.slots]]\npackage = 'p'\ndevice = 'gpu'\ncount = 0\n")?;
    assert!(text.contains("`worker.slots[0].device`") && text.contains("`worker.slots[0].count`"), "{text}");
    let text = run("[worker]\ndrain_time = 'soon'\n")?;
    assert!(text.contains("drain_time"), "{text}");
    let text = run("[broker]\nurl = 'xyz://1'\ntls_ca = '/nowhere/ca.pem'\n[registry]\nurl = 'ftp://a'\n")?;
    for fault in ["`broker.url` is `xyz://1`", "`/nowhere/ca.pem`, which cannot be read", "`registry.url`"] {
        assert!(text.contains(fault), "`{fault}` is not in: {text}");
    }
    Ok(())
}

#[test]
fn a_worker_keeps_no_copies_of_packages_in_a_folder_that_others_share() -> Result<()> {
    let mut worker = std::process::Command::new(binaries::path("sluice-worker")?);
    worker.arg("--check-config").env_remove("HOME").env_remove("XDG_CACHE_HOME");
    let output = worker.output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("`worker.cache` is not set"), "{text}");
    assert!(worker.env("SLUICE_WORKER__CACHE", "/var/cache/sluice").output()?.status.success());
    Ok(())
}

#[test]
fn no_log_shows_a_password() -> Result<()> {
    let stack = Stack::start(Kind::Nats)?;
    let mut command = stack.cli_command(&["model", "list"])?;
    command.env("RUST_LOG", "trace,async_nats::connector=trace");
    command.env("SLUICE_BROKER", stack.server.url().replace("nats://", "nats://somebody:hunter2@"));
    let output = command.output()?;
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("DEBUG async_nats"), "the client is heard otherwise: {log}");
    assert!(!log.contains("hunter2"), "{log}");
    Ok(())
}

pub async fn a_second_signal_ends_at_once(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    // A batch that outlives any patience.
    let package =
        fixture::doubler(stack.folder(), "m", 200_000, "[batching]\nmax_rows = 1\n[limits]\nbatch_time = \"10m\"")?;
    // Its warm-up takes as long: a worker that loads can be stopped as well.
    let mut worker = stack.launch(&[(&package, 1)], "")?;
    worker.process.wait_for_line("connected", SOON)?;
    let asked = Instant::now();
    worker.process.signal(libc::SIGTERM);
    worker.process.wait_for_line("a second signal ends at once", SOON)?;
    worker.process.signal(libc::SIGTERM);
    worker.process.wait(Duration::from_secs(30))?;
    assert!(asked.elapsed() < Duration::from_secs(30));
    Ok(())
}

/// As behind a pipe whose reader has gone, or when whatever kept the log was killed.
#[tokio::test]
async fn a_worker_whose_log_nobody_reads_goes_on_and_ends_in_order() -> Result<()> {
    let mut worker = std::process::Command::new(sluice_e2e::binaries::path("sluice-worker")?)
        .env("SLUICE_BROKER__URL", "nats://127.0.0.1:1")
        .env("SLUICE_WORKER__ADMIN", "127.0.0.1:0")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    drop(worker.stderr.take());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(worker.try_wait()?, None, "it waits for the broker");
    // SAFETY: kill only sends a signal; the process is ours and has not been waited for.
    unsafe { libc::kill(worker.id() as i32, libc::SIGTERM) };
    for _ in 0..100 {
        if let Some(status) = worker.try_wait()? {
            assert!(status.success(), "{status}");
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    worker.kill()?;
    panic!("it does not end");
}
