//! Slots that come when they are needed, and a device that is lent.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_e2e::{Stack, Worker};
use xtask::broker::Kind;
use xtask::process::Service;

use crate::Kit;
use crate::asking::Caller;
use crate::report::Found;
use crate::right::{START, rows};
use crate::shared::taken_mib;

/// A scaler, a host with room on the device alone, and `encoder` deployed with these settings.
fn deployment(kit: &Kit, settings: &str) -> Result<(Stack, Service, Worker)> {
    let mut stack = Stack::alone(Kind::Nats)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", START)?;
    let host = host(kit, &mut stack)?;
    let package = kit.models.join("elastic");
    std::fs::create_dir_all(&package)?;
    std::fs::copy(kit.package("encoder").join("model.pt"), package.join("model.pt"))?;
    let manifest = std::fs::read_to_string(kit.package("encoder").join("model.toml"))?;
    std::fs::write(package.join("model.toml"), format!("{manifest}[scaling]\n{settings}\n"))?;
    let deployed = stack.cli(&["model", "deploy", &package.display().to_string(), "--start", "--wait"])?;
    ensure!(deployed.status.success(), "{}", String::from_utf8_lossy(&deployed.stderr));
    Ok((stack, scaler, host))
}

fn host(kit: &Kit, stack: &mut Stack) -> Result<Worker> {
    let mut host = stack.launch_host_of(kit.device(), 2)?;
    host.process.wait_for_line(": ready", START)?;
    Ok(host)
}

/// Waits until so many slots of `encoder` serve, at least or at most.
fn until_slots(stack: &Stack, what: &str, fits: impl Fn(u64) -> bool) -> Result<u64> {
    let deadline = Instant::now() + START;
    loop {
        let listed = stack.cli(&["slots", "encoder", "--json"])?;
        let rows: Value = serde_json::from_slice(&listed.stdout).context("sluice slots --json")?;
        let slots = rows.as_array().into_iter().flatten().filter_map(|row| row["slots_of"]["slots"].as_u64()).sum();
        if fits(slots) {
            return Ok(slots);
        }
        ensure!(Instant::now() < deadline, "not {what}: {slots} slots\n{rows}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub async fn cold(kit: &Kit, found: &mut Found) -> Result<()> {
    let settings = "scale_down_delay = \"1s\"\nidle_to_zero = \"1s\"\nmax_slots = 2\ntarget_wait = \"100ms\"";
    let (mut stack, _scaler, mut first) = deployment(kit, settings)?;
    let mut caller = Caller::new(&stack).await?;
    let input = rows(kit, "encoder", 1);
    until_slots(&stack, "down to zero", |slots| slots == 0)?;
    let began = Instant::now();
    caller.outputs("encoder", &input).await?;
    found.figure(
        "from zero, its file in the host's cache and the device used before",
        began.elapsed().as_secs_f64(),
        "s",
    );
    let began = Instant::now();
    let burst = rows(kit, "encoder", if kit.small { 2000 } else { 20_000 });
    let ids = caller.send("encoder", &burst).await?;
    let most = until_slots(&stack, "two slots", |slots| slots >= 2)?;
    found.figure("slots in a burst", most as f64, "");
    let answers = caller.receive(&ids).await?;
    ensure!(answers.iter().all(std::result::Result::is_ok), "{:?}", answers.iter().find_map(|one| one.as_ref().err()));
    found.figure(format!("until a burst of {} was answered", burst.len()), began.elapsed().as_secs_f64(), "s");
    until_slots(&stack, "down to zero", |slots| slots == 0)?;
    // A fresh process, and nothing in the cache.
    first.process.stop(START)?;
    std::fs::remove_dir_all(stack.folder().join("packages"))?;
    let _second = host(kit, &mut stack)?;
    let began = Instant::now();
    caller.outputs("encoder", &input).await?;
    found.figure("from zero, a fresh process and nothing in the cache", began.elapsed().as_secs_f64(), "s");
    Ok(())
}

pub async fn lease(kit: &Kit, found: &mut Found) -> Result<()> {
    /// So soon the device is to be free.
    const FREE: Duration = Duration::from_secs(10);
    let (stack, _scaler, host) = deployment(kit, "idle_to_zero = \"10m\"\nmax_slots = 2")?;
    let mut caller = Caller::new(&stack).await?;
    let input = rows(kit, "encoder", 1);
    caller.outputs("encoder", &input).await?;
    found.figure("memory taken while it serves", taken_mib(kit, host.process.id())?, "MiB");
    let train = kit.folder.join("train.py").display().to_string();
    let script = format!("echo begun; exec {} {train} {} 3", kit.python.display(), kit.kind());
    let lease = ["lease", "acquire", "--devices", "1", "--kind", kit.kind(), "--wait", "--", "sh", "-c", &script];
    let began = Instant::now();
    let mut lease = Service::start("lease", &mut stack.cli_command(&lease)?, stack.folder())?;
    lease.wait_for_line("begun", START)?;
    let lent = began.elapsed();
    found.figure("until the device was lent", lent.as_secs_f64(), "s");
    found.figure("memory taken then", taken_mib(kit, host.process.id())?, "MiB");
    ensure!(lent < FREE, "it took {lent:?} until the device was lent");
    let line = lease.wait_for_line("trained with", START)?;
    found.remark("the training", line);
    if kit.gpu {
        found.remark("what it found", lease.wait_for_line("free ", START)?);
    }
    let status = lease.wait(START)?;
    ensure!(status.success(), "the lease's command ended with {status}");
    let began = Instant::now();
    caller.outputs("encoder", &input).await?;
    found.figure("from the training's end to the next answer", began.elapsed().as_secs_f64(), "s");
    Ok(())
}
