//! Devices lent to other work, under a scaler with real hosts.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_e2e::proxy::Proxy;
use sluice_e2e::stack::{SOON, Stack};
use xtask::broker::Kind;
use xtask::process::Service;

use crate::scaling::{Load, QUICK, deploy, json, serving, total, until};

/// `sluice lease acquire --wait …`, not started.
fn acquire(stack: &Stack, more: &[&str]) -> Result<Command> {
    stack.cli_command(&[&["lease", "acquire", "--wait", "--group", "research"], more].concat())
}

/// Waits until nothing is lent.
fn until_none_is_lent(stack: &Stack) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !json(stack, &["lease", "list", "--json"])?.as_array().is_some_and(Vec::is_empty) {
        ensure!(Instant::now() < deadline, "something is still lent");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

pub async fn devices_are_lent_for_a_command_and_reclaimed(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let groups = "[[scaler.groups]]\nname = \"serving\"\nminimum = 4\n";
    let mut scaler = stack.scaler(groups)?;
    scaler.wait_for_line("leading", SOON)?;
    let _hosts = [stack.host(2)?, stack.host(2)?];
    deploy(&stack, 40, &QUICK.replace("max_slots = 6", "min_slots = 2\nmax_slots = 4\ngroup = \"serving\""))?;
    until(&stack, "spread", |slots| slots.len() == 2)?;
    // While the command runs, its host runs nothing.
    // How to reach the broker is none of its business.
    let script =
        "env | grep '^SLUICE_' | grep -v '^SLUICE_LEASE' && exit 9; echo on $SLUICE_LEASE_DEVICES; sleep 4; exit 7";
    let mut command = acquire(&stack, &["--", "sh", "-c", script])?;
    let mut lease = Service::start("lease", &mut command, stack.folder())?;
    let line = lease.wait_for_line("on worker-", SOON)?;
    let lent = line.split("on ").nth(1).and_then(|rest| rest.split('/').next()).context("a host")?.trim().to_owned();
    let slots = serving(&stack)?;
    ensure!(slots.iter().all(|(host, _)| *host != lent), "{lent} is lent, and {slots:?}");
    let listed = stack.cli(&["lease", "list"])?;
    ensure!(String::from_utf8_lossy(&listed.stdout).contains(&format!("{lent}/cpu")));
    ensure!(lease.wait(SOON)?.code() == Some(7), "the command's exit code is the lease's");
    let set = |min: &str| stack.cli(&["scale", "set", "m", "--min", min]);
    ensure!(set("4")?.status.success());
    until(&stack, "use of what was lent", |slots| slots.len() == 2 && total(slots) == 4)?;
    ensure!(set("2")?.status.success());
    until(&stack, "fewer slots", |slots| total(slots) == 2)?;
    // The group that owns the hosts wants them: the holder is told and its command ended.
    let mut command = acquire(&stack, &["--", "sh", "-c", "echo begun; exec sleep 600"])?;
    let mut lease = Service::start("lease-2", &mut command, stack.folder())?;
    lease.wait_for_line("begun", SOON)?;
    let mut load = Load::new(&stack).await?;
    load.send(2000).await?;
    lease.wait_for_line("the lease ends in", SOON)?;
    ensure!(lease.wait(SOON)?.code() == Some(128 + libc::SIGTERM));
    until(&stack, "slots on both", |slots| slots.len() == 2 && total(slots) == 4)?;
    load.finish(&stack).await?;
    // A name is one holder's, whose command is asked to end when somebody gives the lease back for it.
    let script = "trap 'echo saved; exit 5' TERM; echo begun; while :; do sleep 0.1; done";
    let mut command = acquire(&stack, &["--name", "train", "--", "sh", "-c", script])?;
    let mut lease = Service::start("lease-named", &mut command, stack.folder())?;
    lease.wait_for_line("begun", SOON)?;
    let second = stack.cli(&["lease", "acquire", "--name", "train", "--", "true"])?;
    let text = String::from_utf8_lossy(&second.stderr);
    ensure!(!second.status.success() && text.contains("lease `train` is held by"), "{text}");
    ensure!(stack.cli(&["lease", "release", "train"])?.status.success());
    lease.wait_for_line("saved", SOON)?;
    ensure!(lease.wait(SOON)?.code() == Some(1));
    // Without a scaler nobody takes anything away.
    let script = "echo $SLUICE_LEASE begun; sleep 16; exit 7";
    let mut command = acquire(&stack, &["--name", "train", "--", "sh", "-c", script])?;
    let mut lease = Service::start("lease-alone", &mut command, stack.folder())?;
    lease.wait_for_line("train begun", SOON)?;
    scaler.kill();
    ensure!(lease.wait(Duration::from_secs(60))?.code() == Some(7), "{}", lease.log());
    scaler = stack.scaler(groups)?;
    scaler.wait_for_line("leading", SOON)?;
    // A holder that dies loses its lease.
    let mut command = acquire(&stack, &[])?;
    let mut lease = Service::start("lease-3", &mut command, stack.folder())?;
    lease.wait_for_line("held until", SOON)?;
    lease.kill();
    until_none_is_lent(&stack)
}

pub async fn a_lease_ends_with_all_that_its_command_started(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let _host = stack.host(1)?;
    let missing = acquire(&stack, &["--", "/nowhere/train"])?.output()?;
    let said = String::from_utf8_lossy(&missing.stderr);
    ensure!(missing.status.code() == Some(127) && said.contains("cannot run `/nowhere/train`"), "{said}");
    // The command ends and leaves something behind that does not listen.
    let left_behind = |lease: &mut Service| -> Result<i32> {
        let line = lease.wait_for_line("left ", SOON)?;
        line.rsplit(' ').next().and_then(|id| id.parse().ok()).with_context(|| line.clone())
    };
    // SAFETY: no signal is sent; it is only looked whether there is such a process.
    let lives = |id: i32| unsafe { libc::kill(id, 0) } == 0 && !is_zombie(id);
    let script = "(trap '' TERM; while :; do sleep 0.1; done) & echo left $!; sleep 0.5; exit 3";
    let mut lease = Service::start("lease-left", &mut acquire(&stack, &["--", "sh", "-c", script])?, stack.folder())?;
    let left = left_behind(&mut lease)?;
    ensure!(lease.wait(SOON)?.code() == Some(3), "{}", lease.log());
    ensure!(!lives(left), "process {left} goes on, though its device is given back");
    until_none_is_lent(&stack)?;
    // One that does not listen is killed by the second signal.
    let script = "trap '' TERM; echo left $$; while :; do sleep 0.1; done";
    let mut lease = Service::start("lease-deaf", &mut acquire(&stack, &["--", "sh", "-c", script])?, stack.folder())?;
    let left = left_behind(&mut lease)?;
    lease.signal(libc::SIGINT);
    lease.signal(libc::SIGTERM);
    ensure!(lease.wait(SOON)?.code() == Some(130), "{}", lease.log());
    ensure!(!lives(left), "process {left} goes on, though its device is given back");
    until_none_is_lent(&stack)?;
    // It is given back by somebody else.
    let script = "sh -c 'while :; do sleep 0.1; done' & echo left $!; wait; wait";
    let command = &["--name", "train", "--", "sh", "-c", script];
    let mut lease = Service::start("lease-back", &mut acquire(&stack, command)?, stack.folder())?;
    let left = left_behind(&mut lease)?;
    ensure!(stack.cli(&["lease", "release", "train"])?.status.success());
    ensure!(lease.wait(SOON)?.code() == Some(1), "{}", lease.log());
    ensure!(!lives(left), "process {left} goes on, though its device is given back");
    Ok(())
}

pub async fn a_lease_lasts_from_when_it_is_lent_until_its_host_is_drained(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let _host = stack.host(1)?;
    let start = |name: &str, more: &[&str]| -> Result<Service> {
        let mut command = acquire(&stack, &[&["--name", name], more].concat())?;
        Service::start(&format!("lease-{name}"), &mut command, stack.folder())
    };
    // The second waits for longer than it lasts, and then lasts for longer than a holder takes to hear that it has ended.
    let mut first = start("first", &["--", "sh", "-c", "echo begun; sleep 9"])?;
    first.wait_for_line("begun", SOON)?;
    let mut second = start("second", &["--for", "8s", "--", "sh", "-c", "sleep 4; exit 4"])?;
    second.wait_for_line("waiting", SOON)?;
    ensure!(first.wait(SOON)?.success(), "{}", first.log());
    ensure!(second.wait(SOON)?.code() == Some(4), "{}", second.log());

    let script = "trap 'echo saved; exit 5' TERM; echo begun; while :; do sleep 0.1; done";
    let mut third = start("third", &["--", "sh", "-c", script])?;
    third.wait_for_line("begun", SOON)?;
    let host = json(&stack, &["hosts", "--json"])?[0]["host"].as_str().context("a host")?.to_owned();
    let in_use = stack.cli(&["hosts", "drain", &host, "--wait", "--wait-time", "1s"])?;
    let said = String::from_utf8_lossy(&in_use.stderr);
    ensure!(!in_use.status.success() && said.contains("lease `third`"), "{said}");
    let drained = stack.cli(&["hosts", "drain", &host, "--wait"])?;
    ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    ensure!(third.wait(SOON)?.code() == Some(5), "{}", third.log());
    ensure!(third.log().contains("drained") && third.log().contains("saved"), "{}", third.log());
    Ok(())
}

/// Ended, and not waited for: whose child it has become may not care.
fn is_zombie(id: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

pub async fn a_holder_that_is_cut_off_ends_its_command(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let _host = stack.host(1)?;
    let way = Proxy::start(stack.server_port()?)?;
    let script = "trap 'echo saved; exit 5' TERM; echo begun; while :; do sleep 0.1; done";
    let mut command = acquire(&stack, &["--name", "train", "--", "sh", "-c", script])?;
    command.env("SLUICE_BROKER", stack.url_by(&way)?);
    let folder = stack.folder().to_owned();
    let mut lease = way.inside(|| Service::start("lease-cut", &mut command, &folder))??;
    lease.wait_for_line("begun", SOON)?;
    let cut = Instant::now();
    way.cut()?;
    // The scaler takes a silent holder's devices after 15 s.
    lease.wait_for_line("saved", SOON)?;
    ensure!(cut.elapsed() < Duration::from_secs(15), "{:?}", cut.elapsed());
    until_none_is_lent(&stack)?;
    way.heal()?;
    ensure!(lease.wait(SOON)?.code() == Some(1), "{}", lease.log());
    Ok(())
}
