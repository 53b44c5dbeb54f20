//! The scaler with real hosts: from none to some and back, over hosts that come, go, die and are lent, and leaders that die or sleep.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sluice_core::ModelName;
use sluice_core::assignment::{Assignment, Generation, assignment_topic};
use sluice_core::broker::{Broker, Replies, Submission};
use sluice_core::report::{REPORTS, Report};
use sluice_e2e::fixture;
use sluice_e2e::proxy::Proxy;
use sluice_e2e::stack::{Durable, SOON, Stack, envelope, floats, next, rows, submit};
use xtask::broker::Kind;

/// Quick to come and to go, so that a test sees both.
pub const QUICK: &str = "[batching]\nmax_rows = 1\n[scaling]\nmax_slots = 6\ntarget_wait = \"500ms\"\nscale_down_delay = \"2s\"\nidle_to_zero = \"3s\"\n";

/// A deployed doubler, `m`, whose rows take some time.
pub fn deploy(stack: &Stack, work: u32, scaling: &str) -> Result<()> {
    let package = fixture::doubler(stack.folder(), "m", work, scaling)?;
    let output = stack.cli(&["model", "deploy", &package.display().to_string(), "--start"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What `sluice … --json` prints.
pub fn json(stack: &Stack, arguments: &[&str]) -> Result<Value> {
    let output = stack.cli(arguments)?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "`sluice {}`: {err}", arguments.join(" "));
    serde_json::from_str(&out).with_context(|| out.into_owned())
}

/// Hosts that have slots of `m` that serve, each with how many.
pub fn serving(stack: &Stack) -> Result<Vec<(String, u64)>> {
    let rows = json(stack, &["slots", "m", "--json"])?;
    let row = |row: &Value| Some((row["host"].as_str()?.to_owned(), row["slots_of"]["slots"].as_u64()?));
    Ok(rows.as_array().into_iter().flatten().filter_map(row).filter(|(_, slots)| *slots > 0).collect())
}

/// Waits until the slots are as they should be.
pub fn until(stack: &Stack, what: &str, fits: impl Fn(&[(String, u64)]) -> bool) -> Result<Vec<(String, u64)>> {
    let deadline = Instant::now() + SOON;
    loop {
        let slots = serving(stack)?;
        if fits(&slots) {
            return Ok(slots);
        }
        if Instant::now() > deadline {
            let explained = stack.cli(&["scale", "explain", "m"])?;
            let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
            bail!("no {what}: {slots:?} serve\n{explained}\n{}", json(stack, &["hosts", "--json"])?);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn total(slots: &[(String, u64)]) -> u64 {
    slots.iter().map(|(_, slots)| slots).sum()
}

/// Requests under way.
pub struct Load {
    broker: Arc<dyn Broker>,
    inbox: Box<dyn Replies>,
    sent: usize,
    answered: BTreeSet<String>,
}

impl Load {
    pub async fn new(stack: &Stack) -> Result<Self> {
        let broker = stack.connect().await?;
        let inbox = broker.inbox().await?;
        Ok(Self { broker, inbox, sent: 0, answered: BTreeSet::new() })
    }

    /// Whose answers are stored: those to an inbox are lost while its owner is away.
    async fn durable(stack: &Stack) -> Result<Self> {
        let broker = stack.connect().await?;
        let inbox = Durable::open(&broker, "outage", 400).await?;
        Ok(Self { broker, inbox, sent: 0, answered: BTreeSet::new() })
    }

    pub async fn send(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            let request = envelope(&format!("r{}", self.sent), &*self.inbox);
            let body = rows(&[[self.sent as f32; 4]]);
            submit(&self.broker, Submission::new("m".parse()?, request, body)).await?;
            self.sent += 1;
        }
        Ok(())
    }

    /// Every request is answered, each rightly; none was given up.
    pub async fn finish(mut self, stack: &Stack) -> Result<()> {
        while self.answered.len() < self.sent {
            let reply = next(&mut self.inbox)
                .await
                .with_context(|| format!("{} of {} were answered", self.answered.len(), self.sent))?;
            let number: f32 = reply.id.as_str().trim_start_matches('r').parse()?;
            ensure!(floats(&reply).map_err(anyhow::Error::msg)? == [2.0 * number; 4], "{}", reply.id);
            self.answered.insert(reply.id.to_string());
        }
        let model: ModelName = "m".parse()?;
        stack.wait_until_empty(&self.broker, &model).await?;
        ensure!(self.broker.dead_letters(&model, 10).await?.is_empty());
        Ok(())
    }
}

pub async fn from_no_slots_to_an_answer_and_back_to_none(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let mut host = stack.host(2)?;
    deploy(&stack, 1, QUICK)?;
    until(&stack, "silence", |slots| slots.is_empty())?;
    // Nobody runs it, and still callers learn what it takes.
    let ask = |stack: &Stack| -> Result<()> {
        let output = stack.cli(&["infer", "m", "--input", "x=[1,2,3,4]", "--timeout", "30s"])?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success() && text.contains("8.0"), "{text}");
        Ok(())
    };
    ask(&stack).with_context(|| scaler.log())?;
    until(&stack, "slot", |slots| total(slots) == 1)?;
    until(&stack, "way back to none", |slots| slots.is_empty())?;
    let explained = json(&stack, &["scale", "explain", "m", "--json"])?;
    ensure!(
        explained["wanted"] == 0 && explained["reason"].as_str().is_some_and(|why| why.contains("nothing waits")),
        "{explained}"
    );
    let changes: Vec<u64> =
        explained["changes"].as_array().into_iter().flatten().filter_map(|one| one["to"].as_u64()).collect();
    ensure!(changes == [0, 1], "{explained}");
    // What the host has not run for long it does not follow any more, until it is to run it again.
    host.process.wait_for_line("it is not followed any more", Duration::from_secs(60))?;
    let set = stack.cli(&["scale", "set", "m", "--max", "2"])?;
    ensure!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    ask(&stack).with_context(|| host.process.log())
}

pub async fn a_burst_spreads_over_hosts_and_ends_there(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let _hosts = [stack.host(2)?, stack.host(2)?, stack.host(2)?];
    deploy(&stack, 40, QUICK)?;
    let mut load = Load::new(&stack).await?;
    load.send(1500).await?;
    until(&stack, "spread", |slots| total(slots) == 6 && slots.len() == 3)?;
    load.finish(&stack).await?;
    until(&stack, "way back to none", |slots| slots.is_empty())?;
    Ok(())
}

pub async fn a_number_that_changes_while_a_model_loads_is_taken_up(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let (_drained, host) = (stack.host(4)?, stack.host(4)?);
    // Its warm-up takes seconds.
    deploy(&stack, 8_000, &QUICK.replace("max_slots = 6", "min_slots = 2\nmax_slots = 2"))?;
    let loading = |stack: &Stack| -> Result<bool> {
        let rows = json(stack, &["slots", "m", "--json"])?;
        Ok(rows.as_array().into_iter().flatten().any(|row| row["slots_of"]["state"] == "loading"))
    };
    let deadline = Instant::now() + SOON;
    while !loading(&stack)? {
        ensure!(Instant::now() < deadline, "it does not load");
        std::thread::sleep(Duration::from_millis(20));
    }
    // No revision: only the number of this host changes.
    let drained = stack.cli(&["hosts", "drain", "worker-2"])?;
    ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    until(&stack, "slots on one host", |slots| slots.len() == 1 && total(slots) == 2)?;
    // Not only said: there.
    let deadline = Instant::now() + SOON;
    loop {
        let there = host.metric("sluice_slots", &["idle"])? + host.metric("sluice_slots", &["busy"])?;
        if there == 2.0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{there} slots are there\n{}", host.process.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub async fn slots_of_a_host_that_dies_go_elsewhere(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let mut hosts = [stack.host(2)?, stack.host(4)?];
    deploy(&stack, 40, &QUICK.replace("max_slots = 6", "min_slots = 4\nmax_slots = 4"))?;
    let mut load = Load::new(&stack).await?;
    load.send(400).await?;
    until(&stack, "spread", |slots| total(slots) == 4 && slots.len() == 2)?;
    hosts[0].process.kill();
    let killed = Instant::now();
    until(&stack, "move", |slots| slots.len() == 1 && total(slots) == 4)?;
    // Three reports' time, the round that finds out, and the way that this test learns of it on a busy machine.
    ensure!(killed.elapsed() < Duration::from_secs(15), "{:?}", killed.elapsed());
    let listed = json(&stack, &["hosts", "--json"])?;
    let silent: Vec<bool> =
        listed.as_array().into_iter().flatten().map(|host| host["silent_seconds"].is_u64()).collect();
    ensure!(silent.iter().filter(|silent| **silent).count() == 1, "{listed}");
    load.send(50).await?;
    load.finish(&stack).await
}

pub async fn a_standby_takes_over_from_a_leader_that_is_killed(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut leader = stack.scaler("")?;
    leader.wait_for_line("leading", SOON)?;
    let mut standby = stack.scaler("")?;
    standby.wait_for_line("waiting for the lead", SOON)?;
    let _hosts = [stack.host(2)?, stack.host(2)?];
    deploy(&stack, 40, QUICK)?;
    let mut load = Load::new(&stack).await?;
    load.send(600).await?;
    let before = until(&stack, "slot", |slots| total(slots) >= 2)?;
    leader.kill();
    let killed = Instant::now();
    standby.wait_for_line("leading", SOON)?;
    ensure!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    let after = serving(&stack)?;
    ensure!(total(&after) >= total(&before), "a new leader begins where the old one ended: {before:?}, {after:?}");
    load.send(100).await?;
    load.finish(&stack).await?;
    until(&stack, "way back to none", |slots| slots.is_empty())?;
    Ok(())
}

pub async fn a_leader_that_slept_changes_nothing_when_it_wakes(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut leader = stack.scaler("")?;
    leader.wait_for_line("leading", SOON)?;
    let mut standby = stack.scaler("")?;
    standby.wait_for_line("waiting for the lead", SOON)?;
    let _host = stack.host(4)?;
    deploy(&stack, 10, &QUICK.replace("max_slots = 6", "min_slots = 2\nmax_slots = 4"))?;
    until(&stack, "slots", |slots| total(slots) == 2)?;
    leader.signal(libc::SIGSTOP);
    let stopped = Instant::now();
    standby.wait_for_line("leading", SOON)?;
    ensure!(stopped.elapsed() < Duration::from_secs(8), "{:?}", stopped.elapsed());
    let generation = |stack: &Stack| -> Result<(u64, u64)> {
        let hosts = json(stack, &["hosts", "--json"])?;
        let of = &hosts[0]["assignment"]["generation"];
        Ok((of["term"].as_u64().context("a term")?, of["counter"].as_u64().context("a counter")?))
    };
    let deadline = Instant::now() + SOON;
    let first = generation(&stack)?;
    let mut taken_over = first;
    while taken_over.0 == first.0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        taken_over = generation(&stack)?;
    }
    let set = stack.cli(&["scale", "set", "m", "--min", "3"])?;
    ensure!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    until(&stack, "third slot", |slots| total(slots) == 3)?;
    let before = generation(&stack)?;
    leader.signal(libc::SIGCONT);
    leader.wait_for_line("the lead is lost", SOON)?;
    let mut load = Load::new(&stack).await?;
    load.send(50).await?;
    load.finish(&stack).await?;
    // What it might have sent before it slept, and arrives only now: refused, each report tells.
    let host = json(&stack, &["hosts", "--json"])?[0]["host"].as_str().context("a host")?.to_owned();
    let stale = Generation { term: first.0, counter: first.1 + 1000 };
    let assignment = Assignment { host: host.clone(), generation: stale, ..Assignment::default() };
    let broker = stack.connect().await?;
    let mut reports = broker.listen(REPORTS).await?;
    broker.signal(&assignment_topic(&host), serde_json::to_vec(&assignment)?.into()).await?;
    for _ in 0..2 {
        let report: Report = serde_json::from_slice(&tokio::time::timeout(SOON, reports.next()).await??.payload)?;
        let follows = report.assignment.context("it follows a scaler")?.generation;
        ensure!(follows > stale, "{follows} is followed, sent under the old term");
    }
    let after = generation(&stack)?;
    ensure!(after >= before && after.0 == before.0, "{before:?}, {after:?}");
    ensure!(total(&serving(&stack)?) >= 3);
    Ok(())
}

pub async fn a_host_is_drained_under_load_and_used_again(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let hosts = [stack.host(3)?, stack.host(3)?];
    deploy(&stack, 40, &QUICK.replace("max_slots = 6", "min_slots = 2\nmax_slots = 2"))?;
    until(&stack, "spread", |slots| slots.len() == 2)?;
    let mut load = Load::new(&stack).await?;
    load.send(300).await?;
    let drained = stack.cli(&["hosts", "drain", "worker-2", "--wait"])?;
    ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
    until(&stack, "move", |slots| slots.len() == 1 && slots[0].0 != "worker-2" && total(slots) == 2)?;
    load.send(50).await?;
    load.finish(&stack).await?;
    for host in &hosts {
        let (retried, dead) =
            (host.metric("sluice_requests_total", &["retried"])?, host.metric("sluice_requests_total", &["dead"])?);
        ensure!(retried + dead == 0.0, "an orderly drain charges nobody");
    }
    let unknown = stack.cli(&["hosts", "drain", "nobody"])?;
    ensure!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("no host `nobody`"));
    // What is set stays set when another leads.
    scaler.kill();
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let set = stack.cli(&["scale", "set", "m", "--max", "4", "--min", "4"])?;
    ensure!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    until(&stack, "full host", |slots| slots.len() == 1 && total(slots) == 3)?;
    let opened = stack.cli(&["hosts", "open", "worker-2"])?;
    ensure!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
    until(&stack, "use of both", |slots| slots.len() == 2 && total(slots) == 4)?;
    Ok(())
}

pub async fn a_host_that_is_cut_off_is_replaced_and_told_to_drop_when_it_is_back(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let way = Proxy::start(stack.server_port()?)?;
    let _hosts = (stack.host_behind(&way, 2)?, stack.host(4)?);
    deploy(&stack, 10, &QUICK.replace("max_slots = 6", "min_slots = 4\nmax_slots = 4"))?;
    until(&stack, "spread", |slots| total(slots) == 4 && slots.len() == 2)?;
    let mut load = Load::new(&stack).await?;
    load.send(200).await?;
    way.cut()?;
    until(&stack, "move", |slots| slots.len() == 1 && total(slots) == 4)?;
    load.send(50).await?;
    way.heal()?;
    // It reports that it runs what it should not any more, and is told.
    until(&stack, "order", |slots| slots.len() == 1 && slots[0].0 != "worker-2" && total(slots) == 4)?;
    let deadline = Instant::now() + SOON;
    loop {
        let hosts = json(&stack, &["hosts", "--json"])?;
        let back = hosts.as_array().into_iter().flatten().find(|host| host["host"] == "worker-2");
        let empty = |host: &Value| {
            host["models"].as_array().is_some_and(Vec::is_empty)
                && host["assignment"]["slots"].as_array().is_some_and(Vec::is_empty)
        };
        if back.is_some_and(empty) {
            break;
        }
        ensure!(Instant::now() < deadline, "worker-2 still has what it should not: {hosts}");
        std::thread::sleep(Duration::from_millis(100));
    }
    load.finish(&stack).await
}

pub async fn an_outage_of_the_broker_takes_no_slot_away(kind: Kind) -> Result<()> {
    let mut stack = Stack::alone(kind)?;
    let mut scaler = stack.scaler("")?;
    scaler.wait_for_line("leading", SOON)?;
    let _host = stack.host(4)?;
    deploy(&stack, 40, &QUICK.replace("max_slots = 6", "max_slots = 3"))?;
    let mut load = Load::durable(&stack).await?;
    load.send(400).await?;
    until(&stack, "slots", |slots| total(slots) == 3)?;
    stack.server.stop()?;
    std::thread::sleep(Duration::from_secs(6));
    stack.server.restart()?;
    // Nothing was taken away while nobody knew what waits.
    let mut log = scaler.log();
    ensure!(!log.contains("from=3"), "{log}");
    load.finish(&stack).await?;
    until(&stack, "way back to none", |slots| slots.is_empty())?;
    log = scaler.log();
    ensure!(log.contains("from=1 to=0"), "{log}");
    Ok(())
}

pub async fn each_part_does_its_work_with_the_permissions_of_its_role(kind: Kind) -> Result<()> {
    let mut stack = Stack::production(kind)?;
    // What all share is made by whoever manages: the others wait for it.
    let mut scaler = stack.scaler("")?;
    if kind == Kind::Nats {
        scaler.wait_for_line("waiting for what leading needs", SOON)?;
    }
    deploy(&stack, 40, QUICK)?;
    scaler.wait_for_line("leading", SOON)?;
    let mut standby = stack.scaler("")?;
    standby.wait_for_line("waiting for the lead", SOON)?;
    let _hosts = [stack.host(1)?, stack.host(1)?];
    until(&stack, "silence", |slots| slots.is_empty())?;
    let produce = |arguments: &[&str]| -> Result<String> {
        let output = stack.cli_as("producer", arguments)?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{arguments:?}: {text}\n{}", scaler.log());
        Ok(text)
    };
    let answer = produce(&["infer", "m", "--input", "x=[1,2,3,4]", "--timeout", "30s"])?;
    ensure!(answer.contains("8.0"), "{answer}");
    // Durable answers, and enough of a burst for both hosts.
    let lines: String = (0..600).map(|row| format!("{row},0,0,0\n")).collect();
    let input = stack.file("rows.csv", lines)?;
    let answers = stack.folder().join("answers.jsonl");
    let answering = std::thread::scope(|scope| {
        let (from, to) = (input.display().to_string(), answers.display().to_string());
        let submitting = scope
            .spawn(move || produce(&["submit", "m", &from, "--columns", "0-3", "--rows-per-message", "1", "-o", &to]));
        until(&stack, "spread", |slots| slots.len() == 2)?;
        let drained = stack.cli(&["hosts", "drain", "worker-3"])?;
        ensure!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
        until(&stack, "move", |slots| slots.len() == 1 && slots[0].0 == "worker-4")?;
        submitting.join().unwrap_or_else(|_| bail!("submitting panicked"))
    });
    answering?;
    ensure!(std::fs::read_to_string(&answers)?.lines().count() == 600);
    // Another takes over, and what was said of the hosts still holds.
    scaler.kill();
    standby.wait_for_line("leading", SOON)?;
    let hosts = json(&stack, &["hosts", "--json"])?;
    let gate = |name: &str| -> Option<Value> {
        hosts.as_array()?.iter().find(|host| host["host"] == name).map(|host| host["assignment"]["gate"].clone())
    };
    ensure!(gate("worker-3") == Some("drained".into()), "{hosts}");
    until(&stack, "way back to none", |slots| slots.is_empty())?;
    let lease = stack.cli(&["lease", "acquire", "--wait", "--for", "1m", "--", "true"])?;
    ensure!(lease.status.success(), "{}", String::from_utf8_lossy(&lease.stderr));
    what_a_role_may_not_do_is_said_at_once(&stack)
}

fn what_a_role_may_not_do_is_said_at_once(stack: &Stack) -> Result<()> {
    let refused = |arguments: &[&str]| -> Result<String> {
        let began = Instant::now();
        let output = stack.cli_as("producer", arguments)?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(!output.status.success(), "{arguments:?} should have failed: {text}");
        ensure!(began.elapsed() < Duration::from_secs(5), "{arguments:?} took {:?}: {text}", began.elapsed());
        Ok(text)
    };
    for arguments in [&["hosts", "drain", "worker-4"][..], &["lease", "acquire", "--wait"], &["hosts"]] {
        let text = refused(arguments)?;
        ensure!(text.contains("this user may not") && text.contains("`manager`"), "{arguments:?}: {text}");
    }
    // The worker may not submit to any model, unless somebody grants it.
    let text = refused(&["infer", "m", "--input", "x=[1,2,3,4]", "--then", "m"]).or_else(|_| {
        // The first may have to wait for a slot.
        refused(&["infer", "m", "--input", "x=[1,2,3,4]", "--then", "m"])
    })?;
    ensure!(text.contains("INTERNAL") && text.contains("kept as a dead letter") && text.contains("denies"), "{text}");
    Ok(())
}

pub async fn a_command_is_told_what_fits_nowhere_and_when_it_fits_again(kind: Kind) -> Result<()> {
    let mut stack = Stack::start(kind)?;
    let told = stack.folder().join("told.jsonl");
    let command = format!("when_short = [\"/bin/sh\", \"-c\", \"cat >> {0}; echo >> {0}\"]", told.display());
    let mut scaler = stack.scaler(&command)?;
    scaler.wait_for_line("leading", SOON)?;
    let _host = stack.host(2)?;
    deploy(&stack, 1, &QUICK.replace("max_slots = 6", "min_slots = 5\nmax_slots = 6"))?;
    let until_told = |slots: Option<u64>| -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            let text = std::fs::read_to_string(&told).unwrap_or_default();
            let last: Value = text.lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
            let unplaced = last["unplaced"].as_array();
            let fits = match slots {
                None => unplaced.is_some_and(Vec::is_empty),
                Some(slots) => unplaced.is_some_and(|unplaced| {
                    unplaced.len() == 1
                        && unplaced[0]["model"] == "m"
                        && unplaced[0]["slots"] == slots
                        && unplaced[0]["reason"].as_str().is_some_and(|reason| !reason.is_empty())
                }),
            };
            if fits {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not told of {slots:?}: {text}\n{}", scaler.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until_told(Some(3))?;
    let _second = stack.host(2)?;
    until_told(Some(1))?;
    let _third = stack.host(2)?;
    until_told(None)
}
